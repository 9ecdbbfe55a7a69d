"""Copies of the student: targets, and teachers on the student's path."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from fewstep.core import UsageError, local
from fewstep.models import AbstractDenoiser
from fewstep.models.low_rank import base_names
from fewstep.weights import averageable, freeze, write

M = TypeVar("M", bound=nn.Module)


def frozen_copy(module: M) -> M:
    """Copy a module out of any optimiser's reach, in the same mode (train or eval).

    Of networks of which adapters alone learn, the copy shares the weights that stay what they are.
    """
    base = base_names(module)
    shared = [p for name, p in module.named_parameters() if name in base]
    return freeze(copy.deepcopy(module, {id(p): p for p in shared}))


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Set parameters to rate * target + (1 - rate) * source; copy buffers and integers."""
    pairs = [*zip(target.parameters(), source.parameters(), strict=True)]
    pairs = [(old, new) for old, new in pairs if old is not new]
    followers = [local(old) for old, _ in pairs if averageable(old)]
    sources = [local(new) for old, new in pairs if averageable(old)]
    torch._foreach_lerp_(followers, sources, 1 - rate)  # pyright: ignore[reportPrivateImportUsage]
    rest = [(old, new) for old, new in pairs if not averageable(old)]
    for old, new in (*rest, *zip(target.buffers(), source.buffers(), strict=True)):
        write(old, new)


def on_path_of(student: AbstractDenoiser, teacher: AbstractDenoiser) -> AbstractDenoiser:
    """Freeze the teacher and return it.

    Raises:
        UsageError: it is on another path than the student.
    """
    if teacher.path != student.path:
        raise UsageError(
            f"the teacher lives on {teacher.path}, the student on {student.path}; read the teacher "
            "on the student's path with teacher.on(student.path)"
        )
    return teacher.eval().requires_grad_(False)
