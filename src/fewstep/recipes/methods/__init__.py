"""The methods, a file each: every module of this folder lists what it defines in ``METHODS``."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from fewstep.recipes.method import Method

_MODULES = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
_ALL = [method for module in _MODULES for method in module.METHODS]

METHODS: dict[str, Method] = {m.name: m for m in sorted(_ALL, key=lambda m: (m.year, m.name))}
"""All methods by name, in the order of their years."""

STUDENTS: tuple[str, ...] = tuple(
    n for n, method in METHODS.items() if not (method.diffusion or method.tunes)
)
"""The methods that make models of few steps."""
