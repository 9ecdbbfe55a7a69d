"""DMD2 of NVlabs/FastGen, which differs from the official code, and so from here.

- It judges on the frozen teacher's features, at the times and with the noise of the other term.
- It adds ``weight_eps`` to the size by which the matching gradient is divided (and computes the
  quotient in single precision, which is within the tolerance): each sample's gradient is ours times
  a factor, and its loss ours times the factor's square.
- The fake's error is unweighted, in what the network is asked to predict: a weight on ours. As
  "flow" it compares the path's (x_t - D)/t with noise - x0, whose mean that is not on noise levels:
  D learns (1 + t) x0, and the comparison is with ours on samples (1 + t) x0 of the same x_t.
- The penalty's noise is added to clean data, but judged at the time of the noised: ours is added
  to the noised, and what is drawn here leads to the same sum.
- Samples are clean, not at ``t_min``: so are ours on a path that begins at 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep import solvers
from fewstep.core import Batch, expand, per_sample
from fewstep.models import Guided
from fewstep.objectives.dmd2 import DMD2, Draws
from fewstep.objectives.shared.drop import Draws as Noised
from fewstep.objectives.shared.matching import FewSteps, Made
from fewstep.objectives.shared.weights import snr_weight, unweighted
from fewstep.paths import Path, VarianceExploding
from fewstep.times import KarrasIndex, KarrasUniform, LogNormal, TruncatedLogStudent, Uniform
from fewstep.times.laws import Law
from golden_dmd2_gan import Known, MeanOfTanh, Values, alone
from golden_fdistill import FDISTILL_CALLS
from golden_sets import Case, check, closed_form

WEIGHTS = {
    "x0": unweighted,
    "eps": snr_weight,
    "flow": snr_weight,
}


def made(case: Case) -> tuple[DMD2, Batch, Draws]:
    assert case["net_kind"] == "D"
    inputs, start = case.inputs, case["t_student"]
    path = VarianceExploding(0.0, start)
    student, teacher, fake = (
        closed_form(case["nets"][role], path, condition=True)
        for role in ("student", "teacher", "fake")
    )
    if case.settings.get("guidance") is not None:
        assert case["neg_condition"] == "zeros"
        teacher = Guided(teacher, {"condition": 0.0}, case["guidance"])
    judged = case["gan_weight"] > 0
    penalty = case.settings.get("r1_weight", 0.0)
    objective = DMD2(
        student,
        teacher,
        fake,
        generate=FewSteps((start,)),
        weight=WEIGHTS[case.settings.get("fake_score_pred_type", "x0")],
        judge=MeanOfTanh(case["disc_w"], case["disc_b"]) if judged else None,
        adversarial=case["gan_weight"],
        adversarial_critic=1.0,
        judged="teacher",
        penalty=penalty,
        penalty_std=case.settings.get("r1_alpha", 0.0),
    )
    noise, cond = inputs["input_student"] / start, {"condition": inputs["condition"]}
    noised = Noised(inputs["t"], inputs["eps"])
    draws = Draws(Made(noise[None], torch.tensor(0)), noised)
    if judged:
        draws = draws._replace(fake=noised, real=noised)
    if penalty:
        already = expand(noised.t, noise) * noised.noise / objective.penalty_std
        draws = draws._replace(disturbance=inputs["r1_noise"] - already)
    return objective, Batch(inputs.get("real_data", noise), cond), draws


def matching(
    case: Case, objective: DMD2, batch: Batch, draws: Draws
) -> tuple[Tensor, dict[str, Tensor]]:
    """Their value of the matching loss and its gradients, of ours of each sample alone."""
    value, parameters = torch.zeros(()), dict(objective.student.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for one, draw in alone(batch, draws):
        t, noise, _ = draw.noised
        with torch.no_grad():
            x = objective.generate(objective.student, one, draw.made, one.cond)
            answer = objective.teacher(
                objective.student.path.perturb(x, noise, t), t, None, one.cond
            )
            size = per_sample((x - answer).abs())
            factor, _ = size / (size + case["weight_eps"])
        loss = objective.loss(one, draw).terms["matching"]
        found = torch.autograd.grad(loss, [*parameters.values()])
        for into, g in zip(total.values(), found, strict=True):
            into += factor * g / len(batch)
        value = value + factor**2 * loss / len(batch)
    return value, total


def student_update(case: Case) -> Values:
    objective, batch, draws = made(case)
    value, total = matching(case, objective, batch, draws)
    judged = torch.zeros((), dtype=torch.float64)
    if case["gan_weight"] > 0:
        judged = objective.loss(batch, draws).terms["adversarial"]
        found = torch.autograd.grad(judged, [*objective.student.parameters()])
        for into, g in zip(total.values(), found, strict=True):
            into += g
    values = {
        "vsd_loss": value,
        "gan_loss_gen": judged / (case["gan_weight"] or 1.0),
        "total_loss": value + judged,
        **{f"grad_{name.removeprefix('net.')}": g for name, g in total.items()},
    }
    yield from ((output, values[output]) for output in case.outputs)


def critic_update(case: Case) -> Values:
    assert case["gan_use_same_t_noise"]
    objective, batch, draws = made(case)
    if case["fake_score_pred_type"] == "flow":
        x = objective.generate(objective.student, batch, draws.made, batch.cond).detach()
        t, noise, _ = draws.noised
        objective.student = Known(objective.student.path, expand(1 + t, x) * x)
        batch.cond["index"] = torch.arange(len(x))
        noised = Noised(t, noise - x)
        draws = draws._replace(noised=noised, fake=noised)
    _, critic = objective.phases()
    losses = [part(batch, draws) for part in critic.losses]
    terms = {name: term for loss in losses for name, term in loss.terms.items()}
    total = torch.stack([*terms.values()]).sum()
    total.backward()
    values = {
        "total_loss": total,
        "fake_score_loss": terms["denoising"],
        "gan_loss_disc": terms["judge"],
        **{f"grad_{k}": p.grad for k, p in objective.critic["fake"].net.named_parameters()},
        **{f"grad_disc_{k}": p.grad for k, p in objective.critic["judge"].named_parameters()},
    }
    if "penalty" in terms:
        values["gan_loss_ar1"] = terms["penalty"] / case["r1_weight"]
    yield from ((output, values[output]) for output in case.outputs)


def variational_score_distillation(case: Case) -> Values:
    path, inputs = VarianceExploding(), case.inputs
    x = inputs["gen_data"]
    student, teacher, fake = (
        Known(path, inputs[name]) for name in ("gen_data", "teacher_x0", "fake_score_x0")
    )
    objective = DMD2(student, teacher, fake, generate=FewSteps((80.0,)), weight=unweighted)
    batch = Batch(x, {"index": torch.arange(len(x))})
    noised = Noised(torch.ones(len(x), dtype=x.dtype), torch.zeros_like(x))
    draws = Draws(Made(torch.zeros_like(x)[None], torch.tensor(0)), noised)
    value, gradients = matching(case, objective, batch, draws)
    yield "loss", value
    yield "grad", gradients["x"]


def generator_fn(case: Case) -> Values:
    assert case["x_init"] == "noise0*t_list[0]"
    *times, end = case["t_list"]
    assert (end, len(times)) == (0, case["steps"])
    student = closed_form(case["nets"]["net"], VarianceExploding(0.0, times[0]), condition=True)
    cond, first = {"condition": case.inputs["condition"]}, case.inputs["noise0"]
    grid = torch.tensor(times, dtype=torch.float64)
    if case["sampler"] == "ode":
        yield "x", solvers.deterministic(student, first * times[0], grid, cond)
        return
    later = case.inputs.get("noise", first[None][:0])
    yield "x", solvers.multistep(student, first * times[0], grid, lambda i: later[i], cond)
    draws = Made(torch.cat([first[None], later]), torch.tensor(len(times) - 1))
    yield "x", FewSteps(tuple(times))(student, Batch(first, cond), draws, cond)


def default_times(case: Case) -> Values:
    """Equal steps of index, down the grid; the official indices are rounded in single precision."""
    assert (case["rho"], float(case["last"])) == (7, 0)
    first, last = case["min_step"], case["max_step"]
    law = KarrasIndex(first, last, case["num_steps"], case["min_t"], case["max_t"])
    index = torch.linspace(last, first, case["steps"] + 1)[:-1].long()
    times = FewSteps(tuple(law.grid()[index].tolist())).times
    yield "t_list", torch.tensor([*times, 0.0], dtype=torch.float64)


def drawn_times(case: Case) -> Iterator[tuple[str, Law, Path]]:
    """A sample of the law that the library has under another name."""
    ends, scale = (case["min_t"], case["max_t"]), (case["train_p_mean"], case["train_p_std"])
    law = {
        "uniform": lambda: Uniform(*ends),
        "lognormal": lambda: LogNormal(*scale),
        "polynomial": lambda: KarrasUniform(*ends),
        "log_t": lambda: TruncatedLogStudent(*ends, *scale, case["log_t_df"]),
    }[case["time_dist_type"]]()
    yield "t", law, VarianceExploding(*ends)


CALLS = {
    "EDMNoiseSchedule.sample_t": drawn_times,
    "DMD2Model._student_update_step": student_update,
    "DMD2Model._fake_score_discriminator_update_step": critic_update,
    "variational_score_distillation_loss": variational_score_distillation,
    "FastGenModel.generator_fn": generator_fn,
    "EDMNoiseSchedule.get_t_list": default_times,
}


def test_golden_fastgen_dmd2(record_property) -> None:
    check("fastgen_dmd2", CALLS | FDISTILL_CALLS, record_property)
