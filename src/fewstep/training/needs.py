"""The memory that a run needs, said before anything is on its device, and what would lower it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from fewstep.training.config import Run
from fewstep.training.distribution import networks, units
from fewstep.training.memory import MIB, Estimate, estimate, table
from fewstep.training.trainer import Trainer

LARGE = 100_000_000
"""Weights of all networks from which on a run on a CPU says what it needs, too."""


@contextmanager
def on_the_cpu(run: Run) -> Iterator[Trainer]:
    """A trainer that touches no accelerator and leaves the run's objective as it was."""
    buffers = [(b, b.detach().clone()) for b in run.objective.buffers()]
    config = replace(run.config, compile=False)
    trainer = Trainer(
        run.objective, run.data, config, run.averages, torch.device("cpu"), augment=run.augment
    )
    try:
        yield trainer
    finally:
        trainer.close()
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def is_large(run: Run, device: torch.device) -> bool:
    """Whether a run says what it needs before it begins: on an accelerator, or a large one."""
    count = sum(p.numel() for p in run.objective.parameters())
    return device.type != "cpu" or count >= LARGE


def needs(run: Run, trainer: Trainer, device: torch.device, size: int = 1) -> str:
    """The plan of the memory of one of ``size`` processes, and what to do where it does not fit.

    Args:
        run: what is to be trained.
        trainer: of it, on one process.
        device: where it will be trained.
        size: number of processes.
    """
    parts = estimate(run, trainer, size, device)
    free, more = free_bytes(device), savings(run, trainer, parts, device)
    of = f" of each of {size} processes ({run.config.parallel})" if size > 1 else ""
    lines = [f"memory{of}, estimated:", table(parts, run.config.batch)]
    if free is not None and parts.peak > free:
        lines.append(
            f"this does not fit into the {free / MIB:,.0f} MiB that are free on {device}; turn on:"
        )
    elif more:
        lines.append("if this does not fit, turn on:")
    return "\n".join([*lines, *(f"  {line}" for line in more)] if more else lines)


def savings(run: Run, trainer: Trainer, parts: Estimate, device: torch.device) -> list[str]:
    """Options that are off and would lower what a run needs, the largest savings first."""
    config, objective = run.config, trainer.objective
    trained = sum(p.gradients for p in parts.passes if p.gradients)
    states, averages = parts.held.get("optimiser", 0), parts.held.get("averages", 0)
    beside = parts.largest.beside
    blocks = any(units(n) for n in networks(p.module for p in objective.phases()))
    options: list[tuple[int, str, str]] = []
    if run.teacher is not None and not trainer.base:
        saved = trained + states + averages
        options.append((saved, "--lora 64", "adapters alone have gradients, states and averages"))
    if blocks and not config.checkpointing:
        options.append((beside // 2, "--train.checkpointing", "activations are computed again"))
    if config.precision == "fp32" and not objective.capabilities.forward_mode:
        options.append((beside // 2, "--train.precision bf16", "activations are half as large"))
    if config.optimizer != "adam8bit" and config.parallel != "fsdp":
        saved = states * 3 // 4
        options.append((saved, "--train.optimizer adam8bit", "states are a quarter as large"))
    movable = device.type != "cpu" and config.parallel == "ddp" and not config.compile
    if movable and not config.offload:
        away = averages + sum(
            size
            for name, size in parts.held.items()
            if name.removeprefix("weights: ") in objective.frozen
        )
        options.append((away, "--train.offload", "what waits is in the CPU's memory"))
    if config.batch > 1:
        half = f"--train.batch {config.batch // 2} --train.accumulation {2 * config.accumulation}"
        options.append((beside // 2, half, "half as many activations at a time"))
    return [
        f"{option:<48} {reason} (about {saved / MIB:,.0f} MiB less)"
        for saved, option, reason in sorted(options, key=lambda one: -one[0])
    ]


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where nobody knows."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    size = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return None if size is None else int(size[1]) * 1024
