import math

import pytest
import torch
from torch import Tensor

from fewstep.models.nets.magnitude import MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalise
from oracles import D, normal


def rms(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


def test_pixels_and_weights_are_normalised():
    x = 7 * normal(3, 50, 4, 5)
    found = normalise(x, 1)
    torch.testing.assert_close(
        found, x / x.square().mean(1, keepdim=True).sqrt(), rtol=1e-4, atol=0
    )
    whole = normalise(x, (1, 2, 3)).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(whole, torch.ones(3, dtype=D), rtol=1e-4, atol=0)
    assert normalise(torch.zeros(2, 3), 1).equal(torch.zeros(2, 3))


def test_the_norm_of_half_precision_does_not_overflow():
    x = torch.full((1, 64, 1, 1), 1e4, dtype=torch.float16)  # of norm 80000, above 65504
    assert normalise(x, 1).dtype == torch.float16
    torch.testing.assert_close(normalise(x, 1), torch.ones_like(x), rtol=1e-3, atol=0)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_sums_and_concatenations_keep_the_variance(t):
    a, b = normal(10, 40, 20, 20), normal(10, 10, 20, 20, seed=1)
    total = mp_sum(a[:, :10], b, t)
    assert rms(total) == pytest.approx(1, abs=0.01)
    assert float((total * b).mean()) == pytest.approx(t / math.hypot(1 - t, t), abs=0.02)
    both = mp_cat(a, b, t)
    assert rms(both) == pytest.approx(1, abs=0.01)
    # What each part adds to the next layer stands as (1 - t) to t, whatever their widths.
    powers = [float(part.square().sum()) for part in (both[:, :40], both[:, 40:])]
    share = t**2 / ((1 - t) ** 2 + t**2)
    assert powers[1] / sum(powers) == pytest.approx(share, abs=0.01)


def test_activations_and_features_keep_the_variance():
    assert rms(mp_silu(normal(100_000))) == pytest.approx(1, abs=0.01)
    torch.manual_seed(0)
    features = MPFourier(1000)
    for times in (torch.zeros(1), torch.linspace(-3, 3, 200)):
        assert rms(features(times)) == pytest.approx(1, abs=0.05)
    assert rms(features(torch.zeros(4)) - features(torch.ones(4))) > 1


@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_layers_keep_the_variance_whatever_their_weights(kernel):
    torch.manual_seed(0)
    layer = MPConv(40, 60, kernel).double()
    x = normal(20, 40, 12, 12) if kernel else normal(2000, 40)
    out = layer(x)
    inside = out[:, :, 1:-1, 1:-1] if kernel else out
    assert rms(inside) == pytest.approx(1, abs=0.03)
    with torch.no_grad():
        layer.weight.mul_(
            torch.linspace(1, 100, 60, dtype=D).reshape(-1, *[1] * (layer.weight.ndim - 1))
        )
    torch.testing.assert_close(layer(x), out, rtol=2e-4, atol=1e-9)
    torch.testing.assert_close(layer(x, 0.25), 0.25 * layer(x))
    layer(x).square().sum().backward()
    along = (layer.weight.grad * layer.weight).flatten(1).sum(1)
    size = layer.weight.grad.flatten(1).norm(dim=1) * layer.weight.flatten(1).norm(dim=1)
    assert (along / size).abs().max() < 1e-3  # tangent, up to the small constant in the norm
    layer.normalise_weights()
    assert rms(layer.weight) == pytest.approx(1, abs=2e-4)
    torch.testing.assert_close(layer(x), out, rtol=2e-4, atol=1e-9)
