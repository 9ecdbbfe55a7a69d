"""How good and how fast: the protocol of every table, reports, pictures, the search for times."""

from __future__ import annotations

from fewstep.evaluation.judging import METRICS, Protocol, shared
from fewstep.evaluation.named import chosen, named_protocol, protocol_of, training_samples
from fewstep.evaluation.tables import table, write_metrics

__all__ = [
    "METRICS",
    "Protocol",
    "chosen",
    "named_protocol",
    "protocol_of",
    "shared",
    "table",
    "training_samples",
    "write_metrics",
]
