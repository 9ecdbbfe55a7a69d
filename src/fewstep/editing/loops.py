r"""The loop of zero-shot editing (Song et al. 2023, appendix D, algorithm 4), on any path.

Each call's answer is limited to the data's range, then made to agree with what is known, then
noised to the next time: on VE by $\sqrt{t^2 - t_{min}^2}$, on any path by :meth:`Path.renoise`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.core import Cond, widest
from fewstep.editing.operators import Operator
from fewstep.models import AbstractDenoiser
from fewstep.paths import Event, Path, Time
from fewstep.solvers import Noise, ancestral_step

Watch = Callable[[int, int], object]
"""(calls done, calls in all) of a batch, after each call; what it raises ends the edit."""


def unwatched(done: int, total: int) -> None:
    """Watch nothing."""


def replacement(
    denoiser: AbstractDenoiser,
    x: Event,
    times: Sequence[float],
    noise: Noise,
    cond: Cond | None = None,
    *,
    operator: Operator | None = None,
    y: Tensor | None = None,
    bounds: tuple[float, float] | None = None,
    eta: float | None = None,
    watch: Watch = unwatched,
) -> Event:
    """Algorithm 4 from a given start.

    Args:
        denoiser: a consistency model, a flow map (which jumps to ``t_min``), or a diffusion model
            (whose answers are estimates of clean data).
        x: the start, ``(b, *event)``, a noisy picture at ``times[0]``.
        times: of the calls, descending, in the path's own unit.
        noise: ``noise(i)`` is the unit noise before call ``i + 1``.
        cond: conditions of the denoiser.
        operator: what is known; None knows nothing, which makes this plain sampling or SDEdit.
        y: its reference or measurement.
        bounds: the range to which answers are limited *before* the replacement.
        eta: None noises each answer anew. A number in [0, 1] is for diffusion models: a DDIM step
            from the replaced answer with that share of fresh noise (Wang et al. 2023, DDNM).
        watch: is called after each call of the denoiser.

    Returns:
        A picture in the widest precision, that agrees with ``y``: it may therefore leave the range
        by a little.
    """
    path = denoiser.path
    x = x.to(widest(x.device))
    out = x
    for i, time in enumerate(times):
        t = _at(time, x)
        if i and eta is None:
            x = path.renoise(out, noise(i - 1).to(x), t)
        elif i and eta is not None:
            before = _at(times[i - 1], x)
            x = ancestral_step(path, x, out, before, t, noise(i - 1).to(x), eta)
        out = answer(denoiser, x, t, cond)
        out = out if bounds is None else out.clamp(*bounds)
        if operator is not None and y is not None:
            out = operator.replace(out, y.to(out))
        watch(i + 1, len(times))
    return out


def answer(denoiser: AbstractDenoiser, x: Event, t: Time, cond: Cond | None) -> Event:
    """The model's picture of ``x``: f(x, t), or a two-time model's jump to ``t_min``."""
    end = torch.full_like(t, denoiser.path.t_min)
    return (denoiser.jump if denoiser.two_time else denoiser)(x, t, end, cond)


def noised(path: Path, x0: Event, noise: Event, t: float) -> Event:
    """A clean picture with noise of time ``t``, in the widest precision."""
    x0 = x0.to(widest(x0.device))
    return path.perturb(x0, noise.to(x0), _at(t, x0))


def _at(t: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), t, dtype=widest(x.device), device=x.device)
