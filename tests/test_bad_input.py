"""Whatever a user gets wrong ends with exit code 2, one message, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fewstep.system.files import sha256
from tiny import Outcome, fewstep, pictures, trained, tree

QUICK = "--train.steps 2 --train.batch 8 --train.sample-every 0"
TOY = f"train toy-edm --width 8 --blocks 1 {QUICK}"
UNET = f"--resolution 16 --channels 8 --multipliers 1 1 --blocks 1 {QUICK}"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good and broken models and data, by name; no test may change them."""
    root = tmp_path_factory.mktemp("bad")
    at = {"root": root}

    def add(name: str) -> Path:
        at[name] = root / name
        return at[name]

    pictures(add("images"))
    pictures(add("unlabelled"), classes=0)
    add("empty").mkdir()
    (add("foreign")).mkdir()
    (at["foreign"] / "thesis.txt").write_text("mine")
    add("file").write_text("mine")
    truncated = pictures(add("truncated")) / "class0" / "00.png"
    truncated.write_bytes(truncated.read_bytes()[:60])
    add("corrupt").write_bytes(b"PK\x03\x04 this is no zip")
    add("nowhere")

    few = {"steps": 2, "batch": 8}
    trained(add("toy"), "toy-edm", **few)
    trained(add("digits"), "digits-edm", **few)
    undropped = {"teacher": at["digits"], "options": {"condition_drop": 0.0}}
    trained(add("digits-student"), "digits-cd", **undropped, **few)
    trained(add("toy-student"), "toy-cd", teacher=at["toy"], **few)
    trained(add("image-teacher"), "edm", data=at["images"], **few)

    def altered(name: str, source: str) -> Path:
        shutil.copytree(at[source] / "model", add(name))
        return at[name]

    weights = altered("flipped", "toy") / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    weights = altered("short", "toy") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (altered("no-weights", "toy") / "model.safetensors").unlink()
    (altered("no-json", "toy") / "config.json").write_text("{")

    other = altered("other", "toy")
    tensors = load_file(other / "model.safetensors")
    tensors["net.first.weight"] = tensors["net.first.weight"][:, :1].contiguous()
    tensors["net.strange"] = tensors.pop("net.last.bias")
    save_file(tensors, other / "model.safetensors")
    digest = sha256((other / "model.safetensors").read_bytes())
    _change_config(other, sha256=digest)
    _change_config(altered("old-format", "toy"), format=0)
    _change_config(altered("odd-denoiser", "toy"), denoiser=[1])
    return at


def _change_config(model: Path, **values: object) -> None:
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.fixture(autouse=True)
def at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(outcome: Outcome, *parts: str) -> None:
    """Exit code 2 and one short message of ours that says all of ``parts``."""
    assert outcome.code == 2, outcome
    ours = [line for line in outcome.err.splitlines() if line.startswith("fewstep: ")]
    assert len(ours) == 1, outcome.err
    message = outcome.err[outcome.err.index("fewstep: ") :]
    assert len(message) < 600, message
    before = outcome.err[: outcome.err.index("fewstep: ")]
    assert re.fullmatch(r"(model: .*\n)?", before), f"before the message: {before!r}"
    assert "Traceback" not in outcome.err
    for part in parts:
        assert part in message, f"{part!r} is not in {message!r}"


# Each: the command, and what its message says. {names} are places.
MESSAGES = {
    # Names.
    "command": ("trian toy-edm", "'trian'", "did you mean 'train'"),
    "command, far off": ("xyzzy", "'xyzzy'", "known: recipes, train, sample, evaluate"),
    "recipe": ("train toy-emd", "'toy-emd'", "did you mean 'toy-edm'"),
    "recipe, none": ("train --out x", "'--out'", "known: "),
    "no recipe": ("train", "fewstep recipes"),
    "recipes of a word": ("recipes nosuch", "'nosuch'"),
    "model": ("sample digit-cd", "'digit-cd'", "did you mean 'digits-cd'"),
    "model, evaluate": ("evaluate digit-cd", "'digit-cd'", "did you mean 'digits-cd'"),
    "model, search": ("search digit-cd", "'digit-cd'", "did you mean 'digits-cd'"),
    "model is a file": ("sample {file}", "{file}"),
    "model is any folder": ("sample {foreign}", "{foreign}", "run"),
    "toy data": (f"{TOY} --data two-mode", "'two-mode'", "did you mean 'two-modes'"),
    # Teachers.
    "no teacher, toys": (f"train toy-cd --teacher {{nowhere}} {QUICK}", "{nowhere}", "toy-edm"),
    "no teacher, images": (
        f"train cd --data {{images}} --resolution 16 --teacher {{nowhere}} {QUICK}",
        "{nowhere}",
        "fewstep train edm",
    ),
    "no teacher, digits": (
        f"train digits-cd --teacher {{nowhere}} {QUICK}",
        "{nowhere}",
        "fewstep train digits-edm",
    ),
    "teacher of another resolution": (
        f"train cd --data {{images}} --resolution 8 --teacher {{image-teacher}} {QUICK}",
        "{image-teacher}",
        "(3, 16, 16)",
        "(3, 8, 8)",
        "fewstep train edm",
    ),
    "teacher of other channels": (
        f"train digits-cd --teacher {{image-teacher}} {QUICK}",
        "(3, 16, 16)",
        "(1, 8, 8)",
    ),
    "teacher with labels": (
        f"train cd --data {{unlabelled}} --resolution 16 --teacher {{image-teacher}} {QUICK}",
        "2 labels",
    ),
    "teacher is a student": (
        f"train digits-cd --teacher {{digits-student}} {QUICK}",
        "{digits-student}",
        "cd model",
        "diffusion",
    ),
    "teacher is damaged": (f"train toy-cd --teacher {{flipped}} {QUICK}", "{flipped}", "damaged"),
    # Pictures.
    "no data": (f"train edm --data {{nowhere}} {UNET}", "{nowhere}", "no data at"),
    "empty data": (f"train edm --data {{empty}} {UNET}", "{empty}", "no images"),
    "data is a file": (f"train edm --data {{file}} {UNET}", "{file}"),
    "truncated picture": (f"train edm --data {{truncated}} {UNET}", "class0/00.png"),
    "corrupt zip": (f"train edm --data {{corrupt}} {UNET}", "{corrupt}"),
    "resolution 0": (f"train edm --data {{images}} {UNET} --resolution 0", "resolution", "0"),
    "resolution negative": (f"train ct --data {{images}} {UNET} --resolution -4", "-4"),
    "resolution and multipliers": (
        f"train edm --data {{images}} {UNET} --resolution 18 --multipliers 1 1 1",
        "divisible by 4",
        "18",
    ),
    # Networks.
    "condition drop 2": (f"train edm --data {{images}} {UNET} --condition-drop 2", "[0, 1)"),
    "again what": ("train --again", "--again needs a run folder"),
    "width 0": (f"{TOY} --width 0", "width", "0"),
    "width 1": (f"train toy-ct --width 1 {QUICK}", "width", "1"),
    "blocks 0": (f"{TOY} --blocks 0", "blocks", "0"),
    "channels 3": (f"train edm --data {{images}} {UNET} --channels 3", "channels", "3"),
    "channels odd": (f"train edm --data {{images}} {UNET} --channels 5", "channels", "5"),
    "channels in no groups": (
        f"train edm --data {{images}} {UNET} --channels 14",
        "channels",
        "14",
    ),
    "multipliers 0": (f"train edm --data {{images}} {UNET} --multipliers 1 0", "multipliers"),
    "U-Net of no blocks": (f"train ct --data {{images}} {UNET} --blocks 0", "blocks", "0"),
    "dropout 2": (f"train edm --data {{images}} {UNET} --dropout 2", "dropout", "2"),
    "dropout negative": (f"train ct --data {{images}} {UNET} --dropout -1", "dropout", "-1"),
    "dropout nan": (f"train edm --data {{images}} {UNET} --dropout nan", "dropout", "nan"),
    "dropout of the MLP": (f"train digits-edm --width 8 {QUICK} --dropout 2", "dropout", "2"),
    "sigma data 0": (f"train edm --data {{images}} {UNET} --sigma-data 0", "sigma", "0"),
    "sigma data nan": (f"train edm --data {{images}} {UNET} --sigma-data nan", "sigma", "nan"),
    "width beside a teacher": (
        f"train digits-cd {QUICK} --width 8",
        "--width describes a new network",
        "digits-edm",
        "--teacher none",
    ),
    "network beside a teacher": (
        f"train digits-cd {QUICK} --network ddpmpp",
        "--network describes a new network",
        "digits-edm",
    ),
    "sigma data beside a teacher": (
        f"train digits-cd {QUICK} --sigma-data 0.3",
        "--sigma-data 0.3 contradicts the teacher",
        "leave it out",
    ),
    # Methods.
    "points negative": (f"train toy-cd --teacher {{toy}} {QUICK} --points -3", "points", "-3"),
    "points 1": (f"train toy-cd --teacher {{toy}} {QUICK} --points 1", "points", "1"),
    "first 1": (f"train toy-ct --width 8 {QUICK} --first 1", "first", "1"),
    "last below first": (f"train toy-ct --width 8 {QUICK} --first 9 --last 8", "last", "8"),
    # Training.
    "train steps 0": (f"{TOY} --train.steps 0", "train.steps", "0"),
    "train steps 0, progressive": (
        f"train toy-ct --width 8 {QUICK} --train.steps 0",
        "train.steps",
    ),
    "train steps negative, progressive": (
        f"train toy-ct --width 8 {QUICK} --train.steps -5",
        "train.steps",
        "-5",
    ),
    "batch negative": (f"{TOY} --train.batch -4", "train.batch", "-4"),
    "accumulation 0": (f"{TOY} --train.accumulation 0", "train.accumulation", "0"),
    "lr nan": (f"{TOY} --train.lr nan", "train.lr", "nan"),
    "lr inf": (f"{TOY} --train.lr inf", "train.lr", "inf"),
    "clip negative": (f"{TOY} --train.clip -1", "train.clip", "-1"),
    "betas": (f"{TOY} --train.betas 0.9 1", "train.betas", "1.0"),
    "keep 0": (f"{TOY} --train.keep 0", "train.keep", "0"),
    "save every 0": (f"{TOY} --train.save-every 0", "train.save", "0"),
    "seed negative": (f"{TOY} --train.seed -1", "train.seed", "-1"),
    "seed huge": (f"{TOY} --train.seed {10**30}", "seed", f"{10**30}"),
    "device of training": (f"{TOY} --train.device warp", "'warp'"),
    "device of training holds nothing": (f"{TOY} --train.device meta", "'meta'"),
    "two things wrong": (f"{TOY} --train.batch 0 --train.lr nan", "train.batch", "train.lr"),
    "run folder is a file": (f"{TOY} --out {{file}}", "{file}", "--out"),
    "run folder under a file": (f"{TOY} --out {{file}}/run", "{file}", "--out"),
    "run folder of others": (f"{TOY} --out {{foreign}}", "{foreign}", "--out"),
    # Models.
    "damaged weights": ("sample {flipped}", "{flipped}", "damaged"),
    "truncated weights": ("sample {short}", "{short}", "damaged"),
    "no weights": ("sample {no-weights}", "{no-weights}"),
    "no config": ("sample {no-json}", "{no-json}"),
    "another format": ("sample {old-format}", "{old-format}", "format"),
    "odd config": ("sample {odd-denoiser}", "denoiser"),
    "another network's weights": (
        "sample {other}",
        "{other}",
        "missing net.last.bias (2,)",
        "extra net.strange (2,)",
        "net.first.weight: expected (8, 2), found (8, 1)",
    ),
    # Sampling.
    "n 0": ("sample {toy} -n 0", "-n", "0"),
    "n negative": ("sample {toy} -n -5", "-n", "-5"),
    "steps 0": ("sample {toy} --steps 0", "steps", "0"),
    "steps negative": ("sample {toy-student} --steps -1", "steps", "-1"),
    "label out of range": ("sample {digits} -n 2 --label 11", "11", "[0, 9]"),
    "label negative": ("sample {digits} -n 2 --label -1", "-1", "[0, 9]"),
    "label huge": (f"sample {{digits}} -n 2 --label {10**30}", "[0, 9]"),
    "label without labels": ("sample {toy} -n 2 --label 0", "label", "no labels"),
    "guidance of a student": ("sample {digits-student} -n 2 --guidance 2", "guidance", "2"),
    "gamma of a student": ("sample {digits-student} -n 2 --gamma 0.5", "gamma", "0.5"),
    "solver of a student": ("sample {digits-student} -n 2 --solver euler", "solver='euler'", "ODE"),
    "eta of a student": ("sample {digits-student} -n 2 --eta 0.5", "eta=0.5", "renoise"),
    "churn of a student": ("sample {digits-student} -n 2 --churn 40", "churn=40.0", "leave it out"),
    "eta of Heun": ("sample {toy} -n 2 --eta 1", "eta belongs to the solver ddim", "heun"),
    "eta out of range": ("sample {toy} -n 2 --solver ddim --eta 2", "eta must be in [0, 1]", "2"),
    "churn of ddim": ("sample {toy} -n 2 --solver ddim --churn 9", "heun and euler", "ddim"),
    "churn below 0": ("sample {toy} -n 2 --churn -1", "churn must be finite", "-1"),
    "guidance without labels": ("sample {toy} -n 2 --guidance 2", "guidance", "2"),
    "guidance nan": ("sample {digits} -n 2 --guidance nan", "guidance", "nan"),
    "guidance out of range": ("sample {digits} -n 2 --guidance -1", "guidance", "-1"),
    "seed below 0": ("sample {toy} -n 2 --seed -1", "seed"),
    "seeds malformed": ("sample {toy} --seeds 3-x", "--seeds", "'3-x'", "0-63"),
    "seeds backwards": ("sample {toy} --seeds 9-3", "--seeds", "'9-3'"),
    "seeds empty": ("sample {toy} --seeds ,", "--seeds", "','"),
    "seeds negative": ("sample {toy} --seeds=-3,4", "seed"),
    "times malformed": ("sample {toy} --times 80;1", "--times", "'80;1'", "80,0.8"),
    "times ascending": ("sample {toy} --times 1,80", "descend", "[1.0, 80.0]"),
    "times beyond the start": ("sample {toy-student} --times 100", "80", "100"),
    "times nan": ("sample {toy} --times nan", "nan"),
    "time 0": ("sample {toy-student} --times 80,0", "0.0"),
    "average": ("sample {toy} --average half", "'half'", "{toy}"),
    "average of a bundled model": ("sample digits-cd --average half", "digits-cd", "--average"),
    "device": ("sample {toy} --device warp", "'warp'"),
    "device without memory": ("sample {toy} --device meta", "'meta'"),
    "columns 0": ("sample {toy} --columns 0", "--columns", "0"),
    "out of another kind": ("sample {toy} -n 2 --out x.jpg", "x.jpg", ".png"),
    "out under a file": ("sample {toy} -n 2 --out {file}/x.png", "{file}", "--out"),
    "out folder is a file": ("sample {digits} -n 2 --out {file}", "{file}", "--out"),
    "out folder under a file": ("sample {digits} -n 2 --out {file}/x", "{file}", "--out"),
    # Evaluating.
    "evaluate steps malformed": ("evaluate {digits} --steps one", "--steps", "'one'"),
    "evaluate steps 0": ("evaluate {digits} --steps 0", "steps", "0"),
    "evaluate n": ("evaluate {digits} -n 1", "-n", "1"),
    "evaluate on other data": ("evaluate {toy} --data digits", "(2,)", "(1, 8, 8)", "--data"),
    "evaluate without held-out images": ("evaluate {image-teacher} --data {images}", "--held-out"),
    "evaluate an image run alone": ("evaluate {image-teacher}", "{images}", "--held-out"),
    "evaluate metrics": ("evaluate {digits} --metrics fd,fid", "'fid'", "known: fd, swd, nn, kid"),
    "evaluate features": ("evaluate {digits} --features resnet2", "'resnet2'", "resnet20"),
    "evaluate features for other data": ("evaluate {toy} --features dino", "'dino'", "dinov2"),
    "evaluate features from code": ("evaluate {digits} --features os:system", "'os'", "known:"),
    "evaluate features from no file": (
        "evaluate {digits} --features resnet20:{nowhere}",
        "{nowhere}",
        "safetensors",
    ),
    "evaluate on no data": (
        "evaluate {image-teacher} --data {images} --held-out {nowhere}",
        "{nowhere}",
    ),
    "evaluate on images without labels": (
        "evaluate {image-teacher} --data {images} --held-out {unlabelled} --steps 1",
        "label",
    ),
    "evaluate guidance": ("evaluate {digits-student} --guidance 2", "guidance"),
    "evaluate average": ("evaluate {digits} --average half", "'half'"),
    "evaluate device": ("evaluate {digits} --device warp", "'warp'"),
    "evaluate out is a folder": ("evaluate {digits} --steps 1 --out {foreign}", "{foreign}"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_one_message(name, places, at_work, capsys):
    command, *parts = MESSAGES[name]
    before = tree(places["root"])
    args = [word.format_map(places) for word in command.split(" ")]
    outcome = fewstep(capsys, *args)
    refused(outcome, *(part.format_map(places) for part in parts))
    assert tree(at_work) == {}
    assert tree(places["root"]) == before


# What the parser of options says is framed, but short, and names what was given.
FRAMED = {
    "option": ("sample {toy} --stepz 3", "--stepz", "--steps"),
    "option of training": ("train toy-edm --trian.steps 3", "--trian.steps", "--train.steps"),
    "another argument": ("train toy-edm toy-cd", "toy-cd"),
    "no number": ("sample {toy} -n two", "'two'"),
    "no choice": ("train toy-edm --train.schedule cosin", "'cosin'", "cosine"),
    "no model": ("sample", "MODEL"),
    "no teacher": ("train toy-cd", "--teacher", "toy-edm"),
    "no data": ("train edm --resolution 8", "--data"),
    "widths with commas": (
        "train edm --data {images} --network unet1d --widths 16,32",
        "expected whole numbers with spaces between them",
        "16 32",
        "'16,32'",
    ),
    "rates with commas": ("train edm --data {images} --rates 0.9,1", "numbers with spaces"),
    "no solver": ("sample {toy} --solver heum", "'heum'", "heun"),
    "multipliers": (f"train edm --data {{images}} {UNET} --multipliers one", "'one'"),
}


@pytest.mark.parametrize("name", FRAMED)
def test_options_of_the_parser(name, places, at_work, capsys):
    command, *parts = FRAMED[name]
    outcome = fewstep(capsys, *(word.format_map(places) for word in command.split(" ")))
    assert outcome.code == 2
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    assert len(outcome.err) < 1500
    assert all(part in outcome.err for part in parts), outcome.err
    assert tree(at_work) == {}


# The disk.


def full(path: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize("out", ["x.png", "x.npz", "x"])
def test_disk_full_while_sampling(out, places, at_work, capsys, monkeypatch):
    args = ("sample", places["digits"], "-n", 2, "--steps", 1, "--out", out)
    assert fewstep(capsys, *args).code == 0
    before = tree(at_work)
    monkeypatch.setattr("fewstep.system.files.flush", full)
    refused(fewstep(capsys, *args, "--seed", 1), "No space left", "free some space", out)
    assert tree(at_work) == before


def test_disk_full_while_evaluating(places, at_work, capsys, monkeypatch):
    monkeypatch.setattr("fewstep.evaluation.Protocol.judge", lambda *_: {"images_per_second": 1.0})
    monkeypatch.setattr("fewstep.evaluation.Protocol.floor", lambda *_: {})
    monkeypatch.setattr("fewstep.system.files.flush", full)
    refused(
        fewstep(capsys, "evaluate", places["digits"], "--steps", 1, "--out", "x.json"),
        "No space left",
    )
    assert tree(at_work) == {}


@pytest.mark.parametrize("part", ["run.json", "checkpoints", "model"])
def test_disk_full_while_training(part, at_work, capsys, monkeypatch):
    from fewstep.system.files import flush

    def fills(path: Path) -> None:
        if part in str(path):
            full(path)
        flush(path)

    monkeypatch.setattr("fewstep.system.files.flush", fills)
    outcome = fewstep(capsys, *TOY.split(" "), "--out", "run")
    assert outcome.code == 2
    assert outcome.err.count("fewstep: ") == 1
    assert "No space left" in outcome.err
    assert "free some space" in outcome.err
    assert "Traceback" not in outcome.err
    left = tree(at_work)
    assert not [name for name in left if ".new" in name or ".old" in name]
    assert not any(
        f"run/{part}/" in name or name == "run/run.json" == f"run/{part}" for name in left
    )
    # With space again, the same command ends the run.
    monkeypatch.setattr("fewstep.system.files.flush", flush)
    assert fewstep(capsys, *TOY.split(" "), "--out", "run").code == 0
    assert (at_work / "run" / "model" / "model.safetensors").is_file()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("command", ["sample {toy} --out locked/x.png", f"{TOY} --out locked/run"])
def test_no_permission(command, places, at_work, capsys):
    (at_work / "locked").mkdir(mode=0o500)
    outcome = fewstep(capsys, *(word.format_map(places) for word in command.split(" ")))
    refused(outcome, "locked", "--out")
    assert tree(at_work) == {"locked": None}


@pytest.mark.parametrize("command", ["sample {toy} --out locked/x.png", f"{TOY} --out locked/run"])
def test_permission_denied_by_the_system(command, places, at_work, capsys, monkeypatch):
    def denied(path: Path, *args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", denied)
    outcome = fewstep(capsys, *(word.format_map(places) for word in command.split(" ")))
    refused(outcome, "locked", "--out")
    assert tree(at_work) == {}


def test_a_folder_keeps_what_else_is_in_it(places, at_work, capsys):
    pictures(at_work / "photos", 2, classes=0)
    before = tree(at_work)
    outcome = fewstep(capsys, "sample", places["digits"], "-n", 2, "--out", "photos")
    assert outcome.code == 0
    after = tree(at_work)
    assert before.items() <= after.items()
    assert sorted(p.name for p in (at_work / "photos").glob("00000*.png")) == [
        "000000.png",
        "000001.png",
    ]


def test_debug_shows_the_traceback(places):
    from fewstep.cli import main
    from fewstep.errors import UsageError

    with pytest.raises(UsageError, match="nowhere"):
        main(["sample", str(places["nowhere"]), "--debug"])
