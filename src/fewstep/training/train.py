"""``fewstep.train``: a run from its folder's first line to its finished model."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from fewstep.contract import Contract, data_spec
from fewstep.devices import usable_device
from fewstep.model import Model
from fewstep.pictures import picture
from fewstep.training import checkpoints
from fewstep.training.config import Run
from fewstep.training.folder import RunFolder, describe
from fewstep.training.logs import Logger, require_tensorboard
from fewstep.training.trainer import Trainer

PICTURED = 64
"""Samples in a picture of a run."""


class Interrupted(Exception):
    """A signal ended the run after it saved; the command exits with 128 + signal."""

    def __init__(self, signum: int, checkpoint: Path) -> None:
        super().__init__(f"interrupted; saved {checkpoint}; the same command resumes")
        self.signum = signum


def train(run: Run, out: str | Path, *, fresh: bool = False) -> Model:
    """Train in ``out``, going on from its newest checkpoint if there is one.

    Args:
        run: from a recipe.
        out: the run folder.
        fresh: move an old run aside first.

    Returns:
        The finished model, which is also in ``out/model``.

    Raises:
        UsageError: the settings or the folder cannot be used.
        Interrupted: SIGINT or SIGTERM came; the run was saved.
        Diverged: gradients stayed non-finite.
    """
    device = usable_device(run.config.device)
    if run.config.threads:
        torch.set_num_threads(run.config.threads)
    if run.config.tensorboard:
        require_tensorboard()
    folder = RunFolder(Path(out))
    if fresh and (aside := folder.move_aside()):
        _say(f"moved the old run to {aside}")
    trainer = Trainer(run.objective, run.data, run.config, run.averages, device)
    record = describe(run, device, trainer.frozen_fingerprints())
    with folder.opened(record):
        resumed = checkpoints.newest(folder.checkpoints)
        if resumed is not None:
            trainer.load(checkpoints.read(resumed), resumed)
        if trainer.step >= run.config.steps and folder.delivered() == trainer.step:
            _say(f"{folder.path} is finished at step {trainer.step}; --fresh starts anew")
            return _model(run, trainer)
        folder.write(record)
        _header(run, trainer, folder, resumed)
        _loop(run, trainer, folder)
        model = _deliver(run, trainer, folder)
        if run.finish is not None:
            run.finish(folder.path, model)
        folder.deliver(trainer.step)
        _say(f"model: {folder.model}")
    return model


def _loop(run: Run, trainer: Trainer, folder: RunFolder) -> None:
    config = run.config
    board = folder.path / "tensorboard" if config.tensorboard else None
    with Logger(folder.log, trainer.step, config.steps, board) as logger, _signals() as caught:
        if trainer.step == 0 and config.sample_every:
            _picture(run, trainer, folder)
        while trainer.step < config.steps:
            values = trainer.advance()
            step = trainer.step
            last = step == config.steps
            logger.advance(step)
            if last or step % config.log_every == 0:
                row = {name: float(value) for name, value in values.items()}
                row["skipped"] = float(trainer.skipped)
                logger.row(step, row)
            if config.sample_every and (last or step % config.sample_every == 0):
                _picture(run, trainer, folder)
            if last or caught or step % config.save_every == 0:
                saved = checkpoints.save(folder.checkpoints, step, trainer.state(), config.keep)
                if caught:
                    raise Interrupted(caught[0], saved)


def _model(run: Run, trainer: Trainer, average: str | None = None) -> Model:
    """The delivered model of an average (the first by default), or of the student itself."""
    names = [*trainer.averages.copies]
    name = average or (names[0] if names else None)
    student = trainer.objective.student if name is None else trainer.averages.copies[name]
    return Model(trainer.objective.deliver(student), contract(run))


def contract(run: Run) -> Contract:
    """The contract of what a run delivers."""
    data = run.data
    return run.objective.contract(data_spec(data.shape, data.labels, data.image))


def _deliver(run: Run, trainer: Trainer, folder: RunFolder) -> Model:
    for name in [*trainer.averages.copies][1:]:
        _model(run, trainer, name).save(folder.averages / name)
    model = _model(run, trainer)
    model.save(folder.model, card=_card(run, trainer, folder))
    return model


def _picture(run: Run, trainer: Trainer, folder: RunFolder) -> None:
    """Samples of the averaged student, from the same seed each time."""
    names = [*trainer.averages.copies]
    if not names:
        return
    model = _model(run, trainer)
    x = model.sample(PICTURED, seed=0)
    picture(x, folder.samples / f"{trainer.step:09d}.png")


def _header(run: Run, trainer: Trainer, folder: RunFolder, resumed: Path | None) -> None:
    config = run.config
    count = sum(p.numel() for p in trainer.objective.student.parameters())
    seen = config.steps * config.batch * config.accumulation
    _say(
        f"{run.recipe}: {len(run.data):,} samples of {tuple(run.data.shape)}, "
        f"{run.data.labels or 'no'} labels; {count:,} parameters on {trainer.device}\n"
        f"{config.steps:,} steps x {config.batch} x {config.accumulation} = {seen:,} samples, "
        f"{seen / len(run.data):.1f} times each; {config.optimizer} at {config.lr:g}, "
        f"{config.schedule}"
    )
    if run.note:
        _say(run.note)
    where = f"resuming from {resumed}" if resumed else "starting"
    _say(f"{where} in {folder.path}")


def _card(run: Run, trainer: Trainer, folder: RunFolder) -> str:
    made = contract(run)
    name = f"samples/{trainer.step:09d}.png"
    samples = f"![samples](../{name})\n\n" if (folder.path / name).exists() else ""
    arguments = "\n".join(f"| {k} | `{v}` |" for k, v in run.arguments.items())
    return (
        f"# {run.recipe}\n\n"
        f"A {made.method} model trained with fewstep for {trainer.step:,} steps.\n\n"
        f"{samples}```python\nimport fewstep\n\nx = fewstep.load('PATH').sample(16)\n```\n\n"
        f"| argument | value |\n| --- | --- |\n{arguments}\n\n"
        "Limits: it can only draw what its data showed it; the data's licence applies to it.\n"
    )


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one kills as usual."""
    caught: list[int] = []
    before: dict[int, Any] = {}

    def note(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)
        signal.signal(signum, before[signum])

    def each(do: Callable[[int], Any]) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM):
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
