"""Snapshots of EDM2's power-function averages, from which an average of another width is made.

A training of EDM2 writes one file for each stored average (Karras et al. 2024, section 3). Only the
file's name says when it was taken and of which width it is: ``...-KIMG-STD.pkl``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.importing.archives import Archive, open_archive
from fewstep.importing.formats import edm2
from fewstep.importing.options import ImportOptions
from fewstep.importing.parts import Part
from fewstep.importing.result import Imported
from fewstep.importing.storages import Lazy, checked

NAME = re.compile(r"(?P<run>.*)-(?P<kimg>\d{7})-(?P<std>\d\.\d{3})\.pkl")
FIXED = ("fourier.freqs", "fourier.phases")
"""Ends of the names of tensors that no training changes: all snapshots of one have the same."""


@dataclass(frozen=True)
class Snapshot:
    """A file that EDM2 wrote.

    Args:
        path: of the file.
        kimg: thousands of images seen, as the name says, rounded down.
        std: the relative width of the average.
    """

    path: Path
    kimg: int
    std: float

    @property
    def images(self) -> int:
        """Images seen; EDM2 takes snapshots at multiples of 1024, and the name has thousands."""
        return round(self.kimg * 1000 / 1024) * 1024


def edm2_snapshots(folder: Path) -> list[Snapshot]:
    """The snapshots in a folder, from early to late; none where the folder has no such files.

    Raises:
        UsageError: they are of several trainings.
    """
    matches = [(path, NAME.fullmatch(path.name)) for path in sorted(folder.glob("*.pkl"))]
    named = [(path, match) for path, match in matches if match]
    if len(runs := sorted({match["run"] for _, match in named})) > 1:
        raise UsageError(
            f"{folder} holds snapshots of several trainings, {', '.join(runs)}; give a folder with "
            "those of one"
        )
    found = [Snapshot(path, int(m["kimg"]), float(m["std"])) for path, m in named]
    return sorted(found, key=lambda each: (each.kimg, each.std))


def average_of(
    snapshots: Sequence[Snapshot], weights: Sequence[float], options: ImportOptions | None = None
) -> Imported:
    """The model whose weights are a sum of those of snapshots, in float64.

    Args:
        snapshots: of one training.
        weights: of each of them in the sum; they add up to 1.
        options: what the files do not say.

    Raises:
        UsageError: a file cannot be read or is not of this training.
    """
    options = options or ImportOptions()
    archives = [open_archive(snapshot.path) for snapshot in snapshots]
    parts = [_network(archive, options) for archive in archives]
    states = [part.state() for part in parts]
    first = states[0]
    for archive, part, state in zip(archives, parts, states, strict=True):
        same = {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in first.items()}
        if not same or _plain(part) != _plain(parts[0]):
            raise UsageError(f"{archive.source} holds another network than {archives[0].source}")
        for name in first:
            if name.endswith(FIXED) and not torch.equal(state[name].tensor(), first[name].tensor()):
                raise UsageError(
                    f"{archive.source} and {archives[0].source} are of different trainings: they "
                    f"differ in {name}, which no training changes"
                )
    total = {
        name: first[name]
        if name.endswith(FIXED)
        else _sum(name, [state[name] for state in states], weights)
        for name in first
    }
    # The sums are in float32, the files in float16.
    whole = replace(archives[0], size=2 * sum(archive.size for archive in archives))
    return edm2.imported(whole, parts[0], total, options, f"an average of {len(states)} snapshots")


def _network(archive: Archive, options: ImportOptions) -> Part:
    if not edm2.FORMAT.recognise(archive):
        raise UsageError(f"{archive.source} holds no EDM2 network")
    return edm2.network_of(archive, options)[1]


def _plain(part: Part) -> dict[str, object]:
    """Numbers and words that make a network what it is."""
    return {
        f"{name}.{key}": value
        for name, each in part.walk()
        for key, value in each.attributes.items()
        if isinstance(value, int | float | str)
    }


def _sum(name: str, parts: Sequence[Lazy], weights: Sequence[float]) -> Lazy:
    def load() -> Tensor:
        total = torch.zeros(parts[0].shape, dtype=torch.float64)
        for part, weight in zip(parts, weights, strict=True):
            total += weight * checked(name, part).double()
        return total.float()

    return Lazy(parts[0].shape, torch.float32, load)
