"""Which samples --flip mirrors, and which it refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from fewstep.conditions import Image, Mask, Vector
from fewstep.contract import DataSpec
from fewstep.core import Batch, UsageError
from fewstep.data import Flip, write_arrays
from fewstep.data.specs import mirror_fault
from fewstep.recipes import recipe
from tiny import UNET, fewstep, pictures, settings

NET = ("--network", "mlp", "--width", 8, "--blocks", 1, "--train.steps", 2, "--train.batch", 4)


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        (DataSpec(shape=(3, 8, 8)), None),
        (DataSpec(shape=(4, 16), range=None), None),
        (DataSpec(shape=(3, 8, 8), conditions={"pose": Vector(shape=(2,))}), None),
        (DataSpec(shape=(2,), range=None), r"samples of shape \(2,\) have no spatial axis"),
        (DataSpec(shape=(1, None), conditions={"mask": Mask()}), "differ in length"),
        (DataSpec(shape=(3, 8, 8), conditions={"low": Image(shape=(3, 4, 4))}), "the image 'low'"),
    ],
)
def test_what_has_a_mirror_image(spec, fault):
    said = mirror_fault(spec)
    assert (said is None) == (fault is None)
    assert fault is None or re.search(fault, said or "")


@pytest.mark.parametrize("kind", ["points", "vectors", "ragged"])
def test_refused_before_anything_is_written(tmp_path, capsys, kind):
    rng, file, out = np.random.default_rng(0), tmp_path / "x.safetensors", tmp_path / "run"
    args = ("--data", file, "--out", out)
    if kind == "points":
        args = ("--out", out)
    elif kind == "vectors":
        write_arrays(file, rng.normal(size=(20, 5)).astype(np.float32))
    else:
        write_arrays(file, rng.normal(size=(20, 1, 8)).astype(np.float32), mask=np.full(20, 5))
    net = NET if kind != "ragged" else ("--network", "unet1d", "--widths", 8, 16)
    recipe_name = "toy-edm" if kind == "points" else "edm"
    outcome = fewstep(capsys, "train", recipe_name, *net, *args, "--flip")
    assert outcome.code == 2, outcome.err
    assert "--flip mirrors images, and " in outcome.err
    assert "leave it out, or say --no-flip" in outcome.err
    assert not out.exists()


def test_images_are_mirrored(tmp_path):
    images = pictures(tmp_path / "images")
    given = {"data": images, "resolution": 16, "flip": True}
    run = recipe("edm", **UNET, **given, train=settings()).build()
    assert run.augment == Flip()


def test_points_are_not_swapped():
    points = Batch(torch.arange(8.0).reshape(4, 2))
    with pytest.raises(UsageError, match=r"shape \(2,\) have no spatial axis"):
        Flip()(points, np.arange(4), 0)
