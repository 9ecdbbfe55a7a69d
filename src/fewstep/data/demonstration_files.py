"""Files of demonstrations.

A file holds all steps of all episodes one after another: ``action`` ``(steps, actions)``,
``observation`` (or ``state``) ``(steps, observed)`` and ``episode_ends`` ``(episodes,)``, the index
behind each episode's last step. It is a safetensors file, an ``.npz``, or a zarr folder of
Diffusion Policy (``data/action``, ``data/state``, ``meta/episode_ends``; extra ``robots``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fewstep.core import UsageError
from fewstep.data.demonstrations import OBSERVATION, Demonstrations
from fewstep.errors import in_words
from fewstep.system.files import whole_file

ACTION, ENDS = "action", "episode_ends"
OBSERVED = ("observation", "state")
"""Names of what a robot observes; the first that a file has is read."""


def read_demonstrations(
    path: str | os.PathLike[str], observe: Callable[[np.ndarray], np.ndarray] | None = None
) -> Demonstrations:
    """The demonstrations of a file.

    Args:
        path: a safetensors file, an ``.npz``, or a zarr folder.
        observe: makes of the stored observations what a policy is given.

    Raises:
        UsageError: the file cannot be read, lacks an array, or its arrays do not fit together.
    """
    place = Path(path)
    arrays = (_zarr if place.is_dir() else _npz if place.suffix == ".npz" else _tensors)(place)
    name = next((name for name in OBSERVED if name in arrays), None)
    missing = [key for key in (ACTION, ENDS) if key not in arrays]
    if name is None or missing:
        wanted = [*missing, *([] if name else [" or ".join(OBSERVED)])]
        raise UsageError(f"{place} holds no {', '.join(wanted)}; it has {', '.join(arrays)}")
    observation = arrays[name] if observe is None else observe(arrays[name])
    try:
        return Demonstrations(arrays[ACTION], observation, arrays[ENDS].astype(np.int64))
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error


def write_demonstrations(path: str | os.PathLike[str], demonstrations: Demonstrations) -> Path:
    """Write demonstrations as a safetensors file to train on; whole or not at all.

    Raises:
        UsageError: the path does not end in ``.safetensors``.
    """
    place = Path(path)
    if place.suffix != ".safetensors":
        raise UsageError(f"the file must end in .safetensors, got {place}")
    arrays = {
        ACTION: demonstrations.action,
        OBSERVATION: demonstrations.observation,
        ENDS: demonstrations.ends,
    }
    with whole_file(place) as fresh:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, fresh)
    return place


def holds_demonstrations(path: str | os.PathLike[str]) -> bool:
    """Whether a safetensors file holds demonstrations, by the names of its arrays."""
    try:
        with safe_open(path, framework="np") as file:
            return {ACTION, ENDS} <= set(file.keys())
    except (OSError, SafetensorError):
        return False


def _tensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} holds no demonstrations ({in_words(error)})") from error


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            wanted = [name for name in file.files if name in {ACTION, ENDS, *OBSERVED}]
            return {name: file[name] for name in wanted}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} holds no demonstrations ({in_words(error)})") from error


def _zarr(path: Path) -> Mapping[str, np.ndarray]:
    try:
        import zarr  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            f"to read {path} install the extra, pip install 'fewstep[robots]'; or give the "
            "demonstrations as a safetensors file"
        ) from error
    try:
        store = zarr.open_group(path, mode="r")
        named = {name: f"data/{name}" for name in (ACTION, *OBSERVED)} | {ENDS: f"meta/{ENDS}"}
        return {name: np.asarray(store[at]) for name, at in named.items() if at in store}
    except Exception as error:  # zarr raises all kinds on folders that are none of its own
        raise UsageError(f"{path} holds no demonstrations ({in_words(error)})") from error
