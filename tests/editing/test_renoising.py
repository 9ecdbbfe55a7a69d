"""Strokes, variations, denoising and interpolation on models whose answers are closed forms."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from gaussians import correlated, gaussian_model

import fewstep
from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.editing import denoise, estimated_noise, interpolate, level, slerp, strokes, vary
from fewstep.errors import UsageError
from fewstep.model import Model
from fewstep.paths import Linear, VarianceExploding, VariancePreserving
from oracles import Gaussian, GaussianConsistency, GaussianDenoiser, normal

DATA = Gaussian(0.3, 0.4)


def pictures(path=VarianceExploding(), kind: str = "renoise", **sampling) -> Model:  # noqa: B008
    """A model of independent Gaussian pixels."""
    denoiser = (GaussianDenoiser if kind == "ode" else GaussianConsistency)(path, DATA)
    given = {"any_times": True, **sampling}
    start = Sampling(start=Start(t=path.t_max, std=path.start_std()), kind=kind, **given)
    spec = DataSpec(shape=(1, 8, 8), range=(-9.0, 9.0))
    return Model(denoiser, Contract(method="exact", data=spec, sampling=start))


X = DATA.mean + DATA.std * normal(400, 1, 8, 8, seed=1)
PATHS = [VarianceExploding(), VariancePreserving(), Linear()]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_a_diffusion_models_denoising_has_the_least_error(path):
    sigma = 0.5
    noisy = X + sigma * normal(*X.shape, seed=2)
    best = DATA.std**2 * sigma**2 / (DATA.std**2 + sigma**2)
    out = denoise(pictures(path, "ode"), noisy, sigma=sigma)
    assert float((out - X).square().mean()) == pytest.approx(best, rel=0.02)
    # A consistency model draws a clean picture instead: right in law, with a larger error.
    drawn = denoise(pictures(path), noisy, sigma=sigma)
    assert float(drawn.std()) == pytest.approx(DATA.std, rel=0.01)
    assert float((drawn - X).square().mean()) > 1.05 * best


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_noise_is_estimated_from_the_finest_details(sigma):
    ramp = torch.linspace(-1, 1, 64, dtype=torch.float64).expand(3, 1, 64, 64)
    noisy = ramp + sigma * normal(3, 1, 64, 64, seed=3)
    assert estimated_noise(noisy).tolist() == pytest.approx([sigma] * 3, rel=0.05)
    assert float(estimated_noise(ramp).max()) < 1e-9
    # Half of the picture is flat, as a background that was limited to the range.
    noisy[..., :32] = -1.0
    assert estimated_noise(noisy).tolist() == pytest.approx([sigma] * 3, rel=0.15)


def test_denoising_estimates_the_level_itself():
    noisy = X[:2] + 0.5 * normal(2, 1, 8, 8, seed=2)
    found = float(estimated_noise(noisy).max())
    model = pictures()
    assert torch.equal(denoise(model, noisy), denoise(model, noisy, sigma=found))
    flat = torch.full((1, 1, 8, 8), 0.5)
    assert torch.equal(denoise(model, flat), flat)


@pytest.mark.parametrize("kind", ["renoise", "ode"])
def test_variations_of_data_are_data_and_small_noise_changes_little(kind):
    model = pictures(kind=kind)
    near, far = (vary(model, X, sigma=sigma, seed=4) for sigma in (0.05, 5.0))
    for out in (near, far):
        assert float(out.mean()) == pytest.approx(DATA.mean, abs=0.01)
        # 18 DDIM steps of a diffusion model are not exact.
        assert float(out.std()) == pytest.approx(DATA.std, rel=0.1 if kind == "ode" else 0.02)
    assert float((near - X).std()) < 0.1
    assert float((far - X).std()) > 0.4


def test_a_variation_is_the_answer_to_the_picture_under_noise():
    model = pictures()
    out = vary(model, X[:2], sigma=2.0, seed=7)
    noise = model.noise([(7, 0), (7, 1)])(0).double()
    t = torch.full((2,), 2.0, dtype=torch.float64)
    assert torch.equal(out, model.denoiser(X[:2] + 2.0 * noise, t))


def test_strokes_are_two_calls_at_the_levels_of_the_paper_on_every_path():
    for path in PATHS:
        seen = []
        model = pictures(path)
        times = [level(model, sigma) for sigma in (5.38, 2.24)]
        out = strokes(model, X[:3], watch=lambda *k, seen=seen: seen.append(k))
        assert seen == [(1, 2), (2, 2)]
        assert torch.equal(out, strokes(model, X[:3], times=times))
    shifted = strokes(pictures(), X + 1.0, times=[5.38])
    gain = (DATA.std**2 / (DATA.std**2 + 5.38**2)) ** 0.5
    assert float(shifted.mean()) == pytest.approx(DATA.mean + gain, abs=0.02)


def test_a_model_of_certain_times_starts_at_one_of_these():
    model = pictures(any_times=False, times={2: (80.0, 3.0)})
    assert strokes(model, X[:1], times=[3.0]).shape == (1, 1, 8, 8)
    with pytest.raises(UsageError, match="made for the times 80, 3"):
        strokes(model, X[:1])


def test_slerp_keeps_the_norm_and_the_angle():
    a, b = normal(4, 4, seed=1), normal(4, 4, seed=2)
    b = b * a.norm() / b.norm()
    parts = [slerp(a, b, i / 4) for i in range(5)]
    assert all(float(p.norm()) == pytest.approx(float(a.norm())) for p in parts)
    steps = [float((p * q).sum()) for p, q in pairwise(parts)]
    assert steps == pytest.approx([steps[0]] * 4)
    assert (parts[0] - a).abs().max() < 1e-12
    assert (parts[-1] - b).abs().max() < 1e-12
    assert torch.equal(slerp(a, a, 0.3), a)


@pytest.mark.parametrize("name", ["digits-cd", "digits-edm"])
def test_the_ends_of_an_interpolation_are_the_samples_of_its_seeds(name):
    model = fewstep.load(name, device="cpu")
    x = interpolate(model, [3, 8, 5], frames=4, label=2, batch=3)
    assert x.shape == (7, 1, 8, 8)
    ends = model.sample(seeds=[3, 8, 5], label=2)
    assert (x[[0, 3, 6]] - ends).abs().max() < 1e-5
    assert (x[1] - x[0]).abs().max() > 0.01
    if name == "digits-cd":
        two = interpolate(model, [3, 8], frames=2, label=2, times=[80.0, 2.0])
        assert (two[0] - model.sample(seeds=[3], label=2, times=[80.0, 2.0])[0]).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: vary(pictures(), X, sigma=0.0), "above 0 and at most 80"),
        (lambda: vary(pictures(), X, sigma=81.0), "at most 80"),
        (lambda: vary(pictures(), X, steps=3), "others make one call"),
        (lambda: denoise(pictures(), X, sigma=-1.0), "above 0"),
        (lambda: strokes(pictures(), X, times=[1.0, 2.0]), "descend"),
        (lambda: strokes(pictures(kind="ode"), X, steps=0), "at least 1"),
        (lambda: strokes(pictures(), X, steps=2, times=[2.0]), "say the same"),
        (lambda: estimated_noise(X[..., :3]), "from 4 x 4"),
        (lambda: interpolate(pictures(), [1]), "at least 2 seeds"),
        (lambda: interpolate(pictures(), [1, 2], frames=1), "2 frames"),
    ],
)
def test_what_cannot_be_noised_is_refused(act, words):
    with pytest.raises(UsageError) as caught:
        act()
    assert words in str(caught.value)


def test_points_can_be_varied_too():
    assert vary(gaussian_model(correlated(), (2,)), torch.zeros(3, 2)).shape == (3, 2)
