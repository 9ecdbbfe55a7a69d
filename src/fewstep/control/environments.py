"""Environments in which policies are judged: how each is made, observed and acted in.

An entry of ``ENVIRONMENTS`` is all that a new environment needs. It follows Gymnasium: ``reset``
returns an observation and a mapping, ``step`` those and reward, end and time-out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewstep.data.pusht import seen_state
from fewstep.errors import UsageError, nearest

FIRST_SEED = 100_000
"""Episode i of an evaluation begins as seed ``FIRST_SEED + i`` says."""


@dataclass(frozen=True)
class Environment:
    """An environment.

    Args:
        title: in tables.
        make: a new environment.
        observe: its observation as the demonstrations have it, ``(observed,)``.
        bounds: the least and the largest value of an action. Actions are clipped to them, because
            environments do not all do so.
        success: whether what a step says means success.
        rate: steps a second, for films.
    """

    title: str
    make: Callable[[], Any]
    observe: Callable[[Any], np.ndarray]
    bounds: tuple[float, float]
    success: Callable[[Mapping[str, Any]], bool]
    rate: int

    def clipped(self, action: np.ndarray) -> np.ndarray:
        """The action within the bounds."""
        return action.clip(*self.bounds)


def _push_t() -> Any:
    try:
        import gym_pusht  # pyright: ignore[reportMissingImports] # noqa: F401
        import gymnasium  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            "the environment pusht needs the extra, pip install 'fewstep[robots]'"
        ) from error
    return gymnasium.make("gym_pusht/PushT-v0", obs_type="state", render_mode="rgb_array")


ENVIRONMENTS: dict[str, Environment] = {
    "pusht": Environment(
        title="Push-T",
        make=_push_t,
        observe=seen_state,
        bounds=(0.0, 512.0),
        success=lambda info: bool(info["is_success"]),
        rate=10,
    )
}
"""Environments by name."""


def environment(name: str) -> Environment:
    """The environment of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in ENVIRONMENTS:
        raise UsageError(f"no environment {name!r}; {nearest(name, ENVIRONMENTS)}")
    return ENVIRONMENTS[name]
