"""Values of options that are lists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fewstep.errors import UsageError, nearest
from fewstep.option_kinds import optional

SOLVER_NAMES = ("heun", "euler", "ddim", "dpm", "dpm++2m")
"""The solvers of a diffusion model's ODE: the keys of ``fewstep.sampling_options.SOLVERS``."""

SolverName = Annotated[str | None, optional("|".join(SOLVER_NAMES))]
"""One of these, by its name; what is none is refused with the nearest of them."""


def replaced(*files: Path) -> str:
    """What to add to the line on what was written, asked before: whether something was there."""
    return ", which replaced what was there" if any(file.exists() for file in files) else ""


def check_solver(name: str | None) -> None:
    """Refuse a name that is no solver's.

    Raises:
        UsageError: it is none.
    """
    if name is not None and name not in SOLVER_NAMES:
        raise UsageError(f"--solver {name!r} is none; {nearest(name, SOLVER_NAMES)}")


def numbers(option: str, text: str, kind: type) -> list[Any]:
    """1,2,5 and, for whole numbers, 0-63."""
    values: list[Any] = []
    try:
        for part in text.split(","):
            low, dash, high = part.partition("-")
            if kind is int and dash and low:
                first, last = int(low), int(high)
                if not first <= last < first + 1_000_000:
                    raise ValueError
                values += range(first, last + 1)
            else:
                values.append(kind(part))
    except ValueError:
        example = "0-63 or 1,5,9" if kind is int else "80,0.8"
        raise UsageError(f"{option} must look like {example}, got {text!r}") from None
    return values
