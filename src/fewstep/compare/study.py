"""Train every method on one budget, judge each, and keep what is done."""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fewstep.compare.entry import Entrant, Entry, paired
from fewstep.compare.report import write_report
from fewstep.data import STANDARD
from fewstep.data.toys import SAMPLERS
from fewstep.errors import Interrupted, UsageError, nearest
from fewstep.evaluation import Protocol, named_protocol
from fewstep.files import LOCK, TEMPORARY, locked, write_json
from fewstep.model import Model, load
from fewstep.pairs import make
from fewstep.pictures import picture
from fewstep.recipes.places import DIGITS, IMAGES, SMALL, TOYS, Place
from fewstep.training.checkpoints import fingerprint

TEACHER_STEPS = 18

PAIRS = 10_000
"""Of noise and the teacher's samples, for methods that learn from them."""


@dataclass(frozen=True)
class Budget:
    """What a method may use: ``seconds`` of training, or ``samples`` seen.

    Args:
        kind: which.
        amount: how many.
    """

    kind: str
    amount: float

    @classmethod
    def of(cls, text: str) -> Budget:
        """From ``60s`` or ``20000samples``."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|samples)", text.strip())
        if found is None or float(found[1]) <= 0:
            raise UsageError(f"--budget must look like 60s or 20000samples, got {text!r}")
        return cls({"s": "seconds"}.get(found[2], found[2]), float(found[1]))

    def share(self, part: float) -> Budget:
        """A part of it."""
        return replace(self, amount=self.amount * part)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison.

    Args:
        data: digits, a toy's name, fashion-mnist, cifar10, or a folder or zip of images.
        methods: names of ``METHODS``, each perhaps with options, see :class:`Entrant`.
        budget: of each method and seed.
        seeds: how many trainings of each.
        first_seed: of the first one; settings are chosen on others than are reported.
        steps: numbers of sampling steps to judge.
        teacher: a model or run folder; the digits have one.
        resolution: of a folder of images.
        held_out: for a folder of images, others that no model saw.
        n: samples and held-out data compared, at most.
    """

    data: str
    methods: Sequence[str]
    budget: Budget
    seeds: int = 3
    first_seed: int = 1
    steps: Sequence[int] = (1, 2, 4)
    teacher: str | None = None
    resolution: int | None = None
    held_out: str | None = None
    n: int = 2000

    def __post_init__(self) -> None:
        for text in self.methods:
            Entrant.of(text).values(self.place)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise UsageError(f"--methods must name one or more methods once, got {self.methods}")
        if min(self.seeds, self.n - 1, *self.steps) < 1 or self.first_seed < 0:
            raise UsageError(
                "--seeds and --steps must be at least 1, -n at least 2 and --first-seed at least "
                f"0, got {self.seeds}, {self.steps}, {self.n}, {self.first_seed}"
            )

    @property
    def place(self) -> Place:
        """Where its recipes run."""
        if self.data == "digits":
            return DIGITS
        return SMALL.get(self.data) or (TOYS if self.data in SAMPLERS else IMAGES)

    def run(self, out: Path) -> Path:
        """Train and judge what is not done yet, and write the report.

        Args:
            out: the folder; a study that was interrupted there goes on.

        Returns:
            The report's HTML page.
        """
        teacher = self._teacher()
        threads = self.place.train.threads
        if threads:
            torch.set_num_threads(threads)
        model = load(teacher)
        if model.contract.sampling.kind != "ode":
            raise UsageError(
                f"{teacher} is a {model.contract.method} model; all methods start from a diffusion "
                f"model, e.g. of fewstep train {self.place.named('edm')}"
            )
        told = json.loads(json.dumps(asdict(self))) | {"weights": fingerprint(model.denoiser)}
        record = out / "study.json"
        own = {LOCK, f"{TEMPORARY}{record.name}"}
        if not record.exists() and out.is_dir() and any(p.name not in own for p in out.iterdir()):
            raise UsageError(f"{out} holds something else than a study; choose another --out")
        before = json.loads(record.read_text(encoding="utf-8")) if record.exists() else told
        changed = [
            f"{key}: was {before.get(key)!r}, now {value!r}"
            for key, value in told.items()
            if value != before.get(key)
        ]
        if changed:
            raise UsageError(
                f"{out} holds another study ({'; '.join(changed)}); choose another --out"
            )
        protocol = named_protocol(self.data, self.held_out, model.contract.data, self.n)
        out.mkdir(parents=True, exist_ok=True)
        with locked(out, f"another process is comparing in {out}"):
            write_json(record, told)
            self._fill(out, teacher, model, protocol)
        return out / "report.html"

    def _fill(self, out: Path, teacher: str, model: Model, protocol: Protocol) -> None:
        """Train and judge what is not done yet, and write the report after each."""
        common = self._common(model, protocol, out) | self._pairs(model, out)
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        rounds = [(seed, name) for seed in seeds for name in self.methods]
        failed: list[str] = []
        for i, (seed, name) in enumerate(rounds):
            place = out / name / f"seed-{seed}"
            result = place / "result.json"
            # What failed is tried again: memory or a disk may have been the reason.
            if not result.exists() or "failed" in json.loads(result.read_text(encoding="utf-8")):
                _say(f"[{i + 1}/{len(rounds)}] {name}, seed {seed}")
                try:
                    found = Entry(self, Entrant.of(name), seed, teacher, protocol, place).run()
                except (Interrupted, OSError):
                    raise
                except Exception as error:
                    found = {"failed": f"{type(error).__name__}: {error}"}
                    place.mkdir(parents=True, exist_ok=True)
                    (place / "failed.txt").write_text(traceback.format_exc(), encoding="utf-8")
                    _say(f"    failed: {found['failed'].splitlines()[0]}")
                failed += [found["failed"]] if "failed" in found else []
                write_json(result, found)
            write_report(self, common, out)
        if len(failed) == len(rounds):
            raise UsageError(
                f"all {len(failed)} training(s) failed, the first by {failed[0]}; "
                f"{out / 'report.html'} tells of each"
            )

    def _teacher(self) -> str:
        if self.data in STANDARD and self.data not in SMALL:
            raise UsageError(f"--data {self.data} has no recipes to compare; take {[*SMALL]}")
        if self.place is IMAGES and not Path(self.data).exists():
            known = [DIGITS.data, *SMALL, *SAMPLERS]
            raise UsageError(
                f"no images at {self.data!r}, and no data of that name: {nearest(self.data, known)}"
            )
        teacher = self.teacher or self.place.teacher
        if teacher is None:
            raise UsageError(
                f"a comparison on {self.data} needs --teacher: a diffusion model, e.g. of "
                f"fewstep train {self.place.named('edm')}"
            )
        if self.place is IMAGES and self.resolution is None:
            raise UsageError(f"to compare on the images of {self.data} give their --resolution")
        return teacher

    def _pairs(self, model: Model, out: Path) -> dict[str, Any]:
        """What methods learn from that want the teacher's own pairs, and what it costs to make."""
        entrants = [Entrant.of(text) for text in self.methods]
        learning = [e for e in entrants if e.learns_from_pairs(self.place)]
        scales = sorted({e.guidance(self.place) for e in learning})
        if not scales:
            return {}
        record = out / "pairs.json"
        if not record.exists():
            n = PAIRS * len(scales)
            _say(f"{n:,} pairs of noise and what the teacher makes of it")
            began = time.perf_counter()
            for scale in scales:
                make(model, out / paired(scale), PAIRS, steps=TEACHER_STEPS, guidance=scale)
            write_json(record, {"n": n, "seconds": time.perf_counter() - began})
        return {"pairs": json.loads(record.read_text(encoding="utf-8"))}

    def _common(self, model: Model, protocol: Protocol, out: Path) -> dict[str, Any]:
        """What all methods are measured against."""
        place = out / "teacher.json"
        if not place.exists():
            calls = model.calls(TEACHER_STEPS)
            found = {
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
            write_json(place, found)
        return json.loads(place.read_text(encoding="utf-8"))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
