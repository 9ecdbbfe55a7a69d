"""``fewstep.train``: a training by the name of its recipe, by a recipe, or by a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.errors import UsageError
from fewstep.recipes.recipe import Recipe, recipe
from fewstep.recipes.records import as_begun
from fewstep.training.config import Buildable, Run

if TYPE_CHECKING:
    from fewstep.model import Model


def train(
    run: Run | Buildable | str,
    out: str | Path | None = None,
    *,
    fresh: bool = False,
    **options: object,
) -> Model:
    """Train in ``out``, going on from its newest checkpoint if there is one.

    Under torchrun (or with RANK and WORLD_SIZE set) all processes call this. A run that was trained
    before begins with its first weights again. torch's number of threads and its default
    generator are afterwards what they were.

    Args:
        run: the name of a recipe, a recipe, or a run.
        out: the run folder; on several machines, one that they share. By default a recipe trains in
            ``runs/NAME``, as it does on the command line.
        fresh: move an old run aside first.
        options: none; they are options of the recipe.

    Returns:
        The finished model, which is also in ``out/model``.

    Raises:
        UsageError: the settings or the folder cannot be used.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 came; the run was saved.
        Diverged: gradients stayed non-finite.
    """
    if options:
        raise UsageError(
            f"train takes a run, its folder and fresh, got {', '.join(options)} beside the run; "
            "options and settings belong to the recipe: fewstep.train(fewstep.recipe(NAME, "
            "data=..., train={'steps': 500}), out=FOLDER)"
        )
    if isinstance(run, str):
        run = recipe(run)
    if not isinstance(run, Run) and not hasattr(run, "build"):
        raise UsageError(
            f"train takes a recipe, its name or a run, got {run!r}; make a recipe with "
            "fewstep.recipe(NAME, ...)"
        )
    if out is None:
        if not isinstance(run, Recipe):
            raise UsageError("train needs a folder for this run; give out=FOLDER")
        out = Path("runs") / run.name
    if isinstance(run, Recipe) and not fresh:
        run = as_begun(run, out)
    from fewstep.training.train import train as carry_out

    return carry_out(run, out, fresh=fresh)
