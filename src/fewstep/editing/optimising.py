r"""Restoration by a search in the space of noise, through a one-step model.

A one-step model maps unit noise $z$ to a picture $G(z)$. The search looks for

$$\min_z \frac{\lVert A G(z) - y \rVert^2}{2 s^2} + \frac{\lVert z - \zeta \rVert^2}{2},
\qquad \zeta \sim \mathcal{N}(0, I).$$

The prior pulls towards the drawn noise $\zeta$ and not towards 0, so that each seed has a picture
of its own. Where $G$ is linear and $s$ is small, the minimum is a sample of the posterior
(randomise-then-optimise, Bardsley et al. 2014). At few calls it can be less biased than algorithm 4
where G is nearly linear; docs/editing.md has measurements, in which it is mostly worse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from fewstep.core import widest
from fewstep.editing.asked import Asked, Part, edited, times_of
from fewstep.editing.loops import Watch, answer
from fewstep.editing.operators import Map, Operator, rows
from fewstep.editing.restoring import refuse_latents
from fewstep.errors import UsageError
from fewstep.model import Model

STEPS = 20
"""Gradient steps unless others are asked for: as costly as 40 network calls."""

RATE = 0.3
"""The first learning rate of Adam; it falls to 0 along half a cosine."""

SIGMA = 0.2
"""The standard deviation of the measurement's noise that the search allows for."""


def optimise(
    model: Model,
    operator: Operator,
    y: Tensor,
    *,
    steps: int = STEPS,
    rate: float = RATE,
    sigma: float = SIGMA,
    times: Sequence[float] | None = None,
    **asked: Unpack[Asked],
) -> Tensor:
    """Pictures that agree with ``y``, by gradient steps on the noise of a one-step model.

    A gradient step is a forward and a backward pass, which cost about two network calls together,
    because no gradient of the weights is taken; the last answer is one call more: ``2 steps + 1``.

    Args:
        model: a consistency model or a flow map that runs in torch.
        operator: see :func:`~fewstep.editing.restore`.
        y: likewise.
        steps: gradient steps, by Adam.
        rate: its first learning rate.
        sigma: the standard deviation of the noise that is allowed for in ``y``, above 0; smaller
            values follow ``y`` more closely and are harder to minimise.
        times: the one time of the model's call, in a list; by default that of its one step.
        **asked: see :class:`~fewstep.editing.Asked`; ``watch`` counts gradient steps.

    Returns:
        As :func:`~fewstep.editing.restore`: the last answer, with the known part put back.

    Raises:
        UsageError: the model is a diffusion model, has no gradient, or what is asked is wrong.
    """
    refuse_latents(model, operator.name)
    if model.contract.sampling.kind == "ode":
        raise UsageError(
            f"one call of this {model.contract.method} model draws no picture, so its noise cannot "
            "be searched; take restore, or a few-step model"
        )
    if steps < 1 or not all(math.isfinite(v) and v > 0 for v in (rate, sigma)):
        raise UsageError(
            f"steps must be at least 1, rate and sigma above 0, got {steps}, {rate} and {sigma}"
        )
    (top, *rest) = times_of(model, 1, times)
    if rest:
        raise UsageError(f"a search of noise goes through one call at one time, got {times}")
    bounds, std = model.contract.data.range, model.contract.sampling.start.std

    def run(part: Part) -> Tensor:
        known, y = rows(operator, part.rows), part.y
        centre = part.noise(0).to(y.device, widest(y.device))
        t = torch.full((len(centre),), top, dtype=centre.dtype, device=centre.device)
        y = y.to(centre)

        def picture(z: Tensor) -> Tensor:
            return answer(part.denoiser, std * z, t, part.cond)

        z = _minimum(picture, known, y, centre, steps, rate, sigma, part.watch)
        with torch.no_grad():
            out = picture(z)
            return known.replace(out if bounds is None else out.clamp(*bounds), y)

    shape = rows(operator, slice(1)).start(y[:1]).shape[1:]
    return edited(model, y, run, shape=shape, draws=1, **asked)


def _minimum(
    picture: Map,
    operator: Operator,
    y: Tensor,
    centre: Tensor,
    steps: int,
    rate: float,
    sigma: float,
    watch: Watch,
) -> Tensor:
    """The noise of the minimum; each sample's path is its own, whatever is in the batch."""
    z = centre.clone().requires_grad_(True)
    adam = torch.optim.Adam([z], lr=rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for i in range(steps):
        with torch.enable_grad():
            out = picture(z)
            if not out.requires_grad:
                raise UsageError(
                    "this model's engine has no gradient, which a search of noise needs; load the "
                    "model with engine eager"
                )
            misfit = operator.residual(out, y).square().sum() / sigma**2
            loss = (misfit + (z - centre).square().sum()) / 2
            (z.grad,) = torch.autograd.grad(loss, z)
        adam.step()
        decay.step()
        watch(i + 1, steps)
    return z.detach()
