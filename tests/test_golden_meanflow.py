"""MeanFlow of NVlabs/FastGen, through the public loss.

Its ``opt_grad`` descends along (u - sg(u + w g)), g the residual, with a weight of |g| where the
paper's is of |g|^2. That is the public loss under a weight of the squared error: w for the
gradient, and w^2 for the value, which has the weight inside the square; its spatial invariance
divides g by sqrt(d) first. It limits t - r to at least min_t, which moves the target of r = t on
VE; here the end that the loss reads is moved with it, and the network is told the end of the set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core import Batch, Rng, expand
from fewstep.derivatives import jvp
from fewstep.models import AbstractDenoiser, Denoiser, Flow, Guided
from fewstep.objectives.meanflow import AdaptiveWeight, Draws, MeanFlow
from fewstep.paths import Linear, Path, VarianceExploding
from fewstep.times import TwoTimes
from golden_sets import Case, check, closed_form, networks, stand_in

Values = Iterator[tuple[str, Tensor]]


def path_of(case: Case) -> Path:
    kind = {"edm": VarianceExploding, "rf": Linear}[case["schedule"]]
    return kind(case["min_t"], case["max_t"])


def network(case: Case, role: str, second: bool) -> AbstractDenoiser:
    role, path = case["nets"][role], path_of(case)
    if case["net_pred_type"] == "x0":
        return closed_form(role, path, condition=True, second=second)
    assert case["net_pred_type"] == "flow"
    net = stand_in(role, networks().coefficients, condition=True, second=second)
    return Denoiser(net, Flow(path=path))


class Shifted(AbstractDenoiser):
    """Tells the network a later end than it is asked for."""

    def __init__(self, denoiser: AbstractDenoiser, by: Tensor) -> None:
        super().__init__()
        self.denoiser, self.by = denoiser, by
        self.path, self.cond_keys = denoiser.path, denoiser.cond_keys
        self.two_time = denoiser.two_time

    def forward(self, x, t, s=None, cond=None):
        return self.denoiser(x, t, None if s is None else s + self.by, cond)


def weight_of(case: Case) -> Callable[[Tensor], Tensor]:
    kind, *numbers = case["norm_method"].split("_")
    numbers, c = [float(n) for n in numbers], case["norm_const"]
    if kind == "exp":
        return lambda error: numbers[0] * (numbers[1] * error + c).exp()
    assert kind == "poly"
    return AdaptiveWeight(numbers[0], c)


@dataclass(frozen=True)
class OfTheNorm:
    """FastGen's weight of the residual's norm, as one of its square.

    ``share`` is 1/d where it is scaled, ``power`` 1 for the gradient and 2 for the value.
    """

    weight: Callable[[Tensor], Tensor]
    share: float
    power: int

    def __call__(self, error: Tensor) -> Tensor:
        weight = self.weight((self.share * error).sqrt()) * math.sqrt(self.share)
        return weight**self.power


def differences(eps: float, path: Path, shift: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """Central differences, one-sided where the path's end or the network's is near."""

    def derivative(fn, primals, tangents):
        x, t, r = primals
        ahead = (t + eps <= path.t_max).double() * eps
        behind = ((t - eps >= path.t_min) & (t - eps > r + shift)).double() * eps
        with torch.no_grad():
            ends = [fn(x + expand(by, x) * tangents[0], t + by, r) for by in (ahead, -behind)]
        return fn(*primals), (ends[0] - ends[1]) / expand(ahead + behind, x)

    return derivative


class Recorded:
    """What the loss differentiated: the velocity, u and du/dt."""

    def __init__(self, derivative: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.derivative = derivative

    def __call__(self, fn, primals, tangents):
        self.velocity = tangents[0]
        self.u, self.du_dt = self.derivative(fn, primals, tangents)
        self.u.retain_grad()
        return self.u, self.du_dt


def conditions(case: Case) -> dict[str, Tensor]:
    """The scale of a guided teacher goes with them: 1 outside of its times."""
    cond = {"condition": case.inputs["condition"]}
    if case["guidance"] is not None and case["mode"] == "cd":
        t = case.inputs["t"]
        inside = (t >= case["guidance_t_start"]) & (t <= case["guidance_t_end"])
        cond["guidance"] = torch.where(inside, case["guidance"], 1.0).double()
    return cond


def instantaneous_loss(
    case: Case, student: AbstractDenoiser, draws: Draws, shift: Tensor
) -> Tensor:
    """The public loss without its derivative: u against the sample's own velocity.

    That is noise - x0 there on any path, and here on the straight one; on noise levels, where x_t
    is the same, it is ours of noise - x0 and of samples x0 + t x0.
    """
    x0, cond = case.inputs["real_data"], conditions(case)
    noise = draws.noise
    if isinstance(student.path, VarianceExploding):
        x0, noise = x0 + expand(draws.t, x0) * x0, noise - x0

    losses = []
    for i in range(len(x0)):
        row = slice(i, i + 1)
        objective = MeanFlow(
            Shifted(student, shift[row]), times=TwoTimes(), weight=lambda error: 1 / x0[0].numel()
        )
        drawn = Draws(draws.t[row], draws.r[row], noise[row], torch.zeros_like(draws.ramp[row]))
        one = Batch(x0[row], {key: value[row] for key, value in cond.items()})
        losses.append(objective.loss(one, drawn).total())
    return torch.stack(losses)


def meanflow_loss(case: Case) -> Values:
    path, x0, noise = path_of(case), case.inputs["real_data"], case.inputs["z"]
    t, r = case.inputs["t"], case.inputs["r"]
    limited = (t - r).clamp(path.t_min, path.t_max)
    student = network(case, "net", second=True)
    teacher = network(case, "teacher", second=False) if case["mode"] == "cd" else None
    if case["guidance"] is not None and teacher is not None:
        assert case["neg_condition"] == "zeros"
        teacher = Guided(teacher, {"condition": 0.0})
    # From data, without label dropping, FastGen computes the guided velocity and does not use it.
    assert case["guidance"] is None or case["guidance_effective"] == (teacher is not None)

    weight = weight_of(case)
    if case["loss_type"] == "l2":
        of_gradient = of_value = weight
        share = 1.0
    else:
        share = 1 / x0[0].numel() if case["tangent_spatial_invariance"] else 1.0
        of_gradient, of_value = (OfTheNorm(weight, share, n) for n in (1, 2))

    def objective(weight: Callable[[Tensor], Tensor], row: slice = slice(None)) -> MeanFlow:
        shift = (r - (t - limited))[row]
        derivative = jvp
        if case["use_jvp_finite_diff"]:
            derivative = differences(case["jvp_finite_diff_eps"], path, shift)
        return MeanFlow(
            Shifted(student, shift),
            teacher,
            times=TwoTimes(),
            weight=weight,
            warmup=case["tangent_warmup_steps"],
            derivative=Recorded(derivative),
        )

    cond = conditions(case)
    ramp = objective(weight).draw(Batch(x0), case["iteration"], Rng(0, 0, "")).ramp.to(t)
    draws = Draws(t, t - limited, noise, ramp)

    losses = []
    for i in range(len(x0)):
        row = slice(i, i + 1)
        one = Batch(x0[row], {key: value[row] for key, value in cond.items()})
        drawn = Draws(*(None if d is None else d[row] for d in draws))
        losses.append(objective(of_value, row).loss(one, drawn).total())
    yield "loss", torch.stack(losses)

    seen = []

    def watched(error: Tensor) -> Tensor:
        seen.append(of_gradient(error))
        return seen[0]

    whole = objective(watched)
    whole.zero_grad()
    whole.loss(Batch(x0, cond), draws).total().backward()
    for output in case.outputs:
        if output.startswith("grad_"):
            yield output, student.get_parameter(f"net.{output.removeprefix('grad_')}").grad
    recorded = whole.derivative
    assert isinstance(recorded, Recorded)
    u, v = recorded.u.detach(), recorded.velocity
    yield "jvp", recorded.du_dt
    yield "dxt_dt", v
    yield "v_loss", instantaneous_loss(case, student, draws, r - draws.r)
    x_t = path.perturb(x0, noise, t)
    yield "x0_approx", path.x0_from_velocity(x_t, u, t)
    # The gradient by u is 2 w (u - target) / b.
    residual = recorded.u.grad * len(x0) / (2 * expand(seen[0], u))
    if case["loss_type"] == "l2":
        yield "weight", seen[0]
        yield "tangent", u - residual
    else:
        yield "weight", expand(seen[0] / math.sqrt(share), u)
        yield "tangent", -math.sqrt(share) * residual


def test_golden_meanflow(record_property) -> None:
    check("fastgen_meanflow", {"MeanFlowModel._compute_mf_loss": meanflow_loss}, record_property)
