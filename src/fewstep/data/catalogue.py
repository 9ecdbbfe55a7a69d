"""One place from the name or path of a data set to what is trained on, judged with, and how.

An entry of ``CATALOGUE`` is all that a new data set of the library needs. Every other name is a
path: a folder or zip of images, or a file that ``fewstep data prepare`` or ``write_arrays`` wrote.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fewstep.core import UsageError
from fewstep.data.arrays import Arrays
from fewstep.data.digits import digits
from fewstep.data.opening import open_data, open_images
from fewstep.data.parts import share_of, split
from fewstep.data.prepared import SUFFIX
from fewstep.data.pusht import pusht
from fewstep.data.standard import STANDARD
from fewstep.data.toys import SAMPLERS, toy
from fewstep.errors import nearest

if TYPE_CHECKING:
    from fewstep.data import Dataset

JudgingFeatures = Literal["digits", "pixels"]
JudgeName = Literal["distances", "rewards"]


@dataclass(frozen=True)
class Entry:
    """A data set by name.

    Args:
        kind: what its recipes have in common, as ``fewstep.recipes.places`` names it.
        train: returns the training data.
        held_out: returns data that no training sees: at most so many samples, or all that there
            are; None where there is none.
        features: of samples, in which they are judged unless others are asked for.
        source: where the data is from, for model cards.
        judge: what methods are compared by: distances to data, or the rewards of policies in the
            environment of the same name.
    """

    kind: str
    train: Callable[[], Dataset]
    held_out: Callable[[int], Dataset] | None = None
    features: JudgingFeatures = "pixels"
    source: str = "drawn by fewstep"
    judge: JudgeName = "distances"


def _prepared_imagenet() -> Dataset:
    place = Path(os.environ.get("FEWSTEP_DATA", ".")) / "imagenet-64.safetensors"
    if not place.exists():
        raise UsageError(
            f"no {place}: make it with fewstep data prepare IMAGENET/train --resolution 64 "
            f"--crop adm --out {place}, and name its folder in FEWSTEP_DATA"
        )
    return open_images(place, 64)


CATALOGUE: dict[str, Entry] = {
    "digits": Entry(
        "digits",
        partial(digits, "train"),
        lambda n: digits("held_out"),
        features="digits",
        source="Optical Recognition of Handwritten Digits, Alpaydin and Kaynak, UCI, CC BY 4.0",
    ),
    **{
        name: Entry("plane", partial(toy, name), lambda n, name=name: toy(name, n, seed=1))
        for name in SAMPLERS
    },
    **{
        name: Entry(
            name,
            partial(data, "train"),
            lambda n, data=data: data("held_out"),
            source=data.source,
        )
        for name, data in STANDARD.items()
    },
    "pusht": Entry(
        "pusht",
        partial(pusht, "train"),
        lambda n: pusht("held_out"),
        source="Push-T demonstrations, Chi et al. 2023, Columbia University, MIT licence",
        judge="rewards",
    ),
    "imagenet-64": Entry(
        "imagenet-64",
        _prepared_imagenet,
        source="ImageNet at 64 x 64 pixels, Deng et al. 2009, under the terms of image-net.org",
    ),
}

OWN = "own"
"""The kind of data that is no entry."""


def entry(data: str) -> Entry | None:
    """The entry of that name; underscores count as hyphens. None means that it is a path."""
    return CATALOGUE.get(data.replace("_", "-"))


def kind_of(data: str) -> str:
    """The kind of a data set, by name or path."""
    known = entry(data)
    return OWN if known is None else known.kind


def judging_features(data: str) -> JudgingFeatures:
    """The features in which models of that data are judged unless others are asked for."""
    known = entry(data)
    return "pixels" if known is None else known.features


def judge_of(data: str) -> JudgeName:
    """What methods on that data are compared by."""
    known = entry(data)
    return "distances" if known is None else known.judge


def has_held_out(data: str) -> bool:
    """Whether a data set, by name or path, has held-out data of its own."""
    known = entry(data)
    return known is not None and known.held_out is not None


def training_data(
    data: str,
    *,
    resolution: int | None = None,
    channels: Literal[1, 3] | None = None,
    labels: bool = True,
    background: str | None = None,
) -> Dataset:
    """What a model learns from.

    Args:
        data: a name or a path.
        resolution: to which the images of a folder or zip are cropped; a name and a file have
            their own.
        channels: of images; by default as the images are.
        labels: with the classes that the data has, or without.
        background: colour behind transparent pixels of a folder's images; white if not given.

    Raises:
        UsageError: there is no such data, or it has another resolution or other channels.
    """
    known = entry(data)
    if known is None:
        return _own(data, resolution, channels, labels, background)
    opened = known.train()
    if resolution not in {None, opened.shape[-1]}:
        raise UsageError(
            f"{data} has samples of shape {tuple(opened.shape)}, asked for is --resolution "
            f"{resolution}; leave it out"
        )
    return opened if labels else without_labels(opened)


def with_held_out(
    train: Dataset,
    data: str,
    held_out: float | str | None,
    n: int,
    background: str | None = None,
) -> tuple[Dataset, Dataset | None]:
    """What training sees of its data, and what it does not see.

    Args:
        train: the data, opened by :func:`training_data`.
        data: its name or path.
        held_out: a share of the data in (0, 0.5], or the path of other data, which is read like
            ``train``; None where the data has held-out data of its own, or none.
        n: samples that are wanted; data that is not made to measure may have others.
        background: colour behind transparent pixels of the other data's images.

    Returns:
        Both data sets; the second is None where there is no held-out data.

    Raises:
        UsageError: ``held_out`` is given beside the data's own, or it cannot be used.
    """
    known = entry(data)
    own = None if known is None else known.held_out
    if own is not None and held_out is not None:
        raise UsageError(f"{data} has held-out data of its own; leave out --held-out")
    if own is not None:
        unseen = own(n)
        return train, unseen if train.labels else without_labels(unseen)
    share = share_of(held_out)
    if share is not None:
        return split(train, share)
    return train, None if held_out is None else _other(str(held_out), train, background)


def without_labels(data: Dataset) -> Dataset:
    """The same samples without their classes."""
    if not data.labels:
        return data
    if isinstance(data, Arrays):
        return data.unlabelled()
    raise UsageError(f"{type(data).__name__} cannot be read without its labels")


def _other(path: str, train: Dataset, background: str | None) -> Dataset:
    """Held-out data, read like the training data."""
    if entry(path) is None and not Path(path).exists():
        raise UsageError(
            f"no held-out data at {path!r}; give a share of the data such as --held-out 0.1, or "
            "the path of a folder, zip or file"
        )
    size: dict[str, Any] = {}
    if entry(path) is None and Path(path).suffix != SUFFIX:
        shape = tuple(train.shape)
        if len(shape) != 3 or shape[0] not in (1, 3) or shape[1] != shape[2]:
            raise UsageError(
                f"the training data has samples of shape {shape}, and {path} is read as images, "
                "which are square and have 1 or 3 channels; give a file as held-out data"
            )
        size = {"resolution": shape[1], "channels": shape[0]}
    return training_data(path, **size, labels=train.labels > 0, background=background)


def _own(
    data: str,
    resolution: int | None,
    channels: Literal[1, 3] | None,
    labels: bool,
    background: str | None,
) -> Dataset:
    if not data:
        raise UsageError("say what to learn from: --data NAME or PATH")
    path = Path(data)
    if not path.exists():
        raise UsageError(
            f"no data at {data!r}, and no data of that name: {nearest(data, CATALOGUE)}"
        )
    kind = "auto" if labels else "none"
    return open_data(path, resolution, kind, channels=channels, background=background)
