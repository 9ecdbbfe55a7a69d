"""How much a run will write to the disk, beside what is free there."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fewstep.training.checkpoints import learned_in, once
from fewstep.training.config import Run
from fewstep.training.optimizers import state_size
from fewstep.training.posthoc import PowerFunction
from fewstep.training.trainer import Trainer

GIB = 2**30


@dataclass(frozen=True)
class Space:
    """Bytes that a run's folder holds at most.

    Args:
        checkpoint: one checkpoint, with its model.
        checkpoints: all that are there at once, the one that is being written included.
        rest: models, averages and snapshots.
    """

    checkpoint: int
    checkpoints: int
    rest: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.checkpoints * self.checkpoint + self.rest


def space(run: Run, trainer: Trainer) -> Space:
    """What a run will write, weights only: pictures and the log are small beside them."""
    config, objective = run.config, trainer.objective
    weights = once(objective, tuple(f"{n}." for n in objective.frozen))
    learned = _bytes(v for name, v in weights.items() if name not in trainer.base)
    model = _bytes(once(objective.student).values())
    copies = [*trainer.averages.copies.values()]
    averages = sum(_bytes(learned_in(copy).values()) for copy in copies)
    moments = sum(state_size(parameters, config) for parameters in trainer.trained.values())
    saves = -(-config.steps // config.save_every)
    kept = min(config.keep, saves) + 1
    if config.keep_every:
        kept += config.steps // config.keep_every
    powers = sum(isinstance(rule, PowerFunction) for rule in trainer.averages.rules.values())
    snapshots = powers * (config.steps // config.snapshot_every) if config.snapshot_every else 0
    # The run's model is written beside the one that it replaces.
    models = 2 + max(0, len(copies) - 1) + snapshots + 2 * bool(config.keep_best)
    return Space(learned + averages + moments + model, kept, models * model)


def space_line(run: Run, trainer: Trainer, folder: Path) -> str:
    """What a run will write and what is free, as a line of a dry run."""
    needed, free = space(run, trainer), _free(folder)
    return (
        f"disk: at most {_size(needed.total)} ({needed.checkpoints} checkpoints of "
        f"{_size(needed.checkpoint)}, the rest {_size(needed.rest)}); {_size(free)} are free"
    )


def shortage(run: Run, trainer: Trainer, folder: Path) -> str | None:
    """What to say at the start where a run will not fit on the disk."""
    needed = space(run, trainer).total
    there = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    if needed <= _free(folder) + there:
        return None
    return (
        f"{space_line(run, trainer, folder)}: it may end before the run does; free some space, "
        "lower --train.keep, or raise --train.keep-every and --train.snapshot-every"
    )


def _free(folder: Path) -> int:
    """Bytes that are free where a folder is or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _size(count: int) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 2**10:,.1f} KiB"
