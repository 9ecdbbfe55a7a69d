"""The run folder: what is in it, whether a command may go on in it, and who else is at work."""

from __future__ import annotations

import json
import platform
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fewstep.core import UsageError
from fewstep.data.fingerprint import differences, fingerprint
from fewstep.errors import in_words
from fewstep.model import find
from fewstep.system.files import LOCK, TEMPORARY, locked, write_json
from fewstep.training.config import FREE, FRESH, Run
from fewstep.version import __version__

PREPARED = ("teacher", "data", "prepared.json", "prepared.lock")
"""What ``fewstep train --model`` makes beside a run, before the run."""

Upgrade = Callable[[str, Mapping[str, Any]], Mapping[str, Any]]
"""See ``Run.upgrade``."""


LICENCE = "licence"
"""The argument that a resumed run may change, since it is for the card alone."""


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
        self.best = path / "best"
        self.snapshots = path / "snapshots"

    def move_aside(self) -> Path | None:
        """Rename an existing folder to the first free NAME.k; nothing is deleted.

        A teacher and data that were made for the run stay where they are.
        """
        if not self.path.exists():
            return None
        if not self.record.exists() or self.path.resolve() == Path.cwd():
            raise UsageError(f"{FRESH} moves old runs aside, and {self.path} is none")
        with self._locked():
            return self._renamed()

    def _renamed(self) -> Path:
        k = 1
        while (aside := self.path.with_name(f"{self.path.name}.{k}")).exists():
            k += 1
        self.path.rename(aside)
        for name in PREPARED:
            if (aside / name).exists():
                self.path.mkdir(exist_ok=True)
                (aside / name).rename(self.path / name)
        return aside

    def before(self) -> dict[str, Any] | None:
        """The record of the run that is here, if there is one."""
        if not self.record.exists():
            return None
        return json.loads(self.record.read_text(encoding="utf-8"))

    def started(self) -> dict[str, Any] | None:
        """The same; None too where it is damaged, which :meth:`opened` reports."""
        with suppress(OSError, ValueError):
            return self.before()
        return None

    @contextmanager
    def opened(self, record: dict[str, Any], upgrade: Upgrade) -> Iterator[None]:
        """Begin a run here or go on with it, as the only process that does.

        Args:
            record: from :func:`describe`.
            upgrade: of the run, for the arguments of an older record.

        Raises:
            UsageError: something else is here, a run with other arguments, or another process.
        """
        self._check(record, upgrade)
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked():
            yield

    def _locked(self) -> AbstractContextManager[None]:
        return locked(self.path, f"another process is training in {self.path}")

    def write(self, record: dict[str, Any]) -> None:
        """Write run.json; what was delivered, the run's own name, commits and precision stay."""
        before = self.before() or {}
        commits = {**record.get("commits", {}), **before.get("commits", {})}
        kept = {"delivered": self.delivered(), "id": self.identity() or secrets.token_hex(8)}
        kept |= {"precision": before["precision"]} if "precision" in before else {}
        write_json(self.record, {**record, **kept, **({"commits": commits} if commits else {})})

    def identity(self) -> str | None:
        """What boards know the run by: one for each new run, the same when it is resumed."""
        return (self.before() or {}).get("id")

    def delivered(self) -> int | None:
        """The step of the finished model and its report, if they are there."""
        return (self.before() or {}).get("delivered")

    def deliver(self, step: int) -> None:
        """Record that the model and the report of ``step`` are complete."""
        record = json.loads(self.record.read_text(encoding="utf-8"))
        write_json(self.record, {**record, "delivered": step})

    def _check(self, record: dict[str, Any], upgrade: Upgrade) -> None:
        # A process that was killed in its first moments leaves a lock and half a record.
        own = {LOCK, f"{TEMPORARY}{self.record.name}", *PREPARED}
        others = self.path.is_dir() and any(p.name not in own for p in self.path.iterdir())
        if others and not self.record.exists():
            raise UsageError(f"{self.path} is not empty and not a run; choose another --out")
        if self.record.exists():
            try:
                before = json.loads(self.record.read_text(encoding="utf-8"))
                own = before["run"]
                own["arguments"] = upgrade(own["recipe"], own["arguments"])
                changed = _differences(before, record)
                other_data = _other_data(before, record)
            except (ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
                raise UsageError(
                    f"{self.record} is damaged ({in_words(error)}); start anew with {FRESH}"
                ) from error
            if changed:
                raise UsageError(
                    f"{self.path} holds a run with other arguments:\n  "
                    + "\n  ".join(changed)
                    + "\nrepeat them to resume it, choose another --out, or move it aside with "
                    + FRESH
                )
            if other_data:
                raise UsageError(
                    f"{self.path}: the data is not what the run began with ({other_data}); give "
                    f"the same data, start anew with {FRESH}, or go on all the same with "
                    "--train.allow-changed-data"
                )


def describe(run: Run, device: torch.device, frozen: dict[str, str]) -> dict[str, Any]:
    """``run.json``: what the run can be built from again, and where it ran."""
    return {
        "run": {
            "recipe": run.recipe,
            "arguments": dict(run.arguments),
            "train": json.loads(json.dumps(asdict(run.config))),
        },
        "frozen": frozen,
        "data": {"fingerprint": _data_fingerprint(run.data), "notes": [*notes(run.data)]},
        **({} if run.held_out is None else {"held_out": _of_held_out(run.held_out)}),
        **_sources(run.arguments),
        **({"commits": dict(run.commits)} if run.commits else {}),
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
    old_run, new_run = before["run"], now["run"]
    pairs = [("recipe", old_run["recipe"], new_run["recipe"])]
    for part, prefix in (("arguments", ""), ("train", "train.")):
        old, new = old_run[part], new_run[part]
        names = {*old, *new} - (set(FREE) if part == "train" else set())
        pairs += [
            (prefix + n, old.get(n), new.get(n))
            for n in sorted(names)
            if part == "train" or not (n == LICENCE or _same_source(n, before, now))
        ]
    for name in sorted({*before["frozen"], *now["frozen"]}):
        digests = before["frozen"].get(name, ""), now["frozen"].get(name, "")
        pairs.append((f"weights of its {name}", digests[0][:12], digests[1][:12]))
    return [f"{name}: was {old!r}, now {new!r}" for name, old, new in pairs if old != new]


def _of_held_out(data: Any) -> dict[str, Any]:
    about = {"samples": len(data), "fingerprint": _data_fingerprint(data)}
    return {**about, "notes": [*notes(data)]}


def notes(data: Any) -> tuple[str, ...]:
    """What data says of itself in the header and in run.json, e.g. images that it passes over."""
    return tuple(str(note) for note in _said_by(data, "notes") or ())


def _data_fingerprint(data: Any) -> str | dict[str, Any] | None:
    """The data's own fingerprint, or that of a data set of the library."""
    made = _said_by(data, "fingerprint")
    return str(made() or "") or None if callable(made) else fingerprint(data)


def _said_by(data: Any, name: str) -> Any:
    """An attribute of data, or of the data that it wraps, as pairs do."""
    while not hasattr(data, name) and hasattr(getattr(data, "data", None), "batch"):
        data = data.data
    return getattr(data, name, None)


def _sources(arguments: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Paths of the files that arguments name, and the sha256 of the models that they name."""
    places, models = {}, {}
    for name, value in arguments.items():
        if not isinstance(value, str) or not value:
            continue
        with suppress(OSError):  # a text too long for a path, for instance
            if Path(value).exists():
                places[name] = str(Path(value).resolve())
        with suppress(UsageError, OSError, ValueError, KeyError):
            config = json.loads((find(value) / "config.json").read_text(encoding="utf-8"))
            models[name] = str(config["sha256"])
    return {"places": places, "models": models}


def _same_source(name: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether an argument means the same file, model or data as before, however it is spelled."""
    old, new = (record["run"]["arguments"].get(name) for record in (before, now))
    if not isinstance(old, str) or not isinstance(new, str):
        return False
    # Records of older versions do not say where it was.
    place = before.get("places", {}).get(name) or str(Path(old).resolve())
    if place == now["places"].get(name):
        return True
    models = (record.get("models", {}).get(name) for record in (before, now))
    part = name if name in {"data", "held_out"} else ""
    prints = (record.get(part, {}).get("fingerprint") for record in (before, now))
    return any(a is not None and a == b for a, b in (models, prints))


def _other_data(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """How the data differs from what the run began with, if it does and is not allowed to."""
    if now["run"]["train"].get("allow_changed_data"):
        return None
    changed = _changed(before.get("data", {}), now.get("data", {}))
    other = _changed(before.get("held_out", {}), now.get("held_out", {}))
    return changed or (None if other is None else f"held-out data: {other}")


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """In what the fingerprints of two records differ; None where they do not, or one has none."""
    old, new = before.get("fingerprint"), now.get("fingerprint")
    if None in (old, new) or old == new:
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        return "; ".join(differences(old, new)) or None
    return f"fingerprint: was {str(old)[:12]}, now {str(new)[:12]}"


def _commit() -> str | None:
    """The commit of the library's own checkout, if it runs from one."""
    if shutil.which("git") is None:
        return None

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    # An environment may lie inside somebody else's repository, which does not track this file.
    return git("rev-parse", "HEAD") if git("ls-files", Path(__file__).name) else None
