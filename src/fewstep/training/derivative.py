"""How a run takes the directional derivatives of its student, and whether they are right.

Forward mode meets operations without a rule (fused attention of a user's own network), with a rule
that fails under autocast or compilation, or with a wrong one, and the loss does not show it.
"""

from __future__ import annotations

import copy

import torch

from fewstep.core import UsageError
from fewstep.data import Dataset
from fewstep.derivatives import Derivative, finite_difference, jvp, jvp_apart
from fewstep.objectives.base import Objective
from fewstep.training.config import TrainConfig

TOLERANCE = 1e-3
"""Of the derivative, relative to its norm; in float64 a right one is within 1e-6."""

_HELP = "take --train.derivative difference, or a network without that operation"


def chosen_derivative(objective: Objective, config: TrainConfig) -> Derivative:
    """What the settings ask for.

    Raises:
        UsageError: the loss differentiates the derivative again, and the settings do not allow it.
    """
    if objective.second_order and (config.checkpointing or config.derivative != "forward"):
        raise UsageError(
            f"{type(objective).__name__} with a penalty needs the gradient of a derivative, which "
            "only forward mode without --train.checkpointing gives; stop the gradient instead"
        )
    if config.derivative == "difference":
        return finite_difference()
    if objective.derivative is jvp and config.checkpointing:
        return jvp_apart
    return objective.derivative


@torch.no_grad()
def check_derivative(objective: Objective, data: Dataset) -> None:
    """Compare forward mode with a central difference, on a copy of the student in float64.

    Raises:
        UsageError: they differ, or there is no forward mode; the message says what helps.
    """
    student = copy.deepcopy(objective.student).cpu().double()
    rng = torch.Generator().manual_seed(0)
    for parameter in student.parameters():
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
            _, found = jvp(answer, primals, tangents)
        except (NotImplementedError, RuntimeError) as error:
            raise UsageError(
                f"the student has no forward-mode derivative: {str(error).splitlines()[0]}; {_HELP}"
            ) from error
        _, expected = finite_difference(1e-5)(answer, primals, tangents)
    wrong = float((found - expected).norm() / expected.norm())
    if not wrong < TOLERANCE:
        raise UsageError(
            f"the student's forward-mode derivative differs from its finite difference by "
            f"{wrong:.2g} of its norm: an operation in it has a wrong rule; {_HELP}"
        )
