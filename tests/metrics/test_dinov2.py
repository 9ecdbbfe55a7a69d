"""On a small random model of transformers' class: the trained weights are a download."""

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate

from fewstep.core import UsageError
from fewstep.metrics.dinov2 import DinoV2, dinov2
from judges import images


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a small random model."""
    package = pytest.importorskip("transformers", reason="needs fewstep[dino]")
    package.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = package.Dinov2Config(**small, patch_size=14, image_size=224, initializer_range=0.3)
    folder = tmp_path_factory.mktemp("dinov2")
    package.Dinov2Model(config).save_pretrained(folder)
    return folder


def test_the_class_token_of_resized_and_normalised_images(small):
    network, x = dinov2(str(small)), images(2)
    assert not network.network.training
    assert not any(p.requires_grad for p in network.parameters())
    big = interpolate((x + 1) * 127.5, (224, 224), mode="bicubic", antialias=True) / 255
    mean, std = (
        torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    expected = network.network(pixel_values=(big - mean) / std).pooler_output
    got = network(x)
    assert got.shape == (2, 16)
    assert (got[0] - got[1]).abs().max() > 1e-3
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_grey_images_are_taken(small):
    assert dinov2(str(small))(images(2, side=8, channels=1)).shape == (2, 16)


def test_a_file_that_lacks_tensors_is_refused(small, tmp_path):
    state = load_file(small / "model.safetensors")
    del state["layernorm.weight"]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_text((small / "config.json").read_text())
    with pytest.raises(UsageError, match=r"lacks \['layernorm\.weight'\]"):
        dinov2(str(tmp_path))


def test_only_safetensors_are_read(small, tmp_path):
    torch.save(load_file(small / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((small / "config.json").read_text())
    with pytest.raises(UsageError, match="no DINOv2 at"):
        dinov2(str(tmp_path))


@pytest.mark.usefixtures("small")
def test_the_usual_one_is_edm2s(monkeypatch):
    from transformers import Dinov2Model

    asked = []

    def offline(name, **_):
        asked.append(name)
        raise OSError("offline")

    monkeypatch.setattr(Dinov2Model, "from_pretrained", offline)
    with pytest.raises(UsageError, match=r"no DINOv2 at facebook/dinov2-large \(offline\)"):
        dinov2()
    assert asked == ["facebook/dinov2-large"]


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"fewstep\[dino\]"):
        dinov2()


def test_any_network_of_the_class():
    class Tokens:
        last_hidden_state = torch.arange(12.0).reshape(2, 3, 2)

    class Network(torch.nn.Module):
        def forward(self, pixel_values):
            assert pixel_values.shape == (2, 3, 224, 224)
            return Tokens

    assert DinoV2(Network())(images(2)).tolist() == [[0.0, 1.0], [6.0, 7.0]]
