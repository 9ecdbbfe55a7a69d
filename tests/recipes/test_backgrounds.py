"""The colour behind transparent pixels: in recipes, in what they record, and in evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fewstep.compare import Budget, Plan
from fewstep.data import ImageFolder, prepare, write_arrays
from fewstep.errors import UsageError
from fewstep.evaluation import named_protocol
from fewstep.model import load
from fewstep.recipes import recipe
from fewstep.recipes.origins import origin
from image_files import encoded
from tiny import UNET, fewstep, settings

SIZES = ("--resolution", 16, "--channels", 8, "--multipliers", 1, "--blocks", 1, "--attention", 8)
FEW = ("--train.batch", 8, "--train.sample-every", 0, "--train.steps", 2)
COLOURS = {None: 1.0, "white": 1.0, "black": -1.0, "#000000": -1.0, "#808080": 128 / 127.5 - 1}


@pytest.fixture
def transparent(tmp_path: Path) -> Path:
    """Pictures whose left half is transparent."""
    rng = np.random.default_rng(0)
    for i in range(12):
        pixels = rng.integers(0, 256, (16, 16, 4), np.uint8)
        pixels[..., 3] = np.where(np.arange(16) < 8, 0, 255)
        place = tmp_path / "images" / f"{i:02d}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(encoded(pixels))
    return tmp_path / "images"


def behind(data) -> set[float]:
    """The values of the left halves."""
    return {round(v, 4) for v in data.batch(range(len(data))).x0[..., :8].flatten().tolist()}


@pytest.mark.parametrize("colour", COLOURS)
def test_recipes_read_it(transparent, colour):
    given = {"resolution": 16, "background": colour, "held_out": 0.25}
    run = recipe("edm", **UNET, data=transparent, **given, train=settings()).build()
    expected = {round(COLOURS[colour], 4)}
    assert behind(run.data) == behind(run.held_out) == expected
    assert run.arguments["background"] == colour
    name = colour or "#ffffff"
    assert any("12 are" in note or "12 image" in note for note in run.data.notes), name


def test_it_is_recorded_and_read_again(transparent, tmp_path, capsys):
    out = tmp_path / "run"
    args = ("train", "edm", "--data", transparent, *SIZES, *FEW, "--out", out, "--held-out", 0.25)
    assert fewstep(capsys, *args, "--background", "black").code == 0
    told = json.loads((out / "run.json").read_text())
    assert told["run"]["arguments"]["background"] == "black"
    assert any("composited on" in note for note in told["data"]["notes"])
    outcome = fewstep(capsys, *args, "--train.steps", 3)
    assert outcome.code == 2
    assert "background: was 'black', now None" in outcome.err
    of = origin(str(out), None, None)
    assert (of.held_out, of.background) == (0.25, "black")
    made = load(out, device="cpu").contract.data
    protocol = named_protocol(of.data, of.held_out, made, 9, background=of.background)
    assert {*protocol.train.x0[..., :8].unique().tolist()} == {-1.0}
    assert {*protocol.held_out.x0[..., :8].unique().tolist()} == {-1.0}
    assert fewstep(capsys, "evaluate", out, "--steps", 1).code == 0
    assert origin(str(out), str(transparent.parent), None).background == "black"
    assert origin(str(out), "digits", None).background is None


def test_prepared_files_have_their_own(transparent, tmp_path):
    file = tmp_path / "x.safetensors"
    prepare(transparent, file, resolution=16, background="black")
    for same in (None, "black", "#000000"):
        run = recipe("edm", **UNET, data=file, background=same, train=settings()).build()
        assert behind(run.data) == {-1.0}
    with pytest.raises(UsageError, match="prepared on the background black, asked for is white"):
        recipe("edm", **UNET, data=file, background="white", train=settings()).build()


@pytest.mark.parametrize("colour", ["blick", "#12", ""])
def test_what_is_no_colour(transparent, tmp_path, capsys, colour):
    args = ("train", "edm", "--data", transparent, *SIZES, *FEW, "--out", tmp_path / "run")
    outcome = fewstep(capsys, *args, "--background", colour)
    assert outcome.code == 2
    assert f"got background={colour!r}; expected a colour such as white or" in outcome.err
    assert not (tmp_path / "run").exists()


def test_data_without_transparent_pixels(tmp_path, capsys):
    file = tmp_path / "x.safetensors"
    write_arrays(file, np.zeros((9, 2), np.float32))
    net = ("--network", "mlp", "--width", 8, "--out", tmp_path / "run")
    for data in ("two-modes", file):
        outcome = fewstep(capsys, "train", "edm", "--data", data, *net, "--background", "black")
        assert outcome.code == 2
        assert "--background is the colour behind transparent pixels of the images" in outcome.err
    with pytest.raises(UsageError, match="--background is for images of your own"):
        Plan(data="digits", methods=["ct"], budget=Budget("samples", 9), background="black")


def test_data_commands_take_it(transparent, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    args = ("--resolution", 16, "--background", "#ff0000")
    text = fewstep(capsys, "data", "check", transparent, *args, "--out", sheet).out
    assert "composited on" in text
    file = tmp_path / "x.safetensors"
    assert fewstep(capsys, "data", "prepare", transparent, *args, "--out", file).code == 0
    red = ImageFolder(transparent, 16, background="#ff0000").batch([0]).x0[0, :, 0, 0].tolist()
    assert red == [1.0, -1.0, -1.0]
