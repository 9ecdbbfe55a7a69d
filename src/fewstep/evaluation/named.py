"""The protocol of data by its name or path, and the features in which models of it are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.contract import DataSpec
from fewstep.core import Batch, UsageError, entropy
from fewstep.data import Dataset
from fewstep.data.catalogue import entry, judging_features, training_data, with_held_out
from fewstep.data.encoded import is_encoded
from fewstep.data.fingerprint import differences, fingerprint
from fewstep.data.parts import share_of, split
from fewstep.data.prepared import SUFFIX
from fewstep.data.specs import check_alike, check_classes, spec_of
from fewstep.errors import nearest
from fewstep.evaluation.judging import FIRST_SEED, METRICS, Protocol
from fewstep.metrics import Features, References, digits_features, flatten, named_features

FEATURES: dict[str, Callable[[], Features]] = {
    "digits": digits_features,
    "pixels": lambda: flatten,
}
"""The features that data is judged in unless others are asked for, by the catalogue's name."""


def named_protocol(
    data: str,
    held_out: float | str | None,
    made: DataSpec,
    n: int,
    *,
    background: str | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> Protocol:
    """The protocol of a data set.

    Args:
        data: the name or path of what the model learned from.
        held_out: the share of it that the model never saw, or the path of other such data; None
            where the data has held-out data of its own.
        made: what the model generates; images are read at its resolution.
        n: at most so many held-out samples, a seeded choice of them.
        background: colour behind transparent pixels of images.
        recorded: the fingerprint that the held-out samples had when the model was trained.

    Raises:
        UsageError: the data is not what the model generates, its held-out part is missing, or other
            samples would be held out than were in training.
    """
    whole = training_data(data, **_like(data, made), background=background)
    _check_made(data, whole, made, "and the like, unseen, with --held-out")
    train, unseen = with_held_out(whole, data, held_out, n, background)
    if unseen is None:
        raise UsageError(
            f"to judge on {data} also give data that the model never saw: --held-out FOLDER or "
            "FILE, or the share that its training held out, such as --held-out 0.1"
        )
    _check_made(str(held_out or data), unseen, made, "and the like, unseen, with --held-out")
    check_alike(data, spec_of(train), str(held_out or data), spec_of(unseen))
    if recorded is not None and (changed := differences(recorded, fingerprint(unseen))):
        raise UsageError(
            f"{data} is not what the model was trained on ({'; '.join(changed)}), so that other "
            "samples than in training would be held out; give the data as it was, or other data "
            "with --held-out PATH"
        )
    return protocol_of(train, unseen, n, FEATURES[judging_features(data)]())


def protocol_of(train: Dataset, unseen: Dataset, n: int, features: Features) -> Protocol:
    """The protocol of two data sets.

    Args:
        train: what the model learned from.
        unseen: what it never saw.
        n: at most so many held-out samples, a seeded choice of them.
        features: that the Frechet distance is taken in.

    Raises:
        UsageError: there are more held-out samples than others.
    """
    order = np.random.default_rng(entropy(FIRST_SEED, "held out")).permutation(len(unseen))
    rest = unseen.batch(np.sort(order[:n]))
    if len(rest) > len(train):
        raise UsageError(
            f"the held-out samples ({len(rest)}) must not outnumber the others ({len(train)})"
        )
    return Protocol(
        decoded(train, train.batch(np.arange(len(train)))), decoded(unseen, rest), features
    )


def decoded(data: Dataset, batch: Batch) -> Batch:
    """The same samples as users see them: latents become images, by the codec that made them."""
    frontend = getattr(data, "frontend", None)
    if frontend is None or frontend.codec is None:
        return batch
    return replace(batch, x0=frontend.codec.decode(batch.x0))


def training_samples(
    data: str,
    made: DataSpec,
    features: str | None,
    device: torch.device,
    *,
    held_out: float | str | None = None,
    background: str | None = None,
) -> tuple[Dataset, Features]:
    """A model's training data, without held-out samples, and the features to judge it in.

    Args:
        data: as in :func:`named_protocol`.
        made: what the model generates.
        features: NAME or NAME:FILE, or None for the usual ones of the data.
        device: where networks judge.
        held_out: the share of the data that is left out, if it is one.
        background: as in :func:`named_protocol`.

    Raises:
        UsageError: the data is not what the model generates, or features that cannot be had.
    """
    train = training_data(data, **_like(data, made), background=background)
    _check_made(data, train, made, "")
    share = share_of(held_out)
    if share is not None:
        train, _ = split(train, share)
    if features is not None:
        return train, named_features(features, device)
    return train, FEATURES[judging_features(data)]()


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
    judge = named_features(features, device)
    references = References(judge) if judge.expensive else None
    return replace(protocol, metrics=names, features=judge, references=references)


def _like(data: str, made: DataSpec) -> dict[str, Any]:
    """How to read data so that it is what a model generates."""
    like: dict[str, Any] = {"labels": made.labels > 0}
    if entry(data) is not None or Path(data).suffix == SUFFIX or is_encoded(data):
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
