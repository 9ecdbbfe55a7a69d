"""Inpainting with models of latents: the mask shrinks with the codec, the result is composited."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from fewstep.editing.asked import Asked, edited, times_of
from fewstep.editing.operators import inpaint
from fewstep.editing.restoring import check_eta, replacing
from fewstep.errors import UsageError
from fewstep.model import Model


def inpaint_latents(
    model: Model,
    x: Tensor,
    unknown: Tensor,
    *,
    steps: int | None = None,
    times: Sequence[float] | None = None,
    eta: float | None = None,
    **asked: Unpack[Asked],
) -> Tensor:
    """Fill missing pixels with a model of latents.

    A latent counts as missing where any of its pixels is. Its neighbours were encoded from a
    picture with grey holes, so that the fill may not fit the known pixels as well as that of a
    model of pixels; these are put back into the decoded picture, and are exact.

    Args:
        model: with a codec.
        x: pictures ``(b, c, h, w)`` in [-1, 1], b of 1 or n; sides are multiples of the codec's
            factor.
        unknown: ``(h, w)`` or ``(b, 1, h, w)``, 1 where a pixel is missing and 0 where it is known.
        steps: see :func:`~fewstep.editing.restore`.
        times: likewise.
        eta: likewise.
        **asked: see :class:`~fewstep.editing.Asked`.

    Raises:
        UsageError: the model has no codec, or what is asked does not fit together.
    """
    codec = model.frontend.images
    if codec is None:
        raise UsageError("this model learned pixels; take restore with inpaint(mask)")
    pixels = inpaint(unknown)
    mask = pixels.unknown.float().reshape(-1, 1, *pixels.unknown.shape[-2:])
    small = torch.nn.functional.max_pool2d(mask, codec.factor) > 0
    operator = inpaint(small.to(model.device))
    z = codec.encode(pixels.start(x).to(model.device))
    grid, share = times_of(model, steps, times), check_eta(model, eta)
    run = replacing(model, operator, grid, share)
    out = edited(model, z, run, shape=z.shape[1:], draws=len(grid), **asked)
    return pixels.replace(codec.decode(out).to(x), x)
