import numpy as np
import pytest
import torch

from fewstep.core import UsageError, entropy
from fewstep.metrics import features, kernel, kid, kid_subsets


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def direct(a, b):
    def k(x, y):
        return (float(x @ y) / len(x) + 1) ** 3

    def within(x):
        n = len(x)
        return sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    return within(a) + within(b) - 2 * sum(k(x, y) for x in a for y in b) / (len(a) * len(b))


@pytest.mark.parametrize("block", [1, 20, 2**24])
def test_equals_the_definition_in_any_blocks(monkeypatch, block):
    monkeypatch.setattr(features, "BLOCK", block)
    a, b = randn(9, 5), randn(7, 5, seed=1) + 0.3
    assert kid(a, b) == pytest.approx(direct(a, b), rel=1e-12)


def test_one_dimension_in_closed_form():
    # k(x, y) = (xy + 1)^3 sees the first three moments: MMD^2 = sum_j C(3, j) (E x^j - E y^j)^2.
    # N(1, 1) against N(0, 1): moments (1, 2, 4) against (0, 1, 0), so 3 + 3 + 16 = 22.
    values = [kid(randn(400, 1, seed=i) + 1, randn(400, 1, seed=99 + i)) for i in range(40)]
    mean, error = torch.tensor(values).mean(), torch.tensor(values).std() / 40**0.5
    assert abs(mean - 22) < 4 * error < 4


def test_unbiased_between_draws_of_one_law():
    values = torch.tensor([kid(randn(50, 4, seed=i), randn(60, 4, seed=99 + i)) for i in range(60)])
    assert abs(values.mean()) < 4 * values.std() / 60**0.5
    assert (values < 0).sum() > 10
    assert (values > 0).sum() > 10


def test_grows_with_the_shift():
    a, b = randn(200, 4), randn(200, 4, seed=1)
    values = [kid(a, b + shift) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values)


def test_float32_input_is_computed_in_float64():
    a, b = randn(40, 3).float(), randn(40, 3, seed=1).float()
    assert kid(a, b) == pytest.approx(direct(a.double(), b.double()), rel=1e-12)


def test_subsets():
    a, b = randn(100, 4), randn(80, 4, seed=1) + 0.5
    got = kid_subsets(a, b, subsets=200, subset_size=40)
    assert got == kid_subsets(a, b, subsets=200, subset_size=40)
    assert got != kid_subsets(a, b, subsets=200, subset_size=40, seed=1)
    # Averaging U-statistics over subsets estimates the U-statistic of the whole.
    assert abs(got.mean - kid(a, b)) < 4 * got.std / 200**0.5
    whole = kid_subsets(b, b, subsets=3, subset_size=80)
    assert whole.mean == pytest.approx(kid(b, b), rel=1e-9)
    assert whole.std == pytest.approx(0, abs=1e-9)


def test_the_spread_of_subsets_is_theirs_not_an_estimate():
    # Divided by their number: of two values, half their difference; of one, nothing.
    a, b = randn(30, 4), randn(30, 4, seed=1) + 0.5
    one, two = (kid_subsets(a, b, subsets=n, subset_size=10) for n in (1, 2))
    first, second = one.mean, 2 * two.mean - one.mean
    assert abs(first - second) > 1e-3
    assert two.std == pytest.approx(abs(first - second) / 2, rel=1e-9)
    assert one.std == 0


def test_refusals():
    a = randn(5, 3)
    with pytest.raises(UsageError, match="a has 1 samples"):
        kid(a[:1], a)
    with pytest.raises(UsageError, match="a has 3 dimensions and b has 2"):
        kid(a, a[:, :2])
    with pytest.raises(UsageError, match="1 of 5 samples"):
        kid(a, a.index_fill(0, torch.tensor([2]), torch.nan))
    with pytest.raises(UsageError, match="from 2 to 5"):
        kid_subsets(a, a, subset_size=6)
    with pytest.raises(UsageError, match="subsets=0"):
        kid_subsets(a, a, subsets=0, subset_size=3)


@pytest.mark.parametrize(("spread", "offset"), [(1.0, 0.0), (1.0, 30.0), (1.05, 0.3)])
def test_subsets_in_many_dimensions_are_those_of_double_precision(monkeypatch, spread, offset):
    a, b = randn(300, 400) + offset, spread * randn(280, 400, seed=1) + offset
    got = kid_subsets(a, b, subsets=5, subset_size=100)
    monkeypatch.setattr(kernel, "WIDE", 10**9)
    expected = kid_subsets(a, b, subsets=5, subset_size=100)
    assert got != expected
    assert got.mean == pytest.approx(expected.mean, rel=1e-6)
    assert got.std == pytest.approx(expected.std, rel=1e-6)
    rng = np.random.default_rng(entropy(0, "kid"))
    draws = []
    for _ in range(5):
        parts = [x[rng.choice(len(x), 100, replace=False)] for x in (a, b)]
        draws.append(kid(*parts))
    assert expected.mean == pytest.approx(np.mean(draws), rel=1e-9)
