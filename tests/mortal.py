"""What the tests of dying processes run in each of two ranks: whole trainings, some of them hurt.

``torchrun --nproc-per-node 2 tests/mortal.py WHAT OUT``; see :data:`TRAININGS`.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fewstep.cli import main
from fewstep.core import Batch
from fewstep.errors import Interrupted
from fewstep.training import checkpoints
from fewstep.training.train import train
from survive import run_of

STEPS = 12
RANK = os.environ.get("RANK", "0")


def config(**changed: Any) -> dict[str, Any]:
    """Of all trainings here, and of those of one process that they are compared with."""
    common = {"steps": STEPS, "batch": 8, "accumulation": 2, "save_every": 4, "keep": 9}
    return {**common, **changed}


def stopped(out: Path) -> None:
    """A long one, which says where it was stopped."""

    def slow(count: int, batch: Batch) -> Batch:
        time.sleep(0.02)
        return batch

    try:
        train(run_of(slow, **config(steps=5000, save_every=10**6)), out)
    except Interrupted as interrupted:
        (out / f"stopped-{RANK}").write_text(str(interrupted))
        raise SystemExit(128 + interrupted.signum) from None


def killed(out: Path) -> None:
    """Rank 1 is killed in the midst of step 7 of its first life."""
    life = os.environ["TORCHELASTIC_RESTART_COUNT"]
    if RANK == "0":
        out.mkdir(exist_ok=True)
        newest = checkpoints.newest(out / "checkpoints")
        (out.parent / f"life-{life}").write_text(newest.name if newest else "none")

    def dies(count: int, batch: Batch) -> Batch:
        if (count, RANK, life) == (7, "1", "0"):
            os.kill(os.getpid(), signal.SIGKILL)
        return batch

    train(run_of(dies, **config()), out)


def command(out: Path) -> None:
    words = ["train", "toy-edm", "--width", "8", "--blocks", "1", "--train.accumulation", "2"]
    words += ["--train.batch", "8", "--train.steps", "8", "--train.save-every", "4"]
    main([*words, "--train.sample-every", "0", "--out", str(out)])


def full(out: Path) -> None:
    """Rank 1 can write no weights of step 8."""
    write = checkpoints._write

    def writes(folder: Path, *more: Any) -> None:
        if RANK == "1" and "000000008" in str(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "state"))
        write(folder, *more)

    checkpoints._write = writes
    command(out)


def closed(out: Path) -> None:
    """Rank 0 can make no folder for step 8."""
    mkdir = Path.mkdir

    def makes(self: Path, *more: Any, **given: Any) -> None:
        if "000000008" in str(self):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        mkdir(self, *more, **given)

    Path.mkdir = makes
    command(out)


TRAININGS: Mapping[str, Callable[[Path], None]] = {
    "stopped": stopped,
    "killed": killed,
    "full": full,
    "closed": closed,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    TRAININGS[sys.argv[1]](Path(sys.argv[2]))
