"""``fewstep edit``: files in, files out, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.editing.files import facts_of, read_mask, read_photo
from fewstep.image_grid import pixels
from fewstep.model import Model
from fewstep.models import EDM, Denoiser
from fewstep.models.fresh import fresh_network
from fewstep.paths import VarianceExploding
from tiny import fewstep

CLASS = ("--label", 3)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a photograph, a mask and a few others."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (10, 13), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    mask = np.zeros((10, 13), np.uint8)
    mask[2:6, 3:9] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path


@pytest.fixture(scope="module")
def coloured(tmp_path_factory) -> Path:
    """A model of pictures in colour that has learned nothing."""
    spec = DataSpec(shape=(3, 8, 8))
    net = fresh_network("mlp", {"width": 8, "blocks": 1}, spec, augment=False, seed=0)
    path = VarianceExploding()
    sampling = Sampling(start=Start(t=80.0, std=80.0), kind="renoise", any_times=True)
    contract = Contract(method="ct", data=spec, sampling=sampling)
    folder = tmp_path_factory.mktemp("coloured") / "model"
    return Model(Denoiser(net, EDM(sigma_data=0.5, path=path)), contract).save(folder, samples=0)


def opened(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def test_inpainting_keeps_every_known_pixel_and_says_what_made_it(place, capsys):
    out = place / "out.png"
    words = ["edit", "inpaint", "digits-cd", place / "photo.png", "--mask", place / "mask.png"]
    done = fewstep(capsys, *words, "--out", out, "--times", "80,5,0.5", "--seed", 4, *CLASS)
    assert done.code == 0, done.err
    assert "1 picture(s) after 3 network call(s)" in done.out
    before, after, mask = (opened(place / f"{n}.png") for n in ("photo", "out", "mask"))
    assert after.shape == before.shape
    assert np.array_equal(after[mask == 0], before[mask == 0])
    assert not np.array_equal(after[mask == 255], before[mask == 255])
    facts = facts_of(out)
    assert facts["verb"] == "inpaint"
    assert facts["model"] == "digits-cd"
    assert facts["times"] == [80.0, 5.0, 0.5]
    assert facts["seed"] == 4
    assert len(facts["sha256"]) == 64
    again = place / "again.png"
    fewstep(capsys, *words, "--out", again, "--times", "80,5,0.5", "--seed", 4, *CLASS)
    assert np.array_equal(opened(again), after)


def test_several_results_are_numbered(place, capsys):
    words = ["edit", "vary", "digits-cd", place / "photo.png", "--sigma", "2", "-n", 3, *CLASS]
    assert fewstep(capsys, *words, "--out", place / "v.png").code == 0
    shown = [opened(place / f"v-{i}.png") for i in range(3)]
    assert shown[0].shape == (10, 13)
    assert not np.array_equal(shown[0], shown[1])
    assert [facts_of(place / f"v-{i}.png")["index"] for i in range(3)] == [0, 1, 2]
    assert facts_of(place / "v-0.png")["times"] == [2.0]


def test_the_alpha_channel_is_the_mask(place, capsys):
    rgba = np.full((9, 9, 4), 200, np.uint8)
    rgba[..., 3] = 255
    rgba[3:5, 3:5, 3] = 90
    Image.fromarray(rgba).save(place / "cut.png")
    words = ["edit", "inpaint", "digits-cd", place / "cut.png", "--alpha", "--steps", 2, *CLASS]
    assert fewstep(capsys, *words, "--out", place / "out.png").code == 0
    after = opened(place / "out.png")
    changed = after != 200
    assert changed[3:5, 3:5].any()
    changed[3:5, 3:5] = False
    assert not changed.any()
    refused = fewstep(
        capsys, "edit", "inpaint", "digits-cd", place / "photo.png", "--alpha", *CLASS
    )
    assert (refused.code, "has no alpha channel" in refused.err) == (2, True)


def test_pictures_are_read_upright_in_8_bits_with_the_models_channels(tmp_path):
    deep = np.arange(24, dtype=np.uint16).reshape(4, 6) * 2700
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(pixels(read_photo(tmp_path / "deep.png", 1).x)[0, 0], deep >> 8)
    colours = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colours).save(tmp_path / "turned.png", exif=exif)
    upright = pixels(read_photo(tmp_path / "turned.png", 3).x)[0].transpose(1, 2, 0)
    assert np.array_equal(upright, np.rot90(colours, -1))
    assert read_photo(tmp_path / "turned.png", 1).x.shape == (1, 1, 6, 4)
    grey = read_photo((tmp_path / "deep.png").read_bytes(), 3)
    assert grey.hidden is None
    assert torch.equal(grey.x[:, 0], grey.x[:, 2])
    clear = np.zeros((2, 2, 4), np.uint8)
    clear[..., :3] = 77
    clear[0, 0, 3] = 255
    Image.fromarray(clear).save(tmp_path / "clear.png")
    seen = read_photo(tmp_path / "clear.png", 1)
    assert (pixels(seen.x) == 77).all()
    assert seen.hidden.tolist() == [[False, True], [True, True]]
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png").tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("verb", "options", "shape"),
    [
        ("upscale", ["--factor", 3, "--steps", 2], (30, 39)),
        ("deblur", ["--width", 0.7, "--by", "search", "--steps", 2], (10, 13)),
        ("strokes", [], (10, 13)),
        ("denoise", [], (10, 13)),
        ("denoise", ["--sigma", 0.3], (10, 13)),
    ],
)
def test_the_other_verbs_write_pictures_of_the_right_size(verb, options, shape, place, capsys):
    out = place / "out.png"
    done = fewstep(
        capsys, "edit", verb, "digits-cd", place / "photo.png", *options, *CLASS, "--out", out
    )
    assert done.code == 0, done.err
    assert opened(out).shape == shape
    assert facts_of(out)["verb"] == verb
    if verb == "upscale":
        means = opened(out).reshape(10, 3, 13, 3).mean((1, 3))
        assert np.abs(means - opened(place / "photo.png")).mean() < 1.0


def test_colour_is_drawn_and_the_luminance_kept(coloured, place, capsys):
    out = place / "out.png"
    done = fewstep(
        capsys, "edit", "colourise", coloured, place / "photo.png", "--steps", 2, "--out", out
    )
    assert done.code == 0, done.err
    after = opened(out)
    assert after.shape == (10, 13, 3)
    grey = after @ np.array([0.2989, 0.587, 0.114])
    assert np.median(np.abs(grey - opened(place / "photo.png"))) < 1.5


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_an_interpolation_is_a_strip_or_an_animation(suffix, place, capsys):
    out = place / f"out.{suffix}"
    words = ["edit", "interpolate", "digits-cd", "--seeds", "1,2", "--frames", 4, *CLASS]
    done = fewstep(capsys, *words, "--out", out)
    assert done.code == 0, done.err
    with Image.open(out) as image:
        if suffix == "gif":
            assert image.n_frames == 4
            assert json.loads(image.info["comment"])["fewstep"]["seeds"] == [1, 2]
        else:
            assert image.width > 3.9 * image.height
            assert facts_of(out)["times"] == [80.0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inpaint", "MODEL", "photo.png"], "--mask FILE or --alpha"),
        (["inpaint", "MODEL", "photo.png", "--mask", "wide.png"], "must be of one size"),
        (["inpaint", "MODEL", "photo.png", "--mask", "black.png"], "the mask is empty"),
        (["inpaint", "MODEL", "photo.png", "--mask", "white.png"], "covers the whole picture"),
        (["inpaint", "MODEL", "photo.png", "--mask", "photo.png"], "pixels are neither"),
        (["inpaint", "MODEL", "text.png", "--mask", "mask.png"], "of a kind that is not read"),
        (["inpaint", "MODEL", "none.png", "--mask", "mask.png"], "no picture at"),
        (["colourise", "MODEL", "photo.png"], "cannot colourise"),
        (["upscale", "MODEL", "photo.png", "--factor", "1"], "from 2"),
        (["strokes", "MODEL", "photo.png", "--times", "5,80"], "must descend"),
        (["strokes", "MODEL", "photo.png", "--eta", "0.5"], "belongs to diffusion models"),
        (["vary", "MODEL", "photo.png", "--times", "2"], "has no --times"),
        (["vary", "MODEL", "photo.png", "-n", "0"], "at least 1"),
        (["denoise", "MODEL", "photo.png", "--sigma", "0"], "above 0"),
        (["upscale", "MODEL", "photo.png", "--by", "search", "--eta", "0"], "has no --eta"),
        (["interpolate", "MODEL", "--seeds", "1"], "at least 2 seeds"),
        (["blur", "MODEL", "photo.png"], "unknown command 'edit blur'"),
    ],
)
def test_bad_input_is_one_message_and_no_file(words, message, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    for name, value, width in (("wide", 0, 9), ("black", 0, 13), ("white", 255, 13)):
        Image.fromarray(np.full((10, width), value, np.uint8)).save(f"{name}.png")
    Path("text.png").write_text("no picture")
    before = sorted(place.iterdir())
    given = ["digits-cd" if word == "MODEL" else word for word in words]
    own = [] if words[0] == "blur" else ["--label", "3", "--out", "out.png"]
    done = fewstep(capsys, "edit", *given, *own)
    assert done.code == 2
    assert message in done.err.splitlines()[-1]
    assert "Traceback" not in done.err
    assert sorted(place.iterdir()) == before


def test_where_results_cannot_be_written_nothing_is_computed(place, capsys):
    words = ["edit", "vary", "no-such-model", place / "photo.png", "--out"]
    assert "is not there; make it first" in fewstep(capsys, *words, place / "no" / "o.png").err
    assert "must end in .png" in fewstep(capsys, *words, place / "o.jpg").err


def test_the_verbs_are_listed(capsys):
    listed = fewstep(capsys, "edit").out
    for verb in ("inpaint", "colourise", "upscale", "deblur", "strokes", "denoise", "vary"):
        assert f"fewstep edit {verb} MODEL PHOTO" in listed
    assert "fewstep edit inpaint" in fewstep(capsys, "edit", "inpaint", "--help").out
