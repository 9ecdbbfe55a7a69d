"""Samplers of openai/consistency_models."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.models import AbstractDenoiser, Clamped
from fewstep.paths import VarianceExploding
from fewstep.solvers import STEPS, Churn, multistep, ode, one_step, stochastic_ddim
from fewstep.times import karras, to_zero
from golden_sets import Case, check, closed_form, karras_denoiser, noise_levels

Values = Iterator[tuple[str, Tensor]]


def grid(case: Case) -> Values:
    points = karras(case["n"], case["sigma_min"], case["sigma_max"], case["rho"])
    yield "sigmas", to_zero(points) if case["append_zero"] else points


def sample(
    case: Case, kind: str, denoiser: AbstractDenoiser, x: Tensor, times: Tensor, noise: Tensor
) -> Tensor:
    """The sampler ``kind``; ``noise`` holds one unit noise a draw, none if it draws none."""
    if kind == "onestep":
        return one_step(denoiser, x, times)
    if kind == "euler":
        return ode(denoiser, x, times, step=STEPS["euler"])
    if kind == "progdist":  # Euler that stops at t_min
        return ode(denoiser, x, times[:-1], step=STEPS["euler"])
    if kind in {"ancestral", "euler_ancestral"}:
        return stochastic_ddim(denoiser, x, times, noise.__getitem__)
    churn = Churn(case["s_churn"], case["s_tmin"], case["s_tmax"], case["s_noise"])
    if len(noise) == 0:
        assert churn.amount == 0
        return ode(denoiser, x, times, step=STEPS[kind])
    return ode(denoiser, x, times, step=STEPS[kind], churn=churn, noise=noise.__getitem__)


def few_steps(
    denoiser: AbstractDenoiser, x: Tensor, levels: Tensor, ts: list[int], noise: Tensor
) -> Tensor:
    """Times by their index.

    The official loop noises the last answer too, to the last time; it is t_min in practice, where
    nothing is added, and ``multistep`` stops before it.
    """
    path = denoiser.path
    out = multistep(denoiser, x, levels[ts[:-1]], noise.__getitem__)
    return path.renoise(out, noise[len(ts) - 2], levels[ts[-1]].expand(len(x)))


def clamped(case: Case, denoiser: AbstractDenoiser) -> AbstractDenoiser:
    return Clamped(denoiser) if case["clip_denoised"] else denoiser


def plain(case: Case) -> Values:
    """sample_*: the denoiser is D, the grid an input."""
    denoiser = clamped(case, closed_form(case["nets"]["model"], VarianceExploding()))
    x, times = case.inputs["x_T"], case.inputs["sigmas"]
    noise = case.inputs.get("noise", x.new_empty(0))
    kind = case["call"].removeprefix("sample_")
    yield "x_0", sample(case, kind, denoiser, x, times, noise)


def iterative(case: Case) -> Values:
    """stochastic_iterative_sampler: the denoiser is D."""
    path = VarianceExploding(case["t_min"], case["t_max"])
    denoiser = clamped(case, closed_form(case["nets"]["model"], path))
    levels = karras(case["steps"], case["t_min"], case["t_max"], case["rho"])
    yield "x_0", few_steps(denoiser, case.inputs["x_T"], levels, case["ts"], case.inputs["noise"])


def karras_sample(case: Case) -> Values:
    """The entry point: F under KarrasDenoiser, its grid, and a clamp of the result.

    Computed in float32 there, in float64 here, within the tolerance of the set.
    """
    role = case["nets"]["model"]
    denoiser = clamped(case, karras_denoiser(case, role, boundary=case["distillation"]))
    assert case["x_T"] == "noise[0]*sigma_max"
    draws = case.inputs["noise"]
    x, noise = draws[0] * noise_levels(case).start_std(), draws[1:]
    points = karras(case["sigmas_n"], case["sigma_min"], case["sigma_max"], case["rho"])
    if case["sampler"] == "multistep":
        assert len(points) == case["steps"]
        x_0 = few_steps(denoiser, x, points, case["ts"], noise)
    else:
        x_0 = sample(case, case["sampler"], denoiser, x, to_zero(points), noise)
    yield "x_0", x_0.clamp(*case["final_clamp"])


CALLS = {
    "get_sigmas_karras": grid,
    "sample_onestep": plain,
    "sample_euler": plain,
    "sample_heun": plain,
    "sample_dpm": plain,
    "sample_euler_ancestral": plain,
    "sample_progdist": plain,
    "stochastic_iterative_sampler": iterative,
    "karras_sample": karras_sample,
}


@torch.no_grad()
def test_golden_openai_samplers(record_property) -> None:
    check("openai_samplers", CALLS, record_property)
