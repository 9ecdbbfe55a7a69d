r"""Density ratios by a judge, and the factor of each sample for an f-divergence (f-distill).

Let $q$ be the density of samples and $p$ the target density, $r = p/q$, whose mean over $q$ is 1.
The gradient of $D_f(p \| q) = E_q[f(r)]$ is, with scores $s$,

$$\nabla_\theta D_f = E_q[ h(r)\, (s_q - s_p)\, \partial x / \partial\theta ], \qquad
h(r) = f''(r)\, r^2:$$

that of the reverse KL divergence, where $h = 1$, with each sample's part times $h$. Where $h$ grows
with $r$, regions that samples miss count most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import UsageError, per_sample
from fewstep.paths import Path, Time

Divergence = Literal[
    "reverse-kl", "softened-rkl", "js", "squared-hellinger", "kl", "jeffreys", "neyman"
]

FACTORS: dict[Divergence, Callable[[Tensor], Tensor]] = {
    "reverse-kl": torch.ones_like,
    "softened-rkl": lambda r: 1 / (1 + r),
    "js": lambda r: r / (1 + r),
    "squared-hellinger": torch.sqrt,
    "kl": lambda r: r,
    "jeffreys": lambda r: 1 + r,
    "neyman": lambda r: 1 / r,
}
"""h as a function of r, up to a constant."""


class Factors(nn.Module):
    """Factors h of mean 1 from logits; those of the best judge are log r.

    r is limited, then divided by the mean of its bin of times: the microbatch's own, mixed at
    ``rate`` with those of the steps before. These running means are over all of a step's samples,
    so that processes and accumulation are the same; at a rate of 0 there are none.

    Args:
        divergence: f.
        path: its times are cut into bins.
        limits: of r, both above 0.
        bins: number of bins, of equal width; 0 leaves r as it is.
        rate: share of the means before, in [0, 1).
    """

    level: Tensor
    seen: Tensor

    def __init__(
        self,
        divergence: Divergence,
        path: Path,
        *,
        limits: tuple[float, float],
        bins: int,
        rate: float,
    ) -> None:
        super().__init__()
        if divergence not in FACTORS:
            raise UsageError(f"expected a divergence of {[*FACTORS]}, got {divergence!r}")
        if not (0 < limits[0] < limits[1] and bins >= 0 and 0 <= rate < 1):
            raise UsageError(
                "expected limits of the ratio 0 < low < high, bins >= 0 and 0 <= rate < 1, got "
                f"{limits}, {bins} and {rate}"
            )
        self.divergence: Divergence = divergence
        self.path, self.limits, self.bins, self.rate = path, limits, bins, rate
        self.step = -1
        self.register_buffer("level", torch.ones(bins))
        self.register_buffer("seen", torch.zeros(2, bins), persistent=False)

    def ratio(self, logits: Sequence[Tensor]) -> Tensor:
        """Compute r ``(b,)`` from the mean logit over heads and positions; without gradient."""
        # Half precision has too few digits for what is summed and divided by.
        heads = [v.detach().to(torch.promote_types(v.dtype, torch.float32)) for v in logits]
        logit = torch.stack([per_sample(v) for v in heads]).mean(0)
        return logit.clamp(*map(log, self.limits)).exp()

    def forward(self, r: Tensor, t: Time) -> Tensor:
        """Compute h ``(b,)``, and add the ratios to the running means."""
        if self.bins:
            share = (t - self.path.t_min) / (self.path.t_max - self.path.t_min)
            of = (share * self.bins).long().clamp(0, self.bins - 1)
            inside = F.one_hot(of, self.bins).to(r)
            sums = torch.stack([(inside * r[:, None]).sum(0), inside.sum(0)])
            if self.rate:
                self.seen += sums
            r = r / self._mixed(sums)[of]
        h = FACTORS[self.divergence](r)
        return h / h.mean()

    def _mixed(self, sums: Tensor) -> Tensor:
        """Compute running means from sums and counts; a bin without samples stays as it is."""
        mean, level = sums[0] / sums[1], self.level.to(sums)
        return torch.where(mean.isfinite(), mean.lerp(level, self.rate), level)

    def begin(self, step: int) -> None:
        """Forget the ratios of an earlier step that was skipped before its end."""
        if step != self.step:
            self.step = step
            self.seen.zero_()

    def finish(self) -> None:
        """Update the running means with the ratios of all processes."""
        if not self.rate:
            return
        if dist.is_initialized():
            dist.all_reduce(self.seen)
        self.level.copy_(self._mixed(self.seen))
        self.seen.zero_()
