"""The batches of a run: by position in the stream, whoever fetches them."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import numpy as np
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from fewstep.core import Batch, UsageError
from fewstep.data import Dataset
from fewstep.data.order import positions
from fewstep.training.config import Augment, TrainConfig


class Feed:
    """The shards of each step that are this process's, on the CPU.

    With workers they are fetched ahead by that many processes. Which samples a shard holds and how
    they are augmented is a function of (seed, step, shard), so neither the number of workers nor
    that of ranks changes anything.

    Args:
        data: random access.
        config: of the run.
        shards: this process's, of ``config.accumulation``.
        start: the first step.
        augment: what happens to each batch.
    """

    def __init__(
        self,
        data: Dataset,
        config: TrainConfig,
        shards: range,
        start: int,
        augment: Augment | None = None,
    ) -> None:
        self.fetch = _Fetch(data, config, augment)
        self.shards = shards
        self.ahead = iter(self._loader(config, start)) if config.workers else None

    def step(self, step: int) -> list[Batch]:
        """The batches of a step; steps are asked in order."""
        problems = [
            self.fetch[step, shard] if self.ahead is None else next(self.ahead)
            for shard in self.shards
        ]
        for batch in problems:
            if isinstance(batch, UsageError):
                raise batch
        return problems

    def indices(self, step: int) -> list[np.ndarray]:
        """Which samples of the data the batches of a step hold, int64 ``(b,)`` each."""
        return [self.fetch.indices(step, shard) for shard in self.shards]

    def close(self) -> None:
        """End the workers, also where the traceback of an error still holds what reads from them.

        They do not hear the signal by which Python would end them, and it would wait for ever.
        """
        ahead, self.ahead = self.ahead, None
        shutdown = getattr(ahead, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()

    def _loader(self, config: TrainConfig, start: int) -> DataLoader[Batch]:
        order = _Order(start, config.steps, self.shards)
        return DataLoader(
            self.fetch,
            sampler=order,
            batch_size=None,
            num_workers=config.workers,
            worker_init_fn=_deaf,
        )


class _Order:
    """(step, shard) of all that is to come."""

    def __init__(self, start: int, steps: int, shards: range) -> None:
        self.start, self.steps, self.shards = start, steps, shards

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((step, s) for step in range(self.start, self.steps) for s in self.shards)

    def __len__(self) -> int:
        return (self.steps - self.start) * len(self.shards)


class _Fetch(TorchDataset[Batch]):
    """(step, shard) to its batch."""

    def __init__(self, data: Dataset, config: TrainConfig, augment: Augment | None) -> None:
        self.data, self.augment = data, augment
        self.seed, self.batch, self.shards = config.seed, config.batch, config.accumulation
        self.forwards_errors = config.workers > 0

    def __getitem__(self, at: tuple[int, int]) -> Batch:
        try:
            return self._batch(*at)
        except UsageError as error:
            if not self.forwards_errors:
                raise
            # A worker's exception would arrive wrapped in its traceback.
            return error  # pyright: ignore[reportReturnType]

    def indices(self, step: int, shard: int) -> np.ndarray:
        """Which samples a shard of a step holds."""
        return positions(self.seed, step, self.batch, len(self.data), shard, self.shards)

    def _batch(self, step: int, shard: int) -> Batch:
        batch = self.data.batch(self.indices(step, shard))
        if self.augment is None:
            return batch
        first = (step * self.shards + shard) * self.batch
        return self.augment(batch, np.arange(first, first + self.batch), self.seed)


def _deaf(worker: int) -> None:
    """Signals to the whole group are for the trainer, which still needs this worker to stop well.

    A worker whose trainer has died ends by itself.
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)
