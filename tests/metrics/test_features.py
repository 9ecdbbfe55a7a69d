import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from fewstep.core import UsageError
from fewstep.data import digits as dataset
from fewstep.metrics import TanhFeatures, digits_features, flatten
from fewstep.metrics import features as module


def digits(n=6):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_flatten_keeps_values_in_order():
    x = digits()
    assert torch.equal(flatten(x), x.reshape(6, 64))


def test_the_architecture_by_hand():
    torch.manual_seed(0)
    net, x = TanhFeatures(), digits()
    w = net.state_dict()
    h = (x.reshape(6, 64) @ w["hidden.weight"].T + w["hidden.bias"]).tanh()
    assert h.shape == (6, 64)
    torch.testing.assert_close(net(x), h)
    torch.testing.assert_close(net.logits(x), h @ w["head.weight"].T + w["head.bias"])
    assert w["hidden.weight"].shape == (64, 64)
    assert w["head.weight"].shape == (10, 64)


def test_features_are_bounded_whatever_the_input():
    assert TanhFeatures()(1e6 * digits()).abs().max() <= 1


@pytest.mark.parametrize("shape", [(4, 1, 8, 9), (64,)])
def test_other_events_are_refused(shape):
    with pytest.raises(UsageError, match="take"):
        TanhFeatures()(torch.zeros(shape))


def test_bundled_weights():
    net = digits_features()
    assert not net.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in net.parameters())
    again = digits_features()
    assert all(map(torch.equal, net.parameters(), again.parameters()))
    assert net(digits()).shape == (6, 64)


def test_missing_and_foreign_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(module.resources, "files", lambda _: tmp_path)
    with pytest.raises(UsageError, match="no weights at"):
        digits_features()
    (tmp_path / "assets").mkdir()
    path = tmp_path / "assets" / "digits-features.safetensors"
    path.write_bytes(save({**TanhFeatures().state_dict(), "extra": torch.zeros(1)}))
    with pytest.raises(RuntimeError, match="extra"):
        digits_features()


def test_bundled_weights_know_digits_they_were_not_trained_on():
    held_out = dataset("held_out")
    batch = held_out.batch(range(len(held_out)))
    net = digits_features()
    # 0.9799 when written; two digits of 597 may turn with another BLAS.
    assert (net.logits(batch.x0).argmax(1) == batch.cond["label"]).double().mean() >= 0.976
    # Off the plateaus of tanh, where a distance would be a count of flipped units.
    assert (net(batch.x0).abs() > 0.99).double().mean() < 0.1


def test_the_script_that_wrote_them_runs(tmp_path, capsys):
    script = Path(__file__).parents[2] / "benchmarks" / "digits_features.py"
    out = tmp_path / "weights.safetensors"
    held_out = runpy.run_path(str(script))["main"](steps=20, out=out)
    assert held_out > 0.3
    assert f"held_out accuracy {held_out:.4f}" in capsys.readouterr().out
    TanhFeatures().load_state_dict(load(out.read_bytes()), strict=True)
