"""A file of arrays that training can read: samples, what they depend on, and what all that is.

It is a safetensors file of ``x`` ``(n, *shape)``, ``mask`` ``(n, 1, *space)`` where samples differ
in length, and ``cond.KEY`` for each key of each condition. The header's ``__metadata__`` holds
``arrays``, the :class:`~fewstep.contract.DataSpec` as JSON. Arrays are mapped, not read; nothing in
the file is executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fewstep.conditions import OF_TOKENS
from fewstep.contract import DataSpec
from fewstep.core import Batch, UsageError
from fewstep.data.arrays import Arrays, Indices
from fewstep.errors import in_words
from fewstep.system.files import whole_file

KEY = "arrays"
KINDS = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "I16": "<i2",
    "I32": "<i4",
    "I64": "<i8",
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
}
"""Types of tensors in safetensors files, as numpy names them."""


class _About(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    image: bool
    spec: DataSpec


def write_arrays(
    path: str | os.PathLike[str],
    x: ArrayLike,
    label: ArrayLike | None = None,
    *,
    labels: int | None = None,
    image: bool | None = None,
    conditions: Mapping[str, Any] | None = None,
    mask: ArrayLike | None = None,
    range: tuple[float, float] | None = None,
    spec: DataSpec | None = None,
) -> Stored:
    """Write arrays as one file to train on, ``--data NAME.safetensors``; whole or not at all.

    The arguments after ``path`` are those of :class:`~fewstep.data.arrays.Arrays`.

    Returns:
        The file, opened.

    Raises:
        UsageError: the arrays do not fit together, or ``path`` does not end in ``.safetensors``.
    """
    place = Path(path)
    if place.suffix != ".safetensors":
        raise UsageError(f"the file must end in .safetensors, got {place}")
    data = Arrays(
        x,
        label,
        labels=labels,
        image=image,
        conditions=conditions,
        mask=mask,
        range=range,
        spec=spec,
    )
    about = _About(image=data.image, spec=data.spec)
    arrays = {name: np.ascontiguousarray(array) for name, array in data.arrays().items()}
    with whole_file(place) as fresh:
        save_file(arrays, fresh, {KEY: about.model_dump_json()})
    return Stored(place)


def is_stored(path: str | os.PathLike[str]) -> bool:
    """Whether :func:`write_arrays` wrote this file, by what it says of itself."""
    try:
        with safe_open(path, framework="np") as file:
            return KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


class Stored:
    """A file that :func:`write_arrays` wrote, as a memory-mapped dataset.

    It is pickled by its path: other processes map the file for themselves.

    Args:
        path: the file.
        labels: ``none`` hides the labels.
        check: read the whole file, and refuse values that are not finite or out of range.

    Attributes:
        shape: of a sample as it is stored.
        labels: number of classes, 0 without labels.
        image: whether the values are pictures in [-1, 1].
        spec: what a sample is and depends on.

    Raises:
        UsageError: the file is missing, cut short, none that :func:`write_arrays` wrote, or
            contradicts itself.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        labels: Literal["auto", "none"] = "auto",
        check: bool = True,
    ) -> None:
        if labels not in {"auto", "none"}:
            raise UsageError(f"got labels={labels!r}; expected auto or none")
        self.path, self._kind = Path(path), labels
        about, arrays = _read(self.path)
        data = _dataset(self.path, about, arrays, check)
        self._arrays = data if labels == "auto" else data.unlabelled()
        self.shape, self.labels = self._arrays.shape, self._arrays.labels
        self.image, self.spec = about.image, self._arrays.spec

    def __getstate__(self) -> dict[str, Any]:
        # Another process need not read again what this one has.
        return {"path": self.path, "labels": self._kind, "check": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __len__(self) -> int:
        return len(self._arrays)

    def batch(self, indices: Indices) -> Batch:
        """The samples at ``indices``, their conditions and their mask."""
        return self._arrays.batch(indices)

    @property
    def given_labels(self) -> np.ndarray | None:
        """The class of each sample, integers, or None."""
        return self._arrays.given_labels

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of the file that are read, mapped, by name."""
        return self._arrays.arrays()


def _dataset(path: Path, about: _About, arrays: dict[str, np.ndarray], check: bool) -> Arrays:
    if "x" not in arrays:
        raise UsageError(f"{path} has no array x; write it with fewstep.data.write_arrays")
    conditions: dict[str, Any] = {}
    x, mask = arrays.pop("x"), arrays.pop("mask", None)
    for name, one in about.spec.conditions.items():
        parts = [arrays.pop(f"cond.{key}", None) for key in (name, f"{name}_mask")]
        if parts[0] is not None:
            conditions[name] = tuple(parts) if isinstance(one, OF_TOKENS) else parts[0]
    if arrays:
        raise UsageError(f"{path} holds arrays that it does not describe: {', '.join(arrays)}")
    try:
        return Arrays(
            x,
            image=about.image,
            conditions=conditions,
            mask=mask,
            spec=about.spec,
            check=check,
        )
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _read(path: Path) -> tuple[_About, dict[str, np.ndarray]]:
    """What the file says of itself, and its arrays, mapped."""
    try:
        # This checks that the header fits the file; the places of the arrays are in it.
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {})[KEY]
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UsageError(
            f"{path} is not what fewstep.data.write_arrays writes, or cut short ({in_words(error)})"
        ) from error
    try:
        about = _About.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"{path} describes its data in a way this version does not know "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']}); write it again"
        ) from error
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in KINDS:
            raise UsageError(f"{path} holds {name} as {entry['dtype']}; expected one of {[*KINDS]}")
        if 0 in entry["shape"] or not entry["shape"]:
            raise UsageError(f"{path} holds nothing as {name}")
        start = 8 + length + entry["data_offsets"][0]
        kind, shape = KINDS[entry["dtype"]], tuple(entry["shape"])
        arrays[name] = np.memmap(path, kind, "r", offset=start, shape=shape)
    return about, arrays
