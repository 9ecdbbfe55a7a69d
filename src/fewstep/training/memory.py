"""The memory that a run will need, estimated from a few samples before anything large exists.

All operations of a loss and its backward pass are watched on a small microbatch and on one of twice
its size. The bytes that live after each of them are a + c b in the size b of the microbatch, so the
most that ever live can be computed for any b, wherever in the pass that is: activations, their
gradients and those of the weights come and go at times of their own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.core import Batch, Rng
from fewstep.objectives.base import Loss, Phase
from fewstep.system.allocations import Watched, storages
from fewstep.training.config import Run
from fewstep.training.distribution import networks, units
from fewstep.training.optimizers import state_size
from fewstep.training.trainer import Trainer, training

MIB = 2**20
KEPT, KERNELS = 0.3, 40 * MIB
"""Beside it, on a CPU: a share of what comes and goes, in holes of the heap; compiled kernels.

By measurements with glibc 2.36: 0.24 to 0.5 of passes of 100 to 900 MiB, less the kernels; but 110
MiB of a checkpointed pass of 70, which is of many small pieces.
"""
GATHERED = 3
"""Blocks that a sharded network has whole at once: this one, the next, one's gradient."""


@dataclass(frozen=True)
class Pass:
    """The memory of one loss.

    Args:
        name: of its phase.
        gradients: of the phase.
        beside: what lives beside them at the peak.
        away: of what is held, what waits in the CPU's memory meanwhile.
    """

    name: str
    gradients: int
    beside: int
    away: int = 0

    @property
    def total(self) -> int:
        """What it adds to what is held."""
        return self.gradients + self.beside - self.away


@dataclass(frozen=True)
class Estimate:
    """Bytes of one process.

    Args:
        held: always, by name.
        passes: of which one at a time.
        cpu: whether a CPU's allocator is to be reckoned with.
    """

    held: dict[str, int]
    passes: list[Pass]
    cpu: bool

    @property
    def largest(self) -> Pass:
        """What decides the peak."""
        return max(self.passes, key=lambda p: p.total)

    @property
    def kept(self) -> int:
        """By the allocator, and kernels."""
        most = max(p.gradients + p.beside for p in self.passes)
        return KERNELS + int(KEPT * most) if self.cpu else 0

    @property
    def peak(self) -> int:
        """The most that the process will have had."""
        return sum(self.held.values()) + self.largest.total + self.kept


def estimate(
    run: Run, trainer: Trainer, size: int = 1, device: torch.device | None = None
) -> Estimate:
    """Estimate the memory of one of ``size`` processes from a trainer on one process.

    Args:
        run: what is to be trained.
        trainer: of it; its losses are computed.
        size: number of processes.
        device: where they will train, if not where the trainer is.
    """
    kind = (device or trainer.device).type
    objective, config = trainer.objective, trainer.config
    sharded = size > 1 and config.parallel == "fsdp"
    share = size if sharded else 1
    held = {} if kind != "cpu" else {"process and libraries": resident()}
    # Copies share what is frozen under adapters, until it is sharded.
    seen: set[int] = set()
    weights = {n: _bytes(m.state_dict().values(), seen) for n, m in objective.named_children()}
    averages = _bytes(
        (t for copy in trainer.averages.copies.values() for t in copy.state_dict().values()), seen
    )
    if held:
        held["process and libraries"] -= sum(weights.values()) + averages
    own = {p.name: _bytes(trainer.trained[p.name]) for p in objective.phases()}
    moments = {name: state_size(parameters, config) for name, parameters in trainer.trained.items()}
    held |= {f"weights: {name}": n // share for name, n in weights.items() if n}
    held |= {"averages": averages // share, "optimiser": sum(moments.values()) // share}
    if sharded:
        held["blocks that are whole at once"] = _gathered(objective)
    needs = objective.capabilities
    b = max(2, needs.batch_multiple, needs.batch_least)
    few, more = (_batch(run, trainer, n) for n in (b, 2 * b))
    microbatches = config.accumulation // size
    held["batches"] = _tensors(few) * config.batch * microbatches // b
    passes: list[Pass] = []
    phases = objective.phases()
    for phase in phases:
        gradients = own[phase.name] // share
        parts: list[tuple[str, int]] = []
        if trainer.offload is not None:
            trainer.offload.phase = phase.name
        for i, loss in enumerate(phase.losses):
            # Gradients of an earlier loss stay, and a new one is added to them as soon as it is
            # there; else they come one by one, while activations go.
            stay = sharded or microbatches > 1 or i > 0
            lines = [_watched(trainer, phase, loss, batch, stay) for batch in (few, more)]
            beside = _extrapolated(lines, config.batch / b)
            copies = gradients if size > 1 and not sharded and not phase.more else 0
            name = phase.name if len(phase.losses) == 1 else f"{phase.name}, loss {i + 1}"
            parts.append((name, beside + copies - (0 if stay else gradients)))
        away = 0 if trainer.offload is None else trainer.offload.waiting(phase.name, moments)
        passes += [Pass(name, gradients, beside, away) for name, beside in parts]
    if away := min((p.away for p in passes), default=0):
        passes.append(Pass("averages follow", 0, 0, away - averages))
    return Estimate(held, passes, kind == "cpu")


def table(needs: Estimate, batch: int) -> str:
    """The estimate by part, in MiB."""
    rows = [*needs.held.items()]
    for each in needs.passes:
        of = {
            "gradients": each.gradients,
            f"activations of {batch:,} samples": each.beside,
            "waits in the CPU's memory": -each.away,
        }
        rows += [(f"{each.name}: {part}", size) for part, size in of.items() if size]
    if needs.kept:
        rows.append(("kernels, and holes in the heap", needs.kept))
    rows.append((f"in all, at the peak ({needs.largest.name})", needs.peak))
    return "\n".join(f"  {name:<48} {size / MIB:>10,.0f} MiB" for name, size in rows)


def resident() -> int:
    """Bytes of this process in memory: now where that can be read, else at most so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return most_resident()
    import resource

    return pages * resource.getpagesize()


def most_resident() -> int:
    """Bytes of this process in memory, at most so far."""
    # On Linux a program begins with the ru_maxrss of the process that started it.
    status = Path("/proc/self/status")
    if status.exists():
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        if peak is not None:
            return int(peak[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _watched(
    trainer: Trainer, phase: Phase, loss: Callable[[Batch, Any], Loss], batch: Batch, stay: bool
) -> list[int]:
    """The line of one loss and its backward pass; gradients are not in it if they ``stay``."""

    def forget(parameter: Tensor) -> None:
        parameter.grad = None

    parameters = trainer.trained[phase.name]
    with training(trainer.objective, phase.module, parameters), Watched() as watched:
        hooks = [p.register_post_accumulate_grad_hook(forget) for p in parameters if stay]
        step = trainer.config.steps - 1  # by then all terms are there
        rng = Rng(trainer.config.seed, step, phase.name, 0, trainer.device)
        draws = phase.draw(batch, step, rng)
        with trainer.autocast():
            draws = phase.prepared(batch, draws)
            outcome = loss(batch, draws)
        if outcome.terms:
            outcome.total().backward()
        for hook in hooks:
            hook.remove()
    for parameter in parameters:
        parameter.grad = None
    return watched.line


def _extrapolated(lines: list[list[int]], times: float) -> int:
    """The most of a line of ``times`` as many samples as the first; the second has twice as many.

    Where a method does something else with more samples, the two cannot be laid side by side.
    """
    few, more = lines if len(lines[0]) == len(lines[1]) else ([max(line)] for line in lines)
    return int(max(a + (times - 1) * (b - a) for a, b in zip(few, more, strict=True)))


def _batch(run: Run, trainer: Trainer, size: int) -> Batch:
    batch = run.data.batch(np.arange(size) % len(run.data))
    if run.augment is not None:
        batch = run.augment(batch, np.arange(size), trainer.config.seed)
    return batch.to(trainer.device)


def _gathered(objective: nn.Module) -> int:
    """What a process has whole of sharded networks: what is outside of blocks, and some blocks."""
    outside, largest = 0, 0
    for network in networks([objective]):
        blocks = [_bytes(unit.parameters()) for unit in units(network)]
        outside += _bytes(network.parameters()) - sum(blocks)
        largest = max([largest, *blocks])
    return outside + GATHERED * largest


def _tensors(batch: Batch) -> int:
    mask = () if batch.mask is None else (batch.mask,)
    return _bytes([batch.x0, *batch.cond.values(), *mask, *batch.aux.values()])


def _bytes(tensors: Iterable[Tensor], seen: set[int] | None = None) -> int:
    """Bytes of the tensors' storages, each counted once, without those ``seen`` before."""
    seen = set() if seen is None else seen
    fresh = {s.data_ptr(): s.nbytes() for s in storages([*tensors]) if s.data_ptr() not in seen}
    seen |= {*fresh} - {0}
    return sum(fresh.values())
