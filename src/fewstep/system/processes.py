"""Several processes: who this one is, and what they tell each other.

Launched by ``torchrun``, or by anything that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
(and LOCAL_RANK where a machine has several devices), such as a SLURM script.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fewstep.errors import UsageError


@dataclass(frozen=True)
class World:
    """This process among those that work together.

    Args:
        rank: in [0, ``size``).
        size: how many there are.
        local: its number on its machine, which is that of its accelerator.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process writes the files that there is one of."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()

    def agreed(self, value: Any) -> Any:
        """The first process's value."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def largest(self, value: int) -> int:
        """Over all processes."""
        return int(self._reduced([float(value)], dist.ReduceOp.MAX)[0])

    def mean(self, values: Mapping[str, Tensor | float]) -> dict[str, float]:
        """Each value's mean over the processes."""
        numbers = [float(value) for value in values.values()]
        total = self._reduced(numbers, dist.ReduceOp.SUM)
        return {name: x / self.size for name, x in zip(values, total, strict=True)}

    def part(self, n: int) -> slice:
        """Which of ``n`` rows are this process's."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def together(self, own: Tensor) -> Tensor:
        """The rows of all processes, in their order; on the CPU if there are several."""
        if self.size == 1:
            return own
        rows: list[Any] = [None] * self.size
        dist.all_gather_object(rows, own.cpu())
        return torch.cat(rows)

    def _reduced(self, numbers: list[float], op: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return numbers
        device = "cpu" if "gloo" in dist.get_backend() else f"cuda:{self.local}"
        tensor = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(tensor, op)
        return tensor.tolist()


ALONE = World()


def announced() -> World:
    """This process among those that the environment speaks of, which need not have met.

    Raises:
        UsageError: its variables contradict each other.
    """
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    try:
        rank, size, local = (int(given[n] or d) for n, d in zip(given, (0, 1, 0), strict=True))
    except ValueError as error:
        raise UsageError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers, got {given}") from error
    if not 0 <= rank < size or (size > 1 and None in (given["RANK"], given["WORLD_SIZE"])):
        raise UsageError(f"RANK must lie in [0, WORLD_SIZE), got {given}; start with torchrun")
    return World(rank, size, local)


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that the environment speaks of, if it does.

    Raises:
        UsageError: its variables contradict each other, or do not say where to meet.
    """
    world = announced()
    if world.size == 1:
        yield ALONE
        return
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {world.size}, but {missing} are not set; start with torchrun"
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield world
        dist.barrier()  # nobody leaves while another still speaks to them
    finally:
        dist.destroy_process_group()
        # Gloo's threads outlive the group (torch 2.13). One that still drops a tensor of Python
        # while the interpreter ends aborts the process (pytorch/pytorch#179291).
        time.sleep(0.2)
