"""Pictures of any size for a model of one size: padded where smaller, never stretched.

Larger pictures stay as they are, because the model sees them in tiles (``tiles.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fewstep.editing.latent import inpaint_latents
from fewstep.editing.operators import (
    SMALLEST_KEPT,
    Operator,
    colourise,
    deblur,
    enlarged,
    inpaint,
    upscale,
)
from fewstep.editing.optimising import optimise
from fewstep.editing.restoring import restore
from fewstep.errors import UsageError
from fewstep.model import Model

ROUNDS = 100
"""How often range and agreement are imposed in turn."""

Sides = tuple[int, int, int, int]
"""Pixels that were added on the left, on the right, at the top and at the bottom."""


def inpaint_picture(
    model: Model, x: Tensor, unknown: Tensor, *, search: bool = False, **asked: Any
) -> Tensor:
    """Fill the missing pixels of a picture of any size, with a model of pixels or of latents.

    What is padded counts as missing, so that the model draws it, too.

    Args:
        model: of images.
        x: the picture, ``(1, c, h, w)`` in [-1, 1].
        unknown: ``(h, w)``, 1 where a pixel is missing.
        search: by :func:`~fewstep.editing.optimise` instead of
            :func:`~fewstep.editing.restore`.
        **asked: the other arguments of that function.

    Returns:
        ``(n, c, h, w)``; known pixels are equal to the bit.

    Raises:
        UsageError: the mask has another size, or all or none of the pixels are missing.
    """
    if unknown.shape != x.shape[2:]:
        (height, width), (rows, columns) = x.shape[2:], unknown.shape
        raise UsageError(
            f"the mask has {columns} x {rows} pixels and the picture {width} x {height}; they must "
            "be of one size"
        )
    missing = inpaint(unknown).unknown
    if not bool(missing.any()):
        raise UsageError("the mask is empty: no pixel is marked as missing, so nothing is drawn")
    if bool(missing.all()):
        raise UsageError(
            "the mask covers the whole picture: nothing is known of it; fewstep sample draws "
            "pictures from nothing"
        )
    canvas, sides = padded(model, x)
    mask = pad(missing, sides, value=True)
    if model.frontend.codec is not None:
        if search:
            raise UsageError("the search of noise is for models of pixels; leave it out")
        return cut(inpaint_latents(model, canvas, mask, **asked), sides)
    return cut(_by(search)(model, inpaint(mask), canvas, **asked), sides)


def colourise_picture(model: Model, x: Tensor, *, search: bool = False, **asked: Any) -> Tensor:
    """Colour a picture ``(1, 3, h, w)`` of any size, of which the luminance is read only.

    Arguments, result and errors are those of :func:`inpaint_picture`.
    """
    operator = colourise()
    operator.start(x)  # refuses grey pictures in words of colour
    canvas, sides = padded(model, x)
    return cut(_run(model, operator, canvas, search, asked), sides)


def deblur_picture(
    model: Model,
    x: Tensor,
    width: float,
    smallest: float = SMALLEST_KEPT,
    *,
    search: bool = False,
    **asked: Any,
) -> Tensor:
    """Sharpen a picture of any size that a circular Gaussian blur of that width has blurred.

    The other arguments are those of :func:`fewstep.editing.deblur` and :func:`inpaint_picture`.
    """
    canvas, sides = padded(model, x)
    operator = deblur(width, canvas.shape, smallest)
    return cut(_run(model, operator, canvas, search, asked), sides)


def upscale_picture(
    model: Model, small: Tensor, factor: int, *, search: bool = False, **asked: Any
) -> Tensor:
    """Enlarge a picture ``(1, c, h, w)`` of any size by a whole factor.

    Each pixel becomes ``factor`` x ``factor`` pixels whose mean is its value. Where the result is
    smaller than the model's pictures, it is padded meanwhile.

    Returns:
        ``(n, c, factor h, factor w)``.
    """
    operator = upscale(factor)
    _, *own = size_of(model)
    needed = [-(-side // factor) for side in own]
    wide, sides = _fitted(small, needed)
    out = _run(model, operator, enlarged(wide, factor), search, asked)
    return cut(out, tuple(factor * side for side in sides))  # pyright: ignore[reportArgumentType]


def any_size(edit: Callable[..., Tensor], model: Model, x: Tensor, **asked: Any) -> Tensor:
    """``edit(model, x, ...)`` of a picture of any size: of strokes, vary and denoise."""
    canvas, sides = padded(model, x)
    return cut(edit(model, canvas, **asked), sides)


def settled(operator: Operator, x: Tensor, y: Tensor, bounds: tuple[float, float]) -> Tensor:
    """A picture that agrees with ``y``, and is within the range where the two do not contradict.

    The two are imposed in turn (projections onto convex sets), agreement last.
    """
    for _ in range(ROUNDS):
        x = operator.replace(x.clamp(*bounds), y.to(x))
    return x


def padded(model: Model, x: Tensor) -> tuple[Tensor, Sides]:
    """A picture as large as the model's at least, and what was added; its edges are repeated.

    Of a model of latents the sides become multiples of its codec's factor, too.

    Raises:
        UsageError: the model is not of images, or of another number of channels.
    """
    channels, *own = size_of(model)
    if x.ndim != 4 or x.shape[1] != channels:
        raise UsageError(
            f"this model draws pictures of {channels} channel(s), got a batch of shape "
            f"{tuple(x.shape)}"
        )
    codec = model.frontend.images
    factor = 1 if codec is None else codec.factor
    needed = [
        max(side, -(-size // factor) * factor) for side, size in zip(own, x.shape[2:], strict=True)
    ]
    return _fitted(x, needed)


def cut(x: Tensor, sides: Sides) -> Tensor:
    """The picture without what was added."""
    left, right, top, bottom = sides
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _run(
    model: Model, operator: Operator, y: Tensor, search: bool, asked: dict[str, Any]
) -> Tensor:
    out = _by(search)(model, operator, y, **asked)
    return settled(operator, out, y, model.contract.data.range or (-1.0, 1.0))


def _fitted(x: Tensor, needed: list[int]) -> tuple[Tensor, Sides]:
    lacks = [max(0, side - size) for side, size in zip(needed, x.shape[2:], strict=True)]
    (above, beside) = lacks
    sides = (beside // 2, beside - beside // 2, above // 2, above - above // 2)
    return pad(x, sides, mode="replicate"), sides


def size_of(model: Model) -> tuple[int, int, int]:
    """Channels, height and width of a model's images, decoded where it learned latents.

    Raises:
        UsageError: the model is of something else.
    """
    shape = model.shape
    if len(shape) != 3 or shape[0] not in {1, 3} or None in shape:
        raise UsageError(
            f"this model's samples have the shape {shape}, and pictures can be edited by models "
            "of images only"
        )
    channels, height, width = (int(size or 0) for size in shape)
    return channels, height, width


def _by(search: bool) -> Callable[..., Tensor]:
    return optimise if search else restore


def binary(mask: Tensor) -> Tensor:
    """Booleans of a mask's bytes: 255 is missing, 0 is known.

    Raises:
        UsageError: some are neither.
    """
    soft = int(((mask != 0) & (mask != 255)).sum())
    if soft:
        raise UsageError(
            f"a mask is black where a pixel is kept and white where it is drawn, and {soft} of its "
            "pixels are neither; save it without soft edges, as a PNG"
        )
    return mask == torch.tensor(255, dtype=mask.dtype)
