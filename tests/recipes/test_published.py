"""The published recipes: their settings are the papers', and each one runs on a small network."""

from __future__ import annotations

import sys
from dataclasses import replace
from math import prod

import numpy as np
import pytest
import torch

from fewstep.data import Arrays
from fewstep.errors import UsageError
from fewstep.models import ConsistencyBoundary, Denoiser
from fewstep.models.nets import NETWORKS
from fewstep.objectives.consistency import Consistency
from fewstep.recipes import RECIPES, parts
from fewstep.recipes.presets import CIFAR10, PRESETS, Preset
from fewstep.recipes.standard import cd_of, ct_of, edm_of
from fewstep.training.train import train
from tiny import settings

SMALL = ("ddpmpp", {"channels": 8, "multipliers": (1, 1), "blocks": 1, "attention": ()})
SHAPES = {"cifar10": (3, 32, 32), "fashion-mnist": (1, 28, 28), "imagenet-64": (3, 64, 64)}


def images(name: str, labels: bool) -> Arrays:
    """A dozen random images in place of the data set."""
    x = np.random.default_rng(0).integers(0, 256, (12, *SHAPES[name]), dtype=np.uint8)
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
