"""Products decide as differences do, on data that rounding is hard on."""

import pytest
import torch

from fewstep.metrics import balls, density_coverage, features, precision_recall
from fewstep.metrics.neighbours import pairwise


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_differences(real, fake, k):
    """All four numbers from full matrices of distances."""
    real, fake = real.double(), fake.double()
    between = pairwise(fake, real)
    of_real, of_fake = (pairwise(x, x).kthvalue(k + 1).values for x in (real, fake))
    inside = between <= of_real
    return (
        float(inside.any(1).double().mean()),
        float((of_fake >= between.T).any(1).double().mean()),
        float(inside.sum(1).double().mean()) / k,
        float(inside.any(0).double().mean()),
    )


def alternating(n):
    return (torch.arange(n) % 2)[:, None]


SAME = randn(120, 40, seed=9)
SETS = {
    "wide": (randn(130, 300), 0.95 * randn(110, 300, seed=1)),
    "on a grid": ((2 * randn(130, 3)).round(), (2 * randn(110, 3, seed=1)).round()),
    "on a wide grid": (randn(130, 64).round(), randn(110, 64, seed=1).round()),
    "far clusters": (
        randn(130, 50) + 1e4 * alternating(130),
        randn(110, 50, seed=1) + 1e4 * alternating(110),
    ),
    "further clusters": (
        randn(130, 50) + 1e9 * alternating(130),
        randn(110, 50, seed=1) + 1e9 * alternating(110),
    ),
    "far from the origin": (randn(130, 30) + 1e7, randn(110, 30, seed=1) + 1e7),
    "an outlier": (
        torch.cat([randn(130, 30), 1e12 * randn(1, 30)]),
        torch.cat([randn(110, 30, seed=1), 1e30 * randn(1, 30)]),
    ),
    "copies": (100 * randn(10, 300).repeat(12, 1), 100 * randn(10, 300).repeat(11, 1)),
    "tiny": (1e-30 * randn(130, 30), 1e-30 * randn(110, 30, seed=1)),
    "huge": (1e60 * randn(130, 30), 1e60 * randn(110, 30, seed=1)),
    "one point": (torch.zeros(50, 3), torch.zeros(60, 3)),
    "many scales": (
        randn(130, 30) * torch.logspace(0, -25, 130)[:, None],
        randn(110, 30, seed=1) * torch.logspace(0, -25, 110)[:, None],
    ),
    "equal": (SAME, SAME.flip(0)),
    "half equal": (SAME, torch.cat([SAME[:50], randn(50, 40)])),
}


@pytest.mark.parametrize("block", [900, 2**24])
@pytest.mark.parametrize("k", [1, 5, 30])
@pytest.mark.parametrize("name", SETS)
def test_as_differences_decide(monkeypatch, name, k, block):
    monkeypatch.setattr(features, "BLOCK", block)
    pr, dc = precision_recall(*SETS[name], k), density_coverage(*SETS[name], k)
    assert (pr.precision, pr.recall, dc.density, dc.coverage) == by_differences(*SETS[name], k)


def test_few_differences_are_taken_where_products_decide(monkeypatch):
    taken = []
    monkeypatch.setattr(
        balls, "pairwise", lambda a, b: taken.append(len(a) * b.shape[-2]) or pairwise(a, b)
    )
    precision_recall(randn(400, 300), randn(300, 300, seed=1), 3)
    assert 0 < sum(taken) < 0.01 * 400 * 300


def test_one_pair_is_at_the_distance_it_has_among_many():
    x, y = randn(40, 777), randn(50, 777, seed=1)
    i, j = torch.arange(40), torch.arange(40).flip(0)
    assert balls._apart(x, y, i, j).equal(pairwise(x, y)[i, j])
    assert balls._apart(x, y, i[:1], j[:1]).equal(pairwise(x, y)[i[:1], j[:1]])


def test_bounds_hold_the_squared_distances():
    x = randn(60, 500, seed=3) + 5
    frame = balls.frame(x, x)
    for dtype in (torch.float32, torch.float64):
        near = balls._rounded(x, frame, dtype)
        product = 2 * (near.x @ near.x.T)
        true = (pairwise(x, x) / frame.scale).square()
        assert (near.low[:, None] + near.low - product <= true).all()
        assert (near.high[:, None] + near.high - product >= true).all()
