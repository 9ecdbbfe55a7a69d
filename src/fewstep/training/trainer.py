"""The one loop. It knows phases, optimisers, averages and checkpoints, and no method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core import Batch, Rng, UsageError, entropy
from fewstep.data import Dataset
from fewstep.data.order import positions
from fewstep.objectives.base import Objective, Phase
from fewstep.training.averages import Averages, Rule
from fewstep.training.checkpoints import State, fingerprint, load_into
from fewstep.training.config import TrainConfig

PATIENCE = 10
"""Steps in a row with a non-finite gradient after which a run stops."""


class Diverged(RuntimeError):
    """Too many non-finite gradients in a row."""


class Trainer:
    """An objective in training: one call of :meth:`advance` is one step.

    Args:
        objective: on its device.
        data: random access.
        config: settings.
        averages: rules by name.
        device: where batches go.
    """

    def __init__(
        self,
        objective: Objective,
        data: Dataset,
        config: TrainConfig,
        averages: Mapping[str, Rule],
        device: torch.device,
    ) -> None:
        self.objective = objective.to(device)
        self.data, self.config, self.device = data, config, device
        self.averages = Averages(objective.student, averages)
        self.step = 0
        self.stage, self.stage_start = objective.stage(0), 0
        self.skipped = self.skipped_in_a_row = 0
        self.optimizers = self._optimizers()
        objective.train()
        for name in objective.frozen:
            objective.get_submodule(name).eval()

    def advance(self) -> dict[str, Tensor | float]:
        """One step: every due phase, then what follows the student. Returns what to log."""
        self._enter_stage()
        rate = self.config.learning_rate(self.step - self.stage_start)
        logs: dict[str, Tensor | float] = {"lr": rate, "loss": 0.0}
        batches = [self._batch(shard) for shard in range(self.config.accumulation)]
        finite, student_moved = True, False
        for phase in (p for p in self.objective.phases() if p.due(self.step)):
            finite = self._update(phase, batches, rate, logs)
            if not finite:
                break
            student_moved |= _holds(phase.module, self.objective.student)
        if finite:
            self.objective.after_step(self.step)
            if student_moved:
                self.averages.update(self.objective.student)
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        self.skipped += not finite
        self.step += 1
        if self.skipped_in_a_row >= PATIENCE:
            raise Diverged(
                f"{PATIENCE} steps in a row, up to step {self.step}, had gradients that are not "
                "finite; lower --train.lr, clip with --train.clip 1, or check the data"
            )
        return logs

    def _batch(self, shard: int) -> Batch:
        config = self.config
        index = positions(
            config.seed, self.step, config.batch, len(self.data), shard, config.accumulation
        )
        return self.data.batch(index).to(self.device)

    def _update(
        self, phase: Phase, batches: list[Batch], rate: float, logs: dict[str, Tensor | float]
    ) -> bool:
        """Draw, score, back-propagate, step. False if the gradient is not finite."""
        config, optimizer = self.config, self.optimizers[phase.name]
        parameters = [*phase.module.parameters()]
        with training(self.objective, phase.module):
            for shard, batch in enumerate(batches):
                rng = Rng(config.seed, self.step, phase.name, shard, self.device)
                draws = phase.draw(batch, self.step, rng)
                # Dropout has no generator of its own: torch's default ones are seeded alike.
                torch.manual_seed(entropy(config.seed, self.step, phase.name, shard))
                loss = phase.loss(batch, draws)
                total = loss.total() / config.accumulation
                total.backward()
                logs["loss"] += total.detach()
                for name, value in {**loss.terms, **loss.logs}.items():
                    logs[name] = logs.get(name, 0.0) + value.detach() / config.accumulation
        norm = nn.utils.clip_grad_norm_(parameters, config.clip or float("inf"))
        logs[f"grad_norm/{phase.name}"] = norm
        finite = bool(norm.isfinite())
        if finite:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        optimizer.zero_grad()
        return finite

    def _enter_stage(self) -> None:
        stage = self.objective.stage(self.step)
        if stage != self.stage:
            self.stage, self.stage_start = stage, self.step
            self.optimizers = self._optimizers()
            self.averages.restart(self.objective.student)

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {p.name: _optimizer(p.module, self.config) for p in self.objective.phases()}

    # State.

    def state(self) -> State:
        """Everything that a resumed run needs and cannot derive."""
        frozen = tuple(f"{name}." for name in self.objective.frozen)
        tensors = {
            f"objective.{k}": v
            for k, v in self.objective.state_dict().items()
            if not k.startswith(frozen)
        }
        for name, copy in self.averages.copies.items():
            tensors |= {f"average.{name}.{k}": v for k, v in copy.state_dict().items()}
        for name, optimizer in self.optimizers.items():
            for i, entry in optimizer.state_dict()["state"].items():
                tensors |= {
                    f"optimizer.{name}.{i}.{k}": torch.as_tensor(v) for k, v in entry.items()
                }
        return tensors, {
            "stage": self.stage,
            "stage_start": self.stage_start,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "updates": self.averages.updates,
            "frozen": self.frozen_fingerprints(),
        }

    def load(self, state: State, source: Path) -> None:
        """Continue from a state.

        Raises:
            UsageError: it is of another network, or a frozen module (a teacher) is another one.
        """
        tensors, values = state
        for name, digest in self.frozen_fingerprints().items():
            if values["frozen"].get(name) != digest:
                raise UsageError(
                    f"{source} was trained with another {name} than this run's; give the same "
                    "teacher, or start anew with --fresh"
                )
        kept = {k: v for k, v in tensors.items() if k.startswith("objective.")}
        for name in self.objective.frozen:
            module = self.objective.get_submodule(name)
            kept |= {f"objective.{name}.{k}": v for k, v in module.state_dict().items()}
        load_into(self.objective, kept, "objective.", source)
        for name, copy in self.averages.copies.items():
            load_into(copy, tensors, f"average.{name}.", source)
        self.step = values["step"]
        self.stage, self.stage_start = values["stage"], values["stage_start"]
        self.skipped, self.skipped_in_a_row = values["skipped"], values["skipped_in_a_row"]
        self.averages.updates = values["updates"]
        self.optimizers = self._optimizers()
        for name, optimizer in self.optimizers.items():
            _load_optimizer(optimizer, tensors, f"optimizer.{name}.")

    def frozen_fingerprints(self) -> dict[str, str]:
        """sha256 of each frozen submodule."""
        return {n: fingerprint(self.objective.get_submodule(n)) for n in self.objective.frozen}


@contextmanager
def training(objective: Objective, module: nn.Module) -> Iterator[None]:
    """Gradients for ``module`` and for nothing else: the one place that decides it."""
    objective.requires_grad_(False)
    module.requires_grad_(True)
    yield


def _holds(module: nn.Module, student: nn.Module) -> bool:
    return any(m is student for m in module.modules())


def _optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    common: dict[str, Any] = {
        "lr": config.lr,
        "betas": config.betas,
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    parameters = [*module.parameters()]
    if config.optimizer == "radam":
        return torch.optim.RAdam(parameters, **common)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    fused = all(p.device.type in {"cpu", "cuda"} for p in parameters)
    return kind(parameters, fused=fused, **common)


def _load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str
) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(prefix):
            index, name = key.removeprefix(prefix).split(".", 1)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
