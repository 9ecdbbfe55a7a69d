"""Demonstrations of random numbers, in memory and as the files of Push-T."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fewstep.data.demonstrations import Demonstrations
from fewstep.data.pusht import EVERY


def demonstrations(lengths=(12, 20), actions=2, observed=3) -> Demonstrations:
    rng = np.random.default_rng(0)
    steps = sum(lengths)
    action = rng.uniform(10, 500, (steps, actions)).astype(np.float32)
    observation = rng.normal(5, 3, (steps, observed)).astype(np.float32)
    return Demonstrations(action, observation, np.cumsum(lengths))


def made_pusht(folder: Path, observed: int = 5) -> Demonstrations:
    whole = demonstrations((10,) * (EVERY + 1), observed=observed)
    (folder / "pusht_demos").mkdir()
    np.savez(
        folder / "pusht_demos" / "pusht_lowdim.npz",
        action=whole.action,
        state=whole.observation,
        episode_ends=whole.ends,
    )
    return whole
