"""Two processes are one process with two shards, by DDP and by FSDP2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_injected import mutations

import ranks
from fewstep.cli import main
from fewstep.errors import UsageError
from fewstep.system.processes import World, joined
from fewstep.training import checkpoints
from fewstep.training.trainer import Trainer

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def torchrun(*words: str | Path, env: dict[str, str] | None = None, **given: str):
    """On two gloo ranks of this machine."""
    command = [*TORCHRUN, "--master-port", "0", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0"]
    command += [f"--{k.replace('_', '-')}={v}" for k, v in given.items()]
    return subprocess.run(
        [*command, *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | (env or {}),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two ranks wrote, and what one process did."""
    out = tmp_path_factory.mktemp("ranks")
    alone = {}
    for name in ranks.NAMES:
        made, _ = ranks.trained(name, steps=2)
        checkpoints.save(out / f"{name}-one", 2, made.state(), 1)
    for name in (*ranks.NAMES, *ranks.JUDGED):
        alone[name] = ranks.trained(name)[1]
    done = torchrun(Path(ranks.__file__), out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out, alone


def compare(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor], last: int) -> float:
    """Largest difference of the weights and of the last losses, relative where they exceed 1."""
    assert left.keys() == right.keys()
    told, expected = left["losses"][-last:], right["losses"][-last:]
    worst = float(((told - expected).abs() / expected.abs().clamp(min=1)).max())
    return max(worst, *(float((left[k] - right[k]).abs().max()) for k in left if k != "losses"))


# Adam divides by the root of the second moment, so rounding in a gradient near zero moves a weight
# by a share of the learning rate (0.01) at most; a wrong sum would move it by all of it.
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", [*ranks.NAMES, *ranks.JUDGED])
def test_two_ranks_are_two_shards(name, parallel, both):
    out, alone = both
    assert compare(load_file(out / f"{name}-{parallel}.safetensors"), alone[name], 4) < 1e-6


@pytest.mark.parametrize("name", [n for n in ranks.NAMES if n not in {"split", "f-distill"}])
def test_ddp_is_exact(name, both):
    # The mean of two ranks halves a sum, which is exact; so the order of the sum is all there is.
    out, alone = both
    found = load_file(out / f"{name}-ddp.safetensors")
    assert all(torch.equal(found[k], v) for k, v in alone[name].items() if k != "losses")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ranks.NAMES)
def test_a_checkpoint_of_one_process_goes_on_in_two(name, parallel, both):
    out, alone = both
    assert compare(load_file(out / f"{name}-{parallel}-on.safetensors"), alone[name], 2) < 1e-6


@pytest.mark.parametrize("name", ranks.NAMES)
def test_a_checkpoint_of_two_processes_goes_on_in_one(name, both):
    out, alone = both
    source = out / f"{name}-half" / "000000002"
    assert len([*source.glob("*.safetensors")]) == 2
    made = ranks.trainer(name, "ddp", ranks.ALONE)
    made.load(checkpoints.read(source), source)
    losses = []
    while made.step < ranks.STEPS:
        row = made.advance()
        losses.append(torch.tensor([float(row[k]) for k in sorted(row)], dtype=torch.float64))
    assert compare(ranks.found(made, losses), alone[name], 2) < 1e-6


def test_a_damaged_shard_is_refused(both):
    source = both[0] / "critic-half" / "000000002"
    files = {p.name: p.read_bytes() for p in source.iterdir()}
    assert sum(name.endswith(".safetensors") for name in files) == 2
    for _, name, new in mutations(files, 60):
        (source / name).unlink() if new is None else (source / name).write_bytes(new)
        with pytest.raises(UsageError, match=r"is damaged .*delete it"):
            checkpoints.read(source)
        (source / name).write_bytes(files[name])
    assert checkpoints.read(source)[1]["step"] == 2


def test_two_ranks_judge_as_one(tmp_path):
    words = ("-m", "fewstep", "evaluate", "digits-cd", "--steps", "1", "--metrics", "fd,swd,nn,kid")
    done = torchrun(*words, "--out", tmp_path / "two.json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("wrote ") == 1
    main([*words[2:], "--out", str(tmp_path / "one.json")])
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in ("one", "two"))
    for left, right in ((one["model"]["1"], two["model"]["1"]), (one["floor"], two["floor"])):
        left.pop("images_per_second", None), right.pop("images_per_second", None)
        assert left == pytest.approx(right, rel=1e-5)


def test_shards_are_of_all_ranks():
    with pytest.raises(UsageError, match=r"3 processes cannot share 2 .*--train.accumulation 3"):
        ranks.trainer("critic", "ddp", World(0, 3))


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "must be numbers"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK must lie in \[0, WORLD_SIZE\)"),
        ({"WORLD_SIZE": "2"}, "start with torchrun"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
    ],
)
def test_an_odd_environment_is_told(variables, says, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=says), joined():
        pass


def test_a_world_of_one_needs_no_launcher(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined() as world:
        assert world == World()
        assert isinstance(ranks.trainer("critic", "fsdp", world), Trainer)
