"""What an import makes of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps
from pathlib import Path

from fewstep.card_text import MOVED
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

    def readme(self, out: Path) -> str:
        """The text of README.md of the model folder ``out``."""
        return (
            "# A model imported by fewstep\n\n"
            "Its weights come from a checkpoint of another repository, whose licence applies to "
            f"it.\n\n```\n{self.report.summary()}\n```\n\n```python\nimport fewstep\n\n"
            f"x = fewstep.load({dumps(str(out))}).sample(16)\n```\n\n{MOVED}\n"
        )
