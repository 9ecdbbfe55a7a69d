"""What a run says while it trains: rows of log.jsonl, boards, and a bar or tick lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fewstep.core import UsageError
from fewstep.system.files import whole_file
from fewstep.training.config import Run
from fewstep.training.folder import RunFolder
from fewstep.training.memory import most_resident


class Logger:
    """Rows to disk, progress to the terminal.

    Rows after the step that a run resumes from are dropped, so that the log is that of one run.

    Args:
        folder: the run's.
        start: step that training goes on from.
        run: what is trained.
    """

    def __init__(self, folder: RunFolder, start: int, run: Run) -> None:
        config, path = run.config, folder.log
        self.start, self.steps = start, config.steps
        self.samples = config.batch * config.accumulation
        rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [row for row in rows if _kept(row, start)]
        with whole_file(path) as fresh:
            fresh.write_text("".join(row + "\n" for row in kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")
        self.board: Any = None
        if config.tensorboard:
            self.board = require_tensorboard()(str(folder.path / "tensorboard"))
        self.wandb: Any = None
        if config.wandb:
            self.wandb = require_wandb().init(
                project="fewstep",
                name=folder.path.name,
                dir=str(folder.path),
                config={"recipe": run.recipe, **run.arguments, "train": asdict(config)},
                resume="allow",
                id=folder.identity(),
            )
        self.began = self.last = time.monotonic()
        self.last_step = start
        self.bar: Progress | None = None
        if sys.stderr.isatty():
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[rate]} steps/s  loss {task.fields[loss]}  left"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self.task = self.bar.add_task(
                "", total=config.steps, completed=start, rate="-", loss="-"
            )

    def __enter__(self) -> Logger:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
        self.file.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=step)

    def row(self, step: int, values: dict[str, float]) -> None:
        """Write a row; the rate is that since the last one."""
        now, loss = time.monotonic(), values.get("loss", float("nan"))
        rate = (step - self.last_step) / max(now - self.last, 1e-9)
        self.last, self.last_step = now, step
        speed = {"steps_per_second": rate, "seconds": now - self.began}
        self._write(step, {**values, **speed})
        if self.bar is not None:
            self.bar.update(self.task, completed=step, rate=f"{rate:.1f}", loss=f"{loss:.4g}")
            return
        left = (self.steps - step) / rate if rate else 0.0
        norm = max((v for k, v in values.items() if k.startswith("grad_norm")), default=0.0)
        print(
            f"step {step:>7}/{self.steps}  loss {loss:<9.4g} norm {norm:<9.3g} {rate:7.1f} steps/s "
            f"{rate * self.samples:8,.0f} samples/s  {_memory_gib():5.2f} GiB  "
            f"left {int(left // 60)}:{int(left % 60):02d}",
            file=sys.stderr,
            flush=True,
        )

    def note(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of an evaluation on the way."""
        self._write(step, {f"eval/{name}": value for name, value in numbers.items()})
        text = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
        Console(stderr=True, highlight=False).print(f"step {step:>7}/{self.steps}  {text}")

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(dict(values), step=step)


def require_tensorboard() -> type[Any]:
    """TensorBoard's writer.

    Raises:
        UsageError: the extra is not installed.
    """
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "train.tensorboard needs the extra: pip install 'fewstep[tensorboard]'"
        ) from error
    return SummaryWriter


def require_wandb() -> Any:
    """The wandb package.

    Raises:
        UsageError: the extra is not installed.
    """
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError("train.wandb needs the extra: pip install 'fewstep[wandb]'") from error
    return wandb


def _memory_gib() -> float:
    """Peak so far: of the accelerator if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return most_resident() / 2**30


def _kept(line: str, start: int) -> bool:
    """Whether a line is a whole row, and of the part that is not trained again."""
    try:
        return json.loads(line)["step"] <= start
    except (ValueError, KeyError, TypeError):
        return False
