"""Which weights a phase trains: what its user froze stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import compress

from torch import nn

from fewstep.models import AbstractDenoiser
from fewstep.objectives.base import Objective
from fewstep.weights import averageable, learnable


def chosen_in(module: nn.Module) -> list[bool]:
    """Which parameters of a phase's module learn: what its user froze stays as it is.

    Each denoiser is looked at alone, because copies of loaded models are frozen as a whole and
    learn beside heads that are new.
    """
    learns: set[int] = set()

    def inside(part: nn.Module) -> None:
        whole = isinstance(part, AbstractDenoiser)
        if whole or not any(isinstance(m, AbstractDenoiser) for m in part.modules()):
            learns.update(map(id, learnable(part)))
            return
        own = [p for p in part.parameters(recurse=False) if averageable(p)]
        given = [p for p in own if p.requires_grad]
        learns.update(map(id, given or own))
        for child in part.children():
            inside(child)

    inside(module)
    return [id(p) in learns for p in module.parameters()]


def trained_by(
    objective: Objective, chosen: Mapping[str, Sequence[bool]]
) -> dict[str, list[nn.Parameter]]:
    """What each phase trains, by its name.

    Args:
        objective: whose networks may have been sharded since.
        chosen: a result of :func:`chosen_in` by name of a phase.
    """
    return {
        phase.name: [*compress(phase.module.parameters(), chosen[phase.name])]
        for phase in objective.phases()
    }


@contextmanager
def training(
    objective: Objective, module: nn.Module, parameters: Sequence[nn.Parameter] | None = None
) -> Iterator[None]:
    """Gradients for ``module`` and for nothing else: the one place that decides it.

    Args:
        objective: the method.
        module: of the phase.
        parameters: those of the module that learn; by default all that can.
    """
    objective.requires_grad_(False)
    for parameter in filter(averageable, module.parameters()) if parameters is None else parameters:
        parameter.requires_grad_(True)
    yield
