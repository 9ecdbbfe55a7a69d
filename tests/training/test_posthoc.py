import math

import numpy as np
import pytest
from torch import nn

from fewstep.core import UsageError
from fewstep.paths import VarianceExploding
from fewstep.training.averages import Averages
from fewstep.training.posthoc import (
    PowerFunction,
    edm2_learning_rate,
    exponent_to_std,
    posthoc_coefficients,
    power_rate,
    std_to_exponent,
)
from oracles import GaussianDenoiser, Offset

STORED = (0.05, 0.1)


def profile(std: float, steps: int) -> np.ndarray:
    """What each of ``steps`` updates counts in the average after the last."""
    rates = np.array([PowerFunction(std)(k) for k in range(steps)])
    left = np.append(rates[:0:-1].cumprod()[::-1], 1.0)
    return (1 - rates) * left


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_a_profile_is_the_power_of_time_and_has_its_width(std):
    steps = 2000
    weights = profile(std, steps)
    gamma = float(std_to_exponent(std))
    time = np.arange(1, steps + 1) / steps
    # The discrete profile is the difference of (k / n)^(gamma + 1): exact.
    exact = np.diff(time ** (gamma + 1), prepend=0)
    np.testing.assert_allclose(weights, exact, rtol=1e-9, atol=1e-15)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    mean = (weights * time).sum()
    width = math.sqrt((weights * (time - mean) ** 2).sum())
    assert width == pytest.approx(std, rel=2e-3)  # n is finite
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-3)


def test_widths_and_exponents_are_inverse():
    stds = np.array([[0.001, 0.05], [0.2, 0.288]])
    assert std_to_exponent(stds).shape == (2, 2)
    np.testing.assert_allclose(exponent_to_std(std_to_exponent(stds)), stds, rtol=1e-9)
    # The paper's two tracked widths.
    np.testing.assert_allclose(std_to_exponent([0.05, 0.1]), [16.97, 6.94], atol=5e-3)
    assert float(exponent_to_std(0)) == pytest.approx(12**-0.5)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.2887, 1.0, math.nan, math.inf])
def test_widths_that_no_profile_has(std):
    for use in (PowerFunction, std_to_exponent):
        with pytest.raises(UsageError, match=r"between 0 and 0\.2887"):
            use(std)


def test_the_first_update_copies_and_rates_grow():
    rule = PowerFunction(0.1)
    rates = [rule(k) for k in range(100)]
    assert rates[0] == 0
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.99 ** (float(std_to_exponent(0.1)) + 1))
    np.testing.assert_allclose(rates, power_rate(0.1, 64 * np.arange(1, 101), 64), rtol=1e-12)


def test_it_is_a_rule_of_averages():
    student = Offset(GaussianDenoiser(VarianceExploding()), offset=100.0)
    averages = Averages(student, {"ema": PowerFunction(0.1)})
    for k in range(50):
        nn.init.constant_(student.offset, float(k))
        averages.update(student)
    wanted = (profile(0.1, 50) * np.arange(50)).sum()
    assert float(averages.copies["ema"].offset) == pytest.approx(wanted, rel=1e-12)


def tracked(walk: np.ndarray, std: float) -> np.ndarray:
    """The average after every update."""
    rule, average = PowerFunction(std), np.empty_like(walk)
    for k, value in enumerate(walk):
        rate = rule(k)
        average[k] = (rate * average[k - 1] if k else 0) + (1 - rate) * value
    return average


@pytest.fixture(scope="module")
def walk() -> np.ndarray:
    """200 random walks."""
    return np.random.default_rng(0).standard_normal((1024, 200)).cumsum(0)


@pytest.fixture(scope="module")
def stored(walk: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets, widths and values: both widths, 64 times in the run."""
    at = np.arange(16, 1025, 16)
    values = np.concatenate([tracked(walk, std)[at - 1] for std in STORED])
    return np.tile(at, 2), np.repeat(STORED, len(at)), values


def size(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


# In units of the distance between the average and the last weights. 0.03 is narrower than what is
# stored: its peak holds few snapshots.
@pytest.mark.parametrize(
    ("std", "most"),
    [(0.03, 1e-3), (0.07, 3e-5), (0.15, 3e-5), (0.2, 5e-4), (0.05, 1e-12), (0.1, 1e-12)],
)
def test_an_average_never_tracked_is_reconstructed(walk, stored, std, most):
    offsets, stds, values = stored
    found = posthoc_coefficients(offsets, stds, len(walk), std)[:, 0] @ values
    wanted = tracked(walk, std)[-1]
    error = size(found - wanted) / size(wanted - walk[-1])
    assert error < most


def test_what_is_stored_is_taken_as_it_is():
    offsets, stds = np.tile([1.0, 2, 3, 4], 2), np.repeat(STORED, 4)
    for i in range(8):
        found = posthoc_coefficients(offsets, stds, offsets[i], stds[i])
        np.testing.assert_allclose(found[:, 0], np.eye(8)[i], atol=1e-9)


def test_columns_sum_to_one_and_units_do_not_matter():
    offsets, stds = np.tile([1.0, 2, 3, 4], 2), np.repeat(STORED, 4)
    wanted = [4, 4, 3.5], [0.03, 0.15, 0.07]
    found = posthoc_coefficients(offsets, stds, *wanted)
    assert found.shape == (8, 3)
    np.testing.assert_allclose(found.sum(0), 1, rtol=1e-12)
    scaled = posthoc_coefficients(2048 * offsets, stds, 2048 * np.array(wanted[0]), wanted[1])
    np.testing.assert_allclose(scaled, found, rtol=1e-8)


def test_inner_products_are_integrals():
    """Coefficients of two stored averages, against a fit of the profiles on a fine grid."""
    (t, u, v), (g, h, k) = (2.0, 3.0, 2.5), std_to_exponent([0.05, 0.1, 0.08])
    tau = (np.arange(400_000) + 0.5) * 3 / 400_000

    def density(end: float, gamma: float) -> np.ndarray:
        return np.where(tau < end, (gamma + 1) * tau**gamma / end ** (gamma + 1), 0)

    basis = np.stack([density(t, g), density(u, h)], axis=1)
    fit = np.linalg.lstsq(basis, density(v, k), rcond=None)[0]
    found = posthoc_coefficients([t, u], [0.05, 0.1], v, 0.08)[:, 0]
    np.testing.assert_allclose(found, fit / fit.sum(), rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([1, 2], [0.05], 2, 0.1), "stored averages need"),
        (([], [], 2, 0.1), "stored averages need"),
        (([0, 2], [0.05, 0.1], 2, 0.1), "above 0"),
        (([1, 2], [0.05, 0.1], [1, 2], 0.1), "wanted averages need"),
        (([1, 2], [0.05, 0.5], 2, 0.1), r"got \[0.05, 0.5\]"),
        (([2, 2], [0.05, 0.05], 2, 0.1), "give each once"),
    ],
)
def test_averages_that_cannot_be_combined(given, message):
    with pytest.raises(UsageError, match=message):
        posthoc_coefficients(*given)


def test_the_learning_rate_rises_rests_and_falls():
    def rate(step: float, **given: float) -> float:
        return edm2_learning_rate(step, peak=0.01, decay_from=100, batch=10, **given)

    assert rate(0, warmup=500) == 0
    assert rate(25, warmup=500) == pytest.approx(0.005)
    assert rate(50, warmup=500) == rate(100, warmup=500) == 0.01
    assert rate(400, warmup=500) == pytest.approx(0.005)
    assert rate(0, warmup=0) == 0.01
    assert rate(400, warmup=8000) == pytest.approx(0.0025)
    assert rate(10**6) == pytest.approx(1e-4)
