"""f-distill: the gradient of every divergence, in closed form through the public loss."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError, expand, per_sample
from fewstep.data import Arrays
from fewstep.model import Model, SampleNoise
from fewstep.models import EDM, AbstractDenoiser, Denoiser, Guided, Judge
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.f_distill import FDistill
from fewstep.objectives.shared.drop import Draws as Noised
from fewstep.objectives.shared.gradients import matching_gradient, surrogate
from fewstep.objectives.shared.matching import Compared, FewSteps, Made
from fewstep.objectives.shared.ratios import FACTORS, Factors
from fewstep.objectives.shared.weights import karras_weight, unweighted
from fewstep.paths import Linear, VarianceExploding, VariancePreserving
from fewstep.times import KarrasIndex, LogUniform, Uniform
from fewstep.training.config import TrainConfig
from fewstep.training.trainer import Trainer, training
from oracles import D, Gaussian, GaussianDenoiser, Offset, four_points, full, normal, path_id
from small_nets import shaken

VE = VarianceExploding(0.01, 20.0)
PATHS = [VE, VariancePreserving(1e-3, 1.0), Linear(0.0, 1.0)]
each_path = pytest.mark.parametrize("path", PATHS, ids=path_id)
each_divergence = pytest.mark.parametrize("divergence", FACTORS)
WANTED = Gaussian(0.3, 0.7)
F = {
    "reverse-kl": lambda r: -r.log(),
    "softened-rkl": lambda r: (1 + r) * ((1 + r) / r).log(),
    "js": lambda r: r * r.log() - (1 + r) * (1 + r).log(),
    "squared-hellinger": lambda r: 4 * (1 - r.sqrt()),
    "kl": lambda r: r * r.log(),
    "jeffreys": lambda r: (r - 1) * r.log(),
    "neyman": lambda r: (1 - r) ** 2 / (2 * r),
}


class Free(AbstractDenoiser):
    """Samples that are parameters."""

    cond_keys, two_time = (), False

    def __init__(self, path, x: Tensor) -> None:
        super().__init__()
        self.path, self.x = path, nn.Parameter(x)

    def forward(self, x, t, s=None, cond=None):
        return self.x


class Best(nn.Module):
    """The logit of the best judge: log p_t - log q_t, in one coordinate."""

    def __init__(self, path, p: Gaussian, q: Gaussian) -> None:
        super().__init__()
        self.path, self.laws = path, (p, q)

    def forward(self, denoiser, x, t, cond):
        alpha, (p, q) = self.path.coefficients(t).alpha, self.laws
        of = [(law, law.variance(self.path, t)) for law in (p, q)]
        p, q = (-((x[:, 0] - alpha * law.mean) ** 2) / (2 * v) - v.log() / 2 for law, v in of)
        return [(p - q)[:, None]]


class Fixed(nn.Module):
    """Given logits, one tensor a head; they have nothing to learn but are parameters."""

    def __init__(self, *logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.ParameterList(logits)

    def forward(self, denoiser, x, t, cond):
        return [*self.logits]


def made(objective: FDistill, x: Tensor, t: Tensor, noise: Tensor) -> Compared:
    calls = len(objective.generate.times)
    return Compared(Made(torch.zeros(calls, *x.shape, dtype=D), torch.tensor(0)), t, noise)


def objective_of(path, student, made_of: Gaussian, judge=None, **options) -> FDistill:
    teacher, fake = (GaussianDenoiser(path, law) for law in (WANTED, made_of))
    times = Uniform(path.t_min + 0.01, path.t_max)
    laws = {"times": times, "critic_times": times}
    return FDistill(
        student,
        teacher,
        fake,
        Best(path, WANTED, made_of) if judge is None else judge,
        generate=FewSteps((path.t_max,)),
        weight=unweighted,
        **{**laws, **options},
    )


# The divergences.


@each_divergence
def test_factor_is_the_second_derivative(divergence):
    r = torch.tensor([0.1, 0.5, 1.0, 3.0, 20.0], dtype=D, requires_grad=True)
    (first,) = torch.autograd.grad(F[divergence](r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r)
    torch.testing.assert_close(FACTORS[divergence](r), second * r**2, rtol=1e-12, atol=0)


def rule(nodes: int = 50) -> tuple[Tensor, Tensor]:
    import numpy as np

    z, w = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(nodes))
    return z, w / w.sum()


@each_path
@each_divergence
def test_gradient_is_that_of_the_divergence(path, divergence):
    made_of, (z, w) = Gaussian(0.1, 0.65), rule()
    time = 0.4 * path.t_max if path != VE else 0.8
    z, noise = (v.flatten()[:, None] for v in torch.meshgrid(z, z, indexing="ij"))
    w = (w[:, None] * w).flatten()
    x, t = made_of.mean + made_of.std * z, full(time, z)
    wide = {"ratio": (1e-80, 1e80), "bins": 0, "divergence": divergence}
    objective = objective_of(path, Free(path, x), made_of, **wide, adversarial=0.0)
    objective.loss(Batch(x), made(objective, x, t, noise)).total().backward()
    # Of the loss's gradient: the mean over the batch, the distance, and the mean factor undone.
    x_t = path.perturb(x, noise, t)
    size = (x - objective.teacher(x_t, t)).abs()[:, 0]
    r = objective.factors.ratio(objective.critic["judge"](None, x_t, t, None))
    found = objective.student.x.grad[:, 0] * len(x) * size * FACTORS[divergence](r).mean()
    found = found * path.snr(t) * w
    # E_q[f(p/q)] of Gaussians by the same rule, differentiated in mean and std of the samples.
    mean, std = (torch.tensor(v, dtype=D, requires_grad=True) for v in made_of)
    alpha, sigma, _, _ = path.coefficients(full(time, torch.zeros(1)))
    variances = alpha**2 * WANTED.std**2 + sigma**2, alpha**2 * std**2 + sigma**2
    nodes, chances = rule(80)
    y = alpha * mean + variances[1].sqrt() * nodes
    logs = [
        -((y - alpha * m) ** 2) / (2 * v) - v.log() / 2
        for m, v in zip((WANTED.mean, mean), variances, strict=True)
    ]
    ratio = (logs[0] - logs[1]).exp()
    assert (chances * ratio).sum().item() == pytest.approx(1)
    (chances * F[divergence](ratio)).sum().backward()
    torch.testing.assert_close(found.sum(), mean.grad, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close((found * z[:, 0]).sum(), std.grad, rtol=1e-7, atol=1e-10)


@each_path
def test_the_best_judge_leads_down_the_softened_divergence(path):
    made_of, x = Gaussian(-0.4, 0.5), normal(6, 1)
    t, noise = full(0.3 * path.t_max, x), normal(6, 1, seed=1)
    objective = objective_of(path, Free(path, x), made_of, adversarial=2.0)
    objective.loss(Batch(x), made(objective, x, t, noise)).terms["adversarial"].backward()
    x_t = path.perturb(x, noise, t)
    scores = [
        path.score(x_t, denoiser(x_t, t), t)
        for denoiser in (objective.critic["fake"], objective.teacher)
    ]
    (logits,) = objective.critic["judge"](None, x_t, t, None)
    alpha = expand(path.coefficients(t).alpha, x)
    wanted = 2.0 * alpha * (scores[0] - scores[1]) / (1 + logits.exp()) / len(x)
    torch.testing.assert_close(objective.student.x.grad, wanted, rtol=1e-9, atol=1e-12)


@each_path
def test_reverse_kl_is_plain_distribution_matching(path):
    made_of, x = Gaussian(-0.2, 0.4), normal(5, 3)
    t, noise = torch.linspace(0.1, 0.9, 5, dtype=D) * path.t_max, normal(5, 3, seed=1)
    given = {"divergence": "reverse-kl", "judge": Fixed(normal(5, 1, seed=2))}
    objective = objective_of(path, Free(path, x), made_of, **given)
    term = objective.loss(Batch(x), made(objective, x, t, noise)).terms["matching"]
    term.backward()
    x_t, free = path.perturb(x, noise, t), x.clone().requires_grad_()
    g = matching_gradient(free, objective.teacher(x_t, t), objective.critic["fake"](x_t, t))
    plain = surrogate(free, g).mean()
    plain.backward()
    torch.testing.assert_close(term, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(objective.student.x.grad, free.grad, rtol=1e-12, atol=0)


# Exact and wrong students.


@each_path
@each_divergence
def test_the_wanted_law_is_a_fixed_point(path, divergence):
    student = Offset(GaussianDenoiser(path, WANTED))
    objective = objective_of(path, student, WANTED, divergence=divergence, adversarial=0.0)
    batch = Batch(normal(16, 1))
    loss = objective.loss(batch, objective.draw(batch, 0, Rng(0, 0, "student")))
    loss.total().backward()
    assert loss.terms["matching"].item() < 1e-20
    assert max(p.grad.abs().max().item() for p in student.parameters()) < 1e-12


@each_path
@each_divergence
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_gradient_points_home(path, divergence, sign):
    made_of = Gaussian(WANTED.mean + 0.5 * sign, WANTED.std)
    x, noise = four_points(made_of, 1)
    objective = objective_of(path, Free(path, x), made_of, divergence=divergence, adversarial=0.0)
    t = full(0.5 * path.t_max, x)
    objective.loss(Batch(x), made(objective, x, t, noise)).total().backward()
    assert (objective.student.x.grad * sign > 0).all()


# Ratios.


def factors(divergence="kl", path=VE, **options) -> Factors:
    return Factors(divergence, path, **{"limits": (0.1, 20.0), "bins": 4, "rate": 0.0, **options})


def test_ratio_of_heads_and_positions():
    heads = [torch.tensor([[1.0], [-9.0]]), torch.tensor([[[0.0, 2.0]], [[5.0, -5.0]]])]
    ratio = factors(limits=(0.1, 5.0)).ratio([h.double() for h in heads])
    assert ratio.tolist() == pytest.approx([math.e, 0.1])
    assert factors().ratio([torch.full((1, 1), 40.0)]).item() == pytest.approx(20.0)
    assert factors().ratio([heads[0].bfloat16()]).dtype == torch.float32


@pytest.mark.parametrize("path", [Linear(0.2, 0.9), VarianceExploding(20.0, 80.0)], ids=path_id)
def test_bins_are_of_equal_width_between_the_ends_of_the_path(path):
    found = factors(path=path, bins=2)
    edge = (path.t_min + path.t_max) / 2
    t = torch.tensor([path.t_min, edge - 1e-6, edge + 1e-6, path.t_max], dtype=D)
    # Each bin has a mean of its own, by which its ratios are divided.
    h = found(torch.tensor([1.0, 3.0, 10.0, 70.0], dtype=D), t)
    assert h.tolist() == pytest.approx([0.5, 1.5, 0.25, 1.75])


def test_ratios_have_mean_one_in_each_bin():
    r = normal(12, seed=3).exp()
    width = (VE.t_max - VE.t_min) / 4
    index = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 3, 3, 3, 3])
    t = VE.t_min + (index + 0.5) * width
    h = factors()(r, t)
    for i in (0, 1, 3):
        assert h[index == i].mean().item() == pytest.approx(1)
    torch.testing.assert_close(h[:3], r[:3] / r[:3].mean())
    whole = factors(bins=0)(r, t)
    torch.testing.assert_close(whole, r / r.mean())
    ends = factors()(r[:2], torch.tensor([VE.t_min, VE.t_max], dtype=D))
    torch.testing.assert_close(ends, torch.ones(2, dtype=D))


def test_running_means():
    t = VE.t_min + (VE.t_max - VE.t_min) * torch.tensor([0.1, 0.1, 0.6], dtype=D)
    f = factors(rate=0.75)
    f.begin(0)
    f(torch.tensor([1.0, 3.0, 5.0], dtype=D), t)
    f.begin(0)  # another microbatch
    found = f(torch.tensor([8.0, 8.0, 1.0], dtype=D), t)
    mixed = 0.75 + 0.25 * torch.tensor([8.0, 8.0, 1.0], dtype=D)
    r = torch.tensor([8.0, 8.0, 1.0], dtype=D) / mixed
    torch.testing.assert_close(found, r / r.mean())
    assert f.level.tolist() == [1.0] * 4
    f.finish()
    assert f.level.tolist() == pytest.approx([0.75 + 0.25 * 5, 1.0, 0.75 + 0.25 * 3, 1.0])
    # Nothing seen, or seen in a step that was skipped.
    level = f.level.clone()
    f.finish()
    f.begin(1)
    f(torch.full((3,), 9.0, dtype=D), t)
    f.begin(2)
    f.finish()
    assert f.level.equal(level)
    f(torch.full((3,), math.nan, dtype=D), t)
    f.finish()
    assert f.level.equal(level)
    assert "seen" not in f.state_dict()


def test_without_running_means_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda _: pytest.fail("nothing is to be shared"))
    f = factors(rate=0.0)
    before = {name: v.clone() for name, v in f.named_buffers()}
    f.begin(0)
    f(torch.tensor([1.0, 3.0], dtype=D), full(1.0, torch.zeros(2)))
    f.finish()
    assert all(v.equal(before[name]) for name, v in f.named_buffers())


# Draws, phases, what learns.


def small(seed: int = 0, **options) -> Denoiser:
    torch.manual_seed(seed)
    return Denoiser(shaken(ResidualMLP((2,), 8, 2, **options), seed), EDM(sigma_data=0.5))


def tiny(**options) -> FDistill:
    fake, example = small(2), Batch(torch.zeros(2, 2))
    given = {"generate": FewSteps((80.0,)), "weight": karras_weight(0.5), **options}
    return FDistill(small(0), small(1), fake, Judge(fake, example, width=4), **given)


def test_draws():
    objective = tiny(generate=FewSteps((80.0, 2.0)), times=LogUniform(1.0, 2.0))
    batch = Batch(torch.zeros(64, 2))
    one, two = (objective.draw(batch, 3, Rng(0, 3, "student")) for _ in range(2))
    assert one.t.equal(two.t)
    assert one.noise.equal(two.noise)
    assert one.made.noise.shape == (2, 64, 2)
    assert 1 <= one.t.min() < one.t.max() <= 2
    critic = objective.draw_critic(batch, 3, Rng(0, 3, "critic"))
    noises = [critic.noise, critic.real.noise, critic.fake.noise, *critic.made.noise]
    assert all(not a.equal(b) for i, a in enumerate(noises) for b in noises[:i])
    for t in (critic.real.t, critic.fake.t):
        assert 1 <= t.min() < t.max() <= 2
    assert critic.t.max() > 2
    assert not critic.real.t.equal(critic.fake.t)
    other = tiny(adversarial_times=LogUniform(3.0, 4.0))
    assert other.draw_critic(batch, 0, Rng(0, 0, "critic")).real.t.min() >= 3
    defaults = tiny()
    assert (defaults.times, defaults.judge_times) == (KarrasIndex(), KarrasIndex())
    assert defaults.critic_times == KarrasIndex(0, 999)


@pytest.mark.parametrize("judged", ["fake", "teacher"])
def test_each_phase_moves_its_own(judged):
    objective = tiny(judged=judged, critic_updates=5, rate=0.5)
    config = TrainConfig(steps=10, batch=8, lr=1e-2)
    data = Arrays(normal(32, 2).float().numpy())
    trainer = Trainer(objective, data, config, {}, torch.device("cpu"))
    names = ("student", "critic.fake", "critic.judge", "teacher", "factors")
    seen = []
    for _ in range(10):
        before = {n: objective.get_submodule(n).state_dict() for n in names}
        before = {n: {k: v.clone() for k, v in state.items()} for n, state in before.items()}
        logs = trainer.advance()
        seen.append(
            {
                n
                for n in names
                if any(
                    not v.equal(before[n][k])
                    for k, v in objective.get_submodule(n).state_dict().items()
                )
            }
        )
        assert ("matching" in logs) == ("factor/max" in logs) == ("student" in seen[-1])
        assert {"denoising", "judge"} <= logs.keys()
    critic = {"critic.fake", "critic.judge"}
    assert seen == [critic | {"student", "factors"} if i % 5 == 0 else critic for i in range(10)]


def test_gradients_of_each_loss():
    objective, batch = tiny(judged="fake"), Batch(normal(6, 2).float())
    student, critic = objective.phases()

    def touched(phase, losses):
        with training(objective, phase.module):
            draws = phase.draw(batch, 0, Rng(0, 0, phase.name))
            objective.zero_grad()
            for loss in losses:
                loss(batch, draws).total().backward()
        return {
            n.split(".")[0] + "." + n.split(".")[1]
            for n, p in objective.named_parameters()
            if p.grad is not None
        }

    assert touched(student, student.losses) == {"student.net"}
    assert touched(critic, [objective.critic_loss]) == {"critic.fake"}
    assert touched(critic, [objective.judge_loss]) == {"critic.fake", "critic.judge"}
    objective.judged = "teacher"
    assert touched(critic, [objective.judge_loss]) == {"critic.judge"}


def test_a_guided_teacher_is_judged_through_without_guidance():
    seen = []

    class Asked(Fixed):
        def forward(self, denoiser, x, t, cond):
            seen.append(denoiser)
            return [*self.logits]

    path, x = VE, normal(4, 1)
    teacher = Guided(GaussianDenoiser(path, WANTED), {}, 2.0)
    objective = FDistill(
        Free(path, x),
        teacher,
        GaussianDenoiser(path, WANTED),
        Asked(normal(4, 1)),
        generate=FewSteps((path.t_max,)),
        weight=unweighted,
        times=(levels := LogUniform(0.01, 20.0)),
        critic_times=levels,
        judged="teacher",
    )
    objective.loss(Batch(x), made(objective, x, full(1.0, x), normal(4, 1, seed=1)))
    assert seen == [teacher.denoiser]


def test_critic_losses_are_what_they_say():
    path, x = VE, normal(4, 1)
    logits = normal(4, 1, seed=5)
    objective = objective_of(
        path, Free(path, x), WANTED, judge=Fixed(logits), adversarial_critic=0.5
    )
    objective.weight = lambda snr: 3 * snr
    batch = Batch(normal(4, 1, seed=1))
    draws = objective.draw_critic(batch, 0, Rng(0, 0, "critic"))
    x_t = path.perturb(x, draws.noise, draws.t)
    error = per_sample((GaussianDenoiser(path, WANTED)(x_t, draws.t) - x) ** 2)
    found = objective.critic_loss(batch, draws).total()
    torch.testing.assert_close(found, (3 * path.snr(draws.t) * error).mean())
    softplus = nn.functional.softplus
    wanted = 0.5 * (softplus(-logits) + softplus(logits)).mean()
    torch.testing.assert_close(objective.judge_loss(batch, draws).total(), wanted)

    class Level(Fixed):
        def forward(self, denoiser, x, t, cond):
            return [x]

    objective.critic["judge"] = Level(logits)
    draws = draws._replace(real=Noised(full(2.0, x), x), fake=Noised(full(5.0, x), -x))
    wanted = 0.5 * (softplus(-(batch.x0 + 2 * x)) + softplus(x - 5 * x)).mean()
    torch.testing.assert_close(objective.judge_loss(batch, draws).total(), wanted)


# Sampling, refusals.


def test_contract_and_samples():
    objective = tiny(generate=FewSteps((80.0, 1.0)))
    contract = objective.contract(DataSpec(shape=(2,), range=None))
    assert contract.method == "f-distill"
    assert contract.sampling.times == {1: (80.0,), 2: (80.0, 1.0)}
    model = Model(objective.deliver(objective.student), contract)
    x = SampleNoise([(5, i) for i in range(3)], (2,))(0) * 80
    wanted = objective.student(x, torch.full((3,), 80.0, dtype=D))
    torch.testing.assert_close(model.sample(3, steps=1, seed=5), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="made for"):
        model.sample(3, steps=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "chi"}, "'chi'"),
        ({"judged": "student"}, "'student'"),
        ({"critic_updates": 0}, "critic_updates"),
        ({"adversarial": -1.0}, "adversarial"),
        ({"adversarial_critic": 0.0}, "learns no ratios"),
        ({"ratio": (0.0, 1.0)}, "low < high"),
        ({"ratio": (2.0, 1.0)}, "low < high"),
        ({"bins": -1}, "bins"),
        ({"rate": 1.0}, "rate"),
    ],
)
def test_refused_settings(options, message):
    with pytest.raises(UsageError, match=message):
        tiny(**options)


def test_refused_networks():
    student, other = GaussianDenoiser(VE), GaussianDenoiser(VarianceExploding(0.01, 9.0))
    levels = LogUniform(0.1, 8.0)
    rest = {"generate": FewSteps((9.0,)), "weight": unweighted}
    rest |= {"times": levels, "critic_times": levels}
    with pytest.raises(UsageError, match="teacher lives on"):
        FDistill(student, other, student, Fixed(), **rest)
    with pytest.raises(UsageError, match="copy of the teacher"):
        FDistill(student, student, other, Fixed(), **rest)
    with pytest.raises(UsageError, match="copy of the teacher"):
        FDistill(small(), small(1), small(2, two_time=True), Fixed(), **rest)
    on = GaussianDenoiser(Linear())
    rest["critic_times"] = Uniform(0.1, 8.0)
    with pytest.raises(UsageError, match=r"from 0.1 to 8, and Linear"):
        FDistill(on, GaussianDenoiser(Linear()), on, Fixed(), **rest)
