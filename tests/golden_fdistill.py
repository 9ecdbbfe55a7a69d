"""f-distill of NVlabs/FastGen: its calls among those of the topic ``fastgen_dmd2``.

Its student's input has the noise's size already, and it judges through the teacher. What it divides
by is larger by ``weight_eps``, which comes in with the factors here; means of ratios and factors
are larger by 1e-6, and all of it is in single precision: within the tolerance.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fewstep.core import Batch, per_sample
from fewstep.models import Guided
from fewstep.objectives.f_distill import FDistill
from fewstep.objectives.shared.matching import Compared, FewSteps, Made
from fewstep.objectives.shared.ratios import Divergence
from fewstep.objectives.shared.weights import unweighted
from fewstep.paths import VarianceExploding
from golden_sets import Case, closed_form

DIVERGENCES: dict[str, Divergence] = {
    "rkl": "reverse-kl",
    "kl": "kl",
    "js": "js",
    "sf": "softened-rkl",
    "neyman": "neyman",
    "sh": "squared-hellinger",
    "jf": "jeffreys",
}


class MeanOfTanh(nn.Module):
    """The stand-in of a discriminator: one logit, of a denoiser's answer."""

    def __init__(self, weight: float, bias: float) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.tensor(v).double()) for v in (weight, bias))

    def forward(self, denoiser, x, t, cond):
        return [self.weight * per_sample(denoiser(x, t, None, cond).tanh())[:, None] + self.bias]


def student_update(case: Case) -> Iterator[tuple[str, Tensor]]:
    settings, inputs = case.settings, case.inputs
    start = case["t_student"]
    path = VarianceExploding(settings.get("min_t", 0.0), settings.get("max_t", start))
    student, teacher, fake = (
        closed_form(case["nets"][role], path, condition=True)
        for role in ("student", "teacher", "fake")
    )
    if case["guidance"] is not None:
        assert case["neg_condition"] == "zeros"
        teacher = Guided(teacher, {"condition": 0.0}, case["guidance"])
    objective = FDistill(
        student,
        teacher,
        fake,
        MeanOfTanh(case["disc_w"], case["disc_b"]),
        generate=FewSteps((start,)),
        weight=unweighted,
        divergence=DIVERGENCES[case["f_div"]],
        adversarial=case["gan_weight"],
        judged="teacher",
        ratio=(case["ratio_lower"], case["ratio_upper"]),
        bins=case["bin_num"] if case["ratio_normalization"] else 0,
        rate=case["ratio_ema_rate"],
    )
    objective.factors.level.fill_(settings.get("bins_init", 1.0))
    noise, cond = inputs["input_student"][None] / start, {"condition": inputs["condition"]}
    batch = Batch(torch.zeros_like(noise[0]), cond)
    draws = Compared(Made(noise, torch.tensor(0)), inputs["t"], inputs["eps"])
    with torch.no_grad():
        x = student(noise[0] * start, torch.full_like(draws.t, start), None, cond)
        answer = teacher(path.perturb(x, draws.noise, draws.t), draws.t, None, cond)
        size = per_sample((x - answer).abs())
    found = []

    def theirs(_, __, h: Tensor) -> Tensor:
        found.append(h)
        return h * size / (size + case["weight_eps"])

    objective.factors.register_forward_hook(theirs)
    loss = objective.loss(batch, draws)
    loss.total().backward()
    (h,) = found
    values = {
        "total_loss": loss.total(),
        "f_distill_loss": loss.terms["matching"],
        "gan_loss_gen": loss.terms["adversarial"] / case["gan_weight"],
        "min_h": h.min(),
        "avg_h": h.mean(),
        "max_h": h.max(),
        **{f"grad_{name}": p.grad for name, p in student.net.named_parameters()},
    }
    yield from ((output, values[output]) for output in case.outputs)


FDISTILL_CALLS = {"FdistillModel._student_update_step": student_update}
