"""Whether an objective, settings, data and processes can train together."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch

from fewstep.core import UsageError
from fewstep.data import Dataset
from fewstep.derivatives import finite_difference, jvp
from fewstep.models import LowRank
from fewstep.models.discriminator import Heads
from fewstep.objectives.base import Objective
from fewstep.system.processes import World
from fewstep.training.config import TrainConfig
from fewstep.training.trained import chosen_in
from fewstep.weights import averageable

TOLERANCE = 1e-3
"""Largest error of a derivative, relative to its norm; in float64 a right one is within 1e-6."""

_HELP = "take --train.derivative difference, or a network without that operation"


def check(objective: Objective, data: Dataset, config: TrainConfig, world: World) -> None:
    """Refuse what cannot train together, before anything is computed.

    Raises:
        UsageError: the settings contradict each other, the method, the data or the processes.
    """
    _check_batches(objective, config, world)
    _check_weights(objective)
    _check_labels(objective, data)
    _check_derivatives(objective, config)
    _check_placement(objective, config, sharded=world.size > 1 and config.parallel == "fsdp")


def _check_batches(objective: Objective, config: TrainConfig, world: World) -> None:
    """The processes share the microbatches of an update, and a microbatch suits the method."""
    needs = objective.capabilities
    if config.accumulation % world.size:
        samples = config.batch * config.accumulation
        fits = config.accumulation * world.size
        advice = (
            f"--train.accumulation {world.size} --train.batch {samples // world.size} are the same "
            f"{samples:,} samples"
            if samples % world.size == 0
            else f"take --train.accumulation {fits}"
        )
        raise UsageError(
            f"{world.size} processes cannot share {config.accumulation} microbatch(es) of an "
            f"update evenly; {advice}"
        )
    if config.batch % needs.batch_multiple:
        raise UsageError(
            f"{type(objective).__name__} needs microbatches of a multiple of "
            f"{needs.batch_multiple} samples, got --train.batch {config.batch}"
        )
    if config.batch < needs.batch_least:
        raise UsageError(
            f"{type(objective).__name__} needs microbatches of at least {needs.batch_least} "
            f"samples, got --train.batch {config.batch}"
        )


def _check_weights(objective: Objective) -> None:
    """Every phase trains some weights, and none that must stay as they are."""
    trained = {
        phase.name: {
            id(w) for w, learns in zip(phase.module.parameters(), flags, strict=True) if learns
        }
        for phase, flags in ((p, chosen_in(p.module)) for p in objective.phases())
    }
    for name, weights in trained.items():
        if not weights:
            raise UsageError(
                f"{type(objective).__name__} has nothing to learn as its {name}: no weights, or "
                "only frozen ones; turn some on with requires_grad_(True)"
            )
        for held in objective.frozen:
            if not weights.isdisjoint(id(w) for w in objective.get_submodule(held).parameters()):
                raise UsageError(
                    f"{type(objective).__name__}'s {held} is to stay as it is, and has weights "
                    f"that its {name} learns; give a copy of the one or the other"
                )


def _check_labels(objective: Objective, data: Dataset) -> None:
    """Every network with a table of labels has all labels of the data.

    A label beyond a table's end raises deep inside a network, and on a GPU ends the process.
    """
    for module in objective.modules():
        labelled = isinstance(module, Heads) or "label" in getattr(module, "cond_keys", ())
        options = getattr(module, "options", None)
        known = options.get("classes") if labelled and isinstance(options, Mapping) else None
        if known and known < data.labels:
            raise UsageError(
                f"{type(module).__name__} knows {known} label(s), the data has {data.labels}; "
                f"make it with classes={data.labels}"
            )


def _check_derivatives(objective: Objective, config: TrainConfig) -> None:
    """The settings allow the derivatives that the losses take."""
    needs = objective.capabilities
    if needs.second_order and (config.checkpointing or config.derivative == "difference"):
        raise UsageError(
            f"{type(objective).__name__} with a penalty needs the gradient of a derivative, which "
            "only forward mode without --train.checkpointing gives; stop the gradient instead"
        )
    if config.compile and needs.forward_mode:
        raise UsageError(
            f"{type(objective).__name__} takes forward-mode derivatives, which torch.compile gets "
            "wrong or refuses in normalisation layers (pytorch#197090); leave out --train.compile"
        )


def _check_placement(objective: Objective, config: TrainConfig, sharded: bool) -> None:
    """Shards, compilation and offloading suit the method and each other."""
    if sharded and any(isinstance(m, LowRank) for m in objective.modules()):
        raise UsageError(
            "a denoiser of low-rank adapters shares its weights with another one, and shared "
            "weights cannot be sharded twice; take --train.parallel ddp, or a whole copy"
        )
    if sharded and config.optimizer == "adam8bit":
        raise UsageError(
            "averages of 8 bits are of blocks of whole weights, which shards cut; take "
            "--train.parallel ddp, or another --train.optimizer"
        )
    if sharded and not objective.capabilities.shardable:
        raise UsageError(
            f"{type(objective).__name__} with a discriminator takes a gradient within its loss, "
            "for which weights cannot be sharded; take --train.parallel ddp"
        )
    if config.compile and sharded:
        raise UsageError(
            "compiled networks and shards have not been made to work together; take "
            "--train.parallel ddp, or leave out --train.compile"
        )
    if config.offload and (config.compile or sharded):
        raise UsageError(
            "compiled networks and shards stay where they are; leave out --train.offload, or take "
            "--train.parallel ddp without --train.compile"
        )


@torch.no_grad()
def check_derivative(objective: Objective, data: Dataset) -> None:
    """Compare forward mode with a central difference, on a copy of the student in float64.

    Forward mode meets operations without a rule (fused attention of a user's own network), with a
    rule that fails under autocast or compilation, or with a wrong one, and no loss shows it.

    Raises:
        UsageError: they differ, or there is no forward mode; the message says what helps.
    """
    student = copy.deepcopy(objective.student).cpu().double()
    rng = torch.Generator().manual_seed(0)
    for parameter in filter(averageable, student.parameters()):
        if not parameter.any():
            # Layers that begin at zero would hide what is behind them.
            parameter.normal_(0, 0.1, generator=rng)
    batch = data.batch([0, 1])
    path = student.path
    t = path.time(torch.tensor([0.3, 1.5], dtype=torch.float64))
    noise, moved = (
        torch.randn(batch.x0.shape, generator=rng, dtype=torch.float64) for _ in range(2)
    )
    primals = (path.perturb(batch.x0.double(), noise, t), t)
    tangents = (moved, t)
    if student.two_time:
        primals, tangents = (*primals, t / 2), (*tangents, t)

    def answer(x: torch.Tensor, *times: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        return student(x, *times, *[None] * (2 - len(times)), cond)

    cond = {
        **{k: torch.ones(2, dtype=torch.float64) for k in student.cond_keys},
        **{k: v.double() if v.is_floating_point() else v for k, v in batch.cond.items()},
    }
    with torch.random.fork_rng(devices=[]):
        try:
            _, forward = jvp(answer, primals, tangents)
        except (NotImplementedError, RuntimeError) as error:
            raise UsageError(
                f"the student has no forward-mode derivative: {str(error).splitlines()[0]}; {_HELP}"
            ) from error
        _, expected = finite_difference(1e-5)(answer, primals, tangents)
    wrong = float((forward - expected).norm() / expected.norm())
    if not wrong < TOLERANCE:
        raise UsageError(
            f"the student's forward-mode derivative differs from its finite difference by "
            f"{wrong:.2g} of its norm: an operation in it has a wrong rule; {_HELP}"
        )
