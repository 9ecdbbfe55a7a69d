"""Score identity distillation against linear generators of Gaussian data."""

import math
from itertools import product

import pytest
import torch
from torch import nn

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError, per_sample
from fewstep.data import toy
from fewstep.model import Model
from fewstep.models import EDM, AbstractDenoiser, Denoiser, Guided, Judge, LowRank
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.shared.matching import Compared, FewSteps, Made
from fewstep.objectives.shared.weights import unweighted
from fewstep.objectives.sid import HIGHEST, SiD
from fewstep.paths import Linear, VarianceExploding
from fewstep.times import KarrasUniform, LogNormal, Uniform
from fewstep.training.trainer import Trainer, training
from oracles import (
    PATHS_AT_REST,
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
)
from small_nets import shaken
from survive import CPU
from tiny import settings

DATA = Gaussian(0.3, 0.7)
VE = VarianceExploding()
each_path = pytest.mark.parametrize("path", PATHS_AT_REST, ids=path_id)
SHARES = (0.0, 0.5, 1.0, 1.2)


class Affine(AbstractDenoiser):
    """A generator gain x + shift, whatever the time."""

    cond_keys, two_time = (), False

    def __init__(self, path, gain=0.4, shift=-0.2):
        super().__init__()
        self.path = path
        self.gain, self.shift = (nn.Parameter(torch.tensor(v, dtype=D)) for v in (gain, shift))

    def forward(self, x, t, s=None, cond=None):
        return self.gain * x + self.shift


class Echo(AbstractDenoiser):
    """A denoiser that sees no noise."""

    cond_keys, two_time = (), False

    def __init__(self, path):
        super().__init__()
        self.path = path

    def forward(self, x, t, s=None, cond=None):
        return x


class Deaf(AbstractDenoiser):
    """A denoiser through which no gradient goes."""

    cond_keys, two_time = (), False

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.path = denoiser, denoiser.path

    def forward(self, x, t, s=None, cond=None):
        return self.denoiser(x, t, s, cond).detach()


def middle(path) -> float:
    """A time of as much noise as data."""
    return float(path.time(torch.tensor([0.8], dtype=D)))


def start(path) -> float:
    """Where a generator starts, and the noise it starts from."""
    return float(path.time(torch.tensor([2.5], dtype=D)))


def noise_std(path) -> float:
    return float(path.coefficients(torch.tensor([start(path)], dtype=D)).sigma)


def law(student: Affine) -> Gaussian:
    """Of the generator's samples."""
    return Gaussian(student.shift.item(), student.gain.item() * noise_std(student.path))


def sid(student, teacher=None, fake=None, **options) -> SiD:
    path = student.path
    own = {"generate": FewSteps((start(path),))}
    if path != VE:
        levels = KarrasUniform(0.1, 10.0), LogNormal()
        own |= {"times": levels[0], "critic_times": levels[1]}
    teacher = teacher or GaussianDenoiser(path, DATA)
    fake = fake or GaussianDenoiser(path, law(student))
    return SiD(student, teacher, fake, **{**own, **options})


def given(path, *event: int, b: int = 16, t: float | None = None) -> tuple[Batch, Compared]:
    x0, made, noise = normal(3, b, *event)
    t = t or middle(path)
    return Batch(0.3 + 0.7 * x0), Compared(Made(made[None], torch.tensor(0)), full(t, x0), noise)


def mean_and_gradient(objective: SiD, t: float):
    """Expectations of the loss without its denominator, and of its gradients.

    The numerator is a quadratic in both noises, so four points are their law; where a batch is one
    sample, twice, the denominator is known and taken out.
    """
    student, path = objective.student, objective.student.path
    z, noise = four_points(Gaussian(0.0, 1.0), 1)
    total = torch.zeros((), dtype=D)
    for z_i, noise_i in zip(z, noise, strict=True):
        z_i, noise_i = z_i.expand(2, 1), noise_i.expand(2, 1)
        draws = Compared(Made(z_i[None], torch.tensor(0)), full(t, z_i), noise_i)
        found = objective.loss(Batch(z_i), draws).terms["identity"]
        with torch.no_grad():
            x = student.gain * noise_std(path) * z_i + student.shift
            real = objective.teacher(path.perturb(x, noise_i, draws.t), draws.t)
        total = total + found * per_sample((x - real).abs())[0] / 4
    gradients = torch.autograd.grad(total, [student.gain, student.shift])
    return total.item(), *(v.item() for v in gradients)


def moments(path, student: Affine, t: float):
    """alpha, sigma and the variances P and Q of noised data and samples."""
    at = torch.tensor([t], dtype=D)
    alpha, sigma, _, _ = (float(v) for v in path.coefficients(at))
    return alpha, sigma, float(DATA.variance(path, at)), float(law(student).variance(path, at))


# The solution.


@each_path
@pytest.mark.parametrize("a", SHARES)
def test_nothing_is_left_to_learn_where_both_networks_agree(path, a):
    student = Affine(path, DATA.std / noise_std(path), DATA.mean)
    for event in ((2,), (3, 4, 4)):
        loss = sid(student, a=a).loss(*given(path, *event))
        assert loss.total().abs() < 1e-10
        assert loss.logs["fisher"] < 1e-20
        for gradient in torch.autograd.grad(loss.total(), [*student.parameters()]):
            assert gradient.abs() < 1e-10


@each_path
@pytest.mark.parametrize(("std", "shift"), [(0.3, 0.3), (0.7, -0.4), (3.0, -0.4)])
def test_value_and_gradient_of_the_mean_in_closed_form(path, std, shift):
    student, t = Affine(path, std / noise_std(path), shift), middle(path)
    alpha, sigma, p, q = moments(path, student, t)
    k_p, k_q = alpha * DATA.std**2 / p, alpha * std**2 / q
    fisher = ((1 - alpha * k_p) * (DATA.mean - shift)) ** 2 + q * (k_p - k_q) ** 2
    rho_p, rho_q = sigma**2 / p, sigma**2 / q
    for a in SHARES:
        value, _, slope = mean_and_gradient(sid(student, a=a), t)
        assert value == pytest.approx((1 - a) * fisher, abs=1e-12)
        wanted = -rho_p * (DATA.mean - shift) * (rho_p + (2 * a - 1) * (rho_q - rho_p))
        assert slope == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(("ratio", "home"), [(3.4, True), (3.6, False), (1.0, True), (0.3, True)])
@pytest.mark.parametrize("shift", [-0.4, 1.0])
def test_which_way_the_mean_is_led(ratio, home, shift):
    t = 0.4
    std = (ratio * (DATA.std**2 + t**2) - t**2) ** 0.5
    student = Affine(VE, std / 2.5, shift)
    _, _, p, q = moments(VE, student, t)
    assert q / p == pytest.approx(ratio)
    for a, right in ((1.2, home), (1.0, True), (0.5, True)):
        _, _, slope = mean_and_gradient(sid(student, a=a), t)
        assert (slope * (shift - DATA.mean) > 0) == right


@each_path
def test_what_is_too_narrow_widens_and_what_is_too_wide_narrows(path):
    for a, std in product(SHARES, (0.5, 0.9)):
        student = Affine(path, std / noise_std(path), DATA.mean)
        _, slope, _ = mean_and_gradient(sid(student, a=a), middle(path))
        assert slope * (std - DATA.std) > 0


def test_the_denominator_is_of_each_sample_and_has_a_floor():
    student = Affine(VE)
    batch, draws = given(VE, 3, b=5)
    x = student.gain * 2.5 * draws.made.noise[0] + student.shift
    x_t = x + 0.8 * draws.noise
    real, fake = DATA.denoised(VE, x_t, draws.t), law(student).denoised(VE, x_t, draws.t)
    each = ((real - fake) * (real - x - 1.2 * (real - fake))).mean(1) / (x - real).abs().mean(1)
    torch.testing.assert_close(sid(student).loss(batch, draws).total(), each.mean())
    # Where the teacher answers x itself, nothing is divided by 0.
    objective = sid(student, Echo(VE), Offset(Echo(VE), 1e-3))
    found = objective.loss(batch, draws._replace(t=full(1e-9, x))).total()
    assert found.item() == pytest.approx(-1.2 * 1e-6 / 1e-5, rel=1e-4)


# Where gradients go.


def networks(n: int = 2, **options) -> list[Denoiser]:
    torch.manual_seed(0)
    options = {"width": 8, "blocks": 2, **options}
    nets = (shaken(ResidualMLP((2,), **options), seed).double() for seed in range(n))
    return [Denoiser(net, EDM(sigma_data=0.5)) for net in nets]


@pytest.mark.parametrize("deaf", ["teacher", "fake"])
def test_gradients_go_through_the_inputs_of_both_networks(deaf):
    student, t = Affine(VE, 0.3, -0.4), 0.8
    both = {"teacher": GaussianDenoiser(VE, DATA), "fake": GaussianDenoiser(VE, law(student))}
    whole = mean_and_gradient(sid(student, **both), t)
    part = mean_and_gradient(sid(student, **{**both, deaf: Deaf(both[deaf])}), t)
    assert part[0] == whole[0]
    assert part[1] != pytest.approx(whole[1], rel=0.05)
    assert part[2] != pytest.approx(whole[2], rel=0.05)


def test_and_into_the_weights_of_none():
    student, (teacher, fake) = Affine(VE), networks()
    objective = sid(student, teacher, fake, judge=Judge(fake, Batch(normal(2, 2)), width=4))
    objective.judge.double()
    batch, draws = given(VE, 2)
    critic, generator = objective.phases()
    with training(objective, generator.module):
        objective.loss(batch, draws).total().backward()
    assert student.gain.grad.abs() > 0
    others = [*teacher.parameters(), *fake.parameters(), *objective.judge.parameters()]
    assert all(p.grad is None for p in others)
    student.zero_grad()
    with training(objective, critic.module):
        for part in critic.losses:
            part(batch, draws).total().backward()
    assert student.gain.grad is None
    assert all(p.grad is None for p in teacher.parameters())
    heads = {id(p) for p in [*fake.parameters(), *objective.judge.parameters()]}
    assert heads == {id(p) for p in critic.module.parameters()}
    assert fake.net.last.weight.grad.abs().max() > 0
    assert all(p.grad is not None for p in objective.judge.parameters())


def test_the_order_of_a_batch_does_not_matter():
    objective = sid(Affine(VE), *networks())
    batch, draws = given(VE, 2)
    draws = draws._replace(t=torch.logspace(-2, 1, 16, dtype=D))
    turned = draws._replace(
        made=draws.made._replace(noise=draws.made.noise.flip(1)),
        t=draws.t.flip(0),
        noise=draws.noise.flip(0),
    )
    for loss in (objective.loss, objective.critic_loss):
        found = loss(Batch(batch.x0.flip(0)), turned).total()
        torch.testing.assert_close(found, loss(batch, draws).total(), rtol=1e-12, atol=0)


def test_masked_data_does_not_count():
    objective, (batch, draws) = sid(Affine(VE)), given(VE, 4)
    mask = torch.tensor([[1.0, 1.0, 0.0, 1.0]], dtype=D)
    noise = draws.noise + 100 * (1 - mask)
    for loss in (objective.loss, objective.critic_loss):
        found, same, other = (
            loss(Batch(batch.x0, mask=m), draws._replace(noise=n)).total()
            for m, n in ((mask, noise), (mask, draws.noise), (None, draws.noise))
        )
        assert found == same != other


# The critic.


@pytest.mark.parametrize("wrong", [0.0, 0.2, -0.2])
def test_the_critic_learns_the_samples(wrong):
    student = Affine(VE, 0.4, -0.2)
    fake = Offset(GaussianDenoiser(VE, law(student)), wrong)
    z, noise = four_points(Gaussian(0.0, 1.0), 2)
    draws = Compared(Made(z[None], torch.tensor(0)), full(0.8, z), noise)
    loss = sid(student, fake=fake, weight=unweighted).critic_loss(Batch(z), draws).total()
    _, sigma, _, q = moments(VE, student, 0.8)
    assert loss.item() == pytest.approx(law(student).std ** 2 * sigma**2 / q + wrong**2)
    loss.backward()
    assert fake.offset.grad * wrong > 0 if wrong else fake.offset.grad.abs() < 1e-12
    weighted = sid(student, fake=fake).critic_loss(Batch(z), draws).total()
    assert weighted.item() == pytest.approx(loss.item() * (0.8**-2 + 4))


# The adversary.


class Said(Judge):
    """Heads whose logits are given, in two heads."""

    def __init__(self, *logits: float) -> None:
        nn.Module.__init__(self)
        self.logits = nn.Parameter(torch.tensor(logits, dtype=D))
        self.asked = []

    def forward(self, denoiser, x, t, cond=None):
        self.asked.append((denoiser, x, t, cond))
        # The first call of a critic is about data.
        return [v.expand(len(x), 2, 1) * len(self.asked) for v in self.logits]


def test_the_adversarial_terms():
    student, (fake,) = Affine(VE), networks(1)
    judge = Said(0.3, 12.0)
    objective = sid(student, fake=fake, judge=judge, a=1.0, adversarial=0.02)
    batch, draws = given(VE, 3, b=4)
    draws = draws._replace(t=torch.tensor([0.1, 0.5, 1.0, 4.0], dtype=D))
    fake.net = ResidualMLP((3,), 8, 2).double()
    loss = objective.loss(batch, draws)
    ((through, x_t, t, _),) = judge.asked
    assert through is fake
    assert t is draws.t
    x = student.gain * 2.5 * draws.made.noise[0] + student.shift
    torch.testing.assert_close(x_t, VE.perturb(x, draws.noise, t))
    size = (x - DATA.denoised(VE, x_t, t)).abs().mean(1)
    entropy = (math.log1p(math.exp(-0.3)) + math.log1p(math.exp(-10.0))) / 2
    torch.testing.assert_close(loss.terms["adversarial"], 0.02 * (1 / size).mean() * entropy)
    judge.asked.clear()
    found = objective.judge_loss(batch, draws).terms["discriminator"]
    (_, real, _, _), (_, made, _, _) = judge.asked
    torch.testing.assert_close(real, VE.perturb(batch.x0, draws.noise, t))
    torch.testing.assert_close(made, x_t)
    entropies = [math.log1p(math.exp(-v)) + math.log1p(math.exp(2 * v)) for v in (0.3, 12.0)]
    wanted = (t**-2 + 4).mean() / 3 * sum(entropies) / 4
    torch.testing.assert_close(found, wanted)


def test_proportions_are_the_official_ones():
    """Sums over the event: 100 and 0.01 for the generator, 1 and 1 for the critic."""
    student, (fake,) = Affine(VE), networks(1)
    objective = sid(student, fake=fake, judge=Said(0.5), a=1.0)
    batch, draws = given(VE, 2, b=6)
    x = student.gain * 2.5 * draws.made.noise[0] + student.shift
    x_t = VE.perturb(x, draws.noise, draws.t)
    real, made = DATA.denoised(VE, x_t, draws.t), fake(x_t, draws.t)
    size = (x - real).abs().mean(1, keepdim=True).clip(min=1e-5)
    identity = ((real - made) * ((real - x) - (real - made)) / size).sum() * 100 / 6
    gan = (nn.BCEWithLogitsLoss()(torch.full((6, 1), 0.5, dtype=D), torch.ones(6, 1)) / size).sum()
    official = identity + gan * 2 * 0.01 / 6
    torch.testing.assert_close(official, 100 * 2 * objective.loss(batch, draws).total())
    weight = draws.t[:, None] ** -2 + 4
    error = (weight * (made - x) ** 2).sum() / 6
    bce = nn.BCEWithLogitsLoss()
    told = bce(torch.full((6,), 0.5, dtype=D), torch.ones(6)) + bce(
        torch.full((6,), 1.0, dtype=D), torch.zeros(6)
    )
    objective.judge.asked.clear()
    terms = objective.critic_loss(batch, draws).total() + objective.judge_loss(batch, draws).total()
    torch.testing.assert_close(error + (weight * told / 2).sum() / 6, 2 * terms)


@pytest.mark.parametrize("at", [(), (0,)])
def test_adversaries_learn_by_heads_on_features_of_the_fake_network(at):
    student, (teacher, fake) = Affine(VE), networks()
    batch, draws = given(VE, 2)
    judge = Judge(fake, Batch(batch.x0), at=at, width=4).double()
    assert len(judge.heads.heads) == (len(at) or 2)
    with_it, without = (
        sid(student, teacher, fake, judge=j, adversarial=1.0).loss(batch, draws)
        for j in (judge, None)
    )
    assert with_it.terms["identity"] == without.terms["identity"]
    (gradient,) = torch.autograd.grad(with_it.terms["adversarial"], student.shift)
    assert gradient != 0


# Draws, phases, delivery.


def test_draws():
    objective = SiD(*networks(3))
    batch = Batch(normal(5000, 2).float())
    draws = objective.draw(batch, 3, Rng(0, 3, "student"))
    again = objective.draw(batch, 3, Rng(0, 3, "student"))
    assert all(a.equal(b) for a, b in zip(draws[1:], again[1:], strict=True))
    assert draws.made.noise.equal(again.made.noise)
    assert not draws.noise.equal(objective.draw(batch, 4, Rng(0, 4, "student")).noise)
    assert not draws.noise.equal(draws.made.noise[0])
    assert draws.made.noise.shape == (1, 5000, 2)
    assert draws.t.dtype == D
    assert pytest.approx(24.4, abs=0.05) == HIGHEST
    assert draws.t.min() > 0.002
    assert draws.t.max() < HIGHEST
    # Uniform shares up to 0.8 of the ramp.
    low, high = (v ** (1 / 7) for v in (0.002, 80.0))
    share = (draws.t ** (1 / 7) - low) / (high - low)
    assert float(share.mean()) == pytest.approx(0.4, abs=0.02)
    assert float(share.std()) == pytest.approx(0.8 / 12**0.5, rel=0.05)
    torch.testing.assert_close(KarrasUniform().at(share), draws.t)
    logs = objective.draw_critic(batch, 3, Rng(0, 3, "critic")).t.log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=0.07)
    assert float(logs.std()) == pytest.approx(1.2, rel=0.05)


@pytest.mark.parametrize("k", [1, 3])
def test_the_critic_goes_first_and_at_every_step(k):
    critic, generator = SiD(*networks(3), critic_updates=k).phases()
    assert (critic.name, generator.name) == ("critic", "student")
    assert [critic.due(i) for i in range(6)] == [True] * 6
    assert [generator.due(i) for i in range(6)] == [i % k == 0 for i in range(6)]


def test_labels_go_to_all_networks_and_the_teacher_may_be_guided():
    torch.manual_seed(0)
    made = [Watched(d) for d in networks(3, classes=3)]
    student, teacher, fake = made
    objective = SiD(student, Guided(teacher, {"label": 3}, 2.0), fake)
    batch, draws = given(VE, 2, b=3, t=0.5)
    labels = torch.tensor([0, 1, 2])
    objective.loss(Batch(batch.x0, {"label": labels}), draws)
    for denoiser in (student, fake):
        assert denoiser.seen[0][3]["label"].equal(labels)
    assert teacher.seen[0][3]["label"].tolist() == [0, 1, 2, 3, 3, 3]


def test_the_contract_starts_where_the_generator_does():
    student, *others = networks(3)
    objective = SiD(student, *others)
    contract = objective.contract(DataSpec(shape=(2,), range=None))
    assert contract.method == "sid"
    assert contract.sampling.start.t == contract.sampling.start.std == 2.5
    assert contract.sampling.times == {1: (2.5,)}
    assert not contract.sampling.any_times
    model = Model(objective.deliver(student), contract)
    assert model.sample(5).shape == (5, 2)
    with pytest.raises(UsageError, match="made for 1 step,"):
        model.sample(2, steps=2)


def test_the_contract_says_whether_there_was_an_adversary():
    student, teacher, fake = networks(3)
    objective = SiD(student, teacher, fake, judge=Judge(fake, Batch(normal(2, 2)), width=4))
    assert objective.contract(DataSpec(shape=(2,), range=None)).method == "sida"


def test_a_judge_reads_the_features_of_adapters():
    student, teacher = networks(2)
    fake = LowRank(teacher, rank=2)
    judge = Judge(fake, Batch(normal(2, 2)), width=4).double()
    objective = SiD(student, teacher, fake, judge=judge)
    critic, _ = objective.phases()
    batch, draws = given(VE, 2, b=3)
    with training(objective, critic.module):
        for part in critic.losses:
            part(batch, draws).total().backward()
    reached = {n.split(".")[0] for n, p in objective.named_parameters() if p.grad is not None}
    assert reached == {"fake", "judge"}


def test_samples_of_a_solution_are_the_data():
    student = Affine(VE, DATA.std / 2.5, DATA.mean)
    contract = sid(student).contract(DataSpec(shape=(2,), range=None))
    x = Model(student, contract).sample(4000)
    assert float(x.mean()) == pytest.approx(DATA.mean, abs=0.04)
    assert float(x.std()) == pytest.approx(DATA.std, rel=0.03)


@pytest.mark.parametrize("judged", [False, True])
def test_a_trainer_takes_it(judged):
    student, teacher, fake = (d.float() for d in networks(3))
    judge = Judge(fake, Batch(normal(2, 2).float()), width=4) if judged else None
    objective = SiD(student, teacher, fake, judge=judge, critic_updates=2)
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    trainer = Trainer(objective, toy("two-modes", 64), settings(steps=2), {}, CPU)
    rows = [trainer.advance() for _ in range(2)]
    assert {"identity", "fisher", "lag", "denoising", "grad_norm/student"} <= {*rows[0]}
    assert ("discriminator" in rows[1], "adversarial" in rows[0]) == (judged, judged)
    assert "identity" not in rows[1]
    moved = {k.split(".")[0] for k, v in objective.state_dict().items() if not v.equal(before[k])}
    assert moved == {"student", "fake", *(["judge"] if judged else [])}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"fake": GaussianDenoiser(VarianceExploding(0.01, 80.0))}, "student's Variance"),
        ({"fake": GaussianFlowMap(VE)}, r"2 time\(s\)"),
        ({"teacher": GaussianDenoiser(VarianceExploding(0.01, 80.0))}, "on the student's path"),
        ({"critic_updates": 0}, "critic_updates >= 1 .* got 0"),
        ({"adversarial": -1e-4}, "adversarial >= 0, got 1 and -0.0001"),
        ({"adversarial": math.nan}, "adversarial >= 0, got 1 and nan"),
        ({"judge": Said(1.0)}, "GaussianDenoiser is no Denoiser"),
    ],
)
def test_refusals(change, match):
    with pytest.raises(UsageError, match=match):
        sid(Affine(VE), **change)


def test_laws_beyond_the_path_are_refused():
    for name in ("times", "critic_times"):
        with pytest.raises(UsageError, match=r"Uniform.* from 0.5 to 1.5"):
            sid(Affine(Linear()), **{name: Uniform(0.5, 1.5)})


def test_every_law_may_be_another():
    objective = sid(Affine(VE), times=Uniform(1.0, 2.0), critic_times=LogNormal(3.0, 0.0))
    batch = Batch(normal(50, 2))
    t = objective.draw(batch, 0, Rng(0, 0, "student")).t
    assert 1 <= t.min() <= t.max() <= 2
    t = objective.draw_critic(batch, 0, Rng(0, 0, "critic")).t
    torch.testing.assert_close(t, full(math.exp(3.0), batch.x0))
