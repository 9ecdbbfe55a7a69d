"""Averages, primitives, loss, schedule and sampler of NVlabs/edm2.

Its loss is elementwise, ours a mean over the event, where its training takes the sum: as in
``test_golden_edm``, the public loss is checked against the event's mean, and against each element
with all others masked. Its averages are counted in images.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.core import per_sample
from fewstep.models import EDM, AbstractDenoiser, Autoguided, Denoiser
from fewstep.models.nets.magnitude import mp_cat, mp_silu, mp_sum, normalise
from fewstep.objectives.denoising import Denoising, Draws
from fewstep.objectives.shared.weights import karras_weight
from fewstep.paths import VarianceExploding
from fewstep.solvers import STEPS, Churn, ode
from fewstep.times import LogNormal, karras, to_zero
from fewstep.training.averages import Averages, Rule
from fewstep.training.posthoc import (
    PowerFunction,
    edm2_learning_rate,
    exponent_to_std,
    posthoc_coefficients,
    power_rate,
    std_to_exponent,
)
from golden_sets import (
    Case,
    check,
    closed_form,
    each_element,
    each_loss,
    gradients,
    networks,
    stand_in,
)
from test_golden_edm import times_by

Values = Iterator[tuple]

ANY_LEVEL = VarianceExploding(0.0, math.inf)


def array(values) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float64))


# Averages.


def widths(case: Case) -> Values:
    yield "std_to_exp", array(std_to_exponent(case.inputs["std"].numpy()))


def exponents(case: Case) -> Values:
    """Its input is itself an output of the set."""
    yield "exp_to_std", array(exponent_to_std(case.inputs["exp"].numpy()))


def rates(case: Case) -> Values:
    std, after = (case.inputs[axis].numpy() for axis in case["axes"])
    yield "beta", array(power_rate(std[:, None], after, case["t_delta"]))


def coefficients(case: Case) -> Values:
    stored = case.inputs["in_ofs"].numpy(), case.inputs["in_std"].numpy()
    out_std = case.inputs["out_std"].numpy()
    offsets = np.full_like(out_std, case["out_ofs"])
    yield "ph_coef", array(posthoc_coefficients(*stored, offsets, out_std))


class Weight(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))


def tracked(case: Case) -> Values:
    """By the rule that counts updates, and by the rates that count images."""
    assert re.match(r"i\b", case["weight_at_step"])
    assert case["cur_nimg_at_step"] == f"{case['batch_size']}*i"

    def by_images(std: float) -> Rule:
        batch = case["batch_size"]
        return lambda updates: float(power_rate(std, batch * (updates + 1), batch))

    for kind in (PowerFunction, by_images):
        weight = Weight(case["init"])
        averages = Averages(weight, {str(std): kind(std) for std in case["stds"]})
        found = []
        for i in range(case["steps"]):
            nn.init.constant_(weight.value, i + 1)
            averages.update(weight)
            found.append([float(averages.copies[str(std)].value) for std in case["stds"]])
        yield "ema_track", torch.tensor(found, dtype=torch.float64)


# Primitives.


def normalised(case: Case) -> Values:
    yield "y", normalise(case.inputs["a"].float(), tuple(case["dims"]), case["eps"])


def activated(case: Case) -> Values:
    yield "y", mp_silu(case.inputs["a"].float())


def summed(case: Case) -> Values:
    yield "y", mp_sum(case.inputs["a"].float(), case.inputs["b"].float(), case["t"])


def concatenated(case: Case) -> Values:
    assert case["dim"] == 1
    yield "y", mp_cat(case.inputs["a"].float(), case.inputs["b"].float(), case["t"])


# Training.


def learning_rates(case: Case) -> Values:
    """Its step is the number of images over the batch, also where that is no whole number."""
    batch = case["batch_size"]
    options = {"peak": case["ref_lr"], "decay_from": case["ref_batches"], "batch": batch}
    options["warmup"] = case["rampup_Mimg"] * 1e6
    images = case.inputs["cur_nimg"].tolist()
    yield "lr", array([edm2_learning_rate(n / batch, **options) for n in images])


class Affine(nn.Module):
    """The set's uncertainty: level + slope * ln(sigma) / 4."""

    def __init__(self, text: str) -> None:
        super().__init__()
        found = re.fullmatch(r"([-+]?[\d.]+)([-+][\d.]+)\*\(?ln\(sigma\)/4\)?", text)
        assert found, text
        self.level, self.slope = float(found[1]), float(found[2])

    def forward(self, c_noise: Tensor) -> Tensor:
        return self.level + self.slope * c_noise


def loss(case: Case) -> Values:
    assert case["net_kind"] == "D"
    law = LogNormal(case["P_mean"], case["P_std"])
    t = times_by(law, "randn", case.inputs["rnd_normal"])
    found = networks()
    net = stand_in(case["nets"]["net"], found.coefficients)
    student = Denoiser(net, EDM(sigma_data=found.sigma_data, path=ANY_LEVEL))
    head = Affine(case["logvar"])
    weight = karras_weight(case["sigma_data"])
    objective = Denoising(student, times=law, weight=weight, uncertainty=head)
    x0, draws = case.inputs["images"], Draws(t, case.inputs["eps"])
    yield "loss", each_loss(objective, x0, draws), per_sample
    yield "loss", each_element(objective, x0, draws)
    yield from gradients(case, objective, x0, draws)


# Sampling.


def denoisers(case: Case, path: VarianceExploding) -> Iterator[AbstractDenoiser]:
    """D in closed form, and as the library reads its EDM network; guided by another, if at all."""
    assert case["net_kind"] == "D"
    found = networks()
    edm = EDM(sigma_data=found.sigma_data, path=path)
    for build in (
        lambda role: closed_form(role, path),
        lambda role: Denoiser(stand_in(role, found.coefficients), edm),
    ):
        model = build(case["nets"]["net"])
        if case["guidance"] == 1:
            yield model
        if "gnet" in case["nets"]:
            yield Autoguided(model, build(case["nets"]["gnet"]), case["guidance"])


def edm_sampler(case: Case) -> Values:
    """Its noise is drawn in the steps that add some; ours is asked for in every step."""
    path = VarianceExploding(case["sigma_min"], case["sigma_max"])
    times = to_zero(karras(case["num_steps"], path.t_min, path.t_max, case["rho"]))
    churn = Churn(case["S_churn"], case["S_min"], case["S_max"], case["S_noise"])
    raised = [churn.raised(t, case["num_steps"]) > t for t in times[:-1].tolist()]
    options = {}
    if any(raised):
        drawn = iter(case.inputs["noise"])
        noise = [next(drawn) if up else torch.zeros_like(case.inputs["noise0"]) for up in raised]
        assert next(drawn, None) is None
        options = {"churn": churn, "noise": noise.__getitem__}
    x = case.inputs["noise0"] * times[0]
    compared = False
    for denoiser in denoisers(case, path):
        yield "x", ode(denoiser, x, times, step=STEPS[case["solver"]], **options)
        compared = True
    assert compared


CALLS = {
    "EDM2Loss": loss,
    "learning_rate_schedule": learning_rates,
    "std_to_exp": widths,
    "exp_to_std": exponents,
    "power_function_beta": rates,
    "solve_posthoc_coefficients": coefficients,
    "PowerFunctionEMA.update": tracked,
    "normalize": normalised,
    "mp_silu": activated,
    "mp_sum": summed,
    "mp_cat": concatenated,
    "edm_sampler": edm_sampler,
}


def test_golden_edm2(record_property) -> None:
    check("edm2", CALLS, record_property)
