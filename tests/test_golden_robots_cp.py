"""Schedule, scalings, solver, normaliser, losses and samples of Consistency Policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fewstep.core import Batch, expand
from fewstep.frontends.chunks import limits
from fewstep.models import EDM, ConsistencyBoundary, Denoiser
from fewstep.objectives.ctm import ConsistencyTrajectory, Draws
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.shared.distances import ElementwisePseudo
from fewstep.objectives.shared.drop import Draws as DenoisingDraws
from fewstep.objectives.shared.weights import karras_weight, unweighted
from fewstep.paths import VarianceExploding
from fewstep.solvers import STEPS, gamma_sampling, ode
from fewstep.times import KarrasUniform, LogNormal, karras
from golden_sets import Case, Topic, check, folder, networks, stand_in

Values = Iterator[tuple[str, Tensor]]

pytestmark = pytest.mark.skipif(
    not (folder() / "robots_cp.json").exists(), reason="the golden folder has no robots_cp"
)
SCALINGS = {"boundary": ConsistencyBoundary, "no_boundary": EDM}


def path(case: Case) -> VarianceExploding:
    return VarianceExploding(case["time_min"], case["time_max"])


def ramp(case: Case) -> Tensor:
    """The levels of the bins; those behind the last one are the lowest, too."""
    levels = karras(case["bins"], case["time_min"], case["time_max"], case["rho"])
    return torch.cat([levels, levels[-1:].expand(2)])


def denoiser(case: Case, role: str, second: bool) -> Denoiser:
    net = stand_in(role, networks().coefficients, case["gscale"], condition=True, second=second)
    scaling = SCALINGS[case["scaling"]]
    given = {"sigma_data": case["data_std"], "time_scale": 250.0, "path": path(case)}
    return Denoiser(net, scaling(**given))


def given(name: str) -> Tensor:
    return Topic("robots_cp").array(name)


def draws(case: Case) -> list[Tensor]:
    return [given(name) for name in case["inputs"]["draws"]]


def conditions(case: Case) -> dict[str, Tensor]:
    """Normalised observations, or the condition itself."""
    if "global_cond" in case.inputs:
        return {"condition": case.inputs["global_cond"]}
    shift, scale = limits(case.inputs["fit_obs"])
    seen = case.inputs["obs"][:, : case["n_obs_steps"]] if "n_obs_steps" in case.settings else None
    seen = case.inputs["obs"][:, :2] if seen is None else seen
    return {"condition": ((seen - shift) * scale).flatten(1)}


def actions(case: Case) -> Tensor:
    shift, scale = limits(case.inputs["fit_action"])
    return (case.inputs["action"] - shift) * scale


# Schedule and scalings.


def times(case: Case) -> Values:
    yield "times", ramp(case)[case.inputs["timesteps"].long()]


def bins(case: Case) -> Values:
    levels = ramp(case)[: case["bins"]]
    yield "timesteps", (case.inputs["times"][:, None] - levels).abs().argmin(1)


def scalings(case: Case) -> Values:
    kind = EDM if case["case"] == "plain" else ConsistencyBoundary
    found = kind(sigma_data=case["data_std"], path=path(case)).coefficients(case.inputs["time"])
    for output in case.outputs:
        yield output, getattr(found, output)


def weights(case: Case) -> Values:
    for output in case.outputs:
        if output == "karras":
            yield output, karras_weight(case["data_std"])(path(case).snr(case.inputs["times"]))
        else:
            t = case.inputs["times"]
            assert case["next_times"] == "0.7*t"
            yield output, 1 / (t - 0.7 * t)


# Answers and steps.


def answer(case: Case) -> Values:
    model = denoiser(case, case["nets"]["model"], second=False)
    found = model(case.inputs["trajectory"], case.inputs["times"], None, conditions(case))
    yield "denoised", found


def jump(case: Case) -> Values:
    model = denoiser(case, case["nets"]["model"], second=True)
    x, t, s = (case.inputs[name] for name in ("trajectory", "times", "stops"))
    found = model.jump(x, t, s, conditions(case))
    yield "G", found.clamp(-1, 1) if case["clamp"] else found


def step(case: Case) -> Values:
    model = denoiser(case, case["nets"]["model"], second=False)
    x, t, s = (case.inputs[name] for name in ("samples", "t", "next_t"))
    assert not case["clamp"]
    with torch.no_grad():
        yield "samples", STEPS[case["solver"]](model, x, t, s, conditions(case))


def levels(case: Case) -> Values:
    """The laws of the teacher's times, of the denoising term, and of CTM's bins."""
    kind, found = case["time_sampler"], draws(case)
    law = LogNormal(case["P_mean"], case["P_std"])
    low, high = case["time_min"], case["time_max"]
    if kind == "ctm_dsm":
        yield "times", denoising_times(case, *found)
    elif kind == "log_normal":
        yield "times", (law.mean + law.std * found[0]).exp().clamp(low, high)
    else:
        yield from picked(case, found)


def denoising_times(case: Case, part: Tensor, normal: Tensor) -> Tensor:
    """The upper 70 % of the ramp for the first half, EDM's levels for the second."""
    high = KarrasUniform(case["time_min"], case["time_max"], case["rho"]).at(1 - 0.7 * part)
    return torch.cat([high, (-1.2 + 1.2 * normal).exp().clamp(case["time_min"], case["time_max"])])


# Losses.


@dataclass(frozen=True)
class Bins:
    """The trajectory and the end that bins say."""

    trajectory: Tensor
    s: Tensor


def bins_of(case: Case) -> Bins:
    t, s, u = (given(name) for name in case["inputs"]["bins"])
    grid = ramp(case)
    later = [torch.minimum(t + k, u.long()) for k in range(1, case["ode_steps_max"] + 1)]
    return Bins(torch.stack([grid[t], *(grid[k] for k in later)]), grid[s])


def student_loss(case: Case) -> Values:
    nets, x0, cond = case["nets"], actions(case), conditions(case)
    delta = case["delta"]
    distance = ElementwisePseudo(None if delta == -1 else delta)
    weighing = {"karras": karras_weight(case["data_std"]), "none": unweighted}
    names, shares = case["losses"], case["loss_weights"]
    share = dict(zip(names, shares, strict=True))
    ctm = ConsistencyTrajectory(
        denoiser(case, nets["model"], second=True),
        denoiser(case, nets["teacher"], second=False),
        grid=ramp(case)[: case["bins"]],
        solver_steps=1,
        times=LogNormal(),
        weight=weighing[case["dsm_weights"]],
        solver=STEPS[case["solver"]],
        distance=distance,
        jumps=True,
        balanced=False,
    )
    ctm.target.load_state_dict(denoiser(case, nets["model_ema"], second=True).state_dict())
    left = draws(case)
    noise = left.pop(0) if "ctm" in names else torch.zeros_like(x0)
    if "dsm" in names:
        t, denoising_noise = denoising_times(case, left.pop(0), left.pop(0)), left.pop(0)
    else:
        t, denoising_noise = torch.full((len(x0),), case["time_max"]).double(), noise
    if "ctm" in names:
        found = bins_of(case)
        aimed(case, ctm, found, Batch(x0, cond), noise)
    else:
        found = Bins(torch.stack([t, t]), t)
    drawn = Draws(found.trajectory, found.s, noise, t, denoising_noise, torch.tensor(False))
    terms = ctm.loss(Batch(x0, cond), drawn).terms
    own = {"ctm": terms["consistency"], "dsm": terms["denoising"]}
    total = torch.stack([share[name] * own[name] for name in names]).sum()
    total.backward()
    for output, entry in case.outputs.items():
        if "ctm" in names:
            # The code counts u in float32, so that the levels and scalings there are that exact.
            entry.settings.update(rtol=1e-6, atol=2e-7)
        if output.startswith("grad_"):
            yield output, ctm.student.net.get_parameter(output.removeprefix("grad_")).grad
        else:
            yield output, (share[output] * own[output]).detach()


def aimed(case: Case, ctm: ConsistencyTrajectory, bins: Bins, batch: Batch, noise: Tensor) -> None:
    """Let both jumps of the target be the average's, as the code does.

    In the library, as in the paper of CTM, the first of them is the student's. The published runs
    of Consistency Policy average at the rate 0, where both are one.
    """
    teacher, average, distance = ctm.teacher, ctm.target, ctm.distance
    with torch.no_grad():
        x = ctm.student.path.perturb(batch.x0, noise, bins.trajectory[0])
        for t, u in pairwise(bins.trajectory):
            x = ctm.solver(teacher, x, t, u, batch.cond)
        x = jumped(average, x, bins.trajectory[-1], bins.s, batch.cond)
        low = torch.full_like(bins.s, case["time_min"])
        target = jumped(average, x, bins.s, low, batch.cond)
    ctm.distance = lambda a, b, mask: distance(a, b if b is batch.x0 else target, mask)


def jumped(model, x: Tensor, t: Tensor, s: Tensor, cond: dict[str, Tensor]) -> Tensor:
    return torch.where(expand(s < t, x), model.jump(x, t, s, cond), x)


def teacher_loss(case: Case) -> Values:
    model = denoiser(case, case["nets"]["model"], second=False)
    assert (case["weighting"], case["delta"]) == ("karras", 0.0)
    objective = Denoising(model, times=LogNormal(), weight=karras_weight(case["data_std"]))
    normal, noise = draws(case)
    t = (case["P_mean"] + case["P_std"] * normal).exp().clamp(case["time_min"], case["time_max"])
    fields = dict.fromkeys(DenoisingDraws._fields)
    drawn = DenoisingDraws(**{**fields, "t": t, "noise": noise})
    loss = objective.loss(Batch(actions(case), conditions(case)), drawn).total()
    loss.backward()
    for output in case.outputs:
        value = loss.detach()
        if output.startswith("grad_"):
            value = model.net.get_parameter(output.removeprefix("grad_")).grad
        yield output, value


def huber(case: Case) -> Values:
    delta = case["delta"]
    distance = ElementwisePseudo(None if delta == -1 else delta)
    each = distance(case.inputs["pred"], case.inputs["target"], None)
    weights = case.inputs.get("weights", torch.ones_like(each))
    yield "loss", (weights * each).mean()


# Samples.


class Within(Denoiser):
    """The code clamps what a call arrives at, and not the estimate of the data."""

    def jump(self, x, t, s, cond=None):
        return super().jump(x, t, s, cond).clamp(-1, 1)


def within(case: Case, model: Denoiser) -> Within:
    assert case["clamp"]
    return Within(model.net, model.preconditioning)


def executed(case: Case, z: Tensor) -> Values:
    shift, scale = limits(case.inputs["fit_action"])
    chunk = z / scale + shift
    first = case["n_obs_steps"] - 1 if "n_obs_steps" in case.settings else 0
    for output in case.outputs:
        last = first + case.settings.get("n_action_steps", 0)
        yield output, chunk if output == "action_pred" else chunk[:, first:last]


def sample(case: Case) -> Values:
    assert not case["start_noise_times_time_max"]
    model = within(case, denoiser(case, case["nets"]["model"], second=True))
    first, *rest = draws(case)
    kind, *numbers = case["chaining_times"] or ["D"]
    levels = [float(ramp(case)[n]) if kind == "C" else float(n) for n in numbers]
    with torch.no_grad():
        z = gamma_sampling(
            model,
            first,
            [case["time_max"], *levels],
            lambda i: rest[i] * renoising(case, levels[i]),
            conditions(case),
            gamma=1.0,
        )
    yield from executed(case, z)


def renoising(case: Case, level: float) -> float:
    """The code adds t times noise to a sample at t_min, the library sqrt(t^2 - t_min^2)."""
    return level / (level**2 - case["time_min"] ** 2) ** 0.5


CALLS = {
    "timesteps_to_times": times,
    "times_to_timesteps": bins,
    "get_scalings": scalings,
    "get_scalings_for_boundary_condition": scalings,
    "get_weights": weights,
    "calc_out": answer,
    "CTM_calc_out": jump,
    "step": step,
    "sample_times": levels,
    "Huber_Loss": huber,
    "CTMPPUnetHybridImagePolicy.compute_loss": student_loss,
    "CTMPPUnetHybridImagePolicy.predict_action": sample,
    "KarrasUnetHybridImagePolicy.compute_loss": teacher_loss,
}


def picked(case: Case, found: list[Tensor]) -> Values:
    """The bins of a pair; the library draws them by its own law, of CTM's paper."""
    t, s, u = found
    yield from (("t", t), ("s", s), ("u", torch.minimum(u, t + case["ode_steps_max"])))


def normaliser(case: Case) -> Values:
    shift, scale = limits(
        case.inputs.get("data", given("fit_action")), case.settings.get("range_eps", 1e-4)
    )
    for output in case.outputs:
        if output == "scale":
            yield output, scale
        elif output == "offset":
            yield output, -shift * scale
        elif output == "normalized":
            yield output, (case.inputs["x"] - shift) * scale
        else:
            yield output, case.inputs["x"] / scale + shift


def teacher_sample(case: Case) -> Values:
    model = denoiser(case, case["nets"]["model"], second=False)
    (first,) = draws(case)
    model = Inside(model.net, model.preconditioning)
    with torch.no_grad():
        z = ode(
            model, first, ramp(case)[: case["bins"]], conditions(case), step=STEPS[case["solver"]]
        )
    yield from executed(case, z)


class Inside(Denoiser):
    """The code clamps the estimate of the data."""

    def forward(self, x, t, s=None, cond=None):
        return super().forward(x, t, s, cond).clamp(-1, 1)


CALLS |= {
    "SingleFieldLinearNormalizer.fit": normaliser,
    "normalize": normaliser,
    "unnormalize": normaliser,
    "KarrasUnetHybridImagePolicy.predict_action": teacher_sample,
}


def test_golden_robots_cp(record_property) -> None:
    check("robots_cp", CALLS, record_property)
