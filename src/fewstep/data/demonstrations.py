"""Demonstrations of a robot as training data: action chunks, and the observations before them.

A file holds all steps of all episodes one after another: ``action`` ``(steps, actions)``,
``observation`` (or ``state``) ``(steps, observed)`` and ``episode_ends`` ``(episodes,)``, the index
behind each episode's last step. It is a safetensors file, an ``.npz``, or a zarr folder of
Diffusion Policy (``data/action``, ``data/state``, ``meta/episode_ends``; extra ``robots``).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fewstep.conditions import Vector
from fewstep.contract import DataSpec
from fewstep.core import Batch, UsageError
from fewstep.data.arrays import Arrays, Indices
from fewstep.errors import in_words
from fewstep.frontends import Frontend
from fewstep.frontends.chunks import ChunkCodec
from fewstep.system.files import whole_file

ACTION, ENDS = "action", "episode_ends"
OBSERVED = ("observation", "state")
"""Names of what a robot observes; the first that a file has is read."""
OBSERVATION = "observation"
"""The condition of a policy."""

HORIZON, SEEN, EXECUTED = 16, 2, 8
"""Steps of a chunk, observations before it, and actions that are executed (Chi et al. 2023)."""


@dataclass(frozen=True)
class Demonstrations:
    """All steps of all episodes.

    Args:
        action: ``(steps, actions)`` in the robot's units.
        observation: ``(steps, observed)``.
        ends: int64 ``(episodes,)``, ascending; the last one is the number of steps.

    Raises:
        UsageError: the arrays do not fit together, or a value is not finite.
    """

    action: np.ndarray
    observation: np.ndarray
    ends: np.ndarray

    def __post_init__(self) -> None:
        steps = len(self.action)
        for name, array in (("actions", self.action), ("observations", self.observation)):
            if array.ndim != 2 or len(array) != steps or not array.size:
                raise UsageError(
                    f"demonstrations need actions and observations of the same number of steps, "
                    f"each step a row of numbers; got {self.action.shape} and "
                    f"{self.observation.shape}"
                )
            bad = np.flatnonzero(~np.isfinite(array).all(1))
            if len(bad):
                raise UsageError(
                    f"the {name} hold values that are not finite, first at step {bad[0]}; leave "
                    "out the episode"
                )
        ends = self.ends
        if ends.ndim != 1 or not len(ends) or ends[-1] != steps or (np.diff(ends) <= 0).any():
            raise UsageError(
                f"the ends of episodes must ascend to the number of steps, {steps}, got "
                f"{ends.tolist()[:3]} to {ends.tolist()[-1:]}"
            )

    def windows(self, horizon: int, seen: int, executed: int) -> np.ndarray:
        """The steps of all windows, int64 ``(windows, horizon)``.

        A window may begin ``seen - 1`` steps before its episode and end ``executed - 1`` steps
        behind it; the first or the last step stands for those that are not there.

        Args:
            horizon: steps of a window.
            seen: the observations at its beginning.
            executed: actions that are executed of a chunk.

        Raises:
            UsageError: an episode is too short for any window.
        """
        before, behind = seen - 1, executed - 1
        parts, first = [], 0
        for number, end in enumerate(self.ends.tolist()):
            starts = np.arange(-before, end - first - horizon + behind + 1)
            if not len(starts):
                raise UsageError(
                    f"episode {number} has {end - first} step(s), and a window of {horizon} needs "
                    f"{horizon - before - behind} or more; leave it out"
                )
            steps = starts[:, None] + np.arange(horizon)
            parts.append(first + steps.clip(0, end - first - 1))
            first = end
        return np.concatenate(parts)

    def part(self, episodes: np.ndarray) -> Demonstrations:
        """Some of the episodes, in their order."""
        ends = self.ends.tolist()
        pairs = [*zip([0, *ends[:-1]], ends, strict=True)]
        chosen = [pairs[episode] for episode in episodes.tolist()]
        steps = np.concatenate([np.arange(*pair) for pair in chosen])
        lengths = [end - first for first, end in chosen]
        return Demonstrations(self.action[steps], self.observation[steps], np.cumsum(lengths))


class Chunks:
    """Action chunks in [-1, 1] with the observations at their beginning: data of a policy.

    Sample i is the actions of a window, ``(actions, horizon)``; its condition ``observation`` is
    the normalised observations of the window's first steps, ``(seen, observed)``.

    Args:
        demonstrations: whose windows these are.
        codec: the normaliser; fitted to these demonstrations if not given.
        horizon: steps of a chunk.
        seen: observations that a policy is given.
        executed: actions of a chunk that are executed, by which windows reach beyond an episode.

    Attributes:
        frontend: with the normaliser, which trained models take along.
        sigma_data: standard deviation of the normalised actions.

    Raises:
        UsageError: an episode is too short, or the codec is of other dimensions.
    """

    labels, image = 0, False

    def __init__(
        self,
        demonstrations: Demonstrations,
        codec: ChunkCodec | None = None,
        *,
        horizon: int = HORIZON,
        seen: int = SEEN,
        executed: int = EXECUTED,
    ) -> None:
        action = torch.from_numpy(demonstrations.action.astype(np.float32))
        observation = torch.from_numpy(demonstrations.observation.astype(np.float32))
        codec = ChunkCodec.fitted(action, observation) if codec is None else codec
        if (codec.channels, codec.observed) != (action.shape[1], observation.shape[1]):
            raise UsageError(
                f"the demonstrations have {action.shape[1]} actions and observe "
                f"{observation.shape[1]} numbers a step, expected are {codec.channels} and "
                f"{codec.observed}"
            )
        windows = torch.from_numpy(demonstrations.windows(horizon, seen, executed))
        x = codec.encode(action[windows].transpose(1, 2)).clamp(-1, 1)
        observed = codec.observe(observation[windows[:, :seen]])
        self.frontend = Frontend(codec)
        self.shape = tuple(x.shape[1:])
        self.sigma_data = float(x.std())
        spec = DataSpec(
            shape=self.shape,
            range=(-1.0, 1.0),
            conditions={OBSERVATION: Vector(shape=tuple(observed.shape[1:]))},
        )
        conditions = {OBSERVATION: observed.numpy()}
        self._arrays = Arrays(x.numpy(), image=False, conditions=conditions, spec=spec)

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def spec(self) -> DataSpec:
        """What a sample is and depends on."""
        return self._arrays.spec

    @property
    def fingerprint(self) -> str:
        """The sha256 of all chunks and observations."""
        digest = hashlib.sha256()
        for array in self._arrays.arrays().values():
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def batch(self, indices: Indices) -> Batch:
        """The chunks at ``indices`` and their observations."""
        return self._arrays.batch(indices)


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
