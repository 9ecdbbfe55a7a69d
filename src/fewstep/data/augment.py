"""Augmentations: pure functions of a batch, its samples' positions in the stream, and a seed.

What happens to a sample depends on the seed and on its position, not on its neighbours in the
batch or on who prepares it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.core import Batch, UsageError, entropy
from fewstep.data.pairs import PREFIX

Augment = Callable[[Batch, np.ndarray, int], Batch]
"""From a batch, its positions in the training stream (int64 ``(b,)``, which count on from epoch to
epoch and are no data indices) and the run's seed to the augmented batch."""

SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""Low-pass coefficients of Daubechies' least asymmetric wavelet with six vanishing moments."""

TAIL = len(SYM6) // 4
"""Pixels that are resampled beyond each side of the picture, for the filter's sake."""


@dataclass(frozen=True)
class Flip:
    """Mirror the last axis with this probability; pairs in ``aux`` (``Paired``) stay as they are.

    Raises:
        UsageError: the probability is not in [0, 1], or what is called cannot be augmented.
    """

    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability("Flip", "probability", self.probability)

    def __call__(self, batch: Batch, positions: np.ndarray, seed: int) -> Batch:
        """The batch, of the same shape."""
        _check_batch("Flip", batch, positions, pairs=True)
        if batch.x0.ndim < 3:
            raise UsageError(
                f"Flip mirrors samples (b, c, *space) along their last axis, and samples of shape "
                f"{tuple(batch.x0.shape[1:])} have no spatial axis; leave it out"
            )
        flipped = [rng.random() < self.probability for rng in _generators(positions, seed)]
        return replace(batch, x0=_flip(batch.x0, torch.tensor(flipped), -1))


@dataclass(frozen=True)
class EDMAugment:
    r"""The pipe of Karras et al. 2022 for CIFAR-10 (app. F.2), which tells the network what it did.

    In this order, each but the first with probability ``p``:

    - a mirror image, left to right, half of the time (always on, as in EDM, unless ``p`` is 0);
    - upside down, half of the time that it is drawn;
    - scaling by $2^{0.2 w}$, w normal;
    - rotation by an angle uniform in $[-\pi, \pi)$;
    - stretching by $2^{0.2 w}$ along an axis and $2^{-0.2 w}$ across it, w normal; half of the
      time the axis is horizontal, else uniform;
    - translation by an eighth of the width and of the height times two normals.

    The answer has ``cond["augment"]``, float32 ``(b, 9)``: mirrored, upside down, w of scaling,
    cos - 1 and sin of the rotation, cos and sin of the axis times w of stretching, the two normals
    of the translation (to the right, downwards). Zeros mean that nothing was done; a network
    without such an input learns the augmented data instead.

    Fractional ones are resampled together, as in EDM: reflected at the border, doubled with the
    wavelet, read bilinearly, halved. As there, the label of stretching is the same for w along an
    axis and for -w along the opposite one. Two things differ: pictures that none was drawn for are
    left as they are, bit by bit; and EDM reflects as far as the neediest picture of the batch asks
    for, here it is always as far as can be, so that the batch does not matter.

    Raises:
        UsageError: ``p`` is not in [0, 1], or what is called cannot be augmented.
    """

    p: float = 0.12

    def __post_init__(self) -> None:
        _check_probability("EDMAugment", "p", self.p)

    def __call__(self, batch: Batch, positions: np.ndarray, seed: int) -> Batch:
        """The batch, of the same shape, and ``cond["augment"]``."""
        _check_batch("EDMAugment", batch, positions)
        if batch.x0.ndim != 4:
            raise UsageError(
                f"EDMAugment takes pictures (b, c, h, w), got {tuple(batch.x0.shape)}; "
                "use Flip, or none"
            )
        size = (batch.x0.shape[2], batch.x0.shape[3])
        drawn = [self._draw(rng, size) for rng in _generators(positions, seed)]
        label = torch.from_numpy(np.stack([label for label, _ in drawn]).astype(np.float32))
        x0 = _flip(_flip(batch.x0, label[:, 0] == 1, 3), label[:, 1] == 1, 2)
        x0 = torch.stack(
            [
                image if inverse is None else warp(image, inverse)
                for image, (_, inverse) in zip(x0, drawn, strict=True)
            ]
        )
        return replace(batch, x0=x0, cond={**batch.cond, "augment": label})

    def _draw(
        self, rng: np.random.Generator, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The label, and the inverse of what is resampled, if anything is."""
        down, scales, turns, stretches, moves = rng.random(5) < self.p
        mirrored, half, turned = rng.random(3) < 0.5
        scale, stretch, right, below = rng.standard_normal(4) * (scales, stretches, moves, moves)
        angle, axis = rng.uniform(-math.pi, math.pi, 2) * (turns, turned)
        label = np.array(
            [
                mirrored and self.p > 0,
                half and down,
                scale,
                math.cos(angle) - 1,
                math.sin(angle),
                stretch * math.cos(axis),
                stretch * math.sin(axis),
                right,
                below,
            ]
        )
        if not (scales or turns or stretches or moves):
            return label, None
        height, width = size
        along = np.diag([2 ** (-0.2 * stretch), 2 ** (0.2 * stretch)])
        linear = 2 ** (-0.2 * scale) * _turn(angle) @ _turn(-axis) @ along @ _turn(axis)
        offset = linear @ (-0.125 * right * width, -0.125 * below * height)
        return label, np.column_stack([linear, offset])


def warp(image: Tensor, inverse: np.ndarray) -> Tensor:
    """A picture moved by an affine map: each pixel is read where the map's inverse sends it.

    Args:
        image: ``(c, h, w)``, reflected at its border up to its own size on each side; black (0)
            beyond.
        inverse: ``(2, 3)``, from (x, y, 1) to (x, y) in pixels from the picture's centre, x to
            the right, y downwards.

    Returns:
        ``(c, h, w)``; moved by whole pixels, the same values up to rounding.
    """
    c, height, width = image.shape
    doubling_h, halving_h = _filters(height)
    doubling_w, halving_w = _filters(width)
    fine = doubling_h @ image @ doubling_w.T
    shape = (1, c, halving_h.shape[1], halving_w.shape[1])
    # Pixel i of n is 2 i of the doubled picture, half a fine pixel before its centre.
    linear, offset = inverse[:, :2], 2 * inverse[:, 2] + inverse[:, :2] @ (0.5, 0.5) - 0.5
    # torch counts from -1 to 1 on both sides.
    half_in, half_out = (np.array([s[-1], s[-2]]) / 2 for s in (fine.shape, shape))
    theta = np.column_stack([linear * half_out, offset]) / half_in[:, None]
    grid = F.affine_grid(torch.from_numpy(theta[None]), list(shape), align_corners=False)
    moved = F.grid_sample(
        fine[None], grid.to(image.dtype), mode="bilinear", padding_mode="zeros", align_corners=False
    )
    return halving_h @ moved[0] @ halving_w.T


@lru_cache(maxsize=8)
def _filters(n: int) -> tuple[Tensor, Tensor]:
    """Matrices on an axis of n pixels: reflect and double, ``(2 (3n - 2), n)``; halve and crop."""
    padded = 3 * n - 2
    doubling = _wavelet(2 * padded, padded)
    # Reflected without repeating the border, n - 1 pixels on each side.
    reflect = np.zeros((padded, n))
    source = np.abs((np.arange(padded)) % max(1, 2 * n - 2) - (n - 1))
    reflect[np.arange(padded), source] = 1
    halving = _wavelet(2 * (n + 2 * TAIL), n + 2 * TAIL).T[TAIL : n + TAIL]
    return torch.from_numpy(doubling @ reflect).float(), torch.from_numpy(halving.copy()).float()


def _wavelet(fine: int, coarse: int) -> np.ndarray:
    """``(fine, coarse)``: pixel i spreads over the fine ones around 2 i.

    Columns are orthonormal away from the border.
    """
    tap = np.arange(fine)[:, None] - 2 * np.arange(coarse) + len(SYM6) // 2 - 1
    inside = (tap >= 0) & (tap < len(SYM6))
    return np.where(inside, np.array(SYM6)[tap.clip(0, len(SYM6) - 1)], 0.0)


def _turn(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s], [s, c]])


def _flip(x: Tensor, which: Tensor, axis: int) -> Tensor:
    """``x`` mirrored along ``axis`` in the samples where ``which`` is true."""
    which = which.reshape(-1, *[1] * (x.ndim - 1))
    return torch.where(which, x.flip(axis), x)


def _generators(positions: np.ndarray, seed: int) -> Iterator[np.random.Generator]:
    for position in positions:
        yield np.random.Generator(np.random.PCG64(entropy(seed, "augment", int(position))))


def _check_probability(name: str, argument: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UsageError(f"{name}: {argument}={value} is no probability; give one in [0, 1]")


def _check_batch(name: str, batch: Batch, positions: np.ndarray, *, pairs: bool = False) -> None:
    aux = [key for key in sorted(batch.aux) if not (pairs and key.startswith(PREFIX))]
    if positions.shape != (len(batch),) or not np.issubdtype(positions.dtype, np.integer):
        raise UsageError(
            f"{name}: expected one position in the stream for each of {len(batch)} samples, "
            f"integers ({len(batch)},), got {positions.dtype} {positions.shape}"
        )
    if batch.x0.ndim < 2 or batch.mask is not None or aux:
        raise UsageError(
            f"{name}: only clean data and its conditions can be augmented, got x0 of shape "
            f"{tuple(batch.x0.shape)}, mask {batch.mask is not None}, aux {aux}; "
            "augment before a mask or precomputed values are made; beside pairs take Flip, or none"
        )
