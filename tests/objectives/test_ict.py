import math

import pytest
import torch

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError
from fewstep.models import AbstractDenoiser
from fewstep.objectives.ict import Doubling, Draws, ImprovedConsistency
from fewstep.objectives.shared.distances import PseudoHuber
from fewstep.objectives.shared.drop import ConditionDrop
from fewstep.paths import Linear, Trig, VarianceExploding, VariancePreserving
from fewstep.times import DiscreteLogNormal, karras
from oracles import (
    D,
    Gaussian,
    GaussianConsistency,
    GaussianFlowMap,
    Offset,
    Watched,
    full,
    normal,
    path_id,
    slope,
)

DATA = Gaussian(0.3, 0.7)
POINT = Gaussian(0.3, 0.0)
VE = VarianceExploding(0.1, 10.0)
PATHS = [VE, VariancePreserving(0.1, 1.0), Linear(0.1, 0.9), Trig(0.1, 1.4)]
each_path = pytest.mark.parametrize("path", PATHS, ids=path_id)
each_event = pytest.mark.parametrize("event", [(2,), (1, 8, 8)], ids=str)


def ict(student: AbstractDenoiser, points: int = 18, **kwargs) -> ImprovedConsistency:
    return ImprovedConsistency(student, **{"schedule": lambda step: points, **kwargs})


def pairs(path, b: int, points: int = 18) -> tuple[torch.Tensor, torch.Tensor]:
    grid = karras(points, path.t_min, path.t_max)
    index = torch.linspace(0, points - 2, b).long()
    return grid[index], grid[index + 1]


def loss_of(objective, x0, t, r, noise):
    return objective.loss(Batch(x0), Draws(t, r, noise)).total()


@each_event
@each_path
def test_the_loss_is_zero_on_a_single_point(path, event):
    # There every noisy sample stays on its trajectory; the last interval ends on t_min.
    x0, noise = torch.full((6, *event), POINT.mean, dtype=D), normal(6, *event)
    found = loss_of(ict(GaussianConsistency(path, POINT)), x0, *pairs(path, 6), noise)
    assert float(found) < 1e-10


def test_the_bias_is_of_the_first_order_of_the_gap():
    x0, noise = normal(2, 64, 2)
    gaps = [0.1, 0.05, 0.025]
    objective = ict(GaussianConsistency(VE, DATA), distance=PseudoHuber(10.0))
    # Far below c the distance is square, and the weight takes one order away.
    losses = [float(loss_of(objective, x0, full(2, x0), full(2 - d, x0), noise)) for d in gaps]
    assert slope(gaps, losses) == pytest.approx(1, abs=0.1)


@each_path
def test_the_gradient_points_home(path):
    x0, noise = DATA.mean + DATA.std * normal(512, 2, seed=1), normal(512, 2)
    for offset in (0.5, -0.5):
        student = Offset(
            GaussianConsistency(path, DATA), offset, ramp=lambda t: (t - path.t_min) / path.t_max
        )
        loss_of(ict(student), x0, *pairs(path, 512), noise).backward()
        assert float(student.offset.grad) * offset > 0


def test_the_loss_is_the_weighted_pseudo_huber_distance():
    student = Watched(Offset(GaussianConsistency(VE, DATA), 0.4, ramp=lambda t: t - 0.1))
    x0, noise = normal(2, 4, 3)
    t, r = pairs(VE, 4)
    found = loss_of(ict(student), x0, t, r, noise)
    (x_r, at_r, _, _), (x_t, at_t, _, _) = student.seen
    assert (at_r.tolist(), at_t.tolist()) == (r.tolist(), t.tolist())
    answers = student.denoiser(x_t, t), student.denoiser(x_r, r)
    square = (answers[0] - answers[1]).square().sum(1)
    assert answers[1][-1].allclose(x_r[-1])  # r = t_min
    c = 0.00054 * math.sqrt(3)
    wanted = (((square + c**2).sqrt() - c) / (t - r)).mean()
    torch.testing.assert_close(found.detach(), wanted.detach())


@pytest.mark.parametrize("d", [2, 3 * 32 * 32, 3 * 64 * 64])
def test_pseudo_huber(d):
    b = torch.zeros(1, d, dtype=D)
    unit = torch.ones(1, d, dtype=D) / math.sqrt(d)
    c = 0.00054 * math.sqrt(d)
    if d > 2:
        assert c == pytest.approx({3072: 0.02993, 12288: 0.05986}[d], abs=5e-6)
    huber = PseudoHuber()
    assert float(huber(b, b)) == 0
    assert float(huber(c / 100 * unit, b)) == pytest.approx((c / 100) ** 2 / (2 * c), rel=1e-4)
    assert float(huber(1e4 * c * unit, b)) == pytest.approx(1e4 * c - c, rel=1e-4)
    a = (3 * c * unit).requires_grad_()
    huber(a, b).sum().backward()
    assert 0.9 < float(a.grad.norm()) < 1


# The schedule: N = min(s0 2^(k // K'), s1) + 1.


def test_the_published_schedule():
    schedule = Doubling(400_000)
    assert schedule.every == 50_000
    points = [schedule(50_000 * stage) for stage in range(8)]
    assert points == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert [schedule(k) for k in (49_999, 50_000, 399_999, 10**6)] == [11, 21, 1281, 1281]
    assert (Doubling(100, 7, 7)(0), Doubling(100, 7, 7)(99)) == (8, 8)
    # 50 // 10 = 5 is no power of 2: K' = floor(90 / (log2(5) + 1)) = 27.
    assert [Doubling(90, 10, 50)(k) for k in (26, 27, 54, 81)] == [11, 21, 41, 51]


@pytest.mark.parametrize("wrong", [(2,), (100, 0), (100, 20, 10)])
def test_impossible_schedules_are_refused(wrong):
    with pytest.raises(UsageError, match="Doubling"):
        Doubling(*wrong)


@pytest.mark.parametrize("points", [2, 11, 1281])
def test_the_mass_of_the_intervals_is_one(points):
    assert float(DiscreteLogNormal().mass(karras(points, 0.002, 80.0)).sum()) == pytest.approx(1)


def test_draws_follow_the_grid_of_the_step():
    objective = ict(
        GaussianConsistency(VE, DATA),
        schedule=Doubling(20, 5, 10),
        drop=ConditionDrop(0.5, {"label": 7}),
    )
    batch = Batch(normal(4000, 2).float())
    for step, points in ((0, 6), (9, 6), (10, 11), (19, 11)):
        found = objective.draw(batch, step, Rng(0, step, "student"))
        again = objective.draw(batch, step, Rng(0, step, "student"))
        assert all(a.equal(b) for a, b in zip(found, again, strict=True))
        assert not objective.draw(batch, step, Rng(1, step, "student")).t.equal(found.t)
        grid = karras(points, VE.t_min, VE.t_max)
        index = (found.t[:, None] == grid).int().argmax(1)
        assert found.t.equal(grid[index])
        assert found.r.equal(grid[index + 1])
        mass = DiscreteLogNormal().mass(grid)
        share = torch.bincount(index, minlength=points - 1) / len(batch)
        # Four standard deviations of a share.
        assert ((share - mass).abs() < 4 * (mass * (1 - mass) / len(batch)).sqrt() + 1e-3).all()
        assert (found.t.dtype, found.noise.dtype) == (D, torch.float32)
        assert objective.stage(step) == 0
    assert objective.loss(batch, found).total().dtype == torch.float32


def test_dropped_labels_reach_both():
    student = Watched(GaussianConsistency(VE, DATA))
    objective = ict(student, drop=ConditionDrop(0.5, {"label": 7}))
    x0, noise = normal(2, 3, 2)
    batch = Batch(x0, {"label": torch.tensor([0, 1, 2])})
    objective.loss(batch, Draws(*pairs(VE, 3), noise, torch.tensor([True, False, True])))
    assert [seen[3]["label"].tolist() for seen in student.seen] == [[7, 1, 7]] * 2


def test_contract():
    student = GaussianConsistency(VE, DATA)
    objective = ict(student)
    found = objective.contract(DataSpec(shape=(2,)))
    assert (found.method, found.sampling.kind) == ("ict", "renoise")
    assert found.sampling.times == {1: (10.0,)}
    assert found.sampling.any_times
    assert objective.deliver(student) is student
    assert objective.frozen == ()


def test_two_time_networks_are_refused():
    with pytest.raises(UsageError, match="one-time"):
        ict(GaussianFlowMap(VE, DATA))
