import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from fewstep.core import UsageError
from fewstep.data import Mixture, gaussian, toy, two_modes
from fewstep.data.toys import SAMPLERS

D = torch.float64
LINE = Mixture(
    torch.tensor([0.2, 0.5, 0.3]),
    torch.tensor([[-1.0], [0.3], [1.2]], dtype=D),
    torch.tensor([0.1, 0.4, 0.25], dtype=D),
)
PLANE = Mixture(
    torch.tensor([0.25, 0.75], dtype=D),
    torch.tensor([[-0.6, 0.2], [0.4, -0.1]], dtype=D),
    torch.tensor([0.3, 0.15], dtype=D),
)
ALPHA = torch.tensor([1.0, 1.0, 0.8, 0.3, 0.05], dtype=D)
SIGMA = torch.tensor([0.02, 1.5, 0.6, 0.7, 1.0], dtype=D)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def law(mixture: Mixture, alpha: float, sigma: float) -> MixtureSameFamily:
    std = (alpha**2 * mixture.stds**2 + sigma**2).sqrt()[:, None].expand_as(mixture.means)
    parts = Independent(Normal(alpha * mixture.means, std), 1)
    return MixtureSameFamily(Categorical(mixture.weights), parts)


def noisy(mixture: Mixture, seed: int = 0) -> torch.Tensor:
    draws = [law(mixture, a, s).sample() for a, s in zip(ALPHA, SIGMA, strict=True)]
    return torch.stack(draws)


def test_denoiser_equals_quadrature():
    torch.manual_seed(0)
    x_t = noisy(LINE)
    grid = torch.linspace(-5, 5, 200_001, dtype=D)[:, None]
    prior = law(LINE, 1, 0).log_prob(grid)
    for x, alpha, sigma, x0 in zip(
        x_t, ALPHA, SIGMA, LINE.denoiser(x_t, ALPHA, SIGMA), strict=True
    ):
        weight = (prior - ((x - alpha * grid[:, 0]) / sigma).square() / 2).softmax(0)
        # The trapezoid rule converges faster than any power on smooth, decaying integrands.
        torch.testing.assert_close(x0[0], (weight * grid[:, 0]).sum(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("mixture", [LINE, PLANE, gaussian((0.1, -0.2, 0.3), 0.7)])
def test_score_is_the_gradient_of_the_log_density(mixture):
    torch.manual_seed(1)
    x_t = noisy(mixture)
    scores = mixture.score(x_t, ALPHA, SIGMA)
    for x, alpha, sigma, score in zip(x_t, ALPHA, SIGMA, scores, strict=True):
        x = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(law(mixture, alpha, sigma).log_prob(x), x)
        torch.testing.assert_close(score, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mixture", [LINE, PLANE])
def test_tweedie(mixture):
    x_t = noisy(mixture)
    a, s = ALPHA[:, None], SIGMA[:, None]
    expected = (x_t + s**2 * mixture.score(x_t, ALPHA, SIGMA)) / a
    torch.testing.assert_close(mixture.denoiser(x_t, ALPHA, SIGMA), expected, rtol=0, atol=1e-11)


def test_denoiser_of_one_gaussian_is_linear():
    mean, std = torch.tensor([0.5, -1.0], dtype=D), 0.3
    x_t = torch.randn(5, 2, dtype=D, generator=generator())
    a, s = ALPHA[:, None], SIGMA[:, None]
    expected = mean + a * std**2 / (a**2 * std**2 + s**2) * (x_t - a * mean)
    actual = gaussian(mean, std).denoiser(x_t, ALPHA, SIGMA)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_zero_stds_give_the_denoiser_of_an_empirical_set():
    points = torch.randn(7, 2, dtype=D, generator=generator())
    mixture = Mixture(torch.ones(7), points, torch.zeros(7))
    x_t = noisy(mixture)
    distance = (x_t[:, None] - ALPHA[:, None, None] * points).square().sum(2)
    weight = (-distance / (2 * SIGMA[:, None] ** 2)).softmax(1)
    torch.testing.assert_close(mixture.denoiser(x_t, ALPHA, SIGMA), weight @ points)


def test_far_away_nothing_overflows_and_the_nearest_mode_wins():
    mixture = two_modes()
    x_t = torch.tensor([[300.0, 300.0], [-300.0, -300.0]])
    one, sigma = torch.ones(2), torch.full((2,), 1e-3)
    assert mixture.denoiser(x_t, one, sigma).isfinite().all()
    expected = (mixture.means.flip(0) - x_t) / (0.14**2 + 1e-6)
    torch.testing.assert_close(mixture.score(x_t, one, sigma), expected.float(), rtol=1e-6, atol=0)


def test_without_noise_the_denoiser_returns_its_input():
    x = PLANE.sample(4, generator())
    torch.testing.assert_close(PLANE.denoiser(x, torch.ones(4), torch.zeros(4)), x)


def test_precision_follows_the_input():
    x_t = torch.zeros(5, 2)
    assert PLANE.denoiser(x_t, ALPHA, SIGMA).dtype == torch.float32
    assert PLANE.score(x_t.double(), ALPHA, SIGMA).dtype == D


@pytest.mark.parametrize("mixture", [LINE, PLANE])
def test_samples_have_the_moments(mixture):
    n = 200_000
    x = mixture.sample(n, generator())
    mean, cov = mixture.moments()
    # Five standard errors of a mean with variance below 1, and of a second moment.
    torch.testing.assert_close(x.double().mean(0), mean, rtol=0, atol=5 / math.sqrt(n))
    torch.testing.assert_close(x.double().T.cov().reshape(cov.shape), cov, rtol=0, atol=0.011)
    assert torch.equal(x, mixture.sample(n, generator()))


@pytest.mark.parametrize(
    ("weights", "means", "stds", "message"),
    [
        (torch.ones(2), torch.zeros(3, 1), torch.ones(2), r"\(3, 1\)"),
        (torch.ones(2), torch.zeros(2), torch.ones(2), "expected"),
        (torch.ones(2), torch.zeros(2, 1), torch.ones(3), r"\(3,\)"),
        (torch.ones(2, 1), torch.zeros(2, 1), torch.ones(2), r"\(2, 1\)"),
        (torch.tensor([1.0, 0.0]), torch.zeros(2, 1), torch.ones(2), "weights above 0"),
        (torch.ones(2), torch.zeros(2, 1), torch.tensor([0.1, -0.1]), "at least 0"),
        (torch.ones(2), torch.full((2, 1), torch.nan), torch.ones(2), "finite"),
    ],
)
def test_impossible_mixtures_are_refused(weights, means, stds, message):
    with pytest.raises(UsageError, match=message):
        Mixture(weights, means, stds)


@pytest.mark.parametrize("name", SAMPLERS)
def test_toys_are_centred_scaled_and_seeded(name):
    data = toy(name, 20_000)
    assert (len(data), data.labels, data.image) == (20_000, 0, False)
    assert data.shape == ((1,) if name.endswith("1d") else (2,))
    x = data.batch(np.arange(20_000)).x0
    assert x.mean(0).abs().max() < 0.2
    assert (x.square().mean().sqrt() - 0.5).abs() < 0.03
    again, other = toy(name, 5, seed=1), toy(name, 5, seed=2)
    assert torch.equal(again.batch([0, 4]).x0, toy(name, 5, seed=1).batch([0, 4]).x0)
    assert not torch.equal(again.batch([0, 4]).x0, other.batch([0, 4]).x0)


def test_checkerboard_fills_every_other_square():
    data = toy("checkerboard", 8000)
    square = (data.batch(np.arange(8000)).x0 * 2 / math.sqrt(3) * 2 + 2).floor().long()
    filled, count = square.unique(dim=0, return_counts=True)
    assert sorted(map(tuple, filled.tolist())) == [
        (i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0
    ]
    assert (count - 1000).abs().max() < 150  # five standard deviations


def test_an_unknown_toy_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean checkerboard"):
        toy("checkerbord")
    with pytest.raises(UsageError, match="moons"):
        toy("zzz")
    with pytest.raises(UsageError, match="at least 1"):
        toy("moons", 0)
    assert len(toy("two_modes", 3)) == 3
