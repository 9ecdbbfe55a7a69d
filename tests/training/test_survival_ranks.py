"""Two processes that train together: stopped, killed, out of space; then they or one go on."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from test_distribution import TORCHRUN

import mortal
from fewstep.training import checkpoints
from survive import differing, logged, trains, until
from tiny import timeless


def start(what: str, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [*TORCHRUN, "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", *more]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [*command, mortal.__file__, what, str(out)],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    """All it said, once it has ended."""
    try:
        return process.communicate(timeout=100)[1]
    finally:
        process.terminate()  # which ends its workers too
        process.communicate()


def same(one: Path, other: Path) -> None:
    """Weights, averages, target, optimiser bit for bit; the log's means but for their rounding.

    DDP halves the sum of two gradients, which is exact; a logged loss is a mean in double
    precision of two processes and in single precision of two shards.
    """
    states = [
        load_file(checkpoints.newest(p / "checkpoints") / "state.safetensors") for p in (one, other)
    ]
    assert differing(*states) == []
    left, right = timeless(one), timeless(other)
    assert [row["step"] for row in left] == [row["step"] for row in right]
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose([*a.values()], [*b.values()], rtol=1e-6)


def test_a_signal_to_the_launcher_stops_both_after_one_step(tmp_path):
    out = tmp_path / "run"
    process = start("stopped", out)
    try:
        until(lambda: logged(out) > 0)
        process.send_signal(signal.SIGTERM)
    finally:
        told = said(process)
    assert process.returncode != 0
    (saved,) = (out / "checkpoints").iterdir()
    for rank in (0, 1):
        text = (out / f"stopped-{rank}").read_text()
        assert text == f"interrupted; saved {saved}; the same command resumes", told
        (out / f"stopped-{rank}").unlink()
    step = checkpoints.read(saved)[1]["step"]
    assert logged(out) == step
    # One process goes on, and one does it all.
    for run in (out, tmp_path / "whole"):
        trains(run, **mortal.config(steps=step + 3))
    same(tmp_path / "whole", out)
    print(f"\nSIGTERM to torchrun: both ranks stopped after step {step}; resumed exactly")


@pytest.mark.slow
def test_a_killed_rank_is_restarted_and_the_run_goes_on(tmp_path):
    out = tmp_path / "run"
    process = start("killed", out, "--max-restarts", "1")
    told = said(process)
    assert process.returncode == 0, told[-3000:]
    assert (tmp_path / "life-0").read_text() == "none"
    assert (tmp_path / "life-1").read_text() == "000000004"
    assert f"resuming from {out}/checkpoints/000000004" in told
    trains(tmp_path / "whole", **mortal.config())
    same(tmp_path / "whole", out)
    print(
        "\nrank 1 killed at step 7 under --max-restarts 1: resumed from step 4, same weights, log"
    )


@pytest.mark.slow
@pytest.mark.parametrize("what", ["full", "closed"])
def test_a_full_disk_of_one_rank_stops_both(what, tmp_path):
    out = tmp_path / "run"
    process = start(what, out)
    told = said(process)
    assert process.returncode == 1
    # The launcher ends who is slower to say so.
    lines = [line for line in told.splitlines() if "No space left on device" in line]
    assert 1 <= len(lines) <= 2, told[-3000:]
    assert all(line.endswith("free some space, then repeat the command") for line in lines)
    assert "RuntimeError" not in told
    assert told.count("exitcode  : 2 ") >= 1
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["000000004"]
    assert checkpoints.read(out / "checkpoints" / "000000004")[1]["step"] == 4
