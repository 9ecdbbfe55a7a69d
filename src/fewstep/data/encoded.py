"""Latents and the conditions of texts, as ``fewstep data encode`` writes them.

A folder of shards, safetensors files that are mapped, not read: ``x`` ``(m, *event)``, latents, or
pixels as uint8 where there is no codec; and ``cond.KEY`` for each key of each condition.
``encoded.json`` says how they were made; it has the sha256 of every shard once all are there.
``codec/`` and ``text/`` hold what made them, which trained models take along.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fewstep.conditions import Text
from fewstep.contract import DataSpec
from fewstep.core import Batch, UsageError
from fewstep.data import shards
from fewstep.data.arrays import Indices
from fewstep.frontends import Frontend, read_frontend
from fewstep.system.files import sha256

RECORD, KEY = "encoded.json", "encoded"
CONDITION = "cond."
"""Prefix of the tensors of conditions."""
CUT = "cut"
"""Which texts were too long for the encoder, bool ``(m,)``."""

AGAIN = "repeat the command that made it, fewstep data encode: it keeps what is whole"

Stored = Literal["float32", "float16", "bfloat16"]
"""How latents and embeddings are stored."""


class Scaling(BaseModel):
    """The shift and the scale of a codec, one number for each channel of its latents."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shift: list[float]
    scale: list[float]


class About(BaseModel):
    """How data was encoded.

    Args:
        format: of the folder.
        source: the name, not the place, of what was encoded.
        origin: a digest of the content of the source.
        reading: what was chosen of it, such as the column of captions, as options say it.
        spec: of a sample, as training reads it.
        frontend: sha256 of ``codec/`` and of ``text/``.
        stored: numbers of latents and of embeddings.
        shard_size: samples in each shard but the last.
        n: samples; 0 until all are counted.
        mean: of each channel of the latents, once all are there.
        std: likewise.
        cut: texts of which the end was cut off.
        scaling: the shift and the scale of the codec, where they were measured on the images.
        sha256: of each shard by name, once all are there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    source: str
    origin: str = ""
    reading: dict[str, str] = Field(default_factory=dict)
    spec: DataSpec
    frontend: dict[str, str]
    stored: Stored
    shard_size: int = Field(ge=1)
    n: int = Field(default=0, ge=0)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    cut: int = Field(default=0, ge=0)
    scaling: Scaling | None = None
    sha256: dict[str, str] = Field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """All that the bytes of shards depend on, as JSON has it."""
        outcome = {"n", "mean", "std", "cut", "scaling", "sha256", "reading"}
        return {**self.model_dump(mode="json", exclude=outcome), **self.reading}

    def stamp(self, shard: int) -> str:
        """What shard ``shard`` of these settings is known by."""
        return sha256(json.dumps([shard, self.settings()], sort_keys=True).encode())

    def shapes(self, count: int) -> dict[str, list[int]]:
        """The tensors of a shard of ``count`` samples."""
        sizes = [size or 1 for size in self.spec.shape]
        conditions = {
            f"{CONDITION}{key}": [count, *null.shape] for key, null in self.spec.nulls.items()
        }
        texts = {CUT: [count]} if "text" in self.frontend else {}
        return {"x": [count, *sizes], **conditions, **texts}


def name_of(shard: int) -> str:
    """The file of a shard."""
    return f"encoded-{shard:05d}.safetensors"


def read_record(folder: Path) -> About:
    """What ``encoded.json`` says.

    Raises:
        UsageError: it is missing or of another kind.
    """
    missing = f"{folder} holds no encoded data; make it with fewstep data encode SOURCE"
    again = "encode the data again into another folder"
    return shards.read_record(folder / RECORD, About, missing, again)


def is_encoded(path: str | os.PathLike[str]) -> bool:
    """Whether ``fewstep data encode`` wrote this folder."""
    return (Path(path) / RECORD).is_file()


class Encoded:
    """Encoded data as a memory-mapped dataset.

    It is pickled by its place: other processes map the files for themselves.

    Args:
        folder: what ``fewstep data encode`` wrote.
        labels: ``none`` hides the labels.
        verify: read all shards and compare their sha256.

    Attributes:
        about: how it was made.
        frontend: the codec and the reader of texts that made it.
        shape: of a sample.
        labels: number of classes, 0 without labels.
        image: whether ``x0`` is a picture in [-1, 1].
        spec: shape, range and conditions.

    Raises:
        UsageError: the folder holds no encoded data, not all of it, or another codec than the one
            that made it.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        labels: Literal["auto", "none"] = "auto",
        verify: bool = False,
    ) -> None:
        self.folder, self._kind = Path(folder), labels
        self.about = about = read_record(self.folder)
        self._shards: dict[int, dict[str, Tensor]] = {}
        # As many as there are digests, whatever number of samples a damaged record states.
        names = [name_of(shard) for shard in range(len(about.sha256))]
        missing = [name for name in names if not (self.folder / name).is_file()]
        whole = len(names) == -(-about.n // about.shard_size)
        if not names or missing or [*about.sha256] != names or not whole:
            raise UsageError(f"{self.folder} is not finished; {AGAIN}")
        self.frontend = read_frontend(self.folder) or Frontend()
        if self.frontend.digests != about.frontend:
            raise UsageError(
                f"{self.folder} holds another codec or reader of texts than made its data; {AGAIN}"
            )
        if verify:
            for shard in range(len(names)):
                self._opened(shard, verify=True)
        kept = {
            name: one
            for name, one in about.spec.conditions.items()
            if labels == "auto" or name != "label"
        }
        self.spec = about.spec.model_copy(update={"conditions": kept})
        self.shape = tuple(size or 1 for size in about.spec.shape)
        self.labels, self.image = self.spec.labels, about.spec.range is not None
        long = f"{about.cut:,} text(s) were longer than the encoder reads and lost their ends"
        self.notes = (long,) if about.cut else ()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "labels": self._kind}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __len__(self) -> int:
        return self.about.n

    @property
    def sigma_data(self) -> float | None:
        """The standard deviation of latents over all channels; None for pixels."""
        std = self.about.std
        return float(np.sqrt(np.mean(np.square(std)))) if std else None

    @property
    def fingerprint(self) -> str:
        """The sha256 of the shards' sha256."""
        return sha256(json.dumps(self.about.sha256, sort_keys=True).encode())

    @property
    def given_labels(self) -> np.ndarray | None:
        """The class of each sample, int64, or None."""
        if not self.labels:
            return None
        shards_ = range(len(self.about.sha256))
        return np.concatenate([self._shard(i)[f"{CONDITION}label"].numpy() for i in shards_])

    def batch(self, indices: Indices) -> Batch:
        """The samples at ``indices``: ``x0`` float32 ``(b, *shape)``, and their conditions."""
        index = np.asarray(indices, dtype=np.int64)
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise UsageError(f"there are {len(self)} samples; got {index.min()} to {index.max()}")
        size = self.about.shard_size
        places = [(self._shard(i // size), i % size) for i in index.tolist()]
        stacked = {
            name: torch.stack([shard[name][j] for shard, j in places])
            for name in self.about.shapes(0)
        }
        x0 = stacked.pop("x")
        stacked.pop(CUT, None)
        x0 = x0.float() / 127.5 - 1 if x0.dtype == torch.uint8 else x0.float()
        given = {name.removeprefix(CONDITION): value for name, value in stacked.items()}
        return Batch(x0, {k: _read(v) for k, v in given.items() if k in self.spec.keys})

    def _shard(self, shard: int) -> dict[str, Tensor]:
        if shard not in self._shards:
            self._shards[shard] = self._opened(shard)
        return self._shards[shard]

    def _opened(self, shard: int, *, verify: bool = False) -> dict[str, Tensor]:
        about = self.about
        count = min(about.shard_size, about.n - shard * about.shard_size)
        path = self.folder / name_of(shard)
        shapes = about.shapes(count)
        return shards.unpacked(path, KEY, about.stamp(shard), shapes, AGAIN, verify=verify)


def stored_conditions(
    cond: Mapping[str, Tensor], spec: DataSpec, stored: torch.dtype
) -> dict[str, Tensor]:
    """Conditions as shards hold them, by tensor name: tokens as int32, embeddings as ``stored``."""
    kinds = {f"{CONDITION}{name}": one for name, one in spec.conditions.items()}
    tensors: dict[str, Tensor] = {}
    for key, value in cond.items():
        name = f"{CONDITION}{key}"
        if isinstance(kinds.get(name), Text):
            value = value.to(torch.int32)
        elif value.is_floating_point():
            value = value.to(stored)
        tensors[name] = value
    return tensors


def _read(value: Tensor) -> Tensor:
    """A stored condition as networks read it."""
    if value.dtype == torch.int32:
        return value.long()
    return value.float() if value.is_floating_point() else value
