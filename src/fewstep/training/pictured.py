"""Which pictures of a run are in proportion to its training."""

from __future__ import annotations

import math

from fewstep.data import spec_of
from fewstep.model import Model
from fewstep.training.config import Run

WORK = 1e12
"""Samples times calls times parameters times positions of a sample, of which a picture may always
take so many: some seconds of one core."""

PASSES = 3
"""A sample that trains costs as much as so many calls: one forward, and two backward."""


def affordable(run: Run, step: int, model: Model, samples: int) -> bool:
    """Whether so many samples are quick, or cost less than the training up to a step.

    This is a matter of counts alone, so that a run that is repeated has the same pictures.

    Args:
        run: that trains.
        step: up to which it has trained.
        model: to be sampled in its usual steps.
        samples: of the picture.
    """
    config, shape = run.config, spec_of(run.data).shape
    calls = samples * model.calls()
    parameters = sum(p.numel() for p in model.denoiser.parameters())
    positions = math.prod(size or 1 for size in shape[1:])
    trained = PASSES * step * config.batch * config.accumulation
    return calls * parameters * positions <= WORK or calls <= trained
