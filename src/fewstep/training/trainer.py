"""The one loop. It knows phases, optimisers, averages and checkpoints, and no method."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core import Batch, Rng, UsageError, entropy
from fewstep.data import Dataset
from fewstep.models import AbstractDenoiser, Network
from fewstep.models.low_rank import base_names
from fewstep.objectives.base import Objective, Phase
from fewstep.system.processes import ALONE, World
from fewstep.training.averages import Averages, Rule
from fewstep.training.check import check
from fewstep.training.checkpoints import (
    State,
    digest_of,
    fingerprint,
    learned_in,
    load_into,
    once,
)
from fewstep.training.config import FRESH, Augment, TrainConfig
from fewstep.training.derivative import derivative_for
from fewstep.training.distribution import (
    Alone,
    Replicated,
    Sharded,
    Strategy,
    checkpoint_blocks,
    full,
    networks,
)
from fewstep.training.faults import Unsound, unsound
from fewstep.training.feed import Feed
from fewstep.training.guards import LossScale, Spikes
from fewstep.training.offload import Offload
from fewstep.training.optimizers import load_optimizer, optimizer_of, state_of
from fewstep.training.trained import chosen_in, trained_by, training
from fewstep.weights import freeze

PATIENCE = 10
"""Updates of a phase in a row with a non-finite gradient after which a run stops."""


class Diverged(RuntimeError):
    """Too many non-finite gradients of a phase in a row."""


class Trainer:
    """An objective in training: one call of :meth:`advance` is one step.

    Args:
        objective: on its device.
        data: random access.
        config: settings.
        averages: rules by name.
        device: where batches go.
        world: the processes that train together.
        augment: what happens to each batch.

    Raises:
        UsageError: settings that contradict each other, the number of processes or the method.
    """

    def __init__(
        self,
        objective: Objective,
        data: Dataset,
        config: TrainConfig,
        averages: Mapping[str, Rule],
        device: torch.device,
        world: World = ALONE,
        augment: Augment | None = None,
    ) -> None:
        check(objective, data, config, world)
        if config.precision == "auto":
            raise UsageError(
                "a trainer needs a precision: fp32, bf16 or fp16. fewstep.train measures what auto "
                "is, and so does fewstep.training.precision.decided(run, device)"
            )
        self.objective = objective.to(device)
        self.data, self.config, self.device, self.world = data, config, device, world
        self.augment = augment
        own = config.accumulation // world.size
        self.shards = range(world.rank * own, (world.rank + 1) * own)
        self.averages = Averages(objective.student, averages)
        # Frozen modules never change, so what is read before sharding stays true.
        self.fingerprints = {n: fingerprint(objective.get_submodule(n)) for n in objective.frozen}
        self.base = base_names(objective)
        under = {n: p for n, p in objective.named_parameters() if n in self.base}
        self.base_digest = digest_of(under) if under else None
        self.step = 0
        self.stage, self.stage_start = objective.stage(0), 0
        self.skipped = 0
        self.failed = {p.name: 0 for p in objective.phases()}
        self.unsound = Unsound(data)
        self.scales = {p.name: LossScale(config.precision) for p in objective.phases()}
        self.spikes = {p.name: Spikes(config.spike) for p in objective.phases()}
        self.feed: Feed | None = None
        self.latest: dict[str, Tensor | float] = {}
        every = objective.named_parameters(remove_duplicate=False)
        self.before = {name: p.requires_grad for name, p in every}
        chosen = {p.name: chosen_in(p.module) for p in objective.phases()}
        objective.train()
        for name in objective.frozen:
            objective.get_submodule(name).eval()
        trained = [*networks(p.module for p in objective.phases())]
        if objective.capabilities.forward_mode:
            objective.derivative = derivative_for(objective, config, data.shape)
        self.again: list[nn.Module] = []
        if config.checkpointing:
            for network in trained:
                if isinstance(network, Network):  # heads of a judge have no blocks
                    self.again += checkpoint_blocks(network)
        self.trained = trained_by(objective, chosen)
        self.strategy = self._strategy()
        self.trained = trained_by(objective, chosen)  # sharding makes them anew
        if config.compile:
            for network in trained:
                network.compile()
        self.optimizers = self._optimizers()
        self.offload = Offload(objective, self.averages, device) if config.offload else None

    def _strategy(self) -> Strategy:
        if self.world.size == 1:
            return Alone()
        if self.config.parallel == "ddp":
            return Replicated(self.objective.phases(), self.trained)
        self.unsharded = freeze(deepcopy(self.objective.student).cpu())
        modules = [self.objective, *self.averages.copies.values()]
        return Sharded(modules, self.device, self.world.size)

    def advance(self) -> dict[str, Tensor | float]:
        """One step: every due phase, then what follows the student. Returns what to log."""
        self._enter_stage()
        rate = self.config.learning_rate(self.step - self.stage_start)
        logs: dict[str, Tensor | float] = {"lr": rate, "loss": 0.0}
        batches = self._batches()
        good, student_moved = True, False
        for phase in (p for p in self.objective.phases() if p.due(self.step)):
            good = self._update(phase, batches, rate, logs)
            self.failed[phase.name] = 0 if good else self.failed[phase.name] + 1
            if not good:
                break
            student_moved |= _holds(phase.module, self.objective.student)
        if good:
            self.objective.after_step(self.step)
            if student_moved:
                self._have_averages()
                self.averages.update(self.objective.student)
        self.skipped += not good
        self.step += 1
        # A row holds the values of a phase's last update where the phase is not due itself.
        self.latest |= logs
        for name, count in self.failed.items():
            if count >= PATIENCE:
                which = f"{PATIENCE} updates of the {name} in a row, up to step {self.step}"
                if (cause := self.unsound.cause(name)) is not None:
                    raise UsageError(f"{cause}; {which}, met such samples: remove them")
                raise Diverged(
                    f"{which}, had gradients that are not finite; lower --train.lr, clip with "
                    "--train.clip 1, or check the data"
                )
        return logs

    def _batches(self) -> list[Batch]:
        if self.feed is None:
            self.feed = Feed(self.data, self.config, self.shards, self.step, self.augment)
        return [batch.to(self.device) for batch in self.feed.step(self.step)]

    def _update(
        self, phase: Phase, batches: list[Batch], rate: float, logs: dict[str, Tensor | float]
    ) -> bool:
        """Draw, score, back-propagate, step. False if the step was skipped."""
        config, optimizer = self.config, self.optimizers[phase.name]
        scale, shards = self.scales[phase.name], len(batches)
        if self.offload is not None:
            self.offload.begin(phase.name, self.optimizers)
        with training(self.objective, phase.module, self.trained[phase.name]):
            for shard, batch in zip(self.shards, batches, strict=True):
                rng = Rng(config.seed, self.step, phase.name, shard, self.device)
                draws = phase.draw(batch, self.step, rng)
                # Dropout has no generator of its own: torch's default ones are seeded alike.
                torch.manual_seed(entropy(config.seed, self.step, phase.name, shard))
                with self.autocast():
                    draws = phase.prepared(batch, draws)
                for part in phase.losses:
                    with self.strategy.microbatch(phase, part, shard == self.shards[-1]) as score:
                        with self.autocast():
                            loss = score(batch, draws)
                        if not loss.terms:
                            continue
                        total = loss.total() / shards
                        (total * scale.value).backward()
                    logs["loss"] += total.detach()
                    for name, value in {**loss.terms, **loss.logs}.items():
                        logs[name] = logs.get(name, 0.0) + value.detach() / shards
                    del loss, total
        self.strategy.rest(phase)
        parameters = self.trained[phase.name]
        scale.undo(parameters)
        total_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if config.clip:
            nn.utils.clip_grads_with_norm_(parameters, config.clip, total_norm)
        norm = full(total_norm)
        logs[f"grad_norm/{phase.name}"] = norm
        finite = scale.adapt(bool(norm.isfinite()))
        if not finite:
            self._look_at(phase, batches)
        good = finite and self.spikes[phase.name].allow(norm)
        if good:
            self.unsound.good(phase.name)
            for group in optimizer.param_groups:
                group["lr"] = rate * phase.rate
            optimizer.step()
            trained = {*map(id, parameters)}
            for module in phase.module.modules():
                if trained.isdisjoint(map(id, module.parameters())):
                    continue  # the user froze it
                # EDM2 forces its weights onto spheres; in forward passes that would change them.
                normalise: Any = getattr(module, "normalise_weights", None)
                if normalise is not None:
                    normalise()
        optimizer.zero_grad()
        return good

    def _look_at(self, phase: Phase, batches: list[Batch]) -> None:
        """Look for samples that are not finite in this step; all processes call this together."""
        assert self.feed is not None
        own = unsound(batches, self.feed.indices(self.step))
        every = self.world.together(torch.tensor(own, dtype=torch.int64))
        self.unsound.bad(phase.name, every.tolist())

    def autocast(self) -> torch.autocast:
        """The precision in which losses are computed."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def student(self, average: str | None) -> AbstractDenoiser:
        """The student, or one of its averages, whole; under FSDP2 all processes must call this."""
        chosen = self.objective.student if average is None else self.averages.copies[average]
        if self.offload is not None and average is not None:
            self.offload.have(chosen)
        if not isinstance(self.strategy, Sharded):
            return chosen
        with torch.no_grad():
            for old, new in zip(
                self.unsharded.state_dict().values(), chosen.state_dict().values(), strict=True
            ):
                old.copy_(full(new))
        return self.unsharded

    def _enter_stage(self) -> None:
        stage = self.objective.stage(self.step)
        if stage != self.stage:
            self.stage, self.stage_start = stage, self.step
            self.optimizers = self._optimizers()
            self._have_averages()
            self.averages.restart(self.objective.student)
            self.spikes = {name: Spikes(self.config.spike) for name in self.spikes}

    def close(self) -> None:
        """End what fetches batches, have back what waits elsewhere, and undo what was switched."""
        if self.feed is not None:
            self.feed.close()
        if self.offload is not None:
            self.offload.end()
        for unit in self.again:
            del unit.forward
        for name, parameter in self.objective.named_parameters(remove_duplicate=False):
            parameter.requires_grad_(self.before[name])
            parameter.grad = None

    def _have_averages(self) -> None:
        if self.offload is not None:
            for copy in self.averages.copies.values():
                self.offload.have(copy)

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {
            name: optimizer_of(parameters, self.config) for name, parameters in self.trained.items()
        }

    # State.

    def state(self) -> State:
        """Everything that a resumed run needs and cannot derive."""
        frozen = tuple(f"{name}." for name in self.objective.frozen)
        learned = {k: v for k, v in once(self.objective, frozen).items() if k not in self.base}
        tensors = {f"objective.{k}": v.detach() for k, v in learned.items()}
        for name, copy in self.averages.copies.items():
            own = learned_in(copy)
            tensors |= {f"average.{name}.{k}": v.detach() for k, v in own.items()}
        for name, optimizer in self.optimizers.items():
            for i, entry in state_of(optimizer).items():
                tensors |= {
                    f"optimizer.{name}.{i}.{k}": torch.as_tensor(v) for k, v in entry.items()
                }
        return tensors, {
            "stage": self.stage,
            "stage_start": self.stage_start,
            "skipped": self.skipped,
            "failed": self.failed,
            "updates": self.averages.updates,
            "scales": {name: scale.state() for name, scale in self.scales.items()},
            "norms": {name: spikes.norms for name, spikes in self.spikes.items()},
            "latest": {name: float(value) for name, value in self.latest.items()},
            "frozen": self.fingerprints,
            **({"base": self.base_digest} if self.base_digest else {}),
        }

    def load(self, state: State, source: Path) -> None:
        """Continue from a state.

        Raises:
            UsageError: it is of another network, or a frozen module (a teacher) is another one.
        """
        tensors, values = state
        for name, digest in self.fingerprints.items():
            if values["frozen"].get(name) != digest:
                raise UsageError(
                    f"{source} was trained with another {name} than this run's; give the same "
                    f"teacher, or start anew with {FRESH}"
                )
        if values.get("base", self.base_digest) != self.base_digest:
            raise UsageError(
                f"{source} holds adapters for other frozen weights than this run's; give the same "
                f"teacher, or start anew with {FRESH}"
            )
        frozen = tuple(f"{name}." for name in self.objective.frozen)
        load_into(self.objective, tensors, "objective.", source, but=frozen, base=self.base)
        for name, copy in self.averages.copies.items():
            load_into(copy, tensors, f"average.{name}.", source, base=base_names(copy))
        self.step = values["step"]
        self.stage, self.stage_start = values["stage"], values["stage_start"]
        self.skipped, self.failed = values["skipped"], dict(values["failed"])
        self.averages.updates = values["updates"]
        self.latest = dict(values["latest"])
        for name, scale in self.scales.items():
            scale.value, scale.since = values["scales"][name]
        for name, spikes in self.spikes.items():
            spikes.norms = values["norms"][name]
        self.optimizers = self._optimizers()
        for name, optimizer in self.optimizers.items():
            load_optimizer(optimizer, tensors, f"optimizer.{name}.")


def _holds(module: nn.Module, student: nn.Module) -> bool:
    return any(m is student for m in module.modules())
