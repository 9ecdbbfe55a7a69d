"""``fewstep train``, also ``--again``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Generic, TypeVar

import tyro

from fewstep.cli.recipes import show_recipes
from fewstep.errors import UsageError
from fewstep.option_kinds import Text
from fewstep.recipes import Recipe, rebuild, recipe
from fewstep.recipes.records import as_begun

Chosen = TypeVar("Chosen")


@dataclass(frozen=True, kw_only=True)
class Training(Generic[Chosen]):
    """The options of ``fewstep train``."""

    recipe: Annotated[Chosen, tyro.conf.arg(name="")]
    out: Path
    """The run folder; the same command resumes the run that is in it."""
    model: Text = None
    """A pipeline of diffusers (its folder, or OWNER/NAME on the Hugging Face Hub) that becomes the
    teacher. It is imported into OUT/teacher, and the images of --data are encoded with their
    captions into OUT/data, once. A model of the library can be given too, and stays where it is."""
    captions: Text = None
    """With --model: a table of captions (.jsonl, .json, .csv, .parquet) with file_name and text in
    each row; by default a text file beside each image, or metadata.jsonl."""
    fresh: bool = False
    """Move an old run aside first, and start anew."""
    dry_run: bool = False
    """Print what would be done and the memory that it needs, and stop."""
    json: bool = False
    """With --dry-run: print the recipe with all of its settings as JSON instead."""


def train_recipe(args: list[str]) -> None:
    """Train a recipe, or a run again."""
    if not args:
        raise UsageError("train needs a recipe: fewstep train RECIPE; fewstep recipes lists them")
    if args[0] in {"-h", "--help"}:
        print("usage: fewstep train RECIPE [options]; fewstep train RECIPE --help lists them")
        print("       fewstep train --again RUN --out NEW [options] repeats a run\n")
        show_recipes([])
        return
    if args == ["--again"]:
        raise UsageError("--again needs a run folder: fewstep train --again RUN --out NEW")
    if args[0] == "--again":
        first, prog, rest = rebuild(args[1]), f"fewstep train --again {args[1]}", args[2:]
        out = None
    else:
        first, prog, rest = recipe(args[0]), f"fewstep train {args[0]}", args[1:]
        out = Path("runs") / args[0]
    for word, value in pairwise(rest):  # sizes in the help are those of the chosen network
        if word == "--network":
            first = first.change(network=value)
    default = Training(recipe=first, out=out or tyro.MISSING)
    kind = Training[Recipe[first.method.options]]
    chosen = tyro.cli(
        kind, default=default, prog=prog, args=rest, description=first.method.options.__doc__
    )
    if chosen.captions is not None and chosen.model is None:
        raise UsageError("--captions belongs to --model; encoded data holds its captions")
    if chosen.json and not chosen.dry_run:
        raise UsageError("--json prints the settings of a --dry-run; give both, or leave it out")
    if chosen.model is not None:
        from fewstep.cli.prepared import prepared

        made = prepared(
            chosen.recipe, chosen.model, chosen.captions, chosen.out, dry=chosen.dry_run
        )
        chosen = replace(chosen, recipe=made)
    chosen.recipe.check()
    from fewstep.training.train import dry, train

    begun = chosen.recipe if chosen.fresh else as_begun(chosen.recipe, chosen.out)
    if chosen.dry_run:
        print(dry(begun.build(), chosen.out, as_json=chosen.json))
        return
    train(begun, chosen.out, fresh=chosen.fresh)
