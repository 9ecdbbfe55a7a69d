"""How good and how fast: the protocol of every table, reports, pictures, the search for times.

Each name is imported when it is first used, because drawing a picture needs no data sets.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.evaluation.judging import METRICS as METRICS
    from fewstep.evaluation.judging import Protocol as Protocol
    from fewstep.evaluation.judging import shared as shared
    from fewstep.evaluation.named import chosen as chosen
    from fewstep.evaluation.named import named_protocol as named_protocol
    from fewstep.evaluation.named import protocol_of as protocol_of
    from fewstep.evaluation.named import training_samples as training_samples
    from fewstep.evaluation.tables import table as table
    from fewstep.evaluation.tables import write_metrics as write_metrics

_HOMES = {
    "METRICS": "judging",
    "Protocol": "judging",
    "chosen": "named",
    "named_protocol": "named",
    "protocol_of": "named",
    "shared": "judging",
    "table": "tables",
    "training_samples": "named",
    "write_metrics": "tables",
}

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


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
