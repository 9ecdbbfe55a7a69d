"""Runs out of their records, those of version 0.1.0 too: equal losses and sampling times."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fewstep as library
from fewstep.data import Arrays
from fewstep.data.catalogue import CATALOGUE, Entry
from fewstep.errors import UsageError
from fewstep.objectives.shared.distances import l2
from fewstep.pairs import make
from fewstep.recipes import NAMES, rebuild, recipe
from fewstep.recipes.records import current
from fewstep.training.config import Run
from fewstep.training.folder import describe
from fewstep.training.train import contract, train
from fewstep.training.trainer import Trainer
from tiny import OPTIONS, build, fewstep, pictures, rows, settings, trained

PINNED = Path(__file__).parents[1] / "pinned" / "runs-0.1.0.json"
RECORDS: dict[str, Any] = json.loads(PINNED.read_text(encoding="utf-8"))
"""What version 0.1.0 wrote into run.json for each recipe, with tiny networks, and what it lost."""

SETS = {"cifar10": (3, 10), "fashion-mnist": (1, 10), "imagenet-64": (3, 1000)}
UNET = {"channels": 8, "multipliers": (1, 1), "blocks": 1, "attention": ()}
TINY = {"ddpmpp": {**UNET, "patch": None}, "adm": {**UNET, "multipliers": (1, 8)}, "edm2": UNET}


def images(channels: int, classes: int) -> Arrays:
    x = np.random.default_rng(0).integers(0, 256, (12, 3, 16, 16), dtype=np.uint8)[:, :channels]
    return Arrays(x, np.arange(12) % 10, labels=classes)


@pytest.fixture(scope="module", autouse=True)
def _small():
    """Small images, and l2 where LPIPS is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        for name, kind in SETS.items():
            patch.setitem(CATALOGUE, name, Entry(name, partial(images, *kind)))
        for module in ("cd", "ct", "ctm", "dmd"):
            place = f"fewstep.recipes.methods.{module}.distance"
            own = __import__("fewstep.recipes.shared", fromlist=["distance"]).distance
            patch.setattr(place, lambda n, c=None, own=own: l2 if n == "lpips" else own(n, c))
        yield


def of_record(record: dict[str, Any], root: Path) -> Run:
    """The run of a record, on the tiny network that the record was made with."""
    text = json.dumps(record["run"]).replace("ROOT", str(root))
    run = json.loads(text)
    arguments = current(run["recipe"], run["arguments"])
    whole = recipe(run["recipe"], **arguments, train=run["train"])
    fresh = whole.start.teacher == "none" and "channels" not in arguments
    if fresh and not {"digits", "plane"} & {*whole.place.keys}:
        whole = whole.change(**TINY[whole.network.network])
    return whole.build()


def losses(run: Run) -> list[float]:
    """The first three."""
    trainer = Trainer(
        run.objective,
        run.data,
        run.config,
        run.averages,
        torch.device("cpu"),
        augment=run.augment,
    )
    found = [float(trainer.advance()["loss"]) for _ in range(3)]
    trainer.close()
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teachers and pairs that the records name, made as they were."""
    at = tmp_path_factory.mktemp("records")
    data = pictures(at / "images")
    few = {"steps": 3, "batch": 8}
    for folder, name in (("digits", "digits-edm"), ("toys", "toy-edm"), ("edm", "edm")):
        own = {"data": str(data), "dropout": 0.0} if name == "edm" else {}
        batch = {"batch": 8} if name == "edm" else {}
        whole = recipe(name, **OPTIONS[name], **own, train=settings(steps=3, **batch))
        train(replace(whole.build(), finish=None), at / folder)
    for folder, kind in (("digits", "digits"), ("toys", "toys"), ("edm", "images")):
        prefix = {"digits": "digits-", "toys": "toy-", "edm": ""}[folder]
        make(library.load(at / folder, device="cpu"), at / f"{kind}-pairs", 12, steps=3, paths=1)
        own = {"data": str(data), "resolution": 16} if folder == "edm" else {}
        first = recipe(f"{prefix}ect", teacher=str(at / folder), **own, train=settings(**few))
        train(replace(first.build(), finish=None), at / f"{kind}-ect")
    for name in ("cifar10-edm", "imagenet-64-edm", "fashion-mnist-edm", "imagenet-64-edm2"):
        _teacher(name, at, name)
    for name in ("cifar10-edm-small", "fashion-mnist-edm-small"):
        _teacher(name, at, name)
    _teacher("cifar10-edm", at, "cifar10-edm --labels", labels=True)
    for name in ("cifar10-edm --labels", "imagenet-64-edm", "fashion-mnist-edm-small"):
        make(library.load(at / name, device="cpu"), at / f"{name} pairs", 8, steps=2)
    name = "cifar10-edm-small"
    make(library.load(at / name, device="cpu"), at / f"{name} pairs", 8, steps=2)
    for name in ("cifar10-ect", "imagenet-64-ect", "cifar10-ect-small", "fashion-mnist-ect-small"):
        train(of_record(RECORDS[name], at), at / name)
    return at


def _teacher(name: str, at: Path, folder: str, **own: Any) -> None:
    whole = recipe(name, **own)
    train_ = {k: v for k, v in RECORDS[name]["run"]["train"].items() if k != "steps"}
    tiny = whole.change(**TINY[whole.network.network], train={**train_, "steps": 3})
    train(tiny.build(), at / folder)


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_version_0_1_0(name, root):
    record = RECORDS[name]
    run = of_record(record, root)
    assert list(run.averages) == record["averages"]
    # Other processors round differently: the losses of a second and third step by 6e-5.
    np.testing.assert_allclose(losses(run), record["losses"], rtol=3e-4)
    made = contract(run).sampling
    for steps, times in record["times"].items():
        np.testing.assert_allclose(made.times[int(steps)], times, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_out_of_its_json(name, tmp_path):
    whole = recipe(name)
    record = {"recipe": name, "arguments": whole.arguments(), "train": vars(whole.train)}
    (tmp_path / "run.json").write_text(json.dumps({"run": record}))
    assert rebuild(tmp_path) == whole


def test_a_run_is_made_again(tmp_path, capsys):
    few = ("--train.steps", 3, "--train.batch", 8, "--train.log-every", 1, "--points", 4)
    first, again = tmp_path / "first", tmp_path / "again"
    assert fewstep(capsys, "train", "toy-ct", "--last", 20, *few[:-2], "--out", first).code == 0
    outcome = fewstep(capsys, "train", "--again", first, "--out", again)
    assert outcome.code == 0, outcome.err
    for key in ("loss", "grad_norm/student"):
        assert [r[key] for r in rows(first)] == [r[key] for r in rows(again)]
    one, other = (json.loads((run / "run.json").read_text())["run"] for run in (first, again))
    assert one == other
    longer = fewstep(capsys, "train", "--again", first, "--out", tmp_path / "x", "--last", 30)
    assert longer.code == 0
    assert json.loads((tmp_path / "x" / "run.json").read_text())["run"]["arguments"]["last"] == 30


def test_again_needs_a_run_and_a_folder(tmp_path, capsys):
    outcome = fewstep(capsys, "train", "--again", tmp_path, "--out", tmp_path / "new")
    assert (outcome.code, outcome.out) == (2, "")
    assert "it has no run.json" in outcome.err
    trained(tmp_path / "run", "toy-edm", steps=1)
    assert fewstep(capsys, "train", "--again", tmp_path / "run").code == 2


def test_a_run_of_python_cannot_be_made_again(tmp_path, capsys):
    run = replace(build("toy-edm", steps=1), recipe="mine", arguments={})
    train(run, tmp_path / "run")
    words = ("train", "--again", tmp_path / "run", "--out", tmp_path / "new")
    outcome = fewstep(capsys, *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert "is a run of 'mine', and no recipe has this name" in outcome.err
    assert "The code that made its Run can train it again" in outcome.err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"recipe": "digits-xyz"}, "no recipe has this name"),
        ({"arguments": {"condition_drop": 0.1, "pointz": 3}}, "no option pointz"),
        ({"train": {"stesp": 3}}, "train.stesp is no option"),
        ({"train": 3}, "damaged"),
    ],
)
def test_a_damaged_record(damage, says, tmp_path):
    trained(tmp_path / "run", "toy-edm", steps=1)
    file = tmp_path / "run" / "run.json"
    record = json.loads(file.read_text())
    record["run"] |= damage
    file.write_text(json.dumps(record))
    with pytest.raises(UsageError, match=says):
        rebuild(tmp_path / "run")


def test_a_run_folder_of_version_0_1_0_goes_on(tmp_path, capsys):
    """Its record is read as this version would write it, and its checkpoint is resumed."""
    run = tmp_path / "run"
    few = ("--train.batch", 8, "--train.save-every", 2, "--train.sample-every", 0, "--last", 20)
    assert fewstep(capsys, "train", "toy-ct", *few, "--train.steps", 2, "--out", run).code == 0
    file = run / "run.json"
    record = json.loads(file.read_text())
    own = record["run"]["arguments"]
    record["run"]["arguments"] = {
        **{k: own[k] for k in ("data", "width", "blocks", "fourier_scale", "c")},
        **{"start": own["first"], "end": own["last"]},
    }
    file.write_text(json.dumps(record))
    shutil.copytree(run, tmp_path / "copy")
    outcome = fewstep(capsys, "train", "toy-ct", *few, "--train.steps", 4, "--out", run)
    assert outcome.code == 0, outcome.err
    assert "resuming from" in outcome.err
    changed = fewstep(capsys, "train", "toy-ct", *few[:-1], 30, "--out", tmp_path / "copy")
    assert changed.code == 2
    assert "last: was 20, now 30" in changed.err


def test_the_record_is_the_recipe(tmp_path):
    whole = recipe("toy-edm", width=8, blocks=1, train=settings(steps=1))
    run = whole.build()
    record = describe(run, torch.device("cpu"), {})["run"]
    assert (record["recipe"], record["arguments"]) == (whole.name, whole.arguments())
