"""Recipes out of run.json, also of the one that version 0.1.0 wrote when recipes were functions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from fewstep import hub
from fewstep.bundled import BUNDLED
from fewstep.errors import UsageError, in_words
from fewstep.recipes.method import MethodOptions
from fewstep.recipes.options import NONE, DataOptions, NetworkOptions
from fewstep.recipes.places import NAMES
from fewstep.recipes.recipe import Recipe, recipe

RENAMED = {"power": "average_widths", "widths": "average_widths"}
"""Options of averages, by the names that they had."""

Options = TypeVar("Options", bound=MethodOptions, covariant=True)

_CT = {"start": "first", "end": "last"}


def rebuild(run: str | Path) -> Recipe[MethodOptions]:
    """The recipe of a run folder, with all of its options; ``build()`` makes its run again.

    Raises:
        UsageError: there is no run.json, it is damaged, or the run is of no recipe.
    """
    record = Path(run) / "run.json"
    if not record.is_file():
        raise UsageError(f"{run} is no run folder: it has no run.json")
    try:
        content = json.loads(record.read_text(encoding="utf-8"))["run"]
        name, arguments, train = (content[key] for key in ("recipe", "arguments", "train"))
        arguments, train = dict(arguments), dict(train)
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{record} is damaged ({in_words(error)})") from error
    if name not in NAMES:
        raise UsageError(
            f"{run} is a run of {name!r}, and no recipe has this name: it was made in Python, or "
            "by another version of fewstep. The code that made its Run can train it again"
        )
    return recipe(name, **current(name, arguments), train=train)


def as_begun(recipe: Recipe[Options], out: str | Path) -> Recipe[Options]:
    """The recipe with the teacher that the run in ``out`` began with, where the Hub has newer ones.

    Args:
        recipe: of the command.
        out: the run folder, with or without a run.
    """
    teacher = recipe.start.teacher
    try:
        content = json.loads((Path(out) / "run.json").read_text(encoding="utf-8"))
        commit = str(content["commits"][teacher])
    except (OSError, ValueError, KeyError, TypeError):  # no run, another teacher, or damaged
        return recipe
    return replace(recipe, start=replace(recipe.start, teacher=hub.pinned(teacher, commit)))


def upgraded(name: str, arguments: Mapping[str, object]) -> Mapping[str, object]:
    """The arguments of a run of any version, as this version would record them."""
    if name not in NAMES:
        return arguments
    return recipe(name, **current(name, arguments)).arguments()


def current(name: str, arguments: Mapping[str, object]) -> dict[str, object]:
    """The arguments of a run as this version names them.

    Version 0.1.0 left out what a place decided, and its ``ct`` and ``edm`` had options of their
    own; its data set was known by the recipe's name alone. It also recorded the sizes of a new
    network where the student had the teacher's. ``dmd2`` once called its ``fake_lora`` ``lora``.
    """
    if name not in NAMES:
        return dict(arguments)
    place, method = NAMES[name]
    renamed = dict(arguments)
    if "condition_drop" not in renamed:  # version 0.1.0
        own = set(vars(method.options()))
        for old, new in RENAMED.items():
            if old in renamed and old not in own:
                renamed[new] = renamed.pop(old)
        if method.name == "ct" and "start" in renamed:
            renamed = {_CT.get(key, key): value for key, value in renamed.items()}
            renamed |= {"teacher": NONE}
    if method.name == "dmd2" and "lora" in renamed and "fake_lora" not in renamed:
        renamed["fake_lora"] = renamed.pop("lora")
    if renamed.get("teacher", place.teacher(method)) != NONE:
        sizes = {field.name for field in fields(NetworkOptions)}
        renamed = {key: value for key, value in renamed.items() if key not in sizes}
    return renamed


def own_data(model: str) -> DataOptions:
    """What a model learned from, by its run.json; a bundled model is of its recipe's data.

    Raises:
        UsageError: there is no such model, it is of no run, or its run.json is damaged.
    """
    run = run_of(model)
    if run is None and model in BUNDLED and not Path(model).exists():
        return NAMES[BUNDLED[model]][0].data
    if run is None:
        raise UsageError(f"{model} is of no run; say with --data what the model learned from")
    try:
        return _from_here(rebuild(run).data, run)
    except UsageError as error:
        raise UsageError(f"{error}; say with --data what the model learned from") from error


def run_of(model: str) -> Path | None:
    """The run folder that a model lies in; None where it lies in none.

    Raises:
        UsageError: there is no such model.
    """
    from fewstep.model import find

    # A model lies in RUN/model or in RUN/averages/NAME.
    parents = find(model).resolve().parents
    return next((f for f in parents[:2] if (f / "run.json").is_file()), None)


def record_of(run: Path) -> dict[str, Any]:
    """The content of a run.json that :func:`rebuild` can read."""
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def _from_here(own: DataOptions, run: Path) -> DataOptions:
    """The same; paths that lead nowhere from here become those of the files in training."""
    places = record_of(run).get("places") or {}
    paths = {name: getattr(own, name) for name in ("data", "held_out")}
    moved = {
        name: places[name]
        for name, path in paths.items()
        if isinstance(path, str) and name in places and not Path(path).exists()
    }
    return replace(own, **moved)
