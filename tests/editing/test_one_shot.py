"""The one-shot snippet of inpainting that many copy, beside algorithm 4 (docs/pitfalls.md)."""

from __future__ import annotations

import pytest
import torch

from fewstep.editing import inpaint, restore
from gaussians import correlated, gaussian_model
from oracles import normal

N = 8_000
MODEL = gaussian_model(correlated(), (2,))
MEAN, VARIANCE = 0.9 * 0.6, 0.25 * (1 - 0.9**2)
"""Of the hidden coordinate, where the other one is 0.6."""

HIDDEN = MEAN + VARIANCE**0.5 * normal(N, seed=1)


def one_shot(t: float) -> torch.Tensor:
    """The snippet's hidden coordinate: the known one without noise, the hidden one's *true value*
    with noise, one call, no clamp."""
    x = torch.stack([torch.full((N,), 0.6, dtype=torch.float64), HIDDEN], 1)
    x[:, 1] += t * normal(N, seed=2)
    return MODEL.denoiser(x, torch.full((N,), t, dtype=torch.float64))[:, 1]


def correlation(x: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([x, HIDDEN]))[0, 1])


def test_one_call_at_a_low_time_leaks_the_hidden_part_and_misses_the_posterior():
    out = one_shot(1.0)
    assert float(out.mean()) == pytest.approx(0.319, abs=0.01)
    assert float(out.var()) == pytest.approx(0.137, rel=0.05)
    assert correlation(out) == pytest.approx(0.21, abs=0.04)


def test_one_call_at_the_start_ignores_what_is_known():
    out = one_shot(80.0)
    assert float(out.mean()) == pytest.approx(0.005, abs=0.02)
    assert float(out.var()) == pytest.approx(0.179, rel=0.05)


def test_algorithm_4_never_reads_the_hidden_part():
    y = torch.stack([torch.full((N,), 0.6, dtype=torch.float64), HIDDEN], 1)
    missing = inpaint(torch.tensor([False, True]))
    out = restore(MODEL, missing, y, steps=40, batch=N)[:, 1]
    assert abs(correlation(out)) < 0.04
    blind = torch.where(torch.tensor([False, True]), torch.zeros_like(y), y)
    assert torch.equal(out, restore(MODEL, missing, blind, steps=40, batch=N)[:, 1])
    assert abs(float(out.mean()) - MEAN) < abs(float(one_shot(1.0).mean()) - MEAN)
