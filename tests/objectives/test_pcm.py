"""Phased consistency: closed forms, phases of grids, adversarial terms."""

import math

import pytest
import torch

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError, expand
from fewstep.data import Arrays
from fewstep.model import Model, SampleNoise
from fewstep.models import EDM, AbstractDenoiser, Denoiser, FeatureDiscriminator, Guided
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.pcm import Draws, PhasedConsistency
from fewstep.objectives.shared.discrete import SameNoise, TeacherStep
from fewstep.objectives.shared.distances import Huber, l1, l2
from fewstep.objectives.shared.drop import ConditionDrop
from fewstep.paths import (
    CosineVariancePreserving,
    DiscreteVariancePreserving,
    Linear,
    Trig,
    VarianceExploding,
    VariancePreserving,
)
from fewstep.solvers import ddim
from fewstep.times import Phases, karras, strided, uniform
from fewstep.training.config import TrainConfig
from fewstep.training.trainer import Trainer
from oracles import (
    D,
    Gaussian,
    GaussianDenoiser,
    GaussianFlowMap,
    Offset,
    Watched,
    full,
    normal,
    path_id,
    slope,
)
from small_nets import shaken

DATA = Gaussian(0.3, 0.7)
VE = VarianceExploding(0.1, 10.0)
PATHS = [
    VE,
    VariancePreserving(0.1, 1.0),
    CosineVariancePreserving(0.1, 0.9),
    DiscreteVariancePreserving(),
    Linear(0.0, 1.0),
    Trig(0.0, math.pi / 2),
]
each_path = pytest.mark.parametrize("path", PATHS, ids=path_id)
EVENTS = [(2,), (1, 8, 8), (3, 2, 4, 4)]


class ExactStep(TeacherStep):
    """The exact flow in the place of a solver."""

    def __init__(self, path):
        super().__init__(
            GaussianDenoiser(path, DATA), lambda d, x, t, s, cond: DATA.flow(path, x, t, s)
        )


class PhasedFlowMap(AbstractDenoiser):
    """The exact flow map to the edge of t's phase, by a network that is not told where it goes."""

    cond_keys, two_time = (), False

    def __init__(self, path, phases):
        super().__init__()
        self.path, self.map, self.phases = path, GaussianFlowMap(path, DATA), phases

    def forward(self, x, t, s=None, cond=None):
        edges = self.phases.edges()
        edge = torch.stack([edges[edges < v].max() if v > edges[-1] else edges[-1] for v in t])
        return self.map(x, t, edge, cond)


def phases(path, count=3, intervals=10) -> Phases:
    return Phases(uniform(intervals + 1, path.t_min, path.t_max), count)


def intervals(cut: Phases, noise: torch.Tensor) -> Draws:
    """Every interval of a grid, in turn."""
    index = torch.arange(len(noise)) % cut.intervals
    return Draws(*cut.of(index), noise)


def loss_of(objective, x0, draws):
    return objective.loss(Batch(x0), draws).total()


# Phases of a grid.


# Wang et al.: Stable Diffusion's 50 DDIM times, previous time of index floor(50 k / M).
@pytest.mark.parametrize(
    ("count", "edges"),
    [(1, [0]), (2, [499, 0]), (4, [739, 499, 239, 0]), (8, [859, 739, 619, 499, 359, 239, 119, 0])],
)
def test_edges_of_stable_diffusion(count, edges):
    assert Phases(strided(50), count).edges().tolist() == edges


def test_ddim_times_of_a_table():
    assert strided(50).tolist() == [*range(999, 0, -20), 0]
    assert strided(3).tolist() == [998, 665, 332, 0]
    for n in (0, 501):
        with pytest.raises(UsageError):
            strided(n)


@pytest.mark.parametrize("count", range(1, 12))
def test_every_interval_lies_in_one_phase(count):
    cut = Phases(karras(12, 0.1, 10.0), count)
    t, r, edge = cut.of(torch.arange(11))
    assert t.equal(karras(12, 0.1, 10.0).flip(0)[1:])
    assert r[1:].equal(t[:-1])
    assert r[0] == cut.grid[-1]
    assert (edge <= r).all()
    assert edge.unique().equal(cut.edges().flip(0))
    # A phase begins with the interval that ends on its edge, and sizes differ by rounding only.
    assert t[edge == r].equal(t[cut.firsts()])
    sizes = edge.unique(return_counts=True)[1]
    assert len(sizes) == count
    assert sizes.max() - sizes.min() <= 1


def test_as_many_phases_as_intervals_end_where_each_does():
    cut = Phases(uniform(8, 0.0, 1.0), 7)
    _, r, edge = cut.of(torch.arange(7))
    assert edge.equal(r)


def test_times_within_a_phase_are_uniform_on_the_grid():
    cut = Phases(torch.tensor([10.0, 4.0, 2.0, 1.0, 0.0], dtype=D), 2)
    index = torch.tensor([0, 1, 2, 3])
    for share, times in {
        0.0: [0, 0, 2, 2],
        0.25: [0.5, 0.5, 3, 3],
        0.5: [1, 1, 4, 4],
        1.0: [2, 2, 10, 10],
    }.items():
        assert cut.within(index, torch.full((4,), share, dtype=D)).tolist() == times


@pytest.mark.parametrize(
    "make",
    [
        lambda: Phases(uniform(5, 0.0, 1.0), 0),
        lambda: Phases(uniform(5, 0.0, 1.0), 5),
        lambda: Phases(uniform(5, 0.0, 1.0).flip(0), 2),
        lambda: Phases(uniform(4, 0.0, 1.0).reshape(2, 2), 1),
    ],
)
def test_grids_that_cannot_be_cut(make):
    with pytest.raises(UsageError):
        make()


# Closed forms.


@each_path
@pytest.mark.parametrize("count", [1, 3, 10])
def test_zero_at_the_exact_flow_map(path, count):
    x0, noise = normal(2, 20, 2)
    cut = phases(path, count)
    for student in (GaussianFlowMap(path, DATA), PhasedFlowMap(path, cut)):
        objective = PhasedConsistency(student, ExactStep(path), phases=cut, distance=l2)
        assert float(loss_of(objective, x0, intervals(cut, noise))) < 1e-20


@each_path
def test_ddim_steps_are_wrong_by_their_square(path):
    x0, noise = normal(2, 200, 2)
    cut = phases(path, 2)
    edge = cut.edges()[1]
    t = full(float(path.t_min + 0.4 * (path.t_max - path.t_min)), x0)
    step = TeacherStep(GaussianDenoiser(path, DATA), ddim)
    objective = PhasedConsistency(GaussianFlowMap(path, DATA), step, phases=cut, distance=l1)
    widths = [0.02, 0.01, 0.005, 0.0025]
    found = []
    for width in widths:
        h = width * (path.t_max - path.t_min)
        draws = Draws(t, t - h, full(float(edge), x0), noise)
        found.append(float(loss_of(objective, x0, draws)))
    assert slope(widths, found) == pytest.approx(2, abs=0.15)


@each_path
@pytest.mark.parametrize("wrong", [0.3, -0.3])
@pytest.mark.parametrize("make", [ExactStep, SameNoise])
def test_gradient_points_home(path, wrong, make):
    x0, noise = 0.3 + 0.7 * normal(2000, 2, seed=1), normal(2000, 2)
    cut = phases(path)
    student = Offset(GaussianFlowMap(path, DATA), wrong)
    objective = PhasedConsistency(student, make(path), phases=cut)
    loss_of(objective, x0, intervals(cut, noise)).backward()
    assert student.offset.grad * wrong > 0


@each_path
def test_the_first_interval_of_a_phase_is_taught_by_the_teacher_alone(path):
    x0, noise = normal(2, 3, 2)
    cut = phases(path)
    student = Offset(GaussianFlowMap(path, DATA), 0.7)
    objective = PhasedConsistency(student, ExactStep(path), phases=cut, distance=l1)
    t, r, edge = cut.of(cut.firsts())
    assert r.equal(edge)
    found = loss_of(objective, x0, Draws(t, r, edge, noise))
    x_t = path.perturb(x0, noise, t)
    wanted = l1(student.jump(x_t, t, edge), DATA.flow(path, x_t, t, r)).mean()
    torch.testing.assert_close(found, wanted)


@each_path
def test_one_phase_an_interval_copies_the_teachers_steps(path):
    x0, noise = normal(2, 10, 2)
    cut = phases(path, 10)
    teacher = GaussianDenoiser(path, DATA)
    objective = PhasedConsistency(teacher, TeacherStep(teacher, ddim), phases=cut, distance=l2)
    assert float(loss_of(objective, x0, intervals(cut, noise))) < 1e-25


def test_one_phase_is_a_latent_consistency_step():
    path = DiscreteVariancePreserving()
    cut = Phases(strided(50), 1)
    x0, noise = normal(2, 4, 2)
    t, r, edge = cut.of(torch.tensor([0, 3, 25, 49]))
    assert edge.tolist() == [0, 0, 0, 0]
    student = Offset(GaussianDenoiser(path, DATA), 0.4, 0.9)
    teacher = GaussianDenoiser(path, DATA)
    objective = PhasedConsistency(student, TeacherStep(teacher, ddim), phases=cut)
    alpha_bar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=D) ** 2, 0)

    def jump(denoiser, x, at, to):
        a, b = (expand(alpha_bar[v.long()], x) for v in (at, to))
        clean = denoiser(x, at)
        return b.sqrt() * clean + (1 - b).sqrt() * (x - a.sqrt() * clean) / (1 - a).sqrt()

    x_t = path.perturb(x0, noise, t)
    x_r = jump(teacher, x_t, t, r)
    target = torch.where(expand(r > 0, x_r), jump(student, x_r, r, edge), x_r)
    error = jump(student, x_t, t, edge) - target
    wanted = ((error**2 + 1e-6).sqrt() - 1e-3).mean()
    torch.testing.assert_close(loss_of(objective, x0, Draws(t, r, edge, noise)), wanted)


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_huber_is_of_each_element(event):
    a, b = normal(2, 3, *event)
    want = (((a - b) ** 2 + 0.04).sqrt() - 0.2).flatten(1)
    torch.testing.assert_close(Huber(0.2)(a, b), want.mean(1))
    mask = (normal(3, *event, seed=1) > 0).double()
    mask.flatten(1)[:, 0] = 1
    torch.testing.assert_close(
        Huber(0.2)(a, b, mask), (want * mask.flatten(1)).sum(1) / mask.flatten(1).sum(1)
    )


def test_student_is_told_its_edge_and_the_conditions():
    cut = phases(VE)
    student = Watched(GaussianFlowMap(VE, DATA))
    teacher = Watched(GaussianDenoiser(VE, DATA))
    objective = PhasedConsistency(
        student, TeacherStep(teacher, ddim), phases=cut, drop=ConditionDrop(0.5, {"label": 7})
    )
    x0, noise = normal(2, 3, 2)
    t, r, edge = cut.of(torch.tensor([1, 5, 9]))
    batch = Batch(x0, {"label": torch.tensor([0, 1, 2])})
    objective.loss(batch, Draws(t, r, edge, noise, torch.tensor([True, False, True])))
    (_, taught_at, taught_to, _), (target, online) = teacher.seen[0], student.seen
    assert taught_at.equal(t)
    assert taught_to is None
    assert target[1].equal(r)
    assert online[1].equal(t)
    for seen in (target, online):
        assert seen[2].equal(edge)
    for seen in (*student.seen, *teacher.seen):
        assert seen[3]["label"].tolist() == [7, 1, 7]


def test_a_guided_teacher_is_a_teacher():
    class Labelled(GaussianDenoiser):
        cond_keys = ("label",)

        def forward(self, x, t, s=None, cond=None):
            mean = torch.tensor([-0.5, 0.5, 0.1], dtype=D)[cond["label"]]
            return torch.cat(
                [
                    Gaussian(float(m), 0.7).denoised(self.path, x[i : i + 1], t[i : i + 1])
                    for i, m in enumerate(mean)
                ]
            )

    teacher = Guided(Labelled(VE), {"label": 2}, 2.5)
    cut = phases(VE, 10)
    objective = PhasedConsistency(teacher, TeacherStep(teacher, ddim), phases=cut, distance=l2)
    x0, noise = normal(2, 10, 2)
    batch = Batch(x0, {"label": torch.arange(10) % 2})
    assert float(objective.loss(batch, intervals(cut, noise)).total()) < 1e-25


# Draws.


def test_draws_are_intervals_and_times_of_their_phase():
    objective = adversarial()
    batch = Batch(normal(4000, 2).float())
    draws = objective.draw(batch, 0, Rng(0, 0, "student"))
    cut = objective.cut
    t, r, edge = cut.of(torch.arange(cut.intervals))
    found = torch.tensor([int((t == v).nonzero()) for v in draws.t])
    assert draws.r.equal(r[found])
    assert draws.edge.equal(edge[found])
    counts = found.bincount(minlength=cut.intervals) / 4000
    assert float((counts - 1 / cut.intervals).abs().max()) < 0.02  # four standard deviations
    assert draws.noise.dtype == torch.float32
    tops = torch.cat([cut.edges().flip(0)[1:], cut.grid[:1]])
    top = tops[torch.searchsorted(cut.edges().flip(0), draws.edge)]
    again = draws.again
    assert (again.t >= draws.edge).all()
    assert (again.t < top).all()
    assert again.t.dtype == D
    for a, b in ((again.fake, again.real), (again.fake, draws.noise), (again.real, draws.noise)):
        assert abs(float((a * b).mean())) < 0.05
    same = objective.draw(batch, 0, Rng(0, 0, "student"))
    other = objective.draw(batch, 1, Rng(0, 1, "student"))
    first, second, third = ((*d[:4], *d.again) for d in (draws, same, other))
    for a, b, c in zip(first, second, third, strict=True):
        assert a.equal(b)
        assert not a.equal(c)


def test_without_a_discriminator_nothing_more_is_drawn():
    objective = PhasedConsistency(GaussianFlowMap(VE), SameNoise(VE), phases=phases(VE))
    assert objective.draw(Batch(normal(4, 2)), 0, Rng(0, 0, "student")).again is None
    (phase,) = objective.phases()
    assert (phase.name, phase.module, phase.due(0)) == ("student", objective.student, True)
    assert objective.frozen == ()


# Adversarial terms.


def small(seed=0, classes=0) -> Denoiser:
    net = ResidualMLP((2,), width=8, blocks=2, classes=classes)
    return Denoiser(shaken(net, seed), EDM(sigma_data=0.5, path=VE))


def adversarial(seed=0) -> PhasedConsistency:
    torch.manual_seed(seed)
    teacher = small()
    judge = FeatureDiscriminator(teacher, Batch(torch.zeros(1, 2)), width=4)
    step = TeacherStep(teacher, ddim)
    return PhasedConsistency(small(1), step, phases=phases(VE), discriminator=judge)


@each_path
def test_noise_again_keeps_the_law(path):
    cut = phases(path)
    for edge in cut.edges():
        s, t = (torch.full((1,), float(v), dtype=D) for v in (edge, (edge + path.t_max) / 2))
        mean, std = path.coefficients(s).alpha * DATA.mean, DATA.variance(path, s).sqrt()
        zero, one = torch.zeros(1, 1, dtype=D), torch.ones(1, 1, dtype=D)
        moved = path.renoise(mean[None], zero, t, s)
        torch.testing.assert_close(moved[0], path.coefficients(t).alpha * DATA.mean)
        kept = path.renoise(std[None], zero, t, s)
        added = path.renoise(zero, one, t, s)
        torch.testing.assert_close((kept**2 + added**2)[0], DATA.variance(path, t))
        assert path.renoise(one, 5 * one, s, s).equal(one)


def test_adversarial_terms_are_hinges_of_each_head():
    objective = adversarial()
    batch = Batch(normal(6, 2).float(), {})
    draws = objective.draw(batch, 0, Rng(0, 0, "student"))
    path, (t, r, edge, noise), again = VE, draws[:4], draws.again
    x_t = path.perturb(batch.x0, noise, t)
    online = objective.student.jump(x_t, t, edge)
    target = objective.student.jump(ddim(objective.step.teacher, x_t, t, r, {}), r, edge)
    target = torch.where((r > edge)[:, None], target, ddim(objective.step.teacher, x_t, t, r, {}))
    judge = objective.discriminator

    def logits(x, unit):
        return judge(x + (again.t**2 - edge**2).sqrt()[:, None].float() * unit, again.t)

    fakes, reals = logits(online, again.fake), logits(target, again.real)
    found = objective.loss(batch, draws).terms
    torch.testing.assert_close(found["consistency"], Huber()(online, target).mean())
    wanted = 0.1 * sum((1 - f).clamp(min=0).mean() for f in fakes) / len(fakes)
    torch.testing.assert_close(found["adversarial"], wanted)
    wanted = sum(
        ((1 - a).clamp(min=0).mean() + (1 + b).clamp(min=0).mean())
        for a, b in zip(reals, fakes, strict=True)
    ) / len(fakes)
    found = objective.discriminator_loss(batch, draws).terms
    torch.testing.assert_close(found["discriminator"], wanted)


def test_each_side_pulls_its_own_way():
    objective = adversarial()
    batch = Batch(normal(64, 2).float())
    draws = objective.draw(batch, 0, Rng(0, 0, "student"))
    judge = objective.discriminator

    @torch.no_grad()
    def score(x, unit):
        x = VE.renoise(x, unit, draws.again.t, draws.edge)
        return torch.stack([v.mean() for v in judge(x, draws.again.t)]).mean()

    def logits():
        online, target = objective._at_edge(batch, draws, {})
        return score(online, draws.again.fake), score(target, draws.again.real)

    objective.discriminator_loss(batch, draws).total().backward()
    assert all(p.grad is None for p in objective.student.parameters())
    fake, real = logits()
    with torch.no_grad():
        for p in judge.heads.parameters():
            p -= 0.01 * p.grad
    after = logits()
    assert float(after[1] - after[0]) > float(real - fake)

    terms = objective.loss(batch, draws).terms
    fake, _ = logits()
    terms["adversarial"].backward()
    with torch.no_grad():
        for p in objective.student.parameters():
            p -= 1e-3 * p.grad
    assert float(logits()[0]) > float(fake)


def test_heads_and_student_learn_by_turns():
    objective = adversarial()
    config = TrainConfig(steps=4, batch=8, lr=1e-2)
    data = Arrays(normal(32, 2).float().numpy())
    trainer = Trainer(objective, data, config, {}, torch.device("cpu"))
    names = ("student", "discriminator.heads", "discriminator.denoiser", "step.teacher")
    for step in range(4):
        before = {n: [p.clone() for p in objective.get_submodule(n).parameters()] for n in names}
        logs = trainer.advance()
        changed = {
            n
            for n in names
            if any(
                not a.equal(b)
                for a, b in zip(before[n], objective.get_submodule(n).parameters(), strict=True)
            )
        }
        assert changed == ({"student"} if step % 2 else {"discriminator.heads"})
        assert ("adversarial" in logs) == bool(step % 2)


# Contract and refusals.


@each_path
@pytest.mark.parametrize("count", [1, 2, 4])
def test_contract_and_samples(path, count):
    cut = phases(path, count)
    objective = PhasedConsistency(Offset(GaussianFlowMap(path, DATA)), SameNoise(path), phases=cut)
    contract = objective.contract(DataSpec(shape=(2,), range=None))
    sampling = contract.sampling
    assert (contract.method, sampling.kind, sampling.any_times) == ("pcm", "deterministic", False)
    edges = cut.edges().tolist()
    assert sampling.times == {count: (path.t_max, *edges[:-1])}
    assert (sampling.start.t, sampling.guidance) == (path.t_max, None)
    model = Model(objective.deliver(objective.student), contract)
    found = model.sample(3, seed=5)
    x = SampleNoise([(5, i) for i in range(3)], (2,))(0).double() * sampling.start.std
    wanted = DATA.flow(path, x, full(path.t_max, x), full(path.t_min, x))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="made for"):
        model.sample(3, steps=count + 1)


def test_a_model_that_forgot_labels_may_be_guided():
    for probability, guided in ((0.0, False), (0.1, True)):
        objective = PhasedConsistency(
            GaussianFlowMap(VE),
            SameNoise(VE),
            phases=phases(VE),
            drop=ConditionDrop(probability, {"label": 3}),
        )
        sampling = objective.contract(DataSpec(shape=(2,), labels=3)).sampling
        assert (sampling.guidance is not None) == guided


def test_refusals():
    student, other = GaussianFlowMap(VE), VarianceExploding(0.1, 9.0)
    for step in (TeacherStep(GaussianDenoiser(other), ddim), SameNoise(other)):
        with pytest.raises(UsageError, match="earlier point lives on"):
            PhasedConsistency(student, step, phases=phases(VE))
    with pytest.raises(UsageError, match="grid must go from"):
        PhasedConsistency(student, SameNoise(VE), phases=phases(other))
    judge = FeatureDiscriminator(small().on(other), Batch(torch.zeros(1, 2)))
    with pytest.raises(UsageError, match="discriminator lives on"):
        PhasedConsistency(student, SameNoise(VE), phases=phases(VE), discriminator=judge)
    with pytest.raises(UsageError, match="weight"):
        PhasedConsistency(student, SameNoise(VE), phases=phases(VE), adversarial=-1.0)


def test_frozen_modules_are_named():
    assert adversarial().frozen == ("step.teacher", "discriminator.denoiser")
