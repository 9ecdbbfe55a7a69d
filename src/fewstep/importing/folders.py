"""Folders that diffusers writes: descriptions in JSON, and weights in one file or in several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import UsageError
from fewstep.importing.archives import open_archive, read_json
from fewstep.importing.parts import plain_state
from fewstep.importing.storages import Lazy

WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.fp16.safetensors",
)
INDEX = "diffusion_pytorch_model.safetensors.index.json"


@dataclass(frozen=True)
class Weights:
    """The tensors of a folder.

    Args:
        source: the file, or the index of several.
        tensors: by name.
        size: bytes of the files.
    """

    source: Path
    tensors: Mapping[str, Lazy]
    size: int


def network_folder(root: Path) -> Path:
    """Where the network of a pipeline is, or of a network alone: the folder with its config."""
    return root / "unet" if (root / "model_index.json").is_file() else root


def read_config(folder: Path, name: str, kind: str) -> dict[str, Any]:
    """A description whose class has that name.

    Raises:
        UsageError: it is missing, or of another class.
    """
    config = read_json(folder / name)
    if config.get("_class_name") != kind:
        raise UsageError(
            f"{folder / name} describes a {config.get('_class_name')!r:.100}, expected {kind!r}"
        )
    return config


def read_weights(folder: Path) -> Weights:
    """The tensors of a network's folder.

    Raises:
        UsageError: there are none, or a file of them is missing, damaged or elsewhere.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            archive = open_archive(folder / name)
            return Weights(archive.source, _state(archive.source, archive.content), archive.size)
    if not (folder / INDEX).is_file():
        raise UsageError(f"{folder} holds no weights; expected {' or '.join((*WEIGHTS, INDEX))}")
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UsageError(f"{folder / INDEX} has no weight_map, which says what is in which file")
    shards: dict[str, Mapping[str, Lazy]] = {}
    size = 0
    for shard in {*map(str, places.values())}:
        if shard != Path(shard).name or "\\" in shard or shard in {"", ".", ".."}:
            raise UsageError(
                f"{folder / INDEX} names the file {shard[:200]!r}, which is not in this folder"
            )
        archive = open_archive(folder / shard)
        shards[shard] = _state(archive.source, archive.content)
        size += archive.size
    absent = [name for name, shard in places.items() if name not in shards[str(shard)]]
    if absent:
        raise UsageError(f"{folder / INDEX} names {absent[0]!r:.200}, which its file does not hold")
    tensors = {name: shards[str(shard)][name] for name, shard in places.items()}
    return Weights(folder / INDEX, tensors, size)


def _state(source: Path, content: Any) -> Mapping[str, Lazy]:
    state = plain_state(content)
    if state is None:
        raise UsageError(f"{source} holds something else than tensors by name")
    return state
