"""What became of every tensor of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Report:
    """What was read from where.

    Args:
        format: the checkpoint's format.
        used: for each tensor of the checkpoint that the model has, its name there.
        unused: for each tensor that the model does not have, why it needs none.
        notes: what a user should know of the model that was made.
    """

    format: str
    used: Mapping[str, str] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The report as a mapping that JSON can hold."""
        return {
            "format": self.format,
            "notes": list(self.notes),
            "used": dict(self.used),
            "unused": dict(self.unused),
        }

    def summary(self) -> str:
        """A few lines for people."""
        same = sum(theirs == ours for theirs, ours in self.used.items())
        lines = [
            f"format: {self.format}",
            f"tensors: {len(self.used)} used ({len(self.used) - same} renamed), "
            f"{len(self.unused)} not needed",
        ]
        reasons: dict[str, int] = {}
        for reason in self.unused.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        lines += [f"  {count} not needed: {reason}" for reason, count in reasons.items()]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])
