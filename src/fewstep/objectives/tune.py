r"""Fine-tuning of a few-step model on new data (Luo et al. 2023, latent consistency fine-tuning).

A consistency model f learns new data, a style or a subject, and stays a consistency model: at two
adjacent times t > r of one grid it must answer the same for one sample and one noise,

$$L = E[ w(t, r)\ d( f_\theta(x_t, t),\ \mathrm{sg} f_{\theta^-}(x_r, r) ) ],\quad
x_t = \alpha_t x_0 + \sigma_t \epsilon,\quad x_r = \alpha_r x_0 + \sigma_r \epsilon,$$

with f the identity at the path's $t_{min}$ (Luo et al. 2023, algorithm 4, which is consistency
training in a latent space). No teacher is needed: $x_r$ is an Euler step with the clean sample in
the place of a denoiser's answer, and its mean is that of the exact denoiser of the *new* data. The
denoising loss on the same data would make f the mean of all samples that $x_t$ may come from, which
is a blur at high noise; so a plain diffusion fine-tuning loses what distillation gave.

The target is an average of the student. A student that reads a guidance scale keeps doing so: the
scales are drawn from its contract's range, and the data answers for all of them, as in algorithm 4.
The model that users get is sampled as before: at the same times, with the same guidance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.contract import Contract, DataSpec
from fewstep.core import Batch, Rng, UsageError, widest
from fewstep.models import AbstractDenoiser
from fewstep.objectives.base import Loss, Objective, Phase
from fewstep.objectives.shared.copies import follow, frozen_copy
from fewstep.objectives.shared.discrete import (
    PairWeight,
    SameNoise,
    check_pair,
    consistency_loss,
    frozen_parts,
)
from fewstep.objectives.shared.distances import Distance, l2
from fewstep.objectives.shared.drop import ConditionDrop, conditions, draw_noised
from fewstep.times import Uniform, UniformIndex

UNIFORM_INDEX = UniformIndex()


class Draws(NamedTuple):
    """``t`` > ``r``, ``dropped`` and ``guidance`` are ``(b,)``; ``noise`` has the data's shape."""

    t: Tensor
    r: Tensor
    noise: Tensor
    dropped: Tensor | None = None
    guidance: Tensor | None = None


class Tuning(Objective):
    """A consistency model learns new data and keeps the number of its steps.

    Args:
        student: a one-time denoiser that was trained as a consistency model.
        made: the contract of that model, whose way of sampling the result keeps.
        grid: N + 1 descending times from the path's ``t_max`` to its ``t_min``.
        index: the law of the interval of the grid.
        rate: averaging rate of the target in [0, 1); at 0 it is the student itself.
        weight: w(t, r); by default 1.
        distance: d.
        drop: condition dropping, without which a guided student forgets its null.

    Raises:
        UsageError: the model is no consistency model, or the grid is not one of its path.
    """

    def __init__(
        self,
        student: AbstractDenoiser,
        made: Contract,
        *,
        grid: Tensor,
        index: Callable[[int, Tensor, torch.Generator], Tensor] = UNIFORM_INDEX,
        rate: float = 0.95,
        weight: PairWeight = lambda t, r: torch.ones_like(t),
        distance: Distance = l2,
        drop: ConditionDrop | None = None,
    ) -> None:
        super().__init__()
        if made.sampling.kind != "renoise":
            raise UsageError(
                f"a {made.method} model is sampled as {made.sampling.kind}; only consistency "
                "models (lcm, cd, ct, pcm, ect, ...) can be tuned so"
            )
        step = SameNoise(student.path)
        check_pair(student, step)
        ends = (student.path.t_max, student.path.t_min)
        descends = grid.ndim == 1 and len(grid) > 1 and bool((grid.diff() < 0).all())
        if not descends or (float(grid[0]), float(grid[-1])) != ends:
            raise UsageError(f"the grid must descend from {ends[0]} to {ends[1]}, got {grid}")
        if not 0 <= rate < 1:
            raise UsageError(f"the target's rate must lie in [0, 1), got {rate}")
        allowed = made.sampling.guidance
        embedded = allowed is not None and allowed.embedded
        self.student = student
        self.made = made
        self.step = step
        self.frozen = frozen_parts(step, distance)
        self.target = frozen_copy(student) if rate > 0 else None
        self.grid = grid
        self.index = index
        self.guidance = Uniform(allowed.min, allowed.max) if allowed and embedded else None
        self.rate = rate
        self.weight = weight
        self.distance = distance
        self.drop = drop

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw an interval of the grid for each sample, noise, and a scale of guidance."""
        b, device = len(batch), rng.device
        index = self.index(b, self.grid, rng)
        grid = self.grid.to(device, widest(device))
        t, r = grid[index], grid[index + 1]
        _, noise, dropped = draw_noised(batch, t, self.drop, rng)
        return Draws(t, r, noise, dropped, self.guidance(b, rng) if self.guidance else None)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Average the weighted distance over the batch."""
        cond = dict(conditions(batch.cond, self.drop, draws.dropped))
        if draws.guidance is not None:
            cond["guidance"] = draws.guidance.to(batch.x0.dtype)
        batch = Batch(batch.x0, cond, batch.mask, batch.aux)
        target = self.student if self.target is None else self.target
        each = consistency_loss(
            self.student, target, self.step, batch, *draws[:3], self.weight, self.distance
        )
        return Loss({"consistency": each.mean()})

    def phases(self) -> Sequence[Phase]:
        """The student trains at every step."""
        return (Phase("student", self.student, self.draw, self.loss),)

    def after_step(self, step: int) -> None:
        """Move the target towards the student."""
        if self.target is not None:
            follow(self.target, self.student, self.rate)

    def contract(self, data: DataSpec) -> Contract:
        """The model is sampled as the one that it was."""
        return Contract(method="tune", data=data, sampling=self.made.sampling)
