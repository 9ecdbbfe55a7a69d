"""Flow-map distillation against the exact flow map and against finite differences."""

import math

import pytest
import torch
from torch import Tensor, nn

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError, expand
from fewstep.derivatives import jvp
from fewstep.model import Model
from fewstep.models import AbstractDenoiser, Denoiser, Flow, Guided
from fewstep.objectives.flow_matching import FlowMatching
from fewstep.objectives.flowmap import Draws, FlowMap
from fewstep.objectives.shared.drop import Draws as NoisedDraws
from fewstep.paths import Linear, Trig, VarianceExploding
from fewstep.times import LogitNormal
from oracles import (
    D,
    Gaussian,
    GaussianConsistency,
    GaussianDenoiser,
    GaussianFlowMap,
    Offset,
    Watched,
    full,
    normal,
    path_id,
)

DATA = Gaussian(0.3, 0.7)
PATHS = [Linear(), Linear(0.05, 0.95)]
EVENTS = [(2,), (1,), (3, 2, 4)]
KINDS = ["eulerian", "lagrangian"]
each_path = pytest.mark.parametrize(
    "path", PATHS, ids=lambda p: f"{path_id(p)}-{p.t_min}-{p.t_max}"
)
each_event = pytest.mark.parametrize("event", EVENTS, ids=str)
each_kind = pytest.mark.parametrize("kind", KINDS)


class Free(AbstractDenoiser):
    """A student with an answer of its own for every sample: its gradient is the loss's."""

    def __init__(self, student: AbstractDenoiser, *shape: int) -> None:
        super().__init__()
        self.student, self.path = student, student.path
        self.cond_keys, self.two_time = student.cond_keys, student.two_time
        self.own = nn.Parameter(torch.zeros(*shape, dtype=D))

    def forward(self, x, t, s=None, cond=None):
        return self.student(x, t, s, cond) + self.own


class Wavy(AbstractDenoiser):
    """Some two-time denoiser that solves nothing."""

    cond_keys, two_time = (), True

    def __init__(self, path) -> None:
        super().__init__()
        self.path = path

    def forward(self, x, t, s=None, cond=None):
        t, s = expand(t, x), expand(s, x)
        return (1.3 * x + t).sin() + 0.4 * (2 * s - x).cos() * t + 0.2


def distil(student, teacher=None, **options) -> FlowMap:
    return FlowMap(student, teacher or GaussianDenoiser(student.path, DATA), **options)


def injected(path, *shape: int, rho: float = 1.0) -> tuple[Batch, Draws]:
    """Intervals all over the path, the first to its very beginning."""
    x0, noise = normal(2, *shape)
    t = torch.linspace(path.t_max, path.t_min, shape[0] + 1, dtype=D)[:-1]
    s = path.t_min + torch.linspace(0, 0.9, shape[0], dtype=D) * (t - path.t_min)
    if path.t_min == 0:
        s[0] = 1e-3  # a velocity at clean data does not exist
    return Batch(DATA.mean + DATA.std * x0), Draws(t, s, torch.full_like(t, rho), noise)


def tangent(student, batch, draws, c: float = 0.1, **options) -> tuple[Tensor, Tensor]:
    """g and F, read off the gradient of the public loss."""
    shape = batch.x0.shape
    free = Free(student, *shape)
    distil(free, c=c, **options).loss(batch, draws).total().backward()
    normalised = free.own.grad * expand(draws.t, batch.x0) * batch.x0.numel() / 2
    size = normalised.flatten(1).norm(dim=1)
    x_t = student.path.perturb(batch.x0, draws.noise, draws.t)
    mean = student.path.velocity(x_t, student(x_t, draws.t, draws.s), draws.t)
    return normalised * expand(c / (1 - size), batch.x0), mean


def velocity(path, x: Tensor, t: Tensor) -> Tensor:
    return path.velocity(x, DATA.denoised(path, x, t), t)


# At the exact flow map.


@each_kind
@each_event
@each_path
def test_zero_at_the_exact_flow_map(path, event, kind):
    batch, draws = injected(path, 6, *event)
    student = Offset(GaussianFlowMap(path, DATA))
    loss = distil(student, kind=kind).loss(batch, draws)
    assert float(loss.logs["tangent"]) < 1e-10
    assert float(loss.total().detach()) < 1e-20
    loss.total().backward()
    assert abs(float(student.offset.grad)) < 1e-10
    assert abs(float(student.scale.grad)) < 1e-10


@each_kind
def test_below_one_the_factor_straightens(kind):
    path = Linear()
    batch, draws = injected(path, 6, 2, rho=0.9)
    g, mean = tangent(GaussianFlowMap(path, DATA), batch, draws, kind=kind)
    x, t, s = path.perturb(batch.x0, draws.noise, draws.t), draws.t, draws.s
    end = velocity(path, *((x, t) if kind == "eulerian" else (DATA.flow(path, x, t, s), s)))
    torch.testing.assert_close(g, 0.1 * (end - mean), rtol=1e-8, atol=1e-10)


@each_kind
@each_path
def test_the_gradient_points_home(path, kind):
    batch, draws = injected(path, 512, 2)
    for offset, scale in ((0.3, 1.0), (-0.3, 1.0), (0.0, 1.2), (0.0, 0.8)):
        student = Offset(GaussianFlowMap(path, DATA), offset, scale, ramp=lambda t: t)
        distil(student, kind=kind).loss(batch, draws).total().backward()
        away = float(student.offset.grad) * offset + float(student.scale.grad) * (scale - 1)
        assert away > 1e-4


@each_kind
def test_descent_arrives(kind):
    path = Linear(0.05, 0.95)
    batch, draws = injected(path, 256, 1)
    student = Offset(GaussianFlowMap(path, DATA), 0.5, ramp=lambda t: t)
    objective = distil(student, kind=kind, c=1.0)
    for _ in range(60):
        student.offset.grad = None
        objective.loss(batch, draws).total().backward()
        with torch.no_grad():
            student.offset -= 0.5 * student.offset.grad
    assert abs(float(student.offset.detach())) < 1e-3


# What the gradient is.


@each_event
def test_the_eulerian_tangent_is_the_rate_of_the_end(event):
    path, h = Linear(0.05, 0.95), 1e-5
    student = Wavy(path)
    batch, draws = injected(path, 6, *event)
    t, s, x = draws.t, draws.s, path.perturb(batch.x0, draws.noise, draws.t)
    v = velocity(path, x, t)
    ahead, behind = (student.jump(x + d * v, t + d, s) for d in (h, -h))
    for c in (0.1, 3.0):
        g, _ = tangent(student, batch, draws, c=c)
        torch.testing.assert_close(g, (ahead - behind) / (2 * h), rtol=1e-7, atol=1e-7)


@each_event
def test_the_lagrangian_tangent_is_the_ends_missing_velocity(event):
    path, h = Linear(0.05, 0.95), 1e-5
    student = Wavy(path)
    batch, draws = injected(path, 6, *event)
    t, s, x = draws.t, draws.s, path.perturb(batch.x0, draws.noise, draws.t)
    g, _ = tangent(student, batch, draws, kind="lagrangian")
    moved = (student.jump(x, t, s + h) - student.jump(x, t, s - h)) / (2 * h)
    wanted = velocity(path, student.jump(x, t, s), s) - moved
    torch.testing.assert_close(g, wanted, rtol=1e-7, atol=1e-7)


def test_without_normalisation_the_target_is_meanflows():
    path, h = Linear(0.05, 0.95), 1e-5
    student = Wavy(path)
    batch, draws = injected(path, 6, 2)
    t, s, x = draws.t, draws.s, path.perturb(batch.x0, draws.noise, draws.t)
    v = velocity(path, x, t)

    def u(x, t):
        return path.velocity(x, student(x, t, s), t)

    total = (u(x + h * v, t + h) - u(x - h * v, t - h)) / (2 * h)
    g, mean = tangent(student, batch, draws)
    torch.testing.assert_close(mean + g, v - expand(t - s, x) * total, rtol=1e-7, atol=1e-7)


def test_to_clean_data_it_is_a_consistency_model():
    # Along the flow the exact consistency function is constant; a denoiser's answer is not.
    path = Linear()
    batch, draws = injected(path, 6, 2)
    draws = draws._replace(s=torch.zeros_like(draws.t))

    class Consistency(GaussianConsistency):
        two_time = True

    g, _ = tangent(Consistency(path, DATA), batch, draws)
    assert float(g.abs().max()) < 1e-10
    x, h = path.perturb(batch.x0, draws.noise, draws.t), 1e-5
    v = velocity(path, x, draws.t)

    class Teacher(GaussianDenoiser):
        two_time = True

    at = (draws.t[1:] - h, draws.t[1:] + h)  # the path ends at the first
    before, after = (
        DATA.denoised(path, x[1:] + expand(t - draws.t[1:], x[1:]) * v[1:], t) for t in at
    )
    g, _ = tangent(Teacher(path, DATA), batch, draws)
    torch.testing.assert_close(g[1:], (after - before) / (2 * h), rtol=1e-7, atol=1e-7)


@each_kind
def test_from_a_time_to_itself_it_is_flow_matching(kind):
    path = Linear(0.05, 0.95)
    batch, draws = injected(path, 6, 2)
    draws = draws._replace(s=draws.t)
    g, mean = tangent(Wavy(path), batch, draws, kind=kind)
    x = path.perturb(batch.x0, draws.noise, draws.t)
    torch.testing.assert_close(mean + g, velocity(path, x, draws.t))

    # Where the teacher's velocity is the sample's own, its direction is that of flow matching.
    class Clean(AbstractDenoiser):
        cond_keys, two_time = (), False

        def __init__(self) -> None:
            super().__init__()
            self.path = path

        def forward(self, x, t, s=None, cond=None):
            return batch.x0

    own, ours = Free(Wavy(path), 6, 2), Free(Wavy(path), 6, 2)
    loss = FlowMatching(own, times=lambda b, rng: draws.t).loss
    # Flow matching asks for s = None; a two-time network then has s = t.
    own.forward = lambda x, t, s=None, cond=None: own.student(x, t, t) + own.own
    loss(batch, NoisedDraws(draws.t, draws.noise)).total().backward()
    distil(ours, Clean(), kind=kind).loss(batch, draws).total().backward()
    for a, b in zip(own.own.grad, ours.own.grad, strict=True):
        torch.testing.assert_close(a / a.norm(), b / b.norm())


@each_kind
def test_the_derivative_is_an_argument(kind):
    path = Linear(0.05, 0.95)
    batch, draws = injected(path, 6, 2)
    calls = []

    def differences(fn, primals, tangents, h=1e-5):
        calls.append(len(primals))
        with torch.no_grad():
            ends = [
                fn(*(p + d * v for p, v in zip(primals, tangents, strict=True))) for d in (h, -h)
            ]
        return fn(*primals), (ends[0] - ends[1]) / (2 * h)

    found = []
    for derivative in (jvp, differences):
        student = Offset(Wavy(path), 0.1)
        objective = distil(student, kind=kind, derivative=derivative)
        loss = objective.loss(batch, draws)
        loss.total().backward()
        found.append(torch.stack([loss.total().detach(), student.offset.grad]))
    assert calls == [3]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("event", [(2,), (3, 2, 4)], ids=str)
@each_kind
def test_masked_data_does_not_count(kind, event):
    path = Linear(0.05, 0.95)
    batch, draws = injected(path, 3, *event)
    mask = torch.ones(1, *event, dtype=D)
    mask.flatten()[-1] = 0
    student = Wavy(path)
    spoiled = Batch(batch.x0 + 100 * (1 - mask), mask=mask.expand_as(batch.x0))
    clean = Batch(batch.x0, mask=spoiled.mask)
    a, b = (distil(student, kind=kind).loss(v, draws) for v in (clean, spoiled))
    torch.testing.assert_close(a.total(), b.total())
    kept = mask.flatten().bool()
    short = Batch(batch.x0.flatten(1)[:, kept])
    noise = draws.noise.flatten(1)[:, kept]
    plain = distil(student, kind=kind).loss(short, draws._replace(noise=noise))
    torch.testing.assert_close(a.total(), plain.total())


# Whom it asks, and whom it teaches.


@each_kind
def test_the_teacher_is_asked_at_its_own_point(kind):
    path = Linear(0.05, 0.95)
    teacher, student = Watched(GaussianDenoiser(path, DATA)), Wavy(path)
    batch, draws = injected(path, 6, 2)
    batch = Batch(batch.x0, {"label": torch.arange(6)})
    distil(student, teacher, kind=kind).loss(batch, draws)
    ((x, t, s, cond),) = teacher.seen
    x_t = path.perturb(batch.x0, draws.noise, draws.t)
    end = student.jump(x_t, draws.t, draws.s)
    torch.testing.assert_close(x, x_t if kind == "eulerian" else end)
    assert t.equal(draws.t if kind == "eulerian" else draws.s)
    assert s is None
    assert cond["label"].equal(batch.cond["label"])


@each_kind
def test_the_gradient_reaches_the_student_only(kind):
    path = Linear(0.05, 0.95)
    student, teacher = Offset(Wavy(path), 0.1), Offset(GaussianDenoiser(path, DATA))
    objective = distil(student, teacher, kind=kind)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher.training
    objective.requires_grad_(True)
    objective.loss(*injected(path, 6, 2)).total().backward()
    reached = {name for name, p in objective.named_parameters() if p.grad is not None}
    assert reached == {"student.offset", "student.scale"}
    assert objective.frozen == ("teacher",)
    assert objective.capabilities.forward_mode
    (phase,) = objective.phases()
    assert (phase.name, phase.module) == ("student", student)


def test_a_guided_teacher_guides():
    path = Linear(0.05, 0.95)

    class Labelled(GaussianDenoiser):
        cond_keys = ("label",)

        def forward(self, x, t, s=None, cond=None):
            return super().forward(x, t, s, cond) + expand(1.0 * (cond["label"] == 1), x)

    batch, draws = injected(path, 6, 2)
    batch = Batch(batch.x0, {"label": torch.ones(6, dtype=torch.long)})
    guided = Guided(Labelled(path, DATA), {"label": 0}, 3.0)
    moved = Offset(GaussianDenoiser(path, DATA), 3.0)
    losses = [float(distil(Wavy(path), v).loss(batch, draws).total()) for v in (guided, moved)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


# Draws.


@each_path
def test_draws(path):
    objective = distil(Wavy(path), gap=LogitNormal(-0.8, 1.0), warmup=100)
    batch, span = Batch(normal(4000, 1)), path.t_max - path.t_min
    draws = objective.draw(batch, 30, Rng(3, 30, "student"))
    again = objective.draw(batch, 30, Rng(3, 30, "student"))
    assert all(a.equal(b) for a, b in zip(draws, again, strict=True))
    t, s = draws.t, draws.s
    assert t.dtype == s.dtype == D
    assert ((path.t_min <= s) & (s < t) & (t <= path.t_max)).all()
    gap = (t - s) / span
    logit = (gap / (1 - gap)).log()
    assert float(logit.mean()) == pytest.approx(-0.8, abs=0.06)
    assert float(logit.std()) == pytest.approx(1.0, abs=0.05)
    place = (s - path.t_min) / span / (1 - gap)
    assert float((place.sort().values - torch.linspace(0, 1, 4000)).abs().max()) < 0.03
    assert abs(float(torch.corrcoef(torch.stack([place, gap]))[0, 1])) < 0.05
    assert draws.noise.shape == batch.x0.shape


def test_warm_up():
    batch = Batch(normal(2, 1))

    def rho(step, **options):
        objective = distil(Wavy(Linear()), **options)
        return objective.draw(batch, step, Rng(0, step, "student")).rho.tolist()

    assert rho(0) == [0, 0]
    assert rho(2500) == [0.25, 0.25]
    assert rho(10**6) == [0.99, 0.99]
    assert rho(0, warmup=0) == [0.99, 0.99]
    assert rho(50, warmup=100, ratio_max=0.4) == [0.4, 0.4]


# Sampling and refusals.


def test_contract_and_samples_of_the_exact_map():
    path = Linear(0.05, 0.95)
    student = Offset(GaussianFlowMap(path, DATA))
    objective = distil(student)
    contract = objective.contract(DataSpec(shape=(3,), range=None))
    contract = contract.with_times({2: (0.95, 0.3)})
    sampling = contract.sampling
    assert contract.method == "flowmap"
    assert (sampling.kind, sampling.any_times, sampling.guidance) == ("deterministic", True, None)
    assert (sampling.start.t, sampling.start.std) == (0.95, 0.95)
    assert sampling.times == {1: (0.95,), 2: (0.95, 0.3)}
    assert objective.deliver(student) is student
    # The exact map composes with itself: the number of steps does not matter.
    model = Model(student, contract)
    once = model.sample(50, steps=1)
    for steps in (2, 3, 8):
        torch.testing.assert_close(model.sample(50, steps=steps), once, rtol=1e-5, atol=1e-6)
    assert model.times(4) == pytest.approx([0.95, 0.725, 0.5, 0.275])
    start = Gaussian(0.0, 0.95)
    wanted = DATA.std * start.std / math.sqrt(float(DATA.variance(path, full(0.95, once[:1]))))
    x = model.sample(20_000)
    assert float(x.std()) == pytest.approx(
        wanted * float(DATA.variance(path, full(0.05, once[:1]))) ** 0.5 / DATA.std, rel=0.02
    )


def test_refusals():
    path = Linear()
    teacher = GaussianDenoiser(path, DATA)
    with pytest.raises(UsageError, match="two-time"):
        FlowMap(teacher, teacher)
    with pytest.raises(UsageError, match="derived on Linear"):
        FlowMap(GaussianFlowMap(Trig(), DATA), GaussianDenoiser(Trig(), DATA))
    with pytest.raises(UsageError, match="read the teacher"):
        distil(Wavy(path), GaussianDenoiser(VarianceExploding(), DATA))
    with pytest.raises(UsageError, match="read the teacher"):
        distil(Wavy(path), GaussianDenoiser(Linear(0.0, 0.9), DATA))
    with pytest.raises(UsageError, match="kind"):
        distil(Wavy(path), kind="euler")
    for wrong in ({"c": 0.0}, {"ratio_max": 1.5}, {"warmup": -1}):
        with pytest.raises(UsageError, match="expected c > 0"):
            distil(Wavy(path), **wrong)


@each_kind
def test_single_precision_learns_the_same(kind):
    path = Linear(0.02, 0.98)

    class Net(nn.Module):
        cond_keys, two_time = (), True

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 2)

        def forward(self, x, c_noise, s_noise=None, cond=None):
            return self.last(
                self.first(torch.cat([x, c_noise[:, None], s_noise[:, None]], 1)).tanh()
            )

    torch.manual_seed(0)
    net = Net()
    batch, draws = injected(path, 16, 2)
    found = []
    for dtype in (torch.float32, D):
        objective = distil(Denoiser(net.to(dtype), Flow(path=path)), kind=kind)
        net.zero_grad()
        given = draws._replace(noise=draws.noise.to(dtype))
        objective.loss(Batch(batch.x0.to(dtype)), given).total().backward()
        found.append(torch.cat([p.grad.flatten() for p in net.parameters()]).double())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
