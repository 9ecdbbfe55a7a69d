"""What recipes know of a method: one value a method, defined in its own file of ``methods/``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fewstep.training.config import TrainConfig

if TYPE_CHECKING:
    from fewstep.objectives.base import Objective
    from fewstep.recipes.start import Start
else:  # names for annotations, without torch
    Objective = Start = object


@dataclass(frozen=True)
class MethodOptions(ABC):
    """A method's own options; its fields are the command line's."""

    @abstractmethod
    def objective(self, start: Start) -> Objective:
        """The objective that begins at this start."""

    def trainer(self, train: TrainConfig) -> TrainConfig:
        """The trainer's settings, where the method completes them."""
        return train

    def own_times(self) -> bool:
        """Whether the objective's times of several sampling steps count, and not the place's."""
        return False

    def needs_pairs(self) -> bool:
        """Whether the method learns from pairs of noise and the teacher's samples."""
        return False


@dataclass(frozen=True)
class Setting:
    """Where a method's settings differ from the place's and from its own defaults.

    Args:
        options: values by option name, of the method or of any other group.
        train: values of the trainer's settings by name.
        result: for the table of recipes.
        cost: for the table of recipes; computed from the number of samples if empty.
    """

    options: Mapping[str, object] = field(default_factory=dict)
    train: Mapping[str, object] = field(default_factory=dict)
    result: str = ""
    cost: str = ""

    def over(self, other: Setting) -> Setting:
        """This setting where it says something, and the other elsewhere."""
        options, train = {**other.options, **self.options}, {**other.train, **self.train}
        return Setting(options, train, self.result or other.result, self.cost or other.cost)


@dataclass(frozen=True)
class Method:
    """A method.

    Args:
        name: on the command line, and in the names of its recipes.
        title: in tables.
        year: of its first publication, by which tables are sorted.
        options: the class of its options, whose defaults are the paper's.
        settings: by the key of a place, see ``fewstep.recipes.places``.
        distils: it learns from a teacher, beyond starting from its weights.
        scratch: it can start from new weights.
        after: the method whose models it starts from, where those are no diffusion models.
        diffusion: its models are diffusion models, the teachers of others.
        tunes: it goes on with a consistency model of any method, on other data; it is no entrant of
            comparisons.
    """

    name: str
    title: str
    year: int
    options: type[MethodOptions]
    settings: Mapping[str, Setting]
    distils: bool = False
    scratch: bool = False
    after: str | None = None
    diffusion: bool = False
    tunes: bool = False

    def at(self, *keys: str) -> Setting:
        """The settings at a place with these keys; a later key's count more."""
        setting = Setting()
        for key in keys:
            setting = self.settings.get(key, Setting()).over(setting)
        return setting
