"""The 1,797 handwritten digits of 8 x 8 pixels that come with the library.

Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
1998 (CC BY 4.0): its test part, pixel counts 0 to 16.
"""

from __future__ import annotations

from importlib import resources
from typing import Literal

import numpy as np

from fewstep.core import UsageError
from fewstep.data.arrays import Arrays, stratified_split

SPLIT_SIZES = (1200, 597)
SPLIT_SEED = 0


def digits(split: Literal["train", "held_out"]) -> Arrays:
    """One part of the digits: images ``(1, 8, 8)`` in [-1, 1], ten classes.

    Args:
        split: ``train`` (1,200 samples) or ``held_out`` (597); always the same samples.

    Raises:
        UsageError: another split.
    """
    if split not in {"train", "held_out"}:
        raise UsageError(f"digits have no split {split!r}; choose train or held_out")
    with (resources.files("fewstep") / "assets" / "digits.npz").open("rb") as file:
        archive = np.load(file)
        x, label = archive["x"], archive["label"]
    # The file is ordered by writer: parts cut by position would hold different hands.
    train, held_out = stratified_split(label, SPLIT_SIZES, SPLIT_SEED)
    index = train if split == "train" else held_out
    values = x[index, None].astype(np.float32) / 8 - 1
    return Arrays(values, label[index], labels=10, image=True)
