"""``fewstep.train``: a run from its folder's first line to its finished model."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from fewstep.core import UsageError
from fewstep.errors import Interrupted, in_words
from fewstep.model import Model
from fewstep.models.spec import denoiser_spec
from fewstep.system.devices import usable_device
from fewstep.system.processes import World, joined
from fewstep.system.status import log_rows
from fewstep.training import checkpoints, first
from fewstep.training.announce import cautions, header, plan, teachers_faults
from fewstep.training.check import check, check_derivative
from fewstep.training.conditions import check_conditions
from fewstep.training.config import FRESH, Buildable, Run, TrainConfig
from fewstep.training.delivery import (
    Best,
    check_evaluations,
    complete_card,
    contract,
    main_average,
    model_of,
    own_model,
    save_model,
)
from fewstep.training.drawing import Pictures, stopping
from fewstep.training.folder import RunFolder, describe
from fewstep.training.health import Health
from fewstep.training.kept import Kept
from fewstep.training.logs import Logger, require_tensorboard, require_wandb
from fewstep.training.needs import is_large, needs, on_the_cpu
from fewstep.training.precision import decided
from fewstep.training.snapshots import snapshot
from fewstep.training.space import shortage
from fewstep.training.trainer import Trainer


def train(run: Run | Buildable, out: str | Path, *, fresh: bool = False) -> Model:
    """Train a run in a folder: see :func:`fewstep.train`, which also takes a recipe's name."""
    with _as_it_was(), joined() as world, ExitStack() as stack:
        given = isinstance(run, Run)
        run = run if isinstance(run, Run) else run.build()
        config = run.config
        contract(run)  # or refuse its sampling times, before anything is trained
        check_evaluations(run)
        if config.threads:
            torch.set_num_threads(config.threads)
        if config.tensorboard:
            require_tensorboard()
        if config.wandb:
            require_wandb()
        folder = RunFolder(Path(out))
        device = _device(config)
        check_conditions(run.objective, run.data)
        if device.type == "cuda" and world.size > 1:
            device = torch.device("cuda", world.local)
        if device.type != "cpu":
            stack.enter_context(_generator_as_it_was(device))
        if run.objective.capabilities.forward_mode and config.derivative != "difference":
            check_derivative(run.objective, run.data)
        if fresh and world.first and (aside := folder.move_aside()):
            _say(f"moved the old run to {aside}")
        begun = world.agreed(checkpoints.newest(folder.checkpoints)) is not None and not fresh
        # What a recipe builds here nobody can train again.
        again = first.begin(run.objective) if given else False
        check(run.objective, run.data, config, world)
        run, decision = decided(run, device, world, folder.started() if world.first else None)
        config = run.config
        if world.first and not begun and is_large(run, device):
            _say(_planned(run, device, world.size))
        trainer = Trainer(run.objective, run.data, config, run.averages, device, world, run.augment)
        if given:
            stack.callback(first.end, run.objective)
        stack.callback(trainer.close)
        denoiser_spec(run.objective.deliver(run.objective.student))  # or refuse what has no file
        record = describe(run, device, trainer.fingerprints) if world.first else {}
        record |= decision.record()
        _open(folder, record, run, world, stack)
        resumed = world.agreed(checkpoints.newest(folder.checkpoints))
        if resumed is not None:
            trainer.load(checkpoints.read(resumed), resumed)
        if trainer.step >= config.steps and world.agreed(folder.delivered()) == trainer.step:
            if world.first:
                _say(f"{folder.path} is finished at step {trainer.step}; {FRESH} starts anew")
            return own_model(run, trainer)
        if world.first:
            before = folder.before()
            folder.write(record)
            where = f"resuming from {resumed}" if resumed else "starting"
            if again:
                where = f"its networks were trained before, here they begin anew; {where}"
            short = shortage(run, trainer, folder.path)
            lines = [decision.reason, *cautions(run, trainer, before), short or ""]
            if not given and trainer.step == 0:
                lines += teachers_faults(run)
            lines = [header(run, trainer), *filter(None, lines), f"{where} in {folder.path}"]
            _say("\n".join(lines))
        _loop(run, trainer, folder)
        return _deliver(run, trainer, folder)


def _planned(run: Run, device: torch.device, size: int) -> str:
    """The plan of memory, or why there is none: some networks cannot compute on a CPU."""
    try:
        with on_the_cpu(run) as planned:
            return needs(run, planned, device, size)
    except RuntimeError as error:
        return f"no plan of the memory, because the CPU cannot compute a step: {in_words(error)}"


def dry(run: Run, out: str | Path = "runs", *, as_json: bool = False) -> str:
    """What :func:`train` would do: the header, an estimate of memory and of disk.

    Args:
        run: what would be trained.
        out: the run folder.
        as_json: the recipe with all of its settings as JSON instead, as run.json records it.
    """
    device = _device(run.config)
    contract(run)
    check_evaluations(run)
    check_conditions(run.objective, run.data)
    world = World(size=int(os.environ.get("WORLD_SIZE") or 1))
    check(run.objective, run.data, run.config, world)
    asked = run
    run, decision = decided(run, device, before=RunFolder(Path(out)).started())
    with on_the_cpu(run) as trainer:
        if as_json:
            return json.dumps(describe(asked, device, trainer.fingerprints)["run"], indent=2)
        return plan(run, trainer, Path(out), device, decision.reason)


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Leave torch's number of threads and its default generator as they are."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _generator_as_it_was(device: torch.device) -> Any:
    """A context that leaves the default generator of an accelerator as it is."""
    index = torch.accelerator.current_device_index() if device.index is None else device.index
    return torch.random.fork_rng([index], device_type=device.type)


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
    fault = world.agreed(None if problem is None else str(problem))
    if fault is not None:
        raise problem or UsageError(fault)


def _loop(run: Run, trainer: Trainer, folder: RunFolder) -> None:
    config, world, health = run.config, trainer.world, Health()
    best, kept = Best(run, folder, trainer.step), Kept(run, folder)
    with ExitStack() as stack:
        logger = stack.enter_context(Logger(folder, trainer.step, run)) if world.first else None
        caught = stack.enter_context(_signals())
        pictures = Pictures(run, trainer, folder, caught)
        if trainer.step == 0 and config.sample_every:
            pictures.draw()
        elif trainer.step:
            _left_out(run, trainer, folder, logger, best, pictures, caught)
        while trainer.step < config.steps:
            trainer.advance()
            step = trainer.step
            if (news := trainer.unsound.news()) is not None and world.first:
                _say(f"step {step}: {news}; this update was skipped, remove them from the data")
            last = step == config.steps

            def due(every: int, step: int = step, last: bool = last) -> bool:
                return every > 0 and (last or step % every == 0)

            row = world.mean(trainer.latest) if due(config.log_every) else None
            if logger is not None:
                logger.advance(step)
                if row is not None:
                    logger.row(step, {**row, "skipped": float(trainer.skipped)})
                    for word in health.warnings(row):
                        _say(f"step {step}: {word}")
            if due(config.sample_every):
                pictures.draw()
            if config.evaluate_every and step % config.evaluate_every == 0:
                _evaluate(run, trainer, folder, logger, best, caught)
            if config.snapshot_every and due(config.snapshot_every):
                snapshot(trainer, folder)
            # A signal during the pictures or the evaluation leaves them out; resuming makes them.
            signum = world.largest(caught[0] if caught else 0)
            if signum or due(config.save_every):
                saved = _save(run, trainer, folder, kept)
                # A signal may have come since, and after the last step nobody would ask again.
                signum = world.largest(caught[0] if caught else 0) if last else signum
                if signum:
                    raise Interrupted(signum, saved)


def _left_out(
    run: Run,
    trainer: Trainer,
    folder: RunFolder,
    logger: Logger | None,
    best: Best,
    pictures: Pictures,
    caught: list[int],
) -> None:
    """Draw and evaluate at the step of the checkpoint, where a signal prevented it."""
    config, step, world = run.config, trainer.step, trainer.world
    last = step == config.steps
    picture = folder.samples / f"{step:09d}.png"
    draw = config.sample_every > 0 and (last or step % config.sample_every == 0)
    evaluate = config.evaluate_every > 0 and step % config.evaluate_every == 0
    there = {name for row in log_rows(folder.log) if row["step"] == step for name in row}
    if world.agreed(draw and not picture.exists()):
        pictures.draw()
    if world.agreed(evaluate and not any(name.startswith("eval/") for name in there)):
        _evaluate(run, trainer, folder, logger, best, caught)
    if signum := world.largest(caught[0] if caught else 0):
        raise Interrupted(signum, checkpoints.newest(folder.checkpoints))


def _evaluate(
    run: Run,
    trainer: Trainer,
    folder: RunFolder,
    logger: Logger | None,
    best: Best,
    caught: list[int],
) -> None:
    """Numbers of the run's model for the log; they are left out when a signal has come."""
    if run.watch is None:
        return
    training = trainer.objective.student.training
    model = model_of(run, trainer, main_average(trainer))
    if logger is not None:
        with stopping(model.denoiser, caught):
            numbers = run.watch(model)
            logger.note(trainer.step, numbers)
            if (problem := best.unknown(numbers)) is not None:
                _say(problem)
            if best.improved(numbers):
                model.save(folder.best, samples=0, like=folder.model)
                _say(
                    f"step {trainer.step}: the best {best.metric} so far; its model: {folder.best}"
                )
    trainer.objective.student.train(training)


def _save(run: Run, trainer: Trainer, folder: RunFolder, kept: Kept) -> Path:
    """Write a checkpoint with its model, and the same model as the run's."""
    config, training = run.config, trainer.objective.student.training
    model = model_of(run, trainer, main_average(trainer))
    saved = checkpoints.save(
        folder.checkpoints,
        trainer.step,
        trainer.state(),
        config.keep,
        trainer.world,
        config.keep_every,
        lambda place: kept.save(model, place / "model"),
    )
    if trainer.world.first:
        save_model(folder, model, saved / "model")
    trainer.objective.student.train(training)
    return saved


def _deliver(run: Run, trainer: Trainer, folder: RunFolder) -> Model:
    """Models of all averages, the report, and the record that they are there."""
    first_process = trainer.world.first
    for name in [*trainer.averages.copies][1:]:
        model = model_of(run, trainer, name)
        if first_process:
            model.save(folder.averages / name, samples=0, like=folder.model)
    model = own_model(run, trainer)
    if first_process:
        save_model(folder, model)
        if run.finish is not None:
            run.finish(folder.path, model)
        complete_card(run, folder, model)
        folder.deliver(trainer.step)
        _say(f"model: {folder.model}")
    return model


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
        for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
            if hasattr(signal, name):  # Windows has no SIGUSR1
                do(getattr(signal, name))

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
