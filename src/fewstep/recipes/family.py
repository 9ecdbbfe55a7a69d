"""The family's recipes: every method at every place, its options joined with the place's."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_type_hints

from fewstep.errors import UsageError
from fewstep.recipes.methods import METHODS
from fewstep.recipes.places import Place
from fewstep.recipes.trajectories import halving_stage
from fewstep.training.config import Run, TrainConfig

FIXED = ("method", "recipe", "train")


def recipe_of(place: Place, name: str) -> Callable[..., Run]:
    """A recipe's function: the place's options, the method's, then ``train``."""
    method, recipe = METHODS[name], place.named(name)
    of_place = _options(place.start)
    of_method = _options(method.build)
    teacher = _teacher(place, name)
    defaults = {**place.options(name), **({} if teacher is None else {"teacher": teacher})}

    def build(**given: Any) -> Run:
        options = {p.name: p.default for p in parameters if p.default is not p.empty} | given
        _check(recipe, options, [p.name for p in parameters])
        train = options.pop("train")
        if name == "progressive" and not train.decay_steps:
            # The learning rate falls to 0 in each of its stages.
            train = replace(train, decay_steps=halving_stage(train.steps, options["first"]))
        start = place.start(method, recipe, train=train, **{k: options[k] for k in of_place})
        if "pairs" in of_method:
            start = start.with_pairs(options["pairs"])
        objective = method.build(start, **{k: options[k] for k in of_method})
        return start.run(recipe, options, objective)

    parameters = [
        p.replace(default=defaults.get(p.name, p.default))
        for p in (*of_place.values(), *of_method.values())
    ]
    train = inspect.Parameter(
        "train", inspect.Parameter.KEYWORD_ONLY, default=place.trainer(name), annotation=TrainConfig
    )
    parameters.append(train)
    build.__name__ = build.__qualname__ = recipe.replace("-", "_")
    build.__signature__ = inspect.Signature(parameters, return_annotation=Run)  # pyright: ignore[reportFunctionMemberAccess]
    build.__annotations__ = {p.name: p.annotation for p in parameters}
    build.__doc__ = _doc(method.build, place.start)
    return build


def _check(recipe: str, options: dict[str, Any], known: list[str]) -> None:
    if unknown := [name for name in options if name not in known]:
        raise UsageError(f"{recipe} has no option {unknown[0]}; it has {', '.join(known)}")
    if missing := [name for name in known if name not in options]:
        raise UsageError(f"{recipe} needs the option {missing[0]}")
    for name, value in options.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UsageError(f"--{name.replace('_', '-')} must be finite, got {value}")


def _teacher(place: Place, name: str) -> str | None:
    method = METHODS[name]
    if method.after is not None:
        return None
    return place.teacher or ("none" if method.scratch else None)


def _options(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    hints = get_type_hints(function, localns={"Objective": Any})
    return {
        name: p.replace(annotation=hints[name])
        for name, p in inspect.signature(function).parameters.items()
        if p.kind is p.KEYWORD_ONLY and name not in FIXED
    }


def _doc(method: Callable[..., Any], place: Callable[..., Any]) -> str:
    (summary, own), (where, theirs) = (_split(inspect.getdoc(f) or "") for f in (method, place))
    where = where[0].lower() + where[1:]
    return f"{summary.rstrip('.')}: {where}\n\nArgs:\n{own}\n{theirs}\n"


def _split(doc: str) -> tuple[str, str]:
    summary, _, arguments = doc.partition("\n\nArgs:\n")
    return summary, arguments.rstrip()
