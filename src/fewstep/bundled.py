"""The models that come with the package, by name; importing this imports no torch."""

from __future__ import annotations

from pathlib import Path

from fewstep import hub
from fewstep.errors import UsageError

BUNDLED = ("digits-cd", "digits-edm")


def check_teacher(name: str, trained_by: str) -> None:
    """Refuse a teacher that is neither a folder nor bundled nor named as one on the Hub.

    Args:
        name: of the teacher.
        trained_by: the recipe, perhaps with options, that trains such teachers.

    Raises:
        UsageError: it is none of them; the message says how to train one.
    """
    if hub.names(name):
        hub.parse(name)
        return
    if not Path(name).exists() and name not in BUNDLED:
        raise UsageError(
            f"no teacher {name!r}: not a folder, and not bundled ({', '.join(BUNDLED)}); name one "
            f"with --teacher, or train one with: fewstep train {trained_by} --out {name}"
        )
