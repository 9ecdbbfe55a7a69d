"""Scalings, jumps, solver, estimate, target and loss of sony/ctm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.core import Batch, expand
from fewstep.models import EDM, ConsistencyBoundary, Denoiser
from fewstep.models.preconditioning import Preconditioning, Scalings
from fewstep.objectives.ctm import ConsistencyTrajectory, Draws
from fewstep.objectives.shared.discrete import TeacherStep
from fewstep.objectives.shared.distances import l2
from fewstep.objectives.shared.weights import karras_weight
from fewstep.paths import VarianceExploding
from fewstep.solvers import STEPS
from fewstep.times import HalfHigh, KarrasUniform, karras
from golden_sets import Case, check, networks, noise_levels, stand_in, weighting

Values = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Bare(Preconditioning):
    """The network's output itself, with EDM's inputs: what the code calls "no" parametrisation."""

    sigma_data: float
    time_scale: float

    def coefficients(self, t: Tensor) -> Scalings:
        _, _, *inputs = EDM(**vars(self)).coefficients(t)
        return Scalings(torch.zeros_like(t), torch.ones_like(t), *inputs)


INNER = {"edm": EDM, "cm": ConsistencyBoundary, "no": Bare}


def preconditioning(case: Case, inner: str, time_scale: float = 1.0) -> Preconditioning:
    given = {"sigma_data": case["sigma_data"], "time_scale": time_scale}
    return INNER[inner](**given, path=noise_levels(case))


def denoiser(case: Case, role: str, inner: str, second: bool = True) -> Denoiser:
    scale = re.fullmatch(r"([\d.]+)\*ln\(t\)", case["net_time"])
    assert scale, case["net_time"]
    assert case["net_time_s"] == case["net_time"].replace("t", "s")
    net = stand_in(role, networks().coefficients, case["gscale"], second=second)
    return Denoiser(net, preconditioning(case, inner, float(scale[1])))


def grid(case: Case) -> Tensor:
    return karras(case["start_scales"], case["sigma_min"], case["sigma_max"], case["rho"])


# The code can also take another share of x_t than the paper's s/t. The difference is stated here.


def further_skip(case: Case, t: Tensor, s: Tensor) -> Tensor:
    """What c_skip has beside s/t."""
    eps, sd = case["sigma_min"], case["sigma_data"]
    std = (((s - eps) ** 2 + sd**2) / ((t - eps) ** 2 + sd**2)).sqrt()
    skip = {
        "euler": s / t,
        "variance": std,
        "euler_variance_mixed": (s + std) / (t + 1),
    }
    return skip[case["outer_parametrization"]] - s / t


def further_denoised(case: Case, t: Tensor) -> Tensor:
    """What the code then adds to the network's answer, in units of x_t, for a denoiser."""
    eps, sd = case["sigma_min"], case["sigma_data"]
    var = (t - eps) ** 2 + sd**2
    added = {
        "euler": torch.zeros_like(t),
        "variance": (eps**2 + sd**2 - eps * t) / var,
        "euler_variance_mixed": 1 - t / (t + 1) * (1 + (t - eps) / var),
    }
    return added[case["outer_parametrization"]]


def inner_scalings(case: Case) -> Values:
    found = preconditioning(case, case["inner_parametrization"]).coefficients(case.inputs["t"])
    yield "[c_skip,c_out]", torch.stack([found.c_skip, found.c_out])


def outer_scalings(case: Case) -> Values:
    t, s = case.inputs["t"], case.inputs["s"]
    path, one = noise_levels(case), torch.ones_like(t)[:, None]
    zero = torch.zeros_like(one)
    skip, out = path.transport(one, zero, t, s)[:, 0], path.transport(zero, one, t, s)[:, 0]
    yield "[c_skip,c_out]", torch.stack([skip + further_skip(case, t, s), out])


def c_in(case: Case) -> Values:
    yield "c_in", preconditioning(case, "edm").coefficients(case.inputs["t"]).c_in


def times(case: Case) -> Values:
    continuous = case["time_continuous"]
    index = case.inputs.get("indices")
    if index is None:
        index = torch.tensor(case["indices"], dtype=torch.float64 if continuous else torch.long)
    index = index + case.settings.get("index_offset", 0)
    ends = case["sigma_min"], case["sigma_max"], case["rho"]
    yield "t", KarrasUniform(*ends).at(1 - index) if continuous else grid(case)[index]


def weights(case: Case) -> Values:
    assert case["snr"] == "t**-2"
    name = {"karras_weight": "karras"}.get(case["weighting"], case["weighting"])
    snr = VarianceExploding().snr(case.inputs["t"])
    yield "weight", weighting(name, case["sigma_data"])(snr)


def jumps(case: Case) -> Values:
    assert case["net_kind"] == "F2"
    student = denoiser(case, case["nets"]["model"], case["inner_parametrization"])
    x, t, s = (case.inputs[name] for name in ("x_t", "t", "s"))
    found = {
        "denoised": student(x, t, s) + expand(further_denoised(case, t), x) * x,
        "G": student.jump(x, t, s) + expand(further_skip(case, t, s), x) * x,
    }
    for output in case.outputs:
        yield output, found[output]


def trajectory(case: Case) -> Tensor:
    return grid(case)[case.inputs["indices"] + torch.arange(case["num_step"] + 1)[:, None]]


def solver(case: Case) -> Values:
    assert case["net_kind"] == "F"
    assert not case["boundary"]
    teacher = denoiser(case, case["nets"]["teacher"], "edm", second=False)
    step = TeacherStep(teacher, STEPS[case["solver"]])
    x = case.inputs["x_t"]
    with torch.no_grad():
        for t, r in pairwise(trajectory(case)):
            x = step(x, Batch(x), x, t, r)
    yield "x", x


def objective(case: Case) -> ConsistencyTrajectory:
    nets, inner = case["nets"], case["inner_parametrization"]
    assert case["outer_parametrization"] == "euler"
    assert (case["inner_net"], case["outer_net"], case["outer_end"]) == (
        "student",
        "target",
        "sigma_min",
    )
    found = ConsistencyTrajectory(
        denoiser(case, nets["model"], inner),
        denoiser(case, nets["teacher"], "edm", second=False),
        grid=grid(case),
        solver_steps=case["start_scales"] - 1,
        times=HalfHigh(),
        weight=karras_weight(case["sigma_data"]),
        distance=lambda a, b, mask: l2(shown(case, a), shown(case, b)),
    )
    found.target.load_state_dict(denoiser(case, nets["target"], inner).state_dict())
    return found


def shown(case: Case, x: Tensor) -> Tensor:
    """Images as the official code hands them to LPIPS."""
    assert case["value_map"] == "(v+1)/2"
    mode, corners = case["resize_mode"], case["resize_align_corners"]
    return (F.interpolate(x, size=case["resize"], mode=mode, align_corners=corners) + 1) / 2


def compared(case: Case, ctm: ConsistencyTrajectory, draws: Draws) -> tuple[Tensor, Tensor]:
    """The estimate and the target that the public loss compares."""
    seen = []

    def kept(a: Tensor, b: Tensor, mask: Tensor | None) -> Tensor:
        seen.append((a, b))
        return l2(a, b, mask)

    ctm.distance = kept
    ctm.loss(Batch(case.inputs["x_t"]), draws)
    (pair,) = seen
    return pair


def drawn(trajectory: Tensor, s: Tensor, x: Tensor) -> Draws:
    """Without noise, so that x is the noised sample."""
    zeros = torch.zeros_like(x)
    return Draws(trajectory, s, zeros, trajectory[0], zeros, torch.tensor(False))


def estimate(case: Case) -> Values:
    t, s, x = grid(case)[case.inputs["indices"]], case.inputs["s"], case.inputs["x_t"]
    found, _ = compared(case, objective(case), drawn(torch.stack([t, s]), s, x))
    yield "estimate", found


def target(case: Case) -> Values:
    assert case["t_dt_index_offset"] == case["num_step"]
    ctm = objective(case)
    assert ctm.solver is STEPS[case["solver"]]
    draws = drawn(trajectory(case), case.inputs["s"], case.inputs["x_t"])
    _, found = compared(case, ctm, draws)
    yield "target", found


def loss(case: Case) -> Values:
    assert case["weighting"] == "ones"
    assert case["loss_norm"] == "mean_sq_after_resize224"
    assert case["resize"] == 224
    ctm, x, s, points = objective(case), case.inputs["x_t"], case.inputs["s"], trajectory(case)

    def consistency(rows: slice) -> Tensor:
        draws = drawn(points[:, rows], s[rows], x[rows])
        return ctm.loss(Batch(x[rows]), draws).terms["consistency"]

    yield "loss", torch.stack([consistency(slice(i, i + 1)) for i in range(len(x))])
    consistency(slice(None)).backward()
    for output in case.outputs:
        if output.startswith("grad_"):
            yield output, ctm.student.net.get_parameter(output.removeprefix("grad_")).grad


CALLS = {
    "KarrasDenoiser.get_inner_scalings": inner_scalings,
    "KarrasDenoiser.get_outer_scalings": outer_scalings,
    "KarrasDenoiser.get_c_in": c_in,
    "KarrasDenoiser.get_t": times,
    "get_weightings": weights,
    "KarrasDenoiser.get_denoised_and_G": jumps,
    "KarrasDenoiser.heun_solver": solver,
    "KarrasDenoiser.get_ctm_estimate": estimate,
    "KarrasDenoiser.get_ctm_target": target,
    "KarrasDenoiser.get_CTM_loss": loss,
}


def test_golden_ctm(record_property) -> None:
    check("ctm", CALLS, record_property)
