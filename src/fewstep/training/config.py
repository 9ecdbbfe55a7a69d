"""How to train, as plain values: importable without torch, so that ``--help`` is quick."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from fewstep.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from fewstep.core import Batch
    from fewstep.data import Dataset
    from fewstep.frontends import Frontend
    from fewstep.model import Model
    from fewstep.objectives.base import Objective

Augment = Callable[["Batch", "np.ndarray", int], "Batch"]
"""(batch, positions in the stream of training samples, seed) -> batch."""

Precision = Literal["fp32", "bf16", "fp16"]
"""What networks compute in."""

FREE = (
    "steps",
    "device",
    "threads",
    "log_every",
    "sample_every",
    "evaluate_every",
    "save_every",
    "keep",
    "keep_every",
    "tensorboard",
    "wandb",
    "keep_best",
    "allow_changed_data",
    "workers",
    "parallel",
    "compile",
    "checkpointing",
    "offload",
)
"""Settings that a resumed run may change; all others would make it another run."""


FRESH = "--fresh (in Python, fresh=True)"
"""What moves an old run aside, in the words of messages."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The trainer's settings; units are steps and samples, never epochs."""

    steps: int
    """Updates in all."""
    batch: int = 256
    """Samples of one microbatch."""
    accumulation: int = 1
    """Microbatches of one update, shared out over all processes: a multiple of their number."""
    lr: float = 1e-3
    """Learning rate, after warm-up and before decay."""
    schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = "constant"
    """Decay of the learning rate: to 0, or as one over the square root of the step (EDM2)."""
    decay_steps: int = 0
    """Steps of the decay (inverse_sqrt: before it), counted from each stage's start; 0 for all."""
    warmup: int = 0
    """Steps of linear warm-up."""
    optimizer: Literal["adam", "adamw", "radam", "adam8bit"] = "adam"
    """Optimiser; torch's fused kernel is used where there is one. adam8bit is adamw whose two
    averages have 8 bits a number (extra: adam8bit)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the optimiser's two averages, each in [0, 1)."""
    eps: float = 1e-8
    """Number that the optimiser adds to its denominator."""
    weight_decay: float = 0.0
    """Weight decay of the optimiser; adamw decouples it."""
    clip: float = 0.0
    """Largest norm of a phase's gradient; 0 for no limit."""
    spike: float = 0.0
    """Skip a step whose gradient norm is so many times the median of the last 100; 0 never does."""
    precision: Precision | Literal["auto"] = "fp32"
    """Precision of the networks' arithmetic (autocast); weights and optimiser stay fp32. auto is
    bf16 where a measurement at the start finds it faster than fp32; a resumed run keeps it."""
    seed: int = 0
    """Seed of the first weights, of the order of the data and of all draws."""
    device: str = "auto"
    """A torch device, or auto: an accelerator if there is one."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes (torchrun) share the work: copies of everything, or shards (FSDP2)."""
    workers: int = 0
    """Processes that fetch data ahead; 0 fetches in the trainer itself."""
    compile: bool = False
    """Compile the networks; a minute or more at the start."""
    checkpointing: bool = False
    """Compute blocks again in the backward pass instead of keeping what is inside them."""
    offload: bool = False
    """Keep in the CPU's memory what a phase does not need, at the price of copying it."""
    derivative: Literal["forward", "joint", "difference"] = "forward"
    """Directional derivatives (sCM, MeanFlow, ...): forward mode, or differences where it fails.
    joint is forward mode in one pass with the value, in up to three times the memory."""
    threads: int = 1
    """CPU threads; small networks are fastest with one. 0 leaves torch's choice."""
    log_every: int = 100
    """Steps between rows of log.jsonl."""
    sample_every: int = 500
    """Steps between pictures of samples; 0 for none."""
    evaluate_every: int = 0
    """Steps between evaluations on held-out data; 0 for none before the end."""
    save_every: int = 1000
    """Steps between checkpoints."""
    keep: int = 2
    """Newest checkpoints kept."""
    keep_every: int = 0
    """Keep the checkpoints at its multiples for good; 0 for none."""
    keep_best: str = ""
    """A metric of the evaluations on the way, e.g. fd: the model with the best is kept in best/."""
    allow_changed_data: bool = False
    """Resume although the data is not what the run began with."""
    snapshot_every: int = 0
    """Steps between copies of power-function averages, from which any other is made; 0 for none."""
    tensorboard: bool = False
    """Log to TensorBoard too (extra: tensorboard)."""
    wandb: bool = False
    """Log to Weights & Biases too (extra: wandb)."""

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "accumulation": 1, "log_every": 1, "save_every": 1}
        least |= {"keep": 1, "warmup": 0, "decay_steps": 0, "seed": 0, "threads": 0, "workers": 0}
        least |= dict.fromkeys(
            ("sample_every", "evaluate_every", "keep_every", "snapshot_every"), 0
        )
        problems = [
            f"train.{name} must be at least {low} and below 2^63, got {getattr(self, name)}"
            for name, low in least.items()
            if not low <= getattr(self, name) < 2**63
        ]
        problems += [
            f"train.{name} must be finite and at least 0, got {getattr(self, name)}"
            for name in ("lr", "eps", "weight_decay", "clip", "spike")
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0)
        ]
        if 0 < self.spike <= 1:
            problems.append(f"train.spike must be above 1, or 0 for none, got {self.spike}")
        if not all(0 <= beta < 1 for beta in self.betas):
            problems.append(f"train.betas must lie in [0, 1), got {self.betas}")
        if problems:
            raise UsageError("\n".join(problems))

    def learning_rate(self, step: int) -> float:
        """At a step, counted from 0 in the current stage."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        over = self.decay_steps or self.steps
        done = min(1.0, step / over)
        if self.schedule == "linear":
            return self.lr * rise * (1 - done)
        if self.schedule == "cosine":
            return self.lr * rise * (1 + math.cos(math.pi * done)) / 2
        if self.schedule == "inverse_sqrt":
            return self.lr * rise / math.sqrt(max(step / over, 1.0))
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
        watch: numbers of a model for the log while training goes on.
        held_out: the data of these evaluations, which training does not see.
        note: a line for the header, e.g. which teacher was taken.
        augment: what happens to each batch; its numbers come from seed and position.
        sampling_times: for a number of calls, the times at which users generate, in the path's own
            unit; descending, the first is where sampling starts.
        teacher: the model that the student starts from or learns from, if there is one.
        frontend: the codec and the reader of texts that made the data, which the model takes along.
        network_arguments: names of the arguments that describe a new network; cards and reports
            show the network that there is instead.
        upgrade: (recipe, arguments) of a run of an older version to the arguments as this version
            names them, so that its folder can be resumed.
        commits: names of models on the Hub, as they were given, with the commits that they mean.
    """

    recipe: str
    arguments: Mapping[str, Any]
    objective: Objective
    data: Dataset
    config: TrainConfig
    averages: Mapping[str, Callable[[int], float]] = field(default_factory=dict)
    finish: Callable[[Path, Model], None] | None = None
    watch: Callable[[Model], Mapping[str, float]] | None = None
    held_out: Dataset | None = None
    note: str = ""
    augment: Augment | None = None
    sampling_times: Mapping[int, Sequence[float]] = field(default_factory=dict)
    teacher: Model | None = None
    frontend: Frontend | None = None
    network_arguments: Sequence[str] = ()
    upgrade: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] = lambda recipe, given: given
    commits: Mapping[str, str] = field(default_factory=dict)


class Buildable(Protocol):
    """What makes a run: a recipe."""

    def build(self) -> Run:
        """The run."""
        ...
