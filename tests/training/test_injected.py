"""What is put into a run on purpose: numbers that are none, spikes, full disks, damaged files."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from test_resume import OBJECTIVES

from fewstep.cli import main
from fewstep.core import Batch, UsageError
from fewstep.data import positions, toy
from fewstep.objectives.base import Loss, Objective
from fewstep.objectives.denoising import Denoising
from fewstep.training import checkpoints
from fewstep.training.averages import constant
from fewstep.training.config import Run
from fewstep.training.trainer import Diverged, Trainer
from survive import Told, born, differing, ended, run_of, tensors, trainer_of, trains
from tiny import WithPairs, fewstep, settings, timeless, tree

FAILING = """
from fewstep.cli import main
from fewstep.core import UsageError
from fewstep.data import toy
from fewstep.data.catalogue import CATALOGUE, Entry

class Broken:
    def __init__(self, data):
        self.data, self.shape, self.labels, self.image = data, data.shape, data.labels, data.image

    def __len__(self):
        return len(self.data)

    def batch(self, indices):
        if len(indices) in (2, 64):  # the checks before the first step
            return self.data.batch(indices)
        raise {error}("row 7 is broken")

CATALOGUE["two-modes"] = Entry("plane", lambda: Broken(toy("two-modes", 64)))
main("train toy-edm --width 8 --train.workers 1 --train.sample-every 0 --out {out}".split())
"""


@pytest.mark.parametrize(("error", "code"), [("UsageError", 2), ("ValueError", 1)])
def test_an_error_in_a_worker_ends_the_process(error, code, tmp_path):
    script = FAILING.format(error=error, out=tmp_path / "run")
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == code
    assert ended.stderr.rstrip().endswith("row 7 is broken")


# Numbers that are none. Of several phases one may be spoilt without the others.

ONE_PHASE = [name for name, make in OBJECTIVES.items() if len(make().phases()) == 1]
"""The others have losses that read no data, and one update goes on where another is skipped."""


def trainer(objective: Objective, data=None, **changed) -> Trainer:
    run = Run(
        recipe="test",
        arguments={},
        objective=objective,
        data=data or WithPairs(toy("two-modes", 64)),
        config=settings(**{"steps": 40, **changed}),
        averages={"main": constant(0.8)},
    )
    return trainer_of(run)


def skips_and_stays(t: Trainer) -> None:
    """One step, which changes nothing but the counts."""
    before, updates = tensors(t.state()), t.averages.updates
    skipped, step = t.skipped, t.step
    t.advance()
    assert (t.skipped, t.step, t.averages.updates) == (skipped + 1, step + 1, updates)
    assert differing(before, t.state()[0]) == []
    assert all(v.isfinite().all() for v in before.values())


def moves(t: Trainer) -> None:
    """One step, which is a good one."""
    before, skipped = tensors(t.state()), t.skipped
    t.advance()
    assert t.skipped == skipped
    changed = {name.split(".")[0] for name in differing(before, t.state()[0])}
    assert changed == {"objective", "average", "optimizer"}
    assert all(v.isfinite().all() for v in t.state()[0].values())


# They learn from their own samples; data reach a judge, if anything, after the student's update.
SELF_TAUGHT = {
    **{"dmd": 0, "dmd2": 2, "dmd2 on the teacher": 2, "dmd2 with adapters": 2, "f-distill": 2},
    **{"diff-instruct": 0, "sid": 0, "sida": 2, "ladd": 2},
}


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("objective", SELF_TAUGHT)
def test_a_bad_sample_stays_with_the_judge(objective, value):
    def spoil(count, batch):
        x0 = batch.x0.clone()
        x0[positions(0, count - 1, 8, 64) == 17] = value
        return Batch(x0)

    t = trainer(OBJECTIVES[objective](), Told(toy("two-modes", 64), spoil), batch=8)
    for _ in range(17):
        t.advance()
        assert all(v.isfinite().all() for v in t.state()[0].values())
    assert t.skipped == SELF_TAUGHT[objective]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("objective", ONE_PHASE)
def test_one_bad_sample_spoils_its_steps_only(objective, value):
    def spoil(count, batch):
        x0 = batch.x0.clone()
        x0[positions(0, count - 1, 8, 64) == 17] = value
        return Batch(x0)

    t = trainer(OBJECTIVES[objective](), WithPairs(Told(toy("two-modes", 64), spoil)), batch=8)
    spoilt = [17 in positions(0, step, 8, 64) for step in range(17)]
    assert sum(spoilt) == 2
    for bad in spoilt:
        (skips_and_stays if bad else moves)(t)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("optimizer", ["adam", "radam"])
@pytest.mark.parametrize("objective", ONE_PHASE)
def test_a_bad_loss_is_skipped(objective, optimizer, value):
    learnt = OBJECTIVES[objective]()
    loss, phases, bad = learnt.loss, learnt.phases, [False]

    def spoilt(batch, draws):
        found = loss(batch, draws)
        return Loss({k: v * value for k, v in found.terms.items()}) if bad[0] else found

    learnt.loss = spoilt
    assert phases()[0].loss == spoilt
    t = trainer(learnt, optimizer=optimizer)
    moves(t)
    bad[0] = True
    skips_and_stays(t)
    bad[0] = False
    moves(t)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_one_bad_number_in_one_gradient_is_skipped(value):
    run, bad = run_of(), [False]
    weight = run.objective.student.net.last.weight

    def spoil(gradient):
        gradient = gradient.clone()
        if bad[0]:
            gradient[0, 3] = value
        return gradient

    weight.requires_grad_(True).register_hook(spoil)
    t = trainer_of(run)
    for bad[0] in (False, True, True, False):
        (skips_and_stays if bad[0] else moves)(t)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_teacher_of_bad_weights_changes_nothing(value):
    learnt = OBJECTIVES["cd with target"]()
    learnt.step.teacher.net.last.bias.data[0] = value
    t = trainer(learnt)
    before = tensors(t.state())
    for _ in range(9):
        skips_and_stays(t)
    with pytest.raises(Diverged, match="10 updates of the student in a row, up to step 10"):
        t.advance()
    assert differing(before, t.state()[0]) == []


def test_a_run_that_stays_bad_stops_with_good_checkpoints(tmp_path, capsys, monkeypatch):
    loss, calls, out = Denoising.loss, [0], tmp_path / "run"

    def spoilt(self, batch, draws):
        calls[0] += 1
        found = loss(self, batch, draws)
        return Loss({k: v * math.nan for k, v in found.terms.items()}) if calls[0] > 5 else found

    words = ("train", "toy-edm", "--width", 8, "--blocks", 1, "--train.batch", 8, "--out", out)
    words += ("--train.save-every", 4, "--train.keep", 9, "--train.log-every", 1)
    with monkeypatch.context() as patched:
        patched.setattr(Denoising, "loss", spoilt)
        outcome = fewstep(capsys, *words, "--train.sample-every", 0)
    assert outcome.code == 1
    assert "10 updates of the student in a row, up to step 15" in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err
    states = {p.name: checkpoints.read(p) for p in sorted((out / "checkpoints").iterdir())}
    assert [*states] == ["000000004", "000000008", "000000012"]
    for values, _ in states.values():
        assert all(v.isfinite().all() for v in values.values())
    # What was skipped is in none of them.
    assert differing(states["000000008"][0], states["000000012"][0]) == []
    # Once the cause is gone, it goes on.
    more = fewstep(capsys, *words, "--train.sample-every", 0, "--train.steps", 15)
    assert more.code == 0
    assert timeless(out)[-1]["skipped"] == 7


# Spikes.


def spiking(at: int, spike: float) -> tuple[Trainer, list[bool]]:
    run, high = run_of(steps=60, spike=spike), [False]
    weight = run.objective.student.net.last.weight
    weight.requires_grad_(True).register_hook(lambda g: g * 1e4 if high[0] else g)
    t = trainer_of(run)
    for _ in range(at):
        t.advance()
    return t, high


def test_a_spike_is_skipped():
    t, high = spiking(25, 10.0)
    (name,) = t.spikes
    norms = [*t.spikes[name].norms]
    high[0] = True
    skips_and_stays(t)
    assert t.spikes[name].norms == norms
    high[0] = False
    moves(t)
    assert len(t.spikes[name].norms) == 26


@pytest.mark.parametrize(("at", "spike"), [(25, 0.0), (15, 10.0)])
def test_a_spike_is_taken_by_default_and_while_little_is_known(at, spike):
    t, high = spiking(at, spike)
    high[0] = True
    moves(t)
    assert t.skipped == 0


def test_the_window_of_norms_resumes(tmp_path):
    t, high = spiking(23, 10.0)
    source = checkpoints.save(tmp_path, t.step, t.state(), 1)
    other, other_high = spiking(0, 10.0)
    other.load(checkpoints.read(source), source)
    assert other.spikes[next(iter(t.spikes))].norms == t.spikes[next(iter(t.spikes))].norms
    for k in range(10):
        high[0] = other_high[0] = k in {3, 4}
        rows = [{n: float(v) for n, v in one.advance().items()} for one in (t, other)]
        assert rows[0] == rows[1]
    assert t.skipped == other.skipped == 2
    assert t.state()[1] == other.state()[1]
    assert differing(t.state()[0], other.state()[0]) == []


# Disks.

TOY = ("train", "toy-edm", "--width", 8, "--blocks", 1, "--train.batch", 8)
TOY += ("--train.log-every", 1, "--train.sample-every", 0, "--train.save-every", 10)
TOY += ("--train.schedule", "constant")


def command(out: Path, steps: int = 30) -> Callable[[], None]:
    return lambda: main([str(w) for w in (*TOY, "--out", out, "--train.steps", steps)])


def fails_in_one_line(work: Callable[[], None], tmp_path: Path) -> str:
    """Let a child do it; what it said last."""
    said = tmp_path / "said"
    said.unlink(missing_ok=True)
    assert ended(born(work, said)) == 2
    text = said.read_text()
    assert "Traceback" not in text
    assert text.count("fewstep: ") == 1
    return text.splitlines()[-1]


def ends_as(whole: Path, out: Path) -> None:
    for run in (whole, out):
        assert ended(born(command(run))) == 0
    left, right = ((p / "model" / "model.safetensors").read_bytes() for p in (whole, out))
    assert left == right
    assert timeless(whole) == timeless(out)
    assert not [name for name in tree(out) if ".new" in name or ".old" in name]


def limited(limit: int, work: Callable[[], None]) -> Callable[[], None]:
    def done() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        work()

    return done


@pytest.mark.parametrize("what", ["checkpoint", "log"])
def test_files_that_may_not_grow(what, tmp_path):
    out = tmp_path / "run"
    assert ended(born(command(out, 10))) == 0
    shutil.rmtree(out / "model")
    saved = out / "checkpoints" / "000000010"
    size = (
        {"checkpoint": saved / "state.safetensors", "log": out / "log.jsonl"}[what].stat().st_size
    )
    limit = size - 1 if what == "checkpoint" else size + 700
    line = fails_in_one_line(limited(limit, command(out)), tmp_path)
    assert line.startswith("fewstep: File too large")
    assert "the system limits the size of files" in line
    assert checkpoints.newest(out / "checkpoints") == saved
    assert checkpoints.read(saved)[1]["step"] == 10
    ends_as(tmp_path / "whole", out)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount")
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this root may not mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("what", ["checkpoint", "log"])
def test_a_disk_that_is_full(what, small_disk, tmp_path):
    out = small_disk / "run"
    assert ended(born(command(out, 10))) == 0
    saved = out / "checkpoints" / "000000010"
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(2**20))
    if what == "checkpoint":
        os.truncate(filler, filler.stat().st_size - 12 * 1024)
    line = fails_in_one_line(command(out), tmp_path)
    assert line.startswith("fewstep: No space left on device")
    assert line.endswith("free some space, then repeat the command")
    assert checkpoints.newest(out / "checkpoints") == saved
    assert checkpoints.read(saved)[1]["step"] == 10
    filler.unlink()
    ends_as(tmp_path / "whole", out)


def test_a_folder_that_may_only_be_read(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no git
    trains(tmp_path / "warm", steps=1)
    out = tmp_path / "run"
    assert ended(born(command(out, 10))) == 0
    before = tree(tmp_path)
    for place in (out, *(p for p in out.rglob("*") if p.is_dir())):
        place.chmod(0o555)
    tmp_path.chmod(0o755)

    def as_nobody() -> None:
        os.chdir(tmp_path)
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        command(Path("run"))()

    line = fails_in_one_line(as_nobody, tmp_path)
    assert line.startswith("fewstep: Permission denied: ")
    assert line.endswith("choose a place you may write to with --out")
    (tmp_path / "said").unlink()
    assert tree(tmp_path) == before
    for place in (out, *(p for p in out.rglob("*") if p.is_dir())):
        place.chmod(0o755)
    ends_as(tmp_path / "whole", out)


# Damage.


def mutations(files: dict[str, bytes], count: int) -> Iterator[tuple[str, str, bytes | None]]:
    """Kind, file and its new content; None deletes it."""
    rng = np.random.default_rng(0)
    manifest = files["state.json"].decode()
    values = json.loads(manifest)

    def edited() -> bytes:
        key = rng.choice([k for k, v in values.items() if isinstance(v, int)])
        changed = {**values, key: values[key] + int(rng.integers(1, 9))}
        return (json.dumps(changed, indent=2) + "\n").encode()

    def spaced() -> bytes:
        at = int(rng.choice([k for k, c in enumerate(manifest) if c in " \n"]))
        other = str(rng.choice(["\t", "\r\n", "\r", "  ", "\n\n", "\u00a0"]))
        return (manifest[:at] + other + manifest[at + 1 :]).encode()

    def swapped(data: bytes) -> bytes:
        size = int(rng.integers(1, len(data) // 4))
        a, b = sorted(int(k) for k in rng.integers(0, len(data) - 2 * size, 2))
        b += size
        return (
            data[:a]
            + data[b : b + size]
            + data[a + size : b]
            + data[a : a + size]
            + data[b + size :]
        )

    def flipped(data: bytes) -> bytes:
        at = int(rng.integers(len(data)))
        return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]

    def inserted(data: bytes) -> bytes:
        at = int(rng.integers(len(data) + 1))
        return data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[at:]

    kinds = {
        "a bit flipped": flipped,
        "cut off": lambda data: data[: int(rng.integers(len(data)))],
        "bytes inserted": inserted,
        "blocks swapped": swapped,
        "deleted": lambda data: None,
        "a value changed": lambda data: edited(),
        "white space changed": lambda data: spaced(),
    }
    yielded = 0
    while yielded < count:
        kind = [*kinds][yielded % len(kinds)]
        name = "state.json" if "changed" in kind else str(rng.choice([*files]))
        new = kinds[kind](files[name])
        if new != files[name]:
            yielded += 1
            yield kind, name, new


def test_200_damaged_checkpoints_are_refused(tmp_path):
    t = trainer_of(run_of(spike=10.0))
    t.advance()
    source = checkpoints.save(tmp_path, 1, t.state(), 1)
    files = {p.name: p.read_bytes() for p in source.iterdir()}
    assert {*files} == {"state.json", "state.safetensors"}
    found: dict[str, int] = {}
    for kind, name, new in mutations(files, 200):
        (source / name).unlink() if new is None else (source / name).write_bytes(new)
        with pytest.raises(UsageError, match=f"{source} is damaged .*delete it"):
            checkpoints.read(source)
        found[kind] = found.get(kind, 0) + 1
        (source / name).write_bytes(files[name])
        assert checkpoints.read(source)[1]["step"] == 1
    print(
        "\n200 damaged checkpoints, all refused:", ", ".join(f"{n} {k}" for k, n in found.items())
    )


def test_a_rewritten_checkpoint_does_not_hide(tmp_path):
    # Line ends as another system would write them.
    source = checkpoints.save(tmp_path, 1, trainer_of(run_of()).state(), 1)
    manifest = source / "state.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(UsageError, match="its manifest does not match"):
        checkpoints.read(source)
