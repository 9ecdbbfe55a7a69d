"""Recipes: functions that return a whole run. Importing this imports no torch.

A recipe's parameters are its options on the command line; ``train`` holds the trainer's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fewstep.errors import UsageError, nearest
from fewstep.recipes.digits import digits_cd, digits_ct, digits_edm
from fewstep.recipes.images import cd, ct, edm
from fewstep.recipes.toys import toy_cd, toy_ct, toy_edm
from fewstep.training.config import Run, TrainConfig


@dataclass(frozen=True)
class Recipe:
    """A line of ``fewstep recipes``."""

    build: Callable[..., Run]
    method: str
    data: str
    teacher: str
    cost: str
    result: str


RECIPES: dict[str, Recipe] = {
    "digits-edm": Recipe(
        digits_edm, "EDM", "digits, bundled", "-", "3 min, 1 core", "see docs/results.md"
    ),
    "digits-cd": Recipe(
        digits_cd,
        "CD",
        "digits, bundled",
        "bundled digits-edm",
        "2 min, 1 core",
        "see docs/results.md",
    ),
    "digits-ct": Recipe(
        digits_ct, "CT", "digits, bundled", "-", "2 min, 1 core", "see docs/results.md"
    ),
    "toy-edm": Recipe(toy_edm, "EDM", "2-D toys", "-", "1 min, 1 core", "docs/results.md"),
    "toy-cd": Recipe(toy_cd, "CD", "2-D toys", "a toy-edm run", "1 min, 1 core", "docs/results.md"),
    "toy-ct": Recipe(toy_ct, "CT", "2-D toys", "-", "1 min, 1 core", "docs/results.md"),
    "edm": Recipe(edm, "EDM", "a folder or zip of images", "-", "as data and network ask", "-"),
    "cd": Recipe(
        cd, "CD", "a folder or zip of images", "an edm run", "as data and network ask", "-"
    ),
    "ct": Recipe(ct, "CT", "a folder or zip of images", "-", "as data and network ask", "-"),
}


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UsageError: there is none; the message suggests the nearest.
    """
    if name not in RECIPES:
        raise UsageError(f"unknown recipe {name!r}; {nearest(name, RECIPES)}")
    return RECIPES[name]


__all__ = [
    "RECIPES",
    "Recipe",
    "Run",
    "TrainConfig",
    "cd",
    "ct",
    "digits_cd",
    "digits_ct",
    "digits_edm",
    "edm",
    "recipe",
    "toy_cd",
    "toy_ct",
    "toy_edm",
]
