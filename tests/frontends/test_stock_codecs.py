"""Autoencoders of diffusers as codecs, against the same classes called as pipelines call them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep import UsageError
from fewstep.frontends import Frontend, open_codec, read_frontend
from fewstep.frontends.files import codec_files
from tiny_pipelines import library, shaken, vae

WEIGHTS = "diffusion_pytorch_model.safetensors"


def images(n: int = 2, size: int = 16) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def tiny(**options):
    torch.manual_seed(0)
    settings = {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
        "latent_channels": 4,
    }
    return shaken(library().AutoencoderTiny(**{**settings, **options}), 0.05)


def test_kl_encodes_the_mean_and_scales_as_pipelines_do(tmp_path):
    net = vae(scaling_factor=1.5, shift_factor=0.25)
    net.save_pretrained(tmp_path / "vae")
    codec, x = open_codec(tmp_path), images()
    with torch.no_grad():
        z = (net.encode(x).latent_dist.mean - 0.25) * 1.5
        back = net.decode(z / 1.5 + 0.25).sample.clamp(-1, 1)
    assert torch.allclose(codec.encode(x), z, atol=1e-6)
    assert torch.allclose(codec.decode(z), back, atol=1e-6)
    assert (codec.factor, codec.channels, codec.shape_of((3, 16, 8))) == (2, 4, (4, 8, 4))


def test_latents_of_a_given_mean_and_deviation(tmp_path):
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 4.0]
    net = vae(scaling_factor=0.5, latents_mean=mean, latents_std=std)
    net.save_pretrained(tmp_path)
    codec, x = open_codec(tmp_path), images()
    with torch.no_grad():
        raw = net.encode(x).latent_dist.mean
    by_channel = [torch.tensor(v)[None, :, None, None] for v in (mean, std)]
    assert torch.allclose(codec.encode(x), (raw - by_channel[0]) * 0.5 / by_channel[1], atol=1e-6)


def test_the_tiny_one_reads_images_between_minus_one_and_one(tmp_path):
    net, x = tiny(), images()
    net.save_pretrained(tmp_path)
    codec = open_codec(tmp_path)
    with torch.no_grad():
        z = net.encode(x).latents
        assert torch.allclose(codec.encode(x), z, atol=1e-6)
        assert torch.allclose(codec.decode(z), net.decode(z).sample.clamp(-1, 1), atol=1e-6)
        # The layers themselves see pixels in [0, 1].
        assert torch.allclose(codec.encode(x), net.encoder.layers((x + 1) / 2), atol=1e-6)


@pytest.mark.parametrize("make", [vae, tiny])
def test_a_codec_folder_keeps_it(tmp_path, make):
    make().save_pretrained(tmp_path / "stock")
    codec = open_codec(tmp_path / "stock")
    (tmp_path / "model").mkdir()
    Frontend(codec).write(tmp_path / "model")
    again = read_frontend(tmp_path / "model")
    assert again is not None
    assert again.codec is not None
    assert codec_files(again.codec) == codec_files(codec)
    assert torch.equal(again.codec.encode(images()), codec.encode(images()))
    assert not [p for p in again.codec.parameters() if p.requires_grad or p.is_meta]


def test_the_names_that_attention_had_before(tmp_path):
    net = vae()
    net.save_pretrained(tmp_path)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(tmp_path / WEIGHTS)
    older = {}
    for name, value in state.items():
        for now, then in names.items():
            name = name.replace(f".{now}.", f".{then}.")
        older[name] = value
    assert older.keys() != state.keys()
    save_file(older, tmp_path / WEIGHTS)
    with torch.no_grad():
        want = net.encode(images()).latent_dist.mean * 0.18215
    assert torch.allclose(open_codec(tmp_path).encode(images()), want, atol=1e-6)


def test_half_precision_becomes_float32(tmp_path):
    net = vae().half()
    net.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "diffusion_pytorch_model.fp16.safetensors").is_file()
    codec = open_codec(tmp_path)
    assert {p.dtype for p in codec.parameters()} == {torch.float32}
    with torch.no_grad():
        want = net.float().encode(images()).latent_dist.mean * 0.18215
    assert torch.allclose(codec.encode(images()), want, atol=1e-6)


def config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def weights(folder, change):
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)


def nan(state):
    state["encoder.conv_in.bias"][0] = float("nan")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda f: weights(f, lambda s: s.pop("encoder.conv_in.bias")), "missing net.encoder"),
        (lambda f: weights(f, lambda s: s.update(more=torch.ones(1))), "extra net.more"),
        (lambda f: weights(f, nan), "not finite"),
        (lambda f: (f / WEIGHTS).unlink(), "holds no weights"),
        (lambda f: (f / WEIGHTS).write_bytes(b"no"), "cannot be read as tensors"),
        (lambda f: config(f, _class_name="VQModel"), "AutoencoderKL or AutoencoderTiny"),
        (lambda f: config(f, novelty=3), "has no novelty"),
        (lambda f: config(f, block_out_channels="x"), "cannot build"),
        (lambda f: config(f, scaling_factor=0.0), "must not be 0"),
        (lambda f: config(f, latents_mean=[0.0] * 4), "belong together"),
        (lambda f: config(f, out_channels=1), "must return the channels"),
        (lambda f: (f / "config.json").write_text("[]"), "must hold a mapping"),
    ],
)
def test_what_cannot_be_read(tmp_path, spoil, says):
    vae().save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UsageError, match=says):
        open_codec(tmp_path)


def test_without_diffusers(tmp_path, monkeypatch):
    vae().save_pretrained(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"pip install 'fewstep\[diffusers\]'"):
        open_codec(tmp_path)
