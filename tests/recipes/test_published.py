"""The published recipes: their settings are the papers', and each one runs on a small network."""

from __future__ import annotations

import sys
from dataclasses import replace
from math import prod

import numpy as np
import pytest
import torch

from fewstep.data import Arrays, EDMAugment
from fewstep.errors import UsageError
from fewstep.model import load
from fewstep.models import ConsistencyBoundary, Denoiser
from fewstep.models.nets import NETWORKS
from fewstep.objectives.consistency import Consistency
from fewstep.objectives.distances import l2
from fewstep.pairs import make
from fewstep.recipes import RECIPES, TrainConfig, parts
from fewstep.recipes.presets import CIFAR10, CIFAR10_SMALL, IMAGENET_64, PRESETS, Preset
from fewstep.recipes.published import DEEP, EDM2_S, EDM2_TRAIN, PUBLISHED
from fewstep.recipes.standard import cd_of, ct_of, edm_of
from fewstep.times import KarrasIndex, KarrasUniform, LogNormal
from fewstep.training.train import contract, train
from tiny import settings

SMALL = ("ddpmpp", {"channels": 8, "multipliers": (1, 1), "blocks": 1, "attention": ()})
SHAPES = {"cifar10": (3, 32, 32), "fashion-mnist": (1, 28, 28), "imagenet-64": (3, 64, 64)}


def images(name: str, labels: bool, shape: tuple[int, ...] | None = None) -> Arrays:
    """A dozen random images in place of the data set."""
    x = np.random.default_rng(0).integers(0, 256, (12, *(shape or SHAPES[name])), dtype=np.uint8)
    data = Arrays(x, np.arange(12) % 10, labels=1000 if "imagenet" in name else 10)
    return data if labels else data.unlabelled()


@pytest.fixture(autouse=True)
def _data(monkeypatch):
    monkeypatch.setattr(parts, "standard_data", images)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.named("x"))
def test_teacher_student_and_consistency_training_run(preset: Preset, tmp_path):
    few = settings(steps=2, batch=4, optimizer=preset.cd.optimizer)
    small = replace(preset, network=SMALL, distances=("l2", "pseudo-huber"))
    teacher = train(replace(edm_of(small)(train=few)), tmp_path / "edm")
    train(cd_of(small)(teacher=str(tmp_path / "edm"), train=few), tmp_path / "cd")
    train(ct_of(small)(train=few), tmp_path / "ct")
    assert teacher.contract.data.labels == (images(preset.data, preset.labels).labels)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.named("x"))
def test_every_preset_has_its_recipes(preset: Preset):
    assert {preset.named(m) for m in ("edm", "cd", "ct")} <= RECIPES.keys()


def parameters(preset: Preset, **more: object) -> int:
    kind, options = preset.network
    data = images(preset.data, preset.labels)
    with torch.device("meta"):
        net = NETWORKS[kind](shape=data.shape, classes=data.labels, **options, **more)
    return sum(p.numel() for p in net.parameters())


def seen(config) -> float:
    """Samples of a whole training, in millions."""
    return config.steps * config.batch * config.accumulation / 1e6


def test_cifar10_is_as_published():
    assert parameters(CIFAR10, augment=9) == 55_733_891
    assert (CIFAR10.dropout, CIFAR10.augment, CIFAR10.sigma_data) == (0.13, 0.12, 0.5)
    edm, cd, ct = CIFAR10.edm, CIFAR10.cd, CIFAR10.ct
    assert seen(edm) == pytest.approx(200, rel=1e-3)
    assert edm.warmup * edm.batch * edm.accumulation == pytest.approx(10e6, rel=1e-3)
    assert (edm.lr, edm.optimizer, edm.schedule, edm.betas) == (
        1e-3,
        "adam",
        "constant",
        (0.9, 0.999),
    )
    for config in (cd, ct):
        assert (config.steps, config.lr, config.optimizer) == (800_000, 4e-4, "radam")
        assert (config.batch * config.accumulation, config.warmup, config.clip) == (512, 0, 0)
    run = edm_of(replace(CIFAR10, network=SMALL))(train=edm)
    (rule, *_) = run.averages.values()
    assert rule(10**6) == pytest.approx(0.99929, abs=1e-5)
    assert (CIFAR10.points, CIFAR10.target, CIFAR10.scales, CIFAR10.start_rate) == (
        18,
        0.0,
        (2, 150),
        0.9,
    )


def test_imagenet_64_is_as_published():
    assert parameters(IMAGENET_64) == 295_899_267
    assert (IMAGENET_64.dropout, IMAGENET_64.augment, IMAGENET_64.labels) == (0.1, 0.0, True)
    edm, cd, ct = IMAGENET_64.edm, IMAGENET_64.cd, IMAGENET_64.ct
    assert seen(edm) == pytest.approx(2500, rel=1e-3)
    assert (edm.batch * edm.accumulation, edm.lr, edm.precision) == (4096, 1e-4, "fp16")
    assert edm.warmup * 4096 == pytest.approx(10e6, rel=1e-3)
    assert 0.5 ** (4096 / IMAGENET_64.half_life) == pytest.approx(0.9999432190, abs=1e-9)
    for config, steps in ((cd, 600_000), (ct, 800_000)):
        assert (config.steps, config.lr, config.optimizer) == (steps, 8e-6, "radam")
        assert (config.batch * config.accumulation, config.warmup, config.clip) == (2048, 0, 0)
    assert IMAGENET_64.rates[-1] == pytest.approx(0.9999432190, abs=1e-7)
    assert (IMAGENET_64.points, IMAGENET_64.target) == (40, 0.95)
    assert (IMAGENET_64.scales, IMAGENET_64.start_rate) == ((2, 200), 0.95)


def test_published_consistency_weighs_all_times_equally(tmp_path):
    few = settings(steps=1, batch=4)
    small = replace(CIFAR10, network=SMALL)
    train(edm_of(small)(train=few), tmp_path / "edm")
    built = {
        "cd": cd_of(small)(teacher=str(tmp_path / "edm"), distance="l2", train=few),
        "ct": ct_of(small)(distance="l2", train=few),
    }
    t = torch.tensor([80.0, 0.1])
    for run in built.values():
        assert isinstance(run.objective, Consistency)
        assert torch.equal(run.objective.weight(t, t / 2), torch.ones(2))
        assert list(run.averages) == ["ema-0.9999"]
        assert run.averages["ema-0.9999"](0) == 0.9999
    # N is 2 at the first step and 151 at the last; the rate follows it.
    assert built["ct"].objective.target is not None
    assert built["cd"].objective.target is None


def test_the_student_reads_time_as_its_teacher_does(tmp_path):
    few = settings(steps=1, batch=4)
    small = replace(CIFAR10, network=SMALL)
    run = edm_of(small)(train=few)
    student = run.objective.student
    scalings = replace(student.preconditioning, time_scale=250.0)
    run.objective.student = Denoiser(student.net, scalings)
    train(run, tmp_path / "edm")
    made = cd_of(small)(teacher=str(tmp_path / "edm"), distance="l2", train=few).objective.student
    assert isinstance(made.preconditioning, ConsistencyBoundary)
    assert made.preconditioning.time_scale == 250.0


def test_lpips_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UsageError, match=r"pip install 'fewstep\[lpips\]'"):
        ct_of(replace(CIFAR10, network=SMALL))(train=settings())


def test_augmentations_need_a_network_that_reads_them():
    with pytest.raises(UsageError, match="adm reads no augmentation labels; take --augment 0"):
        RECIPES["imagenet-64-edm"].build(augment=0.1)


def test_flips_are_of_consistency_models_only(tmp_path):
    few = settings(steps=1, batch=4)
    small = replace(CIFAR10, network=SMALL)
    assert ct_of(small)(distance="l2", train=few).augment is not None
    assert edm_of(replace(small, augment=0.0))(train=few).augment is None
    assert prod(SHAPES["cifar10"]) == 3072


# The family's.

TINY = {
    "ddpmpp": SMALL[1],
    "adm": {"channels": 8, "multipliers": (1, 8), "blocks": 1, "attention": ()},
    "edm2": {"channels": 8, "multipliers": (1, 1), "blocks": 1, "attention": ()},
}
FAMILY = {place.named(name): (place, name) for place in PUBLISHED for name in place.methods}
PAIRED = {"cifar10-dmd": "cifar10-edm --labels", "imagenet-64-dmd": "imagenet-64-edm"}
MADE = parts.network


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> dict[str, str]:
    """A tiny run of each recipe that another starts from, and pairs of some."""
    root = tmp_path_factory.mktemp("teachers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "standard_data", tiny_images)
        patch.setattr(parts, "network", tiny_network)
        few = settings(steps=1, batch=4)
        for name in ("cifar10-edm", "imagenet-64-edm", "imagenet-64-edm2"):
            train(RECIPES[name].build(train=few), root / name)
        for name in ("cifar10-ect", "imagenet-64-ect"):
            source = root / ("cifar10-edm" if "cifar" in name else "imagenet-64-edm2")
            train(RECIPES[name].build(teacher=str(source), train=few), root / name)
        train(RECIPES["cifar10-edm"].build(labels=True, train=few), root / "cifar10-edm --labels")
        for name in PAIRED.values():
            make(load(root / name, device="cpu"), root / f"{name} pairs", 8, steps=2)
    return {path.name: str(path) for path in root.iterdir()}


def tiny_images(name: str, labels: bool) -> Arrays:
    return images(name, labels, (3, 16, 16))


def tiny_network(chosen, data, **given):
    return MADE((chosen[0], TINY[chosen[0]]), data, **given)


@pytest.fixture
def built(monkeypatch, teachers):
    """A recipe of the family on a tiny network, with its own settings but for what is given."""
    monkeypatch.setattr(parts, "network", tiny_network)
    monkeypatch.setattr(parts, "standard_data", tiny_images)
    monkeypatch.setattr(parts, "distance", lambda name: l2)

    def build(recipe: str, **given):
        place, name = FAMILY[recipe]
        told = RECIPES[recipe].teacher.removeprefix("a run of ")
        given.setdefault("teacher", "none" if told == "-" else teachers[told])
        given.setdefault("train", replace(place.trainer(name), device="cpu"))
        if recipe in PAIRED:
            given.setdefault("pairs", teachers[f"{PAIRED[recipe]} pairs"])
        return RECIPES[recipe].build(**given)

    return build


@pytest.mark.parametrize("recipe", FAMILY)
def test_the_familys_run(recipe, built, tmp_path):
    place, name = FAMILY[recipe]
    config = place.trainer(name)
    few = {"steps": 2, "batch": 4, "accumulation": 1, "precision": "fp32", "sample_every": 0}
    more = {"first": 2} if name in {"progressive", "ict"} else {}
    more |= {"last": 4} if name == "ict" else {}
    more |= {"points": 4, "solver_steps": 2} if name == "ctm" else {}
    run = built(recipe, train=replace(config, log_every=1, threads=1, **few), **more)
    train(run, tmp_path / "run")
    assert {m.p for m in run.objective.student.modules() if isinstance(m, torch.nn.Dropout)} == {
        run.arguments["dropout"]
    }
    assert run.objective.student.net.options["dropout"] == run.arguments["dropout"]


@pytest.mark.parametrize("recipe", FAMILY)
def test_the_familys_whole_runs_are_built(recipe, built):
    run = built(recipe)
    images_seen = run.config.steps * run.config.batch * run.config.accumulation
    cost, unit, _ = RECIPES[recipe].cost.split()
    assert float(cost) * {"M": 1e6, "G": 1e9}[unit] == pytest.approx(images_seen, rel=0.05)


def size(config: TrainConfig) -> int:
    return config.batch * config.accumulation


def test_ict_is_as_published(built):
    for recipe, batch, steps, dropout, rate, middle in (
        ("cifar10-ict", 1024, 400_000, 0.3, 0.99993, 0.821),
        ("cifar10-ict-deep", 1024, 400_000, 0.3, 0.99993, 0.821),
        ("imagenet-64-ict", 4096, 800_000, 0.2, 0.99997, 1.526),
    ):
        run = built(recipe)
        config, objective = run.config, run.objective
        assert (size(config), config.steps, config.lr) == (batch, steps, 1e-4)
        assert config.optimizer == "radam"
        stages = [objective.schedule(steps * i // 8) for i in range(8)]
        assert stages == [11, 21, 41, 81, 161, 321, 641, 1281]
        assert run.arguments["dropout"] == dropout
        assert [rule(9) for rule in run.averages.values()] == [rate]
        assert contract(run).sampling.times[2][1] == pytest.approx(middle)
        assert objective.drop is None
    assert parameters(DEEP) > 1.6 * parameters(CIFAR10)


def test_ect_is_as_published(built):
    run = built("cifar10-ect")
    config, objective = run.config, run.objective
    assert (size(config), config.steps, config.lr, config.optimizer) == (
        128,
        200_000,
        1e-4,
        "radam",
    )
    assert (objective.curriculum.every, objective.curriculum.q) == (25_000, 2.0)
    assert (objective.times.mean, objective.times.std, objective.distance.c) == (-1.1, 2.0, 0.0)
    assert (run.arguments["dropout"], run.augment) == (0.2, None)
    assert list(run.averages) == ["ema-0.9999"]

    run = built("cifar10-ect-1h")
    assert (run.objective.curriculum.every, run.objective.curriculum.q) == (8000, 256.0)
    assert (list(run.averages), run.config.steps) == (["ema-0.9993"], 8000)

    run = built("imagenet-64-ect")
    config, objective = run.config, run.objective
    assert (size(config), config.steps, config.betas) == (128, 100_000, (0.9, 0.99))
    assert config.learning_rate(8000) == pytest.approx(5e-4)
    assert (objective.curriculum.every, objective.curriculum.q) == (25_000, 4.0)
    assert (objective.times.mean, objective.times.std, objective.distance.c) == (-0.8, 1.6, 0.06)
    t = torch.tensor([0.5, 2.0], dtype=torch.float64)
    assert torch.allclose(objective.weight(t, t / 2), 1 / t**2 + 4)
    assert run.arguments["dropout"] == 0.4


def test_tcm_is_as_published(built):
    run = built("cifar10-tcm")
    assert (size(run.config), run.config.lr, run.arguments["dropout"]) == (1024, 5e-5, 0.2)
    assert (run.objective.at, run.objective.share, run.objective.boundary_weight) == (1, 0.25, 0.1)
    assert (run.objective.curriculum.limit, run.objective.distance.c) == (0.999, 1e-8)
    run = built("imagenet-64-tcm")
    assert (size(run.config), run.config.betas, run.config.eps) == (1024, (0.9, 0.99), 1e-8)
    assert run.config.learning_rate(32_000) == pytest.approx(2.5e-4)
    assert (run.objective.curriculum.limit, run.objective.distance.c) == (0.9961, 0.06)
    t = torch.tensor([2.0], dtype=torch.float64)
    assert torch.allclose(run.objective.weight(t, t / 2), 1 / t**2 + 4)
    assert list(run.averages) == ["power-0.05"]


@pytest.mark.parametrize("name", ["sct", "scd"])
def test_scm_is_as_published(name, built):
    run = built(f"cifar10-{name}")
    config, objective = run.config, run.objective
    assert (size(config), config.lr, config.optimizer) == (512, 1e-4, "radam")
    assert (config.betas, config.eps, objective.warmup) == ((0.9, 0.99), 1e-8, 10_000)
    assert (objective.times.mean, objective.times.std) == (-1.0, 1.4)
    assert run.arguments["dropout"] == (0.2 if name == "sct" else 0.0)
    assert list(run.averages) == ["half-life-500000"]
    two = contract(run).sampling.times[2]
    assert two == pytest.approx((1.56455, 1.1), abs=1e-3)

    run = built(f"imagenet-64-{name}")
    config, objective = run.config, run.objective
    assert (size(config), config.lr, config.optimizer) == (2048, 1e-4, "adam")
    assert (config.betas, config.eps, objective.warmup) == ((0.9, 0.99), 1e-11, 10_000)
    assert config.learning_rate(140_000) == pytest.approx(5e-5)
    assert (objective.times.mean, objective.times.std) == (-1.0, 1.6)
    assert run.arguments["dropout"] == (0.45 if name == "sct" else 0.0)
    assert list(run.averages) == ["power-0.05"]


def test_ctm_is_as_published(built, monkeypatch):
    asked = []
    monkeypatch.setattr(parts, "distance", lambda name: asked.append(name) or l2)
    for recipe, batch, points, solver_steps, averages in (
        ("cifar10-ctm", 128, 18, 17, ["ema-0.999", "ema-0.9999"]),
        ("imagenet-64-ctm", 1440, 40, 39, ["ema-0.999"]),
    ):
        run = built(recipe)
        config, objective = run.config, run.objective
        assert (size(config), config.lr, config.optimizer) == (batch, 4e-4, "radam")
        assert (len(objective.grid), objective.solver_steps) == (points, solver_steps)
        assert (objective.rate, list(run.averages)) == (0.999, averages)
    assert asked == ["lpips", "lpips"]


def test_meanflow_is_as_published(built):
    run = built("cifar10-meanflow")
    config, objective = run.config, run.objective
    assert (size(config), config.lr, config.optimizer) == (1024, 6e-4, "adam")
    epoch = 50_000 / 1024
    assert config.steps == pytest.approx(16_000 * epoch)
    assert config.warmup == pytest.approx(200 * epoch, abs=1)
    assert (objective.weight.power, objective.weight.c) == (0.75, 1e-3)
    t, r = objective.times(20_000, torch.Generator().manual_seed(0))
    assert float((t == r).float().mean()) == pytest.approx(0.25, abs=0.015)
    logits = (torch.cat([t[t > r], r[t > r]])).logit()
    assert float(logits.mean()) == pytest.approx(-2, abs=0.05)
    assert float(logits.std()) == pytest.approx(2, abs=0.05)
    assert list(run.averages) == ["ema-0.9999", "ema-0.99995", "ema-0.9996"]
    assert (run.arguments["dropout"], run.augment) == (0.2, EDMAugment(0.12))


def test_imm_is_as_published(built):
    run = built("cifar10-imm")
    config, objective = run.config, run.objective
    assert (size(config), config.steps, config.lr) == (4096, 400_000, 1e-4)
    assert (config.optimizer, config.betas) == ("radam", (0.9, 0.999))
    assert (objective.group, objective.k, objective.a, objective.b) == (4, 15.0, 1.0, 5.0)
    path = objective.student.path
    ends = torch.tensor([path.t_min, path.t_max], dtype=torch.float64)
    # The paper's noise has the data's spread: its sigma / alpha is ours over it.
    assert path.ratio(ends) / 0.5 == pytest.approx([0.006 / 0.994, 0.994 / 0.006])
    two = torch.tensor(contract(run).sampling.times[2][1:])
    assert float(path.ratio(two)) / 0.5 == pytest.approx(1.4, rel=1e-5)
    assert (run.arguments["dropout"], list(run.averages)) == (0.2, ["ema-0.9999"])


def test_progressive_is_as_published(built):
    for recipe, batch, lr, first in (
        ("cifar10-progressive", 512, 5e-5, 4096),
        ("imagenet-64-progressive", 2048, 1e-4, 1024),
    ):
        run = built(recipe)
        config, schedule = run.config, run.objective.schedule
        assert (size(config), config.lr, config.clip, config.optimizer) == (batch, lr, 1, "adam")
        assert (config.schedule, config.decay_steps) == ("linear", 50_000)
        assert (schedule(0), schedule(50_000), schedule(config.steps - 1)) == (first, first // 2, 1)
        assert schedule(config.steps - 50_001) == 2
        assert [rule(9) for rule in run.averages.values()] == [0]


def updates(run) -> tuple[int, int]:
    """Of the generator and of its critic, in a hundred steps."""
    due = {phase.name: sum(map(phase.due, range(100))) for phase in run.objective.phases()}
    return due["student"], due["critic"]


def optimizer(config: TrainConfig) -> tuple[object, ...]:
    return config.optimizer, config.betas, config.weight_decay, config.warmup, config.clip


def weighted_as_edm(objective) -> bool:
    """By 1/t^2 + 1/sigma_data^2."""
    t = torch.tensor([0.5, 2.0], dtype=torch.float64)
    return torch.allclose(objective.weight(1 / t**2), 1 / t**2 + 4)


@pytest.mark.parametrize(
    ("recipe", "labels", "batch", "lr", "steps", "precision"),
    [
        ("cifar10-dmd", 10, 392, 5e-5, 300_000, "fp32"),
        ("imagenet-64-dmd", 1000, 336, 2e-6, 350_000, "bf16"),
    ],
)
def test_dmd_is_as_published(recipe, labels, batch, lr, steps, precision, built, monkeypatch):
    asked = []
    monkeypatch.setattr(parts, "distance", lambda name: asked.append(name) or l2)
    run = built(recipe)
    config, objective = run.config, run.objective
    assert (size(config), config.lr, config.steps, config.precision) == (
        batch,
        lr,
        steps,
        precision,
    )
    assert optimizer(config) == ("adamw", (0.9, 0.999), 0.01, 500, 10)
    assert (objective.regression, asked, run.data.labels) == (0.25, ["lpips"], labels)
    assert {"pair_noise", "pair_x", "pair_label"} <= run.data.batch([0, 1]).aux.keys()
    assert objective.generate.times == (80.0,)
    assert objective.times == KarrasIndex(20, 980)
    assert objective.critic_times == KarrasIndex(0, 999)
    assert updates(run) == (100, 100)
    assert weighted_as_edm(objective)
    assert run.arguments["dropout"] == 0
    assert [rule(9) for rule in run.averages.values()] == [0]


def test_dmd_asks_for_pairs(built):
    with pytest.raises(UsageError, match=r"fewstep data pairs .* --out runs/cifar10-pairs"):
        built("cifar10-dmd", pairs="")


def test_dmd2_is_as_published(built):
    run = built("imagenet-64-dmd2")
    config, objective = run.config, run.objective
    assert (size(config), config.lr, config.steps, config.precision) == (280, 2e-6, 200_000, "bf16")
    assert optimizer(config) == ("adamw", (0.9, 0.999), 0.01, 500, 10)
    assert (objective.adversarial, objective.adversarial_critic) == (3e-3, 1e-2)
    assert (objective.judged, updates(run)) == ("fake", (20, 100))
    assert objective.generate.times == (80.0,)
    assert objective.times == KarrasIndex(20, 980)
    assert objective.critic_times == objective.adversarial_times == KarrasIndex(0, 999)
    assert weighted_as_edm(objective)
    assert (run.arguments["dropout"], run.augment) == (0, None)
    assert [rule(9) for rule in run.averages.values()] == [0]


@pytest.mark.parametrize(
    ("recipe", "batch", "lr", "steps", "divergence", "adversarial"),
    [
        ("cifar10-f-distill", 2048, 1e-4, 100_000, "kl", 1e-3),
        ("imagenet-64-f-distill", 512, 2e-6, 600_000, "js", 3e-3),
    ],
)
def test_f_distill_is_as_published(recipe, batch, lr, steps, divergence, adversarial, built):
    run = built(recipe)
    config, objective = run.config, run.objective
    assert (size(config), config.lr, config.steps, config.precision) == (batch, lr, steps, "fp32")
    assert optimizer(config) == ("adamw", (0.9, 0.999), 0.01, 0, 10)
    factors = objective.factors
    assert (factors.divergence, factors.limits, factors.bins) == (divergence, (0.1, 20.0), 10)
    assert (objective.adversarial, objective.adversarial_critic) == (adversarial, 1.0)
    assert (objective.judged, updates(run)) == ("teacher", (20, 100))
    assert objective.generate.times == (80.0,)
    rates = [rule(9) for rule in run.averages.values()]
    assert rates == pytest.approx([0.9999**5, 0.99995**5, 0.9996**5], abs=2e-6)
    assert (run.arguments["dropout"], run.augment) == (0, None)
    assert run.data.labels


@pytest.mark.parametrize(
    ("recipe", "batch", "lr", "millions", "half_life", "dropout", "level"),
    [
        ("cifar10-sid", 256, 1e-5, 500, 0.5e6, 0.13, 2.5),
        ("cifar10-sida", 256, 1e-5, 300, 0.5e6, 0.13, 2.5),
        ("cifar10-diff-instruct", 128, 1e-5, 200, 0.5e6, 0.13, 1.0),
        ("imagenet-64-sid", 8192, 4e-6, 1000, 2e6, 0.1, 2.5),
        ("imagenet-64-sida", 8192, 4e-6, 300, 2e6, 0.1, 2.5),
        ("imagenet-64-diff-instruct", 128, 1e-5, 200, 0.5e6, 0.1, 1.0),
    ],
)
def test_score_identities_are_as_published(
    recipe, batch, lr, millions, half_life, dropout, level, built
):
    run = built(recipe)
    config, objective = run.config, run.objective
    assert (size(config), config.lr) == (batch, lr)
    assert seen(config) == pytest.approx(millions, rel=1e-4)
    assert optimizer(config) == ("adam", (0.0, 0.999), 0.0, 0, 0)
    (name,) = run.averages
    assert name == f"half-life-{half_life:g}"
    assert run.averages[name](10**6) == pytest.approx(0.5 ** (batch / half_life))
    assert (run.arguments["dropout"], run.augment) == (dropout, None)
    assert objective.generate.times == (level,)
    assert updates(run) == (100, 100)
    assert objective.critic_times == LogNormal(-1.2, 1.2)
    assert weighted_as_edm(objective)
    if "diff-instruct" in recipe:
        assert (objective.times, config.eps) == (LogNormal(-1.2, 1.2), 1e-8)
        assert run.data.labels
        return
    adversary = "sida" in recipe
    assert objective.times.t_max == pytest.approx(
        float(KarrasUniform().at(torch.tensor(0.8))), 1e-3
    )
    assert (objective.a, objective.judge is None) == (1.0 if adversary else 1.2, not adversary)
    assert config.eps == (1e-6 if config.precision == "fp16" else 1e-8)
    assert objective.adversarial == (1e-4 if adversary else 0)


def test_the_edm2_teacher_is_as_published(monkeypatch):
    config = EDM2_TRAIN
    assert size(config) == 2048
    assert seen(config) == pytest.approx(2**30 / 1e6, rel=1e-3)
    assert config.warmup * size(config) == pytest.approx(10e6, rel=1e-3)
    assert config.learning_rate(4 * 35_000) == pytest.approx(0.005)
    assert parameters(EDM2_S) == pytest.approx(280.21e6, rel=1e-4)
    monkeypatch.setattr(parts, "network", tiny_network)
    run = RECIPES["imagenet-64-edm2"].build()
    assert (run.objective.times, run.objective.drop) == (LogNormal(-0.8, 1.6), None)
    assert list(run.averages) == ["power-0.05", "power-0.1"]
    assert run.objective.uncertainty is not None


def test_positional_teachers_pass_it_on(monkeypatch, tmp_path):
    monkeypatch.setattr(
        parts,
        "network",
        lambda chosen, *given, **more: MADE(
            (chosen[0], {**TINY["edm2"], "positional": chosen[1]["positional"]}), *given, **more
        ),
    )
    few = settings(steps=1, batch=4)
    train(RECIPES["imagenet-64-edm2"].build(positional=True, train=few), tmp_path / "edm2")
    run = RECIPES["imagenet-64-sct"].build(teacher=str(tmp_path / "edm2"), train=few)
    assert run.objective.student.net.options["positional"]


@pytest.mark.parametrize("preset", [CIFAR10, CIFAR10_SMALL], ids=lambda p: p.named("x"))
def test_double_normed_teachers_pass_it_on(preset: Preset, tmp_path):
    few = settings(steps=1, batch=4)
    small = edm_of(replace(preset, network=SMALL))
    train(small(double_norm=True, train=few), tmp_path / "edm")
    run = RECIPES[preset.named("sct")].build(teacher=str(tmp_path / "edm"), train=few)
    assert run.objective.student.net.options["double_norm"]
    assert not small(train=few).objective.student.net.options["double_norm"]


def test_augmentations_that_would_be_learned_are_refused(built):
    assert built("cifar10-ect", augment=0.1).augment == EDMAugment(0.1)
    with pytest.raises(UsageError, match="reads no augmentation labels; take --augment 0"):
        built("imagenet-64-ect", augment=0.1)


@pytest.mark.parametrize(
    ("recipe", "teacher"),
    [
        ("cifar10-ect-1h", "cifar10-edm"),
        ("imagenet-64-tcm", "imagenet-64-ect"),
        ("imagenet-64-scd", "imagenet-64-edm2"),
        ("cifar10-dmd", "cifar10-edm --labels"),
        ("imagenet-64-dmd2", "imagenet-64-edm"),
    ],
)
def test_a_missing_teacher_names_the_recipe_that_makes_it(recipe, teacher):
    with pytest.raises(UsageError, match=rf"fewstep train {teacher}( |$)"):
        RECIPES[recipe].build(teacher="nowhere")
    assert RECIPES[recipe].teacher == f"a run of {teacher}"
