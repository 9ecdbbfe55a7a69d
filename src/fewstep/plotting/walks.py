"""The states of samples between noise and data, at a scale at which all can be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.model import Model
from fewstep.states import State


@dataclass(frozen=True)
class Walk:
    """How samples come from noise.

    A state x_t = alpha x_0 + sigma noise is divided by sqrt(alpha^2 + sigma^2), so that noise and
    data have a similar spread and data stays what it is.

    Args:
        name: of the model, for a title.
        calls: network calls of a sample.
        levels: sigma / alpha of each state, descending, ``steps + 1`` numbers; the last is that of
            the samples.
        states: ``(steps + 1, n, *shape)`` float32, from the noise to the samples.
        answers: ``(steps, n, *shape)`` float32, the model's estimates of clean data from which the
            steps were made; None where a flow map makes none.
    """

    name: str
    calls: int
    levels: tuple[float, ...]
    states: Tensor
    answers: Tensor | None


def walk(
    model: Model,
    name: str,
    n: int = 8,
    *,
    steps: int | None = None,
    times: Sequence[float] | None = None,
    seed: int = 0,
    label: int | str | None = None,
    guidance: float | None = None,
) -> Walk:
    """Draw samples and keep every state on the way.

    Args:
        model: of any kind.
        name: for a title.
        n: number of samples; sample i is a function of (seed, i), so that the walks of several
            models begin at the same noise.
        steps: see :meth:`~fewstep.Model.times`.
        times: the times themselves.
        seed: of the noise.
        label: the class of all samples.
        guidance: scale of classifier-free guidance.

    Raises:
        UsageError: what is asked contradicts the model's contract.
    """
    if model.contract.data.masked:
        raise UsageError(f"{name} makes samples that differ in length, which are not drawn")
    seen: list[State] = []
    chosen = model.times(steps) if times is None else list(times)
    model.sample(
        n,
        steps=steps,
        times=times,
        seed=seed,
        label=label,
        guidance=guidance,
        batch=n,
        callback=seen.append,
        latents=True,
    )
    start = model.contract.sampling.start
    noise = model.noise([(seed, i) for i in range(n)])(0) * start.std
    at = torch.tensor([start.t, *(state.t for state in seen)], dtype=torch.float64)
    alpha, sigma = model.denoiser.path.coefficients(at)[:2]
    scale = (alpha**2 + sigma**2).rsqrt().float()
    scale[-1] = 1.0  # a sample is what the model gives
    states = torch.stack([noise.float(), *(state.x.cpu() for state in seen)])
    answers = [state.x0.cpu() for state in seen if state.x0 is not None]
    return Walk(
        name=name,
        calls=model.calls(len(chosen), guidance),
        levels=(*(sigma / alpha).tolist()[:-1], 0.0),
        states=states * scale.reshape(-1, *[1] * (states.ndim - 1)),
        answers=torch.stack(answers) if len(answers) == len(seen) else None,
    )
