"""sCM of NVlabs/FastGen, which differs from the paper, and so from here, in five ways.

- The norm of the tangent is over sqrt(D): ``limit`` is ours with c sqrt(D), times sqrt(D).
- Its weight has 1/sigma, and 1/D beside the mean over the event: u is its logvar, less their
  logarithm, which is also what its loss is more than ours.
- Its students are denoisers of noise levels, and t is one: F is read from D.
- Its finite differences follow the sample's trajectory also where a teacher gives another
  direction, and its derivatives hold t below pi/2.
- Guidance is relative to a given negative condition: the null of ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from fewstep.core import Batch, Rng, expand
from fewstep.derivatives import jvp
from fewstep.models import EDM, AbstractDenoiser, Denoiser, Guided
from fewstep.objectives.scm import SCM, Draws
from fewstep.objectives.shared.trigflow import normalised, trig_flow
from fewstep.paths import Trig, VarianceExploding
from fewstep.times import LogNormal
from golden_sets import Case, check, closed_form, networks, stand_in

Read = Callable[[str, Trig], AbstractDenoiser]


def by_its_answer(role: str, path: Trig) -> AbstractDenoiser:
    return closed_form(role, path, condition=True)


def by_its_network(role: str, path: Trig) -> AbstractDenoiser:
    found = networks()
    net = stand_in(role, found.coefficients, condition=True)
    everywhere = VarianceExploding(1e-9, math.inf)
    return Denoiser(net, EDM(sigma_data=found.sigma_data, path=everywhere)).on(path)


class LogVariance(nn.Module):
    """u of ln(sigma) / 4."""

    def __init__(self, case: Case, dimension: int) -> None:
        super().__init__()
        self.case, self.dimension = case, dimension

    def forward(self, c_noise: Tensor) -> Tensor:
        sigma = (4 * c_noise).exp()
        case = self.case
        logvar = case["logvar_a"] + case["logvar_b"] * sigma.clamp(min=1e-6).log()
        return logvar - self.weight(sigma).log()

    def weight(self, sigma: Tensor) -> Tensor:
        prior = 1 / sigma if self.case["prior_weighting_enabled"] else torch.ones_like(sigma)
        return prior / self.dimension if self.case["divide_x_0_spatial_dim"] else prior


class Derivative:
    """The official one, which keeps what it found."""

    def __init__(self, case: Case, path: Trig, x0: Tensor, noise: Tensor) -> None:
        self.case, self.path, self.x0, self.noise = case, path, x0, noise
        self.edge = math.pi / 2 - case["jvp_t_hat_clamp"]

    def __call__(self, fn, primals, tangents):
        def held(x, t):
            return fn(x, t.clamp(-self.edge, self.edge))

        if self.case["use_jvp_finite_diff"]:
            _, t = primals
            h = (self.case["jvp_finite_diff_eps"] * t).clamp(min=1e-6)
            ahead, behind = (
                held(self.path.perturb(self.x0, self.noise, s), s) for s in (t + h, t - h)
            )
            self.found = (expand(tangents[1] / (2 * h), ahead) * (ahead - behind)).detach()
        else:
            _, self.found = jvp(held, primals, tangents)
        return fn(*primals), self.found


def losses(read: Read) -> Callable[[Case], Iterator[tuple[str, Tensor]]]:
    def compute_scm_loss(case: Case) -> Iterator[tuple[str, Tensor]]:
        x0, noise, sigma = (case.inputs[k] for k in ("real_data", "z_unit", "t"))
        cond = {"condition": case.inputs["condition"]}
        path = Trig(sigma_data=case["sigma_data"])
        student = read(case["nets"]["net"], path)
        teacher = read(case["nets"]["teacher"], path) if case["mode"] == "cd" else None
        if case["guidance"] is not None:
            assert case["neg_condition"] == "zeros"
            teacher = Guided(teacher, {"condition": 0.0}, case["guidance"])
        dimension = x0[0].numel()
        root = dimension**0.5 if case["g_norm_spatial_invariance"] else 1.0
        logvar = LogVariance(case, dimension)

        def objective(chosen: slice, uncertainty: nn.Module | None) -> tuple[SCM, Batch, Draws]:
            batch = Batch(x0[chosen], {k: v[chosen] for k, v in cond.items()})
            made = SCM(
                student,
                teacher,
                times=LogNormal(),
                warmup=case["tangent_warmup_steps"],
                limit=lambda g: root * normalised(g, root * case["tangent_warmup_const"]),
                uncertainty=uncertainty,
                derivative=Derivative(case, path, x0[chosen], noise[chosen]),
            )
            r = made.draw(batch, case["iteration"], Rng(0, case["iteration"], "student")).r
            return made, batch, Draws(path.time(sigma[chosen]), noise[chosen], r.double())

        def each(uncertainty: nn.Module | None) -> Tensor:
            alone = (objective(slice(i, i + 1), uncertainty) for i in range(len(x0)))
            return torch.stack([made.loss(*given).total() for made, *given in alone])

        yield "unweighted", each(None)
        yield "loss", each(logvar) + logvar.weight(sigma).log()
        made, batch, draws = objective(slice(None), logvar)
        student.zero_grad()
        made.loss(batch, draws).total().backward()
        yield "jvp", made.derivative.found
        yield "x0_pred", student(path.perturb(x0, noise, draws.t), draws.t, None, cond)
        for output in case.outputs:
            if output.startswith("grad_"):
                yield output, student.net.get_parameter(output.removeprefix("grad_")).grad

    return compute_scm_loss


def forward(read: Read) -> Callable[[Case], Iterator[tuple[str, Tensor]]]:
    def trigflow(case: Case) -> Iterator[tuple[str, Tensor]]:
        student = read(case["nets"]["net"], Trig(sigma_data=case["sigma_data"]))
        x_t, t = case.inputs["x_t"], case.inputs["t_hat"]
        cond = {"condition": case.inputs["condition"]}
        yield "F", trig_flow(student, x_t, t, cond)
        yield "x0", student(x_t, t, None, cond)

    return trigflow


@pytest.mark.parametrize("read", [by_its_answer, by_its_network])
def test_golden_fastgen_scm(read: Read, record_property) -> None:
    calls = {
        "SCMModel._compute_scm_loss": losses(read),
        "TrigFlowPrecond.forward": forward(read),
    }
    check("fastgen_scm", calls, record_property)
