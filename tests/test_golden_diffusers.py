"""DPM-Solver++(2M) of huggingface/diffusers, in single precision there and in double here.

Its noise levels need not lie at entries of its table of betas; its network is told the nearest.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fewstep.models import Denoiser, NoisePrediction
from fewstep.paths import DiscreteVariancePreserving
from fewstep.solvers import dpmpp_2m
from fewstep.times import karras, to_zero, uniform
from golden_sets import Case, StandIn, check, networks, stand_in

Values = Iterator[tuple[str, Tensor]]


class AtEntries(nn.Module):
    """A network that is told the nearest entry of the table, in thousands; it keeps its answers."""

    two_time = False

    def __init__(self, net: StandIn) -> None:
        super().__init__()
        self.net, self.cond_keys, self.answers = net, net.cond_keys, []

    def forward(self, x, c_noise, s_noise=None, cond=None) -> Tensor:
        answer = self.net(x, c_noise.round() / 1000, None, cond)
        self.answers.append(answer)
        return answer


def table(case: Case) -> DiscreteVariancePreserving:
    config = case["config"]
    assert (config["beta_schedule"], config["timestep_spacing"]) == ("scaled_linear", "linspace")
    assert (config["algorithm_type"], config["solver_order"]) == ("dpmsolver++", 2)
    assert (config["final_sigmas_type"], config["prediction_type"]) == ("zero", "epsilon")
    steps = config["num_train_timesteps"]
    return DiscreteVariancePreserving(
        t_max=steps - 1,
        steps=steps,
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
    )


def levels(case: Case, path: DiscreteVariancePreserving) -> Tensor:
    """sigma / alpha in descending order, without the last one, 0."""
    n = case["set_timesteps"]["num_inference_steps"]
    if case["config"].get("use_karras_sigmas"):
        ends = path.ratio(torch.tensor([path.t_min, path.t_max], dtype=torch.float64))
        return karras(n, *ends.tolist())
    return path.ratio(uniform(n + 1, path.t_min, path.t_max).round()[:-1])


def set_timesteps(case: Case) -> Values:
    path = table(case)
    found = levels(case, path)
    values = {"timesteps": path.time(found).round().long(), "sigmas": to_zero(found)}
    for output in case.outputs:
        yield output, values[output]


@torch.no_grad()
def step(case: Case) -> Values:
    """Every point of the trajectory ends a sampling of its own; the last is clean data."""
    assert (case["net_kind"], case["net_time"]) == ("F", "timestep/1000")
    path = table(case)
    net = AtEntries(stand_in(case["nets"]["model"], networks().coefficients))
    denoiser = Denoiser(net, NoisePrediction(time_scale=1.0, path=path))
    times, x = path.time(to_zero(levels(case, path))), case.inputs["x_init"]
    points = [dpmpp_2m(denoiser, x, times[:last]) for last in range(1, len(times) + 1)]
    found = {"traj": torch.stack(points), "model_out": torch.stack(net.answers[1 - len(times) :])}
    for output in case.outputs:
        yield output, found[output]


CALLS = {
    "DPMSolverMultistepScheduler.set_timesteps": set_timesteps,
    "DPMSolverMultistepScheduler.step": step,
}


def test_golden_diffusers(record_property) -> None:
    check("diffusers_sched", CALLS, record_property)
