"""fewstep data check: what it says of a source, and its contact sheet."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fewstep.conditions import Label, Mask, Sequence, Vector
from fewstep.contract import DataSpec
from fewstep.data import ImageFolder, prepare, write_arrays
from image_files import encoded, pixels, shard, stored
from tiny import fewstep

COLOURS = {"cat": (200, 40, 40), "dog": (40, 200, 40)}


def plain(colour) -> bytes:
    return encoded(np.broadcast_to(np.array(colour, np.uint8), (9, 12, 3)))


@pytest.fixture
def photos(tmp_path):
    files = {f"{name}/{i}.png": plain(colour) for name, colour in COLOURS.items() for i in range(3)}
    odd = {"cat/x.svg": b"", "readme.txt": b"", "dog/bad.png": b"no", "cat/cut.png": b""}
    return stored(tmp_path, "folder", files | odd | {"loose.png": plain((0, 0, 0))})


def test_a_folder(tmp_path, capsys, photos):
    out = tmp_path / "sheets" / "sheet.png"
    outcome = fewstep(capsys, "data", "check", photos, "--resolution", 16, "--out", out)
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[:5] == [
        "6 sample(s) would be read as 3x16x16",
        "the images have 12 x 9 pixels",
        "2 class(es)",
        "  label 0: cat, 3 sample(s)",
        "  label 1: dog, 3 sample(s)",
    ]
    assert "note: 1 picture(s) are of a kind that is not read: 1 .svg" in lines
    assert any("such as loose.png, lie beside the class folders" in line for line in lines)
    assert "note: 6 image(s) have fewer than 16 pixels a side and are enlarged" in lines
    assert "2 image(s) cannot be read:" in lines
    assert any(line.startswith("  dog/bad.png is broken") for line in lines)
    assert any(f"fewstep data prepare {photos} --on-error skip" in line for line in lines)
    assert any(line.startswith("other files: 1 .svg, 1 .txt") for line in lines)
    assert lines[-1] == f"wrote a contact sheet of 6 sample(s) to {out}"
    sheet = np.asarray(Image.open(out).convert("RGB")).reshape(-1, 3)
    counts = [int((sheet == colour).all(1).sum()) for colour in COLOURS.values()]
    assert min(counts) == max(counts) == 3 * 48 * 48


def test_a_note_on_transparency_is_true_of_opaque_pictures_too(tmp_path, capsys):
    opaque = pixels(8, 8, 4)
    opaque[..., 3] = 255
    where = stored(tmp_path, "folder", {"a.png": encoded(opaque)})
    args = ("data", "check", where, "--resolution", 8, "--out", tmp_path / "sheet.png")
    # Headers, of which the note is, do not tell whether a pixel is transparent.
    note = "1 image(s) have an alpha channel; where it is transparent, they are composited on white"
    assert f"note: {note}" in fewstep(capsys, *args).out.splitlines()
    assert note in ImageFolder(where, resolution=8).notes


@pytest.mark.parametrize("labels", ["auto", "none"])
def test_shards(tmp_path, capsys, labels):
    files = {f"{i}.png": encoded(pixels(8, 8)) for i in range(5)}
    files |= {f"{i}.cls": str(1 + i % 2).encode() for i in range(5)}
    path = shard(tmp_path / "0.tar", dict(sorted(files.items())))
    out = tmp_path / "sheet.png"
    args = ("data", "check", path, "--resolution", 8, "--labels", labels, "--out", out)
    text = fewstep(capsys, *args).out
    assert text.startswith("5 sample(s) would be read as 1x8x8")
    assert ("  label 0: 1, 3 sample(s)" in text) == (labels == "auto")
    assert ("no labels" in text) == (labels == "none")
    assert out.exists()


@pytest.mark.parametrize("name", ["digits", "moons", "file"])
def test_what_is_ready(tmp_path, capsys, name, photos):
    source = name
    if name == "file":
        source = tmp_path / "x.safetensors"
        prepare(photos, source, resolution=4, on_error="skip")
    text = fewstep(capsys, "data", "check", source, "--out", tmp_path / "sheet.png").out
    first = {"digits": "1,200 sample(s) would be read as 1x8x8", "moons": "20,000 sample(s)"}
    assert text.startswith(first.get(name, "6 sample(s) would be read as 3x4x4"))
    assert ("such as loose.png" in text) == (name == "file")
    assert (tmp_path / "sheet.png").exists()


def test_conditions_are_listed(tmp_path, capsys):
    rng = np.random.default_rng(0)
    there = np.arange(6) < np.array([1, 4, 5] * 100)[:, None]
    mood = Label(classes=3, names=("calm", "glad", "sad"))
    kinds = {
        "speaker": Vector(shape=(5,)),
        "text": Sequence(shape=(8,), length=6),
        "mood": mood,
        "mask": Mask(),
    }
    speaker = rng.normal(size=(300, 5)).astype(np.float32).clip(-2, 2)
    speaker[13, 2], speaker[20, 0] = 7.5, -3.0
    file = tmp_path / "speech.safetensors"
    write_arrays(
        file,
        rng.normal(size=(300, 2, 20)).astype(np.float32),
        conditions={
            "speaker": speaker,
            "text": (np.ones((300, 6, 8), np.float32), there),
            "mood": np.arange(300) % 3,
        },
        mask=np.arange(300) % 13 + 3,
        spec=DataSpec(shape=(2, None), range=None, conditions=kinds),
    )
    text = fewstep(capsys, "data", "check", file, "--out", tmp_path / "sheet.png").out
    assert text.splitlines()[:6] == [
        "300 sample(s) would be read as 2xany",
        "no labels",
        "condition speaker: a vector of shape (5,), values in [-3, 7.5]",
        "condition text: a sequence of 1 to 5 tokens, 6 at most, each of shape (8,), "
        "values in [1, 1]",
        "condition mood: one of 3 classes (calm, glad, sad)",
        "condition mask: samples of 3 to 15 positions along the last axis",
    ]


def test_an_image_is_a_condition(tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (9, 3, 8, 8), np.uint8)
    file = tmp_path / "x.safetensors"
    write_arrays(file, images, np.arange(9) % 2, conditions={"low": images[:, :, ::2, ::2]})
    text = fewstep(capsys, "data", "check", file, "--out", tmp_path / "sheet.png").out
    assert "2 class(es)" in text
    assert "condition low: an image of shape (3, 4, 4), values in [-1, 1]" in text
    assert "condition label" not in text


def test_what_ends_in_one_message(tmp_path, capsys):
    for args, message in [
        ((), "got no source"),
        ((tmp_path / "nowhere",), "does not exist"),
        ((stored(tmp_path, "folder", {"a.png": b""}),), "holds no usable image; the first, a.png"),
        (("digits", "--out", "x.jpg"), "--out must be a .png"),
    ]:
        outcome = fewstep(capsys, "data", "check", *args)
        assert (outcome.code, outcome.out) == (2, "")
        assert message in outcome.err
        assert outcome.err.count("\n") == 1


def test_prepare_tells_notes(tmp_path, capsys, photos):
    out = tmp_path / "x.safetensors"
    args = ("data", "prepare", photos, "--out", out, "--resolution", 4, "--on-error", "skip")
    lines = fewstep(capsys, *args).out.splitlines()
    assert lines[1].startswith("note: 1 picture(s) are of a kind that is not read")
    assert lines[2].startswith("note: 1 image(s), such as loose.png")
