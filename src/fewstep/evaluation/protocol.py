"""Protocols by the name of their data, with what the command line asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.contract import DataSpec
from fewstep.core import UsageError, entropy
from fewstep.data import Dataset
from fewstep.data.catalogue import entry, held_out_data, judging_features, training_data
from fewstep.data.prepared import SUFFIX
from fewstep.data.specs import check_classes, spec_of
from fewstep.errors import nearest
from fewstep.evaluation.judging import DRAWS, FIRST_SEED, METRICS, Protocol
from fewstep.metrics import Features, References, digits_features, flatten, named_features
from fewstep.system.processes import World

__all__ = [
    "DRAWS",
    "FIRST_SEED",
    "METRICS",
    "Protocol",
    "chosen",
    "named_protocol",
    "shared",
    "training_samples",
]

FEATURES: dict[str, Callable[[], Features]] = {
    "digits": digits_features,
    "pixels": lambda: flatten,
}
"""The features that data is judged in unless others are asked for, by the catalogue's name."""


def named_protocol(data: str, held_out: str | None, made: DataSpec, n: int) -> Protocol:
    """The protocol of a data set.

    Args:
        data: the name or path of what the model learned from.
        held_out: the path of data that it never saw, where the data has none of its own.
        made: what the model generates; images are read at its resolution.
        n: at most so many held-out samples, a seeded choice of them.

    Raises:
        UsageError: the data is not what the model generates, or its held-out part is missing.
    """
    like = _like(data, made)
    train, unseen = training_data(data, **like), held_out_data(data, held_out, n, **like)
    for name, part in ((data, train), (held_out or data, unseen)):
        _check_made(name, part, made, "and the like, unseen, with --held-out")
    check_classes(data, spec_of(train), held_out or data, spec_of(unseen))
    order = np.random.default_rng(entropy(FIRST_SEED, "held out")).permutation(len(unseen))
    rest = unseen.batch(np.sort(order[:n]))
    if len(rest) > len(train):
        raise UsageError(
            f"the held-out samples ({len(rest)}) must not outnumber the others ({len(train)})"
        )
    return Protocol(train.batch(np.arange(len(train))), rest, FEATURES[judging_features(data)]())


def training_samples(
    data: str, made: DataSpec, features: str | None, device: torch.device
) -> tuple[Dataset, Features]:
    """A model's training data, without held-out samples, and the features to judge it in.

    Args:
        data: as in :func:`named_protocol`.
        made: what the model generates.
        features: NAME or NAME:FILE, or None for the usual ones of the data.
        device: where networks judge.

    Raises:
        UsageError: the data is not what the model generates, or features that cannot be had.
    """
    train = training_data(data, **_like(data, made))
    _check_made(data, train, made, "")
    if features is not None:
        return train, named_features(features, device)
    return train, FEATURES[judging_features(data)]()


def _like(data: str, made: DataSpec) -> dict[str, Any]:
    """How to read data so that it is what a model generates."""
    like: dict[str, Any] = {"labels": made.labels > 0}
    if entry(data) is not None or Path(data).suffix == SUFFIX:
        return like
    channels, side, width = made.shape if len(made.shape) == 3 else (0, 0, 0)
    if channels not in (1, 3) or side is None or side != width:
        raise UsageError(f"the model draws {tuple(made.shape)}, which no image folder holds")
    return {**like, "resolution": side, "channels": channels}


def _check_made(name: str, data: Dataset, made: DataSpec, further: str) -> None:
    same = made.fits(data.shape)
    if not same or data.labels != made.labels:
        ours, theirs = (f" with {n} labels" if same else "" for n in (made.labels, data.labels))
        raise UsageError(
            f"the model draws {tuple(made.shape)}{ours}, {name} is {tuple(data.shape)}{theirs}; "
            f"give its training data with --data {further}"
        )
    check_classes("the model", made, name, spec_of(data))


def chosen(
    protocol: Protocol, metrics: str, features: str | None, device: torch.device
) -> Protocol:
    """The protocol with what the command line asks for.

    Args:
        protocol: with the usual features of its data.
        metrics: names from ``METRICS``, with commas between them.
        features: NAME or NAME:FILE of ``fewstep.metrics.FEATURES``, or None for the usual ones.
        device: where networks judge.

    Raises:
        UsageError: an unknown name, or features that cannot be had.
    """
    names = metrics.split(",")
    for name in names:
        if name not in METRICS:
            raise UsageError(f"--metrics: unknown {name!r}; {nearest(name, METRICS)}")
    if features is None:
        return replace(protocol, metrics=names)
    found = named_features(features, device)
    references = References(found) if found.expensive else None
    return replace(protocol, metrics=names, features=found, references=references)


def shared(protocol: Protocol, world: World) -> Protocol:
    """The protocol, its work shared by several processes.

    Raises:
        UsageError: more of them than samples.
    """
    n = len(protocol.held_out)
    if world.size > n:
        raise UsageError(f"{world.size} processes cannot share {n} samples; start fewer")
    return replace(protocol, world=world)
