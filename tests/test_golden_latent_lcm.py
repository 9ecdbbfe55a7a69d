"""LCM's training step, the times of its scheduler, TCD's steps, and times of rectified flows."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fewstep.core import Batch, Cond, expand
from fewstep.models import (
    DataPrediction,
    Denoiser,
    Flow,
    Guided,
    LatentBoundary,
    NoisePrediction,
    Preconditioning,
    VPrediction,
)
from fewstep.models.nets.blocks import latent_guidance_embedding
from fewstep.objectives.lcm import Draws, LatentConsistency
from fewstep.objectives.shared.discrete import TeacherStep
from fewstep.objectives.shared.distances import Huber, l2
from fewstep.paths import DiscreteVariancePreserving, Event, Linear, Time, Trig
from fewstep.steps import ddim
from fewstep.times import Uniform, shift, strided, thinned
from golden_sets import Case, Topic, check, networks, stand_in

Values = Iterator[tuple[str, Tensor]]

TOPIC = "latent_lcm"
PREDICTIONS: dict[str, type[Preconditioning]] = {
    "epsilon": NoisePrediction,
    "v_prediction": VPrediction,
    "sample": DataPrediction,
}
LOSSES = {"l2": lambda c: l2, "huber": Huber}


def table(case: Case, t_max: float) -> DiscreteVariancePreserving:
    """The path of the betas from which the case's table was made."""
    settings = case.settings
    if "beta_start" not in settings:
        # The training step has the table itself, whose betas no setting names.
        return of_alphas(case.inputs["alphas_cumprod"], t_max)
    assert settings["beta_schedule"] == "scaled_linear"
    ends = {"beta_start": settings["beta_start"], "beta_end": settings["beta_end"]}
    return DiscreteVariancePreserving(t_max=t_max, **ends)


def of_alphas(alphas_cumprod: Tensor, t_max: float) -> DiscreteVariancePreserving:
    """The path whose table this is; its two ends say which betas are linear in the root."""
    last = (1 - alphas_cumprod[-1] / alphas_cumprod[-2]).item()
    path = DiscreteVariancePreserving(
        t_max=t_max,
        steps=len(alphas_cumprod),
        beta_start=1 - alphas_cumprod[0].item(),
        beta_end=last,
    )
    at = torch.arange(len(alphas_cumprod), dtype=torch.float64)
    torch.testing.assert_close(
        path.coefficients(at).alpha ** 2, alphas_cumprod, rtol=1e-10, atol=1e-13
    )
    return path


# The training step.


class LatentNet(nn.Module):
    """F of t / 1000 and of a prompt embedding; with an embedding of w, plus 0.05 of its mean."""

    two_time = False

    def __init__(self, role: str, embedding: Tensor | None = None) -> None:
        super().__init__()
        self.inner = stand_in(role, networks().coefficients, condition=True)
        self.embedding = embedding
        self.cond_keys = ("condition",) + ("guidance",) * (embedding is not None)

    def get_parameter(self, target: str) -> nn.Parameter:
        return self.inner.get_parameter(target)

    def forward(
        self, x: Tensor, c_noise: Tensor, s_noise: Tensor | None = None, cond: Cond | None = None
    ) -> Tensor:
        out = self.inner(x, c_noise / 1000, None, cond)
        if self.embedding is None:
            return out
        # The script's embedding is in float32, so the recorded one stands in for ours.
        own = latent_guidance_embedding(cond["guidance"], self.embedding.shape[1])
        torch.testing.assert_close(own, self.embedding, rtol=2e-3, atol=2e-3)
        return out + expand(0.05 * self.embedding.mean(1), x)


def draws_of(case: Case) -> dict[str, Tensor]:
    """The draws of the official call by the function that made them."""
    entries = Topic(TOPIC).entries
    names = case["inputs"]["draws"]
    return {entries[name].settings["dist"]: entries[name].array for name in names}


def with_raw_noise(denoiser: Guided, x: Event, t: Time, s: Time, cond: Cond | None) -> Event:
    """The script's DDIM step: the raw, guided output stands where the noise belongs."""
    alpha, sigma, _, _ = denoiser.path.coefficients(s)
    return expand(alpha, x) * denoiser(x, t, None, cond) + expand(sigma, x) * raw(
        denoiser, x, t, cond
    )


def raw(guided: Guided, x: Event, t: Time, cond: Cond | None) -> Tensor:
    """The guided network's own output."""
    given = dict(cond or {})
    scale = given.pop("guidance")
    null = {key: guided.null[key].expand_as(given[key]) for key in guided.null}
    with_null = guided.denoiser.raw(x, t, None, {**given, **null})
    return with_null + expand(scale, x) * (guided.denoiser.raw(x, t, None, given) - with_null)


def training_step(case: Case) -> Values:
    drawn, inputs = draws_of(case), case.inputs
    given = case.outputs.get("w_embedding")
    assert case["use_lora"] == (given is None)
    grid = strided(case["num_ddim_timesteps"], len(inputs["alphas_cumprod"]))
    path = table(case, float(grid[0]))
    scalings = PREDICTIONS[case["prediction_type"]](path=path, time_scale=1.0)

    def student(role: str) -> Denoiser:
        net = LatentNet(role, None if given is None else given.array)
        boundary = LatentBoundary(
            inner=scalings,
            sigma_data=case["sigma_data"],
            timestep_scaling=case["timestep_scaling"],
            path=path,
        )
        return Denoiser(net, boundary)

    # Guided takes one null for all samples, and the script has one for each.
    null = inputs["uncond_prompt_embeds"]
    teacher = Guided(Denoiser(LatentNet("teacher"), scalings), {"condition": null})
    v = case["prediction_type"] == "v_prediction"
    assert v == ("defect" in case["solver_noise"])
    own = case["nets"]["target_unet"] == "student itself"
    objective = LatentConsistency(
        student("student"),
        TeacherStep(teacher, with_raw_noise if v else ddim),
        grid=grid,
        # The script's w is a scale less 1.
        guidance=Uniform(1 + case["w_min"], 1 + case["w_max"]),
        rate=0.0 if own else 0.95,
        distance=LOSSES[case["loss_type"]](case["huber_c"]),
    )
    if objective.target is not None:
        objective.target.load_state_dict(student(case["nets"]["target_unet"]).state_dict())
    index, noise = drawn["randint"], drawn["randn_like"]
    w = case["w_min"] + (case["w_max"] - case["w_min"]) * drawn["rand"]
    t, r = objective.interval(index)
    batch = Batch(inputs["latents"], {"condition": inputs["prompt_embeds"]})
    if given is not None:
        yield "w_embedding", latent_guidance_embedding(1 + w, given.array.shape[1])
    yield "index", index
    yield "start_timesteps", t.long()
    yield "timesteps", r.long()
    x_t = path.perturb(batch.x0, noise, t)
    cond = {**batch.cond, "guidance": 1 + w}
    yield "noisy_model_input", x_t
    yield "model_pred", objective.student(x_t, t, None, cond)
    yield "pred_x0", teacher(x_t, t, None, cond)
    yield "pred_noise", raw(teacher, x_t, t, cond)
    x_r = objective.step(x_t, Batch(batch.x0, cond), noise, t, r)
    yield "x_prev", x_r
    target = objective.student if objective.target is None else objective.target
    yield "target", target(x_r, r, None, cond)
    loss = objective.loss(batch, Draws(t, r, noise, None, 1 + w)).total()
    yield "loss", loss
    loss.backward()
    for output in case.outputs:
        if output.startswith("grad_"):
            yield output, objective.student.net.get_parameter(output.removeprefix("grad_")).grad


# Samplers.


def scheduler_times(case: Case) -> Values:
    """Of LCM and TCD; a strength below 1 leaves out the noisiest of the grid's times."""
    count = case["original_inference_steps"]
    grid = strided(count, case.settings.get("num_train_timesteps", 1000))[:-1]
    kept = int(count * case.settings.get("strength", 1.0))
    times = thinned(grid[count - kept :], case["num_inference_steps"])
    yield "timesteps", times.long()


def tcd_steps(case: Case) -> Values:
    """Jump below the next time, noise up to it; TCD rounds down to an entry of the table."""
    times = thinned(strided(case["original_inference_steps"])[:-1], case["num_inference_steps"])
    path = table(case, float(times[0]))
    scale = re.fullmatch(r"t/(\d+)", case["net_time"])
    assert scale, case["net_time"]
    prediction = PREDICTIONS[case["prediction_type"]](path=path, time_scale=1 / float(scale[1]))
    model = Denoiser(stand_in(case["nets"]["model"], networks().coefficients), prediction)
    later = torch.cat([times[1:], times.new_zeros(1)])
    below = torch.floor((1 - case["eta"]) * later)
    trajectory, noised = [case.inputs["start"]], []
    for i, ends in enumerate(zip(times, below, later, strict=True)):
        t, s, up = (end.expand(len(trajectory[0])) for end in ends)
        noised.append(model.jump(trajectory[-1], t, s))
        last = i == len(times) - 1 or case["eta"] == 0
        noise = None if last else case.inputs["noise"][i]
        trajectory.append(noised[-1] if noise is None else path.renoise(noised[-1], noise, up, s))
    own = {"timestep_s": below.long(), "traj": torch.stack(trajectory)}
    own["pred_noised_sample"] = torch.stack(noised)
    yield from ((output, own[output]) for output in case.outputs)


# Rectified flows on the trigonometric path.


def flow_as_trig(case: Case) -> Values:
    """A network of flow times in [0, 1], which sees 1000 t."""
    flow = Flow(path=Linear(), time_scale=case["t_scaling_factor"])
    scalings = flow.on(Trig(sigma_data=case["sigma_data"]))
    coefficients = scalings.coefficients(case.inputs["trigflow_t"])
    yield from ((output, getattr(coefficients, output)) for output in case.outputs)


LINEAR, TRIG = Linear(), Trig(sigma_data=1.0)
CONVERSIONS = {
    "rf_to_sigma": lambda t: LINEAR.ratio(t),
    "rf_to_trig_time": lambda t: TRIG.time(LINEAR.ratio(t)),
    "trig_to_rf_time": lambda t: LINEAR.time(TRIG.ratio(t)),
    "sigma_to_rf_time": lambda t: LINEAR.time(t.tan()),
}


def converted(case: Case) -> Values:
    assert case.settings.get("argument", "tan(trig_t)") == "tan(trig_t)"
    yield "time", CONVERSIONS[case["call"]](case.inputs["t"])


def shifted(case: Case) -> Values:
    yield "time", shift(case.inputs["u"], case["shift"])


CALLS = {
    "main: distillation step": training_step,
    "LCMScheduler.set_timesteps": scheduler_times,
    "TCDScheduler.set_timesteps": scheduler_times,
    "TCDScheduler.step": tcd_steps,
    "RectifiedFlow_TrigFlowWrapper": flow_as_trig,
    "shift_rf_time": shifted,
    **dict.fromkeys(CONVERSIONS, converted),
}


def test_golden_latent_lcm(record_property) -> None:
    check(TOPIC, CALLS, record_property)
