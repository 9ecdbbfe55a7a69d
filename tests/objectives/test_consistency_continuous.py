"""Continuous-time CD and CT against closed forms and against the discrete loss's limit."""

import pytest
import torch
from torch import nn

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng
from fewstep.models import EDM, AbstractDenoiser, ConsistencyBoundary, Denoiser
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.consistency import Consistency, Fixed, TeacherStep
from fewstep.objectives.consistency import Draws as DiscreteDraws
from fewstep.objectives.consistency_continuous import ContinuousConsistency, Draws
from fewstep.objectives.shared.distances import l2
from fewstep.objectives.shared.drop import ConditionDrop
from fewstep.paths import VarianceExploding
from fewstep.times import KarrasUniform

MEAN, STD, T_MIN = 0.3, 0.7, 0.002


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class GaussianDenoiser(AbstractDenoiser):
    path, cond_keys, two_time = VarianceExploding(), (), False

    def forward(self, x, t, s=None, cond=None):
        return MEAN + STD**2 / (STD**2 + t[:, None] ** 2) * (x - MEAN)


class GaussianConsistency(AbstractDenoiser):
    """The exact consistency function, times a scale and plus an offset that may be wrong."""

    path, cond_keys, two_time = VarianceExploding(), (), False

    def __init__(self, wrong=0.0):
        super().__init__()
        self.wrong = nn.Parameter(torch.tensor(wrong))

    def forward(self, x, t, s=None, cond=None):
        ratio = ((STD**2 + T_MIN**2) / (STD**2 + t[:, None] ** 2)).sqrt()
        return MEAN + ratio * (x - MEAN) + self.wrong * (t[:, None] - T_MIN)


def draws(b=64, d=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    x0 = MEAN + STD * torch.randn(b, d, generator=g)
    t = 0.1 + 3 * torch.rand(b, generator=g)
    return Batch(x0), Draws(t, torch.randn(b, d, generator=g))


def test_derivative_vanishes_at_the_exact_function_with_the_exact_teacher():
    objective = ContinuousConsistency(
        GaussianConsistency(), GaussianDenoiser(), times=KarrasUniform()
    )
    loss = objective.loss(*draws())
    assert loss.logs["derivative"] < 1e-25
    assert loss.total().abs() < 1e-12


@pytest.mark.parametrize("penalty", [None, l2])
@pytest.mark.parametrize("teacher", [True, False])
@pytest.mark.parametrize("wrong", [0.2, -0.2])
def test_gradient_points_home(penalty, teacher, wrong):
    student = GaussianConsistency(wrong)
    objective = ContinuousConsistency(
        student,
        GaussianDenoiser() if teacher else None,
        times=KarrasUniform(),
        penalty=penalty if teacher else None,
    )
    objective.loss(*draws(4096)).total().backward()
    assert student.wrong.grad * wrong > 0


def test_gradient_is_the_limit_of_the_discrete_one():
    torch.manual_seed(0)
    net = ResidualMLP((3,), width=16, blocks=1)
    nn.init.normal_(net.last.weight, std=0.3)
    student = Denoiser(net, ConsistencyBoundary(sigma_data=0.5))
    batch, continuous = draws()
    objective = ContinuousConsistency(student, GaussianDenoiser(), times=KarrasUniform())
    parameters = list(student.parameters())
    wanted = torch.autograd.grad(objective.loss(batch, continuous).total(), parameters)

    step = 1e-6
    discrete = Consistency(
        student,
        TeacherStep(GaussianDenoiser()),
        schedule=Fixed(18),
        weight=lambda t, r: 1 / (2 * (t - r)),
        distance=l2,
    )
    t = continuous.t
    loss = discrete.loss(batch, DiscreteDraws(t, t - step, continuous.noise))
    found = torch.autograd.grad(loss.total(), parameters)
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=1e-7)


def test_derivative_equals_a_finite_difference():
    torch.manual_seed(0)
    net = ResidualMLP((3,), width=16, blocks=1)
    nn.init.normal_(net.last.weight, std=0.3)
    student = Denoiser(net, ConsistencyBoundary(sigma_data=0.5))
    teacher = Denoiser(ResidualMLP((3,), width=16, blocks=1), EDM(sigma_data=0.5))
    batch, given = draws()
    objective = ContinuousConsistency(student, teacher, times=KarrasUniform())
    found = objective.loss(batch, given).logs["derivative"]
    path, t, h = student.path, given.t, 1e-5
    x_t = path.perturb(batch.x0, given.noise, t)
    v = path.velocity(x_t, teacher(x_t, t), t)
    ahead, behind = student(x_t + h * v, t + h), student(x_t - h * v, t - h)
    torch.testing.assert_close(found, ((ahead - behind) / (2 * h)).square().mean().detach())


@pytest.mark.parametrize("penalty", [None, l2])
def test_the_weight_is_of_each_samples_time(penalty):
    def objective(weight=torch.ones_like):
        return ContinuousConsistency(
            GaussianConsistency(0.2), times=KarrasUniform(), penalty=penalty, weight=weight
        )

    batch, given = draws(6)
    alone = torch.stack(
        [
            objective()
            .loss(Batch(batch.x0[i : i + 1]), Draws(*(d[i : i + 1] for d in given[:2])))
            .total()
            .detach()
            for i in range(6)
        ]
    )
    assert alone.std() > 0
    found = objective(lambda t: 1 / t**2).loss(batch, given).total().detach()
    torch.testing.assert_close(found, (alone / given.t**2).mean())


class Labelled(AbstractDenoiser):
    """Keeps the labels that it is told."""

    path, cond_keys, two_time = VarianceExploding(), ("label",), False

    def __init__(self):
        super().__init__()
        self.gain, self.seen = nn.Parameter(torch.tensor(0.5)), []

    def forward(self, x, t, s=None, cond=None):
        self.seen.append(cond["label"].tolist())
        return self.gain * x


def test_labels_are_dropped_for_student_and_teacher():
    student, teacher = Labelled(), Labelled()
    drop = ConditionDrop(0.5, {"label": 7})
    objective = ContinuousConsistency(student, teacher, times=KarrasUniform(), drop=drop)
    label = torch.arange(64) % 7
    batch = Batch(draws()[0].x0, {"label": label})
    given = objective.draw(batch, 0, Rng(0, 0, "student"))
    assert given.dropped is not None
    assert 16 < int(given.dropped.sum()) < 48
    objective.loss(batch, given)
    told = label.masked_fill(given.dropped, 7).tolist()
    assert student.seen
    assert all(seen == told for seen in student.seen + teacher.seen)


@pytest.mark.parametrize("method", ["cd", "ct"])
def test_the_contract(method):
    teacher = GaussianDenoiser() if method == "cd" else None
    objective = ContinuousConsistency(GaussianConsistency(), teacher, times=KarrasUniform())
    contract = objective.contract(DataSpec(shape=(3,)))
    assert contract.method == method
    assert (contract.sampling.kind, contract.sampling.any_times) == ("renoise", True)
    assert (contract.sampling.start.t, contract.sampling.start.std) == (80.0, 80.0)


@pytest.mark.parametrize("penalty", [None, l2])
@pytest.mark.parametrize("teacher", [True, False])
def test_what_a_mask_leaves_out_counts_for_nothing(penalty, teacher):
    def found(batch: Batch, given: Draws):
        student = GaussianConsistency(0.2)
        objective = ContinuousConsistency(
            student,
            GaussianDenoiser() if teacher else None,
            times=KarrasUniform(),
            penalty=penalty,
            weight=lambda t: 1 / t,
        )
        loss = objective.loss(batch, given)
        loss.total().backward()
        return torch.stack([loss.total().detach(), loss.logs["derivative"], student.wrong.grad])

    batch, given = draws(d=5)
    # Two lengths, so that no mean over all elements is the mean of the samples' means.
    mask = torch.ones(64, 5)
    mask[::2, 2:] = 0
    other = Batch(batch.x0 + 3 * (1 - mask), mask=mask)
    torch.testing.assert_close(found(Batch(batch.x0, mask=mask), given), found(other, given))
    short, long = (
        found(Batch(batch.x0[rows, :n]), Draws(given.t[rows], given.noise[rows, :n]))
        for rows, n in ((slice(0, None, 2), 2), (slice(1, None, 2), 5))
    )
    torch.testing.assert_close(found(other, given), (short + long) / 2)


def test_gradient_reaches_the_student_only():
    teacher = Denoiser(ResidualMLP((3,), width=8, blocks=1), EDM(sigma_data=0.5))
    student = Denoiser(ResidualMLP((3,), width=8, blocks=1), ConsistencyBoundary(sigma_data=0.5))
    objective = ContinuousConsistency(student, teacher, times=KarrasUniform())
    batch, _ = draws()
    objective.loss(batch, objective.draw(batch, 0, Rng(0, 0, "student"))).total().backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None for p in student.parameters())
