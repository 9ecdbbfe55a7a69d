"""Hooks of the whole suite."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import install_import_hook

# Shapes are checked at run time, in the tests only: the checks break torch.compile.
for name in ("core", "paths", "times", "steps", "solvers", "models", "objectives"):
    install_import_hook(f"fewstep.{name}", "shape_checks.checked")

torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line a golden topic; reports bring it to xdist's controller as a user property."""
    reports = (r for rs in terminalreporter.stats.values() for r in rs)
    properties = (p for r in reports for p in getattr(r, "user_properties", []))
    for line in sorted({value for name, value in properties if name == "golden"}):
        terminalreporter.write_line(line)
