"""DMD2: closed forms of both terms, what is trained by what, calls of few steps."""

import math

import pytest
import torch
from torch import Tensor, nn

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError, expand
from fewstep.data import toy
from fewstep.model import Model, SampleNoise
from fewstep.models import EDM, AbstractDenoiser, Denoiser, Guided, Judge
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.dmd2 import DMD2, Draws
from fewstep.objectives.shared.drop import Draws as Noised
from fewstep.objectives.shared.matching import FewSteps, Made
from fewstep.objectives.shared.weights import karras_weight, unweighted
from fewstep.paths import Linear, Trig, VarianceExploding, VariancePreserving
from fewstep.times import Uniform, karras
from fewstep.training.config import TrainConfig
from fewstep.training.trainer import Trainer, training
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
)
from small_nets import shaken

DATA = Gaussian(0.3, 0.7)
VE = VarianceExploding(0.002, 80.0)
PATHS = [VE, VariancePreserving(), Linear(), Trig()]
each_path = pytest.mark.parametrize("path", PATHS, ids=path_id)


class Generator(AbstractDenoiser):
    """Samples N(mean, std^2), of noise at t_max and of samples with noise at other times."""

    cond_keys, two_time = (), False

    def __init__(self, path, data: Gaussian = DATA) -> None:
        super().__init__()
        self.path, self.data = path, data
        self.mean, self.std = (nn.Parameter(torch.tensor(v, dtype=D)) for v in data)

    def forward(self, x, t, s=None, cond=None):
        alpha, sigma, _, _ = self.path.coefficients(t)
        starts = t == self.path.t_max
        mean = torch.where(starts, 0.0, alpha * self.data.mean)
        std = torch.where(starts, sigma, self.data.variance(self.path, t).sqrt())
        return self.mean + self.std * (x - expand(mean, x)) / expand(std, x)


class BestJudge(nn.Module):
    """scale ln(p_t/q_t) + bias, of data against samples; counts whose features it is given."""

    def __init__(self, path, data: Gaussian, samples: Gaussian) -> None:
        super().__init__()
        self.path, self.data, self.samples = path, data, samples
        self.scale, self.bias = (nn.Parameter(torch.tensor(v, dtype=D)) for v in (1.0, 0.0))
        self.asked: list[tuple] = []

    def log_density(self, law: Gaussian, x: Tensor, t: Tensor) -> Tensor:
        mean = expand(self.path.coefficients(t).alpha * law.mean, x)
        std = expand(law.variance(self.path, t).sqrt(), x).expand_as(x)
        return torch.distributions.Normal(mean, std).log_prob(x).flatten(1).sum(1)

    def forward(self, denoiser, x, t, cond=None):
        self.asked.append((denoiser, x, t, cond))
        ratio = self.log_density(self.data, x, t) - self.log_density(self.samples, x, t)
        return [self.scale * ratio + self.bias]


class Feels(nn.Module):
    """Judges by the mean of what the denoiser answers."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0, dtype=D))

    def forward(self, denoiser, x, t, cond=None):
        return [self.gain * denoiser(x, t, None, cond).flatten(1).mean(1)]


def law(path, low: float = 0.1, high: float = 0.9) -> Uniform:
    return Uniform(low * min(path.t_max, 2.0), high * min(path.t_max, 2.0))


def dmd2(student, teacher=None, fake=None, **options) -> DMD2:
    path = student.path
    laws = {name: law(path) for name in ("times", "critic_times", "adversarial_times")}
    given = {"generate": FewSteps((path.t_max,)), "weight": unweighted, **laws, **options}
    return DMD2(student, teacher or GaussianDenoiser(path), fake or GaussianDenoiser(path), **given)


def few(path) -> FewSteps:
    return FewSteps(tuple(part * path.t_max for part in (1.0, 0.6, 0.3, 0.1)))


def drawn(objective: DMD2, batch: Batch, step: int = 0, critic: bool = False, call=None) -> Draws:
    draw = objective.draw_critic if critic else objective.draw
    draws = draw(batch, step, Rng(0, step, "critic" if critic else "student"))
    if call is None:
        return draws
    return draws._replace(made=Made(draws.made.noise, torch.tensor(call)))


def grads(objective: DMD2, term: Tensor) -> tuple[float, float]:
    found = torch.autograd.grad(term, [*objective.student.parameters()], retain_graph=True)
    return tuple(map(float, found))


# Matching.


@each_path
@pytest.mark.parametrize("call", range(4))
def test_nothing_to_learn_where_samples_are_the_teachers(path, call):
    objective = dmd2(Generator(path), generate=few(path))
    batch = Batch(normal(64, 3))
    loss = objective.loss(batch, drawn(objective, batch, call=call))
    assert loss.terms.keys() == {"matching"}
    assert float(loss.total().detach()) == 0.0
    assert grads(objective, loss.total()) == (0.0, 0.0)


@each_path
@pytest.mark.parametrize("call", [0, 3])
def test_the_gradient_is_that_of_the_scores(path, call):
    made = Gaussian(0.8, 0.4)
    objective = dmd2(
        Generator(path, made),
        GaussianDenoiser(path, DATA),
        GaussianDenoiser(path, made),
        generate=few(path),
    )
    batch = Batch(normal(16, 3))
    draws = drawn(objective, batch, call=call)
    t, noise, _ = draws.noised
    x = objective.generate(objective.student, batch, draws.made, {}).detach()
    alpha, sigma, _, _ = path.coefficients(t)
    x_t = path.perturb(x, noise, t)
    ratio = torch.zeros_like(x_t, requires_grad=True)
    judge = BestJudge(path, DATA, made)
    (s_r,) = torch.autograd.grad(judge.log_density(DATA, x_t + ratio, t).sum(), ratio)
    (s_f,) = torch.autograd.grad(judge.log_density(made, x_t + ratio, t).sum(), ratio)
    size = (x - objective.teacher(x_t, t)).abs().mean(1)
    g = expand(sigma**2 / alpha / size, x) * (s_f - s_r)
    loss = objective.loss(batch, draws)
    torch.testing.assert_close(loss.total(), g.square().mean() / 2)
    # Of mean and std, through x = mean + std z.
    z = (x - made.mean) / made.std
    assert grads(objective, loss.total()) == pytest.approx((float(g.mean()), float((g * z).mean())))


@each_path
@pytest.mark.parametrize(
    ("made", "which", "sign"),
    [
        (Gaussian(0.8, 0.7), 0, 1),
        (Gaussian(-0.2, 0.7), 0, -1),
        (Gaussian(0.3, 1.2), 1, 1),
        (Gaussian(0.3, 0.3), 1, -1),
    ],
)
def test_a_wrong_generator_is_led_home(path, made, which, sign):
    objective = dmd2(Generator(path, made), None, GaussianDenoiser(path, made))
    batch = Batch(normal(4000, 3))
    found = grads(objective, objective.loss(batch, drawn(objective, batch)).total())
    assert sign * found[which] > 0.1


def test_what_is_logged():
    made = Gaussian(0.8, 0.7)
    objective = dmd2(Generator(VE, made), None, GaussianDenoiser(VE, made))
    batch = Batch(DATA.mean + DATA.std * normal(4000, 3))
    logs = objective.loss(batch, drawn(objective, batch)).logs
    # The fake denoiser is the best one: no lag.
    assert float(logs["lag"]) == pytest.approx(0.0, abs=0.1)
    assert float(logs["brightness"]) == pytest.approx(0.5, abs=0.05)
    assert float(logs["spread"]) == pytest.approx(1.0, abs=0.05)
    assert not any(value.requires_grad for value in logs.values())


# The judge.


@each_path
def test_gradient_through_the_best_judge(path):
    made = Gaussian(0.6, 0.5)
    judge = BestJudge(path, DATA, made)
    objective = dmd2(Generator(path, made), judge=judge, adversarial=0.5)
    batch = Batch(normal(16, 3))
    draws = drawn(objective, batch)
    x = objective.generate(objective.student, batch, draws.made, {}).detach()
    t, noise, _ = draws.fake
    x_t = path.perturb(x, noise, t).requires_grad_()
    log_p, log_q = (judge.log_density(law, x_t, t) for law in (DATA, made))
    (s_r,), (s_f,) = (torch.autograd.grad(v.sum(), x_t, retain_graph=True) for v in (log_p, log_q))
    log_p, log_q = log_p.detach(), log_q.detach()
    alpha = path.coefficients(t).alpha
    g = expand(0.5 * alpha / (1 + (log_p - log_q).exp()), x) * (s_f - s_r)
    loss = objective.loss(batch, draws)
    softplus = (1 + (log_q - log_p).exp()).log().mean()
    torch.testing.assert_close(loss.terms["adversarial"], 0.5 * softplus)
    z = (x - made.mean) / made.std
    wanted = float(g.sum() / 16), float((g * z).sum() / 16)
    assert grads(objective, loss.terms["adversarial"]) == pytest.approx(wanted)


@each_path
def test_the_best_judge_has_nothing_to_learn(path):
    made = Gaussian(0.6, 0.5)
    judge = BestJudge(path, DATA, made)
    objective = dmd2(Generator(path, made), judge=judge, adversarial_critic=1.0)
    batch = Batch(DATA.mean + DATA.std * normal(200_000, 1))
    draws = drawn(objective, batch, critic=True)
    loss = objective.judge_loss(batch, draws)
    assert loss.terms.keys() == {"judge"}

    def gradient(scale: float, bias: float) -> tuple[float, ...]:
        with torch.no_grad():
            judge.scale.fill_(scale), judge.bias.fill_(bias)
        term = objective.judge_loss(batch, draws).total()
        return tuple(map(float, torch.autograd.grad(term, [judge.scale, judge.bias])))

    assert gradient(1.0, 0.0) == pytest.approx((0.0, 0.0), abs=0.005)
    assert gradient(1.3, 0.0)[0] > 0.005 > -0.005 > gradient(0.7, 0.0)[0]
    assert gradient(1.0, 0.3)[1] > 0.02 > -0.02 > gradient(1.0, -0.3)[1]
    assert float(loss.logs["realism/real"]) > 0.5 > float(loss.logs["realism/fake"])


def test_weights_and_heads_of_the_judges_terms():
    class Two(nn.Module):
        def forward(self, denoiser, x, t, cond=None):
            return [x.mean(1), 3 * x]

    x0, objective = normal(8, 3), dmd2(Generator(VE), judge=Two())
    draws = drawn(objective, Batch(x0), critic=True)
    made = objective.generate(objective.student, Batch(x0), draws.made, {}).detach()
    real, fake = (
        x + expand(at.t, x) * at.noise for x, at in ((x0, draws.real), (made, draws.fake))
    )

    def up(v: Tensor) -> Tensor:
        return (1 + v.exp()).log().mean()

    wanted = (up(-real.mean(1)) + up(fake.mean(1)) + up(-3 * real) + up(3 * fake)) / 2
    torch.testing.assert_close(objective.judge_loss(Batch(x0), draws).total(), 1e-2 * wanted)
    term = objective.loss(Batch(x0), draws).terms["adversarial"]
    torch.testing.assert_close(term, 3e-3 * (up(-fake.mean(1)) + up(-3 * fake)) / 2)


def test_the_penalty_is_on_changes_of_logits_by_noise():
    class Sum(nn.Module):
        def forward(self, denoiser, x, t, cond=None):
            return [x.sum(1)]

    objective = dmd2(
        Generator(VE), judge=Sum(), penalty=7.0, penalty_std=0.2, adversarial_critic=0.5
    )
    batch = Batch(normal(8, 3))
    draws = drawn(objective, batch, critic=True)
    loss = objective.judge_loss(batch, draws)
    wanted = 0.5 * 7.0 * (0.2 * draws.disturbance.sum(1)).square().mean()
    torch.testing.assert_close(loss.terms["penalty"], wanted)
    without = draws._replace(disturbance=None)
    torch.testing.assert_close(objective.judge_loss(batch, without).total(), loss.terms["judge"])


@pytest.mark.parametrize("judged", ["fake", "teacher"])
def test_whose_features_are_judged(judged):
    judge, inner = BestJudge(VE, DATA, DATA), GaussianDenoiser(VE)
    teacher, fake = Guided(inner, {}, 1.5), GaussianDenoiser(VE)
    objective = dmd2(Generator(VE), teacher, fake, judge=judge, judged=judged, penalty=1.0)
    batch = Batch(normal(4, 3), {"label": torch.arange(4)})
    teacher.null["label"] = 9
    draws = drawn(objective, batch, critic=True)
    objective.loss(batch, draws)
    objective.judge_loss(batch, draws)
    assert len(judge.asked) == 4
    for denoiser, _, _, cond in judge.asked:
        assert denoiser is (fake if judged == "fake" else inner)
        assert cond["label"].equal(batch.cond["label"])


def test_as_it_is():
    judge = BestJudge(VE, DATA, DATA)
    objective = dmd2(Generator(VE), judge=judge, adversarial_times=None)
    batch = Batch(normal(4, 3))
    draws = drawn(objective, batch, critic=True)
    x = objective.generate(objective.student, batch, draws.made, {})
    objective.judge_loss(batch, draws)
    for (_, seen, t, _), sample in zip(judge.asked, (batch.x0, x), strict=True):
        assert seen.equal(sample)
        assert t.equal(full(0.002, sample))


# What is trained by what.


@pytest.mark.parametrize("judged", ["fake", "teacher"])
def test_gradients_reach_what_is_trained_only(judged):
    teacher, fake = (Offset(GaussianDenoiser(VE), offset=v) for v in (0.1, 0.2))
    objective = dmd2(Generator(VE), teacher, fake, judge=Feels(), judged=judged, generate=few(VE))
    batch = Batch(normal(8, 3))

    def trained() -> set[str]:
        names = {k for k, p in objective.named_parameters() if p.grad is not None}
        objective.zero_grad()
        return {name.rpartition(".")[0] for name in names}

    student, critic = objective.phases()
    with training(objective, student.module):
        loss = student.loss(batch, drawn(objective, batch))
        pulls = [grads(objective, loss.terms[k]) for k in ("matching", "adversarial")]
        assert all(abs(v) > 1e-6 for pull in pulls for v in pull)
        loss.total().backward()
    assert trained() == {"student"}
    with training(objective, critic.module):
        draws = drawn(objective, batch, critic=True)
        found = []
        for part in critic.losses:
            part(batch, draws).total().backward()
            found.append(trained())
    both = {"critic.judge", "critic.fake"} if judged == "fake" else {"critic.judge"}
    assert found == [{"critic.fake"}, both]
    assert not any(p.requires_grad for p in teacher.parameters())
    # Nor do samples carry a gradient to the critic's losses where nobody froze the student.
    for module in (objective.student, objective.critic):
        module.requires_grad_(True)
    for part in critic.losses:
        part(batch, draws).total().backward()
    assert trained() == {"critic.fake", "critic.judge"}


@each_path
def test_the_fakes_error(path):
    made = Gaussian(0.8, 0.4)
    best = Offset(GaussianDenoiser(path, made))
    objective = dmd2(Generator(path, made), None, best, weight=karras_weight(0.5))
    batch = Batch(normal(20_000, 1))
    draws = drawn(objective, batch, critic=True)
    t, noise, _ = draws.noised
    x = objective.generate(objective.student, batch, draws.made, {}).detach()
    weight = (path.coefficients(t).alpha / path.coefficients(t).sigma) ** 2 + 4

    def gradient(offset: float) -> float:
        with torch.no_grad():
            best.offset.fill_(offset)
        term = objective.critic_loss(batch, draws).total()
        answer = best(path.perturb(x, noise, t), t)
        torch.testing.assert_close(term, (weight * (answer - x).square().mean(1)).mean())
        (found,) = torch.autograd.grad(term, best.offset)
        return float(found) / float(2 * weight.mean())

    assert gradient(0.0) == pytest.approx(0.0, abs=0.05)
    assert gradient(0.3) == pytest.approx(0.3, abs=0.05)
    assert gradient(-0.3) == pytest.approx(-0.3, abs=0.05)


def small(seed: int, classes: int = 0) -> Denoiser:
    torch.manual_seed(seed)
    return Denoiser(shaken(ResidualMLP((2,), 8, 2, classes), seed), EDM(sigma_data=0.5))


def test_ten_updates_of_the_critic_and_two_of_the_generator():
    data = toy("two-modes", 64)
    student, teacher, fake = map(small, range(3))
    judge = Judge(fake, data.batch(torch.arange(2)), width=4)
    objective = DMD2(
        student,
        teacher,
        fake,
        judge=judge,
        generate=FewSteps((80.0, 1.0)),
        weight=karras_weight(0.5),
    )
    config = TrainConfig(steps=10, batch=6, accumulation=2, lr=1e-2)
    trainer = Trainer(objective, data, config, {}, torch.device("cpu"))
    parts = {"student": student, "teacher": teacher, "fake": fake, "judge": judge}

    def weights() -> dict[str, Tensor]:
        flat = nn.utils.parameters_to_vector
        return {k: flat(m.parameters()).detach().clone() for k, m in parts.items()}

    before, moved = weights(), []
    for _ in range(10):
        row, after = trainer.advance(), weights()
        assert all(math.isfinite(value) for value in row.values())
        moved.append({k for k in parts if not after[k].equal(before[k])})
        before = after
        critic = {"denoising", "judge", "realism/real", "realism/fake"}
        generator = {"matching", "adversarial", "lag", "brightness", "spread"}
        assert critic <= row.keys()
        assert (generator <= row.keys()) == ("student" in moved[-1])
    assert moved == ([{"student", "fake", "judge"}] + [{"fake", "judge"}] * 4) * 2
    counts = {
        name: {int(state["step"]) for state in optimizer.state.values()}
        for name, optimizer in trainer.optimizers.items()
    }
    assert counts == {"student": {2}, "critic": {10}}
    names = trainer.state()[0]
    assert any(name.startswith("objective.critic.judge.") for name in names)
    assert not any("teacher" in name for name in names)


# Several calls.


class Recording(Watched):
    """Says of each call whether it had a gradient."""

    def forward(self, x, t, s=None, cond=None):
        answer = super().forward(x, t, s, cond)
        self.seen[-1] = (x, t, answer.requires_grad)
        return answer


@each_path
@pytest.mark.parametrize("call", range(4))
def test_later_calls_are_asked_what_earlier_ones_made(path, call):
    made = Gaussian(0.8, 0.4)
    student = Recording(Generator(path, made))
    objective = dmd2(student, generate=few(path))
    batch = Batch(normal(5, 3))
    draws = drawn(objective, batch, call=call)
    objective.loss(batch, draws).total().backward()
    assert [gradient for *_, gradient in student.seen] == [False] * call + [True]
    x = expand(path.coefficients(full(path.t_max, batch.x0)).sigma, batch.x0) * draws.made.noise[0]
    for i, (asked, t, _) in enumerate(student.seen):
        assert t.equal(full(few(path).times[i], x))
        torch.testing.assert_close(asked, x)
        if i < 3:
            later = full(few(path).times[i + 1], x)
            x = path.renoise(student.denoiser(x, t), draws.made.noise[i + 1], later).detach()


def test_the_first_of_several_calls_is_the_only_one():
    batch, fake = Batch(normal(6, 3)), GaussianDenoiser(VE, Gaussian(0.0, 1.0))
    objectives = [
        dmd2(Generator(VE), None, fake, generate=FewSteps(times))
        for times in ((80.0,), (80.0, 24.0, 0.5))
    ]
    draws = drawn(objectives[1], batch, call=0)
    one = draws._replace(made=Made(draws.made.noise[:1], draws.made.call))
    first, second = (o.loss(batch, d) for o, d in zip(objectives, (one, draws), strict=True))
    assert first.total().equal(second.total())
    assert grads(objectives[0], first.total()) == grads(objectives[1], second.total())


def test_a_student_of_two_times_jumps_to_the_end():
    student = Watched(GaussianFlowMap(VE, DATA))
    objective = dmd2(student, generate=few(VE))
    batch = Batch(normal(4, 3))
    loss = objective.loss(batch, drawn(objective, batch, call=2))
    assert float(loss.total().detach()) == 0.0
    for _, t, s, _ in student.seen:
        assert s.equal(torch.full_like(t, VE.t_min))


@each_path
def test_users_sample_as_training_does(path):
    torch.manual_seed(0)
    objective = dmd2(Generator(path, Gaussian(0.8, 0.4)), generate=few(path))
    contract = objective.contract(DataSpec(shape=(3,), range=None))
    sampling, times = contract.sampling, few(path).times
    assert (contract.method, sampling.kind, sampling.any_times) == ("dmd2", "renoise", False)
    assert sampling.times == {n: times[:n] for n in (1, 2, 3, 4)}
    assert sampling.start.t == path.t_max
    model = Model(objective.deliver(objective.student), contract)
    for steps in (1, 2, 3, 4):
        stream = SampleNoise([(0, i) for i in range(5)], (3,))
        noise = torch.stack([stream(i).double() for i in range(4)])
        made = Made(noise, torch.tensor(steps - 1))
        x = objective.generate(objective.student, Batch(normal(5, 3)), made, {})
        torch.testing.assert_close(model.sample(5, steps=steps), x.float())
    assert not model.serves(5)
    with pytest.raises(UsageError, match="1, 2, 3 or 4 steps"):
        model.sample(2, steps=5)
    with pytest.raises(UsageError, match="made for the times"):
        model.sample(2, times=(path.t_max, 0.2 * path.t_max))


# Draws.


def test_draws_are_of_the_published_laws_and_apart():
    objective = DMD2(
        Generator(VE),
        GaussianDenoiser(VE),
        GaussianDenoiser(VE),
        judge=Feels(),
        penalty=1.0,
        generate=few(VE),
        weight=unweighted,
    )
    batch = Batch(normal(20_000, 1).float())
    generator, critic = drawn(objective, batch), drawn(objective, batch, critic=True)
    grid = karras(1000, 0.002, 80.0).flip(0)
    for at, low, high in (
        (generator.noised, 20, 980),
        (critic.noised, 0, 999),
        (generator.fake, 0, 999),
        (critic.fake, 0, 999),
        (critic.real, 0, 999),
    ):
        index = torch.searchsorted(grid, at.t)
        assert grid[index].equal(at.t)
        assert (int(index.min()), int(index.max())) == (low, high)
        # Four standard deviations of a mean.
        middle = (low + high) / 2
        assert float(index.double().mean()) == pytest.approx(middle, abs=4 * 289 / 141)
    assert generator.real is generator.disturbance is None
    noises = [
        *generator.made.noise,
        generator.noised.noise,
        generator.fake.noise,
        critic.noised.noise,
        critic.fake.noise,
        critic.real.noise,
        critic.disturbance,
    ]
    assert all(n.dtype == torch.float32 for n in noises)
    flat = torch.stack([n.flatten() for n in noises]).double()
    torch.testing.assert_close(
        torch.corrcoef(flat), torch.eye(len(flat), dtype=D), rtol=0, atol=0.04
    )
    assert not any(at.t.equal(critic.fake.t) for at in (critic.real, critic.noised))
    for draws, again in (
        (generator, drawn(objective, batch)),
        (critic, drawn(objective, batch, critic=True)),
    ):
        torch.testing.assert_close(draws, again, rtol=0, atol=0)


def test_without_a_judge_there_is_nothing_to_judge():
    objective = dmd2(Generator(VE))
    batch = Batch(normal(4, 3))
    for critic in (False, True):
        assert drawn(objective, batch, critic=critic)[2:] == (None, None, None)
    student, critic = objective.phases()
    assert (len(student.losses), len(critic.losses)) == (1, 1)
    assert [*objective.critic] == ["fake"]


def test_all_processes_learn_the_same_call():
    objective = dmd2(Generator(VE), generate=few(VE))
    batch, calls = Batch(normal(4, 3)), set()
    for step in range(40):
        one, other = (objective.draw(batch, step, Rng(0, step, "student", k)) for k in (0, 1))
        assert one.made.call == other.made.call
        assert not one.made.noise.equal(other.made.noise)
        calls.add(int(one.made.call))
    assert calls == {0, 1, 2, 3}


# Conditions, masks, refusals.


@pytest.mark.parametrize("event", [(2,), (1, 4, 4), (3, 2, 4, 4)])
def test_conditions_reach_everybody(event):
    student, teacher, fake = (Watched(m) for m in (Generator(VE), *[GaussianDenoiser(VE)] * 2))
    objective = dmd2(student, teacher, fake, generate=few(VE), judge=Feels())
    label = torch.arange(4)
    batch = Batch(normal(4, *event), {"label": label})
    draws = drawn(objective, batch, critic=True, call=3)
    for part in (objective.loss, objective.critic_loss, objective.judge_loss):
        assert part(batch, draws).total().isfinite()
    assert [len(m.seen) for m in (student, teacher, fake)] == [12, 1, 5]
    for *_, cond in (*student.seen, *teacher.seen, *fake.seen):
        assert cond["label"].equal(label)


def test_what_a_mask_hides_does_not_count():
    fake = Offset(GaussianDenoiser(VE), 0.3)
    objective = dmd2(Generator(VE), None, fake)
    mask = torch.tensor([[1.0, 1.0, 0.0]], dtype=D)
    noise = normal(4, 3)
    draws = drawn(objective, Batch(noise))
    changed = draws._replace(noised=Noised(draws.noised.t, draws.noised.noise + 5 * (1 - mask)))
    for part in (objective.loss, objective.critic_loss):
        with_mask = [part(Batch(noise, mask=mask), d).total() for d in (draws, changed)]
        without = [part(Batch(noise), d).total() for d in (draws, changed)]
        torch.testing.assert_close(*with_mask)
        assert not without[0].allclose(without[1])


def test_what_it_refuses():
    student, linear, beyond = Generator(VE), Generator(Linear()), Uniform(0.5, 1.5)
    uniform = {name: Uniform() for name in ("times", "critic_times", "adversarial_times")}
    cases = [
        (lambda: dmd2(student, None, GaussianDenoiser(Linear())), "fake .* VarianceExp"),
        (lambda: dmd2(student, None, GaussianFlowMap(VE)), "fake .* one-time .* 2 time"),
        (lambda: dmd2(student, GaussianDenoiser(Linear())), "the teacher lives on Linear"),
        (lambda: dmd2(linear, times=beyond), "Uniform.* from 0.5 to 1.5"),
        (lambda: dmd2(linear, critic_times=beyond), "Uniform.* from 0.5 to 1.5"),
        (
            lambda: dmd2(linear, judge=Feels(), adversarial_times=beyond),
            "Uniform.* from 0.5 to 1.5",
        ),
        (lambda: dmd2(student, critic_updates=0), "critic_updates=0"),
        (lambda: dmd2(student, adversarial=-1.0), "-1.0"),
        (lambda: dmd2(student, penalty=-1.0), "-1.0"),
        (lambda: dmd2(student, judged="student"), "judged='student'"),
    ]
    for make, message in cases:
        with pytest.raises(UsageError, match=message):
            make()
    # Without a judge its times do not matter.
    dmd2(linear, **{**uniform, "adversarial_times": beyond})
