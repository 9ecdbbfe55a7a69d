"""Gradients of distribution matching (Yin et al. 2024): down the KL divergence from a teacher."""

from __future__ import annotations

from torch import Tensor

from fewstep.core import expand, per_sample
from fewstep.paths import Event


def matching_gradient(
    x: Event, real: Event, fake: Event, mask: Tensor | None = None, floor: float = 0.0
) -> Event:
    """Compute (fake - real) / mean|x - real| for each sample, 0 where not finite; without gradient.

    Args:
        x: generated samples, clean.
        real: the teacher's answers to them, noised; with guidance, if the teacher is guided.
        fake: the answers of a denoiser that trains on generated samples.
        mask: of ragged data, broadcastable to ``x``.
        floor: smallest value of the mean, 0 or more.
    """
    x, real, fake = x.detach(), real.detach(), fake.detach()
    size = per_sample((x - real).abs(), mask).clamp(min=floor)
    return ((fake - real) / expand(size, x)).nan_to_num(0.0, 0.0, 0.0)


def surrogate(x: Event, gradient: Event, mask: Tensor | None = None) -> Tensor:
    """Compute half the mean square of x - sg(x - gradient), ``(b,)``: its gradient is this / d."""
    return per_sample((x - (x - gradient).detach()) ** 2, mask) / 2
