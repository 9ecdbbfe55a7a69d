"""What an import makes of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.importing.report import Report
from fewstep.model import Model


@dataclass(frozen=True)
class Imported:
    """A model of the library, made of a checkpoint.

    Args:
        model: the model, on the CPU.
        report: what became of every tensor.
    """

    model: Model
    report: Report
