"""One step of an ODE on any path, from ``t`` to ``s < t``.

Each step is differentiable and keeps the precision of ``x``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from fewstep.core import Cond, expand
from fewstep.models.denoiser import AbstractDenoiser
from fewstep.paths import Event, Time

Step = Callable[[AbstractDenoiser, Event, Time, Time, Cond | None], Event]
"""(denoiser, x_t, t, s, cond) -> x_s."""


def ddim(denoiser: AbstractDenoiser, x: Event, t: Time, s: Time, cond: Cond | None) -> Event:
    """Transport by the denoiser's answer; exact where that answer is constant along the path."""
    return denoiser.path.transport(x, denoiser(x, t, None, cond), t, s)


def euler(denoiser: AbstractDenoiser, x: Event, t: Time, s: Time, cond: Cond | None) -> Event:
    """Euler in the path's own time; the same as DDIM on VE and linear paths."""
    return x + expand(s - t, x) * _velocity(denoiser, x, t, cond)


def heun(denoiser: AbstractDenoiser, x: Event, t: Time, s: Time, cond: Cond | None) -> Event:
    """Trapezoidal rule (Karras et al. 2022, alg. 1); Euler where a sample ends on clean data."""
    d = _velocity(denoiser, x, t, cond)
    h = expand(s - t, x)
    clean = denoiser.path.coefficients(s).sigma == 0
    d_next = _velocity(denoiser, x + h * d, torch.where(clean, t, s), cond)
    return x + h * torch.where(expand(clean, x), d, (d + d_next) / 2)


def dpm_midpoint(
    denoiser: AbstractDenoiser, x: Event, t: Time, s: Time, cond: Cond | None
) -> Event:
    """Midpoint rule, the midpoint on a rho = 3 Karras grid (DPM-Solver-2 of k-diffusion)."""
    middle = ((t ** (1 / 3) + s ** (1 / 3)) / 2) ** 3
    x_middle = x + expand(middle - t, x) * _velocity(denoiser, x, t, cond)
    return x + expand(s - t, x) * _velocity(denoiser, x_middle, middle, cond)


def dpmpp_2s(denoiser: AbstractDenoiser, x: Event, t: Time, s: Time, cond: Cond | None) -> Event:
    """DPM-Solver++(2S) with its midpoint at half the log-SNR (Lu et al. 2022, alg. 1, r = 1/2).

    A DDIM step leads to the midpoint, whose answer then takes the whole step; this is of second
    order. Where the log-SNR is infinite at an end, the step is DDIM's.
    """
    path = denoiser.path
    ends = path.logsnr(t), path.logsnr(s)
    middle = (ends[0] + ends[1]) / 2
    finite = middle.isfinite()
    between = torch.where(finite, path.time((-middle / 2).exp()), t)
    answer = denoiser(x, t, None, cond)
    x_middle = path.transport(x, answer, t, between)
    return path.transport(x, denoiser(x_middle, between, None, cond), t, s)


STEPS: dict[str, Step] = {"ddim": ddim, "euler": euler, "heun": heun, "dpm": dpm_midpoint}


def _velocity(denoiser: AbstractDenoiser, x: Event, t: Time, cond: Cond | None) -> Event:
    return denoiser.path.velocity(x, denoiser(x, t, None, cond), t)
