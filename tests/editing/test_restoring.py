"""Algorithm 4 on models whose answers are closed forms."""

from __future__ import annotations

import pytest
import torch

from fewstep import editing
from fewstep.editing import colourise, deblur, inpaint, optimise, restore, upscale
from fewstep.editing.loops import noised, replacement
from fewstep.errors import UsageError
from fewstep.noise import SampleNoise
from fewstep.paths import Linear, Trig, VarianceExploding, VariancePreserving
from fewstep.solvers import stochastic_ddim
from fewstep.times import karras
from gaussians import correlated, gaussian_model
from oracles import Gaussian, GaussianDenoiser, normal

MISSING_SECOND = inpaint(torch.tensor([False, True]))
KNOWN = torch.tensor([[0.6, 0.0]], dtype=torch.float64)


def field(side: int = 8, channels: int = 3) -> torch.Tensor:
    """The covariance of smooth pictures of that size."""
    place = torch.arange(side, dtype=torch.float64)
    line = torch.exp(-((place[:, None] - place) ** 2) / 8)
    colours = 0.2 * torch.eye(channels, dtype=torch.float64) + 0.8
    return 0.25 * torch.kron(colours, torch.kron(line, line))


PICTURES = gaussian_model(field(), (3, 8, 8), range=(-3.0, 3.0))
Y = normal(4, 3, 8, 8, seed=2) / 2
EACH = [
    inpaint(torch.arange(8).expand(8, 8) < 4),
    colourise(),
    upscale(4),
    deblur(1.0, (8, 8)),
]


@pytest.mark.parametrize("path", [VarianceExploding(), VariancePreserving()])
def test_where_nothing_is_known_a_diffusion_model_is_sampled_by_ddim(path):
    denoiser, eta = GaussianDenoiser(path, Gaussian(0.3, 0.4)), 0.6
    times = path.time(torch.tensor([20.0, 3.0, 0.4], dtype=torch.float64))
    x = normal(5, 2) * path.coefficients(times[:1]).sigma

    def noise(i: int) -> torch.Tensor:
        return normal(5, 2, seed=i + 1)

    ours = replacement(denoiser, x, times.tolist(), noise, eta=eta)
    last = stochastic_ddim(denoiser, x, times, noise, eta=eta)
    torch.testing.assert_close(ours, denoiser(last, times[-1:].expand(5)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("steps", "mean", "variance"),
    [
        (2, 0.003, 0.250),
        (5, 0.138, 0.184),
        (10, 0.246, 0.139),
        (40, 0.425, 0.074),
        (160, 0.509, 0.054),
    ],
)
def test_the_bias_of_few_calls_falls_as_published(steps, mean, variance):
    """Data of deviation 0.5 and correlation 0.9; the posterior is N(0.540, 0.0475)."""
    n = 6_000
    model = gaussian_model(correlated(), (2,))
    times = karras(steps, 0.002, 80.0).tolist()
    out = restore(model, MISSING_SECOND, KNOWN, times=times, n=n, batch=n, seed=steps)
    assert torch.equal(out[:, 0], KNOWN[:, 0].expand(n))
    assert float(out[:, 1].mean()) == pytest.approx(mean, abs=4 * (variance / n) ** 0.5 + 0.0006)
    assert float(out[:, 1].var()) == pytest.approx(variance, rel=0.08)


def test_a_search_of_noise_finds_the_posterior_if_it_may_run_long():
    n = 2_000
    model = gaussian_model(correlated(), (2,))
    asked = {"steps": 200, "sigma": 0.1, "rate": 0.1}
    out = optimise(model, MISSING_SECOND, KNOWN, n=n, batch=n, **asked)
    assert torch.equal(out[:, 0], KNOWN[:, 0].expand(n))
    assert float(out[:, 1].mean()) == pytest.approx(0.540, abs=0.02)
    assert float(out[:, 1].var()) == pytest.approx(0.0475, rel=0.12)


@pytest.mark.parametrize("operator", EACH, ids=lambda o: o.name)
def test_results_agree_with_what_is_known(operator):
    y = operator.forward(Y) if isinstance(operator, editing.Linear) else Y
    out = restore(PICTURES, operator, y, steps=5)
    assert out.dtype == y.dtype
    assert operator.residual(out, y).abs().max() < 1e-12
    best = optimise(PICTURES, operator, y, steps=5)
    assert operator.residual(best, y).abs().max() < 1e-12


def test_known_pixels_are_equal_to_the_bit_in_single_precision():
    y, operator = Y.float(), EACH[0]
    for out in (restore(PICTURES, operator, y, steps=3), optimise(PICTURES, operator, y, steps=3)):
        assert out.dtype == torch.float32
        assert torch.equal(out[..., 4:], y[..., 4:])
        assert not torch.equal(out[..., :4], y[..., :4])


def test_all_known_returns_the_reference_and_all_missing_is_one_call():
    everything = inpaint(torch.zeros(8, 8))
    assert torch.equal(restore(PICTURES, everything, Y, steps=3), Y)
    nothing, t = inpaint(torch.ones(8, 8)), 80.0
    out = restore(PICTURES, nothing, Y, times=[t], seed=3)
    noise = SampleNoise([(3, i) for i in range(4)], (3, 8, 8))(0).double()
    full = torch.full((4,), t, dtype=torch.float64)
    expected = PICTURES.denoiser(t * noise, full).clamp(-3, 3)
    assert torch.equal(out, expected)


def test_answers_are_limited_before_what_is_known_is_put_back():
    narrow = gaussian_model(9 * field(), (3, 8, 8), range=(-1.0, 1.0))
    out = restore(narrow, EACH[0], 4 * Y, steps=3)
    assert torch.equal(out[..., 4:], 4 * Y[..., 4:])
    assert out[..., :4].abs().max() == 1.0


def test_results_depend_on_their_seeds_alone():
    whole = restore(PICTURES, EACH[1], Y, steps=4, seed=5)
    parts = restore(PICTURES, EACH[1], Y, steps=4, seed=5, batch=3)
    last = restore(PICTURES, EACH[1], Y[3:], steps=4, seed=5, first=3)
    assert (whole - parts).abs().max() < 1e-12
    assert (whole[3:] - last).abs().max() < 1e-12
    several = restore(PICTURES, EACH[1], Y[:1], steps=4, n=3)
    assert (several[0] - several[1]).abs().max() > 0.1
    own = restore(PICTURES, EACH[1], Y[:1], steps=4, seeds=[7, 7])
    assert torch.equal(own[0], own[1])
    searched = [optimise(PICTURES, EACH[1], Y, steps=4, batch=b) for b in (4, 1)]
    assert (searched[0] - searched[1]).abs().max() < 1e-12


def test_each_picture_may_have_a_mask_of_its_own():
    masks = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.5
    for act in (restore, optimise):
        out = act(PICTURES, inpaint(masks), Y, steps=3, batch=3)
        kept = ~masks.expand_as(Y)
        assert torch.equal(out[kept], Y[kept])


@pytest.mark.parametrize(
    "path", [VariancePreserving(), Linear(), Trig()], ids=lambda p: type(p).__name__
)
def test_on_other_paths_the_posterior_is_approached_as_well(path):
    n = 4_000
    model = gaussian_model(correlated(), (2,), path)
    few, many = (restore(model, MISSING_SECOND, KNOWN, steps=k, n=n, batch=n) for k in (3, 120))
    assert abs(float(many[:, 1].mean()) - 0.54) < 0.08
    assert float(few[:, 1].mean()) < float(many[:, 1].mean()) - 0.1
    assert float(many[:, 1].var()) < 0.08


def test_a_diffusion_model_edits_by_steps_with_some_fresh_noise():
    n = 4_000
    model = gaussian_model(correlated(), (2,), kind="ode")
    out = restore(model, MISSING_SECOND, KNOWN, steps=40, n=n, batch=n)
    assert torch.equal(out[:, 0], KNOWN[:, 0].expand(n))
    assert 0.3 < float(out[:, 1].mean()) < 0.6
    # Without fresh noise, everything follows from the start.
    still = restore(model, MISSING_SECOND, KNOWN, steps=4, eta=0.0)
    start = noised(model.denoiser.path, KNOWN, SampleNoise([(0, 0)], (2,))(0), 80.0)
    again = replacement(
        model.denoiser,
        start,
        model.times(4),
        lambda i: torch.zeros(1, 2, dtype=torch.float64),
        operator=MISSING_SECOND,
        y=KNOWN,
        eta=0.0,
    )
    assert torch.equal(still, again)


def test_every_call_is_counted():
    seen = []
    restore(PICTURES, EACH[0], Y, steps=3, batch=2, watch=lambda *k: seen.append(k))
    assert seen == [(1, 3), (2, 3), (3, 3)] * 2


def test_an_exception_of_the_watch_ends_an_edit():
    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        restore(PICTURES, EACH[0], Y, watch=stop)


POINTS = gaussian_model(correlated(), (2,))
TEACHER = gaussian_model(field(), (3, 8, 8), kind="ode")


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: restore(POINTS, colourise(), KNOWN), "three channels"),
        (lambda: restore(PICTURES, EACH[0], Y[:2], n=3), "got 2 pictures for 3 results"),
        (lambda: restore(PICTURES, EACH[0], Y, times=[1.0, 2.0]), "must descend"),
        (lambda: restore(PICTURES, EACH[0], Y, times=[100.0]), "at most 80"),
        (lambda: restore(PICTURES, EACH[0], Y, steps=0), "at least 1"),
        (lambda: restore(PICTURES, EACH[0], Y, eta=0.5), "belongs to diffusion models"),
        (lambda: restore(PICTURES, EACH[0], Y * torch.nan), "not finite"),
        (lambda: restore(PICTURES, EACH[0], Y, batch=0), "at least 1"),
        (lambda: restore(PICTURES, EACH[0], Y, label=3), "no labels"),
        (lambda: restore(PICTURES, inpaint(torch.ones(4, 4)), Y[..., :4, :4]), "pad them first"),
        (lambda: restore(TEACHER, EACH[0], Y, eta=1.5), "in [0, 1]"),
        (lambda: optimise(TEACHER, EACH[0], Y), "few-step model"),
        (lambda: optimise(PICTURES, EACH[0], Y, sigma=0.0), "above 0"),
        (lambda: optimise(PICTURES, EACH[0], Y, times=[80.0, 2.0]), "one call at one time"),
    ],
)
def test_what_cannot_be_edited_is_refused(act, words):
    with pytest.raises(UsageError) as caught:
        act()
    assert words in str(caught.value)
