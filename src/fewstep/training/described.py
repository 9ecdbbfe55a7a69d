"""The card of the model that a run delivers: how it was trained, on what, and its evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fewstep.card_text import Card
from fewstep.data import spec_of
from fewstep.data.catalogue import entry
from fewstep.evaluation.tables import LEGEND
from fewstep.models import AbstractDenoiser, Denoiser, Switched
from fewstep.models.spec import network_spec
from fewstep.training.config import Run
from fewstep.training.folder import LICENCE
from fewstep.training.trainer import Trainer

SPEED = "images_per_second"
"""A measurement that says more of the machine than of the model."""


def card(run: Run, trainer: Trainer, method: str, denoiser: AbstractDenoiser) -> Card:
    """What the card of the run's model says at this step.

    Args:
        run: that is trained.
        trainer: of the run.
        method: of the model's contract.
        denoiser: of the model.
    """
    left = run.config.steps - trainer.step
    return Card(
        title=run.recipe,
        text=f"This {method} model was trained with fewstep for {trainer.step:,} steps"
        + (f"; {left:,} steps of its run are left." if left > 0 else "."),
        data=_data(run),
        licence=str(run.arguments.get(LICENCE, "")),
        options={name: _shown(value) for name, value in arguments(run, denoiser).items()},
    )


def arguments(run: Run, denoiser: AbstractDenoiser) -> dict[str, Any]:
    """The arguments of a run, with the network of its model as it is.

    A student that starts from a teacher has the teacher's network, of which the arguments for new
    weights say nothing. ``network`` is the kind of the network in ``config.json``, and
    ``network.NAME`` are its options.

    Args:
        run: that was trained.
        denoiser: of the model that it delivers.
    """
    hidden = {LICENCE, *run.network_arguments}
    own = {k: v for k, v in run.arguments.items() if k not in hidden}
    while isinstance(denoiser, Switched):
        denoiser = denoiser.high
    if not isinstance(denoiser, Denoiser):
        return own
    network = network_spec(denoiser.net)
    options = {f"network.{name}": value for name, value in network.items() if name != "kind"}
    return {"network": network["kind"], **options, **own}


def evaluation(metrics: Path) -> dict[str, dict[str, float]]:
    """The rows of a run's ``metrics.json`` by caption; none where the run has no report."""
    if not metrics.is_file():
        return {}
    rows: dict[str, dict[str, float]] = {}
    for who, of in json.loads(metrics.read_text(encoding="utf-8")).items():
        if not isinstance(of, dict):
            continue
        if all(isinstance(row, dict) for row in of.values()):
            rows |= {f"{who}, {n} call{'s' * (n != '1')}": row for n, row in of.items()}
        else:
            rows[who] = of
    return {k: {m: v for m, v in row.items() if m != SPEED} for k, row in rows.items()}


def note() -> str:
    """How the numbers were measured."""
    return f"{' '.join(LEGEND.split())}. `floor` compares training data with held-out data."


def _data(run: Run) -> str:
    """What the run learns from, in words."""
    name, spec = run.arguments.get("data"), spec_of(run.data)
    amount = f"{len(run.data):,} samples of {spec.summary()}"
    if not isinstance(name, str) or not name:
        return f"{amount}, given in Python as a {type(run.data).__name__}"
    known = entry(name)
    source = "the user's own files" if known is None else known.source
    return f"`{name}` ({source}): {amount}"


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
