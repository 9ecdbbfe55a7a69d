"""Runs that die: children of this process, what kills them, and the tiny run that they train.

A child is forked, so a life costs milliseconds, and it never comes back into the test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

import fewstep.system.files
from fewstep.core import Batch
from fewstep.data import Arrays, toy
from fewstep.errors import Interrupted
from fewstep.models import ConsistencyBoundary, Denoiser
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.base import Objective
from fewstep.objectives.consistency import Consistency, Fixed, SameNoise
from fewstep.training import checkpoints
from fewstep.training.averages import constant, warmed
from fewstep.training.config import Run
from fewstep.training.train import train
from fewstep.training.trainer import Trainer
from tiny import settings

CPU = torch.device("cpu")


class Told:
    """Points; ``tell`` hears of every access, and says what is in it."""

    def __init__(self, data: Arrays, tell: Callable[[int, Batch], Batch]) -> None:
        self.data, self.tell, self.count = data, tell, 0
        self.shape, self.labels, self.image = data.shape, data.labels, data.image

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: np.ndarray) -> Batch:
        if len(indices) in (2, 64):  # the checks before the first step
            return self.data.batch(indices)
        self.count += 1
        return self.tell(self.count, self.data.batch(indices))


def objective() -> Objective:
    """Consistency training with dropout and a target that lags behind."""
    torch.manual_seed(0)
    student = Denoiser(ResidualMLP((2,), 8, 1, dropout=0.2), ConsistencyBoundary(sigma_data=0.5))
    return Consistency(student, SameNoise(student.path), schedule=Fixed(5, 0.9))


def run_of(tell: Callable[[int, Batch], Batch] = lambda count, batch: batch, **changed: Any) -> Run:
    return Run(
        recipe="test",
        arguments={},
        objective=objective(),
        data=Told(toy("two-modes", 64), tell),
        config=settings(**{"steps": 12, "optimizer": "radam", "warmup": 3, **changed}),
        averages={"main": constant(0.8), "slow": warmed(0.99)},
    )


def trainer_of(run: Run) -> Trainer:
    return Trainer(run.objective, run.data, run.config, run.averages, CPU)


def tensors(state: checkpoints.State) -> dict[str, Tensor]:
    """The tensors of a state, as they are now."""
    return {name: value.detach().clone() for name, value in state[0].items()}


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are not the same, bit for bit."""
    shared = one.keys() & other.keys()
    return sorted({*one} ^ {*other}) + [k for k in shared if not torch.equal(one[k], other[k])]


def trains(out: Path, **changed: Any) -> None:
    """Train, saying nothing, and exit as the command does when it is interrupted."""
    try:
        with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
            train(run_of(**changed), out)
    except Interrupted as stopped:
        raise SystemExit(128 + stopped.signum) from None


def born(work: Callable[[], None], said: Path = Path(os.devnull)) -> int:
    """Fork a child that does ``work`` and exits like a command; its process id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 distrusts all forks
        pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        for number in (1, 2):
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        work()
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a child: its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def gone(pid: int) -> bool:
    """Whether a child has ended; it can still be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@contextmanager
def living(pid: int) -> Iterator[int]:
    """A child that is dead afterwards."""
    try:
        yield pid
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ChildProcessError, ProcessLookupError):
            pass


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def logged(out: Path) -> int:
    """Whole rows in a run's log."""
    log = out / "log.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


# Kills at a chosen point of a save.

EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree"}


def dying(work: Callable[[], None], last: int, tally: Path | None = None) -> Callable[[], None]:
    """``work`` that is killed at the ``last``-th thing it does to a file; 0 lets it live.

    Counted are Python's own audit events, every flush, and the middle of every file written, the
    weights included. How many there were is written to ``tally``.
    """

    def done() -> None:
        count = 0

        def tick() -> None:
            nonlocal count
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)

        def halves(path: Path, data: bytes) -> None:
            with Path(path).open("wb") as file:
                file.write(data[: len(data) // 2])
                file.flush()
                tick()
                file.write(data[len(data) // 2 :])

        flush = fewstep.system.files.flush

        def flushed(path: Path) -> None:
            flush(path)
            tick()

        fewstep.system.files.flush = flushed
        checkpoints.save_file = lambda tensors, path: halves(path, save(tensors))
        Path.write_bytes = halves
        Path.write_text = lambda path, text, encoding=None: halves(path, text.encode())
        sys.addaudithook(lambda event, _: tick() if event in EVENTS else None)
        work()
        if tally is not None:
            tally.write_text(str(count))

    return done


def points(total: int, wanted: int, seed: int = 0) -> list[int]:
    """``wanted`` of the events 1 to ``total``; each of them once, if there are so many wanted."""
    rng = np.random.default_rng(seed)
    rounds = [rng.permutation(total) + 1 for _ in range(-(-wanted // total))]
    return np.concatenate(rounds)[:wanted].tolist()


HOLD = """
import fcntl, sys
handle = open(sys.argv[1], "w")
fcntl.lockf(handle, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[None]:
    """Another process has the folder's lock meanwhile."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, folder / ".lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield
