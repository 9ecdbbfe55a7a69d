"""DMD2's guidance: its noise levels, distribution matching and the fake's loss (EDM on images)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from fewstep.core import Batch, Rng
from fewstep.models import AbstractDenoiser
from fewstep.objectives.dmd import DMD
from fewstep.objectives.shared.matching import Compared, FewSteps, Made
from fewstep.objectives.shared.weights import karras_weight
from fewstep.paths import VarianceExploding
from fewstep.times import KarrasIndex, karras
from golden_dmd2_gan import GAN_CALLS, gan
from golden_sets import Case, check, closed_form, networks, noise_levels

Values = Iterator[tuple[str, Tensor]]


class Given(AbstractDenoiser):
    """A generator whose samples are the case's."""

    cond_keys, two_time = (), False

    def __init__(self, path: VarianceExploding, x: Tensor) -> None:
        super().__init__()
        self.path, self.x = path, nn.Parameter(x.clone())

    def forward(self, x, t, s=None, cond=None) -> Tensor:
        return self.x


def levels(case: Case, first: int, last: int) -> KarrasIndex:
    assert case["rho"] == 7
    ends = case["sigma_min"], case["sigma_max"]
    return KarrasIndex(first, last, case["num_train_timesteps"], *ends)


def dmd(case: Case) -> DMD:
    """Whose loss has no other terms than the official call."""
    assert case["net_kind"] == "D"
    sigma_data, path = case["sigma_data"], noise_levels(case)
    assert sigma_data == networks().sigma_data
    # A call that takes no teacher names none, and then the fake's own will do.
    roles = (case["nets"].get("real", case["nets"]["fake"]), case["nets"]["fake"])
    teacher, fake = (closed_form(role, path, condition=True) for role in roles)
    return DMD(
        Given(path, case.inputs["latents"]),
        teacher,
        fake,
        generate=FewSteps((path.t_max,)),
        weight=karras_weight(sigma_data),
        times=levels(case, case["min_step"], case["max_step"]),
        critic_times=levels(case, 0, case["num_train_timesteps"] - 1),
    )


def given(case: Case, law: KarrasIndex) -> tuple[Batch, Compared]:
    """What the official code drew, as this law's times."""
    x, noise = case.inputs["latents"], case.inputs["noise"]
    t = law.grid()[case.inputs["timesteps"].flatten()]
    made = Made(torch.zeros_like(noise)[None], torch.tensor(0))
    return Batch(x, {"condition": case.inputs["labels"]}), Compared(made, t, noise)


def noise_levels_ascending(case: Case) -> Values:
    assert case["rho"] == 7
    assert case["ascending"]
    assert not case["append_zero"]
    n, ends = case["n"], (case["sigma_min"], case["sigma_max"])
    grid = KarrasIndex(0, n - 1, n, *ends).grid()
    assert grid.equal(karras(n, *ends).flip(0))
    yield "karras_sigmas", grid


def drawn_steps(case: Case) -> Values:
    """The least and greatest index among many draws."""
    n = case["num_train_timesteps"]
    first, last = (int(n * case[f"{end}_step_percent"]) for end in ("min", "max"))
    law = KarrasIndex(first, last, n)
    index = torch.searchsorted(law.grid(), law.levels(100 * n, Rng(0, 0, "student")))
    yield "min_max_step", torch.stack([index.min(), index.max()])


def distribution_matching(case: Case) -> Values:
    assert case["weighting"] == "1/mean|latents-pred_real|"
    objective = dmd(case)
    x, teacher, fake = objective.student.x, objective.teacher, objective.fake
    seen = {}

    def keep(net: nn.Module, args: tuple, answer: Tensor) -> None:
        seen[net] = args[0], answer

    for net in (teacher, fake):
        net.register_forward_hook(keep)
    batch, draws = given(case, objective.times)
    loss = objective.loss(batch, draws).terms["matching"]
    loss.backward()
    (noisy, real), (same, learnt) = seen[teacher], seen[fake]
    assert noisy.equal(same)
    # The loss is half the mean square of what it takes for the gradient, so that is its own
    # gradient, times the number of elements.
    gradient = x.grad * x.numel()
    yield "noisy_latents", noisy
    yield "pred_real_image", real
    yield "pred_fake_image", learnt
    yield "grad", gradient
    yield "gradient_norm", gradient.norm()
    yield "loss", loss
    yield "dloss_dlatents", x.grad


def fake_loss(case: Case) -> Values:
    assert case["weighting"] == "sigma**-2+1/sigma_data**2"
    assert case["reduction"] == "mean"
    objective = dmd(case)
    fake, answers = objective.fake, []
    fake.register_forward_hook(lambda net, args, answer: answers.append(answer))
    batch, draws = given(case, objective.critic_times)
    loss = objective.critic_loss(batch, draws).terms["denoising"]
    loss.backward()
    found = {"loss": loss, "x0_pred": answers[-1]}
    found |= {f"grad_{name}": p.grad for name, p in fake.net.named_parameters()}
    yield from ((output, found[output]) for output in case.outputs)


def accumulated(case: Case) -> Values:
    """The gradients of the fake's loss and of the generator's by the judge, clean and noised.

    They were added up: the official code was asked for all three without forgetting the first.
    """
    kinds = ("fake loss", "gen_cls_loss(gan_diff0)", "gen_cls_loss(gan_diff1)")
    assert case["grad_of"].startswith(" + ".join(kinds))
    inputs = case.inputs

    def drawn(which: str) -> dict[str, Tensor]:
        return {name: inputs[f"{which}_{name}"] for name in ("timesteps", "noise")}

    own = replace(case, inputs={**inputs, **drawn("fake")})
    objective = dmd(own)
    batch, draws = given(own, objective.critic_times)
    losses = [(objective.fake, objective.critic_loss(batch, draws).terms["denoising"])]
    for more, settings in (
        ({}, {"diffusion_gan": False, "sigma_index": 0}),
        (drawn("gan"), {"diffusion_gan": True}),
    ):
        settings |= {"head": "w*mean(tanh(rep))+b", **case.settings}
        image = {**inputs, "image": inputs["latents"], **more}
        judged, batch, draws = gan(replace(case, settings=settings, inputs=image))
        fake = judged.critic["fake"].requires_grad_(True)
        losses.append((fake, judged.loss(batch, draws).terms["adversarial"]))
    for output in case.outputs:
        name = output.removeprefix("grad_")
        grads = (
            torch.autograd.grad(loss, fake.net.get_parameter(name), retain_graph=True)[0]
            for fake, loss in losses
        )
        yield output, torch.stack([*grads]).sum(0)


CALLS = {
    "EDMGuidance: accumulated .grad": accumulated,
    "get_sigmas_karras": noise_levels_ascending,
    "EDMGuidance.__init__": drawn_steps,
    "EDMGuidance.compute_distribution_matching_loss": distribution_matching,
    "EDMGuidance.compute_loss_fake": fake_loss,
    **GAN_CALLS,
}


def test_golden_dmd2(record_property) -> None:
    check("dmd2", CALLS | GAN_CALLS, record_property)
