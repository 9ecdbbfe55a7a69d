"""ADM's crop at the sizes where its steps begin and end."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fewstep.data.decoding import square

BOX, BICUBIC = Image.Resampling.BOX, Image.Resampling.BICUBIC


def picture(width: int, height: int) -> Image.Image:
    x = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(x)


# Sizes, those after each halving, and the last one by the other filter.
@pytest.mark.parametrize(
    ("size", "halved", "last"),
    [
        ((8, 8), [(4, 4)], (4, 4)),
        ((12, 8), [(6, 4)], (6, 4)),
        ((8, 12), [(4, 6)], (4, 6)),
        ((16, 22), [(8, 11), (4, 5)], (4, 5)),
        ((7, 9), [], (4, 5)),
        ((9, 18), [(4, 9)], (4, 9)),
        ((3, 4), [], (4, 5)),
        ((4, 4), [], (4, 4)),
    ],
    ids=str,
)
def test_a_side_of_exactly_twice_the_resolution_is_halved(size, halved, last):
    image = picture(*size)
    expected = image
    for smaller in halved:
        expected = expected.resize(smaller, BOX)
    expected = expected.resize(last, BICUBIC)
    left, top = (last[0] - 4) // 2, (last[1] - 4) // 2
    wanted = np.asarray(expected)[top : top + 4, left : left + 4]
    found = square(image, "a.png", 3, 4, "adm")
    np.testing.assert_array_equal(found, wanted.transpose(2, 0, 1))


def test_the_filters_of_a_last_halving_differ():
    """Or the test above says nothing."""
    image = picture(8, 8)
    one, other = (np.asarray(image.resize((4, 4), filter)) for filter in (BOX, BICUBIC))
    assert (one != other).any()
