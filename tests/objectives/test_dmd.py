"""Distribution matching: linear generators of Gaussians, whose every expectation is known."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError, expand
from fewstep.data import Arrays
from fewstep.model import Model, SampleNoise
from fewstep.models import EDM, AbstractDenoiser, Denoiser, Guided
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.dmd import DMD
from fewstep.objectives.shared.distances import Perceptual, l1
from fewstep.objectives.shared.matching import Compared, FewSteps, Made
from fewstep.objectives.shared.weights import karras_weight, unweighted
from fewstep.paths import (
    CosineVariancePreserving,
    DiscreteVariancePreserving,
    Linear,
    Trig,
    VarianceExploding,
    VariancePreserving,
)
from fewstep.times import KarrasIndex
from fewstep.training.config import TrainConfig
from fewstep.training.trainer import Trainer
from oracles import D, Gaussian, GaussianDenoiser, GaussianFlowMap, Offset, full, normal, path_id
from small_nets import shaken

VE = VarianceExploding()
PATHS = [
    VE,
    VariancePreserving(),
    CosineVariancePreserving(),
    DiscreteVariancePreserving(),
    Linear(0.0, 1.0),
    Trig(0.0, math.pi / 2),
]
each_path = pytest.mark.parametrize("path", PATHS, ids=path_id)
DIM = 4
MEAN = torch.tensor([0.8, -0.6, 0.4, 0.0], dtype=D)
ROOT = torch.eye(DIM, dtype=D) + torch.diag(torch.tensor([0.6, -0.3, 0.5], dtype=D), -1)
COVARIANCE = ROOT @ ROOT.T / 2
A = 0.7 * torch.eye(DIM, dtype=D) + 0.1 * normal(DIM, DIM)
B = torch.tensor([0.1, 0.5, -0.3, 0.2], dtype=D)

Law = Callable[[Tensor | None], tuple[Tensor, Tensor]]
"""A label (b,) or none -> mean, (d,) or (b, d), and covariance."""


class Generator(AbstractDenoiser):
    """A z + b of the unit noise z; with ``labels``, a b for each."""

    two_time = False

    def __init__(self, path, a: Tensor = A, b: Tensor = B) -> None:
        super().__init__()
        self.path = path
        self.a, self.b = nn.Parameter(a.clone()), nn.Parameter(b.clone())
        self.cond_keys = ("label",) if b.ndim > 1 else ()

    def forward(self, x, t, s=None, cond=None):
        b = self.b[cond["label"]] if self.cond_keys else self.b
        self.made = (x / expand(self.path.coefficients(t).sigma, x)) @ self.a.T + b
        if self.made.requires_grad:
            self.made.retain_grad()
        return self.made

    def law(self, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        b = self.b if label is None else self.b[label]
        return b.detach(), (self.a @ self.a.T).detach()


class Exact(AbstractDenoiser):
    """E[x0 | x_t] of N(mean, covariance), which may change."""

    two_time = False

    def __init__(self, path, law: Law, cond_keys: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.path, self.law, self.cond_keys = path, law, cond_keys

    def forward(self, x, t, s=None, cond=None):
        mean, covariance = self.law(cond["label"] if self.cond_keys else None)
        values, axes = torch.linalg.eigh(covariance)
        alpha, sigma, _, _ = self.path.coefficients(t)
        alpha, sigma = alpha[:, None], sigma[:, None]
        gain = alpha * values / (alpha**2 * values + sigma**2)
        return mean + ((x - alpha * mean) @ axes * gain) @ axes.T


def data(label: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return MEAN, COVARIANCE


def times_of(path):
    return lambda b, rng: (
        path.t_min
        + (path.t_max - path.t_min) * (0.02 + 0.96 * torch.rand(b, generator=rng, dtype=D))
    )


def dmd(student, teacher=None, fake=None, **changed) -> DMD:
    """With the best of fakes, which follows its student."""
    path = student.path
    given = {
        "generate": FewSteps((path.t_max,)),
        "weight": unweighted,
        "times": times_of(path),
        "critic_times": times_of(path),
        "regression": 0.0,
    }
    return DMD(
        student,
        Exact(path, data) if teacher is None else teacher,
        Exact(path, student.law) if fake is None else fake,
        **{**given, **changed},
    )


def sigma_points() -> tuple[Tensor, Tensor]:
    """(z, noise) whose equal-weight mean is the exact one of any quadratic."""
    axes = torch.eye(2 * DIM, dtype=D) * math.sqrt(2 * DIM)
    return torch.cat([axes, -axes]).split(DIM, dim=1)


def draws_of(z: Tensor, noise: Tensor, t: Tensor) -> Compared:
    return Compared(Made(z[None], torch.tensor(0)), t, noise)


def middle(path, like: Tensor, share: float = 0.4) -> Tensor:
    return full(path.t_min + share * (path.t_max - path.t_min), like)


def noised(path, t: float, covariance: Tensor) -> Tensor:
    """The covariance of x_t."""
    alpha, sigma, _, _ = path.coefficients(torch.tensor([t], dtype=D))
    return alpha**2 * covariance + sigma**2 * torch.eye(DIM, dtype=D)


# The gradient, its expectation, and where it vanishes.


@pytest.mark.parametrize("stale", [False, True], ids=["followed", "stale"])
@each_path
def test_the_expected_gradient_is_that_of_the_divergence(path, stale):
    z, noise = sigma_points()
    student = Generator(path)
    # A stale fake is the best one of an earlier student.
    before = Generator(path, 1.2 * A.T, B - 0.3) if stale else student
    objective = dmd(student, fake=Exact(path, before.law))
    t = middle(path, z)
    objective.loss(Batch(z), draws_of(z, noise, t)).total().backward()
    x = student.made
    alpha, sigma, _, _ = path.coefficients(t[:1])
    x_t = alpha * x.detach() + sigma * noise
    p = noised(path, float(t[0]), COVARIANCE)
    real = MEAN + (x_t - alpha * MEAN) @ torch.linalg.solve(p, alpha * COVARIANCE)
    size = (x.detach() - real).abs().mean(1, keepdim=True)
    gradient = x.grad * x.numel()  # of the mean over batch and event
    # E[w alpha (s_fake - s_real) dG], with w alpha = alpha in the place of the normaliser.
    plain = gradient * size * alpha**2 / sigma**2
    by_b, by_a = plain.mean(0), plain.T @ z / len(z)

    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    q, gap = noised(path, float(t[0]), a @ a.T), alpha * (b - MEAN)
    inverse = torch.linalg.inv(p)
    divergence = (torch.trace(inverse @ q) + gap @ inverse @ gap - q.logdet()) / 2
    divergence.backward()
    if stale:
        old_b, old_covariance = before.law()
        old = torch.linalg.inv(noised(path, float(t[0]), old_covariance))
        new = torch.linalg.inv(q.detach())
        b.grad -= alpha**2 * old @ (B - old_b)  # goes on in the direction of travel
        a.grad += alpha**2 * (new - old) @ A
    torch.testing.assert_close(by_b, b.grad, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(by_a, a.grad, rtol=1e-8, atol=1e-10)


@each_path
def test_nothing_is_left_where_the_laws_agree(path):
    z, noise = normal(2, 200, DIM)
    root = torch.linalg.cholesky(COVARIANCE) @ torch.linalg.qr(normal(DIM, DIM))[0]  # any rotation
    student = Generator(path, root, MEAN)
    rng = torch.Generator().manual_seed(0)
    objective = dmd(student)
    loss = objective.loss(
        Batch(z), draws_of(z, noise, objective.times.draw(path, 200, rng))
    ).total()
    loss.backward()
    assert float(loss.detach()) < 1e-20
    assert float(student.a.grad.abs().max() + student.b.grad.abs().max()) < 1e-10


class UnitNoise(AbstractDenoiser):
    """Answers z."""

    cond_keys, two_time = (), False

    def __init__(self, path) -> None:
        super().__init__()
        self.path = path

    def forward(self, x, t, s=None, cond=None):
        return x / expand(self.path.coefficients(t).sigma, x)


class Follows(AbstractDenoiser):
    """E[x0 | x_t] of the samples offset + scale z."""

    cond_keys, two_time = (), False

    def __init__(self, student: Offset) -> None:
        super().__init__()
        self.path, self.student = student.path, [student]

    def forward(self, x, t, s=None, cond=None):
        law = Gaussian(float(self.student[0].offset), float(self.student[0].scale))
        return law.denoised(self.path, x, t)


@pytest.mark.parametrize("event", [(4,), (1, 8, 8), (3, 2, 4, 4)], ids=str)
@each_path
def test_the_gradient_points_home(path, event):
    z, noise = normal(2, 400, *event)
    home = Gaussian(0.3, 0.7)
    rng = torch.Generator().manual_seed(0)
    for offset, scale in ((0.5, 0.7), (0.1, 0.7), (0.3, 1.0), (0.3, 0.4)):
        student = Offset(UnitNoise(path), offset, scale)
        objective = dmd(student, GaussianDenoiser(path, home), Follows(student))
        draws = draws_of(z, noise, objective.times.draw(path, 400, rng))
        objective.loss(Batch(z), draws).total().backward()
        away = student.offset.grad * (offset - 0.3) + student.scale.grad * (scale - 0.7)
        assert float(away) > 1e-4


def test_a_guided_teacher_moves_the_mean():
    means = torch.stack([MEAN, -MEAN, 0.2 * MEAN.roll(1)])
    student = Generator(VE, torch.linalg.cholesky(COVARIANCE), means[2] + 3 * (means - means[2]))

    def labelled(label):
        return means[label], COVARIANCE

    teacher = Guided(Exact(VE, labelled, ("label",)), {"label": 2}, 3.0)
    z, noise = normal(2, 50, DIM)
    objective = dmd(student, teacher, Exact(VE, student.law, ("label",)))
    label = torch.arange(50) % 2
    draws = draws_of(z, noise, objective.times.draw(VE, 50, torch.Generator().manual_seed(0)))

    def loss(objective: DMD, label: Tensor) -> float:
        return float(objective.loss(Batch(z, {"label": label}), draws).total().detach())

    assert loss(objective, label) < 1e-20
    assert loss(objective, 1 - label) < 1e-20  # both networks are told the same labels
    unguided = dmd(student, teacher.denoiser, objective.fake)
    assert loss(unguided, label) > 1e-3


def test_the_lag_is_of_a_stale_fake():
    z, noise = sigma_points()
    student = Generator(VE)
    stale = Generator(VE, A, B - 0.5)
    draws = draws_of(z, noise, full(1.5, z))
    for fake, lagging in ((student, False), (stale, True)):
        logs = dmd(student, fake=Exact(VE, fake.law)).loss(Batch(z), draws).logs
        assert (abs(float(logs["lag"])) > 0.1) == lagging
        assert abs(float(logs["lag"])) > 0.1 or abs(float(logs["lag"])) < 1e-12
        assert not any(v.requires_grad for v in logs.values())
    assert {"brightness", "spread", "mean/0", "std/0"} < set(logs)


def test_masked_parts_do_not_count():
    mask = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0], dtype=D).expand(20, 5)
    z, noise = normal(2, 20, 5)
    draws = draws_of(z, noise, full(1.5, z))
    losses = []
    for keep, given in ((5, mask), (3, None)):
        student = Offset(UnitNoise(VE), 0.5, 1.2)
        objective = dmd(student, GaussianDenoiser(VE), Offset(GaussianDenoiser(VE), 0.2))
        part = draws_of(z[:, :keep], noise[:, :keep], draws.t)
        batch = Batch(z[:, :keep], mask=given)
        losses.append([f(batch, part).total() for f in (objective.loss, objective.critic_loss)])
    torch.testing.assert_close(*losses)


# The fake.


@each_path
def test_the_fakes_best_is_the_denoiser_of_the_samples(path):
    z, noise = sigma_points()
    student = Generator(path)
    t = middle(path, z)
    (alpha,), (sigma,), _, _ = path.coefficients(t[:1])
    covariance = student.law()[1]
    q = noised(path, float(t[0]), covariance)
    left = covariance - alpha**2 * covariance @ torch.linalg.solve(q, covariance)
    wanted = ((alpha / sigma) ** 2 + 4) * torch.trace(left) / DIM
    fake = Offset(Exact(path, student.law))
    objective = dmd(student, fake=fake, weight=karras_weight(0.5))
    loss = objective.critic_loss(Batch(z), draws_of(z, noise, t)).total()
    loss.backward()
    torch.testing.assert_close(loss, wanted)
    assert abs(float(fake.offset.grad)) + abs(float(fake.scale.grad)) < 1e-10 * float(wanted)
    for offset, scale in ((0.3, 1.0), (-0.3, 1.0), (0.0, 1.3), (0.0, 0.8)):
        fake = Offset(Exact(path, student.law), offset, scale)
        objective = dmd(student, fake=fake)
        objective.critic_loss(Batch(z), draws_of(z, noise, t)).total().backward()
        assert float(fake.offset.grad) * offset + float(fake.scale.grad) * (scale - 1) > 1e-3


def test_each_loss_reaches_its_own_network():
    z, noise = normal(2, 20, DIM)
    teacher = Offset(Exact(VE, data))
    objective = dmd(Generator(VE), teacher, Offset(Exact(VE, Generator(VE).law), 0.2))
    assert not any(p.requires_grad for p in teacher.parameters())
    draws = draws_of(z, noise, full(1.5, z))
    pairs = {"pair_noise": z, "pair_x": noise}
    for loss, network in (
        (objective.loss, "student"),
        (objective.regression_loss, "student"),
        (objective.critic_loss, "fake"),
    ):
        objective.requires_grad_(True)
        objective.zero_grad()
        objective.regression = 0.5
        loss(Batch(z, aux=pairs), draws).total().backward()
        reached = {name for name, p in objective.named_parameters() if p.grad is not None}
        assert reached == {
            f"{network}.{name}" for name, _ in getattr(objective, network).named_parameters()
        }


def test_the_loss_is_half_the_square_of_its_gradient():
    z, noise = normal(2, 20, DIM)
    student = Generator(VE)
    loss = dmd(student).loss(Batch(z), draws_of(z, noise, full(1.5, z))).total()
    loss.backward()
    gradient = student.made.grad * z.numel()
    torch.testing.assert_close(loss, (gradient**2).mean() / 2)
    torch.testing.assert_close(student.b.grad, gradient.mean(0) / DIM)


# Pairs.


def test_pairs_are_learnt_by_heart():
    student = Generator(VE)
    z = normal(6, DIM)
    x = z @ A.T + B
    for distance, by in ((None, lambda e: e**2), (l1, torch.abs)):
        given = {} if distance is None else {"distance": distance}
        objective = dmd(student, regression=0.25, **given)
        for error in (0.0, 0.3, -0.3):
            student.zero_grad()
            batch = Batch(normal(3, DIM), aux={"pair_noise": z, "pair_x": x - error})
            draws = objective.draw(batch, 0, Rng(0, 0, "student"))
            loss = objective.regression_loss(batch, draws).total()
            loss.backward()
            assert float(loss.detach()) == pytest.approx(
                0.25 * float(by(torch.tensor(error, dtype=D))), abs=1e-12
            )
            assert float(student.b.grad.sum()) * error >= (0.01 if error else 0)


def test_pairs_have_their_own_labels():
    student = Generator(VE, A, torch.stack([B, -B]))
    fake = Exact(VE, student.law, ("label",))
    objective = dmd(student, fake=fake, regression=1.0)
    z, label = normal(6, DIM), torch.tensor([0, 1, 1, 0, 1, 1])
    aux = {"pair_noise": z, "pair_x": z @ A.T + student.b.detach()[label], "pair_label": label}
    for other in (label, 1 - label):
        batch = Batch(z, {"label": other}, aux=aux)
        draws = draws_of(normal(6, DIM, seed=1), z, full(1.0, z))
        assert float(objective.regression_loss(batch, draws).total().detach()) < 1e-25
    del aux["pair_label"]
    with pytest.raises(UsageError, match=r"no pair_label; make pairs with `fewstep data pairs`"):
        objective.regression_loss(Batch(z, {"label": label}, aux=aux), draws)


def test_data_without_pairs_is_refused():
    objective, z = dmd(Generator(VE), regression=0.25), normal(3, DIM)
    with pytest.raises(UsageError, match="no pair_noise, pair_x; make pairs"):
        objective.regression_loss(Batch(z), draws_of(z, z, full(1.0, z)))


# Draws and phases.


def test_draws():
    objective = DMD(
        small(0), small(1), small(2), generate=FewSteps((80.0,)), weight=karras_weight(0.5)
    )
    batch = Batch(normal(4000, 2).float())
    for draw, first, last in ((objective.draw, 20, 980), (objective.draw_critic, 0, 999)):
        found = draw(batch, 0, Rng(0, 0, "student"))
        grid = KarrasIndex().grid()
        index = torch.searchsorted(grid, found.t)
        assert grid[index].equal(found.t)
        assert first <= int(index.min()) < first + 10
        assert last - 10 < int(index.max()) <= last
        assert abs(float(index.double().mean()) - (first + last) / 2) < 20
        made, noise = found.made.noise, found.noise
        assert made.shape == (1, 4000, 2)
        assert made.dtype == noise.dtype == torch.float32
        assert abs(float((made[0] * noise).mean())) < 0.05
        assert int(found.made.call) == 0
        same, other = (draw(batch, 0, Rng(0, step, "student")) for step in (0, 1))
        assert same.t.equal(found.t)
        assert same.noise.equal(noise)
        assert same.made.noise.equal(made)
        assert not other.noise.equal(noise)
        assert not other.made.noise.equal(made)


def small(seed: int, **given) -> Denoiser:
    return Denoiser(shaken(ResidualMLP((2,), 8, 1, **given), seed), EDM(sigma_data=0.5))


class WithPairs(Arrays):
    """Points, each with a pair."""

    def batch(self, indices):
        found = super().batch(indices)
        at = torch.as_tensor(indices).double()
        aux = {"pair_noise": torch.stack([at, -at], 1).float() / 20, "pair_x": found.x0}
        return Batch(found.x0, found.cond, found.mask, aux)


@pytest.mark.parametrize("regression", [0.0, 0.25])
@pytest.mark.parametrize("updates", [1, 3])
def test_who_learns_when(regression, updates):
    objective = DMD(
        small(0),
        small(1),
        small(2),
        generate=FewSteps((80.0,)),
        weight=karras_weight(0.5),
        regression=regression,
        critic_updates=updates,
    )
    assert objective.frozen == ("teacher",)
    data = WithPairs(normal(32, 2).float().numpy())
    config = TrainConfig(steps=4, batch=8, lr=1e-2)
    trainer = Trainer(objective, data, config, {}, torch.device("cpu"))
    for step in range(4):
        before = {n: [p.clone() for p in m.parameters()] for n, m in objective.named_children()}
        logs = trainer.advance()
        changed = {
            name
            for name, old in before.items()
            if any(
                not a.equal(b)
                for a, b in zip(old, objective.get_submodule(name).parameters(), strict=True)
            )
        }
        due = step % updates == 0
        assert changed == ({"student", "fake"} if due else {"fake"})
        assert ("regression" in logs) == (due and regression > 0)
        assert ("lag" in logs) == due
        assert "denoising" in logs


# Arriving.


def distance_to_data(student: Generator) -> float:
    """The squared Wasserstein distance of samples from the data."""
    mean, covariance = student.law()
    values, axes = torch.linalg.eigh(COVARIANCE)
    root = axes * values.sqrt() @ axes.T
    cross = torch.linalg.eigvalsh(root @ covariance @ root).clamp(min=0).sqrt().sum()
    return float((mean - MEAN).square().sum() + torch.trace(covariance + COVARIANCE) - 2 * cross)


def descend(
    objective: DMD, steps: int, batch: int, rates: dict[str, float], last: float
) -> list[float]:
    """Distances during the ``last`` share of so many steps of the generator."""
    optimisers = {
        p.name: torch.optim.SGD(p.module.parameters(), rates[p.name])
        for p in objective.phases()
        if p.name in rates
    }
    zeros, found = Batch(torch.zeros(batch, DIM, dtype=D)), []
    steps *= objective.critic_updates
    for step in range(steps):
        for phase in objective.phases():
            if phase.name in rates and phase.due(step):
                draws = phase.draw(zeros, step, Rng(0, step, phase.name))
                optimisers[phase.name].zero_grad()
                phase.loss(zeros, draws).total().backward()
                optimisers[phase.name].step()
        if step >= (1 - last) * steps:
            found.append(distance_to_data(objective.student))
    return found


def test_a_generator_with_the_best_fake_arrives_without_noise():
    # The gradient vanishes at each sample, not in the mean only: from any finite batch.
    student = Generator(VE)
    levels = KarrasIndex(300, 500)
    objective = dmd(student, times=levels, critic_times=levels)
    descend(objective, 150, 32, {"student": 2.0}, 0.0)
    mean, covariance = student.law()
    assert float((mean - MEAN).abs().max()) < 1e-12
    assert float((covariance - COVARIANCE).abs().max()) < 1e-12


LEVELS = torch.tensor([0.1, 0.56, 3.2], dtype=D)


class LinearFake(AbstractDenoiser):
    """A matrix and an offset for each of three noise levels; at first the teacher's."""

    cond_keys, two_time = (), False

    def __init__(self, path) -> None:
        super().__init__()
        self.path = path
        gains = [COVARIANCE @ torch.linalg.inv(noised(path, float(v), COVARIANCE)) for v in LEVELS]
        self.gain = nn.Parameter(
            torch.stack([g * math.hypot(1, v) for g, v in zip(gains, LEVELS, strict=True)])
        )
        self.shift = nn.Parameter(torch.stack([MEAN - g @ MEAN for g in gains]))

    def forward(self, x, t, s=None, cond=None):
        i = torch.searchsorted(LEVELS, t)
        return ((x / (1 + t[:, None] ** 2).sqrt())[:, None] @ self.gain[i].mT)[:, 0] + self.shift[i]


def test_more_updates_of_the_fake_let_the_generator_arrive():
    def law(b, rng):
        return LEVELS[torch.randint(len(LEVELS), (b,), generator=rng)]

    left = {}
    for updates in (1, 5):
        student = Generator(VE, 0.7 * torch.eye(DIM, dtype=D), torch.zeros(DIM, dtype=D))
        objective = dmd(
            student, fake=LinearFake(VE), times=law, critic_times=law, critic_updates=updates
        )
        found = descend(objective, 120, 512, {"student": 0.5, "critic": 0.4}, 0.2)
        left[updates] = sum(found) / len(found)
    print(f"\nsquared distance with 1 and 5 updates of the fake: {left[1]:.1e}, {left[5]:.1e}")
    assert left[5] < 1e-3
    assert left[1] > 20 * left[5]


# Contract and refusals.


@each_path
def test_contract_and_samples_and_pairs_from_them(path):
    student = Generator(path)
    objective = dmd(student, regression=1.0)
    contract = objective.contract(DataSpec(shape=(DIM,), range=None))
    sampling = contract.sampling
    assert (contract.method, sampling.kind, sampling.any_times) == ("dmd", "renoise", False)
    assert sampling.times == {1: (path.t_max,)}
    model = Model(objective.deliver(student), contract)
    found = model.sample(6, seed=5).double()
    noise = SampleNoise([(5, i) for i in range(6)], (DIM,))(0).double()
    torch.testing.assert_close(found, noise @ A.T + B, rtol=1e-5, atol=1e-5)
    batch = Batch(found, aux={"pair_noise": noise, "pair_x": found})
    draws = objective.draw(batch, 0, Rng(0, 0, "student"))
    assert float(objective.regression_loss(batch, draws).total().detach()) < 1e-10
    with pytest.raises(UsageError, match="made for"):
        model.sample(3, steps=2)


def test_a_distance_with_weights_is_frozen():
    assert dmd(Generator(VE), distance=Perceptual(nn.Identity())).frozen == ("teacher", "distance")


OTHER = VarianceExploding(0.1, 9.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"generate": FewSteps((80.0, 1.0))}, "makes one call"),
        ({"fake": GaussianDenoiser(OTHER)}, "the fake denoiser must be"),
        ({"fake": GaussianFlowMap(VE)}, "the fake denoiser must be"),
        ({"teacher": GaussianDenoiser(OTHER)}, "the teacher lives on"),
        ({"regression": -1.0}, "regression >= 0"),
        ({"regression": math.nan}, "regression >= 0"),
        ({"critic_updates": 0}, "critic_updates >= 1"),
    ],
)
def test_refusals(change, says):
    with pytest.raises(UsageError, match=says):
        dmd(Generator(VE), **change)


@pytest.mark.parametrize("law", ["times", "critic_times"])
def test_noise_levels_beyond_the_path_are_refused(law):
    with pytest.raises(UsageError, match=r"KarrasIndex.* draws times from"):
        dmd(Generator(Linear(0.0, 0.9)), **{law: KarrasIndex()})
