import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from fewstep.core import UsageError
from fewstep.metrics import Moments, StreamingMoments, flatten, frechet_distance, moments_of


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def standard(d):
    return Moments(100, torch.zeros(d).double(), torch.eye(d).double())


def streamed(x, sizes):
    stream = StreamingMoments(x.shape[1])
    for part in x.split(sizes):
        stream.update(part)
    return stream


@pytest.mark.parametrize("d", [1, 3, 64])
@pytest.mark.parametrize("s", [0.0, 0.3, 1.0, 2.5])
def test_isotropic_gaussians(d, s):
    m = randn(d)
    a = Moments(100, m, s**2 * torch.eye(d).double())
    expected = float(m.square().sum()) + d * (s - 1) ** 2
    assert frechet_distance(a, standard(d)) == pytest.approx(expected, abs=1e-9)


def test_correlated_covariances_against_sqrtm():
    mixed = [randn(50, 8, seed=i) @ randn(8, 8, seed=i + 2) for i in (1, 2)]
    a, b = (Moments(50, x.mean(0), x.T.cov()) for x in mixed)
    # They do not commute: no shortcut through the variances or a common basis gives the value.
    assert (a.cov @ b.cov - b.cov @ a.cov).norm() > 10
    root = sqrtm((a.cov @ b.cov).numpy()).real.trace()
    expected = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(float(expected), rel=1e-10)


def test_singular_covariances():
    # 5 samples in 20 dimensions. Eigenvalues that should be 0 are 1e-16, their roots 1e-8.
    a = streamed(randn(5, 20), [5]).moments()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)
    moved = Moments(a.n, a.mean + 2, a.cov)
    assert frechet_distance(a, moved) == pytest.approx(80, abs=1e-5)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 5), st.floats(-1e6, 1e6))
def test_any_batching_gives_the_moments_of_the_whole(sizes, d, offset):
    x = randn(sum(sizes) + 1, d) + offset
    got = streamed(x, [*sizes, 1]).moments()
    assert got.n == len(x)
    # Rounding of the data itself, 1e-16 offset, enters the covariance through the centred values.
    tolerance = 1e-12 + 1e-14 * abs(offset)
    torch.testing.assert_close(got.mean, x.mean(0), rtol=1e-12, atol=1e-12)
    expected = x.T.cov().reshape(d, d)
    torch.testing.assert_close(got.cov, expected, rtol=1e-9, atol=tolerance)


def test_small_spread_far_from_the_origin():
    x = 1e8 + randn(1000, 2)
    cov = streamed(x, 100).moments().cov
    torch.testing.assert_close(cov, (x - 1e8).T.cov(), rtol=1e-7, atol=1e-7)


def test_merge_is_having_seen_both():
    x = randn(30, 4)
    left, right = streamed(x[:11], 4), streamed(x[11:], 7)
    left.merge(right)
    left.merge(StreamingMoments(4))
    got, expected = left.moments(), streamed(x, 30).moments()
    assert got.n == expected.n == 30
    torch.testing.assert_close(got.mean, expected.mean)
    torch.testing.assert_close(got.cov, expected.cov)
    empty = StreamingMoments(4)
    empty.merge(right)
    torch.testing.assert_close(empty.moments().cov, right.moments().cov)


def test_moments_are_a_snapshot():
    stream = streamed(randn(10, 2), 5)
    before = stream.moments()
    kept = before.mean.clone(), before.cov.clone()
    stream.update(randn(10, 2, seed=1) + 3)
    assert torch.equal(before.mean, kept[0])
    assert torch.equal(before.cov, kept[1])


def test_moments_of_applies_the_features_without_gradient():
    x = randn(12, 1, 2, 2).float()
    weight = torch.ones(4, 3, requires_grad=True)
    got = moments_of(x.split(5), lambda x: flatten(x) @ weight)
    assert got.mean.dtype == got.cov.dtype == torch.float64
    assert not got.mean.requires_grad
    y = (flatten(x) @ weight.detach()).double()
    torch.testing.assert_close(got.mean, y.mean(0))
    torch.testing.assert_close(got.cov, y.T.cov())


def test_distance_from_samples_estimates_the_closed_form():
    m, s = torch.tensor([1.0, -2.0]).double(), 0.5
    a = streamed(m + s * randn(20000, 2, seed=1), 512).moments()
    b = streamed(randn(20000, 2, seed=2), 512).moments()
    # Standard error of |m|^2 + ... is about 2 |m| sqrt((1 + s^2) / 20000) = 0.035.
    assert frechet_distance(a, b) == pytest.approx(5 + 2 * 0.25, abs=0.12)


def test_refusals():
    with pytest.raises(UsageError, match="1 samples seen"):
        streamed(randn(1, 2), 1).moments()
    with pytest.raises(UsageError, match="3 dimensions, expected 2"):
        StreamingMoments(2).update(randn(4, 3))
    with pytest.raises(UsageError, match="3 dimensions, expected 2"):
        StreamingMoments(2).merge(StreamingMoments(3))
    with pytest.raises(UsageError, match="0 samples"):
        StreamingMoments(2).update(randn(0, 2))
    with pytest.raises(UsageError, match="1 of 2 samples"):
        StreamingMoments(2).update(torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]))
    with pytest.raises(UsageError, match="no batches"):
        moments_of([], flatten)
    with pytest.raises(UsageError, match="2 and of 3 dimensions"):
        frechet_distance(standard(2), standard(3))
    with pytest.raises(UsageError, match="not finite"):
        frechet_distance(standard(2), Moments(9, torch.full((2,), torch.inf), torch.eye(2)))
