"""Evaluations that a run cannot make are refused before anything is written."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fewstep.core import UsageError
from fewstep.training.train import dry, train
from own_networks import Net, made, run_of
from tiny import build, fewstep, pictures, rows

SIZES = ("--resolution", 16, "--channels", 8, "--multipliers", 1, "--blocks", 1, "--attention", 8)
HELD_OUT = "--held-out 0.1 (a share of the data) or --held-out PATH (other such data)"


@pytest.mark.parametrize(
    ("every", "best", "watched", "message"),
    [
        (5, "", False, "--train.evaluate-every 5 evaluates on data that training does not see"),
        (5, "fd", False, f"--train.keep-best fd needs evaluations.* give {HELD_OUT}"),
        (0, "fd", False, "give --train.evaluate-every N, and --held-out 0.1"),
        (0, "fd", True, "while the run trains; give --train.evaluate-every N$"),
    ],
)
@pytest.mark.parametrize("way", ["train", "dry"])
def test_refused(every, best, watched, message, way, tmp_path, capsys):
    run = run_of(made(Net), evaluate_every=every, keep_best=best)
    run = replace(run, watch=(lambda model: {"fd": 1.0}) if watched else None)
    with pytest.raises(UsageError, match=message.replace("(", r"\(").replace(")", r"\)")):
        (train if way == "train" else dry)(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert "starting" not in capsys.readouterr().err


def test_own_data_without_held_out_samples(tmp_path, capsys):
    images, out = pictures(tmp_path / "images"), tmp_path / "run"
    args = ("train", "edm", "--data", images, *SIZES, "--out", out, "--train.steps", 2)
    for option in (("--train.evaluate-every", 1), ("--train.keep-best", "fd")):
        outcome = fewstep(capsys, *args, *option)
        assert (outcome.code, outcome.out) == (2, "")
        assert HELD_OUT in outcome.err
        assert not out.exists()
    # A resumed run is refused too, and stays as it is.
    assert fewstep(capsys, *args).code == 0
    before = (out / "run.json").read_bytes()
    more = ("--train.steps", 3, "--train.evaluate-every", 1)
    assert fewstep(capsys, *args, *more).code == 2
    assert (out / "run.json").read_bytes() == before


def test_named_data_is_evaluated_on_its_own_held_out_samples(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.evaluation.report.TEACHER_STEPS", 2)
    monkeypatch.setattr("fewstep.evaluation.report.HELD_OUT", 30)
    train(build("toy-edm", steps=2, evaluate_every=2), tmp_path / "run")
    assert any("eval/fd/3" in row for row in rows(tmp_path / "run"))
