"""How good and how fast: the protocol of every table, reports, pictures, the search for times."""

from __future__ import annotations

from fewstep.evaluation.protocol import (
    METRICS,
    Protocol,
    chosen,
    learnt,
    named_protocol,
    shared,
)
from fewstep.evaluation.tables import table, write_metrics

__all__ = [
    "METRICS",
    "Protocol",
    "chosen",
    "learnt",
    "named_protocol",
    "shared",
    "table",
    "write_metrics",
]
