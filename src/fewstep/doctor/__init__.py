"""Whether a model may be distilled: what its weights, its path, its data and its network say.

:func:`examine` looks at everything; :func:`quick` takes less than a second on a small model and
leaves out derivatives, cost and a part of the noise levels. Neither changes the model or any
generator of random numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from fewstep.data import Dataset
from fewstep.doctor import calls, scales
from fewstep.doctor.conditions import guidance
from fewstep.doctor.findings import Examination, Finding
from fewstep.doctor.forward import derivatives
from fewstep.doctor.probe import Probe, prepare, with_answers
from fewstep.doctor.readings import parametrisation
from fewstep.errors import UsageError
from fewstep.model import Model

__all__ = ["Examination", "Finding", "Probe", "examine", "quick"]

QUICK_SAMPLES, QUICK_LEVELS = 64, 4


def examine(
    model: Model, data: Dataset | None = None, *, n: int = 256, time_limit: float = 20.0
) -> Examination:
    """Everything that can be said of a teacher.

    Args:
        model: the teacher.
        data: its training data; without them the readings of its output cannot be compared.
        n: number of samples, at most as many as there are data.
        time_limit: seconds for timing calls.

    Raises:
        UsageError: the data is not what the model generates, or lacks a condition.
    """
    checks = (
        parametrisation,
        scales.terminal,
        scales.scale,
        scales.values,
        guidance,
        derivatives,
        partial(calls.cost, limit=time_limit),
        calls.answers,
        calls.weights,
    )
    return _examined(model, data, n, checks)


def quick(model: Model, data: Dataset | None = None) -> Examination:
    """What can be said in less than a second on a small model.

    Args:
        model: the teacher.
        data: as in :func:`examine`.

    Raises:
        UsageError: as in :func:`examine`.
    """
    checks = (
        partial(parametrisation, levels=QUICK_LEVELS, deep=False),
        scales.terminal,
        scales.scale,
        scales.values,
        guidance,
        calls.answers,
        calls.weights,
    )
    return _examined(model, data, QUICK_SAMPLES, checks)


@torch.no_grad()
def _examined(
    model: Model,
    data: Dataset | None,
    n: int,
    checks: Sequence[Callable[[Probe], Finding]],
) -> Examination:
    if n < 2:
        raise UsageError(f"n must be at least 2, got {n}")
    probe = prepare(model, data, n)
    cuda = [probe.x0.device] if probe.x0.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        try:
            probe = with_answers(probe)
            _check_shape(probe.first(2))
        except (*_OF_A_CALL, UsageError) as error:
            return Examination((kind(probe), _no_call(error)))
        return Examination((kind(probe), *(check(probe) for check in checks)))


_OF_A_CALL = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""What a network raises that does not fit what it is given."""


def kind(probe: Probe) -> Finding:
    """What the model is, and whether it is one to distil."""
    contract = probe.model.contract
    data, sampling = contract.data, contract.sampling.kind
    value = (
        f"{contract.method} model, sampling {sampling}, samples of shape {data.shape}, "
        f"{data.labels} labels"
    )
    if sampling == "ode":
        return Finding(name="model", value=value)
    advice = "this is a few-step model already: distil the diffusion model it came from"
    return Finding(name="model", value=value, advice=advice, severity="stop")


def _check_shape(probe: Probe) -> None:
    t = probe.model.contract.sampling.start.t
    out = probe.model.denoiser(probe.start(), probe.at(t), None, probe.cond)
    if out.shape != probe.x0.shape:
        raise ValueError(f"it answers {tuple(out.shape)} to samples of {tuple(probe.x0.shape)}")


def _no_call(error: Exception) -> Finding:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return Finding(
        name="network",
        value=f"a call fails ({type(error).__name__}: {first})",
        advice="check its forward(x, c_noise, s_noise, cond), and data.shape in config.json",
        severity="stop",
    )
