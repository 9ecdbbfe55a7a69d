"""Grids, phases, jumps and scalings of PCM's (and LCM's) training; PCM's samplers for flows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.core import Cond
from fewstep.models import (
    AbstractDenoiser,
    DataPrediction,
    Denoiser,
    Flow,
    LatentBoundary,
    NoisePrediction,
    Preconditioning,
    VPrediction,
)
from fewstep.models.nets.blocks import latent_guidance_embedding
from fewstep.objectives.pcm import PhasedConsistency
from fewstep.objectives.shared.discrete import SameNoise
from fewstep.paths import DiscreteVariancePreserving, Event, Linear, Time
from fewstep.solvers import ddim, deterministic, multistep, one_step
from fewstep.times import Phases, shift, strided, uniform
from golden_sets import Case, Topic, check, networks, stand_in

Values = Iterator[tuple[str, Tensor]]

TOPIC = "lcm_pcm"
PREDICTIONS: dict[str, type[Preconditioning]] = {
    "epsilon": NoisePrediction,
    "v_prediction": VPrediction,
}


class Answers(AbstractDenoiser):
    """Always the same x0."""

    cond_keys, two_time = (), False

    def __init__(self, path: DiscreteVariancePreserving, x0: Tensor) -> None:
        super().__init__()
        self.path, self.x0 = path, x0

    def forward(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        return self.x0


class Raw(torch.nn.Module):
    """A network that always answers the same."""

    cond_keys, two_time = (), False

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x, c_noise, s_noise=None, cond=None) -> Tensor:
        return self.answer


def table(case: Case, t_max: float | None = None) -> DiscreteVariancePreserving:
    """The path of the betas from which the case's table was made, however indirectly."""
    entries, settings = Topic(TOPIC).entries, case.settings
    while "beta_start" not in settings:
        names = settings["inputs"]
        settings = entries[names.get("alphas_cumprod") or names["acp_prev"]].settings
    steps = settings["num_train_timesteps"]
    assert settings["beta_schedule"] in {"scaled_linear", "linear"}
    return DiscreteVariancePreserving(
        t_max=steps - 1 if t_max is None else t_max,
        steps=steps,
        beta_start=settings["beta_start"],
        beta_end=settings["beta_end"],
        scaled_linear=settings["beta_schedule"] == "scaled_linear",
    )


def cut(case: Case, count: int) -> Phases:
    return Phases(strided(case["ddim_timesteps"], case["timesteps"]), count)


def intervals(n: int, count: int) -> Phases:
    """Phases of any n intervals."""
    return Phases(uniform(n + 1, 0.0, 1.0), count)


def alphas_cumprod(case: Case) -> Values:
    path = table(case)
    times = torch.arange(path.steps, dtype=torch.float64)
    yield "alphas_cumprod", path.coefficients(times).alpha ** 2


def predicted_origin(case: Case) -> Values:
    path, inputs = table(case), case.inputs
    prediction = PREDICTIONS[case["prediction_type"]](path=path)
    denoiser = Denoiser(Raw(inputs["model_output"]), prediction)
    yield "x0", denoiser(inputs["sample"], inputs["timesteps"].double())


def ddim_grid(case: Case) -> Values:
    t, r, _ = cut(case, 1).of(torch.arange(case["ddim_timesteps"]))
    # From the official table: ours is in float64, the official sums are in float32, and the
    # tolerance here is no wider than their difference.
    given = case.inputs["alphas_cumprod"]
    own = {
        "ddim_timesteps": t,
        "ddim_alpha_cumprods": given[t.long()],
        "ddim_alpha_cumprods_prev": given[r.long()],
    }
    yield from ((output, own[output]) for output in case.outputs)


def noised(case: Case, path: DiscreteVariancePreserving, t: Tensor) -> tuple[Answers, Tensor]:
    """A model and a sample whose clean data and noise are the case's."""
    x0, noise = case.inputs["pred_x0"], case.inputs["pred_noise"]
    return Answers(path, x0), path.perturb(x0, noise, t)


def ddim_step(case: Case) -> Values:
    t, r, _ = cut(case, 1).of(case.inputs["index"])
    denoiser, x_t = noised(case, table(case), t)
    yield "x_prev", ddim(denoiser, x_t, t, r, None)


def jump_to_edge(case: Case) -> Values:
    phases = cut(case, case["multiphase"])
    path = table(case, float(phases.grid[0]))
    t, _, edge = phases.of(case.inputs["index"])
    student, x_t = noised(case, path, t)
    objective = PhasedConsistency(student, SameNoise(path), phases=phases)
    yield "timestep_end", edge
    yield "x_prev", objective.student.jump(x_t, t, edge)


def where_the_target_is_given(case: Case) -> Values:
    index = torch.tensor(case["index"])
    selected = case["selected_indices"]
    cuts = (
        intervals(n, len(selected))
        for n in range(max(*index.tolist(), *selected) + 1, 2 * len(index) + 1)
    )
    phases = next(p for p in cuts if p.firsts().tolist() == selected)
    _, r, edge = phases.of(index)
    yield "c_skip", (r == edge).double()
    yield "c_out", (r > edge).double()


def guidance_embedding(case: Case) -> Values:
    assert (case["order"], case["w_multiplier"]) == ("sin,cos", 1000)
    assert (case["exponent_denominator"], case["max_period"]) == ("half_dim-1", 10_000)
    yield "embedding", latent_guidance_embedding(1 + case.inputs["w"], case["embedding_dim"])


def boundary(case: Case) -> Values:
    """The scalings of a network that predicts x0; PCM's script has LCM's and does not call them."""
    t = case.inputs["timestep"].double()
    path = DiscreteVariancePreserving()
    scalings = LatentBoundary(
        inner=DataPrediction(path=path),
        sigma_data=case["sigma_data"],
        timestep_scaling=case["timestep_scaling"],
        path=path,
    ).coefficients(t)
    yield from ((output, getattr(scalings, output)) for output in case.outputs)


# The samplers for flows. They cut the grid from the noise, where training cuts it from the data;
# for 50 times in 4 phases these are other times.


def flow_grid(case: Case) -> Tensor:
    steps = case["num_train_timesteps"]
    return shift((strided(case["pcm_timesteps"], steps)[:-1] + 1) / steps, case["shift"])


def flow_times(case: Case) -> Tensor:
    grid = flow_grid(case)
    return grid[intervals(len(grid), case["steps"]).firsts()]


def flow_sigmas(case: Case) -> Values:
    yield "sigmas", flow_grid(case)


def flow_timesteps(case: Case) -> Values:
    yield "timesteps", flow_times(case) * case["num_train_timesteps"]


def flow_model(case: Case, end: float) -> Denoiser:
    assert case["net_time"] == "timestep/1000"
    assert case["net_kind"] == "F"
    net = stand_in(case["nets"]["velocity"], networks().coefficients)
    scale = case["num_train_timesteps"] / 1000
    return Denoiser(net, Flow(path=Linear(end, 1.0), time_scale=scale))


def ends(case: Case) -> list[float]:
    return [*flow_times(case).tolist()[1:], 0.0]


def flow_deterministic(case: Case) -> Values:
    times, x = flow_times(case), case.inputs["x_init"]
    trajectory = [x]
    for t, s in zip(times, ends(case), strict=True):
        trajectory.append(deterministic(flow_model(case, s), trajectory[-1], t[None]))
    whole = deterministic(flow_model(case, 0.0), x, times)
    torch.testing.assert_close(trajectory[-1], whole)
    yield "traj", torch.stack(trajectory)


def flow_stochastic(case: Case) -> Values:
    times, x, noise = flow_times(case), case.inputs["x_init"], case.inputs["noise"]
    model = flow_model(case, 0.0)
    trajectory = [x]
    for t, s, unit in zip(times, ends(case), noise, strict=True):
        clean = one_step(model, trajectory[-1], t[None])
        at = torch.full((len(x),), s, dtype=torch.float64)
        trajectory.append(model.path.renoise(clean, unit, at))
    whole = multistep(model, x, times, lambda i: noise[i])
    torch.testing.assert_close(trajectory[-1], whole)
    yield "traj", torch.stack(trajectory)


CALLS = {
    "DDPMScheduler": alphas_cumprod,
    "predicted_origin": predicted_origin,
    "DDIMSolver.__init__": ddim_grid,
    "DDIMSolver.ddim_step": ddim_step,
    "DDIMSolver.ddim_style_multiphase_pred": jump_to_edge,
    "guidance_scale_embedding": guidance_embedding,
    "scalings_for_boundary_conditions": boundary,
    "scalings_for_boundary_conditions_target": where_the_target_is_given,
    **{
        f"PCMFM{kind}Scheduler.{call}": produce
        for kind, step in (("Deterministic", flow_deterministic), ("Stochastic", flow_stochastic))
        for call, produce in (
            ("__init__", flow_sigmas),
            ("set_timesteps", flow_timesteps),
            ("step", step),
        )
    },
}


def test_golden_lcm_pcm(record_property) -> None:
    check(TOPIC, CALLS, record_property)
