import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep import solvers
from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError, expand
from fewstep.data import toy
from fewstep.data.toys import two_modes
from fewstep.model import Model, load
from fewstep.models import (
    EDM,
    AbstractDenoiser,
    DataAndNoisePrediction,
    DataPrediction,
    Denoiser,
    Guided,
    NoisePrediction,
    VPrediction,
)
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.progressive import Draws, Halving, ProgressiveDistillation
from fewstep.objectives.shared.distances import Perceptual, l1, l2
from fewstep.objectives.shared.weights import snr_plus_one, snr_weight, truncated_snr, unweighted
from fewstep.paths import (
    CosineVariancePreserving,
    DiscreteVariancePreserving,
    Linear,
    Path,
    Trig,
    VarianceExploding,
    VariancePreserving,
)
from fewstep.times import karras, log_snr, uniform
from fewstep.training.averages import constant
from fewstep.training.trainer import Trainer
from oracles import (
    D,
    Gaussian,
    GaussianDenoiser,
    GaussianFlowMap,
    MixtureDenoiser,
    Offset,
    Watched,
    full,
    normal,
    path_id,
    slope,
)
from tiny import settings

DATA = Gaussian(0.3, 0.7)
VE = VarianceExploding(0.1, 10.0)
COSINE = CosineVariancePreserving(0.0, 0.99)  # its last step ends on clean data
PATHS = [
    VE,
    VarianceExploding(0.0, 80.0),
    VariancePreserving(0.1, 1.0),
    VariancePreserving(0.0, 1.0),
    CosineVariancePreserving(0.1, 0.9),
    COSINE,
    DiscreteVariancePreserving(50.0),
    Linear(0.0, 1.0),
    Trig(0.1, 1.4),
]
EVENTS = [(2,), (1, 8, 8), (3, 2, 4, 4)]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{path_id(p)}-{p.t_min}")
each_event = pytest.mark.parametrize("event", EVENTS, ids=str)


class TwoSteps(AbstractDenoiser):
    """The answer whose one step does what the teacher's two do, from the definition."""

    cond_keys = ()
    two_time = False

    def __init__(self, teacher: AbstractDenoiser, grid: Tensor) -> None:
        super().__init__()
        self.teacher, self.path, self.grid = teacher, teacher.path, grid

    def forward(self, x, t, s=None, cond=None):
        here = (self.grid[:, None] == t).double().argmax(0)
        m, r = self.grid[here + 1], self.grid[here + 2]
        x_m = solvers.ddim(self.teacher, x, t, m, cond)
        x_r = solvers.ddim(self.teacher, x_m, m, r, cond)
        (alpha_t, sigma_t, _, _), (alpha_r, sigma_r, _, _) = map(self.path.coefficients, (t, r))
        keep = sigma_r / sigma_t
        return (x_r - expand(keep, x) * x) / expand(alpha_r - keep * alpha_t, x)


def of(student: AbstractDenoiser, n: int = 4, **kwargs) -> ProgressiveDistillation:
    kwargs = {"teacher": GaussianDenoiser(student.path, DATA), "schedule": lambda step: n, **kwargs}
    return ProgressiveDistillation(student, **kwargs)


def exact(path: Path, n: int = 4) -> TwoSteps:
    teacher = GaussianDenoiser(path, DATA)
    return TwoSteps(teacher, of(teacher, n).grid(2 * n + 1))


def drawn(objective: ProgressiveDistillation, x0: Tensor) -> Draws:
    """Every interval in turn."""
    n = int(objective.intervals)
    return Draws(*objective.times(torch.arange(len(x0)) % n, n), normal(*x0.shape, seed=1))


def loss_of(objective: ProgressiveDistillation, x0: Tensor) -> Tensor:
    return objective.loss(Batch(x0), drawn(objective, x0)).total()


# At the exact solution.


@each_event
@each_path
def test_zero_where_one_step_does_what_two_did(path, event):
    for n in (1, 4):
        student = exact(path, n)
        objective = of(student, n)
        x0 = normal(8, *event)
        assert float(loss_of(objective, x0)) < 1e-20
        t, m, r, noise = drawn(objective, x0)
        x_t = path.perturb(x0, noise, t)
        there = student.jump(x_t, t, r)
        teacher = objective.teacher
        by_two = teacher.jump(teacher.jump(x_t, t, m), m, r)
        torch.testing.assert_close(there, by_two, rtol=1e-12, atol=1e-12)


@each_path
def test_the_exact_chain_ends_where_the_teachers_does(path):
    student = Offset(exact(path, 4))
    objective = of(student, 4)
    model = Model(student, objective.contract(DataSpec(shape=(2,), range=None)))
    found = model.sample(16, steps=4)
    wide = torch.stack([normal(2, seed=i) for i in range(3)])  # any start will do for the chains
    chains = [
        solvers.deterministic(denoiser, wide, grid[:-1])
        for denoiser, grid in ((student, objective.grid(5)), (objective.teacher, objective.grid(9)))
    ]
    torch.testing.assert_close(chains[0], chains[1], rtol=1e-11, atol=1e-11)
    assert model.times() == objective.grid(5)[:-1].tolist()
    assert found.shape == (16, 2)
    assert found.isfinite().all()


@each_path
def test_the_target_tends_to_the_teachers_answer(path):
    # Two shorter and shorter steps: DDIM's curvature is what is left, of first order in the step.
    t, x0 = 0.6 * path.t_max, normal(64, 2)
    noise, sizes = normal(64, 2, seed=1), [0.02, 0.01, 0.005]
    objective = of(GaussianDenoiser(path, DATA), weight=unweighted)
    losses = []
    for part in sizes:
        times = [full(t - k * part * path.t_max / 2, x0) for k in range(3)]
        losses.append(float(objective.loss(Batch(x0), Draws(*times, noise)).total()))
    assert slope(sizes, losses) == pytest.approx(2, abs=0.15)


@each_path
def test_a_teacher_without_error_is_followed_exactly(path):
    # The flow map's own answers, one for each half: the target is its answer for the whole.
    flow, x0 = GaussianFlowMap(path, DATA), normal(8, 2)
    t, m, r, noise = drawn(of(exact(path)), x0)

    class Halves(GaussianDenoiser):
        def forward(self, x, at, s=None, cond=None):
            return flow(x, at, torch.where(at == t, m, r))

    class Whole(GaussianDenoiser):
        def forward(self, x, at, s=None, cond=None):
            return flow(x, at, r)

    objective = of(Whole(path, DATA), teacher=Halves(path, DATA))
    assert float(objective.loss(Batch(x0), Draws(t, m, r, noise)).total()) < 1e-20


@pytest.mark.parametrize("path", [COSINE, VariancePreserving(0.0), Linear(), Trig()], ids=path_id)
def test_at_clean_data_the_target_is_the_teachers_last_answer(path):
    teacher = Watched(GaussianDenoiser(path, DATA))
    answers = []
    teacher.register_forward_hook(lambda module, given, out: answers.append(out))
    student = Offset(GaussianDenoiser(path, DATA), 0.3)
    objective, x0 = of(student, 4, teacher=teacher, weight=unweighted), normal(3, 2)
    times = objective.times(torch.full((3,), 3), 4)
    assert times[2].tolist() == [0.0] * 3
    loss = objective.loss(Batch(x0), Draws(*times, normal(3, 2, seed=1))).total()
    x_t = teacher.seen[0][0]
    wanted = (student(x_t, times[0]) - answers[1]).square().mean()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)


def test_single_precision_is_enough_for_many_steps():
    # Of 4096 intervals: the quotient that defines the target is off by up to 0.003.
    path, n = VarianceExploding(), 4096
    teacher = GaussianDenoiser(path, DATA)
    grid = karras(2 * n + 1, path.t_min, path.t_max)
    x0 = normal(64, 2)

    class Target(GaussianDenoiser):
        """Answers with what another student was to learn: the loss is the distance of both."""

        def forward(self, x, t, s=None, cond=None):
            return TwoSteps(teacher, grid)(x.double(), t).to(x.dtype)

    objective = of(Target(path, DATA), n, distance=l1, weight=unweighted)
    index = torch.linspace(0, n - 1, 64).long()
    times = objective.times(index, n)
    draws = Draws(*times, normal(64, 2, seed=1).float())
    assert float(objective.loss(Batch(x0.float()), draws).total()) < 1e-5


# From a wrong answer, home.


@pytest.mark.parametrize("distance", [l1, l2])
@each_path
def test_the_gradient_points_home(path, distance):
    x0 = DATA.mean + DATA.std * normal(512, 2)
    for offset, scale in ((0.5, 1.0), (-0.5, 1.0), (0.0, 1.3), (0.0, 0.7)):
        student = Offset(exact(path), offset, scale)
        loss_of(of(student, distance=distance), x0).backward()
        assert float(student.offset.grad) * offset + float(student.scale.grad) * (scale - 1) > 0.01


def test_descent_arrives():
    student, x0 = Offset(exact(COSINE), 0.5), normal(64, 2)
    objective = of(student, weight=unweighted)
    away = [0.5]
    for _ in range(40):
        student.offset.grad = None
        loss_of(objective, x0).backward()
        with torch.no_grad():
            student.offset -= 0.2 * student.offset.grad
        away.append(abs(float(student.offset.detach())))
    assert away == sorted(away, reverse=True)
    assert away[-1] < 1e-6


# What is weighed, and whom it reaches.


@pytest.mark.parametrize("path", [VE, COSINE], ids=path_id)
@pytest.mark.parametrize("weight", [unweighted, snr_weight, snr_plus_one, truncated_snr])
def test_the_weight_is_of_the_noisier_time(path, weight):
    student, x0 = Offset(exact(path), 0.5), normal(4, 2)
    objective = of(student, weight=weight)
    alpha, sigma, _, _ = path.coefficients(drawn(objective, x0).t)
    wanted = 0.25 * weight((alpha / sigma) ** 2).mean()
    assert float(loss_of(objective, x0).detach()) == pytest.approx(float(wanted), rel=1e-9)


def test_the_weights_are_losses_of_other_predictions():
    # snr weighs errors of x0 as errors of the noise, snr + 1 as errors of v.
    student, x0 = Offset(exact(COSINE), 0.5), normal(4, 2)
    t, *_, noise = drawn(of(student), x0)
    x_t = COSINE.perturb(x0, noise, t)
    right, wrong = student.denoiser(x_t, t), student(x_t, t)
    for weight, read in ((snr_weight, COSINE.noise), (snr_plus_one, COSINE.v)):
        wanted = (read(x_t, right, t) - read(x_t, wrong, t)).square().mean()
        found = loss_of(of(student, weight=weight), x0)
        assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)


def test_the_gradient_reaches_the_student_only():
    recording = []

    class Noting(GaussianDenoiser):
        def forward(self, x, t, s=None, cond=None):
            recording.append((torch.is_grad_enabled(), cond))
            return super().forward(x, t, s, cond)

    student = Watched(Offset(exact(VE), 0.5))
    objective = of(student, teacher=Offset(Noting(VE, DATA)), schedule=Halving(4, 2))
    x0, cond = normal(4, 2), {"label": torch.arange(4)}
    for step in (1, 3):
        objective.requires_grad_(True).zero_grad()
        draws = objective.draw(Batch(x0), step, Rng(0, step, "student"))
        objective.loss(Batch(x0, cond), draws).total().backward()
        reached = {name for name, p in objective.named_parameters() if p.grad is not None}
        assert reached == {"student.denoiser.offset", "student.denoiser.scale"}
        assert all(not on and given is cond for on, given in recording[-2:])
        assert student.seen[-1][3] is cond
        objective.after_step(step)
    (phase,) = objective.phases()
    assert (phase.name, phase.module) == ("student", objective.student)


def test_masked_data_does_not_count():
    student, x0 = Offset(exact(VE), 0.5), normal(4, 6)
    mask = torch.tensor([[1.0, 0, 1, 1, 0, 1]], dtype=D)
    objective = of(student)
    draws = drawn(objective, x0)
    found = objective.loss(Batch(x0 + 100 * (1 - mask), mask=mask), draws).total()
    few = Draws(*draws[:3], draws.noise[:, mask[0] > 0])
    wanted = objective.loss(Batch(x0[:, mask[0] > 0]), few).total()
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)


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


def test_only_the_student_has_dropout():
    student, teacher = Offset(Masks(VE)), Offset(Masks(VE))
    objective = of(student, teacher=teacher, schedule=Halving(2, 1)).train()
    previous = objective.previous
    assert [m.training for m in (student, teacher, previous)] == [True, False, False]
    for step in range(2):
        loss_of(objective, normal(8, 2))
        objective.after_step(step)
    for module, kept in ((student, {0.0, 2.0}), (teacher, {1.0}), (previous, {1.0})):
        assert len(module.denoiser.answers) == 2
        assert {v for mask in module.denoiser.answers for v in mask.unique().tolist()} == kept
    assert not objective.eval().student.training


def test_a_guided_teacher_is_distilled_into_one_call():
    class Labelled(AbstractDenoiser):
        path, cond_keys, two_time = VE, ("label",), False

        def forward(self, x, t, s=None, cond=None):
            return expand(cond["label"].to(x), x) * torch.ones_like(x)

    student = Watched(Labelled())
    objective = of(student, teacher=Guided(Labelled(), {"label": 5}, 3.0), weight=unweighted)
    x0, label = normal(4, 2), torch.tensor([0, 1, 2, 3])
    found = objective.loss(Batch(x0, {"label": label}), drawn(objective, x0)).total()
    wanted = ((5 + 3.0 * (label - 5)) - label).double().square().mean()  # a constant teacher's
    assert float(found) == pytest.approx(float(wanted))


# Draws.


@each_path
def test_draws_are_neighbours_on_the_grid(path):
    objective = of(exact(path, 4), 4)
    grid = objective.grid(9)
    assert float(grid[0]) == path.t_max
    assert float(grid[-1]) == path.t_min
    draws = objective.draw(Batch(normal(4000, 2)), 0, Rng(0, 0, "student"))
    assert draws.t.dtype == draws.m.dtype == draws.r.dtype == D
    index = (grid[:, None] == draws.t).double().argmax(0)
    assert draws.t.equal(grid[index])
    assert draws.m.equal(grid[index + 1])
    assert draws.r.equal(grid[index + 2])
    counts = torch.bincount(index, minlength=9)
    assert counts[1::2].sum() == counts[8] == 0
    assert (counts[0:8:2] - 1000).abs().max() < 5 * math.sqrt(1000 * 0.75)
    assert float(draws.noise.std()) == pytest.approx(1, abs=0.05)
    assert (draws.r == path.t_min).any()


def test_draws_repeat_and_follow_the_stage():
    objective = of(Offset(exact(VE)), schedule=Halving(4, 2))
    batch = Batch(normal(64, 2))

    def draw(step: int, seed: int = 0) -> Draws:
        return objective.draw(batch, step, Rng(seed, step, "student"))

    one, again, other = draw(0), draw(0), draw(0, seed=1)
    assert all(a.equal(b) for a, b in zip(one, again, strict=True))
    assert not one.noise.equal(other.noise)
    assert set(one.t.tolist()) == set(karras(5, 0.1, 10.0)[:-1].tolist())
    for step in range(2):
        objective.after_step(step)
    assert set(draw(2).t.tolist()) == set(karras(3, 0.1, 10.0)[:-1].tolist())


def test_the_published_grids():
    # Salimans & Ho: (i+1)/N, less 1/2N, less 1/N of the cosine time, down to clean data.
    objective = of(exact(COSINE), 4)
    t, m, r = objective.times(torch.arange(4), 4)
    u = torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=D)
    for found, wanted in ((t, u), (m, u - 1 / 8), (r, u - 1 / 4)):
        torch.testing.assert_close(found, 0.99 * wanted, rtol=1e-14, atol=1e-16)
    # Song et al.: i/N, (i+.5)/N, (i+1)/N of the Karras grid, the last r being t_min.
    objective = of(exact(VE), 4)
    for i, found in enumerate(zip(*objective.times(torch.arange(4), 4), strict=True)):
        for part, time in zip((i, i + 0.5, i + 1), found, strict=True):
            ramp = 10 ** (1 / 7) + part / 4 * (0.1 ** (1 / 7) - 10 ** (1 / 7))
            assert float(time) == pytest.approx(ramp**7, rel=1e-13)
    assert float(objective.times(torch.tensor([3]), 4)[2]) == VE.t_min


def test_other_grids_may_be_given():
    path = CosineVariancePreserving(0.01, 0.99)
    objective = of(GaussianDenoiser(path, DATA), grid=lambda points: log_snr(points, path))
    assert objective.grid(5).equal(log_snr(5, path))


# Stages.


def test_the_stages_of_the_published_schedules():
    # 50 000 updates a stage; 100 000 for N = 2 in the code of Song et al.
    song = Halving(4096, 50_000, last=2)
    found = [song(50_000 * k) for k in range(15)]
    assert found == [4096, 2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 2, 1, 1]
    assert [song(50_000 * k - 1) for k in range(1, 15)] == found[:-1]
    original = Halving(1024, 50_000)
    assert [original(50_000 * k) for k in range(12)] == [2**k for k in range(10, -1, -1)] + [1]
    assert [Halving(2, 3, last=2)(k) for k in range(8)] == [2] * 6 + [1] * 2
    assert [Halving(1, 3)(k) for k in range(8)] == [1] * 8


def networks(path: Path = COSINE) -> tuple[Denoiser, Denoiser]:
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        net = ResidualMLP((2,), 8, 1)
        torch.nn.init.normal_(net.last.weight)
        made.append(Denoiser(net, VPrediction(time_scale=1.0, path=path)))
    return made[0], made[1]


def test_the_student_becomes_the_teacher_in_place():
    student, teacher = networks()
    objective = ProgressiveDistillation(student, teacher, schedule=Halving(4, 2))
    places = [p.data_ptr() for p in objective.previous.parameters()]
    outside = {k: v.clone() for k, v in teacher.state_dict().items()}
    x0 = normal(8, 2).float()
    seen, contracts = [], []
    for step in range(7):
        with torch.no_grad():
            for p in student.parameters():
                p += 0.1
        before = {k: v.clone() for k, v in objective.previous.state_dict().items()}
        seen.append(objective.stage(step))
        draws = objective.draw(Batch(x0), step, Rng(0, step, "student"))
        found = objective.loss(Batch(x0), draws).total()
        serves = teacher if step < 2 else objective.previous
        n = seen[-1]
        alone = ProgressiveDistillation(student, serves, schedule=lambda step, n=n: n)
        assert float(found.detach()) == float(alone.loss(Batch(x0), draws).total().detach())
        objective.after_step(step)
        now = objective.previous.state_dict()
        wanted = student.state_dict() if step in {1, 3} else before
        assert all(torch.equal(now[k], wanted[k]) for k in now)
        contracts.append([*objective.contract(DataSpec(shape=(2,))).sampling.times])
    assert seen == [4, 4, 2, 2, 1, 1, 1]
    assert contracts == [[n] for n in seen]  # also right after a stage's last step
    assert places == [p.data_ptr() for p in objective.previous.parameters()]
    assert all(torch.equal(v, outside[k]) for k, v in teacher.state_dict().items())
    kept = {name.split(".")[0] for name in objective.state_dict()}
    assert kept == {"student", "teacher", "previous", "intervals", "reached"}
    assert objective.frozen == ("teacher",)
    assert of(student, distance=Perceptual(torch.nn.Identity())).frozen == ("teacher", "distance")
    assert not any(p.requires_grad for p in objective.previous.parameters())


def trainer(objective: ProgressiveDistillation, **changed) -> Trainer:
    config = settings(**{"steps": 12, "batch": 8, **changed})
    rules = {"main": constant(0.9)}
    return Trainer(objective, toy("two-modes", 1024), config, rules, torch.device("cpu"))


def test_each_stage_begins_anew():
    student, teacher = networks()
    made = trainer(
        ProgressiveDistillation(student, teacher, schedule=Halving(4, 3)),
        schedule="linear",
        decay_steps=3,
    )
    rates = [made.advance()["lr"] for _ in range(12)]
    assert rates == pytest.approx([1e-3 * part for part in (1, 2 / 3, 1 / 3)] * 3 + [0.0] * 3)
    assert (made.stage, made.stage_start) == (1, 6)


def test_a_skipped_step_delays_the_hand_over():
    student, teacher = networks()
    objective = ProgressiveDistillation(student, teacher, schedule=Halving(4, 3))
    made, draw, stages = trainer(objective), objective.draw, []

    def spoilt(batch, step, rng):
        draws = draw(batch, step, rng)
        return draws._replace(noise=draws.noise * math.nan) if step == 2 else draws

    objective.draw = spoilt
    for _ in range(5):
        made.advance()
        stages.append((int(objective.intervals), made.stage))
    assert made.skipped == 1
    assert stages == [(4, 4), (4, 4), (4, 4), (2, 4), (2, 2)]


def test_a_skipped_step_delays_what_may_be_sampled():
    # The step that is skipped is the last of its stage: the next one still learns four steps.
    objective = ProgressiveDistillation(*networks(), schedule=Halving(4, 3))
    served = []
    for step in (0, 1, 3, 4):
        objective.after_step(step)
        (count,) = objective.contract(DataSpec(shape=(2,))).sampling.times
        served.append((count, int(objective.intervals)))
    assert served == [(4, 4), (4, 4), (4, 2), (2, 2)]


# Samples.


def test_the_contract():
    for path, start in ((VE, 10.0), (COSINE, math.sin(0.99 * math.pi / 2))):
        objective = of(exact(path, 4), 4)
        contract = objective.contract(DataSpec(shape=(2,), range=None))
        assert contract.method == "progressive"
        sampling = contract.sampling
        assert (sampling.kind, sampling.any_times, sampling.guidance) == (
            "deterministic",
            False,
            None,
        )
        assert sampling.start.t == path.t_max
        assert sampling.start.std == pytest.approx(start)
        assert sampling.times == {4: tuple(objective.grid(5)[:-1].tolist())}
        model = Model(Offset(exact(path, 4)), contract)
        with pytest.raises(UsageError, match="made for 4 steps,"):
            model.sample(2, steps=2)


class TwoHeads(torch.nn.Module):
    """A network with twice the channels, as Salimans & Ho's for ImageNet."""

    cond_keys = ()
    two_time = False

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(3, 4)

    def forward(self, x, c_noise, s_noise=None, cond=None):
        return self.net(torch.cat([x, c_noise[:, None]], 1))


@pytest.mark.parametrize(
    "prediction", [VPrediction, DataPrediction, NoisePrediction, DataAndNoisePrediction]
)
def test_every_prediction_trains_and_is_saved(prediction, tmp_path):
    both = prediction is DataAndNoisePrediction

    def network() -> torch.nn.Module:
        return TwoHeads() if both else ResidualMLP((2,), 8, 1)

    student, teacher = (
        Denoiser(network(), prediction(time_scale=1.0, path=COSINE)) for _ in range(2)
    )
    objective = ProgressiveDistillation(student, teacher, schedule=Halving(2, 3))
    made = trainer(objective, steps=4)
    for _ in range(4):
        assert math.isfinite(float(made.advance()["loss"]))
    model = Model(student, objective.contract(DataSpec(shape=(2,), range=None)))
    x = model.sample(4)
    again = load(model.save(tmp_path / "m"), network=TwoHeads() if both else None)
    assert again.sample(4).equal(x)
    assert x.isfinite().all()


@pytest.mark.parametrize(
    "path", [pytest.param(VarianceExploding(), marks=pytest.mark.slow), COSINE], ids=path_id
)
def test_three_stages_on_points(path):
    """From four steps to one, and the one lands where the two of the stage before do."""
    torch.manual_seed(0)
    scalings = VPrediction(time_scale=1.0, path=path) if path is COSINE else EDM(sigma_data=0.5)
    student = Denoiser(ResidualMLP((2,), 48, 2), scalings)
    teacher = MixtureDenoiser(path, two_modes())
    objective = ProgressiveDistillation(student, teacher, schedule=Halving(4, 150))
    made = trainer(objective, lr=3e-3, batch=256, schedule="linear", decay_steps=150, steps=450)
    while made.step < 450:
        made.advance()
    objective.eval()
    start = path.start_std() * normal(500, 2)
    with torch.no_grad():
        one, two, eight = (
            solvers.deterministic(denoiser, start.float(), objective.grid(n + 1)[:-1])
            for denoiser, n in ((student, 1), (objective.previous, 2), (teacher, 8))
        )
    for other, bound in ((two, 0.1), (eight, 0.2)):
        assert float((one - other).square().mean().sqrt() / eight.std()) < bound


# Refusals.


def test_what_does_not_fit_is_refused():
    student = exact(VE)
    with pytest.raises(UsageError, match=r"teacher\.on"):
        of(student, teacher=GaussianDenoiser(COSINE, DATA))
    for two_time in ({"student": GaussianFlowMap(VE)}, {"teacher": GaussianFlowMap(VE)}):
        with pytest.raises(UsageError, match="one-time"):
            of(**{"student": student, **two_time})
    for grid in (
        lambda points: karras(points, 0.2, 10.0),
        lambda points: karras(points, 0.1, 9.0),
        lambda points: karras(points, 0.1, 10.0, rho=1 + points),
        lambda points: uniform(points + 1, 0.1, 10.0),
    ):
        with pytest.raises(UsageError, match="grid must go from"):
            of(student, grid=grid)


@pytest.mark.parametrize("given", [(0, 1, 1), (6, 1, 1), (4, 0, 1), (4, 1, 0), (-4, 1, 1)])
def test_schedules_that_cannot_be_are_refused(given):
    with pytest.raises(UsageError, match="power of two"):
        Halving(*given)
