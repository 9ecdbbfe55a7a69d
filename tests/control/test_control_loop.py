"""The example of a control loop, on a point that must reach its goal."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from fewstep.control import ENVIRONMENTS, Policy
from point_env import PointEnv, point_environment, point_policy

PATH = Path(__file__).parents[2] / "examples" / "control_loop.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ticking(seconds: list[float]):
    """A clock that shows these durations, one for each pair of readings."""
    readings = iter([time for each in seconds for time in (0.0, each)])
    return lambda: next(readings)


def test_it_reaches_the_goal(example):
    made: list[PointEnv] = []
    place = point_environment(made)
    best, steps, missed = example.control(Policy(point_policy()), place, 0, deadline=60)
    assert best > 0.6
    assert steps == len(made[0].actions)
    assert missed == 0
    assert made[0].closed


def test_late_decisions_are_not_executed(example):
    made: list[PointEnv] = []
    place = point_environment(made, limit=4)
    policy = Policy(point_policy())
    chosen = iter([[10.0], [20.0], [30.0], [40.0]])
    clock = ticking([0.0, 0.2, 0.05, 0.3])
    policy.select_action = lambda seen: np.array(next(chosen))
    _, steps, missed = example.control(policy, place, 0, clock=clock)
    assert (steps, missed) == (4, 2)
    assert made[0].actions == [10.0, 10.0, 30.0, 30.0]


def test_the_command(example, monkeypatch, capsys):
    monkeypatch.setitem(ENVIRONMENTS, "point", point_environment())
    monkeypatch.setattr(example.fewstep, "load", lambda model: point_policy())
    example.main("model", "point")
    assert "deadlines of 0.1 s missed" in capsys.readouterr().out
