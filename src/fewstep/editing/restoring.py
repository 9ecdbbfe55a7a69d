"""Zero-shot restoration: what is known of a picture stays, the model draws the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from torch import Tensor

from fewstep.editing.asked import Asked, Part, edited, times_of
from fewstep.editing.loops import noised, replacement
from fewstep.editing.operators import Operator, rows
from fewstep.errors import UsageError
from fewstep.model import Model

ETA = 0.85
"""The share of fresh noise in the steps of a diffusion model, as DDNM has it (Wang et al. 2023)."""


def restore(
    model: Model,
    operator: Operator,
    y: Tensor,
    *,
    steps: int | None = None,
    times: Sequence[float] | None = None,
    eta: float | None = None,
    **asked: Unpack[Asked],
) -> Tensor:
    """Pictures that agree with ``y`` exactly, by algorithm 4 of Song et al. (2023, appendix D).

    The algorithm starts from the known part under the noise of the first time, and after every call
    puts the known part back. It is biased towards pictures that the model would draw without
    knowing ``y``, the more so the fewer the calls: see docs/editing.md, and
    :func:`fewstep.editing.optimise`, whose bias is another.

    Args:
        model: of pixels, without a codec; see :func:`fewstep.editing.inpaint_latents` for others.
        operator: :func:`~fewstep.editing.inpaint`, :func:`~fewstep.editing.colourise`,
            :func:`~fewstep.editing.upscale`, :func:`~fewstep.editing.deblur`, or your own
            :class:`~fewstep.editing.Linear` or :class:`~fewstep.editing.Orthogonal`.
        y: the reference or the measurement of the operator, values in the range of the data;
            ``(b, ...)`` with b of 1 or n. Pictures larger than the model's are made in tiles.
        steps: network calls; 40 by default (the times of the model's own rule, which is a Karras
            grid for most), or the most that a model is made for.
        times: the times of the calls instead, descending, in the path's own unit.
        eta: of diffusion models, share of fresh noise in each step, in [0, 1]; 0.85 by default.
        **asked: see :class:`~fewstep.editing.Asked`.

    Returns:
        ``(n, *shape)`` on the model's device, in the precision of ``y``. It agrees with ``y``: to
        the bit in the basis of pixels, to rounding in others. For this it is not limited to the
        data's range, which it leaves by a little where the two contradict.

    Raises:
        UsageError: what is asked contradicts the model, or does not fit together.
    """
    refuse_latents(model, operator.name)
    grid = times_of(model, steps, times)
    share = check_eta(model, eta)
    run = replacing(model, operator, grid, share)
    shape = rows(operator, slice(1)).start(y[:1]).shape[1:]
    return edited(model, y, run, shape=shape, draws=len(grid), **asked)


def replacing(
    model: Model, operator: Operator, grid: Sequence[float], share: float | None
) -> Callable[[Part], Tensor]:
    """What makes the results of a batch by algorithm 4, in the space that the model learned.

    Args:
        model: whose range of values bounds the answers.
        operator: of all results.
        grid: the times of the calls.
        share: see :func:`check_eta`.
    """

    def run(part: Part) -> Tensor:
        known = rows(operator, part.rows)
        with torch.no_grad():
            return replacement(
                part.denoiser,
                noised(part.denoiser.path, known.start(part.y), part.noise(0), grid[0]),
                grid,
                part.fresh,
                part.cond,
                operator=known,
                y=part.y,
                bounds=model.contract.data.range,
                eta=share,
                watch=part.watch,
            )

    return run


def check_eta(model: Model, eta: float | None, usual: float = ETA) -> float | None:
    """The share of fresh noise of a diffusion model; None for all others.

    Raises:
        UsageError: the model is no diffusion model, or the share is outside of [0, 1].
    """
    if model.contract.sampling.kind != "ode":
        if eta is not None:
            raise UsageError(
                f"eta belongs to diffusion models, and this {model.contract.method} model's "
                f"answers are noised anew, got eta={eta}; leave it out"
            )
        return None
    if eta is not None and not (math.isfinite(eta) and 0 <= eta <= 1):
        raise UsageError(f"eta must be in [0, 1], got {eta}")
    return usual if eta is None else eta


def refuse_latents(model: Model, name: str) -> None:
    """Refuse a model of latents, where an operator on pixels would mean nothing.

    Raises:
        UsageError: the model has a codec.
    """
    if model.frontend.codec is not None:
        raise UsageError(
            f"this model learned latents, in which {name} is no linear operator; models of latents "
            "can inpaint (inpaint_latents), vary, and read strokes"
        )
