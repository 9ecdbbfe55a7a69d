"""Golden checkpoints: files that official classes wrote, with their inputs and outputs.

They lie in ``checkpoints`` of the folder of golden vectors, see ``golden_sets``, and nothing here
or in the tests knows a number or a size of them. A topic that the folder does not have is skipped.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from golden_sets import folder

TIGHT = 1e-5
"""Error of float32 outputs, relative to the largest of them (or to 1)."""


class Rounding(float):
    """A tolerance for numbers that official code rounds by more than the entry's tolerance."""


@dataclass(frozen=True)
class Official:
    """A topic: its settings, arrays and files."""

    name: str
    document: Mapping[str, Any]
    arrays: Mapping[str, Tensor]
    files: Mapping[str, Path]

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.document["settings"]

    def file(self, part: str) -> Path:
        """The one file whose name has that part."""
        found = [path for name, path in self.files.items() if part in name]
        assert len(found) == 1, (part, [*self.files])
        return found[0]

    def cond(self, key: str = "class_labels") -> dict[str, Tensor]:
        """The label, of one-hot rows or of numbers."""
        if "y" in self.arrays:
            return {"label": self.arrays["y"]}
        return {"label": self.arrays[key].argmax(1)} if key in self.arrays else {}


def official(name: str, tmp_path: Path) -> Official:
    """A topic, whose packed files are unpacked into a folder."""
    root = folder() / "checkpoints"
    if not (root / f"{name}.json").exists():
        pytest.skip(f"the golden folder has no checkpoint {name}")
    document = json.loads((root / f"{name}.json").read_text())
    files = {}
    for each in document["files"]:
        packed = root / each["file"]
        plain = tmp_path / each["file"].removesuffix(".gz")
        plain.write_bytes(
            gzip.decompress(packed.read_bytes()) if each["gzip"] else packed.read_bytes()
        )
        files[plain.name] = plain
    with np.load(root / f"{name}.npz") as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    return Official(name, document, tensors, files)


Values = Callable[[Official], Iterator[tuple[Any, ...]]]
"""(name of an output, our value, tolerance), for every output that is compared; an array that is
the same as far as ours goes gives a fourth entry: how many of its channels that are."""


def compare(
    topic: Official, values: Iterator[tuple[Any, ...]], record_property: Callable[..., None]
) -> None:
    """Compare all outputs of a topic, and hand its line to the terminal summary."""
    entries = {e["name"]: e["settings"] for e in topic.document["entries"]}
    outputs = {name for name, settings in entries.items() if settings["role"] == "output"}
    compared, failures = set(), []
    for name, value, tolerance, *view in values:
        want = topic.arrays[name]
        want = want[:, : view[0]] if view else want
        compared.add(name)
        error = (value.double() - want.double()).abs()
        scale = max(1.0, float(want.abs().max()))
        recorded = entries[name]["atol"] + entries[name]["rtol"] * want.abs().double()
        rounded = isinstance(tolerance, Rounding)
        if value.shape != want.shape or not (rounded or bool((error <= recorded).all())):
            failures.append(f"{name}: off by {float(error.max()):.3g}, beyond what is recorded")
        elif not float(error.max()) <= tolerance * scale:
            failures.append(f"{name}: off by {float(error.max()):.3g} of {scale:.3g}")
    failures += [f"{name}: not compared" for name in sorted(outputs - compared)]
    line = f"golden checkpoints/{topic.name}: {len(compared)} of {len(outputs)} arrays compared"
    record_property("golden", line)
    assert not failures, "\n".join(failures)
