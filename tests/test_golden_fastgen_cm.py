"""ECT, its distillation, TCM and averages of NVlabs/FastGen, all in float64.

Its r is at least ``min_r``, and where that is not below t, t is moved. It counts steps from 1, so
its averages are at update k where ours are after k updates.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fewstep.core import Batch
from fewstep.models import Guided, Switched
from fewstep.objectives import ect, tcm
from fewstep.objectives.ect import EasyConsistency, SameNoise, TeacherStep
from fewstep.objectives.shared.discrete import Curriculum, PairWeight, inverse_gap
from fewstep.objectives.shared.distances import Distance, PseudoHuber, l2
from fewstep.objectives.shared.weights import karras_weight
from fewstep.objectives.tcm import TruncatedConsistency
from fewstep.paths import VarianceExploding
from fewstep.solvers import STEPS
from fewstep.training.averages import half_life
from fewstep.training.posthoc import exponent_to_std, power_rate
from golden_sets import Case, check, closed_form

Values = Iterator[tuple[str, Tensor]]

CLEAN = VarianceExploding(0.0, 80.0)
NETS = ("net", "cm_teacher")


def squared(a: Tensor, b: Tensor, mask: Tensor | None) -> Tensor:
    """A sum over the event, where ours is a mean."""
    return l2(a, b, mask) * a[0].numel()


def distance(case: Case) -> Distance:
    assert case["huber_const"] == 0 or not case["use_squared_l2"]
    return squared if case["use_squared_l2"] else PseudoHuber(case["huber_const"])


def weighting(case: Case, name: str) -> PairWeight:
    inverse_square = karras_weight(case["sigma_data"])  # 1 / c_out^2
    return {
        "default": inverse_gap,
        "c_out": lambda t, r: inverse_square(t**-2).sqrt(),
        "c_out_sq": lambda t, r: inverse_square(t**-2),
        "sigma_sq": lambda t, r: t**-2,
        "sqrt": lambda t, r: (t - r) ** -0.5,
        "one": lambda t, r: torch.ones_like(t),
    }[name]


def times(case: Case) -> tuple[Tensor, Tensor]:
    t = case.inputs["t"]
    r = Curriculum(every=1, least=case["min_r"]).earlier(t, case["ratio"])
    return torch.where(r >= t - case["clamp_min"], r + case["clamp_min"], t), r


def arguments(case: Case) -> dict[str, object]:
    given = {"curriculum": Curriculum(every=1), "distance": distance(case)}
    assert closed_form("student", CLEAN).sigma_data == case["sigma_data"]
    return {**given, "weight": weighting(case, case["weighting"])}


def scored(case: Case, objective, draws) -> Values:
    """Each sample's loss, and the gradient of their mean."""
    x0, cond = case.inputs["real_data"], {"condition": case.inputs["condition"]}

    def loss(rows: slice) -> Tensor:
        batch = Batch(x0[rows], {k: v[rows] for k, v in cond.items()})
        drawn = type(draws)(*(None if d is None else d[rows] for d in draws))
        return objective.loss(batch, drawn).total()

    yield "loss", torch.stack([loss(slice(i, i + 1)) for i in range(len(x0))])
    objective.zero_grad()
    loss(slice(None)).backward()
    for name, p in objective.student.net.named_parameters():
        yield f"grad_{name}", p.grad


def earlier_point(case: Case) -> TeacherStep | SameNoise:
    if case["mode"] == "ct":
        return SameNoise(CLEAN)
    teacher = closed_form(case["nets"]["teacher"], CLEAN, condition=True)
    if case["guidance"] is not None:
        assert case["neg_condition"] == "zeros"
        teacher = Guided(teacher, {"condition": 0.0}, case["guidance"])
    return TeacherStep(teacher, STEPS[case["solver"]])


def consistency(case: Case) -> Values:
    def objective(**kwargs) -> EasyConsistency:
        student = closed_form(case["nets"]["net"], CLEAN, condition=True)
        given = {**arguments(case), **kwargs}
        return EasyConsistency(student, earlier_point(case), boundary=0.0, **given)

    draws = ect.Draws(*times(case), case.inputs["eps"])
    yield from scored(case, objective(), draws)
    equal = objective(weight=weighting(case, "one"))
    yield "unweighted", dict(scored(case, equal, draws))["loss"]


def truncated(case: Case) -> Values:
    """The set has the loss of each row, and the gradient of their mean, before the two means."""
    student, first = (closed_form(case["nets"][role], CLEAN, condition=True) for role in NETS)
    objective = TruncatedConsistency(
        student,
        first,
        earlier_point(case),
        at=case["transition_t"],
        share=case["boundary_prob"],
        boundary_weight=case["w_boundary"],
        **arguments(case),
    )
    t, r = times(case)
    draws = tcm.Draws(t, r, case.inputs["eps"], torch.zeros(len(t), dtype=torch.bool))
    yield from scored(case, objective, draws)


def switched(case: Case) -> Values:
    high, low = (closed_form(case["nets"][role], CLEAN, condition=True) for role in NETS)
    both = Switched(low, high, case["transition_t"])
    x, t, condition = (case.inputs[name] for name in ("x_t", "t", "condition"))
    yield "x0", both(x, t, None, {"condition": condition})


def earlier(case: Case) -> Values:
    found = Curriculum(every=1, least=case["min_r"])
    yield "r", found.earlier(case.inputs["t"], case["ratio"])


def schedule(case: Case) -> Values:
    """Its stages are counted in images, which need not be whole steps: ours are counted so here."""
    found = Curriculum(1000 * case["kimg_per_stage"], case["q"], limit=case["ratio_limit"])
    images = (case.inputs["iteration"] * case["batch_size"]).tolist()
    rows = [(found.stage(n), found.ratio(n)) for n in images]
    yield "sched_stage_ratio", torch.tensor(rows, dtype=torch.float64)


def averages(case: Case) -> Values:
    steps, batch = case["iterations"], case["batch_size"]
    if case["type"] == "power":
        width = exponent_to_std(case["gamma"])
        beta = [float(power_rate(width, step * batch, batch)) for step in steps]
    else:
        images = 1000 * case["ema_halflife_kimg"]
        beta = [half_life(images, batch, case["ema_rampup_ratio"])(step) for step in steps]
    yield "beta", torch.from_numpy(np.asarray(beta))


CALLS = {
    "CMModel._compute_cm_loss": consistency,
    "TCMModel._compute_cm_loss": truncated,
    "TCMPrecond.forward": switched,
    "t_to_r_sigmoid": earlier,
    "CTScheduleCallback": schedule,
    "EMACallback": averages,
}


def test_golden_fastgen_cm(record_property) -> None:
    check("fastgen_cm", CALLS, record_property)
