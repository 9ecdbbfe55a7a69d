"""How a run takes the directional derivatives of its student."""

from __future__ import annotations

from fewstep.derivatives import Derivative, finite_difference, jvp, jvp_apart
from fewstep.objectives.base import Objective
from fewstep.training.config import TrainConfig


def derivative_for(objective: Objective, config: TrainConfig) -> Derivative:
    """The derivative that the settings ask for, or the objective's own."""
    if config.derivative == "difference":
        return finite_difference()
    if objective.derivative is jvp and config.checkpointing:
        return jvp_apart
    return objective.derivative
