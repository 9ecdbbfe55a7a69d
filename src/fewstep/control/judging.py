"""Policies judged alike: the same episodes for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fewstep.control.environments import Environment
from fewstep.control.policy import Policy
from fewstep.control.rollouts import latency, roll
from fewstep.control.scores import score
from fewstep.model import Model

FEW = 8
"""Episodes of a quick look."""


@dataclass(frozen=True)
class Rewards:
    """What policies are compared with.

    Args:
        environment: where they act.
        seeds: of the episodes, which all policies share.
    """

    environment: Environment
    seeds: Sequence[int]

    labelled = False

    def check(self) -> None:
        """Refuse an environment that is not installed.

        Raises:
            UsageError: it is not.
        """
        self.environment.make().close()

    def judge(self, model: Model, steps: int) -> dict[str, float]:
        """``reward`` and ``success``, ``p50`` and ``p95`` in milliseconds, and plans a second."""
        policy = Policy(model, steps=steps)
        found = score(roll(policy, self.environment, self.seeds))
        speed = latency(policy, self.environment, 20)
        return {
            "reward": found.reward,
            "success": found.success,
            "p50": speed.p50,
            "p95": speed.p95,
            "images_per_second": 1e3 / speed.p50,
        }

    def floor(self) -> dict[str, float]:
        """Nothing: demonstrations were not scored."""
        return {}

    def quick(self) -> Rewards:
        """The first few episodes."""
        return replace(self, seeds=self.seeds[:FEW])
