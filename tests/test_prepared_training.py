"""Distillation of a pipeline: by hand (import, encode, train), and by one command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_pipelines
from fewstep import load
from fewstep.cli import main
from fewstep.data.encoded import Encoded
from tiny_pipelines import SIZE, WORDS, library, saved

PIXELS = 2 * SIZE
SHORT = [
    *("--train.steps", "2", "--train.batch", "2", "--train.warmup", "0"),
    *("--train.sample-every", "0", "--train.threads", "1"),
]
CAPTIONS = ["a cat", "a dog", "two cats", "x" * 3 * WORDS, "dogs"]


def run(*words: object) -> int:
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A pipeline, images with captions, and images without."""
    root = tmp_path_factory.mktemp("prepared")
    saved(tiny_pipelines.sd(), root / "pipeline")
    rng = np.random.default_rng(0)
    for name in ("images", "bare"):
        (root / name).mkdir()
        for i, caption in enumerate(CAPTIONS):
            pixels = rng.integers(0, 256, (PIXELS, PIXELS, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
            if name == "images":
                (root / name / f"{i}.txt").write_text(caption)
    return root


@pytest.fixture(scope="module")
def by_hand(places):
    """The teacher and its encoded data, made by their own commands."""
    assert run("import", places / "pipeline", "--out", places / "teacher") == 0
    data = places / "encoded"
    command = ["data", "encode", places / "images", "--like", places / "teacher", "--out", data]
    assert run(*command, "--resolution", PIXELS) == 0
    return places / "teacher", data


def test_encoded_data_is_what_the_pipeline_makes(by_hand, places):
    teacher, folder = by_hand
    data, model = Encoded(folder), load(teacher, device="cpu")
    pipeline = library().StableDiffusionPipeline.from_pretrained(
        places / "pipeline", safety_checker=None, local_files_only=True
    )
    batch = data.batch(range(len(data)))
    pixels = np.stack([np.asarray(Image.open(places / f"images/{i}.png")) for i in range(5)])
    x = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        z = pipeline.vae.encode(x).latent_dist.mean * 0.18215
        text = pipeline.encode_prompt(CAPTIONS, "cpu", 1, False)[0]
    assert torch.allclose(batch.x0, z, atol=1e-5)
    assert torch.allclose(batch.cond["text"], text, atol=1e-5)
    assert data.about.cut == 1
    assert data.spec.agrees(model.contract.data)


@pytest.mark.parametrize("method", ["cd", "pcm", "dmd2"])
def test_methods_distil_a_pipeline(by_hand, tmp_path, method):
    teacher, data = by_hand
    out = tmp_path / method
    words = ["train", method, "--teacher", teacher, "--data", data, "--out", out, *SHORT]
    assert run(*words, "--guidance", 3) == 0
    student, before = load(out, device="cpu"), load(teacher, device="cpu")
    assert student.frontend.digests == before.frontend.digests
    images = student.sample(2, prompts=["a cat", "a dog"])
    assert images.shape == (2, 3, PIXELS, PIXELS)
    assert images.isfinite().all()
    learned = student.denoiser.net.state_dict()
    moved = [k for k, v in before.denoiser.net.state_dict().items() if not v.equal(learned[k])]
    assert len(moved) > 50


def command(places: Path, out: Path, *more: object, images: str = "images") -> list[object]:
    words = ["train", "cd", "--model", places / "pipeline", "--data", places / images]
    return [*words, "--resolution", PIXELS, "--out", out, *SHORT, *more]


def test_one_command(places, by_hand, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(*command(places, out)) == 0
    first = capsys.readouterr().err
    assert "importing" in first
    assert "1 shard(s) made, 0 kept" in first
    assert "1 text(s) were longer" in first
    assert f"sample 3: '{'x' * 3 * WORDS}'" in first
    assert Encoded(out / "data").fingerprint == Encoded(by_hand[1]).fingerprint
    assert load(out, device="cpu").sample(1, prompts="a cat").shape == (1, 3, PIXELS, PIXELS)
    times = {p: p.stat().st_mtime_ns for p in sorted((out / "teacher").rglob("*"))}
    # The same command goes on: here it finds everything done.
    assert run(*command(places, out)) == 0
    again = capsys.readouterr().err
    assert "importing" not in again
    assert "0 shard(s) made, 1 kept" in again
    assert "is finished at step 2" in again
    assert times == {p: p.stat().st_mtime_ns for p in sorted((out / "teacher").rglob("*"))}
    assert run(*command(places, out, "--dry-run")) == 0
    assert f"teacher: {out / 'teacher'}" in capsys.readouterr().out
    # A new run keeps what was made for the old one.
    assert run(*command(places, out, "--fresh")) == 0
    assert "0 shard(s) made, 1 kept" in capsys.readouterr().err
    assert (tmp_path / "run.1" / "run.json").exists()
    assert not (tmp_path / "run.1" / "teacher").exists()
    assert json.loads((out / "run.json").read_text())["run"]["arguments"]["teacher"] == str(
        out / "teacher"
    )


def test_what_was_broken_off_goes_on(places, tmp_path):
    out = tmp_path / "run"
    assert run(*command(places, out)) == 0
    shutil.rmtree(out / "teacher")
    (out / "data" / "encoded-00000.safetensors").unlink()
    for name in ("run.json", "log.jsonl"):
        (out / name).unlink()
    shutil.rmtree(out / "checkpoints")
    shutil.rmtree(out / "model")
    for left in [*out.iterdir()]:
        if left.name not in {"data", "prepared.json", "prepared.lock", ".lock"}:
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert run(*command(places, out)) == 0
    assert load(out, device="cpu").sample(1, prompts="a cat").isfinite().all()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--teacher", "digits-edm"], "give one of them"),
        (["--dry-run"], "imports no pipeline"),
        (["--model", "nobody at home"], "no pipeline 'nobody at home'"),
        (["--captions", "missing.csv"], "missing.csv"),
        (["--data", ""], "needs --data"),
    ],
)
def test_what_is_refused(places, tmp_path, capsys, more, says):
    assert run(*command(places, tmp_path / "run", *more)) == 2
    assert says in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "more", "says"),
    [
        ("cd", ["--width", "8"], "--width describes a new network"),
        ("cd", ["--middle", "nan"], "--middle must be finite"),
        ("cd", ["--lora-targets", "to_q"], "give their rank with --lora"),
        ("cd", ["--json"], "--json prints the settings of a --dry-run"),
        ("kd", [], "learns from pairs of noise"),
        ("tcm", [], "starts from a model of"),
        ("cd", ["--guidance", "nan"], "--guidance must be finite"),
        ("cd", ["--train.batch", "0"], "batch"),
    ],
)
def test_options_are_checked_before_anything_is_encoded(
    places, tmp_path, capsys, monkeypatch, method, more, says
):
    def encode(*_, **__):
        raise AssertionError("encoded before the options were checked")

    monkeypatch.setattr("fewstep.encoding.encode", encode)
    words = [*command(places, tmp_path / "run", *more)]
    words[1] = method
    assert run(*words) == 2
    assert says in capsys.readouterr().err.replace("\n", " ")


def test_images_without_captions(places, tmp_path, capsys):
    assert run(*command(places, tmp_path / "run", images="bare")) == 2
    assert "has no captions" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_command_in_the_same_folder(places, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    (out / "prepared.json").write_text(json.dumps({"model": "another"}))
    assert run(*command(places, out)) == 2
    assert "was prepared with model 'another'" in capsys.readouterr().err
    (out / "prepared.json").unlink()
    (out / "letters").write_text("dear")
    assert run(*command(places, out)) == 2
    assert "is not empty and was not prepared" in capsys.readouterr().err


def test_captions_without_a_pipeline(places, tmp_path, capsys):
    words = ["train", "cd", "--data", places / "images", "--captions", "x.csv"]
    assert run(*words, "--out", tmp_path / "run") == 2
    assert "--captions belongs to --model" in capsys.readouterr().err


def test_a_name_on_the_hub(places, tmp_path, monkeypatch):
    import huggingface_hub

    from fewstep.importing.remote import pipeline_folder

    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(places / "pipeline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert pipeline_folder("owner/tiny-sd") == places / "pipeline"
    assert asked["name"] == "owner/tiny-sd"
    assert "*/*.safetensors" in asked["allow_patterns"]
