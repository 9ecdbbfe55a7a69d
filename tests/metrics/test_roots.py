"""The trace of the root of a product: which way is taken, and that all of them agree."""

import pytest
import torch

from fewstep.core import UsageError
from fewstep.metrics import (
    Moments,
    flatten,
    frechet_distance,
    frechet_distance_of_samples,
    moments_of,
)
from fewstep.metrics.products import congruence, finite, scatter, single


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(d, decades=0.0, seed=0):
    """Of full rank, eigenvalues over so many decades."""
    basis, _ = torch.linalg.qr(randn(d, d, seed=seed))
    cov = (basis * torch.logspace(0, -decades, d, dtype=torch.float64)) @ basis.T
    return (cov + cov.T) / 2


def gaussian(cov, seed=0):
    return Moments(10**6, randn(len(cov), seed=seed), cov)


def dense(a, b):
    """By the eigenvalues of the product of both covariances."""
    root = torch.linalg.eigvals(a.cov @ b.cov).real.clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * root)


@pytest.fixture
def dense_calls(monkeypatch):
    calls, usual = [], torch.linalg.eigvals
    monkeypatch.setattr(torch.linalg, "eigvals", lambda x: calls.append(len(x)) or usual(x))
    return calls


@pytest.mark.parametrize("decades", [0.0, 2.0, 5.0])
def test_full_rank_takes_symmetric_eigenvalues(dense_calls, decades):
    a, b = (gaussian(covariance(120, decades, seed), seed) for seed in (1, 2))
    got = frechet_distance(a, b)
    assert dense_calls == []
    assert got == pytest.approx(dense(a, b), rel=1e-8)
    assert got == pytest.approx(frechet_distance(b, a), rel=1e-8)


@pytest.mark.parametrize("which", ["first", "second", "both"])
def test_deficient_rank_takes_the_unsymmetric_product(dense_calls, which):
    full, few = gaussian(covariance(60), 3), moments_of([randn(20, 60)], flatten)
    a, b = {"first": (few, full), "second": (full, few), "both": (few, few)}[which]
    got = frechet_distance(a, b)
    assert dense_calls == [60]
    assert got == dense(a, b)


def test_nearly_deficient_rank_takes_the_unsymmetric_product(dense_calls):
    # Both factors exist, but roots of eigenvalues below rounding would be as large as 1e-8.
    a, b = (gaussian(covariance(200, 12, seed), seed) for seed in (1, 2))
    assert not torch.linalg.cholesky_ex(a.cov).info
    assert frechet_distance(a, b) == dense(a, b)
    assert dense_calls[0] == 200


@pytest.mark.parametrize("panel", [1, 7, 30, 100])
def test_congruence_in_any_panels(panel):
    a, lower = covariance(30), randn(30, 30).tril()
    expected = lower.T @ a @ lower
    torch.testing.assert_close(congruence(a, lower, panel).tril(), expected.tril())


@pytest.mark.parametrize(
    ("n", "m", "d"),
    [(20, 30, 64), (100, 200, 256), (250, 100, 256), (300, 40, 64), (127, 127, 128)],
)
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_samples_give_the_distance_of_their_moments(n, m, d, offset):
    mix = randn(d, d, seed=5) / d**0.5
    a, b = randn(n, d, seed=1) @ mix, 1.2 * randn(m, d, seed=2) @ mix + offset
    expected = dense(*(moments_of([x], flatten) for x in (a, b)))
    assert frechet_distance_of_samples(a, b) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance_of_samples(b, a) == pytest.approx(expected, rel=1e-7)


def test_samples_of_less_rank_than_number():
    # Each sample twice, and half of the dimensions constant: the roots that are 0 stay 0.
    a, b = (randn(30, 80, seed=i).repeat(2, 1) for i in (1, 2))
    a[:, 40:], b[:, 40:] = 1.0, 3.0
    expected = dense(*(moments_of([x], flatten) for x in (a, b)))
    assert frechet_distance_of_samples(a, b) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance_of_samples(a, a) == pytest.approx(0, abs=1e-10)


def test_as_many_samples_as_dimensions_go_by_their_moments():
    a, b = randn(64, 40, seed=1), randn(50, 40, seed=2)
    expected = frechet_distance(*(moments_of([x], flatten) for x in (a, b)))
    assert frechet_distance_of_samples(a, b) == expected


def test_no_covariance_of_many_dimensions_is_computed():
    # It would take 80 GB. With B = 2 A + 1 the covariances commute, and the means are known.
    a = randn(8, 100_000).reshape(8, 10, 100, 100)
    means = (a.mean(0) + 1).square().sum()
    expected = float(means + a.flatten(1).var(0).sum())
    assert frechet_distance_of_samples(a, 2 * a + 1) == pytest.approx(expected, rel=1e-9)


def test_refusals():
    with pytest.raises(UsageError, match="a has 1 samples"):
        frechet_distance_of_samples(randn(1, 9), randn(4, 9))
    with pytest.raises(UsageError, match="a has 9 dimensions and b has 8"):
        frechet_distance_of_samples(randn(4, 9), randn(4, 8))


def test_scatter():
    x = randn(30, 7)
    torch.testing.assert_close(scatter(x), x.T @ x)
    torch.testing.assert_close(scatter(x.T), x @ x.T)
    assert scatter(x.float().requires_grad_()).dtype == torch.float32


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_finite(bad):
    x = randn(4, 5)
    assert finite(x)
    assert finite(x[:0])
    x[2, 3] = bad
    assert not finite(x)


def test_rounded_products_are_not_taken_for_single():
    usual = torch.get_float32_matmul_precision()
    assert single() == torch.float32
    try:
        torch.set_float32_matmul_precision("medium")
        assert single() == torch.float64
    finally:
        torch.set_float32_matmul_precision(usual)
