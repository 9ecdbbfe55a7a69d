from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.core import Batch, UsageError
from fewstep.data import Augment, EDMAugment, Flip
from fewstep.data.augment import SYM6, warp

N = 4000
EACH = [Flip(), EDMAugment(0.5)]
IDENTITY = np.eye(2, 3)


def images(b: int, h: int = 8, w: int = 8, seed: int = 0) -> Tensor:
    return torch.rand(b, 3, h, w, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def smooth(h: int, w: int) -> Tensor:
    """A picture without detail at the scale of a pixel: ``(1, h, w)``."""
    y, x = torch.meshgrid(
        torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2, indexing="ij"
    )
    return waves(x, y)[None]


def waves(x: Tensor, y: Tensor) -> Tensor:
    return torch.sin(0.35 * x + 0.2 * y) + 0.5 * torch.cos(0.3 * y - 0.1 * x)


def at(positions, seed: int = 0, augment: Augment = EDMAugment(0.5), **given) -> Batch:  # noqa: B008
    positions = np.array(positions)
    return augment(Batch(images(int(positions.max()) + 1)[positions], **given), positions, seed)


# Both.


@pytest.mark.parametrize("augment", EACH)
def test_a_sample_depends_on_seed_and_position_alone(augment):
    together = at(range(64), augment=augment)
    order = [40, 3, 17, 63]
    apart = at(order, augment=augment)
    assert apart.x0.equal(together.x0[order])
    for key, value in apart.cond.items():
        assert value.equal(together.cond[key][order])
    for seed, same in ((0, True), (1, False)):
        assert at(range(64), seed, augment).x0.equal(together.x0) == same
    shifted = augment(Batch(images(64)), np.arange(64) + 64, 0)
    assert not shifted.x0.equal(together.x0)


@pytest.mark.parametrize("augment", [Flip(0), EDMAugment(0)])
def test_probability_zero_changes_nothing(augment):
    batch = Batch(images(64), {"label": torch.arange(64)})
    after = augment(batch, np.arange(64), 0)
    assert after.x0.equal(batch.x0)
    assert after.cond["label"].equal(batch.cond["label"])
    if isinstance(augment, EDMAugment):
        assert after.cond["augment"].equal(torch.zeros(64, 9))


@pytest.mark.parametrize("augment", EACH)
def test_the_batch_given_is_left_alone(augment):
    batch = Batch(images(16), {"label": torch.arange(16)})
    after = augment(batch, np.arange(16), 0)
    assert batch.x0.equal(images(16))
    assert batch.cond.keys() == {"label"}
    assert after.cond["label"].equal(batch.cond["label"])
    assert after.x0.shape == batch.x0.shape
    assert after.x0.dtype == torch.float32


@pytest.mark.parametrize("kind", [Flip, EDMAugment])
@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_probabilities_lie_between_0_and_1(kind, p):
    with pytest.raises(UsageError, match=f"{kind.__name__}: p.*={p} is no probability"):
        kind(p)


@pytest.mark.parametrize("augment", EACH)
def test_what_cannot_be_augmented_is_explained(augment):
    good = Batch(images(4))
    name = type(augment).__name__
    for positions in (np.arange(3), np.arange(4.0), np.arange(4)[None]):
        with pytest.raises(UsageError, match=f"{name}: expected one position"):
            augment(good, positions, 0)
    for bad in (
        Batch(good.x0, mask=torch.ones(4, 1, 8, 8)),
        Batch(good.x0, aux={"latent": good.x0}),
        Batch(torch.zeros(4)),
    ):
        with pytest.raises(UsageError, match=f"{name}: only clean data"):
            augment(bad, np.arange(4), 0)
    paired = Batch(good.x0, aux={"pair_noise": good.x0, "pair_x": good.x0})
    if isinstance(augment, Flip):
        aux = augment(paired, np.arange(4), 0).aux
        assert aux.keys() == paired.aux.keys()
        assert all(aux[key] is value for key, value in paired.aux.items())
    else:
        with pytest.raises(
            UsageError, match=r"aux \['pair_noise', 'pair_x'\].*take Flip, or none$"
        ):
            augment(paired, np.arange(4), 0)
    with pytest.raises(UsageError, match="pictures"):
        EDMAugment()(Batch(torch.zeros(4, 3, 8)), np.arange(4), 0)


# Flips.


@pytest.mark.parametrize("p", [0.5, 0.2, 1.0])
def test_flips_mirror_the_last_axis_that_often(p):
    x0 = torch.randn(N, 2, 3, generator=torch.Generator().manual_seed(0))
    found = Flip(p)(Batch(x0), np.arange(N), 0).x0
    flipped = [bool(f.equal(x.flip(-1))) for f, x in zip(found, x0, strict=True)]
    kept = [bool(f.equal(x)) for f, x in zip(found, x0, strict=True)]
    assert sum(flipped) + sum(kept) == N
    assert np.mean(flipped) == pytest.approx(p, abs=0.03)
    assert Flip(p)(Batch(x0), np.arange(N), 0).cond == {}


# What EDM's pipe draws.


def drawn(p: float) -> np.ndarray:
    return EDMAugment(p)(Batch(torch.zeros(N, 1, 2, 2)), np.arange(N), 0).cond["augment"].numpy()


@pytest.mark.parametrize("p", [0.12, 0.5, 1.0])
def test_labels_follow_edm_s_laws(p):
    label = drawn(p)
    assert label.dtype == np.float32
    mirrored, down, scale, cos, sin, along, across, right, below = label.T
    assert set(mirrored) == set(down) == {0, 1}
    assert mirrored.mean() == pytest.approx(0.5, abs=0.03)
    assert down.mean() == pytest.approx(p / 2, abs=0.03)
    for one in (scale, cos, sin, along, right, below):
        assert (one != 0).mean() == pytest.approx(p, abs=0.03)
    assert ((right != 0) == (below != 0)).all()
    assert (across != 0).mean() == pytest.approx(p / 2, abs=0.03)
    stretch = np.hypot(along, across)
    for normal in (scale, right, below):
        used = normal[normal != 0]
        assert used.mean() == pytest.approx(0, abs=0.15)
        assert used.std() == pytest.approx(1, abs=0.1)
    assert np.sqrt((stretch[stretch != 0] ** 2).mean()) == pytest.approx(1, abs=0.1)
    turned = np.arctan2(sin, cos + 1)[sin != 0]
    assert np.hypot(sin, cos + 1) == pytest.approx(1, abs=1e-6)
    assert np.abs(turned).max() == pytest.approx(math.pi, abs=0.05)
    assert turned.std() == pytest.approx(math.pi / math.sqrt(3), abs=0.1)
    # Independent of each other: four are drawn together as often as chance has it.
    together = (scale != 0) & (sin != 0) & (stretch != 0) & (right != 0)
    assert together.mean() == pytest.approx(p**4, abs=0.03)


def test_zero_labels_mean_untouched_and_others_do_not():
    x0 = images(400)
    after = EDMAugment(0.12)(Batch(x0), np.arange(400), 0)
    label = after.cond["augment"]
    changed = (after.x0 != x0).flatten(1).any(1)
    assert changed.equal(label.ne(0).any(1))
    assert 0 < (~changed).sum() < 400
    # Flips alone move pixels and touch none.
    for mirrored, down in ((1, 0), (0, 1), (1, 1)):
        wanted = torch.tensor([mirrored, down, *[0] * 7])
        which = label.eq(wanted).all(1)
        assert which.any()
        axes = [3] * mirrored + [2] * down
        assert after.x0[which].equal(x0[which].flip(axes))


def inverse_of(label: np.ndarray, h: int, w: int, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """From where a pixel comes: the maps undone one by one, the last one first.

    The label does not tell w along an axis from -w along the opposite one: ``sign`` does.
    """
    _, _, scale, cos, sin, along, across, right, below = label.astype(np.float64)

    def turn(c: float, s: float) -> np.ndarray:
        return np.array([[c, -s], [s, c]])

    stretch = math.hypot(along, across)
    axis = turn(along / stretch, -across / stretch) if stretch else np.eye(2)
    stretching = (
        axis @ np.diag([2 ** (0.2 * sign * stretch), 2 ** (-0.2 * sign * stretch)]) @ axis.T
    )
    scaling = 2 ** (0.2 * scale) * np.eye(2)
    linear = np.linalg.inv(scaling) @ turn(cos + 1, sin) @ np.linalg.inv(stretching)
    return linear, -linear @ np.array([right * w / 8, below * h / 8])


def test_pictures_are_read_where_the_label_says():
    h, w = 24, 32
    x0 = smooth(h, w).expand(60, 1, h, w)
    after = EDMAugment(0.4)(Batch(x0), np.arange(60), 0)
    y, x = np.mgrid[:h, :w] - np.array([(h - 1) / 2, (w - 1) / 2])[:, None, None]
    checked = 0
    for image, label in zip(after.x0, after.cond["augment"].numpy(), strict=True):
        errors = []
        for sign in (1, -1):
            linear, offset = inverse_of(label, h, w, sign)
            x_from, y_from = np.tensordot(linear, np.stack([x, y]), 1) + offset[:, None, None]
            inside = (abs(x_from) < w / 2 - 4) & (abs(y_from) < h / 2 - 4)
            # The mirror images come first, so they are undone last.
            x_from, y_from = (1 - 2 * label[0]) * x_from, (1 - 2 * label[1]) * y_from
            error = abs(image[0] - waves(torch.tensor(x_from), torch.tensor(y_from))).numpy()
            errors.append(error[inside].max(initial=0))
        assert min(errors) < 0.1
        checked += label[2:].any() and max(errors) > 0
    assert checked > 30


# Resampling.


def moved(right: float, down: float) -> np.ndarray:
    return np.array([[1.0, 0, -right], [0, 1, -down]])


def test_the_filter_is_orthonormal_and_low_pass():
    taps = np.array(SYM6)
    assert taps.sum() == pytest.approx(math.sqrt(2), abs=1e-12)
    lags = [taps[2 * k :] @ taps[: len(taps) - 2 * k] for k in range(6)]
    assert lags == pytest.approx([1, 0, 0, 0, 0, 0], abs=1e-12)
    # Six vanishing moments.
    high = taps[::-1] * (-1) ** np.arange(12)
    assert [high @ np.arange(12.0) ** k for k in range(6)] == pytest.approx([0] * 6, abs=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (5, 12), (32, 24)])
def test_warping_by_the_identity_changes_nothing(size):
    x = images(1, *size)[0]
    torch.testing.assert_close(warp(x, IDENTITY), x, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 2), (-3, 1), (7, -7), (-5, -6)])
def test_whole_pixels_move_with_reflection_at_the_border(right, down):
    x = images(1, 8, 8)[0]
    padded = F.pad(x, (7, 7, 7, 7), mode="reflect")
    wanted = padded[:, 7 - down : 15 - down, 7 - right : 15 - right]
    found = warp(x, moved(right, down))
    # The filter has no neighbours beyond the reflection's own end.
    inner = (slice(None), slice(*trimmed(down)), slice(*trimmed(right)))
    torch.testing.assert_close(found[inner], wanted[inner], rtol=0, atol=2e-5)


def trimmed(shift: int) -> tuple[int, int]:
    reach = max(0, abs(shift) - 1)
    return (reach, 8) if shift > 0 else (0, 8 - reach)


@pytest.mark.parametrize(
    ("linear", "moves"),
    [
        ([[-1.0, 0], [0, 1]], lambda x: x.flip(2)),
        ([[1.0, 0], [0, -1]], lambda x: x.flip(1)),
        ([[0.0, 1], [-1, 0]], lambda x: x.rot90(-1, (1, 2))),
    ],
)
def test_mirrors_and_quarter_turns_move_smooth_pictures(linear, moves):
    x = smooth(16, 16)
    found, wanted = warp(x, np.column_stack([linear, [0, 0]])), moves(x)
    # Not to the bit, for the filter has a left and a right.
    torch.testing.assert_close(found[:, 3:-3, 3:-3], wanted[:, 3:-3, 3:-3], rtol=0, atol=0.05)


def test_constants_stay_constant_under_any_map_that_reflection_covers():
    x = torch.full((2, 9, 14), 0.6)
    angle = 0.4
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    found = warp(x, np.column_stack([1.1 * turn, [1.3, -0.7]]))
    torch.testing.assert_close(found, x, rtol=0, atol=2e-3)
