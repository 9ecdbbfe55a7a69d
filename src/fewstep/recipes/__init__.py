"""Recipes: whole runs as values. Importing this imports no torch.

``recipe("digits-cd", points=18, train={"steps": 500})`` is one; ``build()`` makes its run.
"""

from __future__ import annotations

from fewstep.recipes.methods import METHODS, STUDENTS
from fewstep.recipes.places import NAMES, PLACES
from fewstep.recipes.recipe import Recipe, recipe
from fewstep.recipes.records import rebuild
from fewstep.training.config import Run, TrainConfig

__all__ = [
    "METHODS",
    "NAMES",
    "PLACES",
    "STUDENTS",
    "Recipe",
    "Run",
    "TrainConfig",
    "rebuild",
    "recipe",
]
