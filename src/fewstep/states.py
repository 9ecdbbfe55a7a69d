"""The states on the way from noise to a sample, for those who want to see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.core import Cond
from fewstep.models import AbstractDenoiser
from fewstep.paths import Event, Time


@dataclass(frozen=True)
class State:
    """The samples of one batch after a step.

    Args:
        step: number of steps done, from 1 to ``steps``.
        steps: number of steps in all.
        t: the time that the step went to, in the unit of the model's path; after the last step 0
            for a diffusion model, and the path's ``t_min`` for others.
        x: the samples at ``t``, ``(b, *shape)`` float32; after the last step what ``sample``
            returns.
        x0: the model's estimate of the clean data from which the step was made, of the same shape
            and not limited to the data's range; None where a flow map jumps to a time between
            noise and data, which takes no such estimate.
        first: the place of the batch's first sample among all of the call.
    """

    step: int
    steps: int
    t: float
    x: Tensor
    x0: Tensor | None
    first: int = 0


Callback = Callable[[State], Any]
"""What is called after each step; whatever it returns is ignored."""


class Answers(AbstractDenoiser):
    """Keeps a denoiser's first answer of each step, which is at the state where the step began."""

    def __init__(self, denoiser: AbstractDenoiser) -> None:
        super().__init__()
        self.denoiser, self.path = denoiser, denoiser.path
        self.cond_keys, self.two_time = denoiser.cond_keys, denoiser.two_time
        self.calls = denoiser.calls
        self.first: Tensor | None = None

    def forward(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        """The denoiser's answer."""
        answer = self.denoiser(x, t, s, cond)
        self.first = answer if self.first is None else self.first
        return answer


class Watcher:
    """Calls back with the state after each step of a batch.

    What it gives away are copies, so that nobody can change the samples with them.

    Args:
        callback: what is called.
        steps: number of steps of the whole sampling.
        first: the place of the batch's first sample among all of the call.
        answers: the denoiser that is sampled.
        estimates: whether all of its answers are estimates of clean data; otherwise the last is.
        finish: makes the samples of the last state.
        mask: which positions of the samples are real, where samples differ in length.
    """

    def __init__(
        self,
        callback: Callback,
        steps: int,
        first: int,
        *,
        answers: Answers,
        estimates: bool,
        finish: Callable[[Tensor], Tensor],
        mask: Tensor | None = None,
    ) -> None:
        self.callback, self.steps, self.first = callback, steps, first
        self.answers, self.estimates, self.finish, self.mask = answers, estimates, finish, mask
        self.step = 0

    def __call__(self, t: Time, x: Event) -> None:
        """One more step is done, which went to ``t``."""
        self.step += 1
        answer, self.answers.first = self.answers.first, None
        last = self.step == self.steps
        state, x0 = self._copied(x), None
        if answer is not None and (last or self.estimates):
            x0 = self._copied(answer)
        if last:
            state = self.finish(state)
        self.callback(State(self.step, self.steps, float(t[0]), state, x0, self.first))

    def _copied(self, x: Tensor) -> Tensor:
        x = x.to(torch.float32, copy=True)
        return x if self.mask is None else x.masked_fill(self.mask == 0, 0.0)
