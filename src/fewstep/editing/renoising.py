"""Edits by noise: strokes to pictures, variations of a picture, denoising, noise estimation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from fewstep.core import expand, widest
from fewstep.editing.asked import Asked, Part, edited, level, times_of
from fewstep.editing.loops import answer, noised, replacement
from fewstep.editing.restoring import check_eta
from fewstep.errors import UsageError
from fewstep.model import Model

STROKES = (5.38, 2.24)
"""Noise levels of the two calls from strokes to a picture (Song et al. 2023, appendix D)."""

VARIED = 1.0
"""The noise level of a variation unless another is asked for."""

ODE_STEPS = 18
"""Calls of a diffusion model from a noise level down to data."""


def strokes(
    model: Model,
    x: Tensor,
    *,
    times: Sequence[float] | None = None,
    steps: int | None = None,
    eta: float | None = None,
    **asked: Unpack[Asked],
) -> Tensor:
    """Pictures in the manner of the model that follow a rough one (SDEdit, Meng et al. 2022).

    The rough picture is noised to the first time, and the model draws from there; nothing of it is
    kept exactly. The larger the first time, the freer the result.

    Args:
        model: of pixels or latents; a model with a codec encodes ``x`` and decodes the result.
        x: pictures ``(b, c, h, w)`` in the range of the data, b of 1 or n.
        times: of the calls, descending, in the path's own unit. By default those of the noise
            levels 5.38 and 2.24 of the paper, and of a diffusion model 18 from 5.38 on.
        steps: of a diffusion model, how many calls instead of 18.
        eta: of diffusion models, share of fresh noise in each step; 0 by default.
        **asked: see :class:`~fewstep.editing.Asked`.

    Returns:
        ``(n, c, h, w)`` in the range of the data, in the precision of ``x``.

    Raises:
        UsageError: what is asked contradicts the model, or does not fit together.
    """
    return _drawn(model, x, stroke_times(model, times, steps), eta, asked)


def vary(
    model: Model,
    x: Tensor,
    *,
    sigma: float = VARIED,
    steps: int | None = None,
    eta: float | None = None,
    **asked: Unpack[Asked],
) -> Tensor:
    """Variations of pictures: noise of a level is added, and the model removes it.

    Args:
        model: of pixels or latents.
        x: pictures ``(b, c, h, w)`` in the range of the data, b of 1 or n.
        sigma: the noise level: sigma/alpha of the model's path. Small ones change details, large
            ones everything.
        steps: of a diffusion model, calls from there down, 18 by default; all others make one.
        eta: of diffusion models, share of fresh noise in each step; 0 by default.
        **asked: see :class:`~fewstep.editing.Asked`.

    Returns:
        ``(n, c, h, w)`` in the range of the data, in the precision of ``x``.

    Raises:
        UsageError: what is asked contradicts the model, or does not fit together.
    """
    return _drawn(model, x, varied_times(model, sigma, steps), eta, asked)


def stroke_times(
    model: Model, times: Sequence[float] | None = None, steps: int | None = None
) -> list[float]:
    """The times of :func:`strokes`, of the same arguments."""
    if times is not None and steps is not None:
        raise UsageError("steps and times say the same; give one of them")
    if times is None and _solves(model):
        return _from(model, STROKES[0], steps)
    if steps is not None:
        raise UsageError("steps of strokes are for diffusion models; give others their times")
    return times_of(model, None, [level(model, s) for s in STROKES] if times is None else times)


def varied_times(model: Model, sigma: float, steps: int | None = None) -> list[float]:
    """The times of :func:`vary`, of the same arguments."""
    if _solves(model):
        return _from(model, sigma, steps)
    if steps is not None:
        raise UsageError("steps of vary are for diffusion models; others make one call")
    return times_of(model, None, [level(model, sigma)])


def denoise(
    model: Model, x: Tensor, *, sigma: float | None = None, **asked: Unpack[Asked]
) -> Tensor:
    """Pictures without their Gaussian noise: the model's answer at their noise level, in one call.

    A diffusion model's answer is the mean of all clean pictures that fit, which has the least
    squared error; a consistency model's is one of them, and sharper.

    Args:
        model: of pixels.
        x: noisy pictures ``(b, c, h, w)``; the noise may have left the range of the data.
        sigma: the standard deviation of the noise, in the unit of ``x``; by default the largest
            :func:`estimated_noise` of the pictures.
        **asked: see :class:`~fewstep.editing.Asked`.

    Returns:
        ``(n, c, h, w)`` in the range of the data, in the precision of ``x``.

    Raises:
        UsageError: the model is of latents, or a level is outside of the model's path.
    """
    if model.frontend.codec is not None:
        raise UsageError(
            "this model learned latents, in which the noise of a picture is not Gaussian; denoise "
            "with a model of pixels"
        )
    strength = float(estimated_noise(x).max()) if sigma is None else sigma
    if strength == 0 and sigma is None:
        return x.expand(max(asked.get("n") or 1, len(x)), -1, -1, -1).clone()
    time = level(model, strength)
    (time,) = times_of(model, None, [time])

    def run(part: Part) -> Tensor:
        with torch.no_grad():
            # Without further noise: the picture has its own, and alpha scales both alike.
            wide = part.y.to(widest(part.y.device))
            at = wide.new_full((len(wide),), time)
            alpha = part.denoiser.path.coefficients(at).alpha
            out = answer(part.denoiser, expand(alpha, wide) * wide, at, part.cond)
        part.watch(1, 1)
        return _within(model, out)

    return edited(model, x, run, shape=x.shape[1:], draws=1, **asked)


def estimated_noise(x: Tensor) -> Tensor:
    """The standard deviation of white Gaussian noise in each picture, ``(b,)``.

    It is the median of the absolute diagonal coefficients of the finest level of a wavelet
    transform (Daubechies' db2) over 0.6745 (Donoho & Johnstone 1994), as in scikit-image's
    ``estimate_sigma``. Coefficients that are 0 are left out, because a flat region that was limited
    to the range has lost its noise. Noise in pictures of a few pixels is overestimated by their
    edges.

    Args:
        x: pictures ``(b, c, h, w)`` of at least 4 x 4 pixels.

    Raises:
        UsageError: they are smaller.
    """
    if x.ndim != 4 or min(x.shape[2:]) < 4:
        raise UsageError(f"noise is estimated from 4 x 4 pixels on, got {tuple(x.shape)}")
    root = math.sqrt(3)
    high = torch.tensor([1 - root, root - 3, 3 + root, -1 - root], dtype=torch.float64)
    high = high / high.norm()
    kernel = (high[:, None] * high)[None, None].to(x.device)
    flat = x.double().flatten(0, 1)[:, None]
    details = torch.nn.functional.conv2d(flat, kernel).reshape(len(x), -1).abs()
    medians = [
        one[one > 1e-9].median() if bool((one > 1e-9).any()) else one.new_zeros(())
        for one in details
    ]
    return torch.stack(medians) / 0.6745


def _drawn(
    model: Model, x: Tensor, times: Sequence[float], eta: float | None, asked: Asked
) -> Tensor:
    """Noised to the first time, and drawn from there; through the codec where there is one."""
    # Without a replacement between the steps, fresh noise would only add to their errors.
    codec, share = model.frontend.codec, check_eta(model, eta, 0.0)

    def run(part: Part) -> Tensor:
        with torch.no_grad():
            out = replacement(
                part.denoiser,
                noised(part.denoiser.path, part.y, part.noise(0), times[0]),
                times,
                part.fresh,
                part.cond,
                bounds=model.contract.data.range,
                eta=share,
                watch=part.watch,
            )
        return _within(model, out)

    if codec is None:
        return edited(model, x, run, shape=x.shape[1:], draws=len(times), **asked)
    z = codec.encode(x.to(model.device))
    out = edited(model, z, run, shape=z.shape[1:], draws=len(times), **asked)
    return codec.decode(out).to(x.dtype)


def _within(model: Model, x: Tensor) -> Tensor:
    bounds = model.contract.data.range
    return x if bounds is None else x.clamp(*bounds)


def _solves(model: Model) -> bool:
    return model.contract.sampling.kind == "ode"


def _from(model: Model, sigma: float, steps: int | None) -> list[float]:
    """The times of a diffusion model from a noise level on down."""
    count = ODE_STEPS if steps is None else steps
    if count < 1:
        raise UsageError(f"steps must be at least 1, got {count}")
    return times_of(model, count, None, level(model, sigma))
