import copy
import math

import pytest
import torch
from torch import Tensor, nn

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError, expand
from fewstep.data import toy
from fewstep.model import Model
from fewstep.models import EDM, AbstractDenoiser, Denoiser, FeatureDiscriminator
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.ctm import ConsistencyTrajectory, Draws
from fewstep.objectives.shared.distances import l1, l2
from fewstep.objectives.shared.weights import karras_weight
from fewstep.paths import Linear, Trig, VarianceExploding, VariancePreserving
from fewstep.solvers import heun
from fewstep.times import HalfHigh, karras
from fewstep.training.config import TrainConfig
from fewstep.training.trainer import Trainer
from oracles import (
    D,
    Gaussian,
    GaussianDenoiser,
    GaussianFlowMap,
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
PATHS = [VE, VariancePreserving(0.1, 1.0), Linear(0.1, 0.9), Linear(), Trig(0.1, 1.4), Trig()]
EVENTS = [(2,), (1, 8, 8), (3, 2, 4, 4)]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda p: f"{path_id(p)}-{p.t_min}")
each_event = pytest.mark.parametrize("event", EVENTS, ids=str)


def follow_the_flow(denoiser, x, t, s, cond):
    """A solver without error."""
    return DATA.flow(denoiser.path, x, t, s)


class Learner(Offset):
    """A wrong flow map, whose last weights are both of its parameters' vector."""

    def __init__(self, denoiser: AbstractDenoiser, offset: float = 0.0, scale: float = 1.0) -> None:
        super().__init__(denoiser)
        del self.offset, self.scale
        self.last_weight = nn.Parameter(torch.tensor([offset, scale], dtype=D))

    @property
    def offset(self) -> Tensor:
        return self.last_weight[0]

    @property
    def scale(self) -> Tensor:
        return self.last_weight[1]


def exact(path) -> Learner:
    return Learner(GaussianFlowMap(path, DATA))


def ctm(student, teacher=None, points: int = 18, **kwargs) -> ConsistencyTrajectory:
    path = student.path
    given = {
        "grid": karras(points, path.t_min, path.t_max),
        "solver_steps": points - 1,
        "times": HalfHigh(),
        "weight": karras_weight(0.5),
        "solver": follow_the_flow,
    }
    teacher = teacher or GaussianDenoiser(path, DATA)
    return ConsistencyTrajectory(student, teacher, **(given | kwargs))


def drawn(path, b: int, *event: int, m: int = 3, points: int = 18, seed: int = 0) -> Draws:
    """All over the range; s = u, s = t_min and u = s = t_min are among them."""
    grid = karras(points, path.t_min, path.t_max)
    first = torch.linspace(0, points - 1 - m, b).long()
    span = points - 1 - (first + m)
    last = first + m + (span * torch.tensor([0.0, 0.3, 0.6, 1.0, 0.5, 0.0])[:b]).long()
    trajectory = grid[first + torch.arange(m + 1)[:, None]]
    noise, other = normal(2, b, *event, seed=seed + 1)
    t = path.time(torch.logspace(-1, 0.5, b, dtype=D))
    return Draws(trajectory, grid[last], noise, t, other, torch.tensor(False))


# At the exact solution.


@each_event
@each_path
def test_the_loss_is_zero_at_the_exact_flow_map(path, event):
    x0 = normal(6, *event)
    for m in (1, 4, 17):
        for distance in (l1, l2):
            draws = drawn(path, 6, *event, m=m)
            loss = ctm(exact(path), distance=distance).loss(Batch(x0), draws)
            # The denoising term as well, for its weight is a ratio of gradients.
            assert set(loss.terms) == {"consistency", "denoising"}
            assert float(loss.terms["consistency"].detach()) < (1e-20 if distance is l2 else 1e-10)
            if distance is l2:
                assert float(loss.total().detach()) < 1e-10
            loss.total().backward()


@pytest.mark.parametrize("path", [VE, Linear(0.1, 0.9), Trig(0.1, 1.4)], ids=path_id)
def test_it_falls_at_the_order_of_the_teacher_s_solver(path):
    x0 = normal(6, 2)
    sizes, losses = [], []
    for points in (33, 65, 129):
        m = (points - 1) // 4
        objective = ctm(exact(path), points=points, solver=heun, distance=l1)
        loss = objective.loss(Batch(x0), drawn(path, 6, 2, m=m, points=points))
        sizes.append(1 / (points - 1))
        losses.append(float(loss.terms["consistency"].detach()))
    assert slope(sizes, losses) == pytest.approx(2, abs=0.3)


def gradient(objective, x0: Tensor, draws: Draws, term: str) -> list[float]:
    loss = objective.loss(Batch(x0), draws).terms[term]
    (found,) = torch.autograd.grad(loss, objective.student.last_weight)
    return found.tolist()


@each_path
@pytest.mark.parametrize("wrong", [0.3, -0.3])
def test_every_gradient_points_home(path, wrong):
    x0, noise = four_points(DATA, 2)
    for m in (1, 8):
        draws = drawn(path, 4, 2, m=m)._replace(noise=noise, noise_denoising=noise)
        for part in (0, 1):
            objective = ctm(exact(path))
            with torch.no_grad():
                objective.student.last_weight[part] += wrong
            for term in ("consistency", "denoising"):
                assert math.copysign(1, gradient(objective, x0, draws, term)[part]) == (
                    math.copysign(1, wrong)
                ), (term, m)


def test_the_gradient_is_of_the_first_jump_through_the_second():
    x0 = normal(3, 2)
    draws = drawn(VE, 3, 2)
    objective = ctm(Learner(GaussianFlowMap(VE, DATA), 0.4, 0.9))
    with torch.no_grad():
        objective.target.last_weight.copy_(torch.tensor([0.1, 1.1], dtype=D))
    (found,) = torch.autograd.grad(
        objective.loss(Batch(x0), draws).terms["consistency"], objective.student.last_weight
    )
    t, u, s = draws.trajectory[0], draws.trajectory[-1], draws.s

    def end(weights: Tensor, x: Tensor, start: Tensor) -> Tensor:
        def jump(of: Tensor, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            kept = expand(torch.where(s < t, s / t, 1), x)
            middle = torch.where(s < t, s, t / 2)
            answer = of[1] * GaussianFlowMap(VE, DATA)(x, t, middle) + of[0]
            return kept * x + (1 - kept) * answer

        outer = torch.tensor([0.1, 1.1], dtype=D)
        return jump(outer, jump(weights, x, start, s), s, full(VE.t_min, x))

    x_t = x0 + expand(t, x0) * draws.noise
    x_u = DATA.flow(VE, x_t, t, u)
    weights = torch.tensor([0.4, 0.9], dtype=D, requires_grad=True)
    wanted = l2(end(weights, x_t, t), end(weights.detach(), x_u, u)).mean()
    (direction,) = torch.autograd.grad(wanted, weights)
    torch.testing.assert_close(found, direction, rtol=1e-10, atol=1e-12)


# What it says of itself: G(x, t, t) = x, the denoiser, the score, composition.


def real_student(path) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(Net(), EDM(sigma_data=0.5).on(path)).double()


class Net(nn.Module):
    """Two times, and a last weight."""

    cond_keys, two_time = (), True

    def __init__(self, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.first, self.drop = nn.Linear(4, width), nn.Dropout(dropout)
        self.last = nn.Linear(width, 2)

    @property
    def last_weight(self) -> nn.Parameter:
        return self.last.weight

    def forward(self, x, c_noise, s_noise=None, cond=None):
        assert s_noise is not None
        times = torch.stack([c_noise, s_noise], 1)
        return self.last(self.drop(self.first(torch.cat([x, times], 1)).tanh()))


@each_path
def test_a_jump_to_the_same_time_stays_and_its_limit_is_the_denoiser(path):
    student, x = real_student(path), normal(3, 2)
    t = full(0.5 * path.t_max, x)
    torch.testing.assert_close(student.jump(x, t, t), x, rtol=1e-14, atol=1e-14)
    near = student(x, t, t * (1 - 1e-7))
    torch.testing.assert_close(student(x, t), near, rtol=1e-5, atol=1e-5)
    flow_map, denoiser = GaussianFlowMap(path, DATA), GaussianDenoiser(path, DATA)
    torch.testing.assert_close(flow_map(x, t, t * (1 - 1e-6)), denoiser(x, t), rtol=1e-4, atol=1e-4)
    alpha = path.coefficients(t).alpha
    score = (expand(alpha, x) * DATA.mean - x) / expand(DATA.variance(path, t), x)
    torch.testing.assert_close(path.score(x, flow_map(x, t), t), score)


@each_path
def test_exact_jumps_compose(path):
    student, x = GaussianFlowMap(path, DATA), normal(3, 2)
    t, u, s = (full(part * path.t_max, x) for part in (0.8, 0.5, 0.2))
    there = student.jump(x, t, s)
    torch.testing.assert_close(student.jump(student.jump(x, t, u), u, s), there)
    torch.testing.assert_close(there, DATA.flow(path, x, t, s))


# Draws.


def test_draws_lie_on_the_grid_in_order():
    objective = ctm(exact(VE), points=7, solver_steps=4)
    grid, seen = karras(7, 0.1, 10.0), set()
    for step in range(40):
        draws = objective.draw(Batch(normal(64, 2).float()), step, Rng(0, step, "student"))
        index = (draws.trajectory[..., None] - grid).abs().argmin(-1)
        assert draws.trajectory.equal(grid[index])
        assert (index.diff(dim=0) == 1).all()
        m, last = len(index) - 1, (draws.s[:, None] - grid).abs().argmin(-1)
        assert draws.s.equal(grid[last])
        assert (last >= index[-1]).all()
        assert set(index[0].tolist()) == set(range(7 - m))
        assert 6 in last
        assert (last == index[-1]).any()
        assert draws.noise.dtype == draws.noise_denoising.dtype == torch.float32
        assert not draws.noise.equal(draws.noise_denoising)
        seen.add(m)
    assert seen == {1, 2, 3, 4}


def test_more_steps_are_drawn_more_often_and_the_end_evenly():
    objective = ctm(exact(VE), points=5, solver_steps=3)
    batch = Batch(normal(2, 1))
    drawn = [objective.draw(batch, i, Rng(0, i, "student")) for i in range(3000)]
    counts = torch.bincount(torch.tensor([len(d.trajectory) - 1 for d in drawn]))
    # Four standard deviations of a count.
    torch.testing.assert_close(counts[1:] / 3000, torch.tensor([1, 2, 3]) / 6, rtol=0, atol=0.037)
    grid = karras(5, 0.1, 10.0)
    ones = [d for d in drawn if len(d.trajectory) == 2]
    from_first = torch.cat([d.s[d.trajectory[0] == grid[0]] for d in ones])
    ends = torch.stack([(from_first == t).double().mean() for t in grid[1:]])
    torch.testing.assert_close(ends, torch.full((4,), 0.25, dtype=D), rtol=0, atol=0.11)


def test_the_number_of_steps_is_common_to_all_shards():
    objective = ctm(exact(VE))
    batch = Batch(normal(4, 2))
    for step in range(20):
        one, other = (objective.draw(batch, step, Rng(0, step, "student", k)) for k in (0, 1))
        assert len(one.trajectory) == len(other.trajectory)
        assert not one.noise.equal(other.noise)
        again = objective.draw(batch, step, Rng(0, step, "student"))
        assert all(a.equal(b) for a, b in zip(one, again, strict=True))


@pytest.mark.parametrize("path", [VarianceExploding(), Linear()], ids=path_id)
def test_half_of_the_denoising_times_are_high(path):
    times = HalfHigh().draw(path, 20_001, torch.Generator().manual_seed(0))
    low, high = times[:10_000], times[10_000:]
    logs = path.ratio(low).log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=0.05)
    assert float(logs.std()) == pytest.approx(1.2, abs=0.05)
    ends = (0.3 * path.t_max ** (1 / 7) + 0.7 * path.t_min ** (1 / 7)) ** 7
    assert ends <= float(high.min()) <= 1.01 * ends
    assert 0.99 * path.t_max <= float(high.max()) <= path.t_max
    middle = (0.65 * path.t_max ** (1 / 7) + 0.35 * path.t_min ** (1 / 7)) ** 7
    assert float((high < middle).double().mean()) == pytest.approx(0.5, abs=0.02)


# Weights of the terms.


def wrong_ctm(**kwargs) -> ConsistencyTrajectory:
    objective = ctm(exact(VE), **kwargs)
    with torch.no_grad():
        objective.student.last_weight += torch.tensor([0.3, -0.2])
    return objective


def test_the_terms_pull_equally_at_the_last_weight():
    x0, draws = normal(4, 2), drawn(VE, 4, 2)
    objective = wrong_ctm()
    loss = objective.loss(Batch(x0), draws)
    sizes = [
        torch.autograd.grad(term, objective.student.last_weight, retain_graph=True)[0].norm()
        for term in loss.terms.values()
    ]
    torch.testing.assert_close(*sizes, rtol=1e-3, atol=0)
    weight = loss.logs["denoising_weight"]
    assert not weight.requires_grad
    t = draws.t_denoising
    answer = objective.student(x0 + expand(t, x0) * draws.noise_denoising, t)
    plain = ((4 + t**-2) * (answer - x0).square().mean(1)).mean()
    torch.testing.assert_close(loss.terms["denoising"], weight * plain)
    # A plain backward follows.
    loss.total().backward()
    wanted = sum(
        torch.autograd.grad(
            objective.loss(Batch(x0), draws).terms[name], objective.student.last_weight
        )[0]
        for name in loss.terms
    )
    torch.testing.assert_close(objective.student.last_weight.grad, wanted)
    assert objective.target.last_weight.grad is None


def test_the_denoising_weight_has_a_ceiling():
    # A denoising term without gradient: 1e-4 is added to its norm, and the ratio ends at 1e4.
    objective = wrong_ctm(weight=torch.zeros_like, distance=lambda a, b, mask: 1e6 * l2(a, b))
    loss = objective.loss(Batch(normal(4, 2)), drawn(VE, 4, 2))
    assert float(loss.logs["denoising_weight"]) == 1e4


class Critic(nn.Module):
    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=D))

    def forward(self, x: Tensor, t: Tensor, cond) -> list[Tensor]:
        assert t.eq(VE.t_min).all()
        score = self.gain * x.flatten(1).sum(1)
        return [score, 3 * score]


def test_the_adversarial_terms():
    x0, draws = normal(4, 2), drawn(VE, 4, 2)._replace(adversarial=torch.tensor(True))
    objective = wrong_ctm(discriminator=Critic())
    loss = objective.loss(Batch(x0), draws)
    t = draws.trajectory[0]
    with torch.no_grad():
        x_t = x0 + expand(t, x0) * draws.noise
        fake = objective.arrive(x_t, t, draws.s, {})
    weight = loss.logs["adversarial_weight"]
    torch.testing.assert_close(loss.terms["adversarial"], -2 * weight * fake.sum(1).mean())
    stronger = wrong_ctm(discriminator=Critic(), adversarial=3.0).loss(Batch(x0), draws)
    torch.testing.assert_close(stronger.terms["adversarial"], 3 * loss.terms["adversarial"])
    # It raises the score of the estimate, by as much as consistency pulls.
    (up,) = torch.autograd.grad(loss.terms["adversarial"], objective.student.last_weight)
    assert float(up[0]) < 0
    assert objective.loss(Batch(x0), drawn(VE, 4, 2)).terms.keys() == {"consistency", "denoising"}
    for gain, limit in ((1e6, 0.01), (1e-6, 10.0)):
        objective = wrong_ctm(discriminator=Critic(gain))
        loss = objective.loss(Batch(x0), draws)
        assert float(loss.logs["adversarial_weight"]) == limit
    critic = Critic(0.1)
    objective = wrong_ctm(discriminator=critic)
    found = objective.discriminate(Batch(x0), draws).total()
    wanted = 0.0
    for gain in (0.1, 0.3):
        real, made = gain * x0.sum(1), gain * fake.sum(1)
        wanted += ((1 - real).clamp(min=0).mean() + (1 + made).clamp(min=0).mean()) / 2
    torch.testing.assert_close(found, wanted)
    found.backward()
    assert objective.student.last_weight.grad is None
    assert critic.gain.grad is not None


def test_student_and_discriminator_take_turns():
    objective = ctm(exact(VE), discriminator=Critic(), adversarial_start=4)
    names = [[p.name for p in objective.phases() if p.due(step)] for step in range(8)]
    student, other = ["student"], ["discriminator"]
    assert names == [student] * 4 + [student, other] * 2
    batch = Batch(normal(2, 1))
    turned = [bool(objective.draw(batch, i, Rng(0, i, "x")).adversarial) for i in range(8)]
    assert turned == [False] * 4 + [True] * 4
    alone = ctm(exact(VE))
    assert [p.name for p in alone.phases()] == student
    assert all(alone.phases()[0].due(step) for step in range(4))
    # The target does not follow where the student has not moved.
    with torch.no_grad():
        objective.student.last_weight[0] += 1.0
    for step, wanted in ((5, 0.0), (6, 0.001)):
        objective.after_step(step)
        assert float(objective.target.last_weight[0]) == pytest.approx(wanted)


# Networks.


def test_dropout_is_the_same_on_both_ways():
    torch.manual_seed(0)
    net = Net(dropout=0.5)
    student = Watched(Denoiser(net, EDM(sigma_data=0.5, path=VE)).double())
    student.last_weight = net.last_weight
    masks = []
    objective = ctm(student, solver=lambda denoiser, x, t, s, cond: x)
    for module in (objective.student, objective.target):
        module.denoiser.net.drop.register_forward_hook(lambda _, given, out: masks.append(out == 0))
    objective.loss(Batch(normal(6, 2)), drawn(VE, 6, 2))
    # Target's way, estimate's way, denoising.
    inner, outer, again, through, denoising = masks
    assert inner.equal(again)
    assert outer.equal(through)
    assert not inner.equal(outer)
    assert not denoising.equal(inner)


def test_without_a_teacher_the_target_denoises_for_itself():
    student = Learner(Watched(GaussianFlowMap(VE, DATA)))
    objective = ConsistencyTrajectory(
        student,
        grid=karras(18, 0.1, 10.0),
        solver_steps=17,
        times=HalfHigh(),
        weight=karras_weight(0.5),
    )
    assert objective.frozen == ()
    x0, draws = normal(4, 2), drawn(VE, 4, 2)
    found = objective.loss(Batch(x0), draws).terms["consistency"]
    wanted = ctm(exact(VE), solver=heun).loss(Batch(x0), draws).terms["consistency"]
    torch.testing.assert_close(found, wanted)
    asked = [(t, s) for _, t, s, _ in objective.target.denoiser.seen]
    for k, (t, s) in enumerate(asked[:6]):
        assert s is None
        assert t.equal(draws.trajectory[(k + 1) // 2])


def test_conditions_reach_everybody():
    teacher, inner = Watched(GaussianDenoiser(VE, DATA)), Watched(GaussianFlowMap(VE, DATA))
    objective = ctm(Learner(inner), teacher, solver=heun)
    label = torch.arange(4)
    objective.loss(Batch(normal(4, 2), {"label": label}), drawn(VE, 4, 2))
    target = objective.target.denoiser
    assert (len(teacher.seen), len(inner.seen), len(target.seen)) == (6, 3, 2)
    for *_, cond in (*teacher.seen, *inner.seen, *target.seen):
        assert cond["label"].equal(label)


def test_the_trainer_trains_both():
    torch.manual_seed(0)
    student = Denoiser(Net(), EDM(sigma_data=0.5, path=VE))
    teacher = Denoiser(ResidualMLP((2,), 8, 1), EDM(sigma_data=0.5, path=VE))
    judge = FeatureDiscriminator(copy.deepcopy(teacher), Batch(torch.zeros(1, 2)), width=4)
    objective = ctm(student, teacher, solver=heun, discriminator=judge, adversarial_start=1)
    assert objective.frozen == ("teacher", "discriminator.denoiser")
    config = TrainConfig(steps=3, batch=6, accumulation=2, lr=1e-2)
    trainer = Trainer(objective, toy("two-modes", 64), config, {}, torch.device("cpu"))

    def weights() -> list[Tensor]:
        parts = (student, objective.target, judge.heads, judge.denoiser, teacher)
        return [nn.utils.parameters_to_vector(p.parameters()).detach().clone() for p in parts]

    before = weights()
    for changed in ((True, True, False), (False, False, True), (True, True, False)):
        row = trainer.advance()
        after = weights()
        assert [not a.equal(b) for a, b in zip(before, after, strict=True)] == [
            *changed,
            False,
            False,
        ]
        assert all(math.isfinite(value) for value in row.values())
        before = after
    assert {"consistency", "denoising", "adversarial", "adversarial_weight"} <= row.keys()


# Contract, sampling, refusals.


def test_contract_and_samples():
    data = DataSpec(shape=(2,), range=None)
    objective = ctm(exact(VE), gamma=0.5)
    contract = objective.contract(data).with_times({2: (10.0, 1.0)})
    assert (contract.method, contract.data) == ("ctm", data)
    sampling = contract.sampling
    assert (sampling.kind, sampling.gamma, sampling.grid) == ("gamma", 0.5, "karras")
    assert (sampling.times, sampling.any_times) == ({1: (10.0,), 2: (10.0, 1.0)}, True)
    assert (sampling.start.t, sampling.start.std) == (10.0, 10.0)
    model = Model(objective.deliver(objective.student), contract)
    for steps, gamma in ((1, None), (2, 0.0), (2, None), (5, 1.0)):
        x = model.sample(2000, steps=steps, gamma=gamma)
        # The start leaves out the data's own spread: 10 for 10.02.
        assert float(x.mean()) == pytest.approx(0.3, abs=0.06)
        assert float(x.std()) == pytest.approx(0.707, abs=0.05)
    x, times = normal(3, 2), full(10.0, normal(3, 2))
    plain = model.denoiser.jump(x, times, full(0.1, x))
    torch.testing.assert_close(plain, DATA.flow(VE, x, times, full(0.1, x)))


def test_what_it_refuses():
    student = exact(VE)
    one_time = Learner(GaussianDenoiser(VE, DATA))
    teacher = Denoiser(ResidualMLP((2,), 8, 1), EDM(sigma_data=0.5)).on(Linear())
    elsewhere = FeatureDiscriminator(teacher, Batch(torch.zeros(1, 2)), width=4)
    cases = [
        (lambda: ctm(one_time), "two_time"),
        (lambda: ctm(GaussianFlowMap(VE, DATA)), "GaussianFlowMap has no last_weight"),
        (lambda: ctm(student, GaussianDenoiser(Linear(), DATA)), "path"),
        (lambda: ctm(student, discriminator=elsewhere), "path"),
        (lambda: ctm(student, grid=karras(18, 0.2, 10.0)), "0.1"),
        (lambda: ctm(student, solver_steps=18), r"\[1, 17\].*18"),
        (lambda: ctm(student, solver_steps=0), r"\[1, 17\]"),
        (lambda: ctm(student, gamma=1.5), "gamma.*1.5"),
        (lambda: ctm(student, rate=1.0), "rate.*1.0"),
    ]
    for make, message in cases:
        with pytest.raises(UsageError, match=message):
            make()
