"""Data sets: digits, images in folders, zips and prepared files, arrays, toys, and their order.

Whatever meets ``Dataset`` can be trained on. Random access is all a data set offers; which samples
a step sees is a function of seed and step (``positions``), so resuming needs no loader state.
"""

from __future__ import annotations

from typing import Protocol

from fewstep.core import Batch
from fewstep.data.arrays import Arrays, Indices, stratified_split
from fewstep.data.augment import Augment, EDMAugment, Flip
from fewstep.data.digits import digits
from fewstep.data.images import ImageFolder
from fewstep.data.opening import open_images
from fewstep.data.order import positions
from fewstep.data.pairs import Paired, Pairs
from fewstep.data.prepare import prepare
from fewstep.data.prepared import Prepared
from fewstep.data.standard import STANDARD, cifar10, fashion_mnist, mnist
from fewstep.data.toys import (
    Mixture,
    checkerboard,
    eight_gaussians,
    gaussian,
    moons,
    swiss_roll,
    toy,
    two_modes,
)

__all__ = [
    "STANDARD",
    "Arrays",
    "Augment",
    "Dataset",
    "EDMAugment",
    "Flip",
    "ImageFolder",
    "Indices",
    "Mixture",
    "Paired",
    "Pairs",
    "Prepared",
    "checkerboard",
    "cifar10",
    "digits",
    "eight_gaussians",
    "fashion_mnist",
    "gaussian",
    "mnist",
    "moons",
    "open_images",
    "positions",
    "prepare",
    "stratified_split",
    "swiss_roll",
    "toy",
    "two_modes",
]


class Dataset(Protocol):
    """Samples by index."""

    @property
    def shape(self) -> tuple[int, ...]:
        """One event, without the batch."""
        ...

    @property
    def labels(self) -> int:
        """Number of classes; 0 means no labels."""
        ...

    @property
    def image(self) -> bool:
        """Whether values are pictures in [-1, 1]."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Indices) -> Batch:
        """The samples at ``indices``, on the CPU.

        ``x0`` is float32 ``(b, *shape)``; ``cond`` is ``{"label": int64 (b,)}`` with labels, else
        empty.
        """
        ...
