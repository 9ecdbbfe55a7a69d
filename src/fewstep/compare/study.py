"""Train every method on one budget, judge each, and keep what is done."""

from __future__ import annotations

import json
import sys
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fewstep import hub
from fewstep.compare.entry import Entry, paired
from fewstep.compare.measures import Judge
from fewstep.compare.plan import Budget, Plan
from fewstep.compare.report import write_report
from fewstep.data.catalogue import CATALOGUE, entry
from fewstep.data.prepared import SUFFIX
from fewstep.errors import Interrupted, UsageError, nearest
from fewstep.evaluation.pictures import picture
from fewstep.model import Model, load
from fewstep.pairs import make
from fewstep.recipes.options import NONE
from fewstep.recipes.origins import seen_before
from fewstep.system.files import LOCK, TEMPORARY, locked, write_json
from fewstep.training.checkpoints import fingerprint
from fewstep.version import __version__

TEACHER_STEPS = 18

PAIRS = 10_000
"""Pairs of noise and the teacher's samples, for methods that learn from them."""


@dataclass(frozen=True)
class Study:
    """Trains and judges what a plan says, and keeps what is done.

    Args:
        plan: of the comparison.
    """

    plan: Plan

    def run(self, out: str | Path) -> Path:
        """Train and judge what is not done yet, and write the report.

        Args:
            out: the folder; a study that was interrupted there goes on.

        Returns:
            The report's HTML page.
        """
        out = Path(out)
        teacher = self._teacher()
        threads = self.plan.place.train.threads
        if threads:
            torch.set_num_threads(threads)
        model = load(teacher)
        if model.contract.sampling.kind != "ode":
            raise UsageError(
                f"{teacher} is a {model.contract.method} model; all methods start from a diffusion "
                f"model, e.g. of fewstep train {self.plan.place.named('edm')}"
            )
        summary = self.plan.summary() | {"weights": fingerprint(model.denoiser)}
        record = out / "study.json"
        own = {LOCK, f"{TEMPORARY}{record.name}"}
        if not record.exists() and out.is_dir() and any(p.name not in own for p in out.iterdir()):
            raise UsageError(f"{out} holds something else than a study; choose another --out")
        before = _read(record) if record.exists() else summary
        changed = [
            f"{key}: was {_words(before.get(key))}, now {_words(value)}"
            for key, value in summary.items()
            if value != before.get(key)
        ]
        if changed:
            raise UsageError(
                f"{out} holds another study ({'; '.join(changed)}); choose another --out"
            )
        plan = self.plan
        protocol = plan.measures.judge(plan, model.contract.data)
        protocol.check()
        if (seen := seen_before(teacher, plan.data, plan.held_out)) is not None:
            _say(seen)
        out.mkdir(parents=True, exist_ok=True)
        with locked(out, f"another process is comparing in {out}"):
            write_json(record, summary)
            self._fill(out, teacher, model, protocol)
        return out / "report.html"

    def _fill(self, out: Path, teacher: str, model: Model, protocol: Judge) -> None:
        """Train and judge what is not done yet, and write the report after each."""
        common = self._common(model, protocol, out) | self._pairs(model, out)
        plan = self.plan
        seeds = range(plan.first_seed, plan.first_seed + plan.seeds)
        named = [*zip(plan.methods, plan.entrants, strict=True)]
        rounds = [(seed, *pair) for seed in seeds for pair in named]
        failed: list[str] = []
        for i, (seed, name, entrant) in enumerate(rounds):
            place = out / name / f"seed-{seed}"
            result = place / "result.json"
            # What failed is tried again: memory or a disk may have been the reason.
            if not result.exists() or "failed" in json.loads(result.read_text(encoding="utf-8")):
                _say(f"[{i + 1}/{len(rounds)}] {name}, seed {seed}")
                try:
                    outcome = Entry(plan, entrant, seed, teacher, protocol, place).run()
                except (Interrupted, OSError):
                    raise
                except Exception as error:
                    outcome = {"failed": f"{type(error).__name__}: {error}"}
                    place.mkdir(parents=True, exist_ok=True)
                    (place / "failed.txt").write_text(traceback.format_exc(), encoding="utf-8")
                    _say(f"    failed: {outcome['failed'].splitlines()[0]}")
                failed += [outcome["failed"]] if "failed" in outcome else []
                made = {"date": datetime.now(UTC).date().isoformat(), "fewstep": __version__}
                write_json(result, outcome | made)
            write_report(plan, common, out)
        if len(failed) == len(rounds):
            raise UsageError(
                f"all {len(failed)} training(s) failed, the first by {failed[0]}; "
                f"{out / 'report.html'} tells of each"
            )

    def _teacher(self) -> str:
        plan, place = self.plan, self.plan.place
        own = entry(plan.data) is None
        if own and not Path(plan.data).exists():
            known = [*CATALOGUE]
            raise UsageError(
                f"no data at {plan.data!r}, and no data of that name: {nearest(plan.data, known)}"
            )
        teacher = plan.teacher or place.start.teacher
        if teacher == NONE:
            raise UsageError(
                f"a comparison on {plan.data} needs --teacher: a diffusion model, e.g. of "
                f"fewstep train {place.named('edm')}"
            )
        if own and plan.resolution is None and Path(plan.data).suffix != SUFFIX:
            raise UsageError(f"to compare on the images of {plan.data} give their --resolution")
        return hub.pinned(teacher) if hub.names(teacher) else teacher

    def _pairs(self, model: Model, out: Path) -> dict[str, Any]:
        """What methods learn from that want the teacher's own pairs, and what it costs to make."""
        recipes = [entrant.recipe(self.plan.place) for entrant in self.plan.entrants]
        scales = sorted({r.start.guidance for r in recipes if r.options.needs_pairs()})
        if not scales:
            return {}
        record = out / "pairs.json"
        if not record.exists():
            n = PAIRS * len(scales)
            _say(f"{n:,} pairs of noise and the teacher's samples")
            began = time.perf_counter()
            for scale in scales:
                make(model, out / paired(scale), PAIRS, steps=TEACHER_STEPS, guidance=scale)
            write_json(record, {"n": n, "seconds": time.perf_counter() - began})
        return {"pairs": json.loads(record.read_text(encoding="utf-8"))}

    def _common(self, model: Model, protocol: Judge, out: Path) -> dict[str, Any]:
        """What all methods are measured against."""
        place = out / "teacher.json"
        if not place.exists():
            calls = model.calls(TEACHER_STEPS)
            measures = {
                "calls": calls,
                "teacher": protocol.judge(model, TEACHER_STEPS),
                "undistilled": protocol.judge(model, 1),
                "floor": protocol.floor(),
                "parameters": sum(p.numel() for p in model.denoiser.parameters()),
                "device": str(model.device),
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
            }
            picture(model.sample(32, steps=TEACHER_STEPS, seed=0), out / "teacher.png", 8)
            write_json(place, measures)
        return json.loads(place.read_text(encoding="utf-8"))


def _read(record: Path) -> dict[str, Any]:
    """The content of a study.json.

    Raises:
        UsageError: it is damaged.
    """
    try:
        return dict(json.loads(record.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UsageError(f"{record} is damaged; choose another --out") from error


def _words(value: Any) -> str:
    """A value of a plan's summary as the command line has it."""
    if value is None:
        return "not given"
    if isinstance(value, dict):
        return Budget(**value).text
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
