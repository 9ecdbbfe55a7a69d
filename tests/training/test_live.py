"""Runs that are not at their end: sampled, evaluated, asked how far they are."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from test_resume import run_of as resumable

import fewstep as library
from fewstep.core import UsageError
from fewstep.errors import Interrupted
from fewstep.model import find, load
from fewstep.system.status import status, unfinished
from fewstep.training import checkpoints
from fewstep.training.train import train
from own_networks import Net, Tied, made, run_of
from tiny import build, fewstep, tree

STEPS = 6


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A toy's run that was interrupted in its third step of six."""
    out = tmp_path_factory.mktemp("live") / "run"
    run = build("toy-edm", steps=STEPS, save_every=1, sample_every=2, keep=2, log_every=1)

    class Signalling:
        def __init__(self, data):
            self.data, self.count = data, 0
            self.shape, self.labels, self.image = data.shape, data.labels, data.image

        def __len__(self):
            return len(self.data)

        def batch(self, indices):
            if len(indices) not in (2, 64):  # the checks before the first step
                self.count += 1
                if self.count == 3:
                    signal.raise_signal(signal.SIGTERM)
            return self.data.batch(indices)

    from dataclasses import replace

    with pytest.raises(Interrupted):
        train(replace(run, data=Signalling(run.data)), out)
    return out


def test_an_interrupted_run_is_sampled_and_evaluated(stopped, capsys, tmp_path):
    done = fewstep(capsys, "sample", stopped, "-n", 4, "--out", tmp_path / "x.npz")
    assert done.code == 0
    assert f"{stopped} is not finished: its model is that of step 3 of 6" in done.err
    done = fewstep(capsys, "evaluate", stopped, "--steps", 2, "-n", 50)
    assert done.code == 0
    assert "not finished" in done.err
    done = fewstep(capsys, "sample", stopped, "--step", 2, "-n", 4, "--out", tmp_path / "y.npz")
    assert done.code == 0
    assert f"model: {stopped}/checkpoints/000000002/model" in done.err
    assert fewstep(capsys, "evaluate", stopped, "--step", 2, "--steps", 2, "-n", 50).code == 0


def test_a_step_that_is_not_kept(stopped, capsys):
    done = fewstep(capsys, "sample", stopped, "--step", 1)
    assert done.code == 2
    assert "keeps no model of training step 1; it has [2, 3]" in done.err
    assert "--steps" in done.err
    with pytest.raises(UsageError, match="give --step or --average"):
        find(stopped, "ema", 2)
    with pytest.raises(UsageError, match="it has none"):
        find("digits-cd", None, 2)


def test_a_kept_step_is_the_model_of_a_run_that_ends_there(tmp_path):
    def sampled(out, step=None):
        return load(out, network=Net(), device="cpu", step=step).sample(5)

    train(run_of(made(Net), steps=4, save_every=2), tmp_path / "long")
    train(run_of(made(Net), steps=2, save_every=2), tmp_path / "short")
    assert torch.equal(sampled(tmp_path / "long", 2), sampled(tmp_path / "short"))
    assert torch.equal(sampled(tmp_path / "long", 4), sampled(tmp_path / "long"))
    assert not torch.equal(sampled(tmp_path / "long", 2), sampled(tmp_path / "long"))


def test_the_model_at_a_save_is_the_average_of_then(tmp_path):
    class Stop(Exception):
        pass

    run = run_of(made(Net), steps=9, save_every=2)
    batch = run.data.batch
    count = 0

    class Failing:
        shape, labels, image = run.data.shape, run.data.labels, run.data.image
        spec = run.data.spec

        def __len__(self):
            return 300

        def batch(self, indices):
            nonlocal count
            count += len(indices) > 2
            if count == 6:
                raise Stop
            return batch(indices)

    from dataclasses import replace

    with pytest.raises(Stop):
        train(replace(run, data=Failing()), tmp_path / "run")
    newest = checkpoints.newest(tmp_path / "run/checkpoints")
    assert newest.name == "000000004"
    tensors, _ = checkpoints.read(newest)
    model = load(tmp_path / "run", network=Net(), device="cpu").denoiser
    for name, value in model.state_dict().items():
        assert torch.equal(value, tensors[f"average.ema.{name}"])
    left, right = (tree(tmp_path / "run/model"), tree(newest / "model"))
    assert left["model.safetensors"] == right["model.safetensors"]
    assert "for 4 steps" in (tmp_path / "run/model/README.md").read_text()


def test_training_goes_on_as_if_nothing_was_saved(tmp_path):
    for every in (1, 100):
        train(resumable("cd with target", "adam"), tmp_path / "a")
        run = run_of(made(Tied), averages=False, steps=6, save_every=every)
        train(run, tmp_path / f"{every}")
    one, other = (
        load(tmp_path / name, network=Tied(), device="cpu").sample(4) for name in ("1", "100")
    )
    assert torch.equal(one, other)


def test_what_cannot_be_saved_is_refused_before_training(tmp_path):
    from fewstep.models import Guided

    run = run_of(made(Net))
    run.objective.deliver = lambda student: Guided(student, {}, 2.0)
    with pytest.raises(UsageError, match="only a Denoiser can be saved, got Guided"):
        train(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Status.


def test_status_of_an_interrupted_run(stopped, capsys):
    done = fewstep(capsys, "status", stopped)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == f"{stopped}: toy-edm, step 3 of 6 (50 %)"
    assert lines[1].startswith("loss ")
    assert lines[1].endswith(" steps/s")
    assert lines[2].startswith("time left while it trains: 0:0")
    assert lines[3].startswith("last row of the log: 0:")
    assert lines[4] == "checkpoints: 2, 3"
    assert lines[5] == f"last picture: {stopped}/samples/000000002.png"
    row = json.loads((stopped / "log.jsonl").read_text().splitlines()[-1])
    found = json.loads(fewstep(capsys, "status", stopped, "--json").out)
    assert (found["step"], found["steps"], found["finished"]) == (3, 6, False)
    assert found["loss"] == row["loss"]
    assert found["seconds_left"] == pytest.approx(3 / found["steps_per_second"])
    assert found["checkpoints"] == [2, 3]


def test_status_reads_no_torch(stopped):
    script = (
        "import sys; from fewstep.cli import main; main(['status', sys.argv[1]]); "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", script, stopped], check=False).returncode == 0


def test_the_rate_is_the_usual_one(tmp_path):
    train(run_of(made(Net), steps=4), tmp_path / "run")
    log = tmp_path / "run/log.jsonl"
    rows = [{"step": k, "loss": 1.0, "steps_per_second": 100.0} for k in range(1, 12)]
    rows[-1]["steps_per_second"] = 0.5
    log.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 12, "lo')
    record = tmp_path / "run/run.json"
    content = json.loads(record.read_text())
    content["run"]["train"]["steps"] = 361
    record.write_text(json.dumps(content))
    os.utime(log, (0, 0))
    found = status(tmp_path / "run")
    assert (found.step, found.rate, found.left) == (11, 100.0, 3.5)
    assert not found.finished
    assert "ago" in found.text()


def test_status_of_a_finished_run(tmp_path, capsys):
    train(run_of(made(Net), sample_every=0), tmp_path / "run")
    text = status(tmp_path / "run").text()
    assert "step 4 of 4 (100 %)" in text
    assert f"finished; model: {tmp_path}/run/model" in text
    assert "last picture: none" in text
    assert unfinished(tmp_path / "run/model") is None
    shutil.rmtree(tmp_path / "run/samples", ignore_errors=True)
    (tmp_path / "run/log.jsonl").unlink()
    assert status(tmp_path / "run").step == 4


@pytest.mark.parametrize("content", [None, "{", '{"run": {}}', "[]"])
def test_status_of_no_run(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    done = fewstep(capsys, "status", tmp_path)
    assert done.code == 2
    assert ("no run folder" if content is None else "is damaged") in done.err


def test_a_teacher_that_is_not_finished_is_named(stopped, tmp_path, capsys):
    train(build("toy-cd", teacher=stopped, steps=1), tmp_path / "cd")
    assert f"the teacher {stopped} is not finished: its model is that of step 3 of 6" in (
        capsys.readouterr().err
    )
    assert library.load(tmp_path / "cd").contract.method == "cd"
