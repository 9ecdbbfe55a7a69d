"""``fewstep.train``: a run from its folder's first line to its finished model."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from fewstep.contract import Contract
from fewstep.core import UsageError
from fewstep.data import spec_of
from fewstep.devices import usable_device
from fewstep.errors import Interrupted
from fewstep.model import Model
from fewstep.pictures import picture
from fewstep.processes import World, joined
from fewstep.training import checkpoints
from fewstep.training.announce import card, header, plan
from fewstep.training.check import check, check_derivative
from fewstep.training.conditions import check_conditions, picture_conditions
from fewstep.training.config import Buildable, Run, TrainConfig
from fewstep.training.folder import RunFolder, describe
from fewstep.training.health import Health
from fewstep.training.logs import Logger, require_tensorboard, require_wandb
from fewstep.training.snapshots import snapshot
from fewstep.training.trainer import Trainer

PICTURED = 64
"""Samples in a picture of a run."""

FIRST = 16
"""Samples in its first picture, of networks that have not learnt anything."""


def train(run: Run | Buildable, out: str | Path, *, fresh: bool = False) -> Model:
    """Train in ``out``, going on from its newest checkpoint if there is one.

    Under torchrun (or with RANK and WORLD_SIZE set) all processes call this.

    Args:
        run: a run, or the recipe of one.
        out: the run folder; on several machines, one that they share.
        fresh: move an old run aside first.

    Returns:
        The finished model, which is also in ``out/model``.

    Raises:
        UsageError: the settings or the folder cannot be used.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 came; the run was saved.
        Diverged: gradients stayed non-finite.
    """
    run = run if isinstance(run, Run) else run.build()
    config = run.config
    contract(run)  # or refuse its sampling times, before anything is trained
    if config.threads:
        torch.set_num_threads(config.threads)
    if config.tensorboard:
        require_tensorboard()
    if config.wandb:
        require_wandb()
    folder = RunFolder(Path(out))
    with joined() as world, ExitStack() as stack:
        device = _device(config)
        check_conditions(run.objective, run.data)
        if device.type == "cuda" and world.size > 1:
            device = torch.device("cuda", world.local)
        if run.objective.capabilities.forward_mode and config.derivative == "forward":
            check_derivative(run.objective, run.data)
        if fresh and world.first and (aside := folder.move_aside()):
            _say(f"moved the old run to {aside}")
        trainer = Trainer(run.objective, run.data, config, run.averages, device, world, run.augment)
        stack.callback(trainer.close)
        record = describe(run, device, trainer.fingerprints)
        _open(folder, record, run, world, stack)
        resumed = world.agreed(checkpoints.newest(folder.checkpoints))
        if resumed is not None:
            trainer.load(checkpoints.read(resumed), resumed)
        if trainer.step >= config.steps and world.agreed(folder.delivered()) == trainer.step:
            if world.first:
                _say(f"{folder.path} is finished at step {trainer.step}; --fresh starts anew")
            return _model(run, trainer, _main(trainer))
        if world.first:
            folder.write(record)
            _say(header(run, trainer))
            where = f"resuming from {resumed}" if resumed else "starting"
            _say(f"{where} in {folder.path}")
        _loop(run, trainer, folder)
        return _deliver(run, trainer, folder)


def dry(run: Run) -> str:
    """What :func:`train` would do: the resolved recipe, the header, an estimate of the memory."""
    device = _device(run.config)
    contract(run)
    check_conditions(run.objective, run.data)
    world = World(size=int(os.environ.get("WORLD_SIZE") or 1))
    check(run.objective, run.data, run.config, world)
    config = replace(run.config, compile=False)
    trainer = Trainer(run.objective, run.data, config, run.averages, device)
    return plan(run, describe(run, device, trainer.fingerprints), trainer)


def _device(config: TrainConfig) -> torch.device:
    device = usable_device(config.device)
    if config.offload and device.type == "cpu":
        raise UsageError(
            "--train.offload moves to the CPU's memory what an accelerator need not hold, and this "
            "run is on the CPU; leave it out"
        )
    return device


def _open(
    folder: RunFolder, record: dict[str, Any], run: Run, world: World, stack: ExitStack
) -> None:
    """The first process opens the folder; what it finds wrong is every process's error."""
    problem = None
    if world.first:
        try:
            stack.enter_context(folder.opened(record, run.upgrade))
        except UsageError as error:
            problem = error
    told = world.agreed(None if problem is None else str(problem))
    if told is not None:
        raise problem or UsageError(told)


def _loop(run: Run, trainer: Trainer, folder: RunFolder) -> None:
    config, world, health = run.config, trainer.world, Health()
    with ExitStack() as stack:
        logger = stack.enter_context(Logger(folder, trainer.step, run)) if world.first else None
        caught = stack.enter_context(_signals())
        if trainer.step == 0 and config.sample_every:
            _pictures(run, trainer, folder, caught)
        while trainer.step < config.steps:
            trainer.advance()
            step = trainer.step
            last = step == config.steps

            def due(every: int, step: int = step, last: bool = last) -> bool:
                return every > 0 and (last or step % every == 0)

            signum = world.largest(caught[0] if caught else 0)
            row = world.mean(trainer.latest) if due(config.log_every) else None
            if logger is not None:
                logger.advance(step)
                if row is not None:
                    logger.row(step, {**row, "skipped": float(trainer.skipped)})
                    for word in health.told(row):
                        _say(f"step {step}: {word}")
            if due(config.sample_every):
                _pictures(run, trainer, folder, caught)
            if (
                run.watch is not None
                and config.evaluate_every
                and step % config.evaluate_every == 0
            ):
                training = trainer.objective.student.training
                model = _model(run, trainer, _main(trainer))
                if logger is not None:
                    logger.note(step, run.watch(model))
                trainer.objective.student.train(training)
            if config.snapshot_every and due(config.snapshot_every):
                snapshot(trainer, folder)
            if signum or due(config.save_every):
                saved = checkpoints.save(
                    folder.checkpoints,
                    step,
                    trainer.state(),
                    config.keep,
                    world,
                    config.keep_every,
                )
                # A signal may have come since, and after the last step nobody would ask again.
                signum = world.largest(caught[0] if caught else 0) if last else signum
                if signum:
                    raise Interrupted(signum, saved)


def _main(trainer: Trainer) -> str | None:
    """The average that is delivered as the run's model; None is the student itself."""
    return next(iter(trainer.averages.copies), None)


def _model(run: Run, trainer: Trainer, average: str | None) -> Model:
    """What an average, or the student itself, delivers; all processes call this."""
    return Model(run.objective.deliver(trainer.student(average)), contract(run))


def contract(run: Run) -> Contract:
    """The contract of the model that a run delivers.

    Raises:
        UsageError: the method does not allow the run's sampling times.
    """
    return run.objective.contract(spec_of(run.data)).with_times(run.sampling_times)


def _deliver(run: Run, trainer: Trainer, folder: RunFolder) -> Model:
    """Models of all averages, the report, and the record that they are there."""
    first = trainer.world.first
    for name in [*trainer.averages.copies][1:]:
        model = _model(run, trainer, name)
        if first:
            model.save(folder.averages / name)
    model = _model(run, trainer, _main(trainer))
    if first:
        model.save(folder.model, card=card(run, trainer, folder, contract(run)))
        if run.finish is not None:
            run.finish(folder.path, model)
        folder.deliver(trainer.step)
        _say(f"model: {folder.model}")
    return model


def _pictures(run: Run, trainer: Trainer, folder: RunFolder, caught: Sequence[int]) -> None:
    """Samples of the main average and of the student itself, from the same seed each time.

    They are left out when a signal has come, which the loop answers.
    """
    main = _main(trainer)
    n = PICTURED if trainer.step else FIRST
    cond = picture_conditions(run.data, n) if trainer.world.first else {}
    for average, suffix in ((main, ""), *(((None, "-online"),) if main else ())):
        training = trainer.objective.student.training
        model = _model(run, trainer, average)
        if trainer.world.first:
            x = _samples(model, n, cond, caught)
            if x is not None:
                picture(x, folder.samples / f"{trainer.step:09d}{suffix}.png")
        trainer.objective.student.train(training)


def _samples(model: Model, n: int, cond: dict[str, Tensor], caught: Sequence[int]) -> Tensor | None:
    """Samples, or None where a signal came before they were complete."""
    parts = []
    for first in range(0, n, FIRST):
        if caught:
            return None
        own = {key: value[first : first + FIRST] for key, value in cond.items()}
        parts.append(model.sample(min(FIRST, n - first), seed=0, first=first, cond=own))
    return torch.cat(parts)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect signals that ask to stop instead of dying of them; a second one kills as usual.

    SIGUSR1 is what a cluster sends before a job's time is up.
    """
    caught: list[int] = []
    before: dict[int, Any] = {}

    def note(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)
        signal.signal(signum, before[signum])

    def each(do: Callable[[int], Any]) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            do(signum)

    try:
        each(lambda s: before.__setitem__(s, signal.signal(s, note)))
    except ValueError:  # not in the main thread, where nobody can send us signals
        yield caught
        return
    try:
        yield caught
    finally:
        each(lambda s: signal.signal(s, before[s]))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
