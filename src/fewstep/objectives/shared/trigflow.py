"""TrigFlow, where dx/dt = sigma_data F (Lu & Song 2025): F of any denoiser, and tangents."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core import Cond, expand
from fewstep.models import AbstractDenoiser, Denoiser
from fewstep.paths import Event, Time, Trig


def trig_flow(denoiser: AbstractDenoiser, x_t: Event, t: Time, cond: Cond | None = None) -> Event:
    """Compute F = (cos t x - D) / (sigma_data sin t) of any denoiser on a :class:`Trig` path.

    Where the denoiser has a network, its own output is used: the terms that cancel above then
    cancel in the scalars, and F is as exact at t = 0.001 as elsewhere.
    """
    assert isinstance(denoiser.path, Trig)
    scale = denoiser.path.sigma_data * t.sin()
    if not isinstance(denoiser, Denoiser):
        answer = denoiser(x_t, t, None, cond)
        return (expand(t.cos(), x_t) * x_t - answer) / expand(scale, x_t)
    c_skip, c_out, _, _ = denoiser.preconditioning.coefficients(t)
    skip = expand((t.cos() - c_skip) / scale, x_t) * x_t
    return skip - expand(c_out / scale, x_t) * denoiser.raw(x_t, t, None, cond)


def trig_tangent(
    x_t: Event, gap: Event, rate: Event, t: Time, lead: Tensor, r_x: Tensor, r_rate: Tensor
) -> Event:
    r"""Compute cos t df/dt of a consistency function, by pieces that are bounded at both ends.

    $g = -\cos t\, lead\, gap - r_x \cos t \sin t\, x_t - r_{rate}\, rate$; with lead = cos t and
    r = 1 it is the derivative. Methods change the ``(b,)`` factors while they warm up. ``gap`` is
    sigma_data F - dx/dt, ``rate`` sigma_data cos t sin t dF/dt along dx/dt.
    """
    x_gain = r_x * t.cos() * t.sin()
    return -(
        expand(t.cos() * lead, gap) * gap + expand(x_gain, x_t) * x_t + expand(r_rate, rate) * rate
    )


def normalised(g: Event, c: float = 0.1) -> Event:
    """Return g / (|g| + c), with the norm of the whole sample."""
    norm = torch.linalg.vector_norm(g.flatten(1), dim=1)
    return g / expand(norm + c, g)


def clipped(g: Event) -> Event:
    """Limit every element to [-1, 1]."""
    return g.clamp(-1, 1)
