"""fewstep data encode: what it writes, also killed or in several processes, and training on it."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tarfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from captioned import tokenizer, vae, write_frontend, write_pictures
from fewstep.cli import main
from fewstep.cli.sample import _texts
from fewstep.core import UsageError
from fewstep.data import open_data
from fewstep.data.captioned import opened
from fewstep.data.encoded import Encoded
from fewstep.data.pairs import Pairs
from fewstep.encoding import encode
from fewstep.frontends import Frontend
from fewstep.model import load
from survive import born, dying, ended
from tiny import fewstep, tree


@pytest.fixture(scope="module")
def at(tmp_path_factory) -> Path:
    """Twelve captioned pictures, and the encoders."""
    root = tmp_path_factory.mktemp("captioned")
    write_pictures(root / "pictures")
    write_frontend(root / "frontend")
    return root


def words(at: Path, out: Path, *more: object) -> list[str]:
    """Twelve samples in three shards of two batches each, but the last."""
    where = at / "frontend"
    given = ("--codec", where, "--text", where, "--resolution", 16, "--shard-size", 5)
    tail = ("--batch", 3, "--device", "cpu", "--out", out, *more)
    return ["data", "encode", str(at / "pictures"), *map(str, (*given, *tail))]


def test_latents_and_tokens_of_pictures(at, tmp_path, capsys):
    out = tmp_path / "encoded"
    outcome = fewstep(capsys, *words(at, out))
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(
        f"made 3 shard(s), kept 0; wrote 12 sample(s) of (4, 4, 4), no labels, text 12 to {out}\n"
    )
    data = open_data(out)
    assert isinstance(data, Encoded)
    assert (len(data), data.shape, data.labels, data.image) == (12, (4, 4, 4), 0, False)
    rows = (at / "pictures" / "metadata.jsonl").read_text().splitlines()
    texts = [json.loads(row)["text"] for row in rows]
    batch, plain = data.batch(range(12)), open_data(at / "pictures", 16).batch(range(12))
    assert torch.allclose(batch.x0, vae().encode(plain.x0), atol=1e-5)
    for key, value in tokenizer().encode(texts).items():
        assert torch.equal(batch.cond[key], value)
    assert torch.equal(data.batch([7, 2]).x0, batch.x0[[7, 2]])
    assert data.sigma_data == pytest.approx(
        float(batch.x0.std((0, 2, 3)).square().mean().sqrt()), rel=0.01
    )
    # Every word of five letters that has no merge is several tokens, so the ends are cut.
    assert data.notes == ("12 text(s) were longer than the encoder reads and lost their ends",)
    assert f"note: {data.notes[0]}" in outcome.out


def test_normalised_latents_have_mean_0_and_deviation_half(at, tmp_path, capsys):
    assert fewstep(capsys, *words(at, tmp_path / "n", "--normalise")).code == 0
    data = Encoded(tmp_path / "n", verify=True)
    x = data.batch(range(12)).x0
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(x.std((0, 2, 3)), torch.full((4,), 0.5), atol=1e-3)
    codec = data.frontend.codec
    assert codec is not None
    # The same images come back.
    assert torch.allclose(codec.decode(x), vae().decode(latents(at, tmp_path)), atol=1e-3)


def latents(at: Path, tmp_path: Path) -> torch.Tensor:
    main(words(at, tmp_path / "plain"))
    return Encoded(tmp_path / "plain").batch(range(12)).x0


def test_pixels_without_a_codec(at, tmp_path, capsys):
    out = tmp_path / "pixels"
    given = ("--text", at / "frontend", "--resolution", 16, "--out", out)
    assert fewstep(capsys, "data", "encode", at / "pictures", *given).code == 0
    data = Encoded(out)
    plain = open_data(at / "pictures", 16)
    assert torch.allclose(data.batch(range(12)).x0, plain.batch(range(12)).x0, atol=1e-6)
    assert (data.image, data.sigma_data, data.frontend.codec) == (True, None, None)


def test_captions_beside_the_pictures_and_in_shards(at, tmp_path, capsys):
    write_pictures(tmp_path / "beside", table=False)
    pictures = opened(tmp_path / "beside", captioned=True, resolution=16)
    texts = [*pictures.texts()]
    assert texts[4] == "a green square, number 4"
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as archive:
        for i, text in enumerate(texts):
            image = (tmp_path / "beside" / f"{i:02d}.png").read_bytes()
            label = f"{i:02d}.txt" if i % 2 else f"{i:02d}.json"
            content = text if i % 2 else json.dumps({"caption": text})
            for name, data in ((f"{i:02d}.png", image), (label, content.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    stream = opened(shard, captioned=True, resolution=16)
    assert [*stream.texts()] == texts
    both = []
    for source, name in ((tmp_path / "beside", "1"), (shard, "2")):
        found = opened(source, captioned=True, resolution=16)
        outcome = encode(found, tmp_path / name, codec=vae(), text=tokenizer(), shard_size=5)
        assert outcome.data is not None
        both.append(outcome.data.batch(range(12)))
    assert torch.allclose(both[0].x0, both[1].x0, atol=1e-5)
    assert torch.equal(both[0].cond["text"], both[1].cond["text"])


# Killed, in several processes, with other settings.


def killed_at(work: list[str], last: int, tally: Path | None = None) -> int:
    return ended(born(dying(lambda: main(work), last, tally)))


def test_killed_anywhere_and_repeated_it_is_the_same(at, tmp_path):
    """By SIGKILL at eight of the things that it does to files, and in the midst of writing."""
    assert killed_at(words(at, tmp_path / "whole"), 0, tmp_path / "tally") == 0
    total, whole = int((tmp_path / "tally").read_text()), tree(tmp_path / "whole")
    partial = set()
    for k in range(8):
        out = tmp_path / f"killed-{k}"
        assert killed_at(words(at, out), 1 + total * k // 8) == -9
        left = tree(out) if out.exists() else {}
        partial.add(sum(name.startswith("encoded-") for name in left))
        assert killed_at(words(at, out), 0) == 0
        assert tree(out) == whole
    assert len(partial) > 2
    print(f"\nkilled at 8 of {total} points: repeated, every byte is the same")


def test_several_processes(at, tmp_path):
    main(words(at, tmp_path / "one"))
    out, said = tmp_path / "several", tmp_path / "said"

    def run(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
        main(words(at, out))
        sys.stdout.flush()

    assert ended(born(lambda: run(1), said)) == 0
    assert "process 1 of 2 is done, others are not" in said.read_text()
    with pytest.raises(UsageError, match="is not finished; repeat the command"):
        Encoded(out)
    assert ended(born(lambda: run(0), said)) == 0
    assert tree(out) == tree(tmp_path / "one")


def test_other_settings_and_damage(at, tmp_path, capsys):
    out = tmp_path / "encoded"
    main(words(at, out))
    before = tree(out)
    outcome = fewstep(capsys, *words(at, out, "--shard-size", 6))
    assert outcome.code == 2
    assert "holds encoded data with other settings:\n  shard_size: was 5, now 6" in outcome.err
    shard = out / "encoded-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert fewstep(capsys, *words(at, out)).out.startswith("made 1 shard(s), kept 2;")
    assert tree(out) == before
    (out / "codec" / "codec.json").write_text(
        (out / "codec" / "codec.json").read_text().replace("4.0", "2.0")
    )
    with pytest.raises(UsageError, match="holds another codec or reader of texts than made"):
        Encoded(out)


# What changes the bytes is recorded.


def stream(kind: str, at: Path, folder: Path) -> list[str]:
    """A table or a shard of the pictures with two captions each; the words that encode it."""
    rows = [
        json.loads(row) for row in (at / "pictures" / "metadata.jsonl").read_text().splitlines()
    ]
    images = [(at / "pictures" / row["file_name"]).read_bytes() for row in rows]
    folder.mkdir(exist_ok=True)
    if kind == "tar":
        source = folder / "a.tar"
        with tarfile.open(source, "w") as archive:
            for i, image in enumerate(images):
                about = json.dumps({"text": rows[i]["text"], "other": f"of {i}"})
                for name, data in ((f"{i:02d}.png", image), (f"{i:02d}.json", about.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
    elif kind == "parquet":
        arrow = pytest.importorskip("pyarrow")
        source = folder / "a.parquet"
        columns = {"image": images, "text": [row["text"] for row in rows]}
        columns["other"] = [f"of {i}" for i in range(len(rows))]
        pytest.importorskip("pyarrow.parquet").write_table(arrow.table(columns), source)
    else:
        datasets = pytest.importorskip("datasets")
        source = folder / "set"
        pixels = [{"bytes": image, "path": None} for image in images]
        texts = {"text": [row["text"] for row in rows], "other": ["of"] * len(rows)}
        table = datasets.Dataset.from_dict({"image": pixels, **texts})
        table = table.cast_column("image", datasets.Image())
        other = table.select(range(len(rows) - 1, -1, -1)).flatten_indices()
        datasets.DatasetDict({"train": table, "other": other}).save_to_disk(source)
    return ["data", "encode", str(source)]


@pytest.mark.parametrize("kind", ["tar", "parquet", "set"])
def test_another_reading_of_a_stream_is_another_data_set(kind, at, tmp_path, capsys):
    where, out = str(at / "frontend"), tmp_path / "out"
    tail = ["--codec", where, "--text", where, "--resolution", "16", "--shard-size", "5"]
    words = [*stream(kind, at, tmp_path / "source"), *tail, "--device", "cpu", "--out", str(out)]
    assert fewstep(capsys, *words, "--captions", "text").code == 0
    before = tree(out)
    assert fewstep(capsys, *words, "--captions", "text").out.startswith("made 0 shard(s), kept 3")
    changed = {"captions": ("--captions", "other"), "background": ("--background", "black")}
    if kind == "set":
        changed["split"] = ("--split", "other")
    for name, more in changed.items():
        last = () if name == "captions" else ("--captions", "text")
        outcome = fewstep(capsys, *words, *last, *more)
        assert (outcome.code, outcome.out) == (2, ""), name
        first = "origin" if name == "split" else name
        assert f"encoded data with other settings:\n  {first}: was" in outcome.err
    # Shards that are missing are not made of what lies there now.
    (out / "encoded-00001.safetensors").unlink()
    assert fewstep(capsys, *words, "--captions", "other").code == 2
    assert fewstep(capsys, *words, "--captions", "text").out.startswith("made 1 shard(s), kept 2")
    assert tree(out) == before


def test_a_source_that_was_replaced(at, tmp_path, capsys):
    """A shard, and pictures in a folder, of the same names and sizes."""
    where, out = str(at / "frontend"), tmp_path / "out"
    tail = ["--codec", where, "--resolution", "16", "--device", "cpu"]
    words = [*stream("tar", at, tmp_path / "source"), *tail]
    assert fewstep(capsys, *words, "--out", out).code == 0
    shard = tmp_path / "source" / "a.tar"
    shard.write_bytes(shard.read_bytes().replace(b"a red", b"a new"))
    outcome = fewstep(capsys, *words, "--out", out)
    assert (outcome.code, outcome.out) == (2, "")
    assert "holds encoded data with other settings:\n  origin: was" in outcome.err
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.bmp")
    words = ["data", "encode", str(folder), *tail, "--out", str(tmp_path / "of-folder")]
    assert fewstep(capsys, *words).code == 0
    Image.fromarray(255 - pixels).save(folder / "a.bmp")
    outcome = fewstep(capsys, *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert "other settings:\n  origin: was" in outcome.err
    Image.fromarray(pixels).save(folder / "a.bmp")
    outcome = fewstep(capsys, *words, "--background", "black")
    assert "other settings:\n  background: was '#ffffff', now '#000000'" in outcome.err
    assert fewstep(capsys, *words, "--background", "#ffffff").code == 0


def test_a_scale_that_was_measured_stays(at, tmp_path, capsys):
    """In batches of another size the sums are rounded otherwise, and the codec may be damaged."""
    out = tmp_path / "out"
    assert fewstep(capsys, *words(at, out, "--normalise")).code == 0
    before = tree(out)
    (out / "encoded-00001.safetensors").unlink()
    (out / "codec" / "codec.json").write_text("{")
    (out / "codec" / "codec.safetensors").unlink()
    (out / "text" / "tokenizer.json").write_bytes(b"")
    with mock.patch("fewstep.encoding.normalised", side_effect=AssertionError("measured again")):
        outcome = fewstep(capsys, *words(at, out, "--normalise", "--batch", 5))
    assert outcome.out.startswith("made 1 shard(s), kept 2"), outcome.err
    for name, content in tree(out).items():
        assert content == before[name] or name in {"encoded.json", "encoded-00001.safetensors"}
    x = Encoded(out, verify=True).batch(range(12)).x0
    assert torch.allclose(x.std((0, 2, 3)), torch.full((4,), 0.5), atol=1e-3)
    # Another codec has another scale, and is refused.
    (tmp_path / "other").mkdir()
    Frontend(vae(1)).write(tmp_path / "other")
    outcome = fewstep(capsys, *words(at, out, "--normalise", "--codec", tmp_path / "other"))
    assert outcome.code == 2
    assert "other settings:\n  frontend: was" in outcome.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda at: (at / "09.txt").unlink(),
            "1 of 12 images in .* have no caption, such as 09.png",
        ),
        (lambda at: (at / "09.txt").write_text(" \n"), "has an empty caption"),
        (lambda at: (at / "09.txt").write_bytes(b"\xff"), "is no text in UTF-8"),
        (
            lambda at: (at / "metadata.jsonl").write_text('{"file_name": "x.png", "text": "x"}'),
            "captions of 1 image.s. that .* does not hold, such as x.png",
        ),
        (
            lambda at: (at / "metadata.jsonl").write_text('{"file_name": "00.png", "text": "x"}'),
            "has no caption of 11 of 12 images, such as 01.png",
        ),
        (
            lambda at: (at / "metadata.jsonl").write_text('{"file_name": "00.png"}'),
            "no column text",
        ),
        (lambda at: (at / "metadata.jsonl").write_text("{"), "cannot be read"),
    ],
)
def test_captions_that_do_not_fit(change, message, at, tmp_path, capsys):
    write_pictures(tmp_path / "pictures", table=False)
    change(tmp_path / "pictures")
    outcome = fewstep(
        capsys,
        *words(tmp_path, tmp_path / "out")[:3],
        "--text",
        at / "frontend",
        "--resolution",
        16,
        "--out",
        tmp_path / "out",
    )
    assert outcome.code == 2
    assert re.search(message, outcome.err), outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--shard-size", 0), "--shard-size must be at least 1"),
        (("--resolution", 18), "multiples of 4, got samples of shape"),
        (("--captions", "none.jsonl"), "cannot be read"),
        (("--captions", "none.xlsx"), "captions are read from"),
        (("--restrict", "--text", "none"), "no reader of texts at 'none'"),
    ],
)
def test_words_that_do_not_fit(more, message, at, tmp_path, capsys):
    outcome = fewstep(capsys, *words(at, tmp_path / "out", *more))
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert not (tmp_path / "out" / "encoded.json").exists()


def test_latents_that_are_not_finite(at, tmp_path):
    codec = vae()
    codec.net.encoder[0].weight.data[:] = float("inf")
    pictures = opened(at / "pictures", captioned=False, resolution=16)
    with pytest.raises(
        UsageError, match=r"latents of image 0 of pictures are all zero or not fini"
    ):
        encode(pictures, tmp_path / "out", codec=codec)


# From encoded data to a model that takes prompts.


def test_a_run_on_encoded_data_takes_its_encoders_along(at, tmp_path, capsys):
    """Trained, interrupted by nothing, saved, loaded, sampled with prompts and distilled."""
    main(words(at, tmp_path / "data", "--normalise"))
    small = ("--network", "dit", "--width", 16, "--depth", 1, "--heads", 2, "--patch", 2)
    train = (
        "--train.steps",
        4,
        "--train.batch",
        4,
        "--train.sample-every",
        4,
        "--train.precision",
        "fp32",
    )
    out = tmp_path / "teacher"
    given = ("--data", tmp_path / "data", "--held-out", 0.25, *small, *train, "--out", out)
    outcome = fewstep(capsys, "train", "edm", *given)
    assert outcome.code == 0, outcome.err
    model = load(out, device="cpu")
    assert model.shape == (3, 16, 16)
    assert model.contract.data.shape == (4, 4, 4)
    assert model.denoiser.preconditioning.sigma_data == pytest.approx(0.5, abs=0.01)
    assert (out / "samples" / "000000004.png").is_file()
    assert (out / "model" / "samples.png").is_file()
    x = model.sample(2, prompts=["a red square", "blue"], steps=2)
    assert x.shape == (2, 3, 16, 16)
    z = model.sample(2, prompts=["a red square", "blue"], steps=2, latents=True)
    assert z.shape == (2, 4, 4, 4)
    codec = model.frontend.codec
    assert codec is not None
    assert torch.equal(codec.decode(z), x)
    # The same text as numbers of tokens; a prompt for all; none is the empty text.
    ids = tokenizer().encode(["a red square", "blue"])
    assert torch.equal(model.sample(2, cond=dict(ids), steps=2), x)
    assert torch.equal(model.sample(2, cond={"text": ["a red square", "blue"]}, steps=2), x)
    assert torch.equal(model.sample(1, steps=2), model.sample(1, prompts="", steps=2))
    outcome = fewstep(
        capsys,
        "sample",
        out,
        "--prompt",
        "a red square",
        "--prompt",
        "blue",
        "--steps",
        2,
        "--out",
        tmp_path / "x.npz",
        "--device",
        "cpu",
    )
    assert "wrote 2 sample(s)" in outcome.out, outcome.err
    student = tmp_path / "student"
    given = ("--data", tmp_path / "data", "--held-out", 0.25, "--teacher", out, *train)
    outcome = fewstep(capsys, "train", "cd", *given, "--out", student)
    assert outcome.code == 0, outcome.err
    assert load(student, device="cpu").frontend.digests == model.frontend.digests
    # The codec and the reader of texts are on the disk once.
    kept = out / "checkpoints/000000004/model"
    shared = [p for p in (out / "model").glob("[ct]*/*") if p.is_file()]
    assert len(shared) == len(model.frontend.files)
    assert all(p.samefile(kept / p.relative_to(out / "model")) for p in shared)
    lora = tmp_path / "lora"
    outcome = fewstep(capsys, "train", "cd", *given, "--lora", 1, "--out", lora)
    assert outcome.code == 0, outcome.err
    assert not (lora / "checkpoints/000000004/model/codec").exists()
    x = load(lora, device="cpu").sample(1, prompts="blue", steps=1)
    assert torch.equal(x, load(lora, step=4, device="cpu").sample(1, prompts="blue", steps=1))
    # Other pictures are encoded by the student's own codec and texts, once, and it goes on.
    tuned = tmp_path / "tuned"
    given = (*("--data", at / "pictures", "--model", student), *train, "--out", tuned)
    for _ in range(2):
        outcome = fewstep(capsys, "train", "tune", *given, "--lora", 1)
        assert outcome.code == 0, outcome.err
    assert "is finished at step 4" in outcome.err
    assert Encoded(tuned / "data").frontend.digests == model.frontend.digests
    assert not (tuned / "teacher").exists()
    assert load(tuned, device="cpu").sample(1, prompts="blue", steps=1).shape == (1, 3, 16, 16)
    outcome = fewstep(capsys, "evaluate", student, "--device", "cpu", "--steps", 1)
    assert outcome.code == 0, outcome.err
    assert "fd" in outcome.out
    # A prompt that is too long, too many prompts, and a teacher of other data.
    outcome = fewstep(capsys, "sample", student, "--prompt", "x" * 40, "--out", tmp_path / "y.png")
    assert "note: the prompt 'xxx" in outcome.err
    assert "has more than 12 tokens; its end is not read" in outcome.err
    with pytest.raises(UsageError, match="expected one prompt, or 3"):
        model.sample(3, prompts=["a", "b"])
    main(words(at, tmp_path / "other"))
    given = ("--data", tmp_path / "other", "--teacher", out, *train, "--out", tmp_path / "no")
    outcome = fewstep(capsys, "train", "cd", *given)
    assert outcome.code == 2
    assert (
        "must have the same codec, but they differ; encode the data with the model's own"
        in outcome.err
    )
    assert not (tmp_path / "no").exists()
    given = ("--like", out, "--resolution", 16, "--out", tmp_path / "like")
    assert fewstep(capsys, "data", "encode", at / "pictures", *given).code == 0
    assert Encoded(tmp_path / "like").frontend.digests == model.frontend.digests


def test_prompts_are_lines_of_a_file(tmp_path):
    """Other separators that Unicode knows are part of a text."""
    file = tmp_path / "prompts.txt"
    file.write_bytes("a cat\u2028on a mat\r\n\nb\x0bc\x85d\n".encode())
    assert _texts((), file) == ["a cat\u2028on a mat", "b\x0bc\x85d"]


def test_only_clips_byte_pairs_are_restricted(at, tmp_path, capsys):
    library = pytest.importorskip("tokenizers")
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "red": 3}
    whole = library.Tokenizer(library.models.WordLevel(words, unk_token="a"))
    whole.pre_tokenizer = library.pre_tokenizers.Whitespace()
    pairs = library.Tokenizer(
        library.models.BPE(
            vocab={w: i for i, w in enumerate([*words, "r", "e", "d", "re"])} | {"red": 3},
            merges=[("r", "e"), ("re", "d")],
            unk_token="a",
        )
    )
    for name, made in (("words", whole), ("pairs", pairs)):
        made.save(str(tmp_path / f"{name}.json"))
        given = ("--text", tmp_path / f"{name}.json", "--restrict", "--out", tmp_path / name)
        outcome = fewstep(
            capsys, "data", "encode", at / "pictures", "--resolution", 16, *given, "--device", "cpu"
        )
        assert (outcome.code, outcome.out) == (2, "")
        assert "--restrict keeps byte pairs of CLIP's tokenizer" in outcome.err
        assert not (tmp_path / name).exists()


def test_a_model_without_texts_refuses_prompts(tmp_path):
    for none in ([], ()):
        with pytest.raises(UsageError, match="reads no texts, got the prompts"):
            load("digits-cd", device="cpu").sample(1, prompts=none)
    with pytest.raises(UsageError, match=r"reads no texts, got the prompts \['a cat'\]"):
        load("digits-cd", device="cpu").sample(1, prompts="a cat")


def test_pairs_of_a_model_of_texts_draw_captions(at, tmp_path, capsys):
    """Pairs of the empty text alone would teach DMD's student no others."""
    data, teacher = tmp_path / "data", tmp_path / "teacher"
    main(words(at, data))
    small = ("--network", "dit", "--width", 16, "--depth", 1, "--heads", 2, "--patch", 2)
    short = ("--train.steps", 2, "--train.batch", 4, "--train.sample-every", 0)
    given = ("--data", data, *small, *short, "--train.precision", "fp32", "--out", teacher)
    assert fewstep(capsys, "train", "edm", *given).code == 0
    made = ("data", "pairs", teacher, "-n", 6, "--steps", 2, "--device", "cpu")
    outcome = fewstep(capsys, *made, "--out", tmp_path / "none")
    assert outcome.code == 2
    assert "pairs of the empty text alone teach a student no others" in outcome.err
    assert not (tmp_path / "none").exists()
    for name in ("pairs", "again"):
        outcome = fewstep(capsys, *made, "--data", data, "--out", tmp_path / name)
        assert outcome.code == 0, outcome.err
    pairs, encoded = Pairs(tmp_path / "pairs"), Encoded(data)
    assert Pairs(tmp_path / "again").about == pairs.about
    of = pairs.batch(range(6))
    texts = encoded.batch(range(len(encoded))).cond["text"]
    rows = [int((texts == one).all(1).nonzero()[0]) for one in of.cond["text"]]
    assert len({*rows}) > 1
    # A pair is the sample of its caption.
    model = load(teacher, device="cpu")
    own = {key: value[:1] for key, value in of.cond.items()}
    x = model.sample(1, cond=own, steps=2, latents=True)
    torch.testing.assert_close(x, of.x0[:1], atol=1e-5, rtol=1e-5)
    outcome = fewstep(
        capsys, *made, "--data", data, "--cond", "text=red", "--out", tmp_path / "both"
    )
    assert outcome.code == 2
    assert "leave --cond and --label out" in outcome.err
    student = (*("--teacher", teacher, "--pairs", tmp_path / "pairs", "--regression", 0.25), *short)
    for method in ("dmd", "kd"):
        given = student if method == "dmd" else (*student[:4], *short)
        outcome = fewstep(
            *(capsys, "train", method, "--data", data, *given, "--out", tmp_path / method)
        )
        assert outcome.code == 0, outcome.err
        assert load(tmp_path / method, device="cpu").sample(1, prompts="blue").isfinite().all()
