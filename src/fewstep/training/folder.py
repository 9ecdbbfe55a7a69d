"""The run folder: what is in it, whether a command may go on in it, and who else is at work."""

from __future__ import annotations

import fcntl
import json
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fewstep.core import UsageError
from fewstep.files import write_json
from fewstep.training.config import FREE, Run
from fewstep.version import __version__


class RunFolder:
    """Paths of a run.

    Args:
        path: the folder; made when the run starts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record = path / "run.json"
        self.log = path / "log.jsonl"
        self.samples = path / "samples"
        self.metrics = path / "metrics.json"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.averages = path / "averages"

    def move_aside(self) -> Path | None:
        """Rename an existing folder to the first free NAME.k; nothing is deleted."""
        if not self.path.exists():
            return None
        k = 1
        while (aside := self.path.with_name(f"{self.path.name}.{k}")).exists():
            k += 1
        self.path.rename(aside)
        return aside

    def open(self, run: Run, device: torch.device, frozen: dict[str, str]) -> None:
        """Begin here or check that ``run`` may go on here, and record it.

        Raises:
            UsageError: something else is here, or a run with other arguments.
        """
        record = describe(run, device, frozen)
        if self.path.exists() and not self.record.exists() and any(self.path.iterdir()):
            raise UsageError(f"{self.path} is not empty and not a run; choose another --out")
        if self.record.exists():
            try:
                before = json.loads(self.record.read_text(encoding="utf-8"))
                changed = _differences(before["run"], record["run"])
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(
                    f"{self.record} is damaged ({error}); start anew with --fresh"
                ) from error
            if changed:
                raise UsageError(
                    f"{self.path} holds a run with other arguments:\n  "
                    + "\n  ".join(changed)
                    + "\nrepeat them to resume it, choose another --out, or move it aside with "
                    "--fresh"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.record, record)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one trainer at a time; the lock goes with the process, however it ends."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as handle:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UsageError(f"another process is training in {self.path}") from error
            yield


def describe(run: Run, device: torch.device, frozen: dict[str, str]) -> dict[str, Any]:
    """``run.json``: what the run can be built from again, and where it ran."""
    return {
        "run": {
            "recipe": run.recipe,
            "arguments": dict(run.arguments),
            "train": json.loads(json.dumps(asdict(run.config))),
        },
        "frozen": frozen,
        "versions": {
            "fewstep": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": _commit(),
        "device": str(device),
        "parameters": sum(p.numel() for p in run.objective.student.parameters()),
    }


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    pairs = [("recipe", before["recipe"], now["recipe"])]
    for part, prefix in (("arguments", ""), ("train", "train.")):
        names = {*before[part], *now[part]} - (set(FREE) if part == "train" else set())
        pairs += [(prefix + n, before[part].get(n), now[part].get(n)) for n in sorted(names)]
    return [f"{name}: was {old!r}, now {new!r}" for name, old, new in pairs if old != new]


def _commit() -> str | None:
    """The commit of the library's own checkout, if it runs from one."""
    found = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or None
