"""What a run says before its first step: learning rates, the disk; and its pictures."""

from __future__ import annotations

import shutil
import signal
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch

from fewstep.core import UsageError
from fewstep.data import Arrays
from fewstep.errors import Interrupted
from fewstep.training import drawing, pictured
from fewstep.training.announce import cautions
from fewstep.training.averages import constant
from fewstep.training.posthoc import PowerFunction
from fewstep.training.space import shortage, space, space_line
from fewstep.training.train import dry, train
from fewstep.training.trainer import Trainer
from own_networks import Net, Tied, made, run_of
from tiny import fewstep, rows

CPU = torch.device("cpu")


def trainer_of(run) -> Trainer:
    return Trainer(run.objective, run.data, run.config, run.averages, CPU)


# Learning rates.


@pytest.mark.parametrize(("warmup", "says"), [(3, False), (4, True), (100, True)])
def test_a_warm_up_longer_than_the_run(warmup, says, tmp_path, capsys):
    train(run_of(made(Net), warmup=warmup, lr=1e-3), tmp_path / "run")
    said = capsys.readouterr().err
    assert (f"the warm-up of {warmup} steps does not end within the run's 4" in said) == says
    if warmup == 100:
        assert "the learning rate ends at 4e-05, not 0.001" in said
        assert rows(tmp_path / "run")[-1]["lr"] == pytest.approx(4e-5)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "inverse_sqrt"])
def test_a_schedule_that_jumps_when_steps_are_raised(schedule, tmp_path, capsys):
    train(run_of(made(Net), schedule=schedule, steps=4), tmp_path / "run")
    assert "schedule was made for" not in capsys.readouterr().err
    train(run_of(made(Net), schedule=schedule, steps=8), tmp_path / "run")
    said = capsys.readouterr().err
    old, new = {"linear": ("0", "0.0005"), "cosine": ("0", "0.0005")}.get(schedule, ("", ""))
    if schedule in {"constant", "inverse_sqrt"}:
        assert "schedule was made for" not in said
    else:
        assert (
            f"the {schedule} schedule was made for 4 steps and is now for 8: at step 4 the "
            f"learning rate jumps from {old} to {new}; --train.steps 4 would keep it"
        ) in said
        assert rows(tmp_path / "run")[4]["lr"] == pytest.approx(5e-4)


def test_no_jump_with_decay_steps_or_at_the_start():
    run = run_of(made(Net), schedule="linear", steps=8, decay_steps=8)
    trainer, before = trainer_of(run), {"run": {"train": {"steps": 4}}}
    trainer.step = 4
    assert cautions(run, trainer, before) == []
    run = run_of(made(Net), schedule="linear", steps=8)
    trainer.step = 0
    assert cautions(run, trainer, before) == []
    trainer.step = 4
    assert len(cautions(run, trainer, before)) == 1


# The disk.

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    "settings", [{}, {"keep": 1}, {"keep": 9}, {"keep_every": 2, "keep": 1}, {"snapshot_every": 3}]
)
@pytest.mark.parametrize("kind", [Net, Tied])
def test_the_disk_holds_what_was_told(kind, settings, tmp_path):
    run = run_of(made(kind), steps=8, save_every=1, **settings)
    run = replace(run, averages={"a": constant(0.5), "b": PowerFunction(0.1)})
    most = 0

    def walk() -> int:
        found = (p for p in (tmp_path / "run").rglob("*.safetensors"))
        return sum(p.stat().st_size for p in found)

    from fewstep.training import checkpoints

    drop = checkpoints.drop

    def watching(folder):
        nonlocal most
        most = max(most, walk())
        drop(folder)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoints, "drop", watching)
        train(run, tmp_path / "run")
    most = max(most, walk())
    told = space(run, trainer_of(run)).total
    overhead = 6000 * len(
        [*(tmp_path / "run").rglob("*.safetensors")]
    )  # names, in such small files
    assert told * 0.5 < most < told + overhead
    one = (tmp_path / "run/checkpoints/000000008").rglob("*.safetensors")
    size = space(run, trainer_of(run)).checkpoint
    assert size < sum(p.stat().st_size for p in one) < size + 12_000


def test_a_full_disk_is_told_at_the_start(tmp_path, monkeypatch, capsys):
    run = run_of(made(Net))
    needed = space(run, trainer_of(run)).total
    for free, says in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(1, 1, free))
        train(run, tmp_path / f"run{free}")
        assert ("it may end before the run does" in capsys.readouterr().err) == says


def test_what_is_there_already_counts(tmp_path, monkeypatch):
    run = run_of(made(Net))
    train(run, tmp_path / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 0))
    assert shortage(run, trainer_of(run), tmp_path / "run") is None
    assert shortage(run, trainer_of(run), tmp_path / "other/far") is not None


def test_a_dry_run_tells_of_the_disk(tmp_path, capsys):
    run = run_of(made(Net))
    last = dry(run, tmp_path / "not/there").splitlines()[-1]
    assert last == space_line(run, trainer_of(run), tmp_path)
    assert last.startswith("disk: at most ")
    done = fewstep(capsys, "train", "toy-edm", "--dry-run", "--train.warmup", 10**6)
    assert "disk: at most" in done.out
    assert "does not end within the run's" in done.out


# Pictures.


def calls_of(run, monkeypatch) -> list[tuple[int, int]]:
    """(samples, steps) of every picture; None is the model's own number of steps."""
    asked: list[tuple[int, int]] = []
    made_by = drawing.Model.sample

    def sample(self, n, **given):
        asked.append((n, len(self.times(given["steps"]))))
        return made_by(self, n, **given)

    monkeypatch.setattr(drawing.Model, "sample", sample)
    return asked


def test_the_first_picture_is_short(tmp_path, monkeypatch, capsys):
    run = run_of(made(Net), sample_every=4)
    asked = calls_of(run, monkeypatch)
    train(run, tmp_path / "run")
    assert asked[:2] == [(16, 4), (16, 4)]  # Heun: 7 calls each
    assert set(asked[2:]) == {(16, 18)}
    assert "step 0: drawing 32 samples of 7 network call(s) each" in capsys.readouterr().err


def test_a_slow_picture_is_told_before_the_next(tmp_path, monkeypatch, capsys):
    train(run_of(made(Net), sample_every=2), tmp_path / "a")
    assert "step 4: drawing" not in capsys.readouterr().err
    monkeypatch.setattr(drawing, "SLOW", 0.0)
    train(run_of(made(Net), sample_every=2), tmp_path / "b")
    assert "step 4: drawing 128 samples of 35 network call(s) each" in capsys.readouterr().err


def test_pictures_of_a_short_run_on_a_large_network_are_short(tmp_path, monkeypatch, capsys):
    run = run_of(made(Net), sample_every=2)
    asked = calls_of(run, monkeypatch)
    monkeypatch.setattr(pictured, "WORK", 0.0)
    train(run, tmp_path / "run")
    assert set(asked) == {(16, 4)}
    # 4 steps of 16 samples, 3 calls each, are less than 128 samples of 35 calls.
    assert "step 4: drawing" not in capsys.readouterr().err
    monkeypatch.setattr(drawing, "PICTURED", 2)  # 2 * 2 * 35 calls are not
    monkeypatch.setattr(drawing, "SLOW", 0.0)
    asked.clear()
    train(run_of(made(Net), sample_every=2), tmp_path / "few")
    assert asked == [(2, 4)] * 4 + [(2, 18)] * 2
    said = capsys.readouterr().err
    assert "step 2: drawing 4 samples of 7 network call(s) each, few as the run is short;" in said
    assert "step 4: drawing 4 samples of 35 network call(s) each;" in said


def test_what_has_no_picture_is_not_computed(tmp_path, monkeypatch):
    class Flat(Net):
        def forward(self, x, c_noise, s_noise=None, cond=None):
            h = super().forward(x.flatten(1)[:, :2], c_noise)
            return h.repeat(1, 8).reshape(x.shape)

    asked = calls_of(None, monkeypatch)
    four = Arrays(np.zeros((8, 4, 2, 2), np.float32))
    train(run_of(made(Flat), data=four, sample_every=1), tmp_path / "run")
    assert asked == []
    assert not (tmp_path / "run/samples").exists()


def test_a_signal_is_seen_between_two_calls(tmp_path):
    class Slow(Net):
        calls = 0

        def forward(self, x, c_noise, s_noise=None, cond=None):
            if not self.training:
                Slow.calls += 1
                if Slow.calls == 3:
                    signal.raise_signal(signal.SIGTERM)
            return super().forward(x, c_noise, s_noise, cond)

    with pytest.raises(Interrupted):
        train(run_of(made(Slow), steps=50, sample_every=50), tmp_path / "run")
    assert Slow.calls == 3
    assert not [*(tmp_path / "run/samples").glob("*")] if (tmp_path / "run/samples").exists() else 1
    # A step that had begun is saved; the same command draws what was left out, and goes on.
    assert (tmp_path / "run/checkpoints/000000001").exists()


def test_a_signal_during_an_evaluation(tmp_path):
    calls = []

    def watch(model):
        for k in range(9):
            calls.append(k)
            if k == 2:
                signal.raise_signal(signal.SIGTERM)
            model.sample(2)
        return {"fd": 1.0}

    run = replace(run_of(made(Net), steps=50, evaluate_every=2), watch=watch)
    with pytest.raises(Interrupted):
        train(run, tmp_path / "run")
    assert calls == [0, 1, 2]
    assert not any("eval/fd" in row for row in rows(tmp_path / "run"))


# The best model.


def evaluated(numbers, **settings):
    """A run whose evaluations give these numbers in turn."""
    given = iter(numbers)
    run = run_of(made(Net), steps=len(numbers), evaluate_every=1, save_every=1, **settings)
    return replace(run, watch=lambda model: next(given))


def kept(out, network=Net):
    from fewstep.model import load

    return load(out / "best", network=network(), device="cpu").sample(4)


@pytest.mark.parametrize(
    ("metric", "numbers", "best"),
    [
        ("fd", [{"fd/1": v} for v in (3.0, 1.0, 2.0, 1.0)], 2),
        ("fd/2", [{"fd/1": 4 - v, "fd/2": v} for v in (3.0, 2.0, 1.0, 2.0)], 3),
        ("fd", [{"fd/1": v} for v in (float("nan"), 3.0, 1.0, 2.0)], 3),
        ("recall", [{"recall/1": v} for v in (0.1, 0.2, 0.4, 0.3)], 3),
    ],
)
def test_the_best_is_kept(metric, numbers, best, tmp_path, capsys):
    train(evaluated(numbers, keep_best=metric, keep=9), tmp_path / "run")
    from fewstep.model import load

    at = load(tmp_path / "run", network=Net(), device="cpu", step=best).sample(4)
    assert torch.equal(kept(tmp_path / "run"), at)
    assert f"step {best}: the best {metric} so far" in capsys.readouterr().err


def test_the_best_is_kept_when_resumed(tmp_path, capsys):
    first = [{"fd": v} for v in (2.0, 1.0, 3.0)]
    run = evaluated(first, keep_best="fd")
    train(run, tmp_path / "run")
    before = kept(tmp_path / "run")
    more = evaluated([{"fd": 1.5}, {"fd": 1.2}], keep_best="fd")
    train(replace(more, config=replace(more.config, steps=5)), tmp_path / "run")
    assert torch.equal(kept(tmp_path / "run"), before)


@pytest.mark.parametrize("every", [0, 2])
def test_a_best_without_evaluations_is_refused(every, tmp_path):
    run = run_of(made(Net), keep_best="fd", evaluate_every=every)
    with pytest.raises(UsageError, match=r"--train\.keep-best fd needs evaluations"):
        train(run, tmp_path / "run")


@pytest.mark.parametrize("metric", ["kid", "fd/3"])
def test_an_unknown_metric_is_told(metric, tmp_path, capsys):
    train(evaluated([{"fd/1": 1.0, "swd/1": 2.0}] * 3, keep_best=metric), tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count(f"--train.keep-best {metric}: no such number among fd/1, swd/1") == 1
    assert not (tmp_path / "run/best").exists()
