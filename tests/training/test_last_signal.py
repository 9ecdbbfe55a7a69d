"""A signal that comes in the last step, after the loop has asked for one, is not forgotten."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest

from fewstep.errors import Interrupted
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
        return {}

    run = run_of(steps=12, evaluate_every=3)
    with pytest.raises(Interrupted) as stopped:
        train(replace(run, watch=watch), tmp_path / "run")
    assert stopped.value.signum == number
    assert not (tmp_path / "run" / "model").exists()
    done = train(run_of(steps=12, evaluate_every=3), tmp_path / "run")
    whole = train(run_of(steps=12, evaluate_every=3), tmp_path / "whole")
    assert done.sample(4).equal(whole.sample(4))
