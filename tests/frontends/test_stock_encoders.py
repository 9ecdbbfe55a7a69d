"""Text encoders, against ``encode_prompt`` of the pipelines themselves."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny_pipelines
from fewstep import UsageError
from fewstep.frontends import Frontend, open_text, read_frontend
from tiny_pipelines import WORDS, saved

PROMPTS = ["a cat", "", "the dog " * 20]
LONG = 20
"""Tokens of T5 in these tests."""


def shape(name: str):
    return (
        tiny_pipelines.sd3(whole=False)
        if name == "sd3-without-t5"
        else (getattr(tiny_pipelines, name)())
    )


def length(name: str) -> int | None:
    return LONG if name.startswith(("sd3", "flux")) else None


def wanted(name: str, pipeline, prompts: list[str], negative: bool = False) -> dict:
    """What the pipeline makes of prompts, or of its own unconditional half."""
    with torch.no_grad():
        if name == "sd":
            both = pipeline.encode_prompt(prompts, "cpu", 1, True)
            return {"text": both[negative]}
        if name == "sdxl":
            both = pipeline.encode_prompt(prompts, do_classifier_free_guidance=True)
            return {"text": both[negative], "pooled": both[2 + negative]}
        if name.startswith("sd3"):
            both = pipeline.encode_prompt(prompts, None, None, max_sequence_length=LONG)
            return {"text": both[negative], "pooled": both[2 + negative]}
        texts = [""] if negative else prompts
        text, pooled, _ = pipeline.encode_prompt(texts, max_sequence_length=LONG)
        return {"text": text, "pooled": pooled}


NAMES = ["sd", "sdxl", "sd3", "sd3-without-t5", "flux"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(name: str):
        if name not in made:
            pipeline = shape(name)
            made[name] = pipeline, saved(pipeline, tmp_path_factory.mktemp(name) / "p")
        return made[name]

    return folder


@pytest.mark.parametrize("name", NAMES)
def test_as_the_pipeline_encodes(folders, name):
    pipeline, folder = folders(name)
    reader = open_text(folder, length(name))
    got, want = reader.encode(PROMPTS), wanted(name, pipeline, PROMPTS)
    assert got.keys() == {*want, "text_mask"}
    for key, value in want.items():
        assert got[key].shape == value.shape
        assert torch.allclose(got[key], value, atol=1e-5), key
    assert bool(got["text_mask"].all())
    nulls = {k: v for n, one in reader.conditions.items() for k, v in one.null(n).items()}
    for key, value in wanted(name, pipeline, PROMPTS[:1], negative=True).items():
        assert torch.allclose(nulls[key], value[0], rtol=1e-3, atol=1e-4), key
        assert bool((nulls[key] == 0).all()) == (name == "sdxl")


@pytest.mark.parametrize("name", NAMES)
def test_a_text_folder_is_all_that_is_needed(folders, tmp_path, name):
    reader = open_text(folders(name)[1], length(name))
    (tmp_path / "model").mkdir()
    Frontend(text=reader).write(tmp_path / "model")
    again = read_frontend(tmp_path / "model")
    assert again is not None
    assert again.text is not None
    assert again.text.files() == reader.files()
    assert again.text.conditions == reader.conditions
    for key, value in reader.encode(PROMPTS).items():
        assert torch.equal(again.text.encode(PROMPTS)[key], value)


def test_what_is_too_long(folders):
    reader = open_text(folders("sd")[1])
    fits, over = "x" * (WORDS - 2), "x" * (WORDS - 1)
    assert reader.cut([fits, over, "", over]) == [1, 3]
    assert reader.length == WORDS
    # What CLIP cuts and T5 reads is not lost.
    reader = open_text(folders("flux")[1], LONG)
    assert reader.cut([over, "x" * LONG]) == [1]
    assert reader.length == LONG


def test_an_sdxl_pipeline_that_encodes_the_empty_text(tmp_path):
    pipeline = tiny_pipelines.sdxl(force_zeros_for_empty_prompt=False)
    reader = open_text(saved(pipeline, tmp_path / "p"))
    want = wanted("sdxl", pipeline, PROMPTS[:1], negative=True)
    null = reader.conditions["pooled"].null("pooled")["pooled"]
    assert bool((null != 0).any())
    assert torch.allclose(null, want["pooled"][0], rtol=1e-3, atol=1e-4)


def test_one_encoder_alone(tmp_path):
    for part in (tiny_pipelines.t5(), tiny_pipelines.t5_tokenizer()):
        part.save_pretrained(tmp_path)
    reader = open_text(tmp_path, 8)
    got = reader.encode(["cat", ""])
    assert got["text_mask"].sum(1).tolist() == [5, 1]
    tokens = tiny_pipelines.t5_tokenizer()(["cat"], return_tensors="pt")
    with torch.no_grad():
        want = tiny_pipelines.t5()(**tokens).last_hidden_state
    assert torch.allclose(got["text"][:1, :5], want, atol=1e-5)


def test_files_with_names_of_other_versions(folders, tmp_path):
    pipeline = folders("sd")[0]
    folder = saved(pipeline, tmp_path / "p")
    path = folder / "text_encoder" / "model.safetensors"
    state = {k.removeprefix("text_model."): v for k, v in load_file(path).items()}
    older = {f"text_model.{k}": v for k, v in state.items()}
    older["text_model.embeddings.position_ids"] = torch.arange(WORDS)[None]
    want = open_text(folder).encode(PROMPTS)["text"]
    for names in (state, older):
        save_file(names, path)
        assert torch.equal(open_text(folder).encode(PROMPTS)["text"], want)


def config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(path, name):
    save_file({k: v for k, v in load_file(path).items() if not k.endswith(name)}, path)


def emptied(folder):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda f: without(f / "text_encoder/model.safetensors", "final_layer_norm.bias"),
            "missing .*final_layer_norm.bias",
        ),
        (lambda f: config(f / "text_encoder", architectures=["GPT2Model"]), "'GPT2Model'"),
        (lambda f: config(f / "text_encoder", hidden_size=7), "cannot build"),
        (lambda f: emptied(f / "tokenizer"), "holds no tokenizer"),
        (lambda f: (f / "tokenizer/tokenizer.json").write_text("{}"), "tokenizer"),
        (lambda f: (f / "text_encoder").rename(f / "text_encoder_9"), "holds no text encoder"),
    ],
)
def test_what_cannot_be_read(folders, tmp_path, spoil, says):
    folder = saved(folders("sd")[0], tmp_path / "p")
    spoil(folder)
    with pytest.raises(UsageError, match=says):
        open_text(folder)


def test_another_number_of_tokens_than_clip_has(folders):
    with pytest.raises(UsageError, match=f"CLIP reads {WORDS} tokens, got --length 5"):
        open_text(folders("sd")[1], 5)


@pytest.mark.parametrize("name", ["text_encoder/model.safetensors", "tokenizer/tokenizer.json"])
def test_a_text_folder_that_was_changed(folders, tmp_path, name):
    Frontend(text=open_text(folders("sd")[1])).write(tmp_path)
    path = tmp_path / "text" / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UsageError, match="not the file that was written"):
        open_text(tmp_path / "text")
