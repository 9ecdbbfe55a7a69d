"""The loop: whom it updates, with what gradient, when, and what it does about bad gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import Batch, Rng, UsageError
from fewstep.data import Arrays, positions
from fewstep.models import EDM, AbstractDenoiser, ConsistencyBoundary, Denoiser
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.base import Loss, Objective, Phase, always, every
from fewstep.objectives.consistency import Consistency, Fixed, Progressive, SameNoise, TeacherStep
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.shared.weights import unweighted
from fewstep.paths import VarianceExploding
from fewstep.times import LogNormal
from fewstep.training.averages import Averages, constant, half_life, warmed
from fewstep.training.config import TrainConfig
from fewstep.training.trainer import Diverged, Trainer

CPU = torch.device("cpu")
N = 50


class Linear(AbstractDenoiser):
    """A denoiser of points that is one matrix."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.path, self.cond_keys, self.two_time = VarianceExploding(), (), False
        self.weight = nn.Parameter(torch.full((2, 2), value))

    def forward(self, x, t, s=None, cond=None):
        return x @ self.weight


class Draws(NamedTuple):
    noise: Tensor
    factor: float


class Duel(Objective):
    """A student and a head, each of which has a loss through the other and through a teacher.

    Args:
        student_due, head_due: when each is updated.
        bad: steps at which the gradient of ``bad_phase`` is not finite.
        stage_length: steps of a stage.
        parts: losses of a phase, which add up to the same.
        rate: of the student.
    """

    frozen = ("teacher",)

    def __init__(
        self,
        *,
        student_due: Callable[[int], bool] = always,
        head_due: Callable[[int], bool] = lambda step: False,
        bad: Sequence[int] = (),
        bad_phase: str = "student",
        stage_length: int = 10**9,
        parts: int = 1,
        rate: float = 1.0,
    ) -> None:
        super().__init__()
        self.student, self.teacher = Linear(0.3), Linear(0.7)
        self.head = nn.Linear(2, 2, bias=False)
        nn.init.eye_(self.head.weight)
        self.due = {"student": student_due, "head": head_due}
        self.bad, self.bad_phase, self.stage_length = set(bad), bad_phase, stage_length
        self.parts, self.rate = parts, rate
        self.draws: list[tuple[str, int, Tensor]] = []
        self.wanting: list[tuple[str, set[str]]] = []
        self.after: list[int] = []

    def _draw(self, name: str) -> Callable[[Batch, int, Rng], Draws]:
        def draw(batch: Batch, step: int, rng: Rng) -> Draws:
            noise = torch.randn(batch.x0.shape, generator=rng)
            self.draws.append((name, step, noise))
            broken = step in self.bad and name == self.bad_phase
            return Draws(noise, math.inf if broken else 1.0)

        return draw

    def _loss(self, name: str) -> Callable[[Batch, Draws], Loss]:
        def loss(batch: Batch, draws: Draws) -> Loss:
            self.wanting.append((name, {k for k, p in self.named_parameters() if p.requires_grad}))
            t = torch.ones(len(batch))
            out = self.head(self.student(batch.x0 + draws.noise, t)) - self.teacher(batch.x0, t)
            square = draws.factor * (out**2).mean() / self.parts
            return Loss({name: square}, {f"{name}_size": out.abs().mean() / self.parts})

        return loss

    def phases(self) -> Sequence[Phase]:
        student, head = self._loss("student"), self._loss("head")
        more = [student] * (self.parts - 1)
        due = self.due
        return [
            Phase(
                "student",
                self.student,
                self._draw("student"),
                student,
                due["student"],
                more,
                self.rate,
            ),
            Phase("head", self.head, self._draw("head"), head, due["head"]),
        ]

    def after_step(self, step: int) -> None:
        self.after.append(step)

    def stage(self, step: int) -> int:
        return step // self.stage_length

    def contract(self, data: DataSpec) -> Contract:
        sampling = Sampling(start=Start(t=80.0, std=80.0), kind="renoise", any_times=True)
        return Contract(method="duel", data=data, sampling=sampling)


class Watched(Arrays):
    """Points that remember who was asked for."""

    def __init__(self) -> None:
        x = np.random.default_rng(0).normal(size=(N, 2)).astype(np.float32)
        super().__init__(x)
        self.asked: list[list[int]] = []

    def batch(self, indices):
        self.asked.append([int(i) for i in indices])
        return super().batch(indices)


def settings(**changed) -> TrainConfig:
    return TrainConfig(**{"steps": 100, "batch": 4, "lr": 0.01, **changed})


def trainer(objective: Objective, averages=None, **changed) -> Trainer:
    return Trainer(objective, Watched(), settings(**changed), averages or {}, CPU)


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def advance(t: Trainer, steps: int) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in t.advance().items()} for _ in range(steps)]


# Whom a phase updates.


@pytest.mark.parametrize(("phase", "others"), [("student", "head"), ("head", "student")])
def test_a_phase_changes_its_own_module_only(phase, others):
    due = {f"{phase}_due": always, f"{others}_due": lambda step: False}
    objective = Duel(**due)
    t = trainer(objective)
    before = {name: weights(getattr(objective, name)) for name in ("student", "head", "teacher")}
    advance(t, 3)
    moved = {name for name in before if not same(before[name], weights(getattr(objective, name)))}
    assert moved == {phase}
    assert all(p.grad is None for p in objective.parameters())


def test_gradients_are_asked_for_the_phase_only():
    objective = Duel(head_due=always)
    advance(trainer(objective), 2)
    expected = [("student", {"student.weight"}), ("head", {"head.weight"})]
    assert objective.wanting == expected * 2


def test_phases_run_in_order_on_one_batch():
    objective = Duel(head_due=always)
    t = trainer(objective)
    advance(t, 2)
    assert [(name, step) for name, step, _ in objective.draws] == [
        ("student", 0),
        ("head", 0),
        ("student", 1),
        ("head", 1),
    ]
    assert t.data.asked == [positions(0, step, 4, N).tolist() for step in range(2)]
    # Each phase has noise of its own.
    assert not torch.equal(objective.draws[0][2], objective.draws[1][2])


def test_several_losses_of_a_phase_are_their_sum():
    whole, parted = (Duel(parts=n) for n in (1, 4))
    logs, others = (advance(trainer(objective, accumulation=2), 3) for objective in (whole, parted))
    for row, other in zip(logs, others, strict=True):
        assert row == pytest.approx(other, rel=1e-6)
    torch.testing.assert_close(whole.student.weight, parted.student.weight, rtol=1e-6, atol=0)
    assert len(parted.draws) == len(whole.draws)


def test_a_phase_has_its_own_share_of_the_learning_rate():
    whole, half = Duel(), Duel(rate=0.5)
    start = weights(whole.student)[0]
    for objective in (whole, half):
        advance(trainer(objective), 1)
    moved, less = (objective.student.weight.detach() - start for objective in (whole, half))
    torch.testing.assert_close(moved, 2 * less, rtol=1e-4, atol=0)


# With what gradient.


def by_hand(steps: int, config: TrainConfig) -> tuple[list[Tensor], list[float]]:
    """Whole steps of 2 x batch samples at once, by torch alone."""
    data, teacher = Watched(), torch.full((2, 2), 0.7)
    weight = torch.full((2, 2), 0.3, requires_grad=True)
    adam = torch.optim.Adam([weight], lr=config.lr)
    losses = []
    for step in range(steps):
        shards = range(config.accumulation)
        index = [positions(config.seed, step, config.batch, N, s, len(shards)) for s in shards]
        x0 = data.batch(np.concatenate(index)).x0
        rngs = [Rng(config.seed, step, "student", s) for s in shards]
        noise = torch.cat([torch.randn(config.batch, 2, generator=rng) for rng in rngs])
        loss = (((x0 + noise) @ weight - x0 @ teacher) ** 2).mean()
        adam.zero_grad()
        loss.backward()
        if config.clip:
            nn.utils.clip_grad_norm_([weight], config.clip)
        for group in adam.param_groups:
            group["lr"] = config.learning_rate(step)
        adam.step()
        losses.append(float(loss.detach()))
    return [weight.detach()], losses


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_accumulated_shards_are_one_batch(accumulation, clip):
    objective = Duel()
    t = trainer(objective, accumulation=accumulation, clip=clip, warmup=3, schedule="cosine")
    found = advance(t, 4)
    expected, losses = by_hand(4, t.config)
    # One loss over a concatenation sums in another order than several do.
    torch.testing.assert_close(weights(objective.student), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose([row["student"] for row in found], losses, rtol=1e-5)


def test_shards_have_their_own_samples_and_draws():
    objective = Duel()
    t = trainer(objective, accumulation=2, seed=5)
    advance(t, 2)
    expected = [positions(5, k, 4, N, s, 2).tolist() for k in range(2) for s in range(2)]
    assert t.data.asked == expected
    rngs = [Rng(5, k, "student", s) for k in range(2) for s in range(2)]
    noises = [torch.randn(4, 2, generator=rng) for rng in rngs]
    assert same([noise for _, _, noise in objective.draws], noises)


def test_two_shards_see_the_data_that_one_large_batch_sees():
    one, two = trainer(Duel(), batch=8), trainer(Duel(), accumulation=2)
    advance(one, 3)
    advance(two, 3)
    assert [*chain(*one.data.asked)] == [*chain(*two.data.asked)]


def test_the_logged_norm_is_of_the_whole_gradient_before_clipping():
    rows = {clip: advance(trainer(Duel(), clip=clip), 1)[0] for clip in (0.0, 1e-3)}
    assert rows[0.0]["grad_norm/student"] == rows[1e-3]["grad_norm/student"] > 1e-3


def test_what_is_logged():
    objective = Duel(head_due=every(2))
    both, one = advance(trainer(objective, accumulation=2), 2)
    names = {"lr", "loss", "student", "student_size", "grad_norm/student"}
    assert set(one) == names
    assert set(both) == names | {"head", "head_size", "grad_norm/head"}
    assert both["loss"] == pytest.approx(both["student"] + both["head"])
    assert one["loss"] == pytest.approx(one["student"])


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("radam", torch.optim.RAdam)],
)
def test_optimisers(name, kind):
    objective = Duel()
    options = {"betas": (0.5, 0.7), "eps": 1e-3, "weight_decay": 0.1}
    t = trainer(objective, optimizer=name, **options)
    weight = nn.Parameter(torch.full((2, 2), 0.3))
    reference = kind([weight], lr=0.01, **options)
    for step in range(8):
        x0 = t.data.batch(positions(0, step, 4, N)).x0
        noise = torch.randn(4, 2, generator=Rng(0, step, "student"))
        (((x0 + noise) @ weight - x0 @ torch.full((2, 2), 0.7)) ** 2).mean().backward()
        reference.step()
        reference.zero_grad()
    advance(t, 8)
    torch.testing.assert_close(objective.student.weight, weight, rtol=1e-5, atol=1e-7)


# Gradients that are not finite.


def test_a_bad_gradient_is_skipped_and_counted():
    objective = Duel(bad=[2])
    t = trainer(objective, {"ema": constant(0.5)})
    advance(t, 2)
    student, average = weights(objective.student), weights(t.averages.copies["ema"])
    moments = [v.clone() for v in t.optimizers["student"].state[objective.student.weight].values()]
    row = advance(t, 1)[0]
    assert math.isinf(row["student"])
    assert not math.isfinite(row["grad_norm/student"])
    assert (t.step, t.skipped, t.failed["student"]) == (3, 1, 1)
    assert objective.after == [0, 1]
    assert t.averages.updates == 2
    assert same(weights(objective.student), student)
    assert same(weights(t.averages.copies["ema"]), average)
    assert same([*t.optimizers["student"].state[objective.student.weight].values()], moments)
    advance(t, 2)
    assert (t.step, t.skipped, t.failed["student"]) == (5, 1, 0)
    assert objective.after == [0, 1, 3, 4]
    assert t.averages.updates == 4
    assert not same(weights(objective.student), student)


def test_one_bad_shard_spoils_its_step_only():
    objective = Duel(bad=[1])
    draw = objective._draw("student")
    calls = []

    def second_shard_is_bad(batch, step, rng):
        calls.append(step)
        found = draw(batch, step, rng)
        return found if step != 1 or calls.count(1) == 2 else Draws(found.noise, 1.0)

    phase = Phase("student", objective.student, second_shard_is_bad, objective._loss("student"))
    objective.phases = lambda: [phase]
    t = trainer(objective, accumulation=2)
    advance(t, 3)
    assert t.skipped == 1
    assert all(w.isfinite().all() for w in weights(objective.student))


def test_a_bad_later_phase_stops_what_follows_the_student():
    objective = Duel(head_due=always, bad=[1], bad_phase="head")
    t = trainer(objective, {"ema": constant(0.5)})
    advance(t, 1)
    head = weights(objective.head)
    advance(t, 1)
    assert same(weights(objective.head), head)
    advance(t, 1)
    assert not same(weights(objective.head), head)
    assert objective.after == [0, 2]
    assert t.skipped == 1


def test_ten_bad_steps_in_a_row_stop_the_run():
    t = trainer(Duel(bad=range(3, 13)))
    advance(t, 12)
    assert t.failed["student"] == 9
    with pytest.raises(
        Diverged, match=r"10 updates of the student in a row, up to step 13.*lower --train\.lr"
    ):
        t.advance()


def test_good_steps_of_another_phase_do_not_hide_bad_ones():
    objective = Duel(bad=range(0, 99, 2))
    due = [Phase("head", objective.head, objective._draw("head"), objective._loss("head"))]
    student = Phase(
        *("student", objective.student, objective._draw("student"), objective._loss("student")),
        due=lambda step: step % 2 == 0,
    )
    objective.phases = lambda: [*due, student]
    t = trainer(objective)
    advance(t, 18)
    assert (t.failed["student"], t.failed["head"], t.skipped) == (9, 0, 9)
    with pytest.raises(Diverged, match=r"10 updates of the student in a row, up to step 19"):
        advance(t, 2)


def test_a_good_step_starts_the_count_anew():
    t = trainer(Duel(bad=[*range(3, 12), *range(13, 22)]))
    advance(t, 25)
    assert t.skipped == 18


# When.


def test_due():
    objective = Duel(student_due=every(3), head_due=lambda step: step >= 2)
    t = trainer(objective)
    rows = advance(t, 7)
    assert [step for name, step, _ in objective.draws if name == "student"] == [0, 3, 6]
    assert [step for name, step, _ in objective.draws if name == "head"] == [2, 3, 4, 5, 6]
    assert ["student" in row for row in rows] == [step % 3 == 0 for step in range(7)]


def test_a_step_with_nothing_due_is_no_bad_step():
    t = trainer(Duel(student_due=every(15)))
    advance(t, 16)
    assert t.skipped == 0
    assert len(t.objective.draws) == 2


def test_averages_count_the_students_updates():
    objective = Duel(student_due=every(3), head_due=always)
    t = trainer(objective, {"ema": constant(0.5)})
    expected, count = weights(objective.student)[0], 0
    for step in range(7):
        advance(t, 1)
        if step % 3 == 0:
            expected, count = 0.5 * expected + 0.5 * weights(objective.student)[0], count + 1
        assert t.averages.updates == count
        torch.testing.assert_close(t.averages.copies["ema"].weight, expected)


def test_a_phase_over_the_whole_objective_updates_the_student():
    objective = Duel()
    both = nn.ModuleList([objective.student, objective.head])
    phase = Phase("all", both, objective._draw("student"), objective._loss("student"))
    objective.phases = lambda: [phase]
    t = trainer(objective, {"ema": constant(0.5)})
    head = weights(objective.head)
    advance(t, 3)
    assert t.averages.updates == 3
    assert not same(weights(objective.head), head)


def test_a_stage_starts_everything_anew():
    objective = Duel(stage_length=4)
    t = trainer(objective, {"ema": constant(0.9)}, warmup=3, schedule="linear", lr=0.1)
    rates = [row["lr"] for row in advance(t, 4)]
    assert rates == [t.config.learning_rate(step) for step in range(4)]
    entering = weights(objective.student)[0]
    optimizer = t.optimizers["student"]
    assert advance(t, 1)[0]["lr"] == rates[0]
    assert t.optimizers["student"] is not optimizer
    assert float(t.optimizers["student"].state[objective.student.weight]["step"]) == 1
    assert t.averages.updates == 1
    moved = 0.9 * entering + 0.1 * objective.student.weight.detach()
    torch.testing.assert_close(t.averages.copies["ema"].weight, moved)
    assert [row["lr"] for row in advance(t, 3)] == rates[1:]
    assert (t.stage, t.stage_start) == (1, 4)


# Averages.


@pytest.mark.parametrize("updates", [0, 1, 8, 89, 10**6])
def test_warmed(updates):
    literal = {0: 0.1, 1: 2 / 11, 8: 0.5, 89: 90 / 99, 10**6: 0.999}
    assert warmed(0.999)(updates) == pytest.approx(literal[updates])


def test_constant():
    assert {constant(0.9999)(k) for k in (0, 1, 10**6)} == {0.9999}


@pytest.mark.parametrize("updates", [0, 1, 2, 100, 19_531, 19_532, 10**6])
def test_half_life_is_edms(updates):
    # training_loop.py of NVlabs/edm at its defaults for CIFAR-10: 0.5 Mimg, ramp-up ratio 0.05.
    cur_nimg, batch_size = updates * 512, 512
    ema_halflife_nimg = min(500 * 1000, cur_nimg * 0.05)
    ema_beta = 0.5 ** (batch_size / max(ema_halflife_nimg, 1e-8))
    assert half_life(500_000, 512)(updates) == ema_beta


def test_half_life_ramp_in_numbers():
    rule = half_life(500_000, 512)
    assert rule(0) == 0
    assert rule(1) == pytest.approx(2.0**-20)  # 512 samples of a half-life of 0.05 x 512
    assert rule(20) == pytest.approx(0.5)
    assert rule(10**6) == pytest.approx(2 ** (-512 / 500_000))


def test_half_life_halves():
    student = Linear(1.0)
    averages = Averages(student, {"ema": half_life(1000, 10, ramp=None)})
    with torch.no_grad():
        student.weight.zero_()
    for _ in range(100):
        averages.update(student)
    torch.testing.assert_close(averages.copies["ema"].weight, torch.full((2, 2), 0.5))


def test_averages_of_a_constant_rate_in_closed_form():
    student = Linear(0.0)
    averages = Averages(student, {"slow": constant(0.75), "fast": constant(0.25)})
    for k in range(1, 6):
        with torch.no_grad():
            student.weight.fill_(float(k))
        averages.update(student)
    for name, rate in (("slow", 0.75), ("fast", 0.25)):
        closed = sum((1 - rate) * rate ** (5 - k) * k for k in range(1, 6))
        torch.testing.assert_close(averages.copies[name].weight, torch.full((2, 2), closed))
        assert not averages.copies[name].weight.requires_grad


# Settings.


def test_constant_learning_rate_warms_up():
    config = settings(lr=0.5, warmup=10)
    rates = [config.learning_rate(step) for step in (0, 4, 9, 10, 99)]
    assert rates == pytest.approx([0.05, 0.25, 0.5, 0.5, 0.5])


def test_linear_learning_rate():
    config = settings(lr=0.5, schedule="linear")
    rates = [config.learning_rate(step) for step in (0, 25, 50, 99, 100, 150)]
    assert rates == pytest.approx([0.5, 0.375, 0.25, 0.005, 0, 0])


def test_cosine_learning_rate():
    config = settings(lr=0.5, schedule="cosine", warmup=10)
    rates = [config.learning_rate(step) for step in (0, 50, 100)]
    assert rates == pytest.approx([0.05, 0.25, 0])
    assert config.learning_rate(25) == pytest.approx(0.25 * (1 + math.sqrt(0.5)))


def test_good_settings_are_taken():
    settings(lr=0.0, clip=0.0, warmup=0, threads=0, sample_every=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((n, 0) for n in ("steps", "batch", "accumulation", "log_every", "save_every", "keep")),
        *((n, -1) for n in ("warmup", "seed", "threads", "sample_every")),
        *(
            (n, v)
            for n in ("lr", "eps", "weight_decay", "clip")
            for v in (-1e-9, math.nan, math.inf)
        ),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.9)),
        ("betas", (0.9, math.nan)),
    ],
)
def test_bad_settings_are_named(name, value):
    with pytest.raises(UsageError) as caught:
        settings(**{name: value})
    (problem,) = str(caught.value).splitlines()
    assert f"train.{name} " in problem
    assert str(value) in problem


def test_all_problems_are_told():
    with pytest.raises(UsageError) as caught:
        settings(steps=0, lr=math.nan, betas=(2, 2))
    assert len(str(caught.value).splitlines()) == 3


# Modes and dropout.


def network(dropout: float, seed: int = 0) -> ResidualMLP:
    torch.manual_seed(seed)
    net = ResidualMLP((2,), 8, 1, dropout=dropout)
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    return net


def distillation() -> Consistency:
    teacher = Denoiser(network(0.5), EDM(sigma_data=0.5))
    student = Denoiser(network(0.5), ConsistencyBoundary(sigma_data=0.5))
    return Consistency(student, TeacherStep(teacher), schedule=Fixed(5, 0.9))


def test_teachers_evaluate_while_students_train():
    objective = distillation()
    t = trainer(objective, {"ema": constant(0.9)})
    for _ in range(2):
        assert not any(m.training for m in objective.step.teacher.modules())
        assert all(m.training for m in objective.student.modules())
        assert all(m.training for m in objective.target.modules())
        assert not any(m.training for m in t.averages.copies["ema"].modules())
        advance(t, 1)


def test_only_the_students_copies_follow():
    objective = distillation()
    teacher = weights(objective.step)
    advance(trainer(objective), 3)
    assert same(weights(objective.step), teacher)
    assert not same(weights(objective.target), weights(objective.student))


@pytest.mark.parametrize("kind", ["denoising", "training", "distillation"])
def test_dropout_repeats(kind):
    def build() -> Objective:
        if kind == "distillation":
            return distillation()
        if kind == "denoising":
            student = Denoiser(network(0.5), EDM(sigma_data=0.5))
            return Denoising(student, times=LogNormal(), weight=unweighted)
        student = Denoiser(network(0.5), ConsistencyBoundary(sigma_data=0.5))
        return Consistency(student, SameNoise(student.path), schedule=Progressive(2, 5, 20))

    def losses(disturbed: bool, seed: int = 0) -> list[dict[str, float]]:
        t = trainer(build(), seed=seed, accumulation=2)
        found = []
        for _ in range(4):
            if disturbed:
                torch.rand(7)
            found += advance(t, 1)
        return found

    assert losses(False) == losses(True)
    assert losses(False) != losses(False, seed=1)


def test_a_rule_is_asked_by_the_number_of_updates_made():
    asked = []
    t = trainer(distillation(), {"ema": lambda updates: asked.append(updates) or 0.5})
    advance(t, 3)
    assert asked == [0, 1, 2]
