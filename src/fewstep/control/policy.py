"""A policy: a model of action chunks that is asked for one action after another."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from fewstep.conditions import Vector
from fewstep.core import entropy
from fewstep.errors import UsageError
from fewstep.frontends.chunks import ChunkCodec
from fewstep.model import Model

OBSERVATION = "observation"
EXECUTED = 8


class Policy:
    """A model of chunks in the loop of Diffusion Policy (Chi et al. 2023).

    The chunk begins at the first of the observations that the model is given. Therefore the actions
    from the last observation on are executed: of 16 with two observations those at [1:9].

    Args:
        model: learned on demonstrations; its codec normalises actions and observations.
        steps: of a sample; by default the model's fewest.
        executed: actions of a chunk that are executed before the next one is planned.
        seed: of the noise of :meth:`select_action`, counted up from chunk to chunk.
        solver: of a diffusion model.

    Raises:
        UsageError: the model is no policy, or its chunks are too short.
    """

    def __init__(
        self,
        model: Model,
        *,
        steps: int | None = None,
        executed: int = EXECUTED,
        seed: int = 0,
        solver: str | None = None,
    ) -> None:
        codec, conditions = model.frontend.codec, model.contract.data.conditions
        seen = conditions.get(OBSERVATION)
        if not isinstance(codec, ChunkCodec) or not isinstance(seen, Vector) or len(conditions) > 1:
            raise UsageError(
                f"this {model.contract.method} model is no policy, as it has no normaliser of "
                "actions and no observations; train one on demonstrations, e.g. with fewstep train "
                "pusht-edm"
            )
        self.model, self.codec = model, codec
        self.steps, self.executed, self.seed, self.solver = steps, executed, seed, solver
        self.seen = seen.shape[0]
        horizon = model.contract.data.shape[1]
        most = (horizon or 0) - self.seen + 1
        if not 1 <= executed <= most:
            raise UsageError(
                f"of a chunk of {horizon} actions 1 to {most} can be executed after "
                f"{self.seen} observations, got {executed}"
            )
        self.reset()

    @property
    def calls(self) -> int:
        """Network calls of a decision."""
        return self.model.calls(self.steps, None, self.solver)

    def reset(self) -> None:
        """Forget the observations and the planned actions, as an episode begins."""
        self._observations: deque[np.ndarray] = deque(maxlen=self.seen)
        self._actions: deque[np.ndarray] = deque()
        self._decisions = 0

    def select_action(self, observation: ArrayLike) -> np.ndarray:
        """The next action; a chunk is planned whenever the last one is used up.

        Args:
            observation: ``(observed,)``, in the units of the demonstrations.

        Returns:
            float32 ``(actions,)``, in their units. Nothing keeps it within the robot's bounds.

        Raises:
            UsageError: the observation has another shape, or is not finite.
        """
        self.observe(observation)
        if not self._actions:
            history = self.history()[None]
            self._actions.extend(
                self.plan(history, [entropy(self.seed, "plan", self._decisions)])[0]
            )
            self._decisions += 1
        return self._actions.popleft()

    def observe(self, observation: ArrayLike) -> None:
        """Remember what is seen; before the first observation nothing else was seen."""
        row = np.asarray(observation, np.float32)
        if row.shape != (self.codec.observed,) or not np.isfinite(row).all():
            raise UsageError(
                f"an observation is {self.codec.observed} finite numbers, got {row.shape}"
            )
        first = not self._observations
        self._observations.extend([row] * (self.seen if first else 1))

    def history(self) -> np.ndarray:
        """What the next plan depends on, ``(seen, observed)``."""
        return np.stack([*self._observations])

    def plan(self, observations: ArrayLike, seeds: Sequence[int]) -> np.ndarray:
        """The actions that are executed next by several robots.

        Args:
            observations: ``(n, seen, observed)``, in the units of the demonstrations.
            seeds: of each plan's noise; a plan does not depend on the others beside it.

        Returns:
            float32 ``(n, executed, actions)``.
        """
        given = torch.from_numpy(np.asarray(observations, np.float32)).to(self.model.device)
        cond: dict[str, Any] = {OBSERVATION: self.codec.observe(given).cpu()}
        chunks = self.model.sample(
            len(given), steps=self.steps, seeds=[*seeds], cond=cond, solver=self.solver
        )
        first = self.seen - 1
        return chunks[:, :, first : first + self.executed].transpose(1, 2).cpu().numpy()
