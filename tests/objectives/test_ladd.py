"""ADD and LADD: hinges and their penalty by hand, who gets a gradient, the teacher's term."""

import math

import pytest
import torch
from torch import nn

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError
from fewstep.data import Arrays
from fewstep.model import Model
from fewstep.models import EDM, AbstractDenoiser, Denoiser, FeatureDiscriminator, Guided
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.ladd import LADD, LEVELS, Draws
from fewstep.objectives.shared.drop import Draws as Noised
from fewstep.objectives.shared.matching import FewSteps, Made
from fewstep.paths import (
    CosineVariancePreserving,
    DiscreteVariancePreserving,
    Linear,
    Trig,
    VarianceExploding,
    VariancePreserving,
)
from fewstep.times import LogitNormal, Uniform
from fewstep.training.config import TrainConfig
from fewstep.training.trainer import Trainer
from oracles import D, Gaussian, GaussianDenoiser, Offset, Watched, full, normal, path_id
from small_nets import shaken

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
DATA, POINT = Gaussian(0.3, 0.7), Gaussian(0.3, 0.0)


class Line(nn.Module):
    """One head, w x + b, on events as they are; with a second one on request, twice the first."""

    def __init__(self, w: float = 1.0, b: float = 0.0, second: bool = False) -> None:
        super().__init__()
        self.heads = Slope(w, b)
        self.second, self.seen = second, []

    def features(self, x, t, cond=None):
        self.seen.append((x, t))
        return [x, 2 * x] if self.second else [x]

    def forward(self, x, t, cond=None):
        return self.heads(self.features(x, t, cond), cond)


class Slope(nn.Module):
    def __init__(self, w: float, b: float) -> None:
        super().__init__()
        self.w, self.b = (nn.Parameter(torch.tensor(v, dtype=D)) for v in (w, b))

    def forward(self, features, cond=None):
        return [self.w * f + self.b for f in features]


class Constant(AbstractDenoiser):
    """One answer to everything."""

    cond_keys, two_time = (), False

    def __init__(self, value: float, path=VE) -> None:
        super().__init__()
        self.path, self.value = path, nn.Parameter(torch.tensor(value, dtype=D))

    def forward(self, x, t, s=None, cond=None):
        return self.value.expand_as(x)


def ladd(student, judge=None, **options) -> LADD:
    first = student.path.t_max
    options = {"generate": FewSteps((first,)), "times": None, "penalty": 0.0, **options}
    return LADD(student, judge or Line(), **options)


def drawn(x0, path=VE, t=None, judged=None, taught=None) -> Draws:
    made = Made(normal(1, *x0.shape, seed=5), torch.tensor(0))
    t = full(path.t_min, x0) if t is None else t
    judged = normal(*x0.shape, seed=6) if judged is None else judged
    return Draws(made, Noised(t, judged), taught)


# The adversarial terms.


@pytest.mark.parametrize("second", [False, True])
def test_hinges_of_one_linear_head(second):
    x0 = torch.tensor([[0.5], [3.0], [-0.25]], dtype=D)
    objective = ladd(Constant(-0.5), Line(1.0, 0.25, second))
    batch, draws = Batch(x0), drawn(x0)
    found = objective.heads_loss(batch, draws)
    # real logits 0.75, 3.25, 0 and fake ones -0.25; of the second head 1.25, 6.25, -0.25 and -0.75
    first = (0.25 + 0.0 + 1.0) / 3 + 0.75
    other = (0.0 + 0.0 + 1.25) / 3 + 0.25
    wanted = (first + other) / 2 if second else first
    assert float(found.total().detach()) == pytest.approx(wanted)
    real, fake = (4.0 / 3 + 7.25 / 3) / 2, (-0.25 - 0.75) / 2
    if second:
        assert float(found.logs["logits/real"]) == pytest.approx(real)
        assert float(found.logs["logits/fake"]) == pytest.approx(fake)
    found = objective.loss(batch, draws)
    assert set(found.terms) == {"adversarial"}
    assert float(found.total().detach()) == pytest.approx(0.5 if second else 0.25)


def test_the_best_line_is_at_its_margins():
    # Data at 2, answers at -2: any line over both margins has no loss, and nothing to learn.
    x0 = torch.full((3, 1), 2.0, dtype=D)
    for w, loss, slope in ((0.5, 0.0, 0.0), (1.0, 0.0, 0.0), (0.25, 1.0, -4.0)):
        objective = ladd(Constant(-2.0), Line(w))
        found = objective.heads_loss(Batch(x0), drawn(x0)).total()
        assert float(found.detach()) == pytest.approx(loss)
        found.backward()
        assert float(objective.judge.heads.w.grad) == pytest.approx(slope)
        assert objective.student.value.grad is None


@each_path
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_gradient_points_home(path, side):
    # Heads that learnt: the data are on the side where they rise.
    x0 = full(side, torch.zeros(8))[:, None]
    objective = ladd(Constant(0.0, path), Line(0.0), times=Uniform(path.t_min, path.t_max))
    t = full(path.t_min + 0.2 * (path.t_max - path.t_min), x0)
    objective.heads_loss(Batch(x0), drawn(x0, path, t)).total().backward()
    w = objective.judge.heads.w
    with torch.no_grad():
        w -= w.grad
    assert float(w.detach()) * side > 0
    objective.loss(Batch(x0), drawn(x0, path, t)).total().backward()
    assert float(objective.student.value.grad) * side < 0


@each_path
def test_data_and_answers_get_the_same_noise_and_time(path):
    x0, judge = normal(4, 2), Line()
    objective = ladd(Constant(0.4, path), judge, times=Uniform(path.t_min, path.t_max))
    t = torch.linspace(path.t_min, path.t_max, 6, dtype=D)[1:-1]
    draws = drawn(x0, path, t)
    objective.heads_loss(Batch(x0), draws)
    objective.loss(Batch(x0), draws)
    (real, t_real), (fake, t_fake), (again, t_again) = judge.seen
    assert t_real.equal(t)
    assert t_fake.equal(t)
    assert t_again.equal(t)
    torch.testing.assert_close(real, path.perturb(x0, draws.judged.noise, t))
    torch.testing.assert_close(fake, path.perturb(0.4 + 0 * x0, draws.judged.noise, t))
    torch.testing.assert_close(fake, again)


def test_where_answers_are_the_data_heads_learn_nothing_but_their_margin():
    # Equal samples with equal noise: the two hinges' gradients cancel.
    x0 = torch.full((4, 1), 0.2, dtype=D)
    objective = ladd(Constant(0.2), Line(0.3, 0.1), times=Uniform(0.1, 0.5))
    found = objective.heads_loss(Batch(x0), drawn(x0, t=full(0.3, x0))).total()
    found.backward()
    assert float(found.detach()) == pytest.approx(2.0)
    assert float(objective.judge.heads.w.grad) == pytest.approx(0.0, abs=1e-15)


# The penalty.


@pytest.mark.parametrize("second", [False, True])
def test_penalty_of_a_linear_head_is_its_slope(second):
    x0, judge = normal(5, 3), Line(0.7, 0.2, second)
    objective = ladd(Constant(0.1), judge, penalty=0.5)
    found = objective.heads_loss(Batch(x0), drawn(x0)).terms
    assert float(found["penalty"].detach()) == pytest.approx(0.5 * 3 * 0.7**2)
    found["penalty"].backward()
    assert float(judge.heads.w.grad) == pytest.approx(0.5 * 3 * 2 * 0.7)
    plain = ladd(Constant(0.1), judge).heads_loss(Batch(x0), drawn(x0)).terms
    assert set(plain) == {"heads"}
    torch.testing.assert_close(plain["heads"], found["heads"])


def test_penalty_of_a_curved_head_is_that_of_the_data():
    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor(0.6, dtype=D))

        def forward(self, features, cond=None):
            return [self.a * f.square() for f in features]

    judge = Line()
    judge.heads = Square()
    x0 = normal(5, 3)
    objective = ladd(Constant(9.0), judge, penalty=1.0)
    found = objective.heads_loss(Batch(x0), drawn(x0)).terms["penalty"]
    wanted = (1.2 * x0).square().sum(1).mean()
    torch.testing.assert_close(found.detach(), wanted)
    found.backward()
    torch.testing.assert_close(judge.heads.a.grad, 2 * wanted / 0.6)


# The teacher's term.


@each_path
def test_answers_that_the_teacher_keeps_cost_nothing(path):
    x0 = normal(6, 2)
    t = torch.linspace(path.t_min, path.t_max, 8, dtype=D)[1:-1]
    taught = Noised(t, normal(6, 2, seed=8))
    teacher = GaussianDenoiser(path, POINT)
    for offset in (0.0, 0.2, -0.2):
        student = Offset(GaussianDenoiser(path, POINT), offset)
        objective = ladd(student, teacher=teacher, teacher_times=Uniform(path.t_min, path.t_max))
        term = objective.loss(Batch(x0), drawn(x0, path, taught=taught)).terms["distillation"]
        term.backward()
        if offset:
            assert float(student.offset.grad) * offset > 0
        else:
            assert float(term.detach()) < 1e-30
            assert float(student.offset.grad) == 0


@each_path
def test_the_teachers_term_by_hand(path):
    x0 = normal(6, 2)
    t = torch.linspace(path.t_min, path.t_max, 8, dtype=D)[1:-1]
    noise = normal(6, 2, seed=8)
    teacher = Watched(GaussianDenoiser(path, DATA))
    objective = ladd(
        Constant(0.9, path),
        teacher=teacher,
        teacher_times=Uniform(path.t_min, path.t_max),
        distillation=1.5,
    )
    draws = drawn(x0, path, taught=Noised(t, noise))
    found = objective.loss(Batch(x0, {"label": torch.arange(6)}), draws).terms["distillation"]
    answer = torch.full((6, 2), 0.9, dtype=D)
    x_t = path.perturb(answer, noise, t)
    gap = answer - DATA.denoised(path, x_t, t)
    alpha, sigma, _, _ = path.coefficients(t)
    weight = alpha / (alpha**2 + sigma**2).sqrt()
    torch.testing.assert_close(found.detach(), 1.5 * (weight * gap.square().mean(1)).mean())
    if isinstance(path, VariancePreserving | CosineVariancePreserving | DiscreteVariancePreserving):
        torch.testing.assert_close(weight, alpha)
    # Only through the answer: the teacher's own answer is a target.
    found.backward()
    wanted = (1.5 * weight[:, None] * 2 * gap).sum() / gap.numel()
    torch.testing.assert_close(objective.student.value.grad, wanted)
    assert teacher.seen[0][3]["label"].equal(torch.arange(6))


def test_a_mask_leaves_out_what_is_not_there():
    x0, mask = normal(4, 3), torch.tensor([[1.0, 1.0, 0.0]], dtype=D).expand(4, 3)
    teacher = GaussianDenoiser(VE, DATA)
    draws = drawn(x0, taught=Noised(full(1.0, x0), normal(4, 3, seed=8)))
    objective = ladd(Constant(0.9), teacher=teacher, teacher_times=Uniform(0.1, 10.0))
    found = objective.loss(Batch(x0, mask=mask), draws).terms["distillation"]
    short = Draws(draws.made, draws.judged, Noised(draws.taught.t, draws.taught.noise[:, :2]))
    short = short._replace(made=Made(draws.made.noise[..., :2], draws.made.call))
    wanted = objective.loss(Batch(x0[:, :2]), short).terms["distillation"]
    torch.testing.assert_close(found, wanted)


# With networks.


def small(seed=0, classes=0) -> Denoiser:
    net = ResidualMLP((2,), width=8, blocks=2, classes=classes)
    return Denoiser(shaken(net, seed), EDM(sigma_data=0.5, path=VE))


def networks(classes=0, **options) -> LADD:
    torch.manual_seed(0)
    teacher = small(classes=classes)
    cond = {"label": torch.zeros(1, dtype=torch.int64)} if classes else {}
    judge = FeatureDiscriminator(teacher, Batch(torch.zeros(1, 2), cond), width=4, classes=classes)
    options = {
        "generate": FewSteps((10.0, 1.0), inputs="noised"),
        "times": LEVELS,
        "teacher": small(2, classes),
        "teacher_times": Uniform(0.1, 10.0),
        **options,
    }
    return LADD(small(1, classes), judge, **options)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_gradients_reach_the_phases_module_alone(classes, penalty):
    objective = networks(classes, penalty=penalty)
    cond = {"label": torch.tensor([0, 1, 2, 0])} if classes else {}
    batch = Batch(normal(4, 2).float(), cond)
    draws = objective.draw(batch, 0, Rng(0, 0, "heads"))
    objective.heads_loss(batch, draws).total().backward()
    moved = {n for n, p in objective.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved
    assert all(name.startswith("judge.judge.heads") for name in moved)
    assert any("labels" in name for name in moved) == bool(classes)
    objective.zero_grad()
    objective.judge.requires_grad_(False)
    objective.loss(batch, draws).total().backward()
    moved = {n for n, p in objective.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved
    assert all(name.startswith("student") for name in moved)


def test_penalty_is_at_what_the_heads_read():
    objective = networks(penalty=1.0)
    batch = Batch(normal(4, 2).float())
    draws = objective.draw(batch, 0, Rng(0, 0, "heads"))
    found = objective.heads_loss(batch, draws).terms["penalty"]
    t = draws.judged.t
    shown = VE.perturb(batch.x0, draws.judged.noise, t)
    each = []
    for i, feature in enumerate(objective.judge.features(shown, t)):
        feature = feature.detach().requires_grad_()
        head = objective.judge.heads.heads[i]
        (slope,) = torch.autograd.grad(head(feature).sum(), feature)
        each.append(slope.square().sum(1).mean())
    torch.testing.assert_close(found.detach(), torch.stack(each).mean())


def test_heads_and_student_learn_by_turns():
    objective = networks(heads_rate=0.5)
    phases = {phase.name: phase for phase in objective.phases()}
    assert (phases["student"].rate, phases["heads"].rate) == (1.0, 0.5)
    data = Arrays(normal(32, 2).float().numpy())
    config = TrainConfig(steps=4, batch=8, lr=1e-2)
    trainer = Trainer(objective, data, config, {}, torch.device("cpu"))
    names = ("student", "judge.judge.heads", "judge.denoiser", "teacher")
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
        assert changed == ({"judge.judge.heads"} if step % 2 else {"student"})
        assert ("penalty" in logs) == bool(step % 2)


def test_any_module_can_judge():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, x, t, cond=None):
            return [self.layer(x)]

    judge = Whole()
    objective = LADD(small(), judge, generate=FewSteps((10.0,)), times=None, penalty=0.0)
    assert objective.phases()[1].module is judge
    assert objective.frozen == ()
    batch = Batch(normal(4, 2).float())
    objective.heads_loss(batch, objective.draw(batch, 1, Rng(0, 1, "heads"))).total().backward()
    assert judge.layer.weight.grad is not None
    with pytest.raises(UsageError, match="penalty=0"):
        LADD(small(), judge, generate=FewSteps((10.0,)), times=None)


class Backbone(nn.Module):
    """A judge of a user's, with heads on what others made for it, some of it in a part."""

    def __init__(self) -> None:
        super().__init__()
        self.eyes = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.heads = nn.Linear(4, 1)

    def forward(self, x, t, cond=None):
        return [self.heads(self.eyes(x))]


def test_of_a_users_judge_only_the_heads_learn():
    objective = LADD(small(), Backbone(), generate=FewSteps((10.0,)), times=None, penalty=0.0)
    assert objective.frozen == ("judge.eyes",)
    before = {k: v.clone() for k, v in objective.judge.state_dict().items()}
    data = Arrays(normal(32, 2).float().numpy())
    config = TrainConfig(steps=4, batch=8, lr=1e-2)
    trainer = Trainer(objective, data, config, {}, torch.device("cpu"))
    for _ in range(4):
        trainer.advance()
    assert not objective.judge.eyes.training
    after = objective.judge.state_dict()
    assert {k.split(".")[0] for k, v in after.items() if not v.equal(before[k])} == {"heads"}
    assert not any(k.startswith("objective.judge.eyes") for k in trainer.state()[0])


# Draws, contract, refusals.


def test_levels_are_the_papers_on_a_linear_path():
    rng = [torch.Generator().manual_seed(3) for _ in range(2)]
    found = LEVELS.draw(Linear(), 1000, rng[0])
    torch.testing.assert_close(found, LogitNormal(1.0, 1.0)(1000, rng[1]))


@each_path
def test_draws(path):
    batch = Batch(normal(2000, 1))
    objective = ladd(
        Constant(0.0, path),
        times=LEVELS,
        generate=FewSteps((path.t_max, path.t_max / 2), inputs="noised"),
        teacher=Constant(0.0, path),
        teacher_times=Uniform(path.t_min, path.t_max),
    )
    draws = objective.draw(batch, 0, Rng(0, 0, "student"))
    t = draws.judged.t
    assert path.t_min <= t.min() < t.max() <= path.t_max
    inside = (t > path.t_min) & (t < path.t_max)
    assert float(path.ratio(t).log().median()) == pytest.approx(1.0, abs=0.1)
    assert float(inside.double().mean()) > 0.75
    noises = [draws.judged.noise, draws.taught.noise, *draws.made.noise]
    for i, a in enumerate(noises):
        assert float(a.std()) == pytest.approx(1, abs=0.05)
        for b in noises[:i]:
            assert abs(float((a * b).mean())) < 0.1
    again = objective.draw(batch, 0, Rng(0, 0, "student"))
    other = objective.draw(batch, 1, Rng(0, 1, "student"))
    assert again.judged.noise.equal(draws.judged.noise)
    assert not other.judged.noise.equal(draws.judged.noise)
    calls = {int(objective.draw(batch, k, Rng(0, k, "student")).made.call) for k in range(20)}
    assert calls == {0, 1}


def test_add_judges_clean_samples():
    x0, judge = normal(4, 2), Line()
    objective = ladd(Constant(0.4), judge)
    draws = objective.draw(Batch(x0), 0, Rng(0, 0, "student"))
    assert draws.judged.t.equal(full(VE.t_min, x0))
    assert draws.taught is None
    objective.heads_loss(Batch(x0), draws)
    assert judge.seen[0][0].equal(x0)
    assert judge.seen[1][0].equal(torch.full_like(x0, 0.4))


@each_path
def test_contract_and_samples(path):
    times = (path.t_max, 0.5 * path.t_max)
    student = Offset(GaussianDenoiser(path, POINT))
    objective = ladd(student, generate=FewSteps(times, inputs="noised"))
    contract = objective.contract(DataSpec(shape=(2,), range=None))
    assert contract.method == "ladd"
    assert contract.sampling.times == {1: times[:1], 2: times}
    assert (contract.sampling.kind, contract.sampling.any_times) == ("renoise", False)
    model = Model(objective.deliver(objective.student), contract)
    for steps in (1, 2):
        found = model.sample(3, seed=5, steps=steps)
        torch.testing.assert_close(found, torch.full_like(found, POINT.mean), rtol=1e-5, atol=1e-5)


def test_refusals():
    student, other = small(), VarianceExploding(0.1, 9.0)
    judge = FeatureDiscriminator(small().on(other), Batch(torch.zeros(1, 2)))
    options = {"generate": FewSteps((10.0,)), "times": None}
    with pytest.raises(UsageError, match="judge lives on"):
        LADD(student, judge, **options)
    judge = FeatureDiscriminator(small(), Batch(torch.zeros(1, 2)))
    teacher = small().on(other)
    with pytest.raises(UsageError, match="teacher lives on"):
        LADD(student, judge, teacher=teacher, teacher_times=LEVELS, **options)
    for given in ({"teacher": small()}, {"teacher_times": LEVELS}):
        with pytest.raises(UsageError, match="go together"):
            LADD(student, judge, **given, **options)
    for given in ({"distillation": -1.0}, {"penalty": -1.0}, {"heads_rate": 0.0}):
        with pytest.raises(UsageError, match="expected distillation"):
            LADD(student, judge, **given, **options)


def test_frozen_modules_are_named():
    assert networks().frozen == ("teacher", "judge.denoiser")
    assert networks(teacher=None, teacher_times=None).frozen == ("judge.denoiser",)
    guided = Guided(small(2, 3), {"label": 3}, 2.0)
    assert networks(3, teacher=guided).teacher is guided
