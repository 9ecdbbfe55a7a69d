"""Noise and what a diffusion model makes of it, as ``fewstep data pairs`` writes it.

A folder of shards, safetensors files that are mapped, not read: float32 ``noise`` ``(m, *event)``,
of standard deviation 1; ``x`` ``(m, *event)``, where the model's ODE ends, not limited to the
data's range; int64 ``label`` ``(m,)`` of a model with labels, ``cond_KEY`` of one with other
conditions; and ``path`` ``(m, k, *event)``, the states at k times between, if they were asked for.
``pairs.json`` says how they were made; it has the sha256 of every shard once all are there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from fewstep.conditions import Condition, Label
from fewstep.contract import DataSpec
from fewstep.core import Batch, UsageError
from fewstep.data import shards
from fewstep.data.arrays import Indices
from fewstep.data.specs import spec_of
from fewstep.system.files import sha256

if TYPE_CHECKING:
    from fewstep.data import Dataset

RECORD = "pairs.json"
KEY = "pairs"
"""Of what a shard says of itself."""
PREFIX = "pair_"
"""Prefix of a pair's tensors in ``Batch.aux``, beside data of another kind."""
OTHER = "cond_"
"""Prefix of the tensors of conditions that are not the label."""

AGAIN = "repeat the command that made it, fewstep data pairs: it keeps what is whole"


class About(BaseModel):
    """How pairs were made.

    Args:
        format: of the folder.
        teacher: sha256 of the model's weights, ``training.checkpoints.fingerprint`` of its bare
            denoiser.
        path: the path it lives on.
        start: time and standard deviation of the noise.
        solver: of its ODE.
        steps: times at which the solver stops; the last answer is the sample.
        grid: the rule of these times.
        guidance: scale of classifier-free guidance; 1 is none.
        seed: pair i is a function of (seed, i), as samples are.
        label: of all pairs; None is the index modulo ``labels``.
        n: pairs.
        shard_size: pairs in each shard but the last.
        shape: of an event.
        labels: number of classes, 0 without labels.
        range: of the model's data, None if unbounded.
        path_times: descending times of ``path``.
        conditions: of the model, besides its label.
        given: sha256 of the conditions that were given for all pairs; empty where none were.
        sha256: of each shard by name, once all are there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    teacher: str
    path: str
    start: tuple[float, float]
    solver: str
    steps: int = Field(ge=1)
    grid: str
    guidance: float
    seed: int = Field(ge=0)
    label: int | None
    n: int = Field(ge=1)
    shard_size: int = Field(ge=1)
    shape: tuple[int, ...] = Field(min_length=1)
    labels: int = Field(ge=0)
    range: tuple[float, float] | None
    path_times: tuple[float, ...]
    conditions: dict[str, Condition] = Field(default_factory=dict)
    given: str = ""
    sha256: dict[str, str] = Field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """All but the outcome, as JSON has it."""
        # What older pairs do not have is left out of those that do not need it either.
        later = {name for name in ("conditions", "given") if not getattr(self, name)}
        return self.model_dump(mode="json", exclude={"sha256", *later})

    @property
    def spec(self) -> DataSpec:
        """What the model generates."""
        label = {"label": Label(classes=self.labels)} if self.labels else {}
        return DataSpec(shape=self.shape, range=self.range, conditions=label | self.conditions)

    def shards(self) -> list[range]:
        """The indices of each shard."""
        return [
            range(i, min(i + self.shard_size, self.n)) for i in range(0, self.n, self.shard_size)
        ]

    def stamp(self, shard: int) -> str:
        """What shard ``shard`` of these settings is known by."""
        return sha256(json.dumps([shard, self.settings()], sort_keys=True).encode())

    def shapes(self, count: int) -> dict[str, list[int]]:
        """The tensors of a shard of ``count`` pairs."""
        event = list(self.shape)
        shapes = {"noise": [count, *event], "x": [count, *event]}
        for key, null in self.spec.nulls.items():
            shapes["label" if key == "label" else f"{OTHER}{key}"] = [count, *null.shape]
        k = len(self.path_times)
        return shapes | ({"path": [count, k, *event]} if k else {})


def name_of(shard: int) -> str:
    """The file of a shard."""
    return f"pairs-{shard:05d}.safetensors"


def packed(tensors: Mapping[str, Tensor], about: About, shard: int) -> bytes:
    """A shard as it lies on the disk; the same tensors give the same bytes."""
    return shards.packed(tensors, KEY, about.stamp(shard))


def opened(path: Path, about: About, shard: int, *, verify: bool = False) -> dict[str, Tensor]:
    """A shard's tensors, mapped.

    Raises:
        UsageError: it is missing, cut short or another one; with ``verify``, changed.
    """
    shapes = about.shapes(len(about.shards()[shard]))
    return shards.unpacked(path, KEY, about.stamp(shard), shapes, AGAIN, verify=verify)


def read_record(folder: Path) -> About:
    """What ``pairs.json`` says.

    Raises:
        UsageError: it is missing or of another kind.
    """
    missing = f"{folder} holds no pairs; make them with fewstep data pairs TEACHER"
    again = "make the pairs again in another folder"
    return shards.read_record(folder / RECORD, About, missing, again)


class Pairs:
    """The pairs in a folder, as a dataset of the model's own samples; beside others, ``Paired``.

    It is pickled by its place: other processes map the files for themselves.

    Args:
        folder: what ``fewstep data pairs`` wrote.
        verify: read all shards and compare their sha256.

    Attributes:
        about: how they were made, ``About``.
        times: the start of the noise, then the times of the path's states.
        shape: of an event.
        labels: number of classes, 0 without labels.
        image: whether ``x0`` is in [-1, 1].
        spec: shape, range and conditions.

    Raises:
        UsageError: the folder holds no pairs, or not all of them.
    """

    def __init__(self, folder: str | os.PathLike[str], *, verify: bool = False) -> None:
        self.folder = Path(folder)
        self.about = about = read_record(self.folder)
        self._shards: dict[int, dict[str, Tensor]] = {}
        names = [name_of(shard) for shard in range(len(about.shards()))]
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing or [*about.sha256] != names:
            raise UsageError(
                f"{self.folder} is not finished: {len(names) - len(missing)} of {len(names)} "
                f"shard(s) are there; {AGAIN}"
            )
        if verify:
            for shard in range(len(names)):
                opened(self.folder / names[shard], about, shard, verify=True)
        self.times = (about.start[0], *about.path_times)
        self.shape, self.labels, self.image = about.shape, about.labels, about.range is not None
        self.spec = about.spec

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def __len__(self) -> int:
        return self.about.n

    def check(self, teacher: str, guidance: float, path: object = None) -> None:
        """That these pairs are a teacher's.

        Args:
            teacher: its ``fingerprint``; of a guided one, that of what is guided.
            guidance: its scale; 1 is none.
            path: that it is read on, if it matters.

        Raises:
            UsageError: they are not; all differences are told.
        """
        about = self.about
        compared = [
            ("weights of the teacher", about.teacher[:12], teacher[:12]),
            ("guidance", about.guidance, float(guidance)),
            ("path", about.path, about.path if path is None else str(path)),
        ]
        lines = [
            f"{name}: pairs {had!r}, here {now!r}" for name, had, now in compared if had != now
        ]
        if lines:
            raise UsageError(
                f"the pairs in {self.folder} are another teacher's:\n  "
                + "\n  ".join(lines)
                + "\nmake them anew with fewstep data pairs, or train with the teacher they are of"
            )

    def batch(self, indices: Indices) -> Batch:
        """The pairs at ``indices``: ``aux`` ``pair_noise``, ``pair_x``, and what else there is.

        That is ``pair_label`` of a model with labels, ``pair_cond_KEY`` of one with other
        conditions, ``pair_path`` with states between. ``x0`` is ``pair_x`` within the data's range,
        ``cond`` the conditions.
        """
        index = np.asarray(indices, dtype=np.int64)
        if len(index) and not 0 <= index.min() <= index.max() < len(self):
            raise UsageError(f"there are {len(self)} pairs; got {index.min()} to {index.max()}")
        size = self.about.shard_size
        places = [(self._shard(i // size), i % size) for i in index.tolist()]
        names = self.about.shapes(0)
        aux = {f"{PREFIX}{k}": torch.stack([shard[k][j] for shard, j in places]) for k in names}
        x0 = aux["pair_x"] if self.about.range is None else aux["pair_x"].clamp(*self.about.range)
        cond = {"label": aux["pair_label"]} if self.labels else {}
        start = f"{PREFIX}{OTHER}"
        cond |= {key.removeprefix(start): v for key, v in aux.items() if key.startswith(start)}
        return Batch(x0, cond, aux=aux)

    def _shard(self, shard: int) -> dict[str, Tensor]:
        if shard not in self._shards:
            self._shards[shard] = opened(self.folder / name_of(shard), self.about, shard)
        return self._shards[shard]


class Paired:
    """A dataset with pairs beside it, in ``Batch.aux``: see :meth:`Pairs.batch`.

    An epoch sees every sample equally often, and every pair at least once: where there are more
    pairs than samples it goes through the samples more than once. Which pair comes with a sample
    is a function of the index alone; the order of the indices is random already.

    Args:
        data: any dataset.
        pairs: of events of the same shape.

    Raises:
        UsageError: their shapes differ, or the pairs have conditions that the data has not.
    """

    def __init__(self, data: Dataset, pairs: Pairs) -> None:
        if tuple(data.shape) != tuple(pairs.shape):
            raise UsageError(
                f"the pairs in {pairs.folder} have shape {tuple(pairs.shape)}, the data "
                f"{tuple(data.shape)}; make pairs of a model of this data"
            )
        own = spec_of(data).conditions
        other = [k for k, one in pairs.about.conditions.items() if own.get(k) != one]
        if other:
            raise UsageError(
                f"the pairs in {pairs.folder} depend on {', '.join(other)}, which other data would "
                "contradict; train on the pairs alone"
            )
        self.data, self.pairs = data, pairs
        self.shape, self.labels, self.image = data.shape, data.labels, data.image
        self.spec = spec_of(data)
        self.notes: tuple[str, ...] = tuple(getattr(data, "notes", ()))

    def __len__(self) -> int:
        return len(self.data) * -(-len(self.pairs) // len(self.data))

    def batch(self, indices: Indices) -> Batch:
        """The samples, with pairs in ``aux``."""
        index = np.asarray(indices, dtype=np.int64)
        batch = self.data.batch(index % len(self.data))
        return replace(batch, aux={**batch.aux, **self.pairs.batch(index % len(self.pairs)).aux})
