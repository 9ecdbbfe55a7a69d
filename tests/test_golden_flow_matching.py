"""Paths, their conversions and Euler's rule, of facebookresearch/flow_matching.

Its time runs from noise (0) to data (1): a time is 1 - ours, a derivative by it minus ours.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.models import Denoiser, Flow
from fewstep.paths import CosineVariancePreserving, Linear, Path, Time, Trig, VariancePreserving
from fewstep.solvers import STEPS, ode
from golden_paths import Retimed
from golden_sets import Case, StandIn, check, networks, stand_in

Values = Iterator[tuple[str, Tensor]]


def linear_variance_preserving() -> Path:
    """sqrt(1 - sigma^2), with alpha linear in time: the circle, at the angle whose cosine it is."""

    def clock(t: Time) -> tuple[Time, Time]:
        return (1 - t).acos(), (1 - (1 - t) ** 2).rsqrt()

    return Retimed(0.0, 1.0, Trig(sigma_data=1.0), clock, lambda own: 1 - own.cos())


def polynomial(power: float) -> Path:
    """(1 - t)^n x0 + (1 - (1 - t)^n) noise: the straight path, at the time 1 - (1 - t)^n."""

    def clock(t: Time) -> tuple[Time, Time]:
        return 1 - (1 - t) ** power, power * (1 - t) ** (power - 1)

    return Retimed(0.0, 1.0, Linear(), clock, lambda own: 1 - (1 - own) ** (1 / power))


def path_of(case: Case) -> Path:
    name = case["scheduler"]
    if name == "vp":
        beta_min = case["beta_min"]
        return VariancePreserving(beta_min=beta_min, beta_d=case["beta_max"] - beta_min)
    if name.startswith("poly"):
        return polynomial(case["n"])
    kinds = {
        "condot": Linear,
        "cosine": CosineVariancePreserving,
        "linvp": linear_variance_preserving,
    }
    return kinds[name]()


def schedule(case: Case) -> Values:
    alpha, sigma, d_alpha, d_sigma = path_of(case).coefficients(1 - case.inputs["t"])
    values = torch.stack([alpha, sigma, -d_alpha, -d_sigma])
    (entry,) = case.outputs.values()
    yield case["output"], values if entry.array.shape == values.shape else values.T


def sample(case: Case) -> Values:
    path, t = path_of(case), 1 - case.inputs["t"]
    x0 = case.inputs["x_1"]
    x_t = path.perturb(x0, case.inputs["x_0"], t)
    values = {"x_t": x_t, "dx_t": -path.velocity(x_t, x0, t)}
    for output in case.outputs:
        yield output, values[output]


def converted(case: Case) -> Values:
    path, t = path_of(case), 1 - case.inputs["t"]
    x_t = case.inputs["x_t"]
    x0 = path.x0_from_velocity(x_t, -case.inputs["velocity"], t)
    values = {"v2x1": x0, "v2eps": path.noise(x_t, x0, t)}
    for output in case.outputs:
        yield output, values[output]


class Reversed(torch.nn.Module):
    """A velocity of their time as one of ours."""

    two_time = False

    def __init__(self, net: StandIn) -> None:
        super().__init__()
        self.net, self.cond_keys = net, net.cond_keys

    def forward(self, x, c_noise, s_noise=None, cond=None):
        return -self.net(x, 1 - c_noise, None, cond)


def solved(case: Case) -> Values:
    start, end = 1 - case["t_start"], 1 - case["t_end"]
    net = stand_in(case["nets"]["velocity"], networks().coefficients)
    denoiser = Denoiser(Reversed(net), Flow(path=Linear()))
    steps = round((start - end) / case["step_size"])
    times = torch.linspace(start, end, steps + 1, dtype=torch.float64)
    yield "x", ode(denoiser, case.inputs["x_init"], times, step=STEPS[case["solver"]])


CALLS = {
    "CondOTScheduler": schedule,
    "CosineScheduler": schedule,
    "VPScheduler": schedule,
    "LinearVPScheduler": schedule,
    "PolynomialConvexScheduler": schedule,
    "AffineProbPath.sample": sample,
    "AffineProbPath.velocity_to_epsilon": converted,
    "AffineProbPath.velocity_to_target": converted,
    "ODESolver.sample": solved,
}


def test_golden_flow_matching(record_property) -> None:
    check("flow_matching", CALLS, record_property)
