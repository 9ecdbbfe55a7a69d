"""What the API's verbs compute, in the worker's thread."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fewstep import conditions as kinds
from fewstep.errors import UsageError, UsageWarning
from fewstep.image_grid import drawable
from fewstep.model import Model
from fewstep.serving import pictures
from fewstep.serving.bodies import Answer, Common, Picture, SampleAsked
from fewstep.serving.limits import Limits
from fewstep.serving.served import Served
from fewstep.serving.worker import Ticket
from fewstep.version import __version__

AT_ONCE = 2**18
"""Values of the samples that one network call makes; between two calls a client may leave."""

NUMBERS = 2**20
"""The most values of samples that an answer has as numbers."""


def sample(served: Served, asked: SampleAsked, limits: Limits, ticket: Ticket) -> Answer | bytes:
    """Samples, each as a PNG that says what made it; or all as one PNG.

    Raises:
        UsageError: the model cannot be asked this.
        Cancelled: nobody waits any more.
        TooSlow: it took too long.
    """
    model = served.model
    check_cost(model, asked.n, asked.steps, limits, asked.length)
    numbers = asked.n * _size(model, asked.length)
    if numbers > NUMBERS and (asked.values or not drawable(model.shape)):
        raise UsageError(
            f"an answer has at most {NUMBERS:,} values, and these samples have {numbers:,}; "
            "ask for fewer samples"
        )
    arguments: dict[str, Any] = {
        "steps": asked.steps,
        "seed": asked.seed,
        "first": asked.first,
        "label": asked.label,
        "prompts": asked.prompt,
        "lengths": asked.length,
        "guidance": asked.guidance,
        "gamma": asked.gamma,
        "solver": asked.solver,
        "cond": conditions(model, asked.cond, limits),
    }
    batch = max(1, AT_ONCE // _size(model, asked.length))
    with noted() as notes:
        began = time.perf_counter()
        x = model.sample(asked.n, **arguments, batch=batch, callback=ticket.check).cpu()
        seconds = time.perf_counter() - began
    ticket.check()
    calls = model.calls(asked.steps, asked.guidance, asked.solver)
    made = {**origin(served, asked), "calls": calls}
    made |= {"steps": len(times := model.times(asked.steps)), "times": times}
    made |= {"seed": asked.seed, "first": asked.first, "n": asked.n}
    made |= given(gamma=asked.gamma, solver=asked.solver, length=asked.length)
    made["seconds"] = round(seconds, 6)
    if asked.format == "png":
        drawn = pictures.together(x)
        if not drawn:
            raise UsageError("samples of this model have no picture; ask for the format json")
        return pictures.png(drawn[0], made)
    drawn = pictures.images(x)
    each = [asked.first + i for i in range(len(drawn))]
    in_turn = asked.label is None and "label" not in asked.cond
    classes = model.contract.data.labels if in_turn else 0
    turns = [given(index=i, label=i % classes if classes else asked.label) for i in each]
    own = [{**made, **turn} if len(drawn) == len(x) else made for turn in turns]
    return Answer(
        model=served.name,
        pictures=[picture(*pair) for pair in zip(drawn, own, strict=True)],
        values=x.tolist() if asked.values or not drawn else None,
        calls=calls,
        seconds=seconds,
        notes=notes,
    )


def picture(image: Any, made: dict[str, Any]) -> Picture:
    """A picture as the API returns it."""
    return Picture(png=pictures.text_of(pictures.png(image, made)), made=made)


def origin(served: Served, asked: Common) -> dict[str, Any]:
    """What made a picture, as far as all verbs share it."""
    contract = served.model.contract
    return {
        "fewstep": __version__,
        "model": served.name,
        "digest": served.digest,
        "method": contract.method,
        "engine": served.engine,
        **given(label=asked.label, prompt=asked.prompt, guidance=asked.guidance),
        **{f"cond.{name}": brief(value) for name, value in asked.cond.items()},
    }


def given(**values: Any) -> dict[str, Any]:
    """What is not None."""
    return {name: value for name, value in values.items() if value is not None}


def brief(value: Any) -> Any:
    """A value, or what it is where it is long."""
    if isinstance(value, str) and len(value) > 300:
        return "a picture"
    return value if not isinstance(value, list) or len(str(value)) <= 2000 else "a list of numbers"


def check_cost(
    model: Model, n: int, steps: int | None, limits: Limits, length: int | None = None
) -> None:
    """Refuse what costs more than a request may.

    Raises:
        UsageError: too many samples, steps or values.
    """
    if n > limits.samples:
        raise UsageError(f"a request may ask for at most {limits.samples} samples, got {n}")
    if steps is not None and steps > limits.steps:
        raise UsageError(f"a sample may have at most {limits.steps} steps, got {steps}")
    if (values := n * _size(model, length)) > limits.values:
        raise UsageError(
            f"{n} samples of this model have {values:,} values, and a request may ask for at most "
            f"{limits.values:,}; ask for fewer"
        )


def _size(model: Model, length: int | None) -> int:
    """Values of a sample, of its latents or of its picture, whichever are more."""
    own, shown = model.contract.data.shape, model.shape
    mask = model.contract.data.conditions.get("mask")
    longest = length or (mask.length if isinstance(mask, kinds.Mask) else None) or 1
    return max(math.prod(size or longest for size in shape) for shape in (own, shown))


def conditions(model: Model, cond: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Conditions as ``Model.sample`` takes them; a picture's text becomes its pixels.

    Raises:
        UsageError: a value is none that a request can give.
    """
    declared = model.contract.data.conditions
    values: dict[str, Any] = {}
    for name, value in cond.items():
        one = declared.get(name)
        if isinstance(one, kinds.Image) and isinstance(value, str):
            image = pictures.uploaded(value, f"the picture {name[:50]!r}", limits.pixels)
            values[name] = pictures.fitted(image, f"the picture {name[:50]!r}", one.shape)
        else:
            values[name] = _plain(name, value)
    return values


def _plain(name: str, value: Any, depth: int = 0) -> Any:
    """A number, a text, or lists of them."""
    if isinstance(value, list) and depth < 6:
        return [_plain(name, one, depth + 1) for one in value]
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53:
        return value  # which no NaN is
    raise UsageError(f"the condition {name[:50]!r} must be a number, a text, or a list of them")


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collect what the library would say on a terminal about what was asked."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UsageWarning)
        yield notes
    notes += [str(one.message) for one in caught if issubclass(one.category, UsageWarning)]


def warm(served: Served, ticket: Ticket) -> None:
    """Make one sample, so that the first request finds everything loaded; errors are left to it."""
    try:
        with noted():
            x = served.model.sample(1, callback=ticket.check)
        for image in pictures.images(x.cpu()):
            pictures.png(image, {})
    except Exception:  # networks of users raise all kinds; a request would be told
        return
