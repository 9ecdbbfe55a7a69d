"""DMD2's judge on images, for the topic ``dmd2``: GAN_CALLS; and stand-ins for judges and answers.

The official code judges on the fake network's bottleneck, for which the stand-in is the network's
answer, and in single precision. Without ``diffusion_gan`` images are judged as they are, at the
lowest of the noise levels, the path's ``t_min``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fewstep.core import Batch, Rng, per_sample
from fewstep.models import AbstractDenoiser
from fewstep.objectives.dmd2 import DMD2, Draws
from fewstep.objectives.shared.drop import Draws as Noised
from fewstep.objectives.shared.matching import FewSteps, Made
from fewstep.objectives.shared.weights import karras_weight
from fewstep.paths import Path
from golden_sets import Case, closed_form, networks, noise_levels

Values = Iterator[tuple[str, Tensor]]


class Known(AbstractDenoiser):
    """Answers with given samples: those of ``cond["index"]``."""

    cond_keys, two_time = ("index",), False

    def __init__(self, path: Path, x: Tensor) -> None:
        super().__init__()
        self.path, self.x = path, nn.Parameter(x.clone())

    def forward(self, x, t, s=None, cond=None) -> Tensor:
        return self.x[cond["index"]]


class MeanOfTanh(nn.Module):
    """One logit, w mean(tanh(D)) + b."""

    def __init__(self, w: float, b: float) -> None:
        super().__init__()
        self.w, self.b = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (w, b))

    def forward(self, denoiser, x, t, cond=None) -> list[Tensor]:
        return [self.w * per_sample(denoiser(x, t, None, cond).tanh())[:, None] + self.b]


def alone(batch: Batch, draws: Draws) -> Iterator[tuple[Batch, Draws]]:
    """Each sample with its draws, and once more: the spread of a single one is not defined."""
    for i in range(len(batch)):
        one = [i, i]

        def part(at: Noised | None, one: list[int] = one) -> Noised | None:
            return None if at is None else Noised(at.t[one], at.noise[one])

        made = Made(draws.made.noise[:, one], draws.made.call)
        cond = {k: v[one] for k, v in batch.cond.items()}
        noised = part(draws.noised), part(draws.fake), part(draws.real)
        yield Batch(batch.x0[one], cond), Draws(made, *noised)


def gan(case: Case) -> tuple[DMD2, Batch, Draws]:
    """With terms unweighed, and the official draws, if there are any."""
    assert case["net_kind"] == "D"
    assert case["head"] == "w*mean(tanh(rep))+b"
    assert case["sigma_data"] == networks().sigma_data
    path, inputs = noise_levels(case), case.inputs
    fake = closed_form(case["nets"]["fake"], path, condition=True)
    x = inputs["image"] if "image" in inputs else inputs["fake_image"]
    objective = DMD2(
        Known(path, x),
        fake,
        fake,
        generate=FewSteps((path.t_max,)),
        weight=karras_weight(case["sigma_data"]),
        judge=MeanOfTanh(case["head_w"], case["head_b"]),
        adversarial=1.0,
        adversarial_critic=1.0,
        adversarial_times=None,
    )
    cond = {"condition": inputs["labels"], "index": torch.arange(len(x))}
    batch = Batch(inputs.get("real", x), cond)
    draws = objective.draw_critic(batch, 0, Rng(0, 0, "critic"))
    if not case["diffusion_gan"]:
        assert case["sigma_index"] == 0
        return objective, batch, draws

    def judged(name: str) -> Noised:
        t = inputs["karras_sigmas"][inputs[f"{name}timesteps"]]
        return Noised(t, inputs[f"{name}noise"])

    if "real" not in inputs:
        return objective, batch, draws._replace(fake=judged(""))
    return objective, batch, draws._replace(fake=judged("fake_"), real=judged("real_"))


def generator(case: Case) -> Values:
    objective, batch, draws = gan(case)
    loss = objective.loss(batch, draws).terms["adversarial"]
    yield "gen_cls_loss", loss
    objective.zero_grad()
    loss.backward()
    yield "gen_dimage", objective.student.x.grad


def guidance(case: Case) -> Values:
    objective, batch, draws = gan(case)
    yield "guidance_cls_loss", objective.judge_loss(batch, draws).terms["judge"]
    each = [objective.judge_loss(*one).logs for one in alone(batch, draws)]
    for name in ("real", "fake"):
        yield f"realism_{name}", torch.stack([logs[f"realism/{name}"] for logs in each])


GAN_CALLS = {
    "EDMGuidance.compute_generator_clean_cls_loss": generator,
    "EDMGuidance.compute_guidance_clean_cls_loss": guidance,
}
