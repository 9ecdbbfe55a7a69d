"""Mapping, loss, scalings and sampler of locuslab/ect.

It counts stages; a curriculum of one step a stage is at stage k in step k.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.models import EDM, Denoiser
from fewstep.objectives.ect import Draws, EasyConsistency, SameNoise
from fewstep.objectives.shared.discrete import Curriculum
from fewstep.objectives.shared.distances import PseudoHuber
from fewstep.paths import VarianceExploding
from fewstep.solvers import multistep
from fewstep.times import LogNormal
from golden_sets import Case, check, closed_form, each_loss, gradients, networks, stand_in
from test_golden_edm import times_by

Values = Iterator[tuple[str, Tensor]]

CLEAN = VarianceExploding(0.0, 80.0)


def curriculum(case: Case) -> Curriculum:
    k = {"sigmoid": case["k"], "const": 0.0}[case["adj"]]
    return Curriculum(every=1, q=case["q"], k=k, b=case["b"])


def earlier(case: Case) -> Values:
    found = curriculum(case)
    assert abs(found.ratio(case["stage"]) - case["ratio"]) < 1e-12
    yield "r", found(case.inputs["t"], case["stage"])


def loss(case: Case) -> Values:
    law = LogNormal(case["P_mean"], case["P_std"])
    t = times_by(law, "randn", case.inputs["rnd_normal"])
    objective = EasyConsistency(
        closed_form(case["nets"]["net"], CLEAN),
        SameNoise(CLEAN),
        curriculum=curriculum(case),
        distance=PseudoHuber(case["c"]),
        boundary=0.0,
    )
    assert objective.student.sigma_data == case["sigma_data"]
    r = objective.curriculum(t, case["stage"])
    draws = Draws(t, r, case.inputs["eps"])
    for output, time in (("t", t), ("r", r)):
        yield output, time.reshape(case.inputs["rnd_normal"].shape)
    yield "loss", each_loss(objective, case.inputs["images"], draws)
    yield from gradients(case, objective, case.inputs["images"], draws)


def scalings(case: Case) -> Values:
    """Training's are the student's, evaluation's those of what is delivered."""
    net = stand_in(case["nets"]["model"], networks().coefficients)
    objective = EasyConsistency(
        Denoiser(net, EDM(sigma_data=case["sigma_data"], path=CLEAN)),
        SameNoise(CLEAN),
        curriculum=Curriculum(every=1),
        boundary=case["sigma_min"],
    )
    student = objective.student
    denoiser = student if case["train"] else objective.deliver(student)
    yield "D_x", denoiser(case.inputs["x"], case.inputs["sigma"])


def generator(case: Case) -> Values:
    """Noise of std t is added again, as it is on a path that ends on clean data."""
    path = VarianceExploding(0.0, case["t_max"])
    times = torch.tensor([case["t_max"], *case["mid_t"]], dtype=torch.float64)
    start = case.inputs["latents"] * case["t_max"]
    student = closed_form(case["nets"]["net"], path)
    yield "x", multistep(student, start, times, lambda i: case.inputs["noise"])


CALLS = {
    "ECMLoss.t_to_r": earlier,
    "ECMLoss": loss,
    "ECMPrecond": scalings,
    "generator_fn": generator,
}


def test_golden_ect(record_property) -> None:
    check("ect", CALLS, record_property)
