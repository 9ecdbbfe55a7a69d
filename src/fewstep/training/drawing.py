"""Pictures of a run while it trains; a signal to stop is seen between two network calls."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fewstep.core import Cond
from fewstep.data import spec_of
from fewstep.evaluation.pictures import drawable, picture
from fewstep.frontends import Frontend
from fewstep.model import Model
from fewstep.models import AbstractDenoiser, Network
from fewstep.training.conditions import picture_conditions
from fewstep.training.config import Run
from fewstep.training.delivery import main_average, model_of
from fewstep.training.folder import RunFolder
from fewstep.training.pictured import affordable
from fewstep.training.trainer import Trainer

PICTURED = 64
"""Samples in a picture of a run."""

FIRST = 16
"""Samples in its first picture, of networks that have not learned anything."""

FIRST_CALLS = 8
"""Network calls of a sample in the first picture, at most."""

SLOW = 2.0
"""Seconds; where the last picture took longer, it is said before the next is drawn."""


class Pictures:
    """Draws the main average's samples and the student's own, from the same seed each time.

    Args:
        run: what is trained.
        trainer: all processes draw together, the first one writes.
        folder: of the run.
        caught: signals that have come; pictures are then left out, and the loop answers.
    """

    def __init__(
        self, run: Run, trainer: Trainer, folder: RunFolder, caught: Sequence[int]
    ) -> None:
        self.run, self.trainer, self.folder, self.caught = run, trainer, folder, caught
        self.seconds = float("inf")

    def draw(self) -> None:
        """Samples of now; of samples that have no picture nothing is computed."""
        run, trainer = self.run, self.trainer
        if not drawable((run.frontend or Frontend()).shape_of(spec_of(run.data).shape)):
            return
        began = time.monotonic()
        main = main_average(trainer)
        for average, suffix in ((main, ""), *(((None, "-online"),) if main else ())):
            training = trainer.objective.student.training
            model = model_of(run, trainer, average)
            many = (2 if main else 1) * PICTURED
            full = trainer.step > 0 and affordable(run, trainer.step, model, many)
            n = PICTURED if full else min(FIRST, PICTURED)
            steps = None if full else at_most(model, FIRST_CALLS)
            if not trainer.step and model.calls(steps) > FIRST_CALLS:
                trainer.objective.student.train(training)
                return
            if trainer.world.first:
                if not suffix and (not trainer.step or self.seconds > SLOW):
                    many, short = 2 * n if main else n, trainer.step > 0 and not full
                    _say(
                        f"step {trainer.step}: drawing {many} samples of {model.calls(steps)} "
                        f"network call(s) each{', few as the run is short' if short else ''}; "
                        "--train.sample-every sets how often"
                    )
                x = drawn(model, n, steps, picture_conditions(run.data, n), self.caught)
                if x is not None:
                    picture(x, self.folder.samples / f"{trainer.step:09d}{suffix}.png")
            trainer.objective.student.train(training)
        self.seconds = time.monotonic() - began


def at_most(model: Model, calls: int) -> int | None:
    """The steps of a model's usual samples, or fewer where these take more network calls."""
    if model.calls() <= calls or not model.contract.sampling.any_times:
        return None
    return (calls + 1) // 2 if model.contract.sampling.kind == "ode" else calls


def drawn(
    model: Model, n: int, steps: int | None, cond: Cond, caught: Sequence[int]
) -> Tensor | None:
    """Samples, or None where a signal came before they were complete."""
    parts = []
    with stopping(model.denoiser, caught) as stopped:
        for first in range(0, n, FIRST):
            own = {key: value[first : first + FIRST] for key, value in cond.items()}
            count = min(FIRST, n - first)
            parts.append(model.sample(count, steps=steps, seed=0, first=first, cond=own))
    return None if stopped or caught else torch.cat(parts)


class _Stop(Exception):
    """A signal came."""


@contextmanager
def stopping(denoiser: AbstractDenoiser, caught: Sequence[int]) -> Iterator[list[int]]:
    """Leave the block before the next call of a network once a signal has come.

    Gives a list that then holds the signal.
    """
    stopped: list[int] = []

    def look(*_: object) -> None:
        if caught:
            raise _Stop

    called = [m for m in denoiser.modules() if isinstance(m, AbstractDenoiser | Network)]
    hooks = [module.register_forward_pre_hook(look) for module in called]
    try:
        yield stopped
    except _Stop:
        stopped.extend(caught)
    finally:
        for hook in hooks:
            hook.remove()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
