"""Exported graphs, kept so that a model is exported once."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import torch

from fewstep.contract import Contract
from fewstep.engines.check import evaluated, largest_error
from fewstep.engines.graph import DenoiserGraph, examples, free_inputs
from fewstep.engines.onnx import OPSET, write_onnx
from fewstep.engines.sessions import open_onnx
from fewstep.errors import UsageError
from fewstep.models import AbstractDenoiser
from fewstep.system.files import whole_file
from fewstep.version import __version__

_PACKAGE = Path(__file__).resolve().parents[1]
FOLDER = "engines"
"""The folder of exported graphs in a model folder."""


def cached(denoiser: AbstractDenoiser, contract: Contract, folder: Path) -> Path:
    """The file of a denoiser's graph, which is exported and compared with torch if it is new.

    It lies in the model folder, or in the user's cache: that of a bundled model, and where the
    folder cannot be written to.

    Raises:
        UsageError: it cannot be exported, or does not answer as torch does.
    """
    # config.json has the hash of the weights.
    own = (folder / "config.json").read_bytes()
    key = hashlib.sha256(own + f"{__version__} {torch.__version__} {OPSET}".encode())
    name = f"{key.hexdigest()[:16]}.onnx"
    places = [_cache()] if _PACKAGE in folder.resolve().parents else [folder / FOLDER, _cache()]
    for place in places:
        if (place / name).is_file():
            return place / name
    place = next((p for p in places if _writable(p)), None)
    if place is None:
        raise UsageError(
            f"the exported graph can be kept neither in {places[0]} nor in {_cache()}; set "
            "XDG_CACHE_HOME to a folder that you may write to"
        )
    graph = evaluated(DenoiserGraph(denoiser))
    with whole_file(place / name) as fresh:
        free = free_inputs(denoiser, contract)
        write_onnx(graph, examples(denoiser, contract, 2), fresh, free=free)
        largest_error(denoiser, contract, open_onnx(fresh))
    return place / name


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "fewstep" / FOLDER


def _writable(place: Path) -> bool:
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False
