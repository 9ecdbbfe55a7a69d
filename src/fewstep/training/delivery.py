"""What a run delivers: its models, their contract, and which of them is kept as the best."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path

from fewstep import cards
from fewstep.adapters import adapter_of
from fewstep.card_text import SHOWN
from fewstep.contract import Contract
from fewstep.data import spec_of
from fewstep.errors import UsageError, nearest
from fewstep.model import Model
from fewstep.models import Denoiser, adapted_layers, merged
from fewstep.system.status import log_rows
from fewstep.training.config import Run
from fewstep.training.described import card, evaluation, note
from fewstep.training.folder import RunFolder
from fewstep.training.pictured import affordable
from fewstep.training.trainer import Trainer

HIGHER = ("precision", "recall", "density", "coverage")
"""Metrics of which more is better; of all others less is."""

FEW = 4
"""Samples on the card of a run that was much shorter than drawing more of them would be."""


def main_average(trainer: Trainer) -> str | None:
    """The average that is delivered as the run's model; None is the student itself."""
    return next(iter(trainer.averages.copies), None)


def model_of(run: Run, trainer: Trainer, average: str | None) -> Model:
    """What an average, or the student itself, delivers; all processes call this.

    It shares the trainer's weights, and the student is in evaluation mode afterwards. A student
    with adapters is delivered as a copy that contains them, and they are stored beside it.
    """
    made = contract(run)
    denoiser = run.objective.deliver(trainer.student(average))
    facts = card(run, trainer, made.method, denoiser)
    if not adapted_layers(denoiser):
        return Model(denoiser, made, facts, run.frontend)
    adapter = adapter_of(denoiser.net) if isinstance(denoiser, Denoiser) else None
    return Model(merged(denoiser), made, facts, run.frontend, adapter)


def own_model(run: Run, trainer: Trainer) -> Model:
    """The run's model with weights of its own, which no later training of the run changes."""
    main = main_average(trainer)
    model = model_of(run, trainer, main)
    if main:
        return model
    every = trainer.objective.named_parameters()
    flags = {id(p): trainer.before[name] for name, p in every if name in trainer.before}
    own = copy.deepcopy(model.denoiser)
    for parameter, mine in zip(model.denoiser.parameters(), own.parameters(), strict=True):
        mine.requires_grad_(flags.get(id(parameter), parameter.requires_grad))
    return Model(own, model.contract, model.card, model.frontend, model.adapter)


def contract(run: Run) -> Contract:
    """The contract of the model that a run delivers.

    Raises:
        UsageError: the method does not allow the run's sampling times.
    """
    return run.objective.contract(spec_of(run.data)).with_times(run.sampling_times)


def save_model(folder: RunFolder, model: Model, like: Path | None = None) -> None:
    """Write the run's model as it is at this step; the card of a run on its way has no picture.

    Args:
        folder: of the run.
        model: to write.
        like: shares its codec and texts where the run has no model yet.
    """
    model.save(folder.model, samples=0, like=folder.model if folder.model.exists() else like)


def complete_card(run: Run, folder: RunFolder, model: Model) -> None:
    """Give the delivered model a card with its evaluation and, where the run draws, a picture."""
    samples = SHOWN if run.config.sample_every else 0
    if samples and not affordable(run, run.config.steps, model, SHOWN):
        samples = FEW
    numbers = evaluation(folder.metrics) if run.finish is not None else None
    cards.write(model, folder.model, samples=samples, numbers=numbers, note=note())


def check_evaluations(run: Run) -> None:
    """Refuse settings of evaluations that the run cannot make, before anything is written.

    Raises:
        UsageError: the run is to be evaluated while it trains and has no held-out data, or its
            best model is to be kept without evaluations, or by a number that they do not have.
    """
    metric, every = run.config.keep_best, run.config.evaluate_every
    advice = "--held-out 0.1 (a share of the data) or --held-out PATH (other such data)"
    if metric and not (every and run.watch is not None):
        options = [] if every else ["--train.evaluate-every N"]
        options += [] if run.watch is not None else [advice]
        raise UsageError(
            f"--train.keep-best {metric} needs evaluations while the run trains; give "
            + ", and ".join(options)
        )
    known = getattr(run.watch, "metrics", None)
    if metric and known and metric.split("/")[0] not in known:
        raise UsageError(
            f"--train.keep-best {metric} is no number of evaluations while a run trains; "
            f"{nearest(metric, known)}"
        )
    if every and run.watch is None:
        raise UsageError(
            f"--train.evaluate-every {every} evaluates on data that training does not see, and "
            f"this run has none, so that nothing would be evaluated; give {advice}"
        )


class Best:
    """Keeps the model of the best evaluation so far in ``best/``.

    Args:
        run: with ``keep_best`` in its settings; without it nothing is kept.
        folder: whose log holds the evaluations before this start.
        start: the step that training goes on from.
    """

    def __init__(self, run: Run, folder: RunFolder, start: int) -> None:
        self.metric, self.folder = run.config.keep_best, folder
        self.value: float | None = None
        self.warned = False
        for row in log_rows(folder.log) if self.metric else []:
            if row["step"] <= start:
                given = {k.removeprefix("eval/"): v for k, v in row.items() if "eval/" in k}
                self.improved(given)

    def improved(self, numbers: Mapping[str, float]) -> bool:
        """Whether an evaluation is the best so far, which it then is."""
        name = self._name(numbers)
        if name is None or not math.isfinite(numbers[name]):
            return False
        sign = -1 if name.split("/")[0] in HIGHER else 1
        better = self.value is None or sign * numbers[name] < sign * self.value
        if better:
            self.value = numbers[name]
        return better

    def unknown(self, numbers: Mapping[str, float]) -> str | None:
        """What to say, once, where no evaluation has the metric."""
        if self.warned or not self.metric or self._name(numbers) is not None:
            return None
        self.warned = True
        return (
            f"--train.keep-best {self.metric}: no such number among {', '.join(numbers)}; no best "
            "model is kept"
        )

    def _name(self, numbers: Mapping[str, float]) -> str | None:
        """The number that is meant: fd/2 for two calls, fd for the first number of calls."""
        if not self.metric or self.metric in numbers:
            return self.metric or None
        return next((name for name in numbers if name.split("/")[0] == self.metric), None)
