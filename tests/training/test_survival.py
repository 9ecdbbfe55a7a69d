"""Killed runs: a save is whole or absent, and a repeated run ends as if never killed."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_resume import same_end

from fewstep.contract import data_spec
from fewstep.core import UsageError
from fewstep.model import Model, load
from fewstep.training import checkpoints
from fewstep.training.train import train
from survive import (
    born,
    differing,
    dying,
    ended,
    gone,
    living,
    logged,
    points,
    run_of,
    tensors,
    trainer_of,
    trains,
    until,
)
from tiny import rows


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    # Asking git for the commit takes longer than all the steps of a life here.
    monkeypatch.setattr("fewstep.training.folder._commit", lambda: None)
    # A kill is no power cut: what was written stays, whether the disk has it or not.
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def lives(work, there: Path, given: Path, events: int, moments: int, tmp_path: Path):
    """Kill ``work`` at as many events of its saving, and at moments of it, each time anew.

    ``there`` is put back as it is in ``given`` before each life. Yields after each death.
    """
    tally = tmp_path / "tally"
    started = time.monotonic()
    assert ended(born(dying(work, 0, tally))) == 0
    length = time.monotonic() - started
    rng = np.random.default_rng(0)
    for last in [*points(int(tally.read_text()), events), *[0] * moments]:
        shutil.rmtree(there)
        shutil.copytree(given, there)
        pid = born(dying(work, last))
        if not last:
            time.sleep(rng.uniform(0, length))
            os.kill(pid, signal.SIGKILL)
        code = ended(pid)
        assert code == -signal.SIGKILL or (not last and code == 0)
        yield


def test_kills_in_a_save_leave_the_old_or_the_new(tmp_path):
    trainer = trainer_of(run_of())
    folder, given = tmp_path / "checkpoints", tmp_path / "given"
    known = {}
    for step in (1, 2, 3):
        trainer.advance()
        known[step] = trainer.state()[0].keys(), tensors(trainer.state())
        if step == 1:
            checkpoints.save(folder, 1, trainer.state(), 1)
            shutil.copytree(folder, given)
        if step == 2:
            second = tensors(trainer.state()), trainer.state()[1]
    found = {1: 0, 2: 0}
    for _ in lives(
        lambda: checkpoints.save(folder, 2, second, 1) and None, folder, given, 50, 10, tmp_path
    ):
        left = checkpoints.newest(folder)
        state = checkpoints.read(left)
        step = state[1]["step"]
        assert left.name == f"{step:09d}"
        assert differing(known[step][1], state[0]) == []
        found[step] += 1
        checkpoints.save(folder, 3, trainer.state(), 1)
        assert [p.name for p in folder.iterdir()] == ["000000003"]
        assert differing(known[3][1], checkpoints.read(folder / "000000003")[0]) == []
    print(
        f"\n60 kills in a save: {found[1]} left the old checkpoint, {found[2]} the new, 0 neither"
    )
    assert min(found.values()) > 5


def test_kills_in_replacing_a_model_leave_the_old_or_the_new(tmp_path):
    run = run_of()
    contract = run.objective.contract(data_spec((2,), 0, False))
    one = Model(run.objective.student, contract)
    place, given = tmp_path / "models", tmp_path / "given"
    one.save(place / "model")
    shutil.copytree(place, given)
    old = (place / "model" / "model.safetensors").read_bytes()
    with torch.no_grad():
        for p in one.denoiser.parameters():
            p.add_(1.0)
    one.save(tmp_path / "other")
    new = (tmp_path / "other" / "model.safetensors").read_bytes()
    found = {old: 0, new: 0}
    moved = 0
    for _ in lives(lambda: one.save(place / "model") and None, place, given, 50, 10, tmp_path):
        if not (place / "model").exists():
            # Between the two renamings the old one waits under another name for the next start.
            moved += 1
            assert ended(born(dying(lambda: one.save(place / "model") and None, 4))) < 0
        load(place / "model", device="cpu")
        found[(place / "model" / "model.safetensors").read_bytes()] += 1
        one.save(place / "model")
        assert [p.name for p in place.iterdir()] == ["model"]
        assert (place / "model" / "model.safetensors").read_bytes() == new
    print(
        f"\n60 kills in replacing a model: {found[old]} left the old one ({moved} of them put back "
        f"by the next start), {found[new]} the new, 0 neither"
    )
    assert min(found.values()) > 5
    assert moved > 0


def survives(steps: int, kills: int, tmp_path: Path) -> tuple[int, int]:
    """Kill a run so often at random moments, then let it end.

    Returns:
        Kills that hit, lives that got to another checkpoint.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    rng = np.random.default_rng(1)
    changed = {"steps": steps, "keep": 1}
    trains(whole, **changed, save_every=100)
    started = time.monotonic()
    assert ended(born(lambda: trains(tmp_path / "first", **{**changed, "steps": 1}))) == 0
    start = time.monotonic() - started
    hit = moved = 0

    def newest() -> Path | None:
        return checkpoints.newest(parts / "checkpoints")

    for life in range(kills):
        before = newest()
        every = int(rng.integers(1, 6))
        pid = born(lambda every=every: trains(parts, **changed, save_every=every))
        if life % 2:
            # Not before it has got on, or none would ever get on where the machine is busy.
            until(lambda pid=pid, last=before: gone(pid) or newest() != last)
        time.sleep(rng.uniform(0, start if life % 2 == 0 else start / 4))
        os.kill(pid, signal.SIGKILL)
        code = ended(pid)
        assert code in (0, -signal.SIGKILL)
        hit += code != 0
        moved += newest() != before
        if newest() is not None:
            checkpoints.read(newest())
    assert ended(born(lambda: trains(parts, **changed, save_every=3))) == 0
    same_end(whole, parts)
    assert len([*(parts / "checkpoints").iterdir()]) == 1
    return hit, moved


def test_a_run_survives_15_kills(tmp_path):
    hit, moved = survives(150, 15, tmp_path)
    assert hit >= 10
    assert moved >= 3


@pytest.mark.slow
def test_a_run_survives_200_kills(tmp_path):
    hit, moved = survives(3000, 200, tmp_path)
    print(
        f"\n{hit} kills of one run of 3,000 steps: {moved} lives got to another checkpoint; "
        "weights, averages, optimiser and log as if never killed"
    )
    assert hit >= 180
    assert moved >= 50


def dies_and_ends_well(last: int, whole: Path, out: Path) -> bool:
    """Kill a run at an event of its first life, soon in its second; then let it end.

    Lives differ by a few imports, so one of the last events may not come: was it killed?
    """
    work = dying(lambda: trains(out, steps=3, save_every=1, keep=1), last)
    code = ended(born(work))
    assert code in {0, -signal.SIGKILL}
    again = dying(lambda: trains(out, steps=5, save_every=1, keep=1), 1 + last % 20)
    assert ended(born(again)) == -signal.SIGKILL
    trains(out, steps=5, save_every=1, keep=1)
    same_end(whole, out)
    assert not [p for p in out.rglob("*") if p.name.startswith((".new", ".old"))]
    return code != 0


@pytest.fixture(scope="module")
def short_run(tmp_path_factory) -> tuple[Path, int]:
    """A run, and how many things one that is shorter does to files."""
    root = tmp_path_factory.mktemp("short")
    trains(root / "whole", steps=5, save_every=1, keep=1)
    work = dying(lambda: trains(root / "run", steps=3, save_every=1, keep=1), 0, root / "tally")
    assert ended(born(work)) == 0
    return root / "whole", int((root / "tally").read_text())


def test_kills_anywhere_in_a_run(short_run, tmp_path):
    # Also while the folder is made, the log is opened again, models are delivered.
    whole, total = short_run
    chosen = {*range(2, 8), *points(total, 8)}
    killed = [dies_and_ends_well(last, whole, tmp_path / f"run{last}") for last in chosen]
    assert sum(killed) >= len(chosen) - 3


@pytest.mark.slow
def test_kills_everywhere_in_a_run(short_run, tmp_path):
    whole, total = short_run
    killed = sum(
        dies_and_ends_well(last, whole, tmp_path / f"run{last}") for last in range(1, total + 1)
    )
    print(
        f"\na run of 3 steps, killed at {killed} of the {total} things that it does to files, then "
        f"again soon after its start: {total} ended as if never killed, nothing left over"
    )
    assert killed >= total - 5


def test_kills_while_a_run_is_opened_again_lose_no_row(tmp_path):
    given, out = tmp_path / "given", tmp_path / "run"
    trains(given, steps=4, save_every=2)
    for last in range(10, 30):
        shutil.copytree(given, out)
        assert ended(born(dying(lambda: trains(out, steps=5), last))) == -signal.SIGKILL
        assert [row["step"] for row in rows(out)][:4] == [1, 2, 3, 4]
        shutil.rmtree(out)


# A power cut.


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, rename = [], Path.rename
    monkeypatch.setattr("fewstep.system.files.flush", lambda path: done.append(Path(path).name))

    def renames(self: Path, target: Path) -> Path:
        done.append(f"{self.name} -> {Path(target).name}")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renames)
    trainer = trainer_of(run_of())
    for step in (1, 2):
        checkpoints.save(tmp_path / "checkpoints", step, trainer.state(), 1)
    one, two = done[: done.index("checkpoints") + 1], done[done.index("checkpoints") + 1 :]
    assert sorted(one[:3]) == [".new-000000001", "state.json", "state.safetensors"]
    assert one[3:] == [".new-000000001 -> 000000001", "checkpoints"]
    # The old one goes when the disk has the new one's name.
    assert two[3:] == [
        ".new-000000002 -> 000000002",
        "checkpoints",
        "000000001 -> .old-000000001",
    ]


# Signals that ask to stop.

LONG = 80


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("long") / "whole"
    trains(out, steps=LONG)
    return out


@pytest.mark.parametrize(
    "moment", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, 6))]
)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_at_any_moment(signum, moment, long_run, tmp_path):
    out = tmp_path / "parts"
    with living(born(lambda: trains(out, steps=LONG))) as pid:
        until(lambda: logged(out) > 0)
        time.sleep(np.random.default_rng([signum, moment]).uniform(0, 0.1))
        # Held still, so that what it had done when the signal came is known.
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
        before = logged(out)
        os.kill(pid, signum)
        os.kill(pid, signal.SIGCONT)
        assert ended(pid) == 128 + signum
    assert 1 <= before < LONG - 2
    # The step in which it came, which may have been done but for its row.
    assert before <= int(checkpoints.newest(out / "checkpoints").name) <= before + 2
    trains(out, steps=LONG)
    same_end(long_run, out)


# Two trainers on one folder.


def workers_of(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
def test_a_killed_trainers_workers_hold_no_lock(tmp_path):
    out, workers = tmp_path / "run", []
    try:
        with living(born(lambda: trains(out, steps=5000, save_every=2, workers=2))) as pid:
            until(lambda: checkpoints.newest(out / "checkpoints") is not None)
            workers = workers_of(pid)
            with pytest.raises(UsageError, match=f"another process is training in {out}"):
                train(run_of(), out)
            os.kill(pid, signal.SIGKILL)
            assert ended(pid) == -signal.SIGKILL
        steps = int(checkpoints.newest(out / "checkpoints").name) + 3
        trains(out, steps=steps)
        assert len(workers) == 2
        assert all(Path(f"/proc/{worker}").exists() for worker in workers)
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
    trains(tmp_path / "whole", steps=steps)
    same_end(tmp_path / "whole", out)


# Memory.


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_stays(tmp_path):
    found = {}

    def note(count, batch):
        if count in {500, 2000}:
            found[count] = resident_mib()
        return batch

    trains(tmp_path / "run", tell=note, steps=2000, save_every=50, spike=100.0)
    print(
        f"\n2,000 steps and 40 checkpoints: {found[500]:.1f} MiB at 500, {found[2000]:.1f} at 2,000"
    )
    assert found[2000] - found[500] < 4
