"""Files of low-rank adapters (LoRA) in three dialects, and networks to which they are added."""

from fewstep.adapters.adapter import Adapter, Factors
from fewstep.adapters.adding import adapter_of, add, matched
from fewstep.adapters.dialects import COMPONENTS, DIALECTS, Component, Dialect, flattened
from fewstep.adapters.files import read_adapter, write_adapter

__all__ = [
    "COMPONENTS",
    "DIALECTS",
    "Adapter",
    "Component",
    "Dialect",
    "Factors",
    "adapter_of",
    "add",
    "flattened",
    "matched",
    "read_adapter",
    "write_adapter",
]
