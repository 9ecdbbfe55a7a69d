"""Networks with new weights, made for data; and copies of trained ones for a student."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature

import torch
from torch import nn

from fewstep.conditions import Image, Text, Vector
from fewstep.conditions import Sequence as Tokens
from fewstep.contract import DataSpec
from fewstep.errors import UsageError
from fewstep.models.nets import NETWORKS

AUGMENT_LABELS = 9
"""Numbers that EDM's augmentation tells the network."""

Size = int | float | bool | tuple[int, ...]


def fresh_network(
    kind: str, sizes: Mapping[str, Size | None], spec: DataSpec, *, augment: bool, seed: int
) -> nn.Module:
    """A new network for data, without dropout.

    Args:
        kind: a key of ``NETWORKS``.
        sizes: options of the network by name; None and False leave its own defaults.
        spec: of the data; the network reads all of its conditions.
        augment: let the network read the labels of EDM's augmentation.
        seed: the weights are a function of it.

    Raises:
        UsageError: an option or a condition that this network has not.
    """
    known = signature(NETWORKS[kind]).parameters
    given = {n: value for n, value in sizes.items() if value is not None and value is not False}
    for name in given:
        option = name.replace("_", "-")
        if name not in known:
            raise UsageError(f"the network {kind} has no --{option}; leave it out")
    if augment:
        if "augment" not in known:
            raise UsageError(f"the network {kind} reads no augmentation labels; take --augment 0")
        given["augment"] = AUGMENT_LABELS
    if "dropout" in known:
        given["dropout"] = 0.0
    inputs = _inputs(spec)
    for option, names in inputs.items():
        if option not in known:
            conditions = ", ".join(names) if isinstance(names, dict) else "mask"
            able = [name for name, one in NETWORKS.items() if option in signature(one).parameters]
            raise UsageError(
                f"the network {kind} cannot read {conditions}; take --network {' or '.join(able)}"
            )
    unread = set(spec.conditions) - {"label", "mask"}
    unread -= {name for names in inputs.values() if isinstance(names, dict) for name in names}
    if unread:
        name = min(unread)
        raise UsageError(
            f"no network reads the condition {name!r}, a {type(spec.conditions[name]).__name__}; "
            "leave it out of the data, or train a network of your own in Python"
        )
    with seeded(seed):
        return NETWORKS[kind](shape=spec.shape, classes=spec.labels, **given, **inputs)


def _inputs(spec: DataSpec) -> dict[str, dict[str, object] | bool]:
    """The options by which a network reads the conditions of data, besides its classes."""
    conditions = spec.conditions.items()
    inputs: dict[str, dict[str, object] | bool] = {
        "vectors": {n: math.prod(c.shape) for n, c in conditions if isinstance(c, Vector)},
        "sequences": {
            n: (c.length, math.prod(c.shape)) for n, c in conditions if isinstance(c, Tokens)
        },
        "images": {n: c.shape[0] for n, c in conditions if isinstance(c, Image)},
        "texts": {n: (c.vocabulary, c.length) for n, c in conditions if isinstance(c, Text)},
        "masked": spec.masked,
    }
    return {option: value for option, value in inputs.items() if value}


def with_dropout(net: nn.Module, p: float) -> nn.Module:
    """A trainable copy with that dropout; distillation has a target for every input and wants 0."""
    student = copy.deepcopy(net).requires_grad_(True)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = p
    options = getattr(student, "options", {})
    if isinstance(options, dict) and "dropout" in options:
        options["dropout"] = p
    return student


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights that are made here are a function of the seed, and nothing after them is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
