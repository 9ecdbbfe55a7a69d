"""What write-ups and code often get wrong; docs/pitfalls.md names the test that shows each.

Those that no other test shows are here, and so is the check that every named one exists.
"""

from __future__ import annotations

import ast
import copy
import functools
import math
import re
import shlex
import zlib
from dataclasses import fields
from inspect import signature
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewstep.cli import dispatch as cli
from fewstep.core import Batch, Rng, entropy, expand
from fewstep.data import digits, toy
from fewstep.derivatives import jvp
from fewstep.metrics import flatten, frechet_distance, moments_of
from fewstep.models import EDM, ConsistencyBoundary, Denoiser
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.consistency import (
    Consistency,
    Draws,
    Fixed,
    Progressive,
    SameNoise,
    TeacherStep,
)
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.shared.distances import LPIPS, PseudoHuber, l2
from fewstep.objectives.shared.weights import karras_weight
from fewstep.paths import VarianceExploding, VariancePreserving
from fewstep.recipes import Recipe, recipe
from fewstep.solvers import ddim, euler
from fewstep.system.files import whole_folder
from fewstep.times import LogNormal
from fewstep.training.averages import constant
from fewstep.training.config import TrainConfig
from fewstep.training.trainer import Trainer
from oracles import (
    D,
    Gaussian,
    GaussianConsistency,
    GaussianDenoiser,
    Offset,
    Watched,
    four_points,
    full,
    normal,
    slope,
)

ROOT = Path(__file__).parents[1]
DATA = Gaussian(0.3, 0.7)
# t_min so high that leaving it out would show.
PATH = VarianceExploding(0.1, 80.0)


def network(d: int = 3, dropout: float = 0.0) -> nn.Module:
    """In float64 and with no zero among its weights: a fresh one answers 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # frequencies of the time embedding are drawn, too
        net = ResidualMLP((d,), width=16, blocks=2, dropout=dropout).to(D)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=D) / p[0].numel() ** 0.5)
    return net


def few_step(path: VarianceExploding = PATH, dropout: float = 0.0) -> Denoiser:
    return Denoiser(network(dropout=dropout), ConsistencyBoundary(sigma_data=0.5, path=path))


def trainer(objective, averages=None, **settings) -> Trainer:
    config = TrainConfig(**{"steps": 10, "batch": 16, **settings})
    return Trainer(objective, toy("gaussian", 100), config, averages or {}, torch.device("cpu"))


# The docs.


def test_the_tests_that_the_page_names_exist():
    page = (ROOT / "docs" / "pitfalls.md").read_text(encoding="utf-8")
    pitfalls = re.split(r"^### ", page, flags=re.MULTILINE)[1:]
    assert len(pitfalls) > 20
    for pitfall in pitfalls:
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", pitfall)
        assert named, f"no test is named for: {pitfall.splitlines()[0]}"
        for file, test in named:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert test in there, f"{file} has no {test}"


COMING_FROM = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^fewstep .+$", COMING_FROM.replace("\\\n", " "), flags=re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page_are_understood(command, monkeypatch):
    seen = []

    def unrun(function):
        """With the same options, but only noting what they are."""
        return functools.wraps(function)(lambda *_, **given: seen.append(given))

    monkeypatch.setattr(Recipe, "check", lambda self: None)  # its teacher is not there
    monkeypatch.setattr(
        "fewstep.training.train.train", lambda recipe, *_, **__: seen.append(recipe)
    )
    monkeypatch.setattr("fewstep.cli.prepared.prepared", lambda recipe, *_, **__: recipe)
    for verb in ("sample", "evaluate", "import_", "export"):
        monkeypatch.setattr(cli, verb, unrun(getattr(cli, verb)))
    cli.main(shlex.split(command)[1:])
    assert len(seen) == 1


def test_options_and_names_of_the_page_exist():
    assert len(COMMANDS) >= 6
    known = {
        "out",
        "fresh",
        "model",
        *signature(cli.sample).parameters,
        *signature(cli.evaluate).parameters,
    }
    known |= {f"train.{f.name}" for f in fields(TrainConfig)}
    for name in ("edm", "cd", "ct", "ect", "lcm", "progressive"):
        known |= recipe(name).arguments().keys()
    ours = "\n".join(re.findall(r"^\|[^|]*\|([^|]*)\|", COMING_FROM, flags=re.MULTILINE))
    options = {o.replace("-", "_") for o in re.findall(r"`--([a-z][\w.-]*)", ours)}
    assert len(options) > 20
    assert {o.removeprefix("no_") for o in options} <= known


def test_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", COMING_FROM, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict = {}
    with torch.random.fork_rng(devices=[]):
        for block in blocks:
            exec(block, names)


# Consistency distillation and training.


def test_online_is_the_noisier_point_and_reaches_the_top():
    student = GaussianConsistency(PATH, DATA)
    objective = Consistency(student, SameNoise(PATH), schedule=Fixed(18))
    t, r, *_ = objective.draw(Batch(normal(2000, 1)), 0, Rng(0, 0, "student"))
    assert (t > r).all()
    assert (float(t.max()), float(r.min())) == pytest.approx((80.0, 0.1))
    pairs = {(float(a), float(b)) for a, b in zip(t, r, strict=True)}
    ladder = [float(v) for v in objective.grid(18)]
    assert pairs == set(pairwise(ladder))


def pair(t: float = 2.0, r: float = 1.5, d: int = 3) -> tuple[Batch, Draws]:
    x0, noise = normal(2, 8, d)
    return Batch(x0), Draws(full(t, x0), full(r, x0), noise)


def test_the_target_sees_what_the_solver_makes_of_the_online_point():
    teacher = Watched(GaussianDenoiser(PATH, DATA))
    student = Watched(GaussianConsistency(PATH, DATA))
    batch, draws = pair()
    objective = Consistency(student, TeacherStep(teacher), schedule=Fixed(18))
    objective.loss(batch, draws)
    (x_r, r, *_), (x_t, t, *_) = student.seen
    assert t.equal(draws.t)
    assert r.equal(draws.r)
    torch.testing.assert_close(x_t, batch.x0 + 2.0 * draws.noise)
    # The teacher is asked where the step starts, and for Heun's corrector where it ends.
    assert [float(seen[1][0]) for seen in teacher.seen] == [2.0, 1.5]
    assert teacher.seen[0][0].equal(x_t)
    exact = DATA.flow(PATH, x_t, t, r)
    torch.testing.assert_close(x_r, exact, rtol=0, atol=0.02)
    straight = batch.x0 + 1.5 * draws.noise
    assert (straight - exact).abs().max() > 0.2


@pytest.mark.parametrize("rate", [0.0, 0.9])
def test_only_the_online_answer_has_a_gradient(rate):
    ramp = lambda t: t - PATH.t_min  # noqa: E731
    student = Offset(GaussianConsistency(PATH, DATA), offset=0.4, ramp=ramp)
    objective = Consistency(student, SameNoise(PATH), schedule=Fixed(18, rate))
    batch, draws = pair()
    objective.loss(batch, draws).total().backward()
    with torch.no_grad():
        x_t, x_r = (PATH.perturb(batch.x0, draws.noise, at) for at in (draws.t, draws.r))
        gap = student(x_t, draws.t) - student(x_r, draws.r)
        online_only = (2 * gap * expand(ramp(draws.t), gap)).mean()
        through_both = (2 * gap * expand(draws.t - draws.r, gap)).mean()
    torch.testing.assert_close(student.offset.grad, online_only)
    assert (online_only - through_both).abs() > 0.1


def test_an_exact_student_has_no_loss_in_distillation_but_has_one_in_training():
    student = GaussianConsistency(PATH, DATA)
    steps = {
        "cd": TeacherStep(GaussianDenoiser(PATH, DATA)),
        "ct": SameNoise(PATH),
    }
    x0, noise = four_points(DATA, 2)
    gaps, found = [0.1, 0.05, 0.025], {}
    for name, step in steps.items():
        objective = Consistency(student, step, schedule=Fixed(18))
        draws = [Draws(full(2.0, x0), full(2.0 - gap, x0), noise) for gap in gaps]
        found[name] = [float(objective.loss(Batch(x0), d).total()) for d in draws]
    # Squares of Heun's third-order error of a step, and of the noise that one sample stands for.
    assert slope(gaps, found["cd"]) == pytest.approx(6, abs=0.2)
    assert slope(gaps, found["ct"]) == pytest.approx(2, abs=0.2)
    assert found["ct"][-1] > 1e4 * found["cd"][-1]


def test_edm_scalings_are_no_boundary():
    x = normal(4, 3)
    plain = Denoiser(network(), EDM(sigma_data=0.5, path=PATH))
    assert (plain(x, full(0.1, x)) - x).abs().max() > 0.01
    assert few_step()(x, full(0.1, x)).equal(x)


def test_a_boundary_at_zero_meets_no_logarithm_of_zero():
    path = VarianceExploding(0.0, 80.0)
    student = few_step(path)
    batch, draws = pair(2.0, 0.0)
    assert student(batch.x0, draws.r).isnan().all()  # the network saw ln 0; 0 * nan is nan
    objective = Consistency(student, SameNoise(path), schedule=Fixed(18))
    loss = objective.loss(batch, draws).total()
    # The target at 0 is the clean sample, so here the loss is a denoiser's.
    answer = student(path.perturb(batch.x0, draws.noise, draws.t), draws.t)
    torch.testing.assert_close(loss, l2(answer, batch.x0).mean())
    loss.backward()
    assert all(p.grad.isfinite().all() for p in student.parameters())


CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")],
)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("rate", [0.0, 0.9])
def test_online_and_target_share_their_dropout(rate, device):
    student = few_step(dropout=0.5).train().to(device)
    objective = Consistency(student, SameNoise(PATH), schedule=Fixed(18, rate))
    batch, draws = pair(2.0, 2.0 * (1 - 1e-9))
    batch, draws = batch.to(device), Draws(*(v.to(device) for v in draws[:3]))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        # Two points so close differ by their masks or not at all.
        assert float(objective.loss(batch, draws).total()) < 1e-12
        apart = student(batch.x0, draws.t) - student(batch.x0, draws.t)
    assert float(apart.square().mean()) > 1e-3


def test_training_leaves_the_teacher_in_evaluation_mode():
    teacher = Denoiser(network(2, dropout=0.5), EDM(sigma_data=0.5, path=PATH))
    student = Denoiser(network(2, dropout=0.5), ConsistencyBoundary(sigma_data=0.5, path=PATH))
    objective = Consistency(student, TeacherStep(teacher), schedule=Fixed(18, 0.9))
    trainer(objective)
    assert not any(m.training for m in teacher.modules())
    assert all(m.training for m in student.modules())
    assert objective.target is not None
    assert all(m.training for m in objective.target.modules())


def test_the_target_is_not_the_average_that_is_sampled():
    student = Denoiser(network(2), ConsistencyBoundary(sigma_data=0.5, path=PATH))
    objective = Consistency(student, SameNoise(PATH), schedule=Fixed(18, 0.95))
    training = trainer(objective, {"slow": constant(0.999)})
    before = copy.deepcopy(student.state_dict())
    training.advance()
    weight = "net.last.weight"
    moved = student.state_dict()[weight] - before[weight]
    assert objective.target is not None
    for follower, share in ((objective.target, 0.05), (training.averages.copies["slow"], 0.001)):
        followed = follower.state_dict()[weight] - before[weight]
        torch.testing.assert_close(followed, share * moved, rtol=1e-6, atol=1e-15)


def test_a_target_at_rate_zero_is_no_second_network():
    student = few_step()
    assert Consistency(student, SameNoise(PATH), schedule=Fixed(18)).target is None
    assert Consistency(student, SameNoise(PATH), schedule=Fixed(18, 0.5)).target is not None


# Song et al. 2023, table 3: CIFAR-10 and ImageNet-64; the values are those of their code.
@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [
        (Progressive(2, 150, 800_000, 0.9), (2, 0.81), (151, 0.998596)),
        (Progressive(2, 200, 800_000, 0.95), (2, 0.9025), (201, 0.999487)),
    ],
)
def test_points_grow_by_steps_from_two_to_one_more_than_the_end(schedule, first, last):
    assert schedule(0) == pytest.approx(first, abs=1e-6)
    assert schedule(schedule.steps) == pytest.approx(last, abs=1e-6)
    # With the square root of the step: more than half of the growth in the first half.
    middle = math.sqrt((schedule.start**2 + (schedule.end + 1) ** 2) / 2)
    assert schedule(schedule.steps // 2).points == math.ceil(middle - 1) + 1
    points = [schedule(step).points for step in range(0, schedule.steps, 10_000)]
    assert points == sorted(points)


# Distances and scales.


def test_pseudo_huber_is_a_norm_of_the_whole_sample():
    a, b = normal(2, 4, 3, 32, 32)
    square = (a - b).square().flatten(1)
    c = 0.02993  # 0.00054 sqrt(3072)
    found = PseudoHuber()(a, b, None)
    torch.testing.assert_close(found, (square.sum(1) + c**2).sqrt() - c, rtol=1e-6, atol=0)
    by_element = ((square + c**2).sqrt() - c).mean(1)
    assert (found / by_element).min() > 50
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(PseudoHuber()(a, b, None).sum(), a)
    norms = gradient.flatten(1).norm(dim=1)
    assert (norms < 1).all()
    assert (norms > 0.999).all()


def test_mean_distances_forget_the_size_of_the_sample_and_norms_do_not():
    a, b = normal(2, 4, 3, 8, 8)
    wide_a, wide_b = (torch.cat([v, v, v, v], 1) for v in (a, b))
    torch.testing.assert_close(l2(wide_a, wide_b), l2(a, b))
    norm = PseudoHuber(0.0)
    torch.testing.assert_close(norm(wide_a, wide_b, None), 2 * norm(a, b, None))


def first_steps(optimizer: str, scale: float, steps: int) -> Tensor:
    """How far some weights move in a training whose loss is ``scale`` times EDM's."""
    edm = karras_weight(0.5)
    student = Denoiser(network(2), EDM(sigma_data=0.5))
    before = student.net.last.weight.detach().clone()
    objective = Denoising(student, times=LogNormal(), weight=lambda snr: scale * edm(snr))
    training = trainer(objective, lr=1e-3, optimizer=optimizer)
    for _ in range(steps):
        training.advance()
    return student.net.last.weight.detach() - before


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_adam_forgets_the_scale_of_the_loss(optimizer):
    mean, total = (first_steps(optimizer, scale, 4) for scale in (1.0, 3072.0))
    # The data is float32, and eps is 1e-8.
    torch.testing.assert_close(total, mean, rtol=1e-3, atol=1e-7)


def test_radam_starts_with_steps_that_do_not():
    mean, total = (first_steps("radam", scale, 1) for scale in (1.0, 3072.0))
    torch.testing.assert_close(total, 3072 * mean, rtol=1e-5, atol=1e-9)


class Seen(nn.Module):
    """A distance that keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        self.seen += [a, b]
        return (a - b).square().mean((1, 2, 3), keepdim=True)


def test_lpips_sees_enlarged_images_in_minus_one_to_one():
    a = torch.full((2, 3, 8, 8), -1.0, dtype=D)
    lpips = Seen()
    found = LPIPS(lpips, size=16)(a, -a, None)
    assert found.shape == (2,)
    assert [tuple(x.shape[-2:]) for x in lpips.seen] == [(16, 16)] * 2
    assert [(float(x.min()), float(x.max())) for x in lpips.seen] == [(-1, -1), (1, 1)]


# What the network sees.


@pytest.mark.parametrize("kind", [EDM, ConsistencyBoundary])
def test_inputs_have_unit_variance_at_every_time(kind):
    x0, noise = four_points(Gaussian(0.0, 0.5), 2)
    path = VarianceExploding()
    for t in (0.002, 0.3, 80.0):
        x_t = path.perturb(x0, noise, full(t, x0))
        c_in = kind(sigma_data=0.5).coefficients(full(t, x0)).c_in
        seen = (expand(c_in, x_t) * x_t).square().mean()
        assert float(seen) == pytest.approx(1, abs=1e-12)
    assert float(x_t.square().mean()) == pytest.approx(80**2 + 0.5**2)


def test_the_spread_of_the_data_is_measured():
    data = digits("train")
    spread = float(data.batch(range(len(data))).x0.std())
    assert spread == pytest.approx(0.752, abs=1e-3)
    # At small t the network's input has the variance (spread / sigma_data)^2.
    t = torch.tensor([0.002], dtype=D)
    wrong, right = (float(EDM(sigma_data=s).coefficients(t).c_in) * spread for s in (0.5, 0.75))
    assert right**2 == pytest.approx(1, abs=0.01)
    assert wrong**2 > 2.2


def test_the_scale_of_time_belongs_to_the_weights():
    net, x = network(), normal(4, 3)
    edm, openai = (Denoiser(net, EDM(sigma_data=0.5, time_scale=s)) for s in (0.25, 250.0))
    assert edm.state_dict().keys() == openai.state_dict().keys()
    assert (edm(x, full(0.7, x)) - openai(x, full(0.7, x))).abs().max() > 0.01


# Solvers.


def test_euler_is_not_ddim_on_a_curved_path():
    path, point = VariancePreserving(), Gaussian(0.4, 0.0)
    denoiser, x = GaussianDenoiser(path, point), normal(4, 2)
    t, s = full(0.8, x), full(0.4, x)
    exact = point.flow(path, x, t, s)
    torch.testing.assert_close(ddim(denoiser, x, t, s, None), exact)
    assert (euler(denoiser, x, t, s, None) - exact).abs().max() > 0.1


# torch and numpy.


def test_times_of_samples_do_not_meet_the_width():
    x0, noise = normal(2, 4, 1, 4, 4)
    t = torch.tensor([0.1, 1.0, 10.0, 80.0], dtype=D)
    silent = x0 + t * noise  # (4,) against (4, 1, 4, 4): one time a column, and no error
    assert silent.shape == x0.shape
    found = VarianceExploding().perturb(x0, noise, t)
    each = [x0[i] + float(t[i]) * noise[i] for i in range(4)]
    torch.testing.assert_close(found, torch.stack(each))
    assert (found - silent).abs().max() > 10


def test_forward_mode_goes_through_attention():
    def attend(x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x.roll(1, 2), x.roll(2, 2))

    x, direction = normal(2, 1, 2, 5, 4)
    value, found = jvp(attend, (x,), (direction,))
    h = 1e-5
    wanted = (attend(x + h * direction) - attend(x - h * direction)) / (2 * h)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8)
    torch.testing.assert_close(value, attend(x))


def test_seeds_depend_on_no_process():
    assert entropy(0, "student") == entropy(0, zlib.crc32(b"student"))
    assert entropy(0, "student") != entropy(0, "critic")


def test_shard_zero_does_not_share_its_draws_with_all():
    # numpy's seeds are padded with zeros, so leaving the shard out means shard 0.
    short, padded = (np.random.SeedSequence(words) for words in ((7, 3), (7, 3, 0)))
    assert short.generate_state(2).tolist() == padded.generate_state(2).tolist()
    shards = [Rng(7, 3, "student", shard) for shard in (0, 1)]
    own = [torch.rand(4, generator=rng).tolist() for rng in shards]
    common = [torch.rand(4, generator=rng.common).tolist() for rng in shards]
    assert own[0] != own[1]
    assert common[0] == common[1]
    assert common[0] not in own


def test_an_interrupted_save_leaves_the_old_folder(tmp_path):
    place = tmp_path / "model"
    with whole_folder(place) as fresh:
        (fresh / "weights").write_text("old")

    def dies() -> None:
        with whole_folder(place) as fresh:
            (fresh / "weights").write_text("half of the n")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        dies()
    assert (place / "weights").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


# Numbers.


def test_frechet_distance_is_larger_with_fewer_samples():
    def between(n: int) -> float:
        """Two samples of one law, whose distance is 0."""
        a, b = normal(2, n, 8)
        return frechet_distance(moments_of([a], flatten), moments_of([b], flatten))

    assert between(50) > 5 * between(1000) > 0
