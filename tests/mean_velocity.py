"""Exact average velocities on paths with straight jumps, also where both times are the same."""

import torch

from fewstep.core import expand
from fewstep.paths import Linear, VarianceExploding
from oracles import D, Gaussian, Oracle

DATA = Gaussian(0.3, 0.7)
STRAIGHT = [Linear(), VarianceExploding()]


class MeanVelocity(Oracle):
    """The flow map's answer x - t u; (V_t - V_s)/(t - s) is written out, so nothing is 0/0.

    Conditions move the data's mean by ``shifts[label]``.
    """

    two_time = True

    def __init__(self, path, data=DATA, shifts=None) -> None:
        super().__init__(path, data)
        self.shifts = shifts
        self.cond_keys = () if shifts is None else ("label",)

    def mean_velocity(self, x, t, s, cond=None):
        alpha = self.path.coefficients(t).alpha
        d_alpha = -1.0 if isinstance(self.path, Linear) else 0.0
        d_power = self.data.std**2 * d_alpha * (2 - t - s) + t + s
        after = (self.data.variance(self.path, s) / self.data.variance(self.path, t)).sqrt()
        rate = d_power / self.data.variance(self.path, t) / (1 + after)
        mean = torch.full((len(x),), self.data.mean, dtype=D)
        if self.shifts is not None:
            mean = mean + torch.tensor(self.shifts, dtype=D)[cond["label"]]
        mean = expand(mean, x)
        return d_alpha * mean + expand(rate, x) * (x - expand(alpha, x) * mean)

    def forward(self, x, t, s=None, cond=None):
        return x - expand(t, x) * self.mean_velocity(x, t, t if s is None else s, cond)
