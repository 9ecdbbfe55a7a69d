"""Tiny runs, pictures and folders for the tests of training and of the command line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from fewstep.cli import main
from fewstep.core import Batch
from fewstep.data import Dataset, Indices
from fewstep.recipes import TrainConfig, recipe
from fewstep.training.config import Run
from fewstep.training.train import train

NETWORK = {"width": 8, "blocks": 1}
UNET = {"channels": 8, "multipliers": (1, 1), "blocks": 1, "attention": (8,)}
OPTIONS = {
    "toy-edm": NETWORK,
    "toy-cd": {},
    "toy-ct": NETWORK,
    "digits-edm": NETWORK,
    "digits-cd": {},
    "digits-ct": {**NETWORK, "teacher": "none"},
    "edm": {"resolution": 16, **UNET},
    "cd": {"resolution": 16},
    "ct": {"resolution": 16, **UNET},
}
"""A small network for each recipe."""

TEACHERS = {"toy-cd": "toy-edm", "digits-cd": "digits-edm", "cd": "edm"}


class Outcome(NamedTuple):
    """What a command left: exit code (0 if it returned), stdout, stderr."""

    code: int
    out: str
    err: str


def fewstep(capsys: pytest.CaptureFixture[str], *args: object) -> Outcome:
    """Run a command in this process."""
    capsys.readouterr()
    code = 0
    try:
        main([str(arg) for arg in args])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    return Outcome(code, *capsys.readouterr())


def settings(**changed: Any) -> TrainConfig:
    """Few steps on small batches, without pictures."""
    values = {"steps": 20, "batch": 16, "sample_every": 0, "log_every": 1, "lr": 1e-3}
    return TrainConfig(**{**values, **changed})


class WithPairs:
    """Points, and beside each of them something in the place of a teacher's pair."""

    def __init__(self, data: Dataset) -> None:
        self.data = data
        self.shape, self.labels, self.image = data.shape, data.labels, data.image

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Indices) -> Batch:
        batch = self.data.batch(indices)
        aux = {"pair_noise": batch.x0.flip(1), "pair_x": 2 * batch.x0}
        return dataclasses.replace(batch, aux=aux)


def build(
    name: str,
    *,
    data: Path | None = None,
    teacher: Path | None = None,
    options: Mapping[str, Any] = {},
    **train: Any,
):
    """A tiny run of a recipe, without its report."""
    own: dict[str, Any] = {**OPTIONS[name], **options}
    if name in {"edm", "cd", "ct"}:
        own["data"] = str(data)
    if name in TEACHERS:
        own["teacher"] = str(teacher)
    run: Run = recipe(name, **own, train=settings(**train)).build()
    return dataclasses.replace(run, finish=None)


def trained(out: Path, name: str, **given: Any) -> Path:
    """The run folder of a tiny run."""
    train(build(name, **given), out)
    return out


def pictures(folder: Path, n: int = 12, side: int = 16, classes: int = 2, seed: int = 0) -> Path:
    """``n`` colour pictures in ``classes`` sub-folders, or in the folder itself if 0."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        target = folder / f"class{i % classes}" if classes else folder
        target.mkdir(parents=True, exist_ok=True)
        smooth = rng.integers(0, 256, (4, 4, 3), np.uint8)
        picture = Image.fromarray(smooth).resize((side, side), Image.Resampling.NEAREST)
        picture.save(target / f"{i:02d}.png")
    return folder


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def timeless(run: Path) -> list[dict[str, Any]]:
    """The rows without what depends on the clock."""
    clock = {"steps_per_second", "seconds"}
    return [{k: v for k, v in row.items() if k not in clock} for row in rows(run)]


def tree(root: Path) -> dict[str, bytes | None]:
    """Every file under ``root`` with its content, and every folder."""
    return {
        str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in root.rglob("*")
    }
