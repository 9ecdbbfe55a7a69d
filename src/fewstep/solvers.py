"""The loops that sample: many steps of an ODE or SDE on any path, or few steps of a few-step model.

Samplers take the start ``x`` ``(b, *event)`` and a descending grid ``times`` ``(n,)`` that ends
where the sample is wanted (0 for clean data), and keep the state in float64 where the device has
it, as EDM's code does. Fresh noise comes from ``noise(i)``, the unit noise of step ``i``,
so that a caller decides where it comes from. After each step ``watch`` is called with the time that
the step went to and the state there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.core import Cond, expand, widest
from fewstep.models.denoiser import AbstractDenoiser
from fewstep.paths import Event, Path, Time, VarianceExploding
from fewstep.steps import STEPS as STEPS
from fewstep.steps import Step, euler, heun
from fewstep.steps import ddim as ddim
from fewstep.steps import dpm_midpoint as dpm_midpoint

Noise = Callable[[int], Tensor]
"""Unit noise of a step, shaped as the sample."""

Watch = Callable[[Time, Event], None]
"""(t, x) of the samples after a step."""


def unwatched(t: Time, x: Event) -> None:
    """Watch nothing."""


# Loops of many steps.


@dataclass(frozen=True)
class Churn:
    """EDM's stochasticity (Karras et al. 2022, alg. 2): noise added before each step.

    Only on VE, where time is the noise level.
    """

    amount: float = 0.0
    t_min: float = 0.0
    t_max: float = math.inf
    noise_std: float = 1.0

    def raised(self, t: float, steps: int) -> float:
        """The time after the noise of one of ``steps`` steps is added at ``t``."""
        inside = self.t_min <= t <= self.t_max
        return t * (1 + (min(self.amount / steps, math.sqrt(2) - 1) if inside else 0.0))


def ode(
    denoiser: AbstractDenoiser,
    x: Event,
    times: Tensor,
    cond: Cond | None = None,
    *,
    step: Step = heun,
    churn: Churn | None = None,
    noise: Noise | None = None,
    watch: Watch = unwatched,
) -> Event:
    """Integrate the probability-flow ODE down ``times``.

    With :class:`Churn`, ``noise`` is asked at every step, also where nothing is added.
    """
    if churn is not None and not isinstance(denoiser.path, VarianceExploding):
        raise TypeError(
            f"churn is defined on VarianceExploding, got {type(denoiser.path).__name__}"
        )
    if (churn is None) != (noise is None):
        raise TypeError("churn needs noise, and noise is used by churn only; give both or neither")
    x = x.to(widest(x.device))
    for i, (t, s) in enumerate(pairwise(times.tolist())):
        if churn is not None and noise is not None:
            raised = churn.raised(t, len(times) - 1)
            x = x + math.sqrt(raised**2 - t**2) * churn.noise_std * noise(i).to(x)
            t = raised
        t_b, s_b = _at(t, x), _at(s, x)
        # Heun's corrector has no slope at clean data, so the last step is Euler's, at one call.
        clean = step is heun and float(denoiser.path.coefficients(s_b[:1]).sigma) == 0
        x = (euler if clean else step)(denoiser, x, t_b, s_b, cond)
        watch(s_b, x)
    return x


def dpmpp_2m(
    denoiser: AbstractDenoiser,
    x: Event,
    times: Tensor,
    cond: Cond | None = None,
    *,
    watch: Watch = unwatched,
) -> Event:
    """DPM-Solver++(2M) (Lu et al. 2022, alg. 2): one call a step, second order by the last answer.

    The first step, and a last one to clean data, are DDIM's.
    """
    path = denoiser.path
    x = x.to(widest(x.device))
    before: tuple[Tensor, Tensor] | None = None
    for t, s in _pairs(times, x):
        x0 = denoiser(x, t, None, cond)
        step_logsnr = (path.logsnr(s) - path.logsnr(t)) / 2
        extrapolated = x0
        if before is not None and bool(step_logsnr.isfinite().all()):
            ratio = before[0] / step_logsnr
            extrapolated = x0 + expand(1 / (2 * ratio), x) * (x0 - before[1])
        x = path.transport(x, extrapolated, t, s)
        before = (step_logsnr, x0)
        watch(s, x)
    return x


def stochastic_ddim(
    denoiser: AbstractDenoiser,
    x: Event,
    times: Tensor,
    noise: Noise,
    cond: Cond | None = None,
    *,
    eta: float = 1.0,
    watch: Watch = unwatched,
) -> Event:
    """DDIM with noise (Song et al. 2020, eq. 16): eta = 0 is DDIM, eta = 1 ancestral sampling.

    On VE, eta = 1 is k-diffusion's Euler ancestral sampler; ``noise`` is asked at every step.
    """
    path = denoiser.path
    x = x.to(widest(x.device))
    for i, (t, s) in enumerate(_pairs(times, x)):
        x = ancestral_step(path, x, denoiser(x, t, None, cond), t, s, noise(i).to(x), eta)
        watch(s, x)
    return x


def ancestral_step(
    path: Path, x: Event, x0: Event, t: Time, s: Time, noise: Event, eta: float
) -> Event:
    """From ``x`` at ``t`` to ``s``, with ``x0`` for its clean data and a share of fresh noise."""
    down, up = ancestral_std(path, t, s, eta)
    alpha = path.coefficients(s).alpha
    kept = expand(alpha, x) * x0 + expand(down, x) * path.noise(x, x0, t)
    return kept + expand(up, x) * noise


def ancestral_std(path: Path, t: Time, s: Time, eta: float = 1.0) -> tuple[Time, Time]:
    """Standard deviations of the kept and of the fresh noise in a step from ``t`` to ``s``."""
    alpha_t, sigma_t, _, _ = path.coefficients(t)
    alpha_s, sigma_s, _, _ = path.coefficients(s)
    posterior = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2
    up = eta * sigma_s / sigma_t * posterior.clamp(min=0).sqrt()
    return (sigma_s**2 - up**2).clamp(min=0).sqrt(), up


# Loops of few steps. ``times`` holds the times at which the model is called, and no end. As plain
# numbers they are constants of an exported graph.

Times = Sequence[float] | Tensor


def one_step(denoiser: AbstractDenoiser, x: Event, times: Times, cond: Cond | None = None) -> Event:
    """The model's answer at ``times[0]``: f(x, t), or a two-time model's jump to ``t_min``."""
    return _answer(denoiser, x, float(times[0]), cond)


def multistep(
    denoiser: AbstractDenoiser,
    x: Event,
    times: Times,
    noise: Noise,
    cond: Cond | None = None,
    *,
    watch: Watch = unwatched,
) -> Event:
    """Answer, noise again to the next time, answer (Song et al. 2023, alg. 1).

    The answer is a sample at ``t_min``: see :meth:`Path.renoise`. ``noise(i)`` precedes call i + 1.
    """
    path = denoiser.path
    x = x.to(widest(x.device))
    out = one_step(denoiser, x, times, cond)
    for i, t in enumerate(_floats(times)[1:]):
        later = _at(t, x)
        x = path.renoise(out, noise(i).to(x), later)
        watch(later, x)
        out = _answer(denoiser, x, t, cond)
    watch(_at(path.t_min, out), out)
    return out


def deterministic(
    denoiser: AbstractDenoiser,
    x: Event,
    times: Times,
    cond: Cond | None = None,
    *,
    watch: Watch = unwatched,
) -> Event:
    """Jump from each time to the next, and from the last to ``t_min``; no fresh noise."""
    x = x.to(widest(x.device))
    for t, s in _pairs([*_floats(times), denoiser.path.t_min], x):
        x = denoiser.jump(x, t, s, cond)
        watch(s, x)
    return x


def gamma_sampling(
    denoiser: AbstractDenoiser,
    x: Event,
    times: Times,
    noise: Noise,
    cond: Cond | None = None,
    *,
    gamma: float,
    watch: Watch = unwatched,
) -> Event:
    """Jump below the next time, noise up to it; at last jump to ``t_min`` (Kim et al. 2024).

    Below means sqrt(1 - gamma^2) of the way up from ``t_min``, in the path's own time: gamma = 0 is
    :func:`deterministic`, gamma = 1 :func:`multistep`. ``noise(i)`` precedes call i + 1.
    """
    x = x.to(widest(x.device))
    end = _at(denoiser.path.t_min, x)
    for i, (t, later) in enumerate(_pairs(times, x)):
        # lerp is exact at both ends: at gamma 0 rounding would leave a little noise.
        s = torch.lerp(later, end, 1 - math.sqrt(1 - gamma**2))
        x = denoiser.jump(x, t, s, cond)
        x = denoiser.path.renoise(x, noise(i).to(x), later, s)
        watch(later, x)
    x = denoiser.jump(x, _at(float(times[-1]), x), end, cond)
    watch(end, x)
    return x


def _answer(denoiser: AbstractDenoiser, x: Event, t: float, cond: Cond | None) -> Event:
    end = _at(denoiser.path.t_min, x)
    return (denoiser.jump if denoiser.two_time else denoiser)(x, _at(t, x), end, cond)


def _at(t: float, x: Tensor) -> Tensor:
    # A length is a plain number, which an exported graph would fix; a shape stays free.
    return torch.full((x.shape[0],), t, dtype=widest(x.device), device=x.device)


def _floats(times: Times) -> Sequence[float]:
    return times.tolist() if isinstance(times, Tensor) else times


def _pairs(times: Times, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return ((_at(t, x), _at(s, x)) for t, s in pairwise(_floats(times)))
