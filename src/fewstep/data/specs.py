"""What a data set says of its samples, or what its first batch shows where it says too little."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Ordered
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from fewstep.conditions import Condition, Image, Label, Mask, Sequence, Vector
from fewstep.contract import DataSpec, data_spec
from fewstep.core import Batch, UsageError
from fewstep.data.checks import first_batch
from fewstep.data.naming import shortened

MADE = ("guidance", "augment")
"""Keys of conditions that methods and augmentations make, which are no data."""


def spec_of(data: Any) -> DataSpec:
    """The specification of a data set's samples.

    A data set without ``spec`` is asked for its first samples: conditions there that its ``labels``
    do not cover are vectors, or sequences where ``NAME_mask`` comes with them; ``Batch.mask`` is
    the condition ``mask``.

    Args:
        data: any data set; at least ``shape``, ``labels``, ``image`` and ``batch``.

    Raises:
        UsageError: a condition is of integers, whose number of classes nobody says.
    """
    own = getattr(data, "spec", None)
    if own is not None:
        return own
    shown = first_samples(data)
    spec = data_spec(data.shape, data.labels, data.image)
    return make_spec(spec.shape, spec.range, {**spec.conditions, **_infer(shown, spec)})


def first_samples(data: Any) -> Batch:
    """Samples that show which conditions data has: two, or the only one."""
    return first_batch(data, 2)


def conditions_of(batch: Batch) -> dict[str, Tensor]:
    """What generated samples must be given to be like a batch: its conditions, its mask included.

    A mask that differs between channels says what losses see, not how long samples are.
    """
    b, shape = len(batch), batch.x0.shape
    if batch.mask is None or len(shape) < 3 or batch.mask.shape != (b, 1, *shape[2:]):
        return dict(batch.cond)
    return {"mask": batch.mask, **batch.cond}


def make_spec(
    shape: Ordered[int | None],
    range: tuple[float, float] | None,
    conditions: Mapping[str, Condition],
) -> DataSpec:
    """The specification of these parts.

    Raises:
        UsageError: they contradict each other.
    """
    try:
        return DataSpec(shape=tuple(shape), range=range, conditions=dict(conditions))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"the data cannot be described: {'.'.join(map(str, first['loc']))} {first['msg']}"
        ) from error


def image_spec(shape: Ordered[int], names: Ordered[str] | None) -> DataSpec:
    """The specification of images in [-1, 1], with classes of these names if there are any."""
    label = Label(classes=len(names), names=tuple(names)) if names else None
    return make_spec(shape, (-1.0, 1.0), {"label": label} if label else {})


def check_classes(name: str, spec: DataSpec, other: str, of_other: DataSpec) -> None:
    """Refuse two data sets, or a model and one, whose classes differ.

    Args:
        name: of the first, for the message.
        spec: its specification.
        other: the name of the second.
        of_other: its specification.

    Raises:
        UsageError: both have names of classes, which differ; else their numbers do.
    """
    names, others = spec.class_names, of_other.class_names
    if (names != others) if names and others else (spec.labels != of_other.labels):
        sides = [
            f"{who} has {shortened(kinds) if kinds else f'{one.labels} label(s)'}"
            for who, one, kinds in ((name, spec, names), (other, of_other, others))
        ]
        raise UsageError(
            f"the classes differ: {sides[0]}, {sides[1]}; they must be the same in the same order"
        )


def check_alike(name: str, spec: DataSpec, other: str, of_other: DataSpec) -> None:
    """Refuse two data sets whose samples differ in shape, classes or other conditions.

    Args:
        name: of the first, for the message.
        spec: its specification.
        other: the name of the second.
        of_other: its specification.

    Raises:
        UsageError: they differ. The lengths of masks may.
    """
    if spec.shape != of_other.shape:
        raise UsageError(
            f"{name} has samples of shape {spec.shape}, {other} of {of_other.shape}; both must "
            "have the same"
        )
    check_classes(name, spec, other, of_other)
    ours, theirs = (
        {k: v for k, v in one.conditions.items() if k not in {"label", "mask"}}
        for one in (spec, of_other)
    )
    if ours != theirs or spec.masked != of_other.masked:
        sides = [f"{who} is {one.summary()}" for who, one in ((name, spec), (other, of_other))]
        raise UsageError(f"the conditions differ: {'; '.join(sides)}; both must have the same")


def mirror_fault(spec: DataSpec) -> str | None:
    """Why samples have no mirror image along their last axis; None where they have one."""
    if len(spec.shape) < 2:
        return f"samples of shape {spec.shape} have no spatial axis"
    if spec.masked:
        return "the samples differ in length, so that their real part would move"
    images = [name for name, one in spec.conditions.items() if isinstance(one, Image)]
    if images:
        return f"the image {images[0]!r}, on which the samples depend, would not be mirrored"
    return None


def _infer(batch: Batch, spec: DataSpec) -> dict[str, Condition]:
    """The conditions of a batch that a specification does not declare."""
    conditions: dict[str, Condition] = {}
    cond = conditions_of(batch)
    tokens = {key for key in cond if f"{key}_mask" in cond}
    known = {*spec.conditions, *MADE, "mask", *(f"{key}_mask" for key in tokens)}
    for name, value in cond.items():
        if name in known:
            continue
        if value.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            raise UsageError(
                f"the batches hold integers as the condition {name!r}, and nothing says of how "
                f"many classes; give the data set a spec, DataSpec(..., conditions={{{name!r}: "
                "Label(classes=...)}), or labels=... for the condition label"
            )
        shape = tuple(value.shape[1:])
        conditions[name] = (
            Sequence(shape=shape[1:], length=shape[0]) if name in tokens else Vector(shape=shape)
        )
    if "mask" in cond and "mask" not in spec.conditions:
        conditions["mask"] = Mask()
    return conditions
