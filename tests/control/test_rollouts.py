"""Policies in closed loop, on a point that must reach its goal."""

from __future__ import annotations

import json
import sys
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import main
from fewstep.control import (
    ENVIRONMENTS,
    Episode,
    Policy,
    bootstrap,
    environment,
    film,
    latency,
    roll,
    score,
    wilson,
)
from fewstep.core import UsageError
from point_env import PointEnv, point_environment, point_policy
from teachers import points


def test_a_policy_that_goes_to_its_goal_succeeds():
    made: list[PointEnv] = []
    episodes = roll(Policy(point_policy()), point_environment(made), range(5))
    assert [one.seed for one in episodes] == [0, 1, 2, 3, 4]
    assert all(one.success and one.reward > 0.6 for one in episodes)
    for one, env in zip(episodes, made, strict=True):
        start = PointEnv()
        start.reset(seed=one.seed)
        # It walks a unit a step until it is less than half a unit away.
        assert one.steps == len(env.actions) == np.ceil(35 - start.x - 0.5)
        assert env.actions == pytest.approx([35.0] * one.steps, abs=1e-3)
        assert env.closed


def test_the_reward_is_the_largest_on_the_way_and_time_runs_out():
    """It goes past its goal of 35 in steps of one, and 0.5 units away it does not count."""
    env = point_environment(limit=12)
    (one,) = roll(Policy(point_policy()), env, [3])
    start = PointEnv()
    start.reset(seed=3)
    left = 35 - start.x - 12
    assert (one.steps, one.success) == (12, left < 0.5)
    assert one.reward == pytest.approx(1 / (1 + max(left, 0)), abs=1e-6)


def test_a_reward_that_was_lost_again_counts():
    """It walks away from its goal, so that its first step is its best."""
    (one,) = roll(Policy(point_policy(factor=9.0)), point_environment(limit=9), [3])
    start = PointEnv()
    start.reset(seed=3)
    assert one.reward == pytest.approx(1 / (1 + 35 - (start.x - 1)))
    assert (one.steps, one.success) == (9, False)


def test_actions_are_clipped():
    made: list[PointEnv] = []
    roll(Policy(point_policy(factor=-9.0)), point_environment(made), [0])
    # The model's own range ends at 100, the robot's at 50.
    assert {*made[0].actions} == {50.0}


def test_an_episode_does_not_depend_on_those_beside_it():
    policy = Policy(point_policy())
    together = roll(policy, point_environment(), [7, 8, 9])
    assert [roll(policy, point_environment(), [seed])[0] for seed in (7, 8, 9)] == together


def test_plans_are_made_of_the_last_observations_and_executed_from_the_last_one_on():
    class Ramp:
        """The model answers its own chunk: action i is i / 10."""

        def sample(self, n, *, cond, **_):
            import torch

            self.cond = cond["observation"]
            return torch.arange(16.0).expand(n, 1, 16) / 10

    policy = Policy(point_policy())
    ramp = Ramp()
    ramp.device = "cpu"
    policy.model = ramp
    chosen = [policy.select_action([float(i), 35.0])[0] for i in range(9)]
    # [1:9] of the first chunk, then [1:9] of the second.
    assert chosen == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.1])
    # The second plan saw the observations 7 and 8, from 0 to 100 as from -1 to 1.
    assert ramp.cond[0, :, 0].tolist() == pytest.approx([7 / 50 - 1, 8 / 50 - 1], abs=1e-6)
    policy.reset()
    policy.select_action([50.0, 35.0])
    assert ramp.cond[0, :, 0].tolist() == [0, 0]


@pytest.mark.parametrize("observation", [[1.0], [np.nan, 1.0], [[1.0, 2.0]]])
def test_observations_that_are_refused(observation):
    with pytest.raises(UsageError, match="an observation is 2 finite numbers"):
        Policy(point_policy()).select_action(observation)


def test_models_that_are_no_policies():
    with pytest.raises(UsageError, match="is no policy"):
        Policy(points())
    with pytest.raises(UsageError, match="1 to 7 can be executed after 2 observations, got 8"):
        Policy(point_policy(horizon=8))
    assert Policy(point_policy(), steps=3).calls == 3


def test_latency_is_in_order():
    found = latency(Policy(point_policy()), point_environment(), 4)
    assert 0 < found.p50 <= found.p95


def test_intervals():
    # Wilson's interval solves |p - share| = z sqrt(p (1 - p) / n).
    for k, n in ((0, 50), (31, 50), (50, 50), (1, 3)):
        for end in wilson(k, n):
            error = abs(end - k / n) - 1.959963984540054 * (end * (1 - end) / n) ** 0.5
            assert abs(error) < 1e-9 or end in {0.0, 1.0}
    values = np.random.default_rng(0).normal(3, 2, 400)
    low, high = bootstrap(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)
    assert bootstrap([0.5] * 9) == (0.5, 0.5)


def test_scores():
    found = score([Episode(0, 0.2, False, 3), Episode(1, 1.0, True, 2)])
    assert (found.reward, found.success, found.episodes) == (0.6, 0.5, 2)
    assert found.reward_interval == (0.2, 1.0)


def test_a_film(tmp_path):
    frames: list[np.ndarray] = []
    (one,) = roll(Policy(point_policy()), point_environment(), [0], frames=frames)
    assert len(frames) == one.steps
    film(frames, tmp_path / "a.gif", 10)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == -(-one.steps // 2)
        assert image.info["duration"] == 200
    with pytest.raises(UsageError, match="no pictures"):
        film([], tmp_path / "b.gif", 10)
    assert not (tmp_path / "b.gif").exists()


def test_another_environment_than_the_policy_s():
    env = point_environment()
    wrong = type(env)(**{**vars(env), "observe": lambda seen: np.zeros(3, np.float32)})
    with pytest.raises(UsageError, match="learned from 2"):
        roll(Policy(point_policy()), wrong, [0])
    with pytest.raises(UsageError, match="at least one episode"):
        roll(Policy(point_policy()), env, [])
    with pytest.raises(UsageError, match=r"no environment 'push'; .*pusht"):
        environment("push")


def test_push_t_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    with pytest.raises(UsageError, match=r"fewstep\[robots\]"):
        ENVIRONMENTS["pusht"].make()


def test_push_t():
    pytest.importorskip("gym_pusht")
    env = ENVIRONMENTS["pusht"].make()
    seen, _ = env.reset(seed=1)
    again, _ = env.reset(seed=1)
    assert ENVIRONMENTS["pusht"].observe(seen).shape == (6,)
    assert (seen == again).all()
    _, reward, _, _, info = env.step(np.array([256.0, 256.0], np.float32))
    assert 0 <= reward <= 1
    assert ENVIRONMENTS["pusht"].success(info) is False
    assert np.asarray(env.render()).shape[2] == 3
    env.close()


@pytest.fixture
def known(monkeypatch, tmp_path):
    """The point and its policy by name."""
    monkeypatch.setitem(ENVIRONMENTS, "point", point_environment())
    monkeypatch.setattr("fewstep.model.load", lambda *a, **k: point_policy())
    monkeypatch.setattr("fewstep.model.find", lambda *a: tmp_path)


def test_the_command(known, tmp_path, capsys):
    out, gif = tmp_path / "score.json", tmp_path / "film.gif"
    main(["evaluate", "m", "--env", "point", "-n", "4", "--steps", "1,3", "--out", str(out)])
    main(["evaluate", "m", "--env", "point", "-n", "1", "--gif", str(gif)])
    said = capsys.readouterr().out
    assert "1 call " in said
    assert "4 episodes from the seeds 100000 to 100003" in said
    found = json.loads(out.read_text())["policy"]
    assert [*found] == ["1", "3"]
    assert found["1"]["success"] == 1.0
    assert found["1"]["success_interval"] == pytest.approx([wilson(4, 4)[0], 1.0], rel=1e-5)
    assert found["1"]["latency_ms"]["p50"] > 0
    assert np.mean(found["1"]["rewards"]) == pytest.approx(found["1"]["reward"], rel=1e-5)
    assert gif.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--env point -n 0", "-n must be at least 1"),
        ("--env nowhere", "no environment 'nowhere'"),
        ("--env point --gif a.mp4", "must name a .gif file"),
        ("--env point --data digits", "which --data says nothing of"),
        ("--gif a.gif", "give --env as well"),
    ],
)
def test_commands_that_are_refused(known, words, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "m", *words.split()])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_seeds_of_decisions_differ():
    seeds: list[int] = []
    policy = Policy(point_policy())
    plan = policy.plan
    policy.plan = lambda observations, own: (seeds.extend(own), plan(observations, own))[1]
    roll(policy, point_environment(), [0, 1])
    assert len({*seeds}) == len(seeds) > 2
    assert all(a != b for a, b in pairwise(seeds))
