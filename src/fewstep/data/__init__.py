"""Data sets: digits, images in folders, zips and prepared files, arrays, toys, and their order.

Whatever meets ``Dataset`` can be trained on. Random access is all a data set offers; which samples
a step sees is a function of seed and step (``positions``), so resuming needs no loader state.
"""

from __future__ import annotations

from typing import Protocol

from fewstep.contract import DataSpec
from fewstep.core import Batch
from fewstep.data.arrays import Arrays, Indices, stratified_split
from fewstep.data.augment import Augment, EDMAugment, Flip
from fewstep.data.catalogue import CATALOGUE, training_data, with_held_out
from fewstep.data.checks import check_batch, first_batch
from fewstep.data.digits import digits
from fewstep.data.fingerprint import differences, fingerprint
from fewstep.data.images import ImageFolder
from fewstep.data.opening import open_data, open_images
from fewstep.data.order import positions
from fewstep.data.pairs import Paired, Pairs
from fewstep.data.parts import Part, split
from fewstep.data.prepare import prepare
from fewstep.data.prepared import Prepared
from fewstep.data.specs import spec_of
from fewstep.data.standard import STANDARD, cifar10, fashion_mnist, mnist
from fewstep.data.stored import Stored, write_arrays
from fewstep.data.torch_data import TorchData, from_torch
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
    "CATALOGUE",
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
    "Part",
    "Prepared",
    "Stored",
    "TorchData",
    "check_batch",
    "checkerboard",
    "cifar10",
    "differences",
    "digits",
    "eight_gaussians",
    "fashion_mnist",
    "fingerprint",
    "first_batch",
    "from_torch",
    "gaussian",
    "mnist",
    "moons",
    "open_data",
    "open_images",
    "positions",
    "prepare",
    "spec_of",
    "split",
    "stratified_split",
    "swiss_roll",
    "toy",
    "training_data",
    "two_modes",
    "with_held_out",
    "write_arrays",
]


class Dataset(Protocol):
    """Samples by index.

    All but ``spec`` is necessary; :func:`spec_of` derives it where a data set of the user's own
    does without. A data set may also have ``notes``, sentences on what a user has to notice
    (images that were passed over, labels that are not read); they are read with
    ``getattr(data, "notes", ())``. It may have a ``fingerprint``, by which a resumed run knows its
    data again, see :func:`~fewstep.data.fingerprint.fingerprint`.
    """

    @property
    def spec(self) -> DataSpec:
        """What a sample is and depends on."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a sample in a batch."""
        ...

    @property
    def labels(self) -> int:
        """The number of classes; 0 means no labels."""
        ...

    @property
    def image(self) -> bool:
        """Whether values are pictures in [-1, 1]."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Indices) -> Batch:
        """The samples at ``indices``, on the CPU.

        ``x0`` is float32 ``(b, *shape)``; ``cond`` has the keys of the specification, e.g.
        ``{"label": int64 (b,)}`` with labels. Where samples differ in length, ``mask`` is
        ``cond["mask"]``, ``(b, 1, *space)``.
        """
        ...
