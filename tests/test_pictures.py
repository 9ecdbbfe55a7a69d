"""Pictures of samples of every shape, or none."""

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.evaluation import write_metrics
from fewstep.evaluation.pictures import drawable, lines, picture, rows


@pytest.mark.parametrize(
    ("shape", "there"),
    [
        ((1,), True),
        ((2,), True),
        ((3,), False),
        ((1, 8), True),
        ((7, 16), True),
        ((2, 1), True),
        ((1, 8, 8), True),
        ((3, 8, 4), True),
        ((4, 8, 8), False),
        ((1, 4, 4, 4), False),
    ],
)
@pytest.mark.parametrize("n", [1, 5])
def test_every_shape_has_a_picture_or_none(tmp_path, shape, there, n):
    path = tmp_path / "x.png"
    picture(torch.linspace(-1, 1, n * int(np.prod(shape))).reshape(n, *shape), path)
    assert drawable(shape) == there
    assert path.exists() == there


def test_lines_follow_the_values():
    x = torch.zeros(2, 1, 9)
    x[0] = torch.linspace(-1, 1, 9)
    x[1, 0, :4] = 1.0  # a short sequence, 0 behind its end
    found = np.asarray(lines(x, columns=2)).astype(int)
    first, second = found[:, :96], found[:, 100:]
    inked = [(part.sum(2) < 3 * 255) for part in (first, second)]
    heights = [int(inked[0][:, column].nonzero()[0].mean()) for column in (4, 48, 90)]
    assert heights == sorted(heights, reverse=True)
    assert inked[1].any(0).nonzero()[0].max() < 48
    assert inked[1].any(1).nonzero()[0].max() < 5


def test_constant_and_broken_values_are_drawn(tmp_path):
    for value in (0.0, 3.0, float("nan"), float("inf")):
        picture(torch.full((3, 2, 5), value), tmp_path / "x.png", 3)
        with Image.open(tmp_path / "x.png") as image:
            assert image.size == (3 * 100 - 4, 64)


def test_paths_may_be_strings(tmp_path):
    x = torch.zeros(2, 1, 8, 8)
    picture(x, f"{tmp_path}/new/x.png")
    rows([("zeros", x)], f"{tmp_path}/rows.png")
    write_metrics(f"{tmp_path}/m.json", {"floor": {"fd": 1.0}})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.json", "new", "rows.png"]
    assert (tmp_path / "new" / "x.png").is_file()
