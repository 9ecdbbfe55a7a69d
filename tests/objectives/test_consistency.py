import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError, expand
from fewstep.models import AbstractDenoiser, Guided
from fewstep.objectives.consistency import (
    Consistency,
    Draws,
    Fixed,
    Progressive,
    SameNoise,
    Scales,
    TeacherStep,
)
from fewstep.objectives.shared.distances import PseudoHuber, l1, l2
from fewstep.objectives.shared.drop import ConditionDrop
from fewstep.paths import (
    CosineVariancePreserving,
    DiscreteVariancePreserving,
    Linear,
    Trig,
    VarianceExploding,
    VariancePreserving,
)
from fewstep.solvers import ddim, dpm_midpoint, euler, heun
from fewstep.times import DiscreteLogNormal, karras, uniform
from oracles import (
    D,
    Gaussian,
    GaussianConsistency,
    GaussianDenoiser,
    Offset,
    Watched,
    four_points,
    full,
    normal,
    path_id,
    slope,
)

DATA = Gaussian(0.3, 0.7)
VE = VarianceExploding(0.1, 10.0)
PATHS = [
    VE,
    VariancePreserving(0.1, 1.0),
    CosineVariancePreserving(0.1, 0.9),
    DiscreteVariancePreserving(50.0),
    Linear(0.1, 0.9),
    Trig(0.1, 1.4),
]
EVENTS = [(2,), (1, 8, 8), (3, 2, 4, 4)]
DISTANCES = [l1, l2, PseudoHuber(), PseudoHuber(0.1)]
each_path = pytest.mark.parametrize("path", PATHS, ids=path_id)
each_event = pytest.mark.parametrize("event", EVENTS, ids=str)
each_distance = pytest.mark.parametrize(
    "distance", DISTANCES, ids=lambda d: getattr(d, "__name__", repr(d))
)


def follow_the_flow(denoiser, x, t, s, cond):
    """A solver without error."""
    return DATA.flow(denoiser.path, x, t, s)


def exact_cd(student: AbstractDenoiser, solver=follow_the_flow, **kwargs) -> Consistency:
    step = TeacherStep(GaussianDenoiser(student.path, DATA), solver)
    return Consistency(student, step, **{"schedule": Fixed(), **kwargs})


def ct(student: AbstractDenoiser, **kwargs) -> Consistency:
    return Consistency(student, SameNoise(student.path), **{"schedule": Fixed(), **kwargs})


def ramped(path, offset: float, scale: float = 1.0) -> Offset:
    """A wrong consistency function that is right at the boundary."""
    span = path.t_max - path.t_min
    f = GaussianConsistency(path, DATA)
    return Offset(f, offset, scale, ramp=lambda t: (t - path.t_min) / span)


def pairs(path, b: int, points: int = 18) -> tuple[Tensor, Tensor]:
    """Neighbours all over the range, the last pair ending exactly on t_min."""
    grid = torch.linspace(path.t_max, path.t_min, points, dtype=D)
    grid[-1] = path.t_min
    index = torch.linspace(0, points - 2, b).long()
    return grid[index], grid[index + 1]


def loss_of(objective: Consistency, x0: Tensor, t: Tensor, r: Tensor, noise: Tensor) -> Tensor:
    return objective.loss(Batch(x0), Draws(t, r, noise)).total()


# At the exact solution.


@each_event
@each_path
def test_distillation_is_zero_at_the_exact_function(path, event):
    x0, noise = normal(2, 6, *event)
    t, r = pairs(path, 6)
    for distance in DISTANCES:
        objective = exact_cd(GaussianConsistency(path, DATA), distance=distance)
        # Rounding: 1e-15 in an event of 96, and in the square root of c^2 + 1e-31.
        assert float(loss_of(objective, x0, t, r, noise)) < (1e-20 if distance is l2 else 1e-13)


ORDERS = {"euler": (euler, 2), "ddim": (ddim, 2), "heun": (heun, 3), "dpm": (dpm_midpoint, 3)}


@pytest.mark.parametrize(
    ("path", "t"),
    [(VE, 2.0), (Linear(0.1, 0.9), 0.7), (Trig(0.1), 0.9)],
    ids=["ve", "flow", "trig"],
)
@pytest.mark.parametrize("name", ORDERS)
def test_distillation_falls_at_the_order_of_its_solver(name, path, t):
    solver, order = ORDERS[name]
    x0, noise = normal(2, 8, 2)
    sizes = [0.1, 0.05, 0.025]
    for distance, power in ((l1, order), (l2, 2 * order)):
        objective = exact_cd(GaussianConsistency(path, DATA), solver, distance=distance)
        losses = [
            float(loss_of(objective, x0, full(t, x0), full(t - dt, x0), noise)) for dt in sizes
        ]
        assert slope(sizes, losses) == pytest.approx(power, abs=0.15 * power)


@each_path
def test_training_is_not_zero_at_the_exact_function(path):
    # The earlier point is another one than the flow's: a distance of first order in the step.
    t = 0.6 * path.t_max
    x0, noise = normal(2, 64, 2)
    sizes = [0.02, 0.01, 0.005]
    for distance, power in ((l1, 1), (l2, 2)):
        objective = ct(GaussianConsistency(path, DATA), distance=distance)
        losses = [
            float(loss_of(objective, x0, full(t, x0), full(t - dt * path.t_max, x0), noise))
            for dt in sizes
        ]
        assert slope(sizes, losses) == pytest.approx(power, abs=0.1)
        assert losses[-1] > 1e-7


@each_path
def test_training_is_distillation_by_ddim_in_expectation(path):
    # f is affine here, so E[target | x_t] is f of the expected earlier point, which is DDIM's; with
    # l2 the two gradients agree, and at the exact f both are DDIM's error, of second order.
    x0, noise = four_points(DATA, 1)
    t = 0.6 * path.t_max
    for offset, scale in ((0.0, 1.0), (0.4, 1.0), (-0.2, 1.2)):
        biases = []
        for dt in (0.1, 0.05):
            times = full(t, x0), full(t - dt * path.t_max, x0)
            found = []
            for make in (ct, lambda student: exact_cd(student, ddim)):
                student = ramped(path, offset, scale)
                loss_of(make(student), x0, *times, noise).backward()
                found.append(torch.stack([student.offset.grad, student.scale.grad]))
            torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12)
            biases.append(float(found[0].abs().max()))
        if (offset, scale) == (0.0, 1.0):
            assert 0 < biases[1] < biases[0] / 3


# From a wrong function, home.


@each_distance
@pytest.mark.parametrize("rate", [0.0, 0.9])
@pytest.mark.parametrize("kind", ["cd-exact", "cd-heun", "ct"])
def test_the_gradient_points_home(kind, rate, distance):
    make = {"cd-exact": exact_cd, "cd-heun": lambda s, **k: exact_cd(s, heun, **k), "ct": ct}[kind]
    for path in (VE, Linear(0.1, 0.9), Trig(0.1, 1.4)):
        x0, noise = DATA.mean + DATA.std * normal(512, 2, seed=1), normal(512, 2)
        t, r = pairs(path, 512)
        for offset in (0.5, -0.5):
            student = ramped(path, offset)
            objective = make(student, schedule=Fixed(18, rate), distance=distance)
            loss_of(objective, x0, t, r, noise).backward()
            assert float(student.offset.grad) * offset > 0


@each_distance
def test_the_boundary_teaches_the_data(distance):
    # In the last interval the target is the earlier point itself, so nothing is left undetermined.
    x0, noise = DATA.mean + DATA.std * normal(512, 2, seed=1), normal(512, 2)
    for make in (exact_cd, ct):
        for offset, scale in ((0.5, 1.0), (-0.5, 1.0), (0.0, 1.3), (0.0, 0.7)):
            student = Offset(GaussianConsistency(VE, DATA), offset, scale)
            objective = make(student, distance=distance)
            loss_of(objective, x0, full(0.15, x0), full(0.1, x0), noise).backward()
            away = float(student.offset.grad) * offset + float(student.scale.grad) * (scale - 1)
            assert away > 0.01


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("make", [exact_cd, ct])
def test_descent_arrives(make, rate):
    x0, noise = (v.repeat(5, 1) for v in four_points(DATA, 1))
    t, r = (v.repeat_interleave(4) for v in pairs(VE, 5, points=6))
    student = ramped(VE, 0.5)
    objective = make(student, schedule=Fixed(6, rate))
    away = [0.5]
    for step in range(60):
        student.offset.grad = None
        loss_of(objective, x0, t, r, noise).backward()
        with torch.no_grad():
            student.offset -= student.offset.grad
        objective.after_step(step)
        away.append(abs(float(student.offset.detach())))
    # CT's bias is in the scale: the mean of its earlier points is on the flow.
    assert away == sorted(away, reverse=True)
    assert away[-1] < 1e-3


# What the gradient is, and whom it reaches.


@pytest.mark.parametrize("rate", [0.0, 0.9])
@each_path
def test_the_target_is_a_constant(path, rate):
    student = ramped(path, 0.5)
    objective = exact_cd(student, schedule=Fixed(18, rate))
    x0, noise = normal(2, 9, 2)
    t, r = pairs(path, 9)
    loss = loss_of(objective, x0, t, r, noise)
    loss.backward()
    high, low = student.ramp(t), student.ramp(r)
    gap = 0.5 * (high - low)
    wanted = float((gap**2).mean().detach())
    assert float(loss.detach()) == pytest.approx(wanted, abs=1e-12)
    assert float(student.offset.grad) == pytest.approx(float((2 * gap * high).mean()), abs=1e-12)


def test_the_gradient_reaches_the_student_only():
    path = VE
    teacher = Offset(GaussianDenoiser(path, DATA))
    recording = []

    def solver(*args):
        recording.append(torch.is_grad_enabled())
        return heun(*args)

    step = TeacherStep(teacher, solver)
    objective = Consistency(ramped(path, 0.5), step, schedule=Fixed(18, 0.9))
    assert not any(p.requires_grad for p in objective.target.parameters())
    assert not any(p.requires_grad for p in teacher.parameters())
    objective.requires_grad_(True)
    x0, noise = normal(2, 9, 2)
    loss_of(objective, x0, *pairs(path, 9), noise).backward()
    reached = {name for name, p in objective.named_parameters() if p.grad is not None}
    assert reached == {"student.offset", "student.scale"}
    assert recording == [False]  # a graph of the teacher would cost memory and reach no one
    frozen = {name for name, _ in objective.named_parameters() if name.startswith(objective.frozen)}
    assert frozen == {"step.teacher.offset", "step.teacher.scale"}
    (phase,) = objective.phases()
    assert (phase.name, phase.module) == ("student", objective.student)


class Masks(AbstractDenoiser):
    """Answers with its dropout mask."""

    cond_keys = ()
    two_time = False

    def __init__(self, path) -> None:
        super().__init__()
        self.path, self.answers = path, []

    def forward(self, x, t, s=None, cond=None):
        self.answers.append(F.dropout(torch.ones_like(x), 0.5, self.training))
        return self.answers[-1]


@pytest.mark.parametrize("rate", [0.0, 0.9])
@each_event
def test_online_and_target_share_their_dropout(event, rate):
    student, teacher = Masks(VE), Masks(VE)
    objective = Consistency(student, TeacherStep(teacher), schedule=Fixed(18, rate))
    torch.manual_seed(0)
    x0, noise = normal(2, 3, *event)
    t, r = torch.tensor([[9.0, 3.0, 1.0], [8.0, 2.0, 0.5]], dtype=D)
    for _ in range(2):
        assert float(loss_of(objective, x0, t, r, noise)) == 0
    online = student.answers[0::2] if rate == 0 else student.answers
    target = student.answers[1::2] if rate == 0 else objective.target.answers
    assert all(a.equal(b) for a, b in zip(online, target, strict=True))
    assert set(online[0].unique().tolist()) == {0, 2}
    assert not online[0].equal(online[1])
    # The teacher is in evaluation mode and consumes nothing.
    assert all((a == 1).all() for a in teacher.answers)


# Where the networks are evaluated.


@each_event
@each_path
def test_training_keeps_the_noise(path, event):
    student = Watched(GaussianConsistency(path, DATA))
    x0, noise = normal(2, 4, *event)
    t, r = pairs(path, 4)
    loss_of(ct(student), x0, t, r, noise)
    for (x, time, end, _), wanted in zip(student.seen, (r, t), strict=True):
        alpha, sigma, _, _ = path.coefficients(wanted)
        assert x.equal(expand(alpha, x0) * x0 + expand(sigma, x0) * noise)
        assert time.equal(wanted)
        assert end.tolist() == [path.t_min] * 4


def test_on_noise_levels_the_points_are_sums():
    student = Watched(GaussianConsistency(VE, DATA))
    x0, noise = normal(2, 1, 3)
    loss_of(ct(student), x0, full(3.0, x0), full(2.0, x0), noise)
    assert student.seen[0][0].equal(x0 + 2 * noise)
    assert student.seen[1][0].equal(x0 + 3 * noise)


def test_distillation_asks_the_teacher_at_both_times():
    teacher = Watched(GaussianDenoiser(VE, DATA))
    student = Watched(GaussianConsistency(VE, DATA))
    x0, noise = normal(2, 4, 2)
    t, r = pairs(VE, 4)
    batch = Batch(x0, {"label": torch.arange(4)})
    objective = Consistency(student, TeacherStep(teacher), schedule=Fixed())
    objective.loss(batch, Draws(t, r, noise))
    x_t = x0 + expand(t, x0) * noise
    assert [seen[1].tolist() for seen in teacher.seen] == [t.tolist(), r.tolist()]
    assert teacher.seen[0][0].equal(x_t)
    assert student.seen[1][0].equal(x_t)
    wanted = heun(teacher.denoiser, x_t, t, r, None)
    torch.testing.assert_close(student.seen[0][0], wanted, rtol=1e-13, atol=1e-13)
    for seen in (*teacher.seen, *student.seen):
        assert seen[3]["label"].equal(batch.cond["label"])


def test_the_last_target_is_the_earlier_point():
    # Whatever f is at t_min: through the objective's own grid, whose last time must be t_min.
    student = Offset(GaussianConsistency(VE, DATA), 0.5)
    for make in (exact_cd, ct):
        for path_grid in (None, lambda n: karras(n, VE.t_min, VE.t_max)):
            objective = make(
                student,
                index=lambda b, grid, rng: torch.full((b,), len(grid) - 2),
                grid=path_grid,
                schedule=Fixed(1000),
            )
            batch = Batch(normal(4, 2))
            draws = objective.draw(batch, 0, Rng(0, 0, "student"))
            found = objective.loss(batch, draws).total()
            # With an f in place of the identity the offset would cancel.
            assert float(found.detach()) == pytest.approx(0.25, abs=0.01)


# Arguments.


def test_the_weight_is_of_both_times():
    student, (x0, noise) = GaussianConsistency(VE, DATA), normal(2, 4, 2)
    t, r = pairs(VE, 4)
    plain = torch.stack(
        [loss_of(ct(student), *(v[i : i + 1] for v in (x0, t, r, noise))) for i in range(4)]
    )
    weighted = ct(student, weight=lambda t, r: t - 3 * r)
    torch.testing.assert_close(loss_of(weighted, x0, t, r, noise), ((t - 3 * r) * plain).mean())
    torch.testing.assert_close(loss_of(ct(student), x0, t, r, noise), plain.mean())


@each_event
@pytest.mark.parametrize("distance", [l1, l2, PseudoHuber(0.1)])
def test_masked_data_does_not_count(distance, event):
    student = ramped(VE, 0.5)
    x0, noise = normal(2, 3, *event)
    t, r = pairs(VE, 3)
    mask = (normal(1, *event, seed=1) > 0).double()
    mask.flatten()[0], mask.flatten()[1] = 1, 0
    kept = mask.flatten().bool()
    for make in (exact_cd, ct):
        objective = make(student, distance=distance)
        spoiled = Batch(x0 + 100 * (1 - mask), mask=mask)
        found = objective.loss(spoiled, Draws(t, r, noise)).total()
        few = loss_of(objective, x0.flatten(1)[:, kept], t, r, noise.flatten(1)[:, kept])
        torch.testing.assert_close(found, few, rtol=1e-10, atol=1e-15)


@each_event
def test_pseudo_huber_is_of_the_whole_sample(event):
    a, b = normal(2, 3, *event)
    size = math.prod(event)
    norm = (a - b).flatten(1).norm(dim=1)
    c = 0.00054 * math.sqrt(size)
    torch.testing.assert_close(PseudoHuber()(a, b, None), (norm**2 + c**2).sqrt() - c)
    torch.testing.assert_close(PseudoHuber(0.3)(a, b, None), (norm**2 + 0.09).sqrt() - 0.3)
    torch.testing.assert_close(l1(a, b), (a - b).abs().flatten(1).sum(1) / size)
    torch.testing.assert_close(l2(a, b), norm**2 / size)


def test_dropped_labels_reach_student_target_and_teacher():
    student = Watched(GaussianConsistency(VE, DATA))
    teacher = Watched(GaussianDenoiser(VE, DATA))
    objective = Consistency(
        student, TeacherStep(teacher), schedule=Fixed(), drop=ConditionDrop(0.5, {"label": 7})
    )
    x0, noise = normal(2, 3, 2)
    batch = Batch(x0, {"label": torch.tensor([0, 1, 2])})
    dropped = torch.tensor([True, False, True])
    objective.loss(batch, Draws(*pairs(VE, 3), noise, dropped))
    assert len(student.seen) == len(teacher.seen) == 2
    for seen in (*student.seen, *teacher.seen):
        assert seen[3]["label"].tolist() == [7, 1, 7]


class TwoClasses(AbstractDenoiser):
    """N(+-0.5, 0.7^2) by label; label 2, "none", has mean 0.1."""

    cond_keys = ("label",)
    two_time = False

    def __init__(self, path, guidance: float = 1.0, consistency: bool = False) -> None:
        super().__init__()
        self.path, self.guidance, self.consistency = path, guidance, consistency

    def forward(self, x, t, s=None, cond=None):
        own = torch.tensor([-0.5, 0.5, 0.1], dtype=D)[cond["label"]]
        # Gaussians of one variance: guidance moves the mean, and nothing else.
        means = 0.1 + self.guidance * (own - 0.1)
        parts = []
        for i, mean in enumerate(means.tolist()):
            data, here = Gaussian(mean, 0.7), slice(i, i + 1)
            args = self.path, x[here], t[here]
            end = torch.full_like(t[here], self.path.t_min)
            parts.append(data.flow(*args, end) if self.consistency else data.denoised(*args))
        return torch.cat(parts)


@pytest.mark.parametrize("path", [VE, Linear(0.1, 0.9)], ids=path_id)
def test_a_guided_teacher_teaches_its_guided_trajectory(path):
    x0, noise = normal(2, 4, 2)
    cond = {"label": torch.tensor([0, 1, 0, 1])}
    t, r = full(0.5, x0), full(0.49, x0)
    step = TeacherStep(Guided(TwoClasses(path), {"label": 2}, 2.5))
    losses = {}
    for guidance in (1.0, 2.5):
        student = TwoClasses(path, guidance, consistency=True)
        objective = Consistency(student, step, schedule=Fixed())
        losses[guidance] = float(objective.loss(Batch(x0, cond), Draws(t, r, noise)).total())
    assert losses[2.5] < 1e-11
    assert losses[1.0] > 1e-5
    # A scale by sample takes precedence.
    each = {**cond, "guidance": full(1.0, x0)}
    objective = Consistency(TwoClasses(path, 1.0, consistency=True), step, schedule=Fixed())
    assert float(objective.loss(Batch(x0, each), Draws(t, r, noise)).total()) < 1e-11


@pytest.mark.parametrize(
    "step",
    [TeacherStep(GaussianDenoiser(VarianceExploding(), DATA)), SameNoise(Linear())],
)
def test_the_earlier_point_lives_on_the_student_s_path(step):
    with pytest.raises(UsageError, match="path"):
        Consistency(GaussianConsistency(VE, DATA), step, schedule=Fixed())


# Draws.


def test_draws_are_neighbours_on_the_grid():
    objective = ct(GaussianConsistency(VE, DATA), schedule=Fixed(7))
    batch = Batch(normal(256, 2).float())
    t, r, noise, dropped = objective.draw(batch, 0, Rng(0, 0, "student"))
    grid = karras(7, VE.t_min, VE.t_max)
    index = torch.tensor([int((grid - v).abs().argmin()) for v in t])
    assert t.equal(grid[index])
    assert r.equal(grid[index + 1])
    assert set(index.tolist()) == {0, 1, 2, 3, 4, 5}
    assert (noise.dtype, noise.shape) == (torch.float32, (256, 2))
    assert t.dtype == D
    assert dropped is None
    assert abs(float(noise.mean())) < 0.18  # four standard deviations
    assert float(noise.std()) == pytest.approx(1, abs=0.13)
    loss = objective.loss(batch, Draws(t, r, noise)).total()
    assert loss.dtype == torch.float32


def test_draws_are_a_function_of_seed_and_step():
    objective = ct(
        GaussianConsistency(VE, DATA),
        schedule=Fixed(1000),
        drop=ConditionDrop(0.5, {"label": 7}),
        index=DiscreteLogNormal(),
    )
    batch = Batch(normal(6, 2, 3))

    def draw(*key) -> Draws:
        return objective.draw(batch, key[1], Rng(*key))

    first = draw(0, 5, "student")
    assert all(a.equal(b) for a, b in zip(first, draw(0, 5, "student"), strict=True))
    for other in ((0, 6, "student"), (1, 5, "student"), (0, 5, "critic"), (0, 5, "student", 1)):
        assert not draw(*other).noise.equal(first.noise)
        assert not draw(*other).t.equal(first.t)


def test_the_grid_is_the_one_of_the_step():
    objective = ct(
        GaussianConsistency(VE, DATA),
        schedule=lambda step: Scales(2 + step, 0.0),
        grid=lambda n: uniform(n, VE.t_min, VE.t_max),
    )
    batch = Batch(normal(64, 1))
    for step, width in ((0, 9.9), (1, 4.95), (8, 1.1)):
        t, r, *_ = objective.draw(batch, step, Rng(0, step, "student"))
        torch.testing.assert_close(t - r, torch.full((64,), width, dtype=D))


# Schedules.


# q = ceil(sqrt(part * ((s1 + 1)^2 - s0^2) + s0^2) - 1), N = q + 1, rate mu_0^(s0 / q).
@pytest.mark.parametrize(
    ("end", "rate", "part", "points", "averaging"),
    [
        (150, 0.9, 0.0, 2, 0.81),
        (150, 0.9, 0.25, 76, 0.9 ** (2 / 75)),
        (150, 0.9, 0.5, 107, 0.9 ** (2 / 106)),
        (150, 0.9, 0.75, 131, 0.9 ** (2 / 130)),
        (150, 0.9, 1.0, 151, 0.998596),
        (200, 0.95, 0.0, 2, 0.9025),
        (200, 0.95, 0.5, 143, 0.95 ** (2 / 142)),
        (200, 0.95, 1.0, 201, 0.999487),
    ],
)
def test_progressive_schedules(end, rate, part, points, averaging):
    schedule = Progressive(2, end, steps=800_000, rate=rate)
    found = schedule(int(part * 800_000))
    assert found.points == points
    assert found.rate == pytest.approx(averaging, abs=6e-7)
    assert Progressive(2, end, 800_000, rate, adaptive=False)(100).rate == rate


def test_schedules_grow():
    schedule = Progressive(2, 150, steps=1000)
    points, rates = zip(*(schedule(step) for step in range(0, 1001, 10)), strict=True)
    assert [*points] == sorted(points)
    assert [*rates] == sorted(rates)
    assert Fixed(40, 0.95)(0) == Fixed(40, 0.95)(10**6) == (40, 0.95)


def test_the_target_follows_at_the_rate_of_the_step():
    rates = [0.5, 0.25, 0.9]
    student = ramped(VE, 1.0)
    student.register_buffer("count", torch.tensor(0))
    objective = exact_cd(student, schedule=lambda step: Scales(18, rates[step]))
    assert objective.target is not student
    expected = 1.0
    for step, rate in enumerate(rates):
        with torch.no_grad():
            student.offset += 1.0
            student.count += 1
        objective.after_step(step)
        expected = rate * expected + (1 - rate) * float(student.offset.detach())
        assert float(objective.target.offset) == pytest.approx(expected, abs=1e-14)
        assert float(objective.target.scale) == 1
        assert int(objective.target.count) == step + 1
    assert float(student.offset.detach()) == 4


def test_the_target_is_the_followed_copy():
    student = ramped(VE, 0.5)
    objective = exact_cd(student, schedule=Fixed(18, 0.9))
    x0, noise = normal(2, 3, 2)
    t, r = torch.tensor([[9.0, 5.0, 2.0], [8.0, 4.0, 1.0]], dtype=D)
    with torch.no_grad():
        student.offset.fill_(-0.2)
    gap = -0.2 * student.ramp(t) - 0.5 * student.ramp(r)
    found = loss_of(objective, x0, t, r, noise)
    assert float(found.detach()) == pytest.approx(float((gap**2).mean()), abs=1e-12)


def test_without_a_rate_there_is_no_copy():
    student = Watched(ramped(VE, 0.5))
    objective = exact_cd(student, schedule=Fixed(18, 0.0))
    assert objective.target is None
    x0, noise = normal(2, 3, 2)
    loss_of(objective, x0, *pairs(VE, 3), noise)
    assert len(student.seen) == 2
    objective.after_step(0)
    assert float(student.denoiser.offset.detach()) == 0.5


def test_contract():
    data = DataSpec(shape=(2,), labels=3)
    student = GaussianConsistency(VE, DATA)
    found = ct(student).contract(data)
    assert (found.method, found.data) == ("ct", data)
    sampling = found.sampling
    assert (sampling.kind, sampling.any_times, sampling.guidance) == ("renoise", True, None)
    assert (sampling.start.t, sampling.start.std) == (10.0, 10.0)
    assert sampling.times == {1: (10.0,)}
    assert exact_cd(student).contract(data).method == "cd"
    assert exact_cd(student).deliver(student) is student
