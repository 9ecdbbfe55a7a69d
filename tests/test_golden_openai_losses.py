"""The consistency, progressive distillation and denoising losses of openai/consistency_models."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fewstep.core import Batch
from fewstep.objectives.consistency import Consistency, Draws, Fixed, SameNoise, TeacherStep
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.denoising import Draws as DenoisingDraws
from fewstep.objectives.progressive import Draws as ProgressiveDraws
from fewstep.objectives.progressive import ProgressiveDistillation
from fewstep.objectives.shared.distances import l1, l2, l2_at_32
from fewstep.solvers import STEPS
from fewstep.times import LogNormal, karras
from golden_sets import Case, Topic, check, each_loss, gradients, karras_denoiser, weighting

Values = Iterator[tuple[str, Tensor]]

DISTANCES = {"l1": l1, "l2": l2, "l2-32": l2_at_32}
KEEPS_A_TARGET = 0.5  # any rate above 0; the loss does not know it


def consistency(case: Case, rate: float) -> Consistency:
    """The objective; its target, if ``rate`` gives it one, is still a copy of the student."""
    nets = case["nets"]
    student = karras_denoiser(case, nets["model"], case["boundary"])
    path = student.path
    step = SameNoise(path)
    if "teacher" in nets:
        teacher = karras_denoiser(case, nets["teacher"], case["teacher_boundary"])
        step = TeacherStep(teacher, STEPS[case["solver"]])
    options = {}
    if case["weighting"] != "uniform":  # which is the default
        weight = weighting(case["weighting"], case["sigma_data"])
        options["weight"] = lambda t, r: weight(path.snr(t))
    if case["rho"] != inspect.signature(karras).parameters["rho"].default:
        options["grid"] = lambda n: karras(n, path.t_min, path.t_max, case["rho"])
    schedule = Fixed(case["num_scales"], rate)
    distance = DISTANCES[case["loss_norm"]]
    return Consistency(student, step, schedule=schedule, distance=distance, **options)


def drawn(case: Case, objective: Consistency) -> Draws:
    t, r = objective.pair(case.inputs["indices"], case["num_scales"])
    return Draws(t, r, case.inputs["noise"])


def consistency_losses(case: Case) -> Values:
    objective = consistency(case, KEEPS_A_TARGET)
    target = karras_denoiser(case, case["nets"]["target"], case["boundary"])
    assert objective.target is not None
    objective.target.load_state_dict(target.state_dict())
    x0, draws = case.inputs["x_start"], drawn(case, objective)
    yield "loss", each_loss(objective, x0, draws)
    yield from gradients(case, objective, x0, draws)


def training_losses(case: Case) -> Values:
    assert case["loss_norm"] == "l2"
    x0 = case.inputs["x_start"]
    draws = DenoisingDraws(case.inputs["sigmas"], case.inputs["noise"])

    def objective(name: str) -> Denoising:
        student = karras_denoiser(case, case["nets"]["model"], case["boundary"])
        weight = weighting(name, case["sigma_data"])
        return Denoising(student, times=LogNormal(), weight=weight)

    weighted = objective(case["weighting"])
    yield "xs_mse", each_loss(objective("uniform"), x0, draws)
    for output in ("mse", "loss"):
        yield output, each_loss(weighted, x0, draws)
    yield from gradients(case, weighted, x0, draws)


def progdist_losses(case: Case) -> Values:
    assert case["solver"] == "euler_two_half_steps"
    n, nets = case["num_scales"], case["nets"]
    student = karras_denoiser(case, nets["model"], case["boundary"])
    objective = ProgressiveDistillation(
        student,
        karras_denoiser(case, nets["teacher"], case["teacher_boundary"]),
        schedule=lambda step: n,
        weight=weighting(case["weighting"], case["sigma_data"]),
        distance=DISTANCES[case["loss_norm"]],
        grid=lambda m: karras(m, student.path.t_min, student.path.t_max, case["rho"]),
    )
    times = objective.times(case.inputs["indices"], n)
    x0, draws = case.inputs["x_start"], ProgressiveDraws(*times, case.inputs["noise"])
    yield "loss", each_loss(objective, x0, draws)
    yield from gradients(case, objective, x0, draws)


CALLS = {
    "KarrasDenoiser.consistency_losses": consistency_losses,
    "KarrasDenoiser.progdist_losses": progdist_losses,
    "KarrasDenoiser.training_losses": training_losses,
}


def test_golden_openai_losses(record_property) -> None:
    check("openai_losses", CALLS, record_property)


def test_golden_consistency_without_a_target_network() -> None:
    """At rate 0 the target is the student without gradient: as a target equal to the student."""
    cases = [c for c in Topic("openai_losses").cases() if "target" in c["nets"]]
    for case in cases:
        found = []
        for rate in (0.0, KEEPS_A_TARGET):
            objective = consistency(case, rate)
            loss = objective.loss(Batch(case.inputs["x_start"]), drawn(case, objective)).total()
            loss.backward()
            grads = [p.grad for p in objective.student.parameters()]
            found.append(torch.stack([loss.detach(), *grads]).tolist())
        assert found[0] == pytest.approx(found[1], rel=1e-12), case["case"]
    assert cases
