"""What an examination says: one finding a line, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FINE = "fine"
Severity = Literal["fine", "note", "warn", "stop"]
"""``note`` needs no action, ``warn`` costs quality, ``stop`` makes distilling pointless."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One property of a teacher.

    Args:
        name: which property.
        value: what was measured, in words.
        advice: what to do, or ``fine``.
        severity: how bad it is.
        numbers: the measurements by name.
    """

    name: str
    value: str
    advice: str = FINE
    severity: Severity = FINE
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.severity:<4}  {self.name}: {self.value}; {self.advice}"


@dataclass(frozen=True)
class Examination:
    """All findings on one model."""

    findings: tuple[Finding, ...]

    def __getitem__(self, name: str) -> Finding:
        """The finding of that name."""
        return next(finding for finding in self.findings if finding.name == name)

    def of(self, severity: Severity) -> list[Finding]:
        """The findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def distillable(self) -> bool:
        """Whether nothing makes distilling pointless."""
        return not self.of("stop")

    def text(self) -> str:
        """A line for each finding, then the verdict."""
        stops, warnings = (", ".join(f.name for f in self.of(s)) for s in ("stop", "warn"))
        if stops:
            verdict = f"do not distil this model before these are cured: {stops}"
        elif warnings:
            verdict = f"this model may be distilled; look first at: {warnings}"
        else:
            verdict = "this model may be distilled"
        return "\n".join([*map(str, self.findings), "", verdict])

    def as_json(self) -> dict[str, Any]:
        """The same as plain values; a number that is not finite is null."""
        return {
            "distillable": self.distillable,
            "findings": [
                {
                    "name": finding.name,
                    "value": finding.value,
                    "advice": finding.advice,
                    "severity": finding.severity,
                    "numbers": _plain(finding.numbers),
                }
                for finding in self.findings
            ],
        }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
