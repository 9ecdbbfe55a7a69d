"""Statistics of a data set that say what they are of, and a folder that keeps them.

A Frechet distance is a number about two sets and one judge. Statistics that are kept apart from
their images must therefore carry the judge, its weights, how images were resized for it, and how
many there were; those of unlike judges are not compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.core import UsageError
from fewstep.errors import in_words
from fewstep.metrics.frechet import Moments, frechet_distance, moments_of
from fewstep.metrics.named import NamedFeatures
from fewstep.system.files import sha256, whole_file
from fewstep.version import __version__

CACHE = "FEWSTEP_CACHE"
"""Environment variable: the folder of everything that is kept, ``~/.cache/fewstep`` if not set."""

BATCH = 512


@dataclass(frozen=True)
class Provenance:
    """What statistics are of.

    Args:
        data: sha256 of the images in [-1, 1].
        count: how many there were.
        resolution: ``(c, h, w)`` of one.
        features: name of the judge.
        weights: sha256 of the judge's.
        resize: how images reached the judge's own size.
        version: of this library.
    """

    data: str
    count: int
    resolution: tuple[int, ...]
    features: str
    weights: str
    resize: str
    version: str = __version__


ALIKE = ("resolution", "features", "weights", "resize")
"""In what two statistics must agree before a distance between them means anything."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Moments of a data set and where they come from."""

    moments: Moments
    provenance: Provenance

    def save(self, path: str | Path) -> None:
        """Write one safetensors file with the provenance as its metadata; whole or not at all."""
        tensors = {"mean": self.moments.mean, "cov": self.moments.cov}
        facts = {"provenance": asdict(self.provenance), "sha256": _digest(tensors)}
        with whole_file(Path(path)) as fresh:
            save_file(tensors, fresh, {"fewstep": json.dumps(facts)})


def load_reference(path: str | Path) -> Reference:
    """What ``Reference.save`` wrote.

    Raises:
        UsageError: there is no such file, or it is damaged or of another kind.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["fewstep"])
            tensors = {name: file.get_tensor(name) for name in ("mean", "cov")}
        given = facts["provenance"]
        provenance = Provenance(**{**given, "resolution": tuple(given["resolution"])})
        if facts["sha256"] != _digest(tensors):
            raise ValueError("its numbers do not match their sha256")
    except Exception as error:  # damaged files raise all kinds
        raise UsageError(
            f"{path}: no reference statistics ({in_words(error)}); remove the file and make them "
            "again"
        ) from error
    return Reference(Moments(provenance.count, tensors["mean"], tensors["cov"]), provenance)


def reference_distance(a: Reference, b: Reference) -> float:
    """The Frechet distance of like statistics; warns if they are of unequal counts.

    Raises:
        UsageError: they differ in resolution or judge; the message lists in what.
    """
    old, new = asdict(a.provenance), asdict(b.provenance)
    unlike = [f"{key}: {old[key]} and {new[key]}" for key in ALIKE if old[key] != new[key]]
    if unlike:
        raise UsageError("statistics of unlike judges are not compared\n  " + "\n  ".join(unlike))
    if a.moments.n != b.moments.n:
        warnings.warn(
            f"statistics of {a.moments.n} and of {b.moments.n} samples: the Frechet distance is "
            "biased in both counts, compare only with one of the same counts",
            stacklevel=2,
        )
    return frechet_distance(a.moments, b.moments)


def provenance_of(x: Float[Tensor, " n c h w"], features: NamedFeatures) -> Provenance:
    """What the statistics of ``x`` in ``features`` would be of."""
    data = x.detach().cpu().contiguous()
    shape = f"{data.dtype} {tuple(data.shape)}\n".encode()
    return Provenance(
        data=sha256(shape + data.numpy().tobytes()),
        count=len(x),
        resolution=tuple(x.shape[1:]),
        features=features.name,
        weights=features.weights,
        resize=features.resize,
    )


class References:
    """Statistics of data in one judge, each computed once for a folder.

    A file that cannot be read, or is not of what its name says, is computed again; a folder that
    cannot be written to is done without.

    Args:
        features: the judge.
        folder: by default ``references`` in ``$FEWSTEP_CACHE`` or ``~/.cache/fewstep``.
    """

    def __init__(self, features: NamedFeatures, folder: Path | None = None) -> None:
        home = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "fewstep")
        self.features = features
        self.folder = folder or home / "references"
        self.cached = self.computed = 0
        self.trouble = ""

    def __call__(self, x: Float[Tensor, " n c h w"]) -> Reference:
        """The statistics of ``x``, from the folder or for it.

        Raises:
            UsageError: fewer than 2 samples, or features that are not finite.
        """
        wanted = provenance_of(x, self.features)
        name = sha256(json.dumps(asdict(wanted), sort_keys=True).encode())
        path = self.folder / f"{name}.safetensors"
        if path.is_file():
            try:
                reference = load_reference(path)
            except UsageError:
                reference = None
            if reference is not None and reference.provenance == wanted:
                self.cached += 1
                return reference
        made = Reference(moments_of(x.split(BATCH), self.features), wanted)
        self.computed += 1
        try:
            made.save(path)
        except OSError as error:
            self.trouble = f", not kept ({error.strerror})"
        return made

    def __str__(self) -> str:
        return f"{self.cached} cached, {self.computed} computed{self.trouble}, in {self.folder}"


def _digest(tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        total.update(f"{name} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
