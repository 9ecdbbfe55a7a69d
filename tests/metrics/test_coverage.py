import math

import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from fewstep.core import UsageError
from fewstep.metrics import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    features,
    precision_recall,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fraction_covered(x, points, k):
    """Of `x` in the k-NN balls of `points`, by scikit-learn's trees."""
    tree = NearestNeighbors(algorithm="kd_tree").fit(points)
    radius = tree.kneighbors(n_neighbors=k)[0][:, -1]
    distance, index = tree.kneighbors(x, n_neighbors=len(points))
    return float((distance <= radius[index]).any(1).mean())


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [1, 500, 2**24])
def test_against_scikit_learn(monkeypatch, k, block):
    monkeypatch.setattr(features, "BLOCK", block)
    real, fake = randn(80, 3), 0.7 * randn(60, 3, seed=1) + 0.8
    got = precision_recall(real, fake, k)
    assert got.precision == pytest.approx(fraction_covered(fake, real, k))
    assert got.recall == pytest.approx(fraction_covered(real, fake, k))
    assert 0 < got.recall < got.precision


def test_equal_sets_are_all_covered():
    x = randn(50, 4)
    assert precision_recall(x, x.flip(0)) == PrecisionRecall(1.0, 1.0)


def test_equal_sets_of_copies_are_all_covered():
    # Every ball has radius 0: only exact distances see the copies.
    x = 100 * randn(5, 300).repeat(4, 1)
    assert precision_recall(x, x) == PrecisionRecall(1.0, 1.0)


def test_far_sets_share_nothing():
    assert precision_recall(randn(20, 4), randn(30, 4, seed=1) + 100) == PrecisionRecall(0.0, 0.0)


def test_a_collapsed_fake_is_precise_and_covers_nothing():
    real = randn(200, 2)
    got = precision_recall(real, 1e-3 * randn(200, 2, seed=1))
    assert got.precision == 1.0
    assert got.recall < 0.05


def test_a_hand_computed_case():
    # k = 1: balls [0, 1]+-1 and 10+-9 on the line; of the fakes -1 (edge), 3 and 19.5, one is out.
    real, fake = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([[-1.0], [3.0], [19.5]])
    got = precision_recall(real, fake, k=1)
    assert got.precision == pytest.approx(2 / 3)
    # Fake balls: -1+-4, 3+-4, 19.5+-16.5: all three reals are in one.
    assert got.recall == 1.0
    # Balls of reals around the fakes: 1, 1 and 0. Of the reals, 1 has its nearest fake at 2.
    assert density_coverage(real, fake, k=1) == DensityCoverage(2 / 3, 2 / 3)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [500, 2**24])
def test_density_and_coverage_against_the_authors_package(monkeypatch, capsys, k, block):
    prdc = pytest.importorskip("prdc", reason="needs the package prdc")
    monkeypatch.setattr(features, "BLOCK", block)
    real, fake = randn(80, 3), 0.7 * randn(60, 3, seed=1) + 0.8
    expected = prdc.compute_prdc(real.numpy(), fake.numpy(), k)
    capsys.readouterr()
    dc, pr = density_coverage(real, fake, k), precision_recall(real, fake, k)
    got = {**vars(pr), **vars(dc)}
    assert got == pytest.approx(expected, rel=1e-12)
    assert 0 < got["coverage"] < 1


def test_expected_density_and_coverage_of_fresh_draws():
    # A fake is among the k nearest of a real's N - 1 others and itself with probability k / N, so
    # the density has mean 1. None of M fakes is with (N-1)...(N-k) / ((M+N-1)...(M+N-k)).
    n, m, k = 40, 25, 3
    expected = 1 - math.perm(n - 1, k) / math.perm(m + n - 1, k)
    draws = [density_coverage(randn(n, 2, seed=i), randn(m, 2, seed=999 + i), k) for i in range(99)]
    for name, truth in (("density", 1.0), ("coverage", expected)):
        values = torch.tensor([getattr(draw, name) for draw in draws]).double()
        assert abs(values.mean() - truth) < 4 * values.std() / 99**0.5 < 0.1


def test_equal_sets_in_density_and_coverage():
    # Closed balls hold their k neighbours and their centre.
    x = randn(50, 4)
    assert density_coverage(x, x.flip(0), k=5) == DensityCoverage(pytest.approx(6 / 5), 1.0)
    copies = 100 * randn(5, 300).repeat(4, 1)
    assert density_coverage(copies, copies, k=3) == DensityCoverage(pytest.approx(4 / 3), 1.0)


def test_one_outlier_spares_density_and_not_precision():
    # The ball of an outlier at 60 reaches all of the data, and fakes far from any of it.
    real = torch.cat([randn(200, 2), torch.tensor([[60.0, 0.0]])])
    fake = randn(100, 2, seed=1) + torch.tensor([30.0, 0.0])
    assert precision_recall(real, fake, 5).precision == 1.0
    got = density_coverage(real, fake)
    assert got.density == pytest.approx(1 / 5)
    assert got.coverage == pytest.approx(1 / 201)


def test_a_collapsed_fake_is_dense_and_covers_nothing():
    got = density_coverage(randn(200, 2), 1e-3 * randn(200, 2, seed=1))
    assert got.density > 1.0
    assert got.coverage < 0.1


def test_refusals():
    x = randn(4, 2)
    for k in (0, 4):
        with pytest.raises(UsageError, match="from 1 to 3"):
            precision_recall(x, x, k)
        with pytest.raises(UsageError, match="4 real samples; give one from 1 to 3"):
            density_coverage(x, x, k)
    with pytest.raises(UsageError, match="fake has 1 samples"):
        precision_recall(x, x[:1], 1)
    with pytest.raises(UsageError, match="real has 2 dimensions and fake has 1"):
        precision_recall(x, x[:, :1])
