"""Recipes: functions that return a whole run. Importing this imports no torch.

A recipe's parameters are its options on the command line; ``train`` holds the trainer's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fewstep.errors import UsageError, nearest
from fewstep.recipes.digits import digits_cd, digits_ct, digits_edm
from fewstep.recipes.family import recipe_of
from fewstep.recipes.images import cd, ct, edm
from fewstep.recipes.methods import METHODS
from fewstep.recipes.places import PLACES
from fewstep.recipes.presets import PRESETS
from fewstep.recipes.published import PUBLISHED, edm2
from fewstep.recipes.standard import cd_of, ct_of, edm_of
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


_IMAGES = "a folder or zip of images"

RECIPES: dict[str, Recipe] = {
    "digits-edm": Recipe(digits_edm, "EDM", "digits", "-", "5 min", "35 calls: fd 0.33"),
    "digits-cd": Recipe(digits_cd, "CD", "digits", "digits-edm", "2 min", "1 call: fd 0.32"),
    "digits-ct": Recipe(digits_ct, "CT", "digits", "-", "4 min", "1 call: fd 0.51"),
    "toy-edm": Recipe(toy_edm, "EDM", "2-D toys", "-", "1 min", "docs/results.md"),
    "toy-cd": Recipe(toy_cd, "CD", "2-D toys", "a toy-edm run", "1 min", "docs/results.md"),
    "toy-ct": Recipe(toy_ct, "CT", "2-D toys", "-", "2 min", "docs/results.md"),
    "edm": Recipe(edm, "EDM", _IMAGES, "-", "as data and network ask", "MNIST: docs/results.md"),
    "cd": Recipe(
        cd, "CD", _IMAGES, "an edm run", "as data and network ask", "MNIST: docs/results.md"
    ),
    "ct": Recipe(ct, "CT", _IMAGES, "-", "as data and network ask", "MNIST: docs/results.md"),
}
for preset in PRESETS:
    RECIPES |= {
        preset.named(method): Recipe(factory(preset), method.upper(), preset.data, teacher, *told)
        for method, factory, teacher, told in (
            ("edm", edm_of, "-", preset.told[0]),
            ("cd", cd_of, preset.named("edm"), preset.told[1]),
            ("ct", ct_of, "-", preset.told[2]),
        )
    }
RECIPES["imagenet-64-edm2"] = Recipe(
    edm2, "EDM2-S", "imagenet-64", "-", "1.1 G images", "paper: FID 1.58"
)
for place in (*PLACES, *PUBLISHED):
    RECIPES |= {
        place.named(name): Recipe(
            recipe_of(place, name),
            METHODS[name].title,
            place.data,
            place.told_teacher(name),
            *place.told.get(name, ("", "")),
        )
        for name in place.methods
        if place.named(name) not in RECIPES
    }
"""Costs are of one CPU core; fd has its floor at 0.25 (docs/results.md)."""


def recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UsageError: there is none; the message suggests the nearest.
    """
    if name not in RECIPES:
        raise UsageError(
            f"unknown recipe {name!r}; {nearest(name, RECIPES)}; fewstep recipes lists them"
        )
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
