import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from fewstep.core import UsageError
from fewstep.metrics import features, nearest_distance, neighbour_ratio


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("block", [1, 200, 2**24])
def test_nearest_distance_against_a_tree(monkeypatch, block):
    monkeypatch.setattr(features, "BLOCK", block)
    x, reference = randn(30, 1, 2, 2), randn(70, 1, 2, 2, seed=1)
    got = nearest_distance(x, reference)
    assert got.shape == (30,)
    assert got.dtype == torch.float64
    expected, _ = cKDTree(reference.flatten(1).numpy()).query(x.flatten(1).numpy())
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


def test_a_copy_is_at_exactly_zero():
    x = 1000 * randn(100, 64)
    assert (nearest_distance(x[:40], x) == 0).all()
    assert nearest_distance(x[:1], x[1:2]) == pytest.approx(float((x[0] - x[1]).norm()))


def test_ratio_of_copies_fresh_and_far_samples():
    train, held_out = randn(300, 4), randn(200, 4, seed=1)
    assert neighbour_ratio(train[:50], train, held_out) == 0
    assert neighbour_ratio(held_out, train, held_out) == 1
    # Two medians of 200, each known to about 5 %.
    assert neighbour_ratio(randn(200, 4, seed=2), train, held_out) == pytest.approx(1, abs=0.25)
    assert neighbour_ratio(train[:200] + 0.01, train, held_out) < 0.1
    assert neighbour_ratio(held_out + 50, train, held_out) > 10


def test_ratio_is_free_of_the_unit():
    samples, train, held_out = randn(20, 3), randn(30, 3, seed=1), randn(25, 3, seed=2)
    scaled = neighbour_ratio(7 * samples, 7 * train, 7 * held_out)
    assert scaled == pytest.approx(neighbour_ratio(samples, train, held_out))


def test_refusals():
    x = randn(6, 3)
    with pytest.raises(UsageError, match="held_out lies in train"):
        neighbour_ratio(x, x, x)
    with pytest.raises(UsageError, match="reference has 0 samples"):
        nearest_distance(x, x[:0])
    with pytest.raises(UsageError, match="x has 3 dimensions and reference has 2"):
        nearest_distance(x, x[:, :2])
    with pytest.raises(UsageError, match="x has 6 of 6"):
        nearest_distance(x / 0, x)
