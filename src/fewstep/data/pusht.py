"""Push-T: 206 demonstrations of a round tool that pushes a T onto its place (Chi et al. 2023).

The files are looked for in ``$FEWSTEP_DATA/pusht_demos`` and ``$FEWSTEP_DATA``: the zarr folder of
Diffusion Policy, ``pusht_cchi_v7_replay.zarr``, or its arrays as ``pusht_lowdim.npz``.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fewstep.core import UsageError
from fewstep.data.demonstration_files import read_demonstrations
from fewstep.data.demonstrations import Chunks, Demonstrations

FILES = ("pusht_lowdim.npz", "pusht_cchi_v7_replay.zarr")
EVERY = 25
"""Each 25th episode is held out: 9 of 206."""


def seen_state(state: np.ndarray) -> np.ndarray:
    """What a policy is given of a state.

    Args:
        state: ``(..., 5)``: places of tool and block in pixels, and the block's angle.

    Returns:
        float32 ``(..., 6)``: the same with sine and cosine of the angle, which have no jump.
    """
    angle = state[..., 4:]
    return np.concatenate([state[..., :4], np.sin(angle), np.cos(angle)], -1).astype(np.float32)


def pusht(part: str) -> Chunks:
    """The chunks of the ``train`` or the ``held_out`` episodes, normalised over all episodes.

    Raises:
        UsageError: the files are nowhere, or are of another data set.
    """
    whole = _demonstrations()
    held_out = np.arange(len(whole.ends)) % EVERY == EVERY - 1
    wanted = np.flatnonzero(held_out if part == "held_out" else ~held_out)
    codec = Chunks(whole).frontend.codec
    assert codec is not None
    return Chunks(whole.part(wanted), codec)  # pyright: ignore[reportArgumentType]


def _demonstrations() -> Demonstrations:
    root = Path(os.environ.get("FEWSTEP_DATA", "."))
    places = [folder / name for folder in (root / "pusht_demos", root) for name in FILES]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise UsageError(
            f"pusht was not found: put {' or '.join(FILES)} of Diffusion Policy into a folder "
            "pusht_demos, and name the folder around it in FEWSTEP_DATA"
        )
    whole = read_demonstrations(found, _checked)
    if whole.action.shape[1] != 2:
        raise UsageError(f"{found} has {whole.action.shape[1]} actions a step, Push-T has 2")
    return whole


def _checked(state: np.ndarray) -> np.ndarray:
    if state.ndim != 2 or state.shape[1] != 5:
        raise UsageError(f"Push-T has 5 numbers a state, got {state.shape}")
    return seen_state(state)
