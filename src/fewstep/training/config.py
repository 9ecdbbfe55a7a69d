"""How to train, as plain values: importable without torch, so that ``--help`` is quick."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fewstep.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from fewstep.data import Dataset
    from fewstep.model import Model
    from fewstep.objectives.base import Objective

FREE = (
    "steps",
    "device",
    "threads",
    "log_every",
    "sample_every",
    "save_every",
    "keep",
    "tensorboard",
)
"""Settings that a resumed run may change; all others would make it another run."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The trainer's settings; units are steps and samples, never epochs."""

    steps: int
    """Updates in all."""
    batch: int = 256
    """Samples of one microbatch."""
    accumulation: int = 1
    """Microbatches of one update."""
    lr: float = 1e-3
    """Learning rate, after warm-up and before decay."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Decay of the learning rate over all steps, to 0."""
    warmup: int = 0
    """Steps of linear warm-up."""
    optimizer: Literal["adam", "adamw", "radam"] = "adam"
    """Fused where torch has a fused kernel."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of the optimiser."""
    eps: float = 1e-8
    """Of the optimiser."""
    weight_decay: float = 0.0
    """Of the optimiser; decoupled for adamw."""
    clip: float = 0.0
    """Largest norm of a phase's gradient; 0 for no limit."""
    seed: int = 0
    """Of initialisation, order and draws."""
    device: str = "auto"
    """A torch device, or auto: an accelerator if there is one."""
    threads: int = 1
    """CPU threads; small networks are fastest with one. 0 leaves torch's choice."""
    log_every: int = 100
    """Steps between rows of log.jsonl."""
    sample_every: int = 500
    """Steps between pictures of samples; 0 for none."""
    save_every: int = 1000
    """Steps between checkpoints."""
    keep: int = 2
    """Newest checkpoints kept."""
    tensorboard: bool = False
    """Log to TensorBoard too (extra: tensorboard)."""

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "accumulation": 1, "log_every": 1, "save_every": 1}
        least |= {"keep": 1, "warmup": 0, "seed": 0, "threads": 0, "sample_every": 0}
        found = [
            f"train.{name} must be at least {low} and below 2^63, got {getattr(self, name)}"
            for name, low in least.items()
            if not low <= getattr(self, name) < 2**63
        ]
        found += [
            f"train.{name} must be finite and at least 0, got {getattr(self, name)}"
            for name in ("lr", "eps", "weight_decay", "clip")
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0)
        ]
        if not all(0 <= beta < 1 for beta in self.betas):
            found.append(f"train.betas must lie in [0, 1), got {self.betas}")
        if found:
            raise UsageError("\n".join(found))

    def learning_rate(self, step: int) -> float:
        """At a step, counted from 0 in the current stage."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        done = min(1.0, step / self.steps)
        if self.schedule == "linear":
            return self.lr * rise * (1 - done)
        if self.schedule == "cosine":
            return self.lr * rise * (1 + math.cos(math.pi * done)) / 2
        return self.lr * rise


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything ``fewstep.train`` needs; what a recipe returns.

    Args:
        recipe: its name.
        arguments: JSON values from which the recipe builds the run again.
        objective: the method, with its networks.
        data: what it learns from.
        config: how.
        averages: name to averaging rule; the first becomes the run's model.
        finish: called with the run folder and the finished model; prints and writes the metrics.
        note: a line for the header, e.g. which teacher was taken.
    """

    recipe: str
    arguments: Mapping[str, Any]
    objective: Objective
    data: Dataset
    config: TrainConfig
    averages: Mapping[str, Callable[[int], float]] = field(default_factory=dict)
    finish: Callable[[Path, Model], None] | None = None
    note: str = ""
