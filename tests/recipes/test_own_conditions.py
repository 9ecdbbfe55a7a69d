"""Own data with conditions, by the command line alone: train, resume, distil, sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fewstep as library
from fewstep.conditions import Label
from fewstep.contract import DataSpec
from fewstep.data import write_arrays
from fewstep.errors import UsageError
from fewstep.models.fresh import fresh_network
from fewstep.training.checkpoints import fingerprint
from tiny import fewstep, timeless

N = 24
UNET = ("--network", "ddpmpp", "--channels", 8, "--multipliers", 1, "--blocks", 1)
NETWORKS = {
    "vector": (*UNET, "--attention", 4),
    "image": (*UNET, "--attention", 4),
    "sequence": ("--network", "dit", "--width", 16, "--depth", 1, "--heads", 2, "--patch", 4),
    "ragged": ("--network", "unet1d", "--widths", 8, 16),
}
GIVEN = {
    "vector": ("--cond", "observation=0.1,0.2,0.3,0.4,0.5"),
    "image": (),
    "sequence": (),
    "ragged": ("--lengths", 12),
}


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep.training.drawing.PICTURED", 4)
    monkeypatch.setattr("fewstep.training.drawing.FIRST", 2)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each kind of data."""
    return written(tmp_path_factory.mktemp("own"), 0)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Other samples of each kind."""
    return written(tmp_path_factory.mktemp("unseen"), 1)


def written(root: Path, seed: int) -> dict[str, Path]:
    rng = np.random.default_rng(seed)
    images = np.tanh(rng.normal(size=(N, 3, 8, 8))).astype(np.float32)
    observation = rng.normal(size=(N, 5)).astype(np.float32)
    tokens = rng.normal(size=(N, 6, 8)).astype(np.float32)
    real = np.arange(6) < rng.integers(1, 7, N)[:, None]
    lengths = rng.integers(5, 21, N)
    waves = np.sin(np.arange(20) * 0.3) + 0.1 * rng.normal(size=(N, 2, 20))
    waves = (waves * (np.arange(20) < lengths[:, None, None])).astype(np.float32)
    conditions = {
        "vector": {"observation": observation},
        "image": {"sketch": images[:, :1]},
        "sequence": {"text": (tokens, real)},
    }
    at = {kind: root / f"{kind}.safetensors" for kind in NETWORKS}
    for kind, own in conditions.items():
        write_arrays(at[kind], images, conditions=own, range=(-1.0, 1.0))
    write_arrays(at["ragged"], waves, mask=lengths)
    return at


def command(
    kind: str, files: dict[str, Path], out: Path, steps: int, *more: object
) -> list[object]:
    few: dict[str, object] = {
        "steps": steps,
        "batch": 4,
        "save-every": 2,
        "log-every": 1,
        "warmup": 1,
        "lr": 1e-3,
    }
    few["schedule"] = "constant"  # a decay would end sooner in a shorter run
    train = [part for name, value in few.items() for part in (f"--train.{name}", value)]
    return ["--data", files[kind], *train, *more, "--out", out]


@pytest.mark.parametrize("kind", NETWORKS)
def test_own_data_by_the_command_line(kind, files, unseen, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out, steps in ((whole, 4), (parts, 2), (parts, 4)):
        args = command(kind, files, out, steps, *NETWORKS[kind])
        outcome = fewstep(capsys, "train", "edm", *args)
        assert outcome.code == 0, outcome.err
    assert "resuming from" in outcome.err
    one, other = (library.load(out, device="cpu") for out in (whole, parts))
    assert fingerprint(one.denoiser) == fingerprint(other.denoiser)
    assert [row["loss"] for row in timeless(whole)] == [row["loss"] for row in timeless(parts)]
    assert len(list((whole / "samples").glob("*.png"))) == 4

    out = tmp_path / "x.npz"
    sampled = fewstep(capsys, "sample", whole, "-n", 3, "--steps", 2, *GIVEN[kind], "--out", out)
    assert sampled.code == 0, sampled.err
    with np.load(out) as archive:
        x = archive["x"]
    assert np.isfinite(x).all()
    assert x.shape == ((3, 2, 12) if kind == "ragged" else (3, 3, 8, 8))

    student = command(kind, files, tmp_path / "cd", 2, "--teacher", whole, "--points", 4)
    assert fewstep(capsys, "train", "cd", *student).code == 0
    model = library.load(tmp_path / "cd", device="cpu")
    assert model.contract.data == one.contract.data
    held_out = ("--held-out", unseen[kind], "--metrics", "swd", "-n", 4)
    judged = fewstep(capsys, "evaluate", tmp_path / "cd", *held_out, "--steps", 1)
    assert judged.code == 0, judged.err


def test_a_condition_changes_the_sample(files, tmp_path, capsys):
    run = tmp_path / "run"
    args = command("vector", files, run, 30, *NETWORKS["vector"], "--train.sample-every", 0)
    assert fewstep(capsys, "train", "edm", *args).code == 0
    model = library.load(run, device="cpu")
    one, other = (
        model.sample(2, steps=2, seed=0, cond={"observation": np.full(5, v)}) for v in (-3.0, 3.0)
    )
    assert not one.equal(other)


def test_what_a_network_cannot_read_is_refused(files, tmp_path, capsys):
    args = command("sequence", files, tmp_path / "run", 2, "--network", "mlp", "--width", 8)
    outcome = fewstep(capsys, "train", "edm", *args)
    assert outcome.code == 2
    assert "the network mlp cannot read text; take --network ddpmpp or dit or unet1d" in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_conditions_is_refused(files, tmp_path, capsys):
    teacher = tmp_path / "teacher"
    args = command("vector", files, teacher, 1, *NETWORKS["vector"], "--train.sample-every", 0)
    assert fewstep(capsys, "train", "edm", *args).code == 0
    wrong = command("image", files, tmp_path / "cd", 2, "--teacher", teacher)
    outcome = fewstep(capsys, "train", "cd", *wrong)
    assert outcome.code == 2
    assert "observation (5,)" in outcome.err
    assert "sketch (1, 8, 8)" in outcome.err


def test_a_condition_that_no_network_reads_is_refused():
    spec = DataSpec(shape=(2,), range=None, conditions={"style": Label(classes=3)})
    with pytest.raises(UsageError, match="no network reads the condition 'style', a Label"):
        fresh_network("mlp", {"width": 8}, spec, augment=False, seed=0)


def test_the_doctor_knows_guidance_of_other_conditions(files, tmp_path, capsys):
    teacher = tmp_path / "teacher"
    args = command("vector", files, teacher, 1, *NETWORKS["vector"], "--train.sample-every", 0)
    assert fewstep(capsys, "train", "edm", *args).code == 0
    outcome = fewstep(capsys, "doctor", teacher, "-n", 8)
    assert "against no observation; fine" in outcome.out
