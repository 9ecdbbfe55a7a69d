"""Preconditionings, losses and samplers of NVlabs/edm.

Its losses are elementwise, ours a mean over the event, where EDM's training takes the sum. So the
public loss is checked against the event's mean, and against each element with all others masked.
What was computed in float32 there is computed in float64 here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from unittest.mock import patch

import torch
from torch import Tensor

from fewstep.core import expand, per_sample
from fewstep.models import EDM, AbstractDenoiser, Denoiser, NoisePrediction, ScoreMatching
from fewstep.objectives.denoising import Denoising, Draws
from fewstep.objectives.shared.weights import SnrWeight, karras_weight, snr_weight
from fewstep.paths import Event, Path, Time, Trig, VarianceExploding, VariancePreserving
from fewstep.solvers import STEPS, Churn, Step, euler, ode
from fewstep.times import LogNormal, LogUniform, Uniform, karras, log_snr, to_zero, uniform
from golden_paths import Retimed
from golden_sets import (
    Case,
    check,
    closed_form,
    each_element,
    each_loss,
    gradients,
    networks,
    stand_in,
)

Values = Iterator[tuple]

ANY_LEVEL = VarianceExploding(0.0, math.inf)


# Preconditionings, each as a denoiser on VE, where official ones live.


def vp_path(precond: dict) -> VariancePreserving:
    """Without an end: official code goes on past it, ours reads noisier levels at ``t_max``."""
    eps, beta_d, beta_min = (precond[k] for k in ("epsilon_t", "beta_d", "beta_min"))
    return VariancePreserving(eps, math.inf, beta_d, beta_min)


def preconditioned(case: Case, precond: dict) -> Denoiser:
    net = stand_in(case["nets"]["model"], networks().coefficients, case.settings.get("gscale", 1.0))
    match case["preconditioning"]:
        case "EDM":
            return Denoiser(net, EDM(sigma_data=precond["sigma_data"], path=ANY_LEVEL))
        case "VP":
            noise = NoisePrediction(time_scale=precond["M"] - 1, path=vp_path(precond))
            return Denoiser(net, noise).on(ANY_LEVEL)
        case "VE":
            path = VarianceExploding(precond["sigma_min"], precond["sigma_max"])
            return Denoiser(net, ScoreMatching(path=path))
    raise ValueError(f"unknown preconditioning {case['preconditioning']!r}")


def precond(case: Case) -> Values:
    denoiser = preconditioned(case, case.settings)
    yield "D_x", denoiser(case.inputs["x"], case.inputs["sigma"])


# Losses. The laws of the times are asked with the recorded draw in torch's place, in place of
# a generator.


def times_by(law, name: str, draw: Tensor) -> Tensor:
    def recorded(b: int, **_: object) -> Tensor:
        assert b == len(draw)
        return draw.flatten()

    with patch.object(torch, name, recorded):
        return law.draw(VarianceExploding(), len(draw), torch.Generator())


def scored(case: Case, student: Denoiser, law, weight: SnrWeight, t: Tensor) -> Values:
    objective = Denoising(student, times=law, weight=weight)
    x0, draws = case.inputs["images"], Draws(t, case.inputs["eps"])
    yield "loss", each_loss(objective, x0, draws), per_sample
    yield "loss", each_element(objective, x0, draws)
    yield from gradients(case, objective, x0, draws)


def edm_loss(case: Case) -> Values:
    law = LogNormal(case["P_mean"], case["P_std"])
    t = times_by(law, "randn", case.inputs["rnd"])
    student = preconditioned(case, case["precond"])
    yield from scored(case, student, law, karras_weight(case["sigma_data"]), t)


def vp_loss(case: Case) -> Values:
    """There the uniform draw runs from 1 down to epsilon_t."""
    path = vp_path(case.settings)
    law = Uniform(path.t_min, 1.0)
    t = times_by(law, "rand", 1 - case.inputs["rnd"])
    student = preconditioned(case, case["precond"])
    yield from scored(case, student, LogNormal(), snr_weight, path.ratio(t))
    yield from scored(case, student.on(path), law, snr_weight, t)  # the same on its own path


def ve_loss(case: Case) -> Values:
    law = LogUniform(case["sigma_min"], case["sigma_max"])
    t = times_by(law, "rand", case.inputs["rnd"])
    student = preconditioned(case, case["precond"])
    yield from scored(case, student, law, snr_weight, t)


# Samplers.


def denoisers(case: Case, path: Path) -> Iterator[AbstractDenoiser]:
    """D in closed form, and as the library reads its EDM network on ``path``."""
    role = case["nets"]["net"]
    found = networks()
    yield closed_form(role, path)
    net = stand_in(role, found.coefficients)
    yield Denoiser(net, EDM(sigma_data=found.sigma_data, path=ANY_LEVEL)).on(path)


def supported(case: Case, low: float, high: float) -> tuple[float, float]:
    settings = case.settings
    low = max(low, settings.get("net_sigma_min", 0))
    return low, min(high, settings.get("net_sigma_max", math.inf))


def sample(case: Case, path: Path, times: Tensor, step: Step) -> Values:
    latents, noise = case.inputs["latents"], case.inputs.get("noise")
    churn = Churn(case["S_churn"], case["S_min"], case["S_max"], case["S_noise"])
    options = {}
    if noise is None:
        assert churn.amount == 0
    else:
        options = {"churn": churn, "noise": noise.__getitem__}
    start = path.coefficients(times[:1]).sigma
    for denoiser in denoisers(case, path):
        yield "x", ode(denoiser, latents * start, to_zero(times), step=step, **options)


def edm_sampler(case: Case) -> Values:
    low, high = supported(case, case["sigma_min"], case["sigma_max"])
    times = karras(case["num_steps"], low, high, case["rho"])
    path = VarianceExploding(low, high)
    yield from sample(case, path, times, STEPS[case["solver"]])


def ablation_sampler(case: Case) -> Values:
    """Noise levels by ``discretization``, read as times of the path of schedule and scaling."""
    levels, vp = ablation_levels(case)
    path = scheduled(case, vp)
    match case["schedule"], case["scaling"]:
        case "linear", "none":
            path = ANY_LEVEL
        case "vp", "vp":
            path = vp
    step = STEPS[case["solver"]]
    if case["solver"] == "heun" and case["alpha"] != 1:
        step = second_order(case["alpha"])
    yield from sample(case, path, path.time(levels), step)


def ablation_levels(case: Case) -> tuple[Tensor, VariancePreserving]:
    """The grid of noise levels, and the VP path through its ends."""
    n, eps = case["num_steps"], case["epsilon_s"]
    kind = case["discretization"]
    default = VariancePreserving(eps)
    ends = default.ratio(torch.tensor([eps, 1.0], dtype=torch.float64)).tolist()
    low, high = {"vp": ends, "ve": (0.02, 100), "iddpm": (0.002, 81), "edm": (0.002, 80)}[kind]
    low = low if case["sigma_min"] is None else case["sigma_min"]
    high = high if case["sigma_max"] is None else case["sigma_max"]
    low, high = supported(case, low, high)
    integral = {t: math.log1p(level**2) for t, level in ((eps, low), (1, high))}
    beta_d = 2 * (integral[eps] / eps - integral[1]) / (eps - 1)
    vp = VariancePreserving(eps, beta_d=beta_d, beta_min=integral[1] - beta_d / 2)
    match kind:
        case "vp":
            return vp.ratio(uniform(n, eps, 1.0)), vp
        case "ve":
            return log_snr(n, VarianceExploding(low, high)), vp
        case "edm":
            return karras(n, low, high, case["rho"]), vp
    u = iddpm_levels(case["M"], case["C_1"], case["C_2"])
    u = u[(u >= low) & (u <= high)]
    picked = ((len(u) - 1) / (n - 1) * torch.arange(n, dtype=torch.float64)).round().long()
    return u[picked], vp


def iddpm_levels(m: int, c_1: float, c_2: float) -> Tensor:
    """1 + u_{j-1}^2 = (1 + u_j^2) / max(abar_{j-1} / abar_j, C_1) with u_M = 0; descending.

    There j is an integer tensor, so that abar and its ratios are float32; the rest is float64.
    """
    j = torch.arange(m + 1, dtype=torch.float32)
    abar = (math.pi / 2 * j / m / (c_2 + 1)).sin() ** 2
    steps = (abar[:-1] / abar[1:]).clamp(min=c_1).double()
    growth = (1 / steps).flip(0).cumprod(0).flip(0)
    return torch.cat([(growth - 1).sqrt(), torch.zeros(1, dtype=torch.float64)])


def scheduled(case: Case, vp: VariancePreserving) -> Path:
    """sigma / alpha by the case's schedule; alpha is 1, or keeps alpha^2 + sigma^2 = 1."""
    schedule, scaled = case["schedule"], case["scaling"] == "vp"

    def level(t: Time) -> tuple[Time, Time]:
        if schedule == "linear":
            return t, torch.ones_like(t)
        if schedule == "ve":
            return t.sqrt(), 0.5 / t.sqrt()
        alpha, sigma, d_alpha, d_sigma = vp.coefficients(t)
        return sigma / alpha, (d_sigma * alpha - sigma * d_alpha) / alpha**2

    def clock(t: Time) -> tuple[Time, Time]:
        ratio, rate = level(t)
        return (ratio.atan(), rate / (1 + ratio**2)) if scaled else (ratio, rate)

    def back(own: Time) -> Time:
        ratio = own.tan() if scaled else own
        return {"linear": ratio, "ve": ratio**2, "vp": vp.time(ratio)}[schedule]

    return Retimed(0.0, math.inf, Trig(sigma_data=1.0) if scaled else ANY_LEVEL, clock, back)


def second_order(alpha: float) -> Step:
    """The family with its second slope at ``alpha`` of the step; Heun's method is alpha = 1."""

    def step(denoiser: AbstractDenoiser, x: Event, t: Time, s: Time, cond=None) -> Event:
        if float(denoiser.path.coefficients(s[:1]).sigma) == 0:
            return euler(denoiser, x, t, s, cond)
        middle = t + alpha * (s - t)
        whole = euler(denoiser, x, t, s, cond) - x
        x_middle = x + alpha * whole
        slope = denoiser.path.velocity(x_middle, denoiser(x_middle, middle), middle)
        second = expand(s - t, x) * slope
        return x + (1 - 1 / (2 * alpha)) * whole + second / (2 * alpha)

    return step


CALLS = {
    "EDMPrecond": precond,
    "VPPrecond": precond,
    "VEPrecond": precond,
    "EDMLoss": edm_loss,
    "VPLoss": vp_loss,
    "VELoss": ve_loss,
    "edm_sampler": edm_sampler,
    "ablation_sampler": ablation_sampler,
}


def test_golden_edm(record_property) -> None:
    check("edm", CALLS, record_property)
