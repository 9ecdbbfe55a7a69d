"""What is known of a picture: bases are orthogonal, kept coefficients are kept."""

from __future__ import annotations

import pytest
import torch

from fewstep.editing import Linear, colourise, deblur, enlarged, inpaint, upscale
from fewstep.editing.operators import LUMINANCE, first_column
from fewstep.errors import UsageError
from oracles import normal

X, Y = normal(2, 3, 8, 8, seed=1), normal(2, 3, 8, 8, seed=2)
HALF = torch.arange(8) < 4
EACH = {
    "inpaint": inpaint(HALF.expand(8, 8)),
    "colourise": colourise(),
    "upscale2": upscale(2),
    "upscale4": upscale(4),
    "upscale8": upscale(8),
}


@pytest.mark.parametrize("operator", EACH.values(), ids=EACH)
def test_bases_are_orthogonal(operator):
    a, b = operator.forward(X), operator.forward(Y)
    assert (operator.inverse(a) - X).abs().max() < 1e-12
    assert abs((a * b).sum() - (X * Y).sum()) < 1e-12 * X.numel()


@pytest.mark.parametrize("operator", EACH.values(), ids=EACH)
def test_known_coefficients_are_the_references_and_unknown_ones_are_the_pictures(operator):
    out = operator.forward(operator.replace(X, Y))
    unknown = operator.unknown.expand_as(out)
    assert (out - operator.forward(Y))[~unknown].abs().max() < 1e-12
    assert (out - operator.forward(X))[unknown].abs().max() < 1e-12
    assert operator.residual(operator.replace(X, Y), Y).abs().max() < 1e-12
    assert operator.residual(X, Y).abs().max() > 0.1
    # What the reference says of unknown coefficients is never read.
    other = operator.replace(Y + X - operator.replace(X, Y), Y)
    assert (operator.start(other) - operator.start(Y)).abs().max() < 1e-12


def test_known_pixels_stay_equal_to_the_bit():
    y = Y.float()
    out = EACH["inpaint"].replace(X, y.double()).float()
    assert torch.equal(out[..., 4:], y[..., 4:])
    assert torch.equal(out[..., :4], X.float()[..., :4])


def test_the_luminance_and_the_means_of_patches_are_what_is_kept():
    grey = torch.einsum("bchw,c->bhw", Y, torch.tensor(LUMINANCE, dtype=torch.float64))
    out = torch.einsum(
        "bchw,c->bhw", colourise().replace(X, Y), torch.tensor(LUMINANCE, dtype=torch.float64)
    )
    assert (out - grey).abs().max() < 1e-12
    small = torch.nn.functional.avg_pool2d(Y, 4)
    kept = torch.nn.functional.avg_pool2d(upscale(4).replace(X, enlarged(small, 4)), 4)
    assert (kept - small).abs().max() < 1e-12


def test_the_first_column_is_the_direction_with_a_positive_sum():
    q = first_column([-3.0, -4.0])
    assert (q.T @ q - torch.eye(2, dtype=torch.float64)).abs().max() < 1e-15
    assert q[:, 0].tolist() == pytest.approx([0.6, 0.8])


def test_a_blur_keeps_what_it_does_not_lose():
    operator = deblur(1.0, (8, 8), 0.1)
    y = operator.forward(Y)
    out = operator.replace(X, y)
    assert operator.residual(out, y).abs().max() < 1e-12
    # A A+ A = A, and the mean of a picture is never lost.
    assert (operator.forward(operator.pinv(y)) - y).abs().max() < 1e-12
    assert (out.mean((2, 3)) - Y.mean((2, 3))).abs().max() < 1e-12
    # A blur of a point is a Gaussian of that width.
    point = torch.zeros(1, 1, 65, 65, dtype=torch.float64)
    point[..., 32, 32] = 1.0
    spread = deblur(3.0, (65, 65), 1e-9).forward(point)[0, 0]
    place = torch.arange(65.0, dtype=torch.float64) - 32
    assert float((spread.sum(0) * place**2).sum()) == pytest.approx(9.0, rel=1e-3)
    # Where the smallest share is large, noise of the measurement hardly grows.
    noise = normal(1, 1, 8, 8, seed=3)
    assert deblur(1.0, (8, 8), 0.5).pinv(noise).norm() <= 2 * noise.norm()


def test_a_pair_of_functions_is_an_operator():
    a = normal(5, 12, seed=4)
    inverse = torch.linalg.pinv(a)
    own = Linear(
        "mine",
        lambda x: x.flatten(1) @ a.T,
        lambda y: (y @ inverse.T).reshape(-1, 3, 2, 2),
    )
    x = normal(2, 3, 2, 2, seed=5)
    y = normal(2, 5, seed=6)
    out = own.replace(x, y)
    assert own.residual(out, y).abs().max() < 1e-12
    assert (out - x).norm() <= (own.start(y) - x).norm()


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: inpaint(torch.full((8, 8), 0.5)), "64 of its values are neither"),
        (lambda: upscale(1), "from 2"),
        (lambda: upscale(3).replace(X, Y), "multiples of 3, got 8 x 8"),
        (lambda: colourise().start(X[:, :1]), "three channels"),
        (lambda: deblur(0.0, (8, 8)), "above 0 pixels"),
        (lambda: deblur(1.0, (8, 8), 1.0), "in (0, 1)"),
    ],
)
def test_what_cannot_be_known_is_refused(act, words):
    with pytest.raises(UsageError) as caught:
        act()
    assert words in str(caught.value)
