"""Recipes of shortcut models (Frans et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start


@dataclass(frozen=True, kw_only=True)
class ShortcutModel(MethodOptions):
    """Shortcut models: a jump equals two jumps of half its size."""

    sections: int = 128
    """Sections of the finest grid, a power of two."""
    every: int = 8
    """One sample of this many teaches a jump, the others velocities."""
    rate: float = 0.999
    """Averaging rate of the network that teaches jumps, in [0, 1)."""

    def objective(self, start: Start) -> Objective:
        from fewstep.objectives.shortcut import Shortcut
        from fewstep.paths import Linear

        return Shortcut(
            start.student(Linear(), two_time=True),
            sections=self.sections,
            every=self.every,
            rate=self.rate,
            drop=start.drop,
        )


SETTINGS = {
    "digits": Setting({"sections": 16, "every": 4, "rate": 0.99}, result="1 call: fd 1.851"),
    "plane": Setting({"sections": 32, "every": 4, "rate": 0.99}, {"steps": 4500}),
    "small": Setting({"sections": 32, "rate": 0.99}),
}

METHODS = (Method("shortcut", "shortcut", 2024, ShortcutModel, SETTINGS, scratch=True),)
