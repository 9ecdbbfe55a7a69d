import pytest
import torch
from scipy.stats import wasserstein_distance

from fewstep.core import UsageError
from fewstep.metrics import features, sliced_wasserstein


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shuffled(x, seed=5):
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))]


@pytest.mark.parametrize("d", [2, 8, 64])
def test_translation(d):
    # W2^2 along phi is (phi.a)^2, whose mean over the sphere is |a|^2 / d.
    # Its relative standard deviation is below sqrt(2): 4 standard errors of 20000 directions.
    x, a = randn(50, d), randn(d, seed=1)
    got = sliced_wasserstein(x, shuffled(x) + a, projections=20000) ** 2
    assert got == pytest.approx(float(a.square().sum()) / d, rel=4 * 2**0.5 / 20000**0.5)


def test_scaling_about_the_origin():
    # Along phi the ranks stay: W2^2 = (s - 1)^2 mean((phi.x)^2), on average mean |x|^2 / d.
    x = randn(100, 3)
    got = sliced_wasserstein(x, 3 * shuffled(x), projections=20000) ** 2
    assert got == pytest.approx(4 * float(x.square().sum(1).mean()) / 3, rel=0.03)


@pytest.mark.parametrize("p", [1, 2, 3.5])
def test_exact_in_one_dimension(p):
    x, y = randn(40, 1), randn(40, 1, seed=1) * 2 + 1
    expected = (x.sort(0).values - y.sort(0).values).abs().pow(p).mean() ** (1 / p)
    got = sliced_wasserstein(x, y, p=p, projections=3)
    assert got == pytest.approx(float(expected), rel=1e-12)


def test_order_one_against_scipy():
    x, y = randn(40, 1), randn(40, 1, seed=1) * 2 + 1
    expected = wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy())
    assert sliced_wasserstein(x, y, p=1, projections=1) == pytest.approx(expected, rel=1e-12)


def test_is_a_distance_between_sets():
    x, y = randn(30, 4), randn(30, 4, seed=1)
    assert sliced_wasserstein(x, shuffled(x)) == pytest.approx(0, abs=1e-12)
    assert sliced_wasserstein(x, y) == sliced_wasserstein(y, x)
    assert sliced_wasserstein(x, y) > 0.05


def test_events_are_flattened():
    x, y = randn(10, 1, 2, 3), randn(10, 1, 2, 3, seed=1)
    assert sliced_wasserstein(x, y) == sliced_wasserstein(x.flatten(1), y.flatten(1))


def test_the_seed_decides_and_blocks_do_not(monkeypatch):
    x, y = randn(20, 3), randn(20, 3, seed=1)
    got = sliced_wasserstein(x, y, projections=50)
    assert got == sliced_wasserstein(x, y, projections=50)
    assert got != sliced_wasserstein(x, y, projections=50, seed=1)
    monkeypatch.setattr(features, "BLOCK", 140)
    assert got == pytest.approx(sliced_wasserstein(x, y, projections=50), rel=1e-12)


def test_refusals():
    x = randn(5, 3)
    with pytest.raises(UsageError, match="a has 5 samples and b has 4"):
        sliced_wasserstein(x, x[:4])
    with pytest.raises(UsageError, match="a has 3 dimensions and b has 2"):
        sliced_wasserstein(x, x[:, :2])
    with pytest.raises(UsageError, match=r"p=0\.5"):
        sliced_wasserstein(x, x, p=0.5)
    with pytest.raises(UsageError, match="projections=0"):
        sliced_wasserstein(x, x, projections=0)
    with pytest.raises(UsageError, match=r"shape \(5,\)"):
        sliced_wasserstein(x[:, 0], x[:, 0])
