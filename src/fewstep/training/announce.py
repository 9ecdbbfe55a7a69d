"""What a run says of itself: the header, the plan of a dry run, the model card."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from fewstep.contract import Contract
from fewstep.core import Rng
from fewstep.training.config import Run
from fewstep.training.folder import RunFolder
from fewstep.training.trainer import Trainer, training

MIB = 2**20


def header(run: Run, trainer: Trainer) -> str:
    """Data, parameters, the arithmetic of batches, optimiser."""
    config, world = run.config, trainer.world
    count = sum(p.numel() for p in trainer.objective.student.parameters())
    batch = config.batch * config.accumulation
    seen = config.steps * batch
    lines = [
        f"{run.recipe}: {len(run.data):,} samples of {tuple(run.data.shape)}, "
        f"{run.data.labels or 'no'} labels; {count:,} parameters on {trainer.device}",
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
    """What a dry run prints: the resolved recipe, the header, memory."""
    resolved = json.dumps(record["run"], indent=2)
    return f"{resolved}\n{header(run, trainer)}\n{memory(run, trainer)}"


def memory(run: Run, trainer: Trainer) -> str:
    """An estimate by part, in MiB: what is held always, and what a microbatch needs at its peak.

    Activations are those that the loss of one sample keeps for the backward pass, times the batch.
    """
    objective, config = trainer.objective, run.config
    trained = {id(p): p for phase in objective.phases() for p in phase.module.parameters()}
    trainable = sum(p.numel() * p.element_size() for p in trained.values())
    everything = sum(t.numel() * t.element_size() for t in objective.state_dict().values())
    averages = sum(
        t.numel() * t.element_size()
        for copy in trainer.averages.copies.values()
        for t in copy.state_dict().values()
    )
    kept = _activations(run, trainer) * config.batch
    parts = {
        "weights": everything,
        "gradients": trainable,
        "optimiser": 2 * trainable,
        "averages": averages,
        f"activations of {config.batch} samples": kept,
    }
    lines = [f"  {name:<32} {size / MIB:>10,.0f} MiB" for name, size in parts.items()]
    total = f"  {'in all, on one process':<32} {sum(parts.values()) / MIB:>10,.0f} MiB"
    return "\n".join(["memory, estimated:", *lines, total])


def _activations(run: Run, trainer: Trainer) -> int:
    """Bytes that one sample keeps for the backward pass, in the phase that keeps most."""
    objective, config = trainer.objective, run.config
    weights = {t.untyped_storage().data_ptr() for t in objective.state_dict().values()}
    most = 0
    for phase in objective.phases():
        batch = run.data.batch([0])
        if run.augment is not None:
            batch = run.augment(batch, torch.zeros(1, dtype=torch.int64).numpy(), config.seed)
        batch = batch.to(trainer.device)
        draws = phase.draw(batch, 0, Rng(config.seed, 0, phase.name, 0, trainer.device))
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with (
            training(objective, phase.module),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            loss = phase.loss(batch, draws)
        most = max(most, sum(sizes.values()))
        del loss
    return most


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
