"""The published recipes: their settings are the papers', and each one runs on a small network."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.data import Arrays, EDMAugment
from fewstep.data.catalogue import CATALOGUE, Entry
from fewstep.errors import UsageError
from fewstep.model import load
from fewstep.models import ConsistencyBoundary, Denoiser
from fewstep.models.fresh import fresh_network
from fewstep.objectives.consistency import Consistency
from fewstep.objectives.shared.distances import l2
from fewstep.pairs import make
from fewstep.recipes import NAMES, TrainConfig, recipe
from fewstep.recipes.options import NONE
from fewstep.times import KarrasIndex, KarrasUniform, LogNormal
from fewstep.training.config import Run
from fewstep.training.train import contract, train
from tiny import settings

SMALL = {"channels": 8, "multipliers": (1, 1), "blocks": 1, "attention": ()}
TINY = {"ddpmpp": SMALL, "adm": {**SMALL, "multipliers": (1, 8)}, "edm2": SMALL}
SHAPES = {"cifar10": (3, 32, 32), "fashion-mnist": (1, 28, 28), "imagenet-64": (3, 64, 64)}
SETS = ("cifar10-{}", "cifar10-{}-small", "fashion-mnist-{}", "fashion-mnist-{}-small")
SETS += ("imagenet-64-{}",)


def images(name: str, shape: tuple[int, ...]) -> Arrays:
    """A dozen random images in place of the data set."""
    x = np.random.default_rng(0).integers(0, 256, (12, *shape), dtype=np.uint8)
    return Arrays(x, np.arange(12) % 10, labels=1000 if "imagenet" in name else 10)


@pytest.fixture(scope="module", autouse=True)
def _data():
    """Small images in the places of the data sets."""
    with pytest.MonkeyPatch.context() as patch:
        for name, (channels, *_) in SHAPES.items():
            make_images = partial(images, name, (channels, 16, 16))
            patch.setitem(CATALOGUE, name, Entry(name, make_images))
        yield


def tiny(name: str, **options: Any) -> Run:
    """A recipe's run on a tiny network."""
    whole = recipe(name, **options)
    if whole.start.teacher == "none":
        whole = whole.change(**TINY[whole.network.network], patch=None)
    return whole.build()


@pytest.mark.parametrize("name", SETS)
def test_teacher_student_and_consistency_training_run(name, tmp_path):
    few = {"steps": 2, "batch": 4, "accumulation": 1, "precision": "fp32", "threads": 1}
    edm, cd, ct = (name.format(method) for method in ("edm", "cd", "ct"))
    teacher = train(tiny(edm, train=few), tmp_path / "edm")
    train(tiny(cd, teacher=str(tmp_path / "edm"), distance="l2", train=few), tmp_path / "cd")
    train(tiny(ct, distance="pseudo-huber", train=few), tmp_path / "ct")
    assert (teacher.contract.data.labels > 0) == recipe(edm).data.labels


def parameters(name: str, **more: object) -> int:
    """Of the network that a recipe makes of data of its real shape."""
    whole = recipe(name, **more)
    data = images(name, SHAPES[whole.data.data])
    with torch.device("meta"):
        spec = (data if whole.data.labels else data.unlabelled()).spec
        sizes = {f.name: getattr(whole.network, f.name) for f in fields(whole.network)}
        kind, augment = sizes.pop("network"), whole.augment.augment > 0
        net = fresh_network(kind, sizes, spec, augment=augment, seed=0)
    return sum(p.numel() for p in net.parameters())


def seen(config) -> float:
    """Samples of a whole training, in millions."""
    return config.steps * config.batch * config.accumulation / 1e6


def test_cifar10_is_as_published():
    teacher = recipe("cifar10-edm")
    assert parameters("cifar10-edm") == 55_733_891
    assert (teacher.start.dropout, teacher.augment.augment) == (0.13, 0.12)
    assert teacher.start.sigma_data == 0.5
    cd, ct = recipe("cifar10-cd"), recipe("cifar10-ct")
    edm = teacher.train
    assert seen(edm) == pytest.approx(200, rel=1e-3)
    assert edm.warmup * edm.batch * edm.accumulation == pytest.approx(10e6, rel=1e-3)
    assert (edm.lr, edm.optimizer, edm.schedule, edm.betas) == (
        1e-3,
        "adam",
        "constant",
        (0.9, 0.999),
    )
    for config in (cd.train, ct.train):
        assert (config.steps, config.lr, config.optimizer) == (800_000, 4e-4, "radam")
        assert (config.batch * config.accumulation, config.warmup, config.clip) == (512, 0, 0)
    (rule, *_) = tiny("cifar10-edm").averages.values()
    assert rule(10**6) == pytest.approx(0.99929, abs=1e-5)
    assert (cd.options.points, cd.options.target) == (18, 0.0)
    assert (ct.options.first, ct.options.last, ct.options.start_rate) == (2, 150, 0.9)
    assert (cd.options.distance, ct.options.distance) == ("lpips", "lpips")


def test_imagenet_64_is_as_published():
    teacher, cd, ct = (recipe(f"imagenet-64-{name}") for name in ("edm", "cd", "ct"))
    assert parameters("imagenet-64-edm") == 295_899_267
    assert (teacher.start.dropout, teacher.augment.augment, teacher.data.labels) == (0.1, 0, True)
    edm = teacher.train
    assert seen(edm) == pytest.approx(2500, rel=1e-3)
    assert (edm.batch * edm.accumulation, edm.lr, edm.precision) == (4096, 1e-4, "fp16")
    assert edm.warmup * 4096 == pytest.approx(10e6, rel=1e-3)
    assert 0.5 ** (4096 / teacher.averages.half_life) == pytest.approx(0.9999432190, abs=1e-9)
    for config, steps in ((cd.train, 600_000), (ct.train, 800_000)):
        assert (config.steps, config.lr, config.optimizer) == (steps, 8e-6, "radam")
        assert (config.batch * config.accumulation, config.warmup, config.clip) == (2048, 0, 0)
        assert config.precision == "fp16"
    assert cd.averages.rates[-1] == pytest.approx(0.9999432190, abs=1e-7)
    assert (cd.options.points, cd.options.target) == (40, 0.95)
    assert (ct.options.first, ct.options.last, ct.options.start_rate) == (2, 200, 0.95)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> str:
    """A CIFAR-10 teacher after one step."""
    folder = tmp_path_factory.mktemp("teacher") / "edm"
    train(tiny("cifar10-edm", train=settings(steps=1, batch=4)), folder)
    return str(folder)


def test_published_consistency_weighs_all_times_equally(teacher):
    built = {
        "cd": tiny("cifar10-cd", teacher=teacher, distance="l2"),
        "ct": tiny("cifar10-ct", distance="l2"),
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
    run = tiny("cifar10-edm", train=settings(steps=1, batch=4))
    student = run.objective.student
    scalings = replace(student.preconditioning, time_scale=250.0)
    run.objective.student = Denoiser(student.net, scalings)
    train(run, tmp_path / "edm")
    made = tiny("cifar10-cd", teacher=str(tmp_path / "edm"), distance="l2").objective.student
    assert isinstance(made.preconditioning, ConsistencyBoundary)
    assert made.preconditioning.time_scale == 250.0


def test_lpips_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UsageError, match=r"pip install 'fewstep\[lpips\]'"):
        tiny("cifar10-ct")


def test_augmentations_need_a_network_that_reads_them():
    with pytest.raises(UsageError, match="adm reads no augmentation labels; take --augment 0"):
        tiny("imagenet-64-edm", augment=0.1)


def test_flips_are_of_consistency_models_only():
    assert tiny("cifar10-ct", distance="l2").augment is not None
    assert tiny("cifar10-edm", augment=0.0).augment is None


# The other methods.

FAMILY = {
    name: (place, method.name)
    for name, (place, method) in NAMES.items()
    # Policies are no images; test_pusht_recipes has them.
    if not place.every and method.name not in {"edm", "cd", "ct"} and place.title != "Push-T"
}
PAIRED = {"cifar10-dmd": "cifar10-edm --labels", "imagenet-64-dmd": "imagenet-64-edm"}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> dict[str, str]:
    """A tiny run of each recipe that another starts from, and pairs of some."""
    root = tmp_path_factory.mktemp("teachers")
    few = settings(steps=1, batch=4)
    for name in ("cifar10-edm", "imagenet-64-edm", "imagenet-64-edm2"):
        train(tiny(name, train=few), root / name)
    for name in ("cifar10-ect", "imagenet-64-ect"):
        source = root / ("cifar10-edm" if "cifar" in name else "imagenet-64-edm2")
        train(tiny(name, teacher=str(source), train=few), root / name)
    train(tiny("cifar10-edm", labels=True, train=few), root / "cifar10-edm --labels")
    for name in PAIRED.values():
        make(load(root / name, device="cpu"), root / f"{name} pairs", 8, steps=2)
    return {path.name: str(path) for path in root.iterdir()}


@pytest.fixture
def built(monkeypatch, teachers):
    """A recipe on a tiny network, with its own settings but for what is given."""
    monkeypatch.setattr("fewstep.recipes.methods.dmd.distance", lambda name: l2)
    monkeypatch.setattr("fewstep.recipes.methods.ctm.distance", lambda name: l2)

    def build(name: str, **given):
        place, method = NAMES[name]
        scratch = place.teacher(method) == NONE
        own = {"teacher": NONE if scratch else teachers[place.trained_by(method)]}
        own |= {"train": {"device": "cpu"}}
        if name in PAIRED:
            own["pairs"] = teachers[f"{PAIRED[name]} pairs"]
        return tiny(name, **{**own, **given})

    return build


@pytest.mark.parametrize("recipe_name", FAMILY)
def test_a_run(recipe_name, built, tmp_path):
    _, name = FAMILY[recipe_name]
    few = {"steps": 2, "batch": 4, "accumulation": 1, "precision": "fp32", "sample_every": 0}
    more = {"first": 2} if name in {"progressive", "ict"} else {}
    more |= {"last": 4} if name == "ict" else {}
    more |= {"points": 4, "solver_steps": 2} if name == "ctm" else {}
    few |= {"log_every": 1, "threads": 1, "device": "cpu"}
    run = built(recipe_name, train=few, **more)
    train(run, tmp_path / "run")
    assert {m.p for m in run.objective.student.modules() if isinstance(m, torch.nn.Dropout)} == {
        run.arguments["dropout"]
    }
    assert run.objective.student.net.options["dropout"] == run.arguments["dropout"]


@pytest.mark.parametrize("recipe_name", FAMILY)
def test_the_cost_is_that_of_the_whole_run(recipe_name):
    shown = recipe(recipe_name)
    cost, unit, _ = shown.cost.split()
    assert float(cost) * {"M": 1e6, "G": 1e9}[unit] == pytest.approx(seen(shown.train) * 1e6, 0.05)


def size(config: TrainConfig) -> int:
    return config.batch * config.accumulation


def test_ict_is_as_published(built):
    for name, batch, steps, dropout, rate, middle in (
        ("cifar10-ict", 1024, 400_000, 0.3, 0.99993, 0.821),
        ("cifar10-ict-deep", 1024, 400_000, 0.3, 0.99993, 0.821),
        ("imagenet-64-ict", 4096, 800_000, 0.2, 0.99997, 1.526),
    ):
        run = built(name)
        config, objective = run.config, run.objective
        assert (size(config), config.steps, config.lr) == (batch, steps, 1e-4)
        assert config.optimizer == "radam"
        stages = [objective.schedule(steps * i // 8) for i in range(8)]
        assert stages == [11, 21, 41, 81, 161, 321, 641, 1281]
        assert run.arguments["dropout"] == dropout
        assert [rule(9) for rule in run.averages.values()] == [rate]
        assert contract(run).sampling.times[2][1] == pytest.approx(middle)
        assert objective.drop is None
    assert parameters("cifar10-ict-deep") > 1.6 * parameters("cifar10-ict")


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
    monkeypatch.setattr(
        "fewstep.recipes.methods.ctm.distance", lambda name: asked.append(name) or l2
    )
    for name, batch, points, solver_steps, averages in (
        ("cifar10-ctm", 128, 18, 17, ["ema-0.999", "ema-0.9999"]),
        ("imagenet-64-ctm", 1440, 40, 39, ["ema-0.999"]),
    ):
        run = built(name)
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
    for name, batch, lr, first in (
        ("cifar10-progressive", 512, 5e-5, 4096),
        ("imagenet-64-progressive", 2048, 1e-4, 1024),
    ):
        run = built(name)
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
    monkeypatch.setattr(
        "fewstep.recipes.methods.dmd.distance", lambda name: asked.append(name) or l2
    )
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


def test_the_edm2_teacher_is_as_published():
    config = recipe("imagenet-64-edm2").train
    assert size(config) == 2048
    assert seen(config) == pytest.approx(2**30 / 1e6, rel=1e-3)
    assert config.warmup * size(config) == pytest.approx(10e6, rel=1e-3)
    assert config.learning_rate(4 * 35_000) == pytest.approx(0.005)
    assert parameters("imagenet-64-edm2") == pytest.approx(280.21e6, rel=1e-4)
    run = tiny("imagenet-64-edm2")
    assert (run.objective.times, run.objective.drop) == (LogNormal(-0.8, 1.6), None)
    assert list(run.averages) == ["power-0.05", "power-0.1"]
    assert run.objective.uncertainty is not None


def test_positional_teachers_pass_it_on(tmp_path):
    few = settings(steps=1, batch=4)
    train(tiny("imagenet-64-edm2", positional=True, train=few), tmp_path / "edm2")
    run = tiny("imagenet-64-sct", teacher=str(tmp_path / "edm2"), train=few)
    assert run.objective.student.net.options["positional"]


@pytest.mark.parametrize("name", ["cifar10-{}", "cifar10-{}-small"])
def test_double_normed_teachers_pass_it_on(name, tmp_path):
    few = settings(steps=1, batch=4)
    edm = name.format("edm")
    train(tiny(edm, double_norm=True, train=few), tmp_path / "edm")
    run = tiny(name.format("sct"), teacher=str(tmp_path / "edm"), train=few)
    assert run.objective.student.net.options["double_norm"]
    assert not tiny(edm, train=few).objective.student.net.options["double_norm"]


def test_augmentations_that_would_be_learned_are_refused(built):
    assert built("cifar10-ect", augment=0.1).augment == EDMAugment(0.1)
    with pytest.raises(UsageError, match="reads no augmentation labels; take --augment 0"):
        built("imagenet-64-ect", augment=0.1)


@pytest.mark.parametrize(
    ("name", "teacher"),
    [
        ("cifar10-ect-1h", "cifar10-edm"),
        ("imagenet-64-tcm", "imagenet-64-ect"),
        ("imagenet-64-scd", "imagenet-64-edm2"),
        ("cifar10-dmd", "cifar10-edm --labels"),
        ("imagenet-64-dmd2", "imagenet-64-edm"),
    ],
)
def test_a_missing_teacher_names_the_recipe_that_makes_it(name, teacher):
    with pytest.raises(UsageError, match=rf"fewstep train {teacher}( |$)"):
        tiny(name, teacher="nowhere")
    assert recipe(name).start.teacher == f"runs/{teacher.split()[0]}"
