"""Logs that show a collapse: statistics of generated samples, and a critic that lags behind."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core import Batch
from fewstep.paths import Event

CHANNELS = 4
"""The largest number of channels whose statistics are logged one by one."""


@torch.no_grad()
def statistics(x: Event, batch: Batch) -> dict[str, Tensor]:
    """Compare generated samples with the data, within the mask: their brightness and their spread.

    ``brightness`` is the mean of the samples less that of the data, and ``spread`` the standard
    deviation over samples as a share of the data's. ``mean/i`` and ``std/i`` are those of channel
    i.
    """
    there = torch.ones_like(batch.x0)
    if batch.mask is not None:
        there = batch.mask.to(x).expand_as(x)

    def moments(v: Event, *axes: int) -> tuple[Tensor, Tensor]:
        count = there.sum(axes, keepdim=True).clamp(min=1)
        mean = (v * there).sum(axes, keepdim=True) / count
        variance = ((v - mean).square() * there).sum(axes, keepdim=True) / count
        return mean.flatten(), variance.sqrt().flatten()

    (means, stds), (_, over), (_, wanted) = (
        moments(x, *(i for i in range(x.ndim) if i != 1)),
        moments(x, 0),
        moments(batch.x0, 0),
    )
    logs = {
        "brightness": ((x - batch.x0) * there).sum() / there.sum(),
        "spread": over.mean() / wanted.mean().clamp(min=1e-12),
    }
    for i in range(min(len(means), CHANNELS)):
        logs |= {f"mean/{i}": means[i], f"std/{i}": stds[i]}
    return logs


@torch.no_grad()
def lag(x: Event, real: Event, fake: Event, mask: Tensor | None = None) -> Tensor:
    """Correlate, in [-1, 1], the error of ``fake``, x - fake, with real - fake.

    No function of the noised sample predicts the error of the best denoiser of generated samples,
    so the correlation is then 0 but for chance. Above 0, ``fake`` should have stayed nearer to the
    teacher.
    """
    there = 1 if mask is None else mask
    missed, gap = (x - fake) * there, (real - fake) * there
    return (missed * gap).sum() / (missed.norm() * gap.norm()).clamp(min=1e-12)
