"""What a run says of itself: the header, the plan of a dry run, the model card."""

from __future__ import annotations

import json
import os
from typing import Any

from fewstep.contract import Contract
from fewstep.data import spec_of
from fewstep.training.config import Run
from fewstep.training.folder import RunFolder
from fewstep.training.memory import estimate, table
from fewstep.training.trainer import Trainer


def header(run: Run, trainer: Trainer) -> str:
    """Data, parameters, the arithmetic of batches, optimiser."""
    config, world = run.config, trainer.world
    count = sum(p.numel() for p in trainer.objective.student.parameters())
    batch = config.batch * config.accumulation
    seen = config.steps * batch
    lines = [
        f"{run.recipe}: {len(run.data):,} samples of {spec_of(run.data).summary()}; "
        f"{count:,} parameters on {trainer.device}",
        f"{config.steps:,} steps x {config.batch} x {config.accumulation} = {seen:,} samples, "
        f"{seen / len(run.data):.1f} times each; {config.optimizer} at {config.lr:g}, "
        f"{config.schedule}; {config.precision}",
    ]
    if world.size > 1:
        lines.append(
            f"{world.size} processes ({config.parallel}), each with {len(trainer.shards)} of the "
            f"{config.accumulation} microbatches"
        )
    return "\n".join([*lines, *([run.note] if run.note else [])])


def plan(run: Run, record: dict[str, Any], trainer: Trainer) -> str:
    """What a dry run prints: the resolved recipe, the header, memory.

    Started with WORLD_SIZE in the environment, memory is that of one of so many processes.
    """
    resolved = json.dumps(record["run"], indent=2)
    size = int(os.environ.get("WORLD_SIZE") or 1)
    parts = table(estimate(run, trainer, size), run.config.batch)
    of = f" of each of {size} processes ({run.config.parallel})" if size > 1 else ""
    return f"{resolved}\n{header(run, trainer)}\nmemory{of}, estimated:\n{parts}"


def card(run: Run, trainer: Trainer, folder: RunFolder, made: Contract) -> str:
    """The model card."""
    name = f"samples/{trainer.step:09d}.png"
    samples = f"![samples](../{name})\n\n" if (folder.path / name).exists() else ""
    arguments = "\n".join(f"| {k} | `{v}` |" for k, v in run.arguments.items())
    return (
        f"# {run.recipe}\n\n"
        f"A {made.method} model trained with fewstep for {trainer.step:,} steps.\n\n"
        f"{samples}```python\nimport fewstep\n\nx = fewstep.load('PATH').sample(16)\n```\n\n"
        f"| argument | value |\n| --- | --- |\n{arguments}\n\n"
        "Limits: it can only draw what its data showed it; the data's licence applies to it.\n"
    )
