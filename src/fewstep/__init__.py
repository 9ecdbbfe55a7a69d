"""fewstep: generative models that need one to four network calls.

``import fewstep`` is quick: torch comes with the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewstep.version import __version__

if TYPE_CHECKING:
    from fewstep import recipes as recipes
    from fewstep.core import Batch as Batch
    from fewstep.errors import UsageError as UsageError
    from fewstep.exporting import export as export
    from fewstep.importing import ImportOptions as ImportOptions
    from fewstep.importing import import_checkpoint as import_checkpoint
    from fewstep.model import Model as Model
    from fewstep.model import load as load
    from fewstep.recipes import recipe as recipe
    from fewstep.recipes.training import train as train

_HOMES = {
    "Batch": "fewstep.core",
    "ImportOptions": "fewstep.importing",
    "Model": "fewstep.model",
    "UsageError": "fewstep.errors",
    "export": "fewstep.exporting",
    "import_checkpoint": "fewstep.importing",
    "load": "fewstep.model",
    "recipe": "fewstep.recipes",
    "train": "fewstep.recipes.training",
}

__all__ = [
    "Batch",
    "ImportOptions",
    "Model",
    "UsageError",
    "__version__",
    "export",
    "import_checkpoint",
    "load",
    "recipe",
    "recipes",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "recipes":
        return import_module("fewstep.recipes")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
