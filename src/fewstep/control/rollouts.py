"""Episodes of a policy in an environment, and how long its decisions take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fewstep.control.environments import Environment
from fewstep.control.policy import Policy
from fewstep.core import entropy
from fewstep.errors import UsageError
from fewstep.system.files import whole_file

WARM = 3
"""Decisions before those that are timed."""


@dataclass(frozen=True)
class Episode:
    """How an episode went.

    Args:
        seed: of its initial state.
        reward: the largest of all its steps.
        success: whether any of its steps was one.
        steps: until it ended.
    """

    seed: int
    reward: float
    success: bool
    steps: int


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one robot's decisions: the median and the 95th percentile."""

    p50: float
    p95: float


@dataclass
class _Running:
    """An episode that has not ended."""

    seed: int
    env: Any
    seen: deque[np.ndarray]
    reward: float = 0.0
    success: bool = False
    steps: int = 0
    over: bool = False
    frames: list[np.ndarray] = field(default_factory=list)

    def act(self, environment: Environment, action: np.ndarray, filmed: bool) -> None:
        """One step."""
        observation, reward, ended, late, info = self.env.step(environment.clipped(action))
        self.seen.append(environment.observe(observation))
        self.reward = max(self.reward, float(reward))
        self.success = self.success or environment.success(info)
        self.steps += 1
        self.over = bool(ended or late)
        if filmed:
            self.frames.append(np.asarray(self.env.render()))


def roll(
    policy: Policy,
    environment: Environment,
    seeds: Sequence[int],
    *,
    watch: Callable[[int], None] | None = None,
    frames: list[np.ndarray] | None = None,
) -> list[Episode]:
    """One episode for each seed; the decisions of all running episodes are made together.

    An episode is a function of the policy and its seed, whichever others run beside it.

    Args:
        policy: what acts.
        environment: where.
        seeds: of the initial states; all different.
        watch: is called with the number of episodes that ended, as they end.
        frames: gets the pictures ``(h, w, 3)`` of the first episode.

    Raises:
        UsageError: there is no seed, or the environment observes other numbers than the policy.
    """
    if not seeds:
        raise UsageError("give at least one episode")
    running = [_begun(policy, environment, seed) for seed in seeds]
    decisions, ended = 0, 0
    while active := [one for one in running if not one.over]:
        noise = [entropy(one.seed, "decision", decisions) for one in active]
        plans = policy.plan(np.stack([np.stack([*one.seen]) for one in active]), noise)
        for one, plan in zip(active, plans, strict=True):
            for action in plan:
                if not one.over:
                    one.act(environment, action, frames is not None and one is running[0])
        decisions += 1
        now = sum(one.over for one in running)
        if watch is not None and now > ended:
            watch(now - ended)
        ended = now
    for one in running:
        one.env.close()
    if frames is not None:
        frames += running[0].frames
    return [Episode(one.seed, one.reward, one.success, one.steps) for one in running]


def _begun(policy: Policy, environment: Environment, seed: int) -> _Running:
    env = environment.make()
    observation, _ = env.reset(seed=seed)
    first = environment.observe(observation)
    if first.shape != (policy.codec.observed,):
        raise UsageError(
            f"{environment.title} observes {first.shape} numbers, and the policy learned from "
            f"{policy.codec.observed}; give the environment of its demonstrations"
        )
    return _Running(seed, env, deque([first] * policy.seen, policy.seen))


def latency(policy: Policy, environment: Environment, decisions: int = 50) -> Latency:
    """The time of a decision for one robot, from its observations to its actions.

    Args:
        policy: what decides.
        environment: whose first observation is decided on, again and again.
        decisions: that are timed, after a few that are not.
    """
    one = _begun(policy, environment, 0)
    history = np.stack([*one.seen])[None]
    one.env.close()
    seconds = []
    for i in range(WARM + decisions):
        began = time.perf_counter()
        policy.plan(history, [i])
        seconds.append(time.perf_counter() - began)
    p50, p95 = np.percentile(np.array(seconds[WARM:]) * 1e3, [50, 95])
    return Latency(float(p50), float(p95))


def film(frames: Sequence[np.ndarray], path: Path, rate: int, side: int = 128) -> None:
    """Write pictures as a GIF.

    Args:
        frames: uint8 ``(h, w, 3)``.
        path: the file.
        rate: frames of real time a second; every second one is kept.
        side: the longest side in pixels.

    Raises:
        UsageError: there are no pictures.
    """
    if not frames:
        raise UsageError("the environment rendered no pictures")
    pictures = [Image.fromarray(frame) for frame in frames[::2]]
    for picture in pictures:
        picture.thumbnail((side, side))
    few = [picture.quantize(32) for picture in pictures]
    with whole_file(path) as fresh:
        options = {"save_all": True, "append_images": few[1:], "duration": 2000 // rate, "loop": 0}
        few[0].save(fresh, "GIF", **options)
