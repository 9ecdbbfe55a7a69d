"""What a run says while it trains: rows of log.jsonl, TensorBoard, and a bar or tick lines."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fewstep.core import UsageError


class Logger:
    """Rows to disk, progress to the terminal.

    Rows after the step that a run resumes from are dropped, so that the log is that of one run.

    Args:
        path: of log.jsonl.
        start: step that training goes on from.
        steps: in all.
        tensorboard: folder for TensorBoard, or None.
    """

    def __init__(self, path: Path, start: int, steps: int, tensorboard: Path | None) -> None:
        self.start, self.steps = start, steps
        rows = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [row for row in rows if _kept(row, start)]
        path.write_text("".join(row + "\n" for row in kept), encoding="utf-8")
        self.file = path.open("a", encoding="utf-8")
        self.writer: Any = None if tensorboard is None else require_tensorboard()(str(tensorboard))
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
            self.task = self.bar.add_task("", total=steps, completed=start, rate="-", loss="-")

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
        if self.writer is not None:
            self.writer.close()

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(self.task, completed=step)

    def row(self, step: int, values: dict[str, float]) -> None:
        """Write a row; the rate is that since the last one."""
        now, loss = time.monotonic(), values.get("loss", float("nan"))
        rate = (step - self.last_step) / max(now - self.last, 1e-9)
        self.last, self.last_step = now, step
        row = {"step": step, **values, "steps_per_second": rate, "seconds": now - self.began}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        if self.writer is not None:
            for name, value in row.items():
                self.writer.add_scalar(name, value, step)
        if self.bar is not None:
            self.bar.update(self.task, completed=step, rate=f"{rate:.1f}", loss=f"{loss:.4g}")
        else:
            left = (self.steps - step) / rate if rate else 0.0
            print(
                f"step {step:>7}/{self.steps}  loss {loss:<9.4g} {rate:7.1f} steps/s  "
                f"left {int(left // 60)}:{int(left % 60):02d}",
                file=sys.stderr,
                flush=True,
            )


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


def _kept(line: str, start: int) -> bool:
    """Whether a line is a whole row, and of the part that is not trained again."""
    try:
        return json.loads(line)["step"] <= start
    except (ValueError, KeyError, TypeError):
        return False
