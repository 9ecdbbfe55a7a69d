"""A signal that comes in the last step, after the loop has asked for one, is not forgotten."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

from fewstep.errors import Interrupted
from fewstep.system.status import log_rows, unfinished
from fewstep.training.train import train
from survive import run_of


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
@pytest.mark.parametrize("at", [3, 6, 12])
def test_a_signal_in_an_evaluation_stops_the_run(at, number, tmp_path):
    calls = []

    def watch(model):
        calls.append(model)
        if len(calls) * 3 == at:
            os.kill(os.getpid(), number)
        return {"sum": model.sample(4).sum().item()}

    def begun(name):
        run = run_of(steps=12, evaluate_every=3, sample_every=4)
        return train(replace(run, watch=watch), tmp_path / name)

    with pytest.raises(Interrupted) as stopped:
        begun("run")
    assert stopped.value.signum == number
    assert unfinished(tmp_path / "run" / "model")
    done, whole = begun("run"), begun("whole")
    assert done.sample(4).equal(whole.sample(4))
    ours, theirs = (evaluations(tmp_path / name) for name in ("run", "whole"))
    assert [step for step, _ in ours] == [3, 6, 9, 12]
    assert ours == theirs
    pictures = [
        sorted(p.name for p in (tmp_path / n / "samples").iterdir()) for n in ("run", "whole")
    ]
    assert pictures[0] == pictures[1]


def evaluations(run):
    """The evaluations in a run's log."""
    rows = log_rows(run / "log.jsonl")
    return [(row["step"], row["eval/sum"]) for row in rows if "eval/sum" in row]
