"""How far a run is, read from its folder; imports no torch, so that it answers at once."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fewstep.errors import UsageError, in_words


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the folder of a run says.

    Args:
        run: the folder.
        recipe: the run's name.
        step: the newest step of the log or of a checkpoint.
        steps: of the whole run.
        delivered: the step of the finished model, if there is one.
        loss: of the newest row of the log that has one.
        rate: steps per second, the median of the newest rows.
        age: seconds since the log was written to.
        saved: steps of the checkpoints.
        picture: the newest one.
    """

    run: Path
    recipe: str
    step: int
    steps: int
    delivered: int | None
    loss: float | None
    rate: float | None
    age: float | None
    saved: tuple[int, ...]
    picture: Path | None

    @property
    def finished(self) -> bool:
        """Whether the model of the last step and its report are there."""
        return self.delivered is not None and self.delivered >= self.steps

    @property
    def left(self) -> float | None:
        """Seconds that the remaining steps take."""
        return None if not self.rate else (self.steps - self.step) / self.rate

    def text(self) -> str:
        """The lines that the command prints."""
        share = 100 * self.step / self.steps
        lines = [f"{self.run}: {self.recipe}, step {self.step:,} of {self.steps:,} ({share:.0f} %)"]
        if self.loss is not None and self.rate:
            lines.append(f"loss {self.loss:.4g}, {self.rate:,.1f} steps/s")
        if self.finished:
            lines.append(f"finished; model: {self.run / 'model'}")
        else:
            lines += [f"time left while it trains: {_clock(self.left)}"] if self.left else []
            lines += (
                [f"last row of the log: {_clock(self.age)} ago"] if self.age is not None else []
            )
        kept = ", ".join(f"{step:,}" for step in self.saved) or "none"
        lines.append(f"checkpoints: {kept}")
        lines.append(f"last picture: {self.picture or 'none'}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {
            "run": str(self.run),
            "recipe": self.recipe,
            "step": self.step,
            "steps": self.steps,
            "finished": self.finished,
            "loss": self.loss,
            "steps_per_second": self.rate,
            "seconds_left": 0.0 if self.finished else self.left,
            "seconds_since_log": self.age,
            "checkpoints": [*self.saved],
            "picture": str(self.picture) if self.picture else None,
        }


def status(run: str | Path) -> Status:
    """How far a run is.

    Raises:
        UsageError: the folder holds no run, or its record is damaged.
    """
    run = Path(run)
    record = run / "run.json"
    if not record.is_file():
        raise UsageError(f"{run} is no run folder: it has no run.json")
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        recipe, steps = str(content["run"]["recipe"]), int(content["run"]["train"]["steps"])
        delivered = content.get("delivered")
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{record} is damaged ({in_words(error)})") from error
    log = run / "log.jsonl"
    rows = log_rows(log)
    named = next((row for row in reversed(rows) if "loss" in row), {})
    # A row after a save or a picture counts these in its rate; most rows do not.
    rates = [row["steps_per_second"] for row in rows[-11:] if "steps_per_second" in row]
    saved = sorted(
        int(p.parent.name)
        for p in run.glob("checkpoints/[0-9]*/state.json")
        if p.parent.name.isdigit()
    )
    pictures = sorted(p for p in run.glob("samples/[0-9]*.png") if p.stem.isdigit())
    return Status(
        run=run,
        recipe=recipe,
        step=max([0, *saved, *(int(row["step"]) for row in rows[-1:])]),
        steps=steps,
        delivered=delivered if isinstance(delivered, int) else None,
        loss=named.get("loss"),
        rate=median(rates) if rates else None,
        age=time.time() - log.stat().st_mtime if log.is_file() else None,
        saved=tuple(saved),
        picture=pictures[-1] if pictures else None,
    )


def unfinished(folder: str | Path) -> str | None:
    """What to say of the model of a run that is not at its end; None of any other model.

    Args:
        folder: a model folder.
    """
    folder = Path(folder)
    run = folder.resolve().parent
    if folder.name != "model" or not (run / "run.json").is_file():
        return None
    try:
        state = status(run)
    except UsageError:
        return None
    if state.finished or not state.saved:
        return None
    return (
        f"{run} is not finished: its model is that of step {state.saved[-1]:,} of {state.steps:,}"
    )


def log_rows(log: Path) -> list[dict[str, Any]]:
    """Whole rows; a living or killed process may leave half of the last one."""
    rows = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _clock(seconds: float | None) -> str:
    """Hours, minutes and seconds."""
    whole = int(seconds or 0)
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
