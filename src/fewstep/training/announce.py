"""What a run says of itself: the header, and the plan of a dry run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.core import UsageError
from fewstep.data import spec_of
from fewstep.doctor import quick
from fewstep.model import find
from fewstep.system.status import unfinished
from fewstep.training.config import Run, TrainConfig
from fewstep.training.folder import notes
from fewstep.training.needs import needs
from fewstep.training.space import space_line
from fewstep.training.trainer import Trainer


def header(run: Run, trainer: Trainer, device: torch.device | None = None) -> str:
    """Data, parameters, the arithmetic of batches, optimiser.

    Args:
        run: what is trained.
        trainer: of it.
        device: where it will be trained, if not where the trainer is.
    """
    config, world = run.config, trainer.world
    count = sum(p.numel() for p in trainer.objective.student.parameters())
    batch = config.batch * config.accumulation
    seen = config.steps * batch
    lines = [
        f"{run.recipe}: {len(run.data):,} samples of {spec_of(run.data).summary()}; "
        f"{count:,} parameters on {device or trainer.device}",
        f"{config.steps:,} steps x {config.batch} x {config.accumulation} = {seen:,} samples, "
        f"{seen / len(run.data):.1f} times each; {config.optimizer} at {config.lr:g}, "
        f"{config.schedule}; {config.precision}",
    ]
    if world.size > 1:
        lines.append(
            f"{world.size} processes ({config.parallel}), each with {len(trainer.shards)} of the "
            f"{config.accumulation} microbatches"
        )
    frozen = count - sum(p.numel() for p in _learning(trainer))
    if frozen:
        lines.append(f"{frozen:,} of the parameters are frozen and stay as they are")
    teacher = run.arguments.get("teacher")
    with suppress(UsageError):
        if isinstance(teacher, str) and (word := unfinished(find(teacher))) is not None:
            lines.append(f"the teacher {word}")
    if run.held_out is not None:
        lines.append(f"held out: {len(run.held_out):,} samples, which training does not see")
        lines += [note for note in notes(run.held_out) if note not in notes(run.data)]
    return "\n".join([*lines, *([run.note] if run.note else []), *notes(run.data)])


def _learning(trainer: Trainer) -> list[nn.Parameter]:
    """The parameters of the student that a phase trains."""
    trained = {id(p) for parameters in trainer.trained.values() for p in parameters}
    return [p for p in trainer.objective.student.parameters() if id(p) in trained]


def cautions(run: Run, trainer: Trainer, before: Mapping[str, Any] | None) -> list[str]:
    """What is to be known of the learning rate before the first step.

    Args:
        run: what will be trained.
        trainer: at the step that training goes on from.
        before: the content of run.json, where there was one.
    """
    config, said = run.config, endless_warmup(run.config)
    done = trainer.step - trainer.stage_start
    steps = (before or {}).get("run", {}).get("train", {}).get("steps")
    if trainer.step and isinstance(steps, int) and steps != config.steps:
        old, new = (replace(config, steps=n).learning_rate(done) for n in (steps, config.steps))
        if abs(old - new) > 0.01 * config.lr:
            said.append(
                f"the {config.schedule} schedule was made for {steps:,} steps and is now for "
                f"{config.steps:,}: at step {trainer.step:,} the learning rate jumps from "
                f"{old:.3g} to {new:.3g}; --train.steps {steps} would keep it"
            )
    return said


def endless_warmup(config: TrainConfig) -> list[str]:
    """A sentence where the warm-up does not end within the run; none where it does."""
    if config.warmup < config.steps:
        return []
    return [
        f"the warm-up of {config.warmup:,} steps does not end within the run's "
        f"{config.steps:,}: the learning rate ends at "
        f"{config.learning_rate(config.steps - 1):.3g}, not {config.lr:g}; lower --train.warmup"
    ]


def teachers_faults(run: Run) -> list[str]:
    """What a quick look at a diffusion teacher finds that needs to be mended."""
    if run.teacher is None or run.teacher.contract.sampling.kind != "ode":
        return []
    try:
        examination = quick(run.teacher, run.data)
    except UsageError as error:
        return [f"teacher: not examined: {error}"]
    faults = [f"teacher: {one}" for one in (*examination.of("stop"), *examination.of("warn"))]
    if not examination.distillable:
        faults.append("training goes on all the same; fewstep doctor says more of the teacher")
    return faults


def plan(run: Run, trainer: Trainer, out: Path, device: torch.device, note: str = "") -> str:
    """What a dry run prints: the header, memory, disk.

    Started with WORLD_SIZE in the environment, memory is that of one of so many processes.

    Args:
        run: what would be trained.
        trainer: of the run.
        out: the run folder.
        device: where it would be trained.
        note: a line behind the header.
    """
    size = int(os.environ.get("WORLD_SIZE") or 1)
    lines = [header(run, trainer, device), *([note] if note else []), *cautions(run, trainer, None)]
    return "\n".join([*lines, needs(run, trainer, device, size), space_line(run, trainer, out)])
