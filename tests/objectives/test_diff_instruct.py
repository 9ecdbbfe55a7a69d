"""Diff-Instruct and variational score distillation against closed forms of Gaussians."""

import pytest
import torch
from torch import Tensor, nn

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError, expand, per_sample
from fewstep.data import Arrays
from fewstep.model import Model, SampleNoise
from fewstep.models import EDM, AbstractDenoiser, Denoiser, Guided
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.diff_instruct import DiffInstruct, noise_gain
from fewstep.objectives.shared.gradients import matching_gradient
from fewstep.objectives.shared.matching import Compared, FewSteps, Made
from fewstep.objectives.shared.weights import karras_weight, snr_weight, unweighted
from fewstep.paths import Linear, VarianceExploding, VariancePreserving
from fewstep.times import LogNormal, Uniform
from fewstep.training.config import TrainConfig
from fewstep.training.trainer import Trainer
from oracles import (
    D,
    Gaussian,
    GaussianDenoiser,
    Offset,
    full,
    normal,
    path_id,
)
from small_nets import shaken

VE = VarianceExploding(0.01, 20.0)
VP = VariancePreserving(1e-3, 1.0)
PATHS = [VE, VP, Linear(0.0, 1.0)]
each_path = pytest.mark.parametrize("path", PATHS, ids=path_id)
WANTED, MADE = Gaussian(0.3, 0.7), Gaussian(-0.1, 0.4)


class Line(AbstractDenoiser):
    """std times the unit noise that it is asked, plus mean: a generator of a Gaussian law."""

    cond_keys, two_time = (), False

    def __init__(self, path, law: Gaussian) -> None:
        super().__init__()
        self.path = path
        self.mean, self.std = (nn.Parameter(torch.tensor(v, dtype=D)) for v in law)

    def forward(self, x, t, s=None, cond=None):
        return self.mean + self.std * x / expand(self.path.coefficients(t).sigma, x)


def objective_of(path, student, fake: AbstractDenoiser, **options) -> DiffInstruct:
    times = Uniform(path.t_min + 0.01, 0.98 * path.t_max)
    given = {"times": times, "critic_times": times, "weight": unweighted}
    generate = FewSteps((0.9 * path.t_max,))
    teacher = GaussianDenoiser(path, WANTED)
    return DiffInstruct(student, teacher, fake, generate=generate, **(given | options))


def signs(*event: int) -> tuple[Tensor, Tensor]:
    """Unit noise, of samples and of the path, over which means of quadratics are exact."""
    z, noise = (torch.tensor(v, dtype=D) for v in ([1.0, 1, -1, -1], [1.0, -1, 1, -1]))
    return tuple(v.reshape(-1, *[1] * len(event)).expand(4, *event).clone() for v in (z, noise))


def drawn(time: float, *event: int) -> Compared:
    z, noise = signs(*event)
    return Compared(Made(z[None], torch.tensor(0)), full(time, z), noise)


def moments(path, law: Gaussian, time: float) -> Tensor:
    return law.variance(path, torch.tensor([time], dtype=D))[0]


# Closed forms.


@each_path
@pytest.mark.parametrize("learnt_on", [MADE, Gaussian(0.2, 0.9)], ids=["fresh", "stale"])
def test_gradient_of_the_divergence(path, learnt_on):
    """With the gain of w = 1 it is KL's, between the noised laws; a stale critic's is known too."""
    time, event = 0.3 * path.t_max, (3,)
    student = Line(path, MADE)
    fake = GaussianDenoiser(path, learnt_on)
    objective = objective_of(path, student, fake, gain=snr_weight)
    objective.loss(Batch(signs(*event)[0]), drawn(time, *event)).total().backward()
    p, q = (moments(path, law, time) for law in (WANTED, learnt_on))
    alpha = path.coefficients(torch.tensor([time], dtype=D)).alpha[0]
    mean = alpha**2 * ((MADE.mean - WANTED.mean) / p - (MADE.mean - learnt_on.mean) / q)
    std = alpha**2 * (1 / p - 1 / q) * MADE.std
    torch.testing.assert_close(student.mean.grad, mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(student.std.grad, std, rtol=1e-9, atol=1e-12)
    if learnt_on == MADE:
        b, a = (torch.tensor(v, dtype=D, requires_grad=True) for v in MADE)
        made = alpha**2 * a**2 + path.coefficients(torch.tensor([time], dtype=D)).sigma[0] ** 2
        kl = (made / p + alpha**2 * (b - WANTED.mean) ** 2 / p + (p / made).log()) / 2
        torch.testing.assert_close(torch.autograd.grad(kl, (b, a)), (mean, std))


@each_path
def test_it_is_dmd_without_the_normaliser(path):
    t = torch.linspace(0.1, 0.8, 4, dtype=D) * path.t_max
    draws = drawn(0.0, 3)._replace(t=t, noise=normal(4, 3))
    student = Line(path, MADE)
    objective = objective_of(path, student, GaussianDenoiser(path, MADE))
    batch = Batch(normal(4, 3))
    loss = objective.loss(batch, draws)
    loss.total().backward()
    x = (MADE.mean + MADE.std * draws.made.noise[0]).requires_grad_()
    x_t = path.perturb(x, draws.noise, t)
    real, fake = objective.teacher(x_t, t), objective.fake(x_t, t)
    size = per_sample((x - real).abs()).detach()
    gradient = matching_gradient(x, real, fake) * size[:, None]
    torch.testing.assert_close(loss.total(), (gradient**2).mean() / 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(student.mean.grad, gradient.mean(1).mean(), rtol=1e-10, atol=0)


def test_noise_gain_is_variational_score_distillation():
    t = torch.linspace(0.02, 0.98, 4, dtype=D)
    draws = drawn(0.0, 3)._replace(t=t, noise=normal(4, 3))
    student, fake = Line(VP, MADE), GaussianDenoiser(VP, MADE)
    objective = objective_of(VP, student, fake, gain=noise_gain)
    objective.loss(Batch(normal(4, 3)), draws).total().backward()
    x_t = VP.perturb(MADE.mean + MADE.std * draws.made.noise[0], draws.noise, t)
    noises = [VP.noise(x_t, denoiser(x_t, t), t) for denoiser in (objective.teacher, fake)]
    sigma = expand(VP.coefficients(t).sigma, x_t)
    wanted = (sigma**2 * (noises[0] - noises[1])).mean()
    torch.testing.assert_close(student.mean.grad, wanted, rtol=1e-9, atol=1e-12)


@each_path
@pytest.mark.parametrize("gain", [unweighted, noise_gain])
def test_the_wanted_law_is_a_fixed_point(path, gain):
    student = Line(path, WANTED)
    objective = objective_of(path, student, GaussianDenoiser(path, WANTED), gain=gain)
    batch = Batch(normal(16, 2))
    loss = objective.loss(batch, objective.draw(batch, 0, Rng(0, 0, "student")))
    loss.total().backward()
    assert loss.total().item() < 1e-20
    assert max(student.mean.grad.abs().item(), student.std.grad.abs().item()) < 1e-12


@each_path
@pytest.mark.parametrize("gain", [unweighted, noise_gain])
@pytest.mark.parametrize("shift", [(-0.4, 0.0), (0.4, 0.0), (0.0, -0.3), (0.0, 0.3)])
def test_the_gradient_points_home(path, gain, shift):
    law = Gaussian(WANTED.mean + shift[0], WANTED.std + shift[1])
    student = Line(path, law)
    objective = objective_of(path, student, GaussianDenoiser(path, law), gain=gain)
    objective.loss(Batch(normal(4, 2)), drawn(0.4 * path.t_max, 2)).total().backward()
    found = student.mean.grad * shift[0] + student.std.grad * shift[1]
    assert found > 1e-6


@each_path
def test_the_critic_learns_the_law_of_samples(path):
    best, draws = GaussianDenoiser(path, MADE), drawn(0.4 * path.t_max, 2)
    for offset, scale, sign in ((0.0, 1.0, 0), (0.2, 1.0, 1), (-0.2, 1.0, -1)):
        fake = Offset(best, offset, scale)
        objective = objective_of(path, Line(path, MADE), fake, weight=karras_weight(0.5))
        loss = objective.critic_loss(Batch(normal(4, 2)), draws)
        loss.total().backward()
        grad = fake.offset.grad.item()
        assert abs(grad) < 1e-10 if sign == 0 else grad * sign > 0.01
    x = MADE.mean + MADE.std * draws.made.noise[0]
    each = per_sample((fake(path.perturb(x, draws.noise, draws.t), draws.t) - x) ** 2)
    wanted = ((path.snr(draws.t) + 4) * each).mean()
    torch.testing.assert_close(loss.total(), wanted)
    assert all(p.grad is None for p in objective.student.parameters())


# Dropout, draws, phases.


def small(seed: int = 0, **options) -> Denoiser:
    torch.manual_seed(seed)
    return Denoiser(shaken(ResidualMLP((2,), 16, 2, **options), seed), EDM(sigma_data=0.5))


def tiny(teacher: AbstractDenoiser | None = None, **options) -> DiffInstruct:
    given = {"generate": FewSteps((1.0,)), "weight": karras_weight(0.5), **options}
    return DiffInstruct(small(0), teacher or small(1, dropout=0.5), small(1, dropout=0.5), **given)


@pytest.mark.parametrize("dropout", [True, False])
def test_both_networks_drop_the_same(dropout):
    objective = tiny()
    objective.train(dropout)
    objective.teacher.eval()
    batch = Batch(normal(32, 2).float())
    draws = objective.draw(batch, 0, Rng(0, 0, "student"))
    torch.manual_seed(1)
    one = objective.loss(batch, draws)
    assert one.total().item() == 0
    assert not objective.teacher.training
    # The masks are there: of the answers, which the lag compares with samples.
    objective.fake.net.last.bias.data += 0.1
    lags = [objective.loss(batch, draws).logs["lag"].item() for _ in range(2)]
    assert (lags[0] != lags[1]) == dropout


def test_a_guided_teacher_drops_nothing():
    modes = []

    class Watching(GaussianDenoiser):
        def forward(self, x, t, s=None, cond=None):
            modes.append(self.training)
            return super().forward(x, t, s, cond)

    guided = Guided(Watching(VarianceExploding()), {}, 3.0)
    for teacher in (guided, guided.denoiser):
        objective = tiny(teacher)
        objective.train()
        batch = Batch(normal(4, 2).float())
        objective.loss(batch, objective.draw(batch, 0, Rng(0, 0, "student")))
    assert modes == [False, True]


def test_draws():
    objective = tiny(critic_times=Uniform(5.0, 6.0))
    assert objective.times == LogNormal()
    batch = Batch(torch.zeros(512, 2))
    one, two = (objective.draw(batch, 3, Rng(0, 3, "student")) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(one[1:], two[1:], strict=True))
    assert one.made.noise.equal(two.made.noise)
    assert one.t.log().mean().item() == pytest.approx(-1.2, abs=0.2)
    assert not one.noise.equal(one.made.noise[0])
    critic = objective.draw_critic(batch, 3, Rng(0, 3, "critic"))
    assert 5 <= critic.t.min() < critic.t.max() <= 6


@pytest.mark.parametrize("updates", [1, 3])
def test_each_phase_moves_its_own(updates):
    objective = tiny(critic_updates=updates)
    objective.fake.net.last.bias.data += 0.1  # else it answers as the teacher
    data = Arrays(normal(32, 2).float().numpy())
    config = TrainConfig(steps=4, batch=8, lr=1e-2)
    trainer = Trainer(objective, data, config, {}, torch.device("cpu"))
    for step in range(4):
        names = ("student", "fake", "teacher")
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
        due = step % updates == 0
        assert changed == ({"student", "fake"} if due else {"fake"})
        assert {"denoising"} <= logs.keys()
        assert ({"matching", "lag", "brightness"} <= logs.keys()) == due


def test_contract_and_samples():
    objective = tiny()
    contract = objective.contract(DataSpec(shape=(2,), range=None))
    assert (contract.method, contract.sampling.times) == ("diff-instruct", {1: (1.0,)})
    assert contract.sampling.start.std == 1.0
    model = Model(objective.deliver(objective.student), contract)
    x = SampleNoise([(5, i) for i in range(3)], (2,))(0)
    wanted = objective.student(x, torch.ones(3, dtype=D))
    torch.testing.assert_close(model.sample(3, seed=5), wanted, rtol=1e-5, atol=1e-5)


def test_refusals():
    with pytest.raises(UsageError, match="critic_updates"):
        tiny(critic_updates=0)
    with pytest.raises(UsageError, match="teacher lives on"):
        tiny(GaussianDenoiser(VE))
    rest = {"generate": FewSteps((1.0,)), "weight": unweighted}
    student = GaussianDenoiser(VE)
    with pytest.raises(UsageError, match="copy of the teacher"):
        DiffInstruct(student, student, GaussianDenoiser(VP), **rest)
    networks = [GaussianDenoiser(VP) for _ in range(3)]
    DiffInstruct(*networks, **rest)  # noise levels, which every path converts
    with pytest.raises(UsageError, match=r"from 0.5 to 2, and VariancePreserving"):
        DiffInstruct(*networks, critic_times=Uniform(0.5, 2.0), **rest)
