"""Averages of the student's weights, by the student's own updates.

A rule maps the number of updates made to the rate of the next one: average <- rate * average +
(1 - rate) * student. It must be 0 at update 0 or start from the student's weights, as it does here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from fewstep.models import AbstractDenoiser
from fewstep.objectives.shared.copies import follow, frozen_copy

Rule = Callable[[int], float]


def constant(rate: float) -> Rule:
    """The same rate always; OpenAI's evaluation averages."""
    return lambda updates: rate


def warmed(rate: float) -> Rule:
    """min(rate, (1 + k) / (10 + k)): forgets the start quickly in short runs."""
    return lambda updates: min(rate, (1 + updates) / (10 + updates))


def half_life(images: float, batch: int, ramp: float | None = 0.05) -> Rule:
    """EDM's: what is ``images`` old counts half, or ``ramp`` times all images seen, if fewer."""

    def rule(updates: int) -> float:
        now = images if ramp is None else min(images, ramp * updates * batch)
        return 0.5 ** (batch / max(now, 1e-8))

    return rule


class Averages:
    """The copies and how often they were updated."""

    def __init__(self, student: AbstractDenoiser, rules: Mapping[str, Rule]) -> None:
        self.rules = dict(rules)
        self.copies = {name: frozen_copy(student).eval() for name in rules}
        self.updates = 0

    def update(self, student: nn.Module) -> None:
        """After an update of the student."""
        for name, rule in self.rules.items():
            follow(self.copies[name], student, rule(self.updates))
        self.updates += 1

    def restart(self, student: nn.Module) -> None:
        """At a new stage."""
        for copy in self.copies.values():
            follow(copy, student, 0.0)
        self.updates = 0
