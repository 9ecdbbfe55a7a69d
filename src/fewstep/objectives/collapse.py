"""What a collapse shows in: statistics of generated samples, and a critic that is left behind."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.core import Batch
from fewstep.paths import Event

CHANNELS = 4
"""Of so many, at most, statistics are logged one by one."""


@torch.no_grad()
def statistics(x: Event, batch: Batch) -> dict[str, Tensor]:
    """What a collapse shows in: how bright generated samples are, how much they vary.

    ``brightness`` is their mean less the data's; ``spread`` the standard deviation over samples,
    as a share of the data's. Then mean and standard deviation of each channel. All of them are of
    what the mask leaves.
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
    found = {
        "brightness": ((x - batch.x0) * there).sum() / there.sum(),
        "spread": over.mean() / wanted.mean().clamp(min=1e-12),
    }
    for i in range(min(len(means), CHANNELS)):
        found |= {f"mean/{i}": means[i], f"std/{i}": stds[i]}
    return found


@torch.no_grad()
def lag(x: Event, real: Event, fake: Event, mask: Tensor | None = None) -> Tensor:
    """Correlation, in [-1, 1], of what ``fake`` misses, x - fake, with real - fake.

    The best denoiser of generated samples misses nothing that a function of what it saw predicts,
    so this is 0 but for chance; above 0 it should have stayed nearer to the teacher.
    """
    there = 1 if mask is None else mask
    missed, gap = (x - fake) * there, (real - fake) * there
    return (missed * gap).sum() / (missed.norm() * gap.norm()).clamp(min=1e-12)
