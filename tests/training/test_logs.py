"""What a run says while it trains, and to whom."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fewstep.training.train import train
from tiny import build, fewstep, rows


class Boards:
    """Stands in for the wandb package: what it was told."""

    def __init__(self) -> None:
        self.started, self.told, self.finished = [], [], 0

    def init(self, **given):
        self.started.append(given)
        return SimpleNamespace(log=self._log, finish=self._finish)

    def _log(self, values, step):
        self.told.append((step, values))

    def _finish(self):
        self.finished += 1


def test_wandb_is_told_what_the_log_holds(tmp_path, monkeypatch):
    boards = Boards()
    monkeypatch.setitem(sys.modules, "wandb", boards)
    train(build("toy-edm", steps=4, log_every=2, wandb=True), tmp_path / "run")
    train(build("toy-edm", steps=6, log_every=2, wandb=True), tmp_path / "run")
    assert boards.finished == 2
    assert [step for step, _ in boards.told] == [2, 4, 6]
    logged = {row["step"]: row for row in rows(tmp_path / "run")}
    assert all(
        values == {k: v for k, v in logged[step].items() if k != "step"}
        for step, values in boards.told
    )
    first, second = boards.started
    assert first["config"]["recipe"] == "toy-edm"
    assert (first["resume"], first["name"]) == ("allow", "run")
    assert first["id"] == second["id"]


def test_wandb_names_its_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    done = fewstep(capsys, "train", "toy-edm", "--train.wandb", "--out", tmp_path / "run")
    assert done.code == 2
    assert "pip install 'fewstep[wandb]'" in done.err
    assert not (tmp_path / "run").exists()


def test_numbers_on_the_way(tmp_path, capsys):
    run = build("toy-edm", steps=7, log_every=100, evaluate_every=3)
    seen = []

    def watch(model):
        seen.append(float(next(model.denoiser.parameters()).sum()))
        return {"count": len(seen)}

    train(replace(run, watch=watch), tmp_path / "run")
    told = [
        (row["step"], row["eval/count"]) for row in rows(tmp_path / "run") if "eval/count" in row
    ]
    assert told == [(3, 1), (6, 2)]
    assert len({*seen}) == 2
    assert "count 1" in capsys.readouterr().err


def test_watching_changes_nothing(tmp_path):
    models = []
    for every in (0, 2):
        run = replace(build("toy-edm", steps=5, evaluate_every=every), watch=lambda m: {"n": 1.0})
        models.append(train(run, tmp_path / str(every)).denoiser.state_dict())
    assert all((models[0][k] == models[1][k]).all() for k in models[0])


def test_digits_are_watched(tmp_path, monkeypatch):
    run = build("digits-edm", steps=2, evaluate_every=2)
    train(run, tmp_path / "run")
    found = next(row for row in rows(tmp_path / "run") if "eval/fd/35" in row)
    assert found["step"] == 2
    assert found["eval/fd/35"] > 0


def test_the_header_has_the_arithmetic(tmp_path, capsys):
    run = build("toy-edm", steps=2, batch=8, accumulation=3)
    train(run, tmp_path / "run")
    told = capsys.readouterr().err
    assert "2 steps x 8 x 3 = 48 samples" in told
    assert "samples/s" in told
    assert "GiB" in told


def test_a_dry_run_prints_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "run"
    done = fewstep(capsys, "train", "digits-cd", "--dry-run", "--train.batch", 64, "--out", out)
    assert done.code == 0
    assert done.out.startswith("digits-cd: 1,200 samples")
    for words in ("activations of 64 samples", "in all"):
        assert words in done.out
    both = ("--dry-run", "--json", "--train.batch", 64, "--out", out)
    settings = json.loads(fewstep(capsys, "train", "digits-cd", *both).out)
    assert (settings["recipe"], settings["train"]["batch"]) == ("digits-cd", 64)
    alone = fewstep(capsys, "train", "digits-cd", "--json", "--out", out)
    assert (alone.code, out.exists()) == (2, False)
    assert "--dry-run" in alone.err


@pytest.mark.parametrize("batch", [1, 4])
def test_the_estimate_counts_what_is_there(batch, capsys):
    done = fewstep(
        capsys, "train", "digits-edm", "--dry-run", "--width", 1024, "--train.batch", batch
    )
    lines = [line.rsplit(maxsplit=2) for line in done.out.splitlines() if line.endswith("MiB")]
    size = {name.strip(): float(number.replace(",", "")) for name, number, _ in lines}
    parameters = int(done.out.split(" parameters")[0].split()[-1].replace(",", ""))
    mib = parameters * 4 / 2**20
    assert size["student: gradients"] == pytest.approx(mib, abs=1)
    assert size["optimiser"] == pytest.approx(2 * mib, abs=1)
    assert size["averages"] == pytest.approx(mib, abs=1)
