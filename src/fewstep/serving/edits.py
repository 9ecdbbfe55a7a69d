"""Edits and interpolations, in the worker's thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fewstep import editing
from fewstep.core import Cond
from fewstep.editing import canvas
from fewstep.errors import UsageError
from fewstep.model import Model
from fewstep.models import AbstractDenoiser
from fewstep.paths import Event, Time
from fewstep.serving import pictures
from fewstep.serving.bodies import Answer, EditAsked, InterpolateAsked
from fewstep.serving.forms import edits
from fewstep.serving.limits import Limits
from fewstep.serving.served import Served
from fewstep.serving.verbs import check_cost, conditions, given, noted, origin, picture
from fewstep.serving.worker import Ticket

OWN = {"inpaint": "mask", "upscale": "factor", "deblur": "width"}
"""The field that a task needs."""

FIELDS = {**OWN, "vary": "sigma", "denoise": "sigma"}
"""The field that a task reads beside those of all tasks."""

RENOISED = ("strokes", "vary", "denoise")
"""Tasks in which nothing of the picture is known exactly, so that there is nothing to search."""


class Counted(AbstractDenoiser):
    """A denoiser that asks before each call whether to go on, and notes calls and their times.

    Args:
        denoiser: that answers.
        check: raises where nobody waits any more.
    """

    def __init__(self, denoiser: AbstractDenoiser, check: Callable[[], Any]) -> None:
        super().__init__()
        self.denoiser, self.check, self.count = denoiser, check, 0
        self.times: list[float] = []
        self.path, self.cond_keys = denoiser.path, denoiser.cond_keys
        self.optional_keys: tuple[str, ...] = getattr(denoiser, "optional_keys", ())
        self.two_time, self.calls = denoiser.two_time, denoiser.calls

    def forward(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        """The denoiser's answer."""
        self.check()
        self.count += self.calls
        if (level := float(t[0])) not in self.times:
            self.times.append(level)
        return self.denoiser(x, t, s, cond)

    def facts(self, seconds: float) -> dict[str, Any]:
        """What to say of the calls."""
        return {"times": self.times, "calls": self.count, "seconds": round(seconds, 6)}


def edit(served: Served, asked: EditAsked, limits: Limits, ticket: Ticket) -> Answer:
    """What the model makes of a picture.

    Raises:
        UsageError: the model cannot do this, or the picture does not fit.
        Cancelled: nobody waits any more.
        TooSlow: it took too long.
    """
    task, possible = asked.task, edits(served.model)
    if task not in possible:
        known = ", ".join(possible) or "no edits"
        raise UsageError(f"this model cannot {task}; it can do: {known}")
    if (needed := OWN.get(task)) is not None and getattr(asked, needed) is None:
        raise UsageError(f"{task} needs the field {needed}")
    for field in ("mask", "factor", "width", "sigma"):
        if getattr(asked, field) is not None and FIELDS.get(task) != field:
            raise UsageError(f"{task} has no {field}; leave it out")
    if task == "denoise" and asked.steps is not None:
        raise UsageError("denoise makes one call; leave out steps")
    if asked.search and task in RENOISED:
        raise UsageError(f"{task} has no search; leave it out")
    if task == "denoise" and asked.n != 1:
        raise UsageError("denoise has one result of a picture; leave out n")
    factor = asked.factor or 1
    check_cost(served.model, asked.n, asked.steps, limits)
    image = pictures.uploaded(asked.image, "the image", limits.pixels)
    # A picture that is smaller than the model's is padded to its size before anything is computed.
    least = [size or 1 for size in served.model.shape[1:]]
    sides = (image.height * factor, image.width * factor)
    height, width = (max(pair) for pair in zip(sides, least, strict=True))
    if asked.search and [height, width] != least:
        raise UsageError("search needs a picture of the model's size; leave it out, or cut it")
    if asked.n * height * width > 1000 * limits.pixels:
        raise UsageError(
            f"{asked.n} results of this size have more than {1000 * limits.pixels:,} pixels; "
            "ask for fewer, or send a smaller image"
        )
    model, counted = _counted(served.model, ticket)
    y = pictures.tensor(image, "the image", model.shape[0] or 1)
    with noted() as notes:
        began = time.perf_counter()
        x = _edited(model, y, asked, limits).cpu().float()
        seconds = time.perf_counter() - began
    ticket.check()
    made = {**origin(served, asked), **counted.facts(seconds)}
    made |= {"seed": asked.seed, "first": asked.first, "n": asked.n, "verb": task}
    made |= given(factor=asked.factor, width=asked.width, sigma=asked.sigma, steps=asked.steps)
    made |= given(search=asked.search or None)
    drawn = [
        picture(one, {**made, "index": asked.first + i}) for i, one in enumerate(pictures.images(x))
    ]
    return _answer(served, drawn, counted, seconds, notes)


def _edited(model: Model, y: Tensor, asked: EditAsked, limits: Limits) -> Tensor:
    """The results ``(n, c, h, w)``."""
    common: dict[str, Any] = {
        **given(label=asked.label, prompts=asked.prompt, guidance=asked.guidance),
        **given(steps=asked.steps),
        "n": asked.n,
        "seed": asked.seed,
        "first": asked.first,
        "cond": conditions(model, asked.cond, limits),
        "batch": 16,
    }
    if asked.task == "strokes":
        return canvas.any_size(editing.strokes, model, y, **common)
    if asked.task == "vary":
        return canvas.any_size(editing.vary, model, y, **given(sigma=asked.sigma), **common)
    if asked.task == "denoise":
        return canvas.any_size(editing.denoise, model, y, sigma=asked.sigma, **common)
    common["search"] = asked.search
    if asked.mask is not None:
        mask = pictures.uploaded(asked.mask, "the mask", limits.pixels)
        unknown = pictures.tensor(mask, "the mask", 1)[0, 0] > 0
        return canvas.inpaint_picture(model, y, unknown, **common)
    if asked.factor is not None:
        return canvas.upscale_picture(model, y, asked.factor, **common)
    if asked.width is not None:
        return canvas.deblur_picture(model, y, asked.width, **common)
    return canvas.colourise_picture(model, y, **common)


def interpolate(served: Served, asked: InterpolateAsked, limits: Limits, ticket: Ticket) -> Answer:
    """Pictures on the way between those of some seeds; each says at which fraction it is.

    Raises:
        UsageError: the model cannot be asked this.
        Cancelled: nobody waits any more.
        TooSlow: it took too long.
    """
    n = (len(asked.seeds) - 1) * (asked.frames - 1) + 1
    check_cost(served.model, n, asked.steps, limits)
    model, counted = _counted(served.model, ticket)
    with noted() as notes:
        began = time.perf_counter()
        x = editing.interpolate(
            model,
            asked.seeds,
            frames=asked.frames,
            steps=asked.steps,
            label=asked.label,
            prompts=asked.prompt,
            guidance=asked.guidance,
            cond=conditions(model, asked.cond, limits),
            batch=limits.samples,
        ).cpu()
        seconds = time.perf_counter() - began
    ticket.check()
    if not len(images := pictures.images(x)) == len(x):
        raise UsageError("samples of this model have no picture each, so none can be interpolated")
    made = {**origin(served, asked), "seeds": asked.seeds, "frames": asked.frames}
    made |= {"steps": len(model.times(asked.steps)), "verb": "interpolate"}
    made |= counted.facts(seconds)
    drawn = [
        picture(one, {**made, "fraction": round(i / (asked.frames - 1), 4)})
        for i, one in enumerate(images)
    ]
    return _answer(served, drawn, counted, seconds, notes)


def _counted(model: Model, ticket: Ticket) -> tuple[Model, Counted]:
    """The same model, which asks between calls whether to go on."""
    counted = Counted(model.denoiser, ticket.check)
    return Model(counted, model.contract, frontend=model.frontend), counted


def _answer(
    served: Served, drawn: list[Any], counted: Counted, seconds: float, notes: list[str]
) -> Answer:
    return Answer(
        model=served.name, pictures=drawn, calls=counted.count, seconds=seconds, notes=notes
    )
