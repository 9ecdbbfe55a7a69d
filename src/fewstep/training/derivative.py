"""How a run takes the directional derivatives of its student."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fewstep.derivatives import Derivative, finite_difference, jvp, jvp_apart
from fewstep.objectives.base import Objective
from fewstep.training.config import TrainConfig

SMALL = 256
"""Numbers of a sample up to which the memory of activations is not worth a pass."""


def derivative_for(
    objective: Objective, config: TrainConfig, shape: Sequence[int | None]
) -> Derivative:
    """The derivative that the settings ask for, or the objective's own.

    A value and its derivative in one pass keep the activations of both until the backward pass. So
    the value has a pass of its own, except for samples as small as points and digits.

    Args:
        objective: whose derivative is replaced where it is :func:`fewstep.derivatives.jvp`.
        config: says ``forward``, ``joint`` or ``difference``.
        shape: of a sample; a side that differs between samples is None.
    """
    if config.derivative == "difference":
        return finite_difference()
    small = None not in shape and math.prod(side or 1 for side in shape) <= SMALL
    joint = config.derivative == "joint" or small
    if objective.derivative is jvp and (config.checkpointing or not joint):
        return jvp_apart
    return objective.derivative
