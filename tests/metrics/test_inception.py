"""On a stand-in of torch-fidelity's class: its weights are a download, and it needs torchvision."""

import pickle
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from fewstep.core import UsageError
from fewstep.metrics.inception import Inception
from judges import images


class StandIn(nn.Module):
    """Takes what torch-fidelity's class takes, refuses what it refuses, loads as it loads."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert (name, features_list) == ("inception", ["2048"])
        self.fc = nn.Linear(3, 5)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        return (self.fc(x.float().mean((2, 3))),)


@pytest.fixture
def package(monkeypatch):
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = StandIn
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_fed_8_bit_pixels(channels, tmp_path):
    file = tmp_path / "w.pth"
    fc = nn.Linear(3, 5)
    # Names that the package itself would not know.
    state = {f"module.fc.{k}": v for k, v in fc.state_dict().items()}
    torch.save({"state_dict": state}, file)
    network, x = Inception(file), images(4, channels=channels)
    assert not network.network.training
    assert not any(p.requires_grad for p in network.parameters())
    expected = fc(((x + 1) * 127.5).expand(-1, 3, -1, -1).mean((2, 3)))
    torch.testing.assert_close(network(x), expected.detach(), rtol=1e-4, atol=1e-3)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("code of a file ran",))


@pytest.mark.usefixtures("package")
def test_a_files_code_is_not_run(tmp_path):
    file = tmp_path / "w.pth"
    file.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UsageError, match="cannot be read as weights"):
        Inception(file)


@pytest.mark.usefixtures("package")
def test_refusals(tmp_path):
    with pytest.raises(UsageError, match=r"download weights-inception-.*inception:FILE"):
        Inception(None)
    torch.save({"fc.weight": torch.zeros(5, 3)}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match="another network's weights"):
        Inception(tmp_path / "w.pth")


def test_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UsageError, match=r"fewstep\[fid\]"):
        Inception(tmp_path / "w.pth")
