"""Demonstrations of a robot as training data: action chunks, and the observations before them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from fewstep.conditions import Vector
from fewstep.contract import DataSpec
from fewstep.core import Batch, UsageError
from fewstep.data.arrays import Arrays, Indices
from fewstep.frontends import Frontend
from fewstep.frontends.chunks import ChunkCodec

OBSERVATION = "observation"
"""The condition of a policy."""

HORIZON, SEEN, EXECUTED = 16, 2, 8
"""Steps of a chunk, observations before it, and actions that are executed (Chi et al. 2023)."""


@dataclass(frozen=True)
class Demonstrations:
    """All steps of all episodes.

    Args:
        action: ``(steps, actions)`` in the robot's units.
        observation: ``(steps, observed)``.
        ends: int64 ``(episodes,)``, ascending; the last one is the number of steps.

    Raises:
        UsageError: the arrays do not fit together, or a value is not finite.
    """

    action: np.ndarray
    observation: np.ndarray
    ends: np.ndarray

    def __post_init__(self) -> None:
        steps = len(self.action)
        for name, array in (("actions", self.action), ("observations", self.observation)):
            if array.ndim != 2 or len(array) != steps or not array.size:
                raise UsageError(
                    f"demonstrations need actions and observations of the same number of steps, "
                    f"each step a row of numbers; got {self.action.shape} and "
                    f"{self.observation.shape}"
                )
            bad = np.flatnonzero(~np.isfinite(array).all(1))
            if len(bad):
                raise UsageError(
                    f"the {name} hold values that are not finite, first at step {bad[0]}; leave "
                    "out the episode"
                )
        ends = self.ends
        if ends.ndim != 1 or not len(ends) or ends[-1] != steps or (np.diff(ends) <= 0).any():
            raise UsageError(
                f"the ends of episodes must ascend to the number of steps, {steps}, got "
                f"{ends.tolist()[:3]} to {ends.tolist()[-1:]}"
            )

    def windows(self, horizon: int, seen: int, executed: int) -> np.ndarray:
        """The steps of all windows, int64 ``(windows, horizon)``.

        A window may begin ``seen - 1`` steps before its episode and end ``executed - 1`` steps
        behind it; the first or the last step stands for those that are not there.

        Args:
            horizon: steps of a window.
            seen: the observations at its beginning.
            executed: actions that are executed of a chunk.

        Raises:
            UsageError: an episode is too short for any window.
        """
        before, behind = seen - 1, executed - 1
        parts, first = [], 0
        for number, end in enumerate(self.ends.tolist()):
            starts = np.arange(-before, end - first - horizon + behind + 1)
            if not len(starts):
                raise UsageError(
                    f"episode {number} has {end - first} step(s), and a window of {horizon} needs "
                    f"{horizon - before - behind} or more; leave it out"
                )
            steps = starts[:, None] + np.arange(horizon)
            parts.append(first + steps.clip(0, end - first - 1))
            first = end
        return np.concatenate(parts)

    def part(self, episodes: np.ndarray) -> Demonstrations:
        """Some of the episodes, in their order."""
        ends = self.ends.tolist()
        pairs = [*zip([0, *ends[:-1]], ends, strict=True)]
        chosen = [pairs[episode] for episode in episodes.tolist()]
        steps = np.concatenate([np.arange(*pair) for pair in chosen])
        lengths = [end - first for first, end in chosen]
        return Demonstrations(self.action[steps], self.observation[steps], np.cumsum(lengths))


class Chunks:
    """Action chunks in [-1, 1] with the observations at their beginning: data of a policy.

    Sample i is the actions of a window, ``(actions, horizon)``; its condition ``observation`` is
    the normalised observations of the window's first steps, ``(seen, observed)``.

    Args:
        demonstrations: whose windows these are.
        codec: the normaliser; fitted to these demonstrations if not given.
        horizon: steps of a chunk.
        seen: observations that a policy is given.
        executed: actions of a chunk that are executed, by which windows reach beyond an episode.

    Attributes:
        frontend: with the normaliser, which trained models take along.
        sigma_data: standard deviation of the normalised actions.

    Raises:
        UsageError: an episode is too short, or the codec is of other dimensions.
    """

    labels, image = 0, False

    def __init__(
        self,
        demonstrations: Demonstrations,
        codec: ChunkCodec | None = None,
        *,
        horizon: int = HORIZON,
        seen: int = SEEN,
        executed: int = EXECUTED,
    ) -> None:
        action = torch.from_numpy(demonstrations.action.astype(np.float32))
        observation = torch.from_numpy(demonstrations.observation.astype(np.float32))
        codec = ChunkCodec.fitted(action, observation) if codec is None else codec
        if (codec.channels, codec.observed) != (action.shape[1], observation.shape[1]):
            raise UsageError(
                f"the demonstrations have {action.shape[1]} actions and observe "
                f"{observation.shape[1]} numbers a step, expected are {codec.channels} and "
                f"{codec.observed}"
            )
        windows = torch.from_numpy(demonstrations.windows(horizon, seen, executed))
        x = codec.encode(action[windows].transpose(1, 2)).clamp(-1, 1)
        observed = codec.observe(observation[windows[:, :seen]])
        self.frontend = Frontend(codec)
        self.shape = tuple(x.shape[1:])
        self.sigma_data = float(x.std())
        spec = DataSpec(
            shape=self.shape,
            range=(-1.0, 1.0),
            conditions={OBSERVATION: Vector(shape=tuple(observed.shape[1:]))},
        )
        conditions = {OBSERVATION: observed.numpy()}
        self._arrays = Arrays(x.numpy(), image=False, conditions=conditions, spec=spec)

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def spec(self) -> DataSpec:
        """What a sample is and depends on."""
        return self._arrays.spec

    @property
    def fingerprint(self) -> str:
        """The sha256 of all chunks and observations."""
        digest = hashlib.sha256()
        for array in self._arrays.arrays().values():
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def batch(self, indices: Indices) -> Batch:
        """The chunks at ``indices`` and their observations."""
        return self._arrays.batch(indices)
