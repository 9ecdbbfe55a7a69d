"""A tiny environment with Gymnasium's protocol: a point that must reach its goal."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fewstep.conditions import Vector
from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.control import Environment
from fewstep.frontends import Frontend
from fewstep.frontends.chunks import ChunkCodec
from fewstep.model import Model
from fewstep.models import AbstractDenoiser
from fewstep.paths import VarianceExploding

LIMIT = 40


class PointEnv:
    """A point on a line from 0 to 100 goes where an action says, one unit a step at most."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit, self.actions = limit, []
        self.closed = False

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        self.x = float(np.random.default_rng(seed).uniform(20, 30))
        self.goal, self.steps = 35.0, 0
        return self._seen(), {}

    def step(self, action: np.ndarray):
        self.actions.append(float(action[0]))
        self.x += float(np.clip(action[0] - self.x, -1, 1))
        self.steps += 1
        distance = abs(self.goal - self.x)
        done = distance < 0.5
        return self._seen(), 1 / (1 + distance), done, self.steps >= self.limit, {"won": done}

    def render(self) -> np.ndarray:
        picture = np.zeros((8, 100, 3), np.uint8)
        picture[:, int(self.x)] = 255
        return picture

    def close(self) -> None:
        self.closed = True

    def _seen(self) -> np.ndarray:
        return np.array([self.x, self.goal])


def point_environment(made: list[PointEnv] | None = None, limit: int = LIMIT) -> Environment:
    def make() -> PointEnv:
        env = PointEnv(limit)
        if made is not None:
            made.append(env)
        return env

    return Environment(
        title="Point",
        make=make,
        observe=lambda seen: seen.astype(np.float32),
        bounds=(0.0, 50.0),
        success=lambda info: info["won"],
        rate=10,
    )


class Towards(AbstractDenoiser):
    """Every action of the chunk is the goal that was seen last, times a factor."""

    cond_keys, two_time = ("observation",), False

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.path = factor, VarianceExploding()
        self.seen: list[torch.Tensor] = []

    def forward(self, x, t, s=None, cond=None):
        self.seen.append(cond["observation"])
        goal = cond["observation"][:, -1, 1]
        return (self.factor * goal)[:, None, None].expand_as(x).to(x.dtype)


def point_codec() -> ChunkCodec:
    """Places from 0 to 100, as actions and as observations."""
    ends = torch.tensor([[0.0], [100.0]])
    return ChunkCodec.fitted(ends, ends.expand(2, 2))


def point_policy(factor: float = 1.0, horizon: int = 16) -> Model:
    conditions = {"observation": Vector(shape=(2, 2))}
    contract = Contract(
        method="test",
        data=DataSpec(shape=(1, horizon), range=(-1.0, 1.0), conditions=conditions),
        sampling=Sampling(start=Start(t=80.0, std=80.0), kind="renoise", any_times=True),
    )
    return Model(Towards(factor), contract, frontend=Frontend(point_codec()))
