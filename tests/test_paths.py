import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.core import UsageError, expand
from fewstep.paths import (
    CosineVariancePreserving,
    DiscreteVariancePreserving,
    Linear,
    Trig,
    VarianceExploding,
    VariancePreserving,
)
from oracles import PATHS_AT_REST, D, Gaussian, normal, path_id

# Examples depend on no clock and no file: the same ones at every run.
PROPERTY = settings(max_examples=25, deadline=None, derandomize=True, database=None)
EVENTS = [(1,), (3,), (2, 4, 4), (1, 2, 3, 4)]
# A sample of 1e-10 where the path divides by alpha or sigma of about 1e-2: 1e-14 would be luck.
CLOSE = {"rtol": 1e-10, "atol": 1e-10}

each_path = pytest.mark.parametrize("path", PATHS_AT_REST, ids=path_id)


def times(path, u) -> torch.Tensor:
    """Inside the range, more of them near data."""
    return path.t_min + torch.as_tensor(u, dtype=D) ** 2 * (path.t_max - path.t_min)


def some_times(path, n: int = 9) -> torch.Tensor:
    return times(path, torch.linspace(0.06, 0.97, n, dtype=D))


parts = st.floats(0.05, 0.95)
problems = st.tuples(
    st.sampled_from(EVENTS), st.lists(parts, min_size=1, max_size=3), st.integers(0, 99)
)


def problem(path, drawn):
    event, u, seed = drawn
    t = times(path, u)
    x0, noise = normal(2, len(u), *event, seed=seed)
    return x0, noise, t


CLOSED_FORMS = {
    VarianceExploding: lambda t: (1.0, t),
    VariancePreserving: lambda t: (
        math.exp(-(0.25 * 19.9 * t * t + 0.05 * t)),
        math.sqrt(1 - math.exp(-(0.5 * 19.9 * t * t + 0.1 * t))),
    ),
    CosineVariancePreserving: lambda t: (math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)),
    Linear: lambda t: (1 - t, t),
    Trig: lambda t: (math.cos(t), 0.5 * math.sin(t)),
}


@pytest.mark.parametrize("kind", CLOSED_FORMS)
def test_coefficients_are_the_closed_forms(kind):
    path = kind()
    t = some_times(path)
    alpha, sigma, _, _ = path.coefficients(t)
    wanted = torch.tensor([CLOSED_FORMS[kind](float(v)) for v in t], dtype=D)
    torch.testing.assert_close(torch.stack([alpha, sigma], 1), wanted, rtol=1e-12, atol=0)


@each_path
def test_derivatives_equal_autodiff(path):
    t = some_times(path, 40).requires_grad_()
    alpha, sigma, d_alpha, d_sigma = path.coefficients(t)
    for value, given_slope in ((alpha, d_alpha), (sigma, d_sigma)):
        found = torch.zeros_like(t)
        if value.requires_grad:
            (found,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        torch.testing.assert_close(given_slope, found, **CLOSE)


@each_path
@PROPERTY
@given(drawn=problems)
def test_conversions_round_trip(path, drawn):
    x0, noise, t = problem(path, drawn)
    x_t = path.perturb(x0, noise, t)
    for word in ("noise", "score", "v", "velocity"):
        answer = getattr(path, word)(x_t, x0, t)
        back = getattr(path, f"x0_from_{word}")(x_t, answer, t)
        torch.testing.assert_close(back, x0, **CLOSE)


@each_path
@PROPERTY
@given(drawn=problems)
def test_conversions_mean_what_they_say(path, drawn):
    x0, noise, t = problem(path, drawn)
    x_t = path.perturb(x0, noise, t)
    alpha, sigma = (expand(c, x0) for c in path.coefficients(t)[:2])
    torch.testing.assert_close(path.noise(x_t, x0, t), noise, **CLOSE)
    torch.testing.assert_close(path.score(x_t, x0, t), -noise / sigma, **CLOSE)
    torch.testing.assert_close(path.v(x_t, x0, t), alpha * noise - sigma * x0, **CLOSE)
    _, along = torch.autograd.functional.jvp(
        lambda t: path.perturb(x0, noise, t), t, torch.ones_like(t)
    )
    torch.testing.assert_close(path.velocity(x_t, x0, t), along, **CLOSE)


@each_path
@PROPERTY
@given(drawn=problems, u=parts, w=parts)
def test_transport_is_a_semigroup_that_keeps_the_noise(path, drawn, u, w):
    x0, noise, t = problem(path, drawn)
    x_t = path.perturb(x0, noise, t)
    s, r = (times(path, [v] * len(t)) for v in (u, w))
    there = path.transport(x_t, x0, t, s)
    torch.testing.assert_close(there, path.perturb(x0, noise, s), **CLOSE)
    torch.testing.assert_close(
        path.transport(there, x0, s, r), path.transport(x_t, x0, t, r), **CLOSE
    )
    torch.testing.assert_close(path.transport(x_t, x0, t, t), x_t, rtol=0, atol=1e-13)


@each_path
def test_time_inverts_ratio(path):
    t = some_times(path, 50)
    ratio = path.ratio(t)
    torch.testing.assert_close(path.time(ratio), t, **CLOSE)
    alpha, sigma, _, _ = path.coefficients(t)
    torch.testing.assert_close(ratio, sigma / alpha, rtol=1e-14, atol=0)
    torch.testing.assert_close(path.snr(t), (alpha / sigma) ** 2, rtol=1e-12, atol=0)
    torch.testing.assert_close(path.logsnr(t), 2 * (alpha / sigma).log(), **CLOSE)
    assert (path.logsnr(t).diff() < 0).all()


def test_ends_of_the_flow_path():
    path, ends = Linear(), torch.tensor([0.0, 1.0], dtype=D)
    assert path.ratio(ends).tolist() == [0, math.inf]
    assert path.time(path.ratio(ends)).tolist() == [0, 1]


# t_min so high that noising a sample at t_min as if it were clean would show.
NOISY_ENDS = [
    VarianceExploding(0.1, 80.0),
    VariancePreserving(0.1, 1.0),
    CosineVariancePreserving(0.1, 0.99),
    DiscreteVariancePreserving(100.0),
    Linear(0.1, 1.0),
    Trig(0.1),
]


@pytest.mark.parametrize("path", NOISY_ENDS, ids=path_id)
def test_renoising_leaves_the_law_invariant(path):
    data = Gaussian(0.3, 0.7)
    u = torch.linspace(0, 1, 7, dtype=D)
    t = path.t_min + u**4 * (path.t_max - path.t_min)
    zero, one = torch.zeros(7, 1, dtype=D), torch.ones(7, 1, dtype=D)
    scale, std = path.renoise(one, zero, t)[:, 0], path.renoise(zero, one, t)[:, 0]
    first = t[:1].expand(7)
    kept = scale**2 * data.variance(path, first)
    torch.testing.assert_close(kept + std**2, data.variance(path, t), rtol=1e-12, atol=1e-15)
    alpha, sigma, _, _ = path.coefficients(t)
    mean = scale * path.coefficients(first).alpha * data.mean
    torch.testing.assert_close(mean, alpha * data.mean, rtol=1e-12, atol=1e-15)
    assert float((kept + sigma**2)[1]) > 1.005 * float(data.variance(path, t)[1])
    torch.testing.assert_close(std[0], torch.zeros((), dtype=D))


def test_renoising_on_ve_adds_the_missing_variance():
    path = VarianceExploding(0.1, 80.0)
    one = torch.ones(1, 1, dtype=D)
    x = path.renoise(one, 2 * one, torch.tensor([0.5], dtype=D))
    assert float(x) == pytest.approx(1 + 2 * math.sqrt(0.5**2 - 0.1**2), abs=1e-14)


@pytest.mark.parametrize("kind", [type(p) for p in PATHS_AT_REST])
@pytest.mark.parametrize(
    ("t_min", "t_max"), [(-0.1, 1.0), (0.5, 0.5), (0.7, 0.2), (math.nan, 1.0), (0.1, math.nan)]
)
def test_impossible_ranges_are_refused(kind, t_min, t_max):
    with pytest.raises(UsageError, match="0 <= t_min < t_max"):
        kind(t_min, t_max)


@pytest.mark.parametrize(
    "wrong", [{"t_max": 1000.0}, {"beta_start": 0.0}, {"beta_start": 0.02}, {"beta_end": 1.0}]
)
def test_impossible_tables_are_refused(wrong):
    with pytest.raises(UsageError, match="beta_start"):
        DiscreteVariancePreserving(**wrong)


# Stable Diffusion's alpha and sigma, to the digits of diffusers' table.
STABLE_DIFFUSION = {
    20: (0.9906, 0.1367),
    249: (0.8218, 0.5697),
    399: (0.6528, 0.7576),
    499: (0.5269, 0.8499),
    749: (0.2380, 0.9713),
    980: (0.0764, 0.9971),
    999: (0.0683, 0.9977),
}


def test_stable_diffusion_table():
    t = torch.tensor([*STABLE_DIFFUSION], dtype=D)
    alpha, sigma, _, _ = DiscreteVariancePreserving().coefficients(t)
    wanted = torch.tensor([*STABLE_DIFFUSION.values()], dtype=D)
    torch.testing.assert_close(torch.stack([alpha, sigma], 1), wanted, rtol=0, atol=5.1e-5)


@pytest.mark.parametrize(
    ("path", "betas"),
    [
        (
            DiscreteVariancePreserving(),
            np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2,
        ),
        (
            DiscreteVariancePreserving(beta_start=1e-4, beta_end=0.02, scaled_linear=False),
            np.linspace(1e-4, 0.02, 1000),
        ),
    ],
)
def test_discrete_tables_are_cumulative_products(path, betas):
    bar = torch.from_numpy(np.cumprod(1 - betas))
    alpha, sigma, _, _ = path.coefficients(torch.arange(1000, dtype=D))
    torch.testing.assert_close(alpha, bar.sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close(sigma, (1 - bar).sqrt(), rtol=1e-9, atol=0)
    # Between two entries, the middle of their log ratios.
    halves = path.logsnr(torch.tensor([20.0, 20.5, 21.0], dtype=D))
    assert float(halves[1]) == pytest.approx(float(halves[0] + halves[2]) / 2, abs=1e-10)


@pytest.mark.parametrize("sigma", [0.02, 0.5, 1.3, 40.0])
def test_conversions_between_paths(sigma):
    x0, noise = normal(2, 1, 5)
    level = torch.tensor([sigma], dtype=D)
    x_edm = VarianceExploding().perturb(x0, noise, level)
    flow, trig, vp = Linear(), Trig(sigma_data=0.5), VariancePreserving()
    assert float(flow.time(level)) == pytest.approx(sigma / (1 + sigma), rel=1e-14)
    angle = math.atan(sigma / 0.5)
    assert float(trig.time(level)) == pytest.approx(angle, rel=1e-14)
    torch.testing.assert_close(flow.perturb(x0, noise, flow.time(level)), x_edm / (1 + sigma))
    x_trig = trig.perturb(x0, noise, trig.time(level))
    torch.testing.assert_close(x_trig, x_edm * math.cos(angle))
    torch.testing.assert_close(x_trig, x_edm * 0.5 / math.hypot(0.5, sigma))
    x_vp = vp.perturb(x0, noise, vp.time(level))
    torch.testing.assert_close(x_vp, x_edm / math.hypot(1, sigma))


@pytest.mark.parametrize(
    ("path", "plain", "with_data"),
    [
        (VarianceExploding(), 80.0, math.hypot(80, 0.5)),
        (Linear(), 1.0, 1.0),
        (Trig(sigma_data=0.5), 0.5, 0.5),
        (DiscreteVariancePreserving(), 0.99767, math.hypot(0.99767, 0.0683 * 0.5)),
    ],
)
def test_standard_deviation_of_the_start(path, plain, with_data):
    assert path.start_std() == pytest.approx(plain, rel=1e-5)
    assert path.start_std(0.5) == pytest.approx(with_data, rel=1e-5)
