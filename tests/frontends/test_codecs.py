"""Codecs: what they compute, what their files hold, and the real weights where they are at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from captioned import vae, write_taesd
from fewstep.core import UsageError
from fewstep.frontends import Codec, Frontend, open_codec, read_frontend
from fewstep.frontends.taesd import TAESD
from fewstep.frontends.vae import train_vae


@pytest.mark.parametrize("normalised", [False, True])
def test_the_two_files_of_a_taesd(normalised, tmp_path):
    write_taesd(tmp_path / "t", 4, normalised)
    codec = open_codec(tmp_path / "t")
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    z = codec.encode(x)
    assert z.shape == (2, 4, 2, 3)
    assert codec.decode(z).shape == x.shape
    assert codec.shape_of((3, 16, 24)) == (4, 2, 3)
    assert codec.decoded_shape((4, 2, 3)) == (3, 16, 24)
    net: TAESD = codec.net
    # Images are in [0, 1] inside, and latents are squeezed before they are decoded.
    assert torch.equal(net.encode(x), net.encoder((x + 1) / 2))
    assert torch.allclose(net.decode(1e6 * z), net.decode(1e9 * z))
    with pytest.raises(UsageError, match=r"images of 3 channel.* multiples of 8"):
        codec.encode(torch.zeros(1, 3, 12, 16))


def test_shift_and_scale():
    net = vae().net
    codec = Codec(net, [1.0, 2.0, 3.0, 4.0], 0.5)
    x = torch.rand(3, 3, 8, 8) * 2 - 1
    raw = net.encode(x)
    shift = torch.tensor([1.0, 2.0, 3.0, 4.0])[None, :, None, None]
    assert torch.allclose(codec.encode(x), (raw - shift) * 0.5)
    assert torch.allclose(codec.decode(codec.encode(x)), net.decode(raw).clamp(-1, 1), atol=1e-5)
    # Batches change nothing but memory.
    z = codec.encode(x)
    assert torch.allclose(codec.decode(z, batch=1), codec.decode(z), atol=1e-6)
    for wrong in ([1.0, 2.0], [float("nan")] * 4):
        with pytest.raises(UsageError, match="of a codec is one finite number"):
            Codec(net, wrong)
    with pytest.raises(UsageError, match="must not be 0"):
        Codec(net, 0.0, 0.0)


def test_a_folder_of_a_codec_gives_the_same_codec(tmp_path):
    first = Codec(vae().net, [0.1, 0.2, 0.3, 0.4], [2.0, 1.0, 3.0, 0.5])
    Frontend(first).write(tmp_path)
    x = torch.rand(2, 3, 8, 8)
    again = open_codec(tmp_path)
    assert torch.equal(again.encode(x), first.encode(x))
    frontend = read_frontend(tmp_path)
    assert frontend is not None
    assert frontend.digests == Frontend(first).digests
    assert frontend.text is None
    other = Frontend(Codec(vae(seed=1).net))
    with pytest.raises(UsageError, match="A and B must have the same codec, but they differ"):
        frontend.check(other, "A", "B")
    with pytest.raises(UsageError, match="same codec, but B has none"):
        frontend.check(None, "A", "B")
    frontend.check(Frontend(first), "A", "B")
    assert read_frontend(tmp_path / "nothing") is None


def test_damaged_codecs(tmp_path):
    Frontend(vae()).write(tmp_path)
    about = tmp_path / "codec" / "codec.json"
    weights = tmp_path / "codec" / "codec.safetensors"
    good, text = weights.read_bytes(), about.read_text()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(UsageError, match="do not match their sha256"):
        open_codec(tmp_path)
    weights.write_bytes(good)
    for change, message in (
        ({"kind": "os.system"}, "unknown format or kind"),
        ({"options": {"depth": 3}}, "unknown options"),
        ({"shift": "x"}, "no readable codec"),
        ({"options": {"width": 16}}, "another network's weights"),
    ):
        about.write_text(json.dumps({**json.loads(text), **change}))
        with pytest.raises(UsageError, match=message):
            open_codec(tmp_path)
    with pytest.raises(UsageError, match="no codec at"):
        open_codec(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"holds no codec: expected codec.json"):
        open_codec(tmp_path / "empty")


def test_files_that_are_no_taesd(tmp_path):
    write_taesd(tmp_path / "t")
    encoder = tmp_path / "t" / "tiny_encoder.pth"
    state = torch.load(encoder, weights_only=True)
    torch.save({k: v for k, v in state.items() if k != "0.weight"}, encoder)
    with pytest.raises(UsageError, match=r"no TAESD of 4 channels: 0.weight are missing"):
        open_codec(tmp_path / "t")
    encoder.write_bytes(b"no tensors")
    with pytest.raises(UsageError, match="cannot be read as tensors"):
        open_codec(tmp_path / "t")


def test_a_small_vae_learns_to_repeat_images():
    """Blocks of one colour come back much closer than their mean is."""
    rng = np.random.default_rng(0)

    def batch(step: int) -> torch.Tensor:
        colours = torch.tensor(rng.uniform(-1, 1, (16, 3, 2, 2)), dtype=torch.float32)
        return colours.repeat_interleave(4, 2).repeat_interleave(4, 3)

    net = train_vae(batch, steps=200, lr=3e-3, width=16, stages=1, blocks=1)
    x = batch(0)
    with torch.no_grad():
        error = (net.decode(net.encode(x)) - x).square().mean()
    assert error < 0.1 * x.var()
    assert not net.training


@pytest.mark.skipif("FEWSTEP_DATA" not in os.environ, reason="FEWSTEP_DATA names no folder")
def test_the_published_weights_reconstruct_photos():
    """TAEF2 repeats emoji at more than 25 dB; its README says 30 dB of photos."""
    root = Path(os.environ["FEWSTEP_DATA"])
    codec = open_codec(root / "taef2")
    arrays = np.load(root / "emoji_text_image_64" / "emoji_google_64_rgba.npz")
    rgba = arrays["images"][::200].astype(np.float32) / 255
    rgb = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
    x = torch.from_numpy(rgb).permute(0, 3, 1, 2) * 2 - 1
    error = ((codec.decode(codec.encode(x)) - x) / 2).square().mean((1, 2, 3))
    assert float((-10 * error.log10()).mean()) > 25
