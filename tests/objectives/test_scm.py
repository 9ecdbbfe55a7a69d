"""sCM against closed forms on the trigonometric path."""

import math

import pytest
import torch
from torch import nn

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError, expand
from fewstep.model import Model
from fewstep.models import (
    EDM,
    AbstractDenoiser,
    ConsistencyBoundary,
    Denoiser,
    Flow,
    Guided,
    NoisePrediction,
    TrigFlow,
    VPrediction,
)
from fewstep.models.nets import EDM2, DiT, ResidualMLP
from fewstep.models.nets.edm2 import Uncertainty
from fewstep.objectives.scm import SCM, Draws
from fewstep.objectives.shared.drop import ConditionDrop
from fewstep.objectives.shared.trigflow import clipped, normalised, trig_flow
from fewstep.paths import Linear, Trig, VarianceExploding, VariancePreserving
from fewstep.times import LogNormal, Uniform
from oracles import (
    D,
    Gaussian,
    GaussianConsistency,
    GaussianDenoiser,
    GaussianFlowMap,
    Offset,
    four_points,
    full,
    normal,
)
from small_nets import NETWORKS, shaken


def trig(sigma_data: float = 0.5) -> Trig:
    return Trig(t_max=math.atan(80 / sigma_data), sigma_data=sigma_data)


PATH = trig()
TIMES = LogNormal(-1.0, 1.4)
each_scale = pytest.mark.parametrize("sigma_data", [0.5, 1.3])
each_event = pytest.mark.parametrize("event", [(2,), (1,), (3, 4, 4)])
taught = pytest.mark.parametrize("teacher", [True, False], ids=["scd", "sct"])


def scm(student, teacher=None, **options) -> SCM:
    return SCM(student, teacher, **{"times": TIMES, **options})


def given(*event: int, b: int = 16, path: Trig = PATH, r: float = 1.0) -> tuple[Batch, Draws]:
    """Samples of the oracles' data at times over the whole range."""
    x0, noise = normal(2, b, *event)
    t = torch.linspace(1e-3, 1.56, b, dtype=D)
    return Batch(0.3 + 0.7 * x0), Draws(t, noise, full(r, x0))


class Kept:
    """A limit that keeps what it is given and changes nothing."""

    def __call__(self, g):
        self.g = g
        return g


def tangent(student, batch, draws, teacher=None, **options):
    limit = Kept()
    scm(student, teacher, limit=limit, **options).loss(batch, draws)
    return limit.g


class Raw(AbstractDenoiser):
    """A denoiser whose F is a parameter."""

    cond_keys, two_time, path = (), False, PATH

    def __init__(self, raw):
        super().__init__()
        self.raw = nn.Parameter(raw)

    def forward(self, x, t, s=None, cond=None):
        c_skip, c_out, _, _ = TrigFlow(path=self.path).coefficients(t)
        return expand(c_skip, x) * x + expand(c_out, x) * self.raw


def mlp(dtype=D, preconditioning=None, **options) -> Denoiser:
    torch.manual_seed(0)  # of the embedding's frequencies
    net = shaken(ResidualMLP((3,), width=16, blocks=1, **options)).to(dtype)
    return Denoiser(net, preconditioning or TrigFlow(path=PATH))


# The solution.


@each_event
@each_scale
@pytest.mark.parametrize("limit", [normalised, clipped])
def test_the_consistency_function_has_no_tangent(event, sigma_data, limit):
    path = trig(sigma_data)
    objective = scm(GaussianConsistency(path), GaussianDenoiser(path), limit=limit)
    loss = objective.loss(*given(*event, path=path))
    # F of these closed forms is a difference over sin t >= 1e-3.
    assert loss.logs["tangent"] < 1e-11
    assert loss.total() < 1e-20


def test_f_of_the_consistency_function_is_known_where_data_is_as_wide_as_noise():
    (x, *_), t = normal(1, 9, 2), torch.linspace(0.1, 1.5, 9, dtype=D)
    data = Gaussian(0.0, PATH.sigma_data)
    wanted = -expand((t / 2).tan(), x) * x / PATH.sigma_data
    torch.testing.assert_close(trig_flow(GaussianConsistency(PATH, data), x, t), wanted)
    assert trig_flow(GaussianDenoiser(PATH, data), x, t).abs().max() < 1e-13


@pytest.mark.parametrize("t", [0.01, 0.6, 1.4])
@pytest.mark.parametrize("wrong", [0.0, 0.2, -0.2])
def test_training_without_a_teacher_has_the_same_solution_in_expectation(t, wrong):
    # Tangent and F are linear in the data and noise here, so four points are their law.
    x0, noise = four_points(Gaussian(), 2)
    student = Offset(GaussianConsistency(PATH), wrong, ramp=torch.sin)
    objective = scm(student, limit=Kept())
    objective.loss(Batch(x0), Draws(full(t, x0), noise, full(1.0, x0))).total().backward()
    assert student.offset.grad * wrong > 0 if wrong else student.offset.grad.abs() < 1e-10


@taught
@pytest.mark.parametrize("limit", [normalised, clipped])
@pytest.mark.parametrize("wrong", [0.2, -0.2])
def test_gradient_points_home(teacher, limit, wrong):
    student = Offset(GaussianConsistency(PATH), wrong, ramp=torch.sin)
    objective = scm(student, GaussianDenoiser(PATH) if teacher else None, limit=limit)
    objective.loss(*given(3, b=2048)).total().backward()
    assert student.offset.grad * wrong > 0


# The tangent.


@taught
@each_scale
def test_the_tangent_is_the_derivative_along_the_trajectory(teacher, sigma_data):
    path = trig(sigma_data)
    student = mlp(preconditioning=TrigFlow(path=path))
    taught_by = GaussianDenoiser(path) if teacher else None
    batch, draws = given(3, path=path)
    t, h = draws.t.clamp(0.01, 1.55), 1e-5
    x_t = path.perturb(batch.x0, draws.noise, t)
    v = path.velocity(x_t, taught_by(x_t, t) if taught_by else batch.x0, t)
    ahead, behind = student(x_t + h * v, t + h), student(x_t - h * v, t - h)
    wanted = expand(t.cos(), x_t) * (ahead - behind) / (2 * h)
    found = tangent(student, batch, draws._replace(t=t), taught_by)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


def test_a_student_that_starts_as_its_teacher_starts_without_a_tangent():
    batch, draws = given(2, r=0.0)
    teacher = GaussianDenoiser(PATH)
    assert tangent(teacher, batch, draws, teacher).abs().max() < 1e-12
    halfway = draws._replace(r=full(0.5, batch.x0))
    whole = tangent(teacher, batch, draws._replace(r=full(1.0, batch.x0)), teacher)
    torch.testing.assert_close(tangent(teacher, batch, halfway, teacher), whole / 2)
    assert whole.abs().max() > 0.1


@pytest.mark.parametrize("limit", [normalised, clipped])
def test_the_gradient_with_respect_to_f_is_the_limited_tangent(limit):
    batch, draws = given(2, 3, b=1)
    student, u = Raw(normal(1, 2, 3, seed=1)), 0.7
    draws = draws._replace(t=full(0.6, batch.x0))
    g = limit(tangent(student, batch, draws))
    objective = scm(student, limit=limit, uncertainty=Constant(u))
    objective.loss(batch, draws).total().backward()
    torch.testing.assert_close(student.raw.grad, -2 * math.exp(-u) / 6 * g)


def test_limits():
    g = torch.tensor([[3.0, -4.0], [0.0, 0.0]], dtype=D)
    wanted = torch.tensor([[3.0, -4.0], [0.0, 0.0]], dtype=D)
    torch.testing.assert_close(normalised(g, 0.5), wanted / 5.5)
    assert clipped(g / 3).tolist() == [[1.0, -1.0], [0.0, 0.0]]


def test_masked_data_does_not_count():
    batch, draws = given(4)
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=D)[None]
    student = Raw(normal(1, 4, seed=1))
    found = scm(student).loss(Batch(batch.x0 + 100 * (1 - mask), mask=mask), draws).total()
    assert found == scm(student).loss(Batch(batch.x0, mask=mask), draws).total()
    assert found != scm(student).loss(batch, draws).total()


# The learned weight.


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=D))

    def forward(self, c_noise):
        self.seen = c_noise
        return self.value.expand_as(c_noise)


def test_the_weight_learns_the_logarithm_of_the_error():
    batch, draws = given(3)
    plain = scm(mlp()).loss(batch, draws).total()
    u = Constant(float(plain.detach().log()))
    objective = scm(mlp(), uncertainty=u)
    loss = objective.loss(batch, draws)
    torch.testing.assert_close(loss.total(), 1 + plain.log())
    torch.testing.assert_close(loss.logs["error"], plain.detach())
    loss.total().backward()
    assert u.value.grad.abs() < 1e-12
    torch.testing.assert_close(u.seen, (0.5 * draws.t.tan()).log() / 4)
    (phase,) = objective.phases()
    trained = {id(p) for p in phase.module.parameters()}
    assert trained == {id(u.value), *map(id, objective.student.parameters())}


def test_it_is_trained_beside_the_student_only():
    teacher, uncertainty = mlp(), Uncertainty(8).double()
    objective = scm(mlp(), teacher, uncertainty=uncertainty)
    batch, draws = given(3)
    objective.loss(batch, draws).total().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert uncertainty.last.weight.grad.abs().max() > 0
    assert objective.student.net.last.weight.grad.abs().max() > 0
    assert objective.frozen == ("teacher",)


# Other models' networks on the trigonometric path.

READ = [
    EDM(sigma_data=0.5),
    EDM(sigma_data=0.8),
    ConsistencyBoundary(sigma_data=0.5),
    Flow(path=Linear()),
    NoisePrediction(path=VariancePreserving()),
    VPrediction(path=VariancePreserving()),
    TrigFlow(path=PATH),
]


@pytest.mark.parametrize("preconditioning", READ, ids=lambda p: type(p).__name__)
def test_any_network_is_read_as_f(preconditioning):
    student = mlp(preconditioning=preconditioning).on(PATH)
    batch, draws = given(3)
    t = draws.t.clamp(0.01, 1.5)
    x_t = PATH.perturb(batch.x0, draws.noise, t)
    found = trig_flow(student, x_t, t)
    wanted = (expand(t.cos(), x_t) * x_t - student(x_t, t)) / expand(0.5 * t.sin(), x_t)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_edm_is_trigflow_with_the_sign_of_f_turned():
    t = torch.linspace(1e-3, 1.56, 9, dtype=D)
    c_skip, c_out, c_in, c_noise = EDM(sigma_data=0.5).on(PATH).coefficients(t)
    own = TrigFlow(path=PATH).coefficients(t)
    torch.testing.assert_close(c_skip, own.c_skip)
    torch.testing.assert_close(c_out, -own.c_out)
    torch.testing.assert_close(c_in, own.c_in)
    torch.testing.assert_close(c_noise, (0.5 * t.tan()).log() / 4)


@pytest.mark.parametrize("preconditioning", READ[:1] + READ[3:], ids=lambda p: type(p).__name__)
def test_single_precision_lasts_near_data(preconditioning):
    wide = mlp(preconditioning=preconditioning).on(PATH)
    narrow = mlp(torch.float32, preconditioning).on(PATH)
    batch, draws = given(3)
    draws = draws._replace(t=torch.logspace(-4, -1, 16, dtype=D))
    wanted = tangent(wide, batch, draws)
    draws32 = draws._replace(noise=draws.noise.float())
    found = tangent(narrow, Batch(batch.x0.float()), draws32)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=2e-5)


IMAGES = {
    "ddpmpp": lambda: NETWORKS["ddpmpp"](classes=0),
    "mlp": lambda: ResidualMLP((2, 8, 8), width=16, blocks=1),
    "dit": lambda: DiT((2, 8, 8), depth=1, width=8, heads=2),
    "edm2": lambda: EDM2((2, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,)),
}


def central(fn, primals, tangents, h=1e-6):
    """In the place of core.jvp."""
    ahead, behind = (
        fn(*(p + sign * h * v for p, v in zip(primals, tangents, strict=True))) for sign in (1, -1)
    )
    return fn(*primals), ((ahead - behind) / (2 * h)).detach()


def test_a_finite_difference_may_stand_in_for_the_derivative():
    batch, draws = given(3)
    wanted = scm(mlp()).loss(batch, draws).total()
    found = scm(mlp(), derivative=central).loss(batch, draws).total()
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


each_reading = pytest.mark.parametrize(
    "preconditioning", [EDM(sigma_data=0.5), TrigFlow(path=PATH)], ids=lambda p: type(p).__name__
)


def image_student(name: str, preconditioning) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(shaken(IMAGES[name]()).eval(), preconditioning).on(PATH)


def relative_error(found, wanted) -> float:
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


@each_reading
@pytest.mark.parametrize("name", IMAGES)
def test_the_tangent_of_networks_in_single_precision(name, preconditioning):
    student = image_student(name, preconditioning)
    batch, draws = given(2, 8, 8, b=6)
    draws32 = draws._replace(noise=draws.noise.float())
    found = tangent(student, Batch(batch.x0.float()), draws32)
    wanted = tangent(student.double(), batch, draws, derivative=central)
    assert relative_error(found, wanted) < 1e-4


@each_reading
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["ddpmpp", "mlp", "dit", "edm2"])
def test_the_tangent_of_networks_survives_autocast(name, dtype, preconditioning):
    student = image_student(name, preconditioning)
    batch, draws = given(2, 8, 8, b=6)
    batch32, draws32 = Batch(batch.x0.float()), draws._replace(noise=draws.noise.float())
    wanted = tangent(student, batch32, draws32)
    with torch.autocast("cpu", dtype):
        found = tangent(student, batch32, draws32)
        scm(student).loss(batch32, draws32).total().backward()
    assert found.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)
    # bfloat16 has 8 bits, and a network multiplies its rounding.
    assert relative_error(found, wanted) < 0.1


# Draws, guidance, delivery.


def test_draws():
    objective = scm(
        mlp(classes=3),
        Guided(mlp(classes=3), {"label": 3}),
        warmup=100,
        drop=ConditionDrop(0.3, {"label": 3}),
    )
    batch = Batch(normal(5000, 3), {"label": torch.zeros(5000).long()})
    draws = objective.draw(batch, 25, Rng(0, 25, "student"))
    again = objective.draw(batch, 25, Rng(0, 25, "student"))
    assert all(a is b is None or a.equal(b) for a, b in zip(draws, again, strict=True))
    assert not draws.t.equal(objective.draw(batch, 25, Rng(1, 25, "student")).t)
    assert draws.t.dtype == D
    assert draws.t.min() > 0
    assert draws.t.max() < math.pi / 2
    tau = (0.5 * draws.t.tan()).log()
    assert float(tau.mean()) == pytest.approx(-1.0, abs=4 * 1.4 / 5000**0.5)
    assert float(tau.std()) == pytest.approx(1.4, rel=0.04)
    assert float(draws.dropped.double().mean()) == pytest.approx(0.3, abs=0.03)
    assert draws.guidance is None


@pytest.mark.parametrize(
    ("warmup", "step", "r"), [(100, 0, 0), (100, 25, 0.25), (9, 9, 1), (0, 0, 1)]
)
def test_the_tangent_warms_up(warmup, step, r):
    objective = scm(mlp(), warmup=warmup)
    draws = objective.draw(Batch(normal(4, 3)), step, Rng(0, step, "student"))
    assert draws.r.tolist() == [r] * 4


class Reader(nn.Module):
    """A network that reads labels and the scale of guidance."""

    two_time = False

    def __init__(self, *cond_keys: str) -> None:
        super().__init__()
        self.cond_keys = cond_keys
        self.gain = nn.Parameter(torch.tensor(0.3, dtype=D))

    def forward(self, x, c_noise, s_noise=None, cond=None):
        self.seen = cond
        return self.gain * x + sum(expand(v, x) for v in (cond or {}).values())


def test_the_student_learns_every_scale_of_its_guided_teacher():
    student = Denoiser(Reader("label", "guidance"), TrigFlow(path=PATH))
    inner = Denoiser(Reader("label"), TrigFlow(path=PATH))
    objective = scm(student, Guided(inner, {"label": 2}), limit=Kept(), guidance=Uniform(1.0, 2.0))
    batch = Batch(normal(64, 3), {"label": torch.arange(64) % 2})
    draws = objective.draw(batch, 0, Rng(0, 0, "student"))
    assert draws.guidance.min() >= 1
    assert draws.guidance.max() <= 2
    assert draws.guidance.std() > 0.2
    draws = draws._replace(guidance=full(1.6, batch.x0), r=full(1.0, batch.x0))
    found = objective.loss(batch, draws).total()
    assert student.net.seen["guidance"].tolist() == [1.6] * 64
    cond = {**batch.cond, "guidance": full(1.6, batch.x0)}
    constant = scm(student, Guided(inner, {"label": 2}, 1.6), limit=Kept())
    wanted = constant.loss(Batch(batch.x0, cond), draws._replace(guidance=None)).total()
    torch.testing.assert_close(found, wanted)
    other = objective.loss(batch, draws._replace(guidance=full(1.0, batch.x0))).total()
    assert (found - other).abs() > 1e-3


def test_dropped_labels_reach_student_and_teacher():
    student, teacher = (Denoiser(Reader("label"), TrigFlow(path=PATH)) for _ in range(2))
    objective = scm(student, teacher, drop=ConditionDrop(0.5, {"label": 9}))
    batch = Batch(normal(2, 3), {"label": torch.tensor([0, 1])})
    _, draws = given(3, b=2)
    objective.loss(batch, draws._replace(dropped=torch.tensor([True, False])))
    assert student.net.seen["label"].tolist() == teacher.net.seen["label"].tolist() == [9, 1]


@pytest.mark.parametrize("steps", [1, 2])
@each_scale
def test_what_is_delivered_samples_the_data(steps, sigma_data):
    path = trig(sigma_data)
    objective = scm(Offset(GaussianConsistency(path)))
    contract = objective.contract(DataSpec(shape=(2,), range=None))
    contract = contract.with_times({2: (path.t_max, 1.1)})
    start = contract.sampling.start
    assert (start.t, start.std) == (path.t_max, sigma_data)
    assert contract.sampling.kind == "renoise"
    model = Model(objective.deliver(objective.student), contract)
    assert model.times(steps) == [path.t_max, 1.1][:steps]
    x = model.sample(4000, steps=steps)
    # Four standard errors.
    assert float(x.mean()) == pytest.approx(0.3, abs=4 * 0.7 / 8000**0.5)
    assert float(x.std()) == pytest.approx(0.7, abs=4 * 0.7 / 16000**0.5)


def test_names():
    data = DataSpec(shape=(2,))
    assert scm(mlp()).contract(data).method == "sct"
    assert scm(mlp(), mlp()).contract(data).method == "scd"
    assert SCM.capabilities.forward_mode


@pytest.mark.parametrize(
    ("student", "teacher", "options", "message"),
    [
        (lambda: mlp(preconditioning=EDM(sigma_data=0.5)), None, {}, "VarianceExploding.*on"),
        (lambda: GaussianFlowMap(PATH), None, {}, "one-time"),
        (lambda: GaussianDenoiser(Trig(t_min=0.01)), None, {}, "t_min=0"),
        (mlp, lambda: GaussianDenoiser(Trig()), {}, "teacher.on"),
        (mlp, lambda: GaussianDenoiser(VarianceExploding()), {}, "teacher.on"),
        (mlp, None, {"warmup": -1}, "warmup"),
        (mlp, mlp, {"guidance": Uniform(1, 2)}, "guided teacher"),
        (
            lambda: Denoiser(Reader("guidance"), TrigFlow(path=PATH)),
            None,
            {"guidance": Uniform(1, 2)},
            "guided teacher",
        ),
    ],
)
def test_refusals(student, teacher, options, message):
    with pytest.raises(UsageError, match=message):
        scm(student(), teacher() if teacher else None, **options)
