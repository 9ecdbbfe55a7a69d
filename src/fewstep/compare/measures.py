"""What methods are compared by: distances to data, or the rewards of policies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fewstep.control import FIRST_SEED, Rewards, environment
from fewstep.data.catalogue import judge_of
from fewstep.evaluation import named_protocol

if TYPE_CHECKING:
    from fewstep.compare.plan import Plan
    from fewstep.contract import DataSpec
    from fewstep.model import Model


class Judge(Protocol):
    """What measures models, all on the same terms."""

    @property
    def labelled(self) -> bool:
        """Whether models are given classes."""
        ...

    def check(self) -> None:
        """Refuse what cannot be judged."""
        ...

    def judge(self, model: Model, steps: int) -> dict[str, float]:
        """The measures of a model by name."""
        ...

    def floor(self) -> dict[str, float]:
        """The measures of real data; empty where there are none."""
        ...

    def quick(self) -> Judge:
        """A cheaper judge of the main measure alone, for curves."""
        ...


@dataclass(frozen=True)
class Measures:
    """The measures of a comparison.

    Args:
        main: by which methods are ranked, at each number of steps.
        more: those that are shown for the fewest steps.
        higher: whether a larger main measure is better.
        words: what the measures mean, by name.
        judge: makes the judge of a plan and of what its teacher generates.
    """

    main: str
    more: tuple[str, ...]
    judge: Callable[[Plan, DataSpec], Judge]
    higher: bool = False
    words: Mapping[str, str] = field(default_factory=dict)

    @property
    def kept(self) -> tuple[str, ...]:
        """The names that results keep."""
        return (self.main, *self.more, "images_per_second")


def _distances(plan: Plan, made: DataSpec) -> Judge:
    return named_protocol(plan.data, plan.held_out, made, plan.n, background=plan.background)


def _rewards(plan: Plan, made: DataSpec) -> Judge:
    return Rewards(environment(plan.data), range(FIRST_SEED, FIRST_SEED + min(plan.n, 50)))


DISTANCES = Measures(
    "fd",
    ("swd", "nn"),
    _distances,
    words={
        "fd": "Frechet distance to held-out data, in the features of this data's protocol.",
        "swd": "sliced Wasserstein distance to held-out data, for the fewest steps.",
        "nn": "median distance to the nearest training sample, divided by that of held-out data, "
        "for the fewest steps. A value well below 1 means copies.",
    },
)
REWARDS = Measures(
    "reward",
    ("success", "p50"),
    _rewards,
    higher=True,
    words={
        "reward": "mean over the episodes of each one's largest reward; larger is better.",
        "success": "share of the episodes that succeeded, for the fewest steps.",
        "p50": "milliseconds of a decision, the median, for the fewest steps.",
    },
)
MEASURES: dict[str, Measures] = {"distances": DISTANCES, "rewards": REWARDS}
"""By the judge that the catalogue names."""


def measures_of(data: str) -> Measures:
    """The measures of a data set, by name or path."""
    return MEASURES[judge_of(data)]
