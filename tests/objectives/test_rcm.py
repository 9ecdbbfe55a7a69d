"""rCM: sCM's loss, and distribution matching of samples of one to four calls."""

import math

import pytest
import torch
from torch import nn

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError
from fewstep.data import toy
from fewstep.derivatives import finite_difference
from fewstep.model import Model
from fewstep.models import EDM, AbstractDenoiser, Denoiser, Guided, TrigFlow
from fewstep.models.nets import ResidualMLP
from fewstep.objectives import scm
from fewstep.objectives.rcm import RCM, Draws
from fewstep.objectives.shared.trigflow import normalised, trig_flow
from fewstep.paths import Linear, Trig, VarianceExploding
from fewstep.times import LogNormal, ShiftedFlow, Uniform
from fewstep.training.trainer import Trainer, training
from oracles import (
    D,
    Gaussian,
    GaussianConsistency,
    GaussianDenoiser,
    GaussianFlowMap,
    Offset,
    Watched,
    four_points,
    full,
    normal,
)
from small_nets import shaken
from survive import CPU
from tiny import settings

DATA = Gaussian(0.3, 0.7)
PATH = Trig()
each_scale = pytest.mark.parametrize("sigma_data", [0.5, 1.0])


def rcm(student, teacher=None, fake=None, **options) -> RCM:
    path = student.path
    laws = {
        "times": LogNormal(-0.8, 1.6),
        "matching_times": ShiftedFlow(5.0),
    }
    teacher, fake = (d or GaussianDenoiser(path, DATA) for d in (teacher, fake))
    return RCM(student, teacher, fake, **{**laws, **options})


def given(*event: int, b: int = 16, path=PATH, calls: int = 2, r=1.0) -> tuple[Batch, Draws]:
    """Samples of the oracles' data, and of noise, at times over the whole range."""
    x0, noise, *noises = normal(calls + 3, b, *event)
    t = torch.linspace(1e-3, 1.56, b, dtype=D)
    falling = [full(path.t_max / (i + 1), x0) for i in range(calls)]
    times = torch.stack([*falling, t.flip(0)])
    weight = torch.tensor(0.01, dtype=D)
    return Batch(0.3 + 0.7 * x0), Draws(t, noise, full(r, x0), weight, times, torch.stack(noises))


def networks(n: int = 3, **options) -> list[Denoiser]:
    made = []
    for seed in range(n):
        torch.manual_seed(seed)  # of the embedding's frequencies
        net = shaken(ResidualMLP((2,), width=16, blocks=1, **options), seed).double()
        made.append(Denoiser(net, TrigFlow(path=PATH)))
    return made


class Affine(AbstractDenoiser):
    """gain x + shift, whatever the time."""

    cond_keys, two_time = (), False

    def __init__(self, path, gain=0.4, shift=-0.2):
        super().__init__()
        self.path = path
        self.gain, self.shift = (nn.Parameter(torch.tensor(v, dtype=D)) for v in (gain, shift))

    def forward(self, x, t, s=None, cond=None):
        return self.gain * x + self.shift


# The solution.


@each_scale
@pytest.mark.parametrize("event", [(2,), (3, 4, 4)])
def test_both_losses_vanish_where_student_and_fake_are_right(event, sigma_data):
    path = Trig(sigma_data=sigma_data)
    objective = rcm(GaussianConsistency(path, DATA))
    batch, draws = given(*event, path=path)
    first, second = objective.loss(batch, draws), objective.matching_loss(batch, draws)
    assert first.total() < 1e-20
    assert first.logs["tangent"] < 1e-11
    assert second.total() == 0


@pytest.mark.parametrize("wrong", [0.2, -0.2])
def test_both_gradients_point_home(wrong):
    batch, draws = given(3, b=1024)
    student = Offset(GaussianConsistency(PATH, DATA), wrong, ramp=torch.sin)
    x, _ = rcm(student).simulate(draws, {})
    samples = Gaussian(x.mean().item(), x.std().item())
    objective = rcm(student, fake=GaussianDenoiser(PATH, samples))
    for loss in (objective.loss, objective.matching_loss):
        (slope,) = torch.autograd.grad(loss(batch, draws).total(), student.offset)
        assert slope * wrong > 0


@pytest.mark.parametrize("wrong", [0.0, 0.2, -0.2])
def test_the_critic_learns_the_samples(wrong):
    # One call of noise: samples are N(-0.2, (0.4 * 0.5)^2), and four points are a quadratic's law.
    fake = Offset(GaussianDenoiser(PATH, Gaussian(-0.2, 0.2)), wrong)
    noises, t = torch.stack(four_points(Gaussian(0.0, 1.0), 2)), full(0.6, torch.zeros(4))
    times = torch.stack([full(PATH.t_max, t), t])
    draws = Draws(t, noises[0], t, torch.zeros(()), times, noises)
    loss = rcm(Affine(PATH), fake=fake).critic_loss(Batch(noises[0]), draws).total()
    signal, noise = (0.2 * math.cos(0.6)) ** 2, (0.5 * math.sin(0.6)) ** 2
    wanted = (0.2**2 * noise / (signal + noise) + wrong**2) / math.sin(0.6) ** 2
    assert loss.item() == pytest.approx(wanted)
    (slope,) = torch.autograd.grad(loss, fake.offset)
    assert slope * wrong > 0 if wrong else slope.abs() < 1e-12


# The first loss.


@pytest.mark.parametrize("masked", [False, True])
def test_without_matching_it_is_scd(masked):
    student, teacher, fake = networks()
    batch, draws = given(2)
    mask = torch.tensor([[1.0, 0.0]], dtype=D) if masked else None
    batch = Batch(batch.x0, mask=mask)
    objective = rcm(student, teacher, fake, weight=0.0)
    other = scm.SCM(student, teacher, times=objective.times)
    wanted = other.loss(batch, scm.Draws(draws.t, draws.noise, draws.r)).total()
    off = draws._replace(weight=torch.zeros((), dtype=D))
    found = objective.loss(batch, off).total() + objective.matching_loss(batch, off).total()
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(v, [*student.parameters()]) for v in (found, wanted)]
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-14)


@each_scale
@pytest.mark.parametrize("r", [0.0, 0.4, 1.0])
def test_the_rate_is_whole_while_the_rest_warms_up(r, sigma_data):
    path = Trig(sigma_data=sigma_data)
    student = Denoiser(networks(1)[0].net, TrigFlow(path=path))
    batch, draws = given(2, path=path, r=r)
    t = draws.t[:, None].clamp(0.01, 1.55)
    x_t = t.cos() * batch.x0 + sigma_data * t.sin() * draws.noise
    teacher = GaussianDenoiser(path, DATA)

    def flow(x, at):
        return trig_flow(student, x, at[:, 0])

    theirs, h = trig_flow(teacher, x_t, t[:, 0]), 1e-5
    ahead, behind = (flow(x_t + h * s * sigma_data * theirs, t + h * s) for s in (1, -1))
    rate = sigma_data * t.cos() * t.sin() * (ahead - behind) / (2 * h)
    gap = sigma_data * (flow(x_t, t) - theirs)
    g = -t.cos() * (1 - r**2 * t.sin() ** 2).sqrt() * gap - r * t.cos() * t.sin() * x_t - rate
    loss = rcm(student).loss(batch, draws._replace(t=t[:, 0]))
    torch.testing.assert_close(loss.logs["tangent"], g.square().mean().sqrt().detach())
    torch.testing.assert_close(loss.total(), normalised(g).square().mean(), rtol=1e-6, atol=0)


def test_another_derivative_may_be_taken():
    batch, draws = given(2)
    asked = []

    def difference(fn, primals, tangents):
        asked.append(primals)
        return finite_difference(1e-5)(fn, primals, tangents)

    objective = rcm(*networks())
    found = rcm(*networks(), derivative=difference).loss(batch, draws).total()
    torch.testing.assert_close(found, objective.loss(batch, draws).total(), rtol=1e-5, atol=0)
    assert len(asked) == 1
    assert objective.capabilities.forward_mode
    assert not objective.capabilities.second_order


# The second loss.


def test_matching_is_the_official_gradient():
    student, teacher, fake = networks()
    objective = rcm(student, teacher, fake)
    batch, draws = given(2, b=5)
    x, x_t = objective.simulate(draws, {})
    with torch.no_grad():
        real, made = (d(x_t, draws.times[-1]) for d in (teacher, fake))
        g = (made - real) / (x - real).abs().mean(1, keepdim=True).clip(min=1e-5)
    # The official code: 100 and 1 times sums over the event.
    official = ((x - (x - g).detach()) ** 2).sum(1).mean()
    found = objective.matching_loss(batch, draws).total()
    torch.testing.assert_close(100 * 2 * found, official)
    weights = [*student.parameters()]
    for a, b in zip(
        torch.autograd.grad(found * 200, weights),
        torch.autograd.grad((x * 2 * g).sum(1).mean(), weights),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_the_denominator_has_a_floor():
    class Echo(Affine):
        def forward(self, x, t, s=None, cond=None):
            return x

    student = Affine(PATH)
    batch, draws = given(2, b=4)
    draws = draws._replace(times=draws.times.index_fill(0, torch.tensor(2), 0.0))
    objective = rcm(student, Echo(PATH), Offset(Echo(PATH), 1e-4))
    found = objective.matching_loss(batch, draws).total()
    assert found.item() == pytest.approx(0.01 * (1e-4 / 1e-5) ** 2)


def test_samples_are_made_as_users_make_them():
    student = Watched(networks(1)[0])
    student.denoiser = Offset(student.denoiser, 0.1)
    _, draws = given(2, b=5, calls=3)
    objective = rcm(student)
    x, x_t = objective.simulate(draws, {})
    (x_0, t_0, *_), (x_1, t_1, *_), (x_2, t_2, *_) = student.seen
    assert torch.stack([t_0, t_1, t_2, draws.times[3]]).equal(draws.times)
    torch.testing.assert_close(x_0, 0.5 * draws.noises[0])
    for asked, before, then, at, noise in (
        (x_1, x_0, t_0, t_1, draws.noises[1]),
        (x_2, x_1, t_1, t_2, draws.noises[2]),
    ):
        answer = student.denoiser(before, then)
        torch.testing.assert_close(asked, PATH.perturb(answer, noise, at))
        assert not asked.requires_grad
    torch.testing.assert_close(x, student.denoiser(x_2, t_2))
    torch.testing.assert_close(x_t, PATH.perturb(x, draws.noises[3], draws.times[3]))
    # The last call alone, whose answer is its own sample, is what the offset is felt through.
    (slope,) = torch.autograd.grad(x.mean(), student.denoiser.offset)
    assert slope.item() == pytest.approx(1.0)


@pytest.mark.parametrize("phase", [0, 1])
def test_gradients_go_into_one_network(phase):
    objective = rcm(*networks())
    batch, draws = given(2)
    chosen = objective.phases()[phase]
    with training(objective, chosen.module):
        for part in chosen.losses:
            part(batch, draws).total().backward()
    learnt = {"student": objective.student, "critic": objective.fake}[chosen.name]
    assert chosen.module is learnt
    for network in (objective.student, objective.teacher, objective.fake):
        weight = network.net.last.weight
        assert (weight.grad is not None and bool(weight.grad.any())) == (network is learnt)


def test_labels_and_a_guided_teacher():
    student, teacher, fake = (Watched(d) for d in networks(classes=3))
    objective = rcm(student.denoiser, Guided(teacher, {"label": 3}, 2.0), fake)
    labels = torch.tensor([0, 1, 2])
    batch, draws = given(2, b=3)
    batch = Batch(batch.x0, {"label": labels})
    objective.loss(batch, draws)
    objective.matching_loss(batch, draws)
    assert fake.seen[0][3]["label"].equal(labels)
    assert [s[3]["label"].tolist() for s in teacher.seen] == [[0, 1, 2, 3, 3, 3]] * 2


# Draws and turns.


def test_draws():
    objective = rcm(networks(1)[0], warmup=10)
    batch = Batch(normal(4000, 2))
    draws = objective.draw(batch, 13, Rng(0, 13, "critic"))
    again = objective.draw(batch, 13, Rng(0, 13, "critic"))
    assert all(a.equal(b) for a, b in zip(draws, again, strict=True))
    assert len(draws.times) == len(draws.noises) == 4
    assert all(v.dtype == D for v in (draws.t, draws.r, draws.times, draws.weight))
    levels = (0.5 * draws.t.tan()).log()
    assert levels.mean().item() == pytest.approx(-0.8, abs=0.1)
    assert levels.std().item() == pytest.approx(1.6, rel=0.05)
    calls, end = draws.times[:-1], draws.times[-1]
    assert calls[0].equal(full(PATH.t_max, batch.x0))
    assert (calls.diff(dim=0) <= 0).all()
    assert calls[1].std() > 0.1
    # Shifted flow: t / (1 - t) at a uniform share is 5 u / (1 - u).
    level = 0.5 * end.tan()
    share = level / (5 + level)
    assert share.mean().item() == pytest.approx(0.5, abs=0.02)
    assert share.std().item() == pytest.approx(12**-0.5, rel=0.04)
    # The lower of two such draws.
    lower = 0.5 * calls[2].tan()
    assert (lower / (5 + lower)).mean().item() == pytest.approx(1 / 3, abs=0.02)
    every_noise = torch.cat([draws.noise[None], draws.noises])
    assert len({round(v.sum().item(), 6) for v in every_noise}) == 5


def test_a_step_is_of_the_student_or_of_its_critic():
    objective = rcm(networks(1)[0], warmup=3, every=4, calls=4, rate=0.3)
    student, critic = objective.phases()
    assert [student.due(i) for i in range(12)] == [
        *[True] * 3,
        *[True, False, False, False] * 2,
        True,
    ]
    assert all(student.due(i) != critic.due(i) for i in range(40))
    assert (student.rate, critic.rate) == (1.0, 0.3)
    batch = Batch(normal(3, 2))
    made = {"student": [], "critic": []}
    for step in range(40):
        phase = student if student.due(step) else critic
        draws = phase.draw(batch, step, Rng(0, step, phase.name))
        made[phase.name].append(len(draws.times) - 1)
    for calls in made.values():
        assert calls == [i % 4 + 1 for i in range(len(calls))]
    assert len(made["student"]) == 3 + 10


@pytest.mark.parametrize(
    ("warmup", "step", "r", "weight"),
    [(100, 0, 0, None), (100, 25, 0.25, None), (100, 100, 1, 0.01), (0, 0, 1, 0.01)],
)
def test_warm_up(warmup, step, r, weight):
    student, *others = (Watched(d) for d in networks())
    objective = rcm(student, *others, warmup=warmup)
    draws = objective.draw(Batch(normal(4, 2)), step, Rng(0, step, "student"))
    assert draws.r.tolist() == [r] * 4
    assert draws.weight == weight
    loss = objective.matching_loss(Batch(normal(4, 2)), draws)
    assert set(loss.terms) == ({"matching"} if weight else set())
    # What is not learnt is not computed.
    assert all(bool(d.seen) == bool(weight) for d in (student, *others))


def test_a_trainer_takes_it():
    path = Trig(t_max=1.56)
    objective = rcm(
        *(Denoiser(d.net.float(), EDM(sigma_data=0.5)).on(path) for d in networks()),
        warmup=1,
        every=2,
    )
    trainer = Trainer(objective, toy("two-modes", 64), settings(steps=4), {}, CPU)
    rows = [trainer.advance() for _ in range(4)]
    students = [{"consistency", "tangent"} <= {*row} for row in rows]
    assert students == [True, True, False, True]
    assert ["denoising" in row for row in rows] == [not v for v in students]
    assert [{"matching", "lag"} <= {*row} for row in rows] == [False, True, False, True]
    assert float(rows[0]["loss"]) == float(rows[0]["consistency"])


# Delivery.


def test_the_contract():
    path = Trig(t_max=math.atan(160))
    student = GaussianConsistency(path, DATA)
    times = {2: (path.t_max, 1.1)}
    contract = rcm(student).contract(DataSpec(shape=(2,), range=None)).with_times(times)
    assert contract.method == "rcm"
    assert contract.sampling.kind == "renoise"
    assert contract.sampling.any_times
    assert contract.sampling.start.t == path.t_max
    assert contract.sampling.start.std == 0.5
    assert contract.sampling.times == {1: (path.t_max,), **times}
    student.register_parameter("unused", nn.Parameter(torch.zeros(())))
    model = Model(student, contract)
    for steps in (1, 2, 4):
        x = model.sample(4000, steps=steps)
        assert x.mean().item() == pytest.approx(DATA.mean, abs=0.04)
        assert x.std().item() == pytest.approx(DATA.std, rel=0.04)


@pytest.mark.parametrize(
    ("student", "change", "match"),
    [
        (GaussianConsistency(VarianceExploding()), {}, "Trig path from 0"),
        (GaussianConsistency(Linear()), {}, "Trig path"),
        (GaussianConsistency(Trig(t_min=0.1)), {}, "t_min=0.1"),
        (GaussianFlowMap(PATH), {}, r"2 time\(s\)"),
        (GaussianConsistency(PATH), {"fake": GaussianFlowMap(PATH)}, r"2 time\(s\)"),
        (GaussianConsistency(PATH), {"fake": GaussianDenoiser(Linear())}, "Trig.* on Linear"),
        (GaussianConsistency(PATH), {"times": Uniform(0.5, 2.0)}, "from 0.5 to 2"),
        (GaussianConsistency(PATH), {"matching_times": Uniform(0.5, 2.0)}, "from 0.5 to 2"),
        (GaussianConsistency(PATH), {"teacher": GaussianDenoiser(Linear())}, "teacher lives on"),
        (GaussianConsistency(PATH), {"warmup": -1}, "warmup >= 0.* got -1"),
        (GaussianConsistency(PATH), {"every": 1}, "every >= 2"),
        (GaussianConsistency(PATH), {"calls": 0}, "calls >= 1"),
    ],
)
def test_refusals(student, change, match):
    with pytest.raises(UsageError, match=match):
        rcm(student, **change)
