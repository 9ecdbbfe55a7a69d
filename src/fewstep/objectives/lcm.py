r"""Latent consistency models (Luo et al. 2023, algorithm 1): guided consistency distillation.

A teacher on a variance-preserving table is sampled by N DDIM steps at times $t_n$, each k = T/N
entries of the table apart: 19, 39, ..., 999 for Stable Diffusion, whose N is 50. The student f is
the same at a time and one such step of the guided teacher earlier, at $r = \max(t_n - k, 0)$:

$$L = E[ d( f_\theta(x_t, t, g),\ \mathrm{sg} f_{\theta^-}(\hat x_r, r, g) ) ], \quad
D_g = D_{null} + g (D_{cond} - D_{null}),\ g \sim U[low, high],$$

where $\hat x_r$ is a solver's step by $D_g$, and d is an elementwise Huber distance. The paper and
its code write the guided answer as $D_{cond} + w (D_{cond} - D_{null})$, so their w is g - 1, and
w in [5, 15] is g in [6, 16]. The first interval ends on the table's first entry, where f is the
identity: see :class:`fewstep.models.LatentBoundary` for its scalings.

The student reads g as ``cond["guidance"]``; one that does not have to (LCM-LoRA) learns the mean
over g and is never given it, as the official LoRA script passes no embedding. FLUX.1-dev's network
then reads its usual scale, in training as in sampling.
The target is an average of the student, or the student itself.

Official code: for teachers that predict v, the script hands v to its DDIM step in the place of the
noise. The step here takes the noise that v implies. Sampling: the scheduler counts an answer as
clean data when it noises it again, and here it counts as a sample at the first entry of the table,
which it is. For Stable Diffusion's table these differ by 0.0004 of the signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.contract import Contract, DataSpec, Guidance, Sampling, Start
from fewstep.core import Batch, Rng, UsageError, widest
from fewstep.models import AbstractDenoiser, Autoguided, Guided
from fewstep.objectives.base import Loss, Objective, Phase
from fewstep.objectives.shared.copies import follow, frozen_copy
from fewstep.objectives.shared.discrete import (
    PairWeight,
    SameNoise,
    TeacherStep,
    check_pair,
    consistency_loss,
    frozen_parts,
)
from fewstep.objectives.shared.distances import Distance, Huber
from fewstep.objectives.shared.drop import ConditionDrop, conditions, draw_noised, guidance_of
from fewstep.times import Uniform, thinned

HUBER = Huber()
MOST_STEPS = 8
"""The largest number of sampling steps whose times the contract lists."""


class Draws(NamedTuple):
    """``t`` > ``r``, ``dropped`` and ``guidance`` are ``(b,)``; ``noise`` has the data's shape."""

    t: Tensor
    r: Tensor
    noise: Tensor
    dropped: Tensor | None = None
    guidance: Tensor | None = None


class LatentConsistency(Objective):
    """LCM, and LCM-LoRA's objective where the student reads no guidance scale.

    Args:
        student: a one-time denoiser with ``f(x, t_min) = x``, as
            :class:`fewstep.models.LatentBoundary` makes one.
        step: computes the earlier point; ``TeacherStep(teacher, ddim)``, or
            ``TeacherStep(teacher, dpmpp_2s)`` of :mod:`fewstep.steps`. ``SameNoise(path)`` is the
            paper's latent consistency fine-tuning.
        grid: N + 1 descending times from the path's ``t_max`` to its ``t_min``; Stable Diffusion's
            are ``fewstep.times.strided(50)``.
        guidance: the law of the scales g that the guided teacher follows, and which the student
            reads if its network has the condition ``guidance``; the official script draws
            ``Uniform(6, 16)``. None leaves the teacher at its own scale.
        rate: averaging rate of the target in [0, 1), 0.95 in the official script; at 0 the target
            is the student itself, without gradient, as in LCM-LoRA's script.
        weight: w(t, r) of a pair's distance; official runs use 1.
        distance: d; ``l2`` of :mod:`fewstep.objectives.shared.distances` is the script's other.
        drop: label dropping, which the official scripts do without.
    """

    def __init__(
        self,
        student: AbstractDenoiser,
        step: TeacherStep | SameNoise,
        *,
        grid: Tensor,
        guidance: Uniform | None = None,
        rate: float = 0.0,
        weight: PairWeight = lambda t, r: torch.ones_like(t),
        distance: Distance = HUBER,
        drop: ConditionDrop | None = None,
    ) -> None:
        super().__init__()
        check_pair(student, step)
        ends = (student.path.t_max, student.path.t_min)
        descends = grid.ndim == 1 and len(grid) > 1 and bool((grid.diff() < 0).all())
        if not descends or (float(grid[0]), float(grid[-1])) != ends:
            raise UsageError(
                f"the grid must descend from t_max={ends[0]} to t_min={ends[1]}, got {grid}"
            )
        if not 0 <= rate < 1:
            raise UsageError(f"the target's rate must lie in [0, 1), got {rate}")
        self.embedded = "guidance" in student.cond_keys
        guided = isinstance(step, TeacherStep) and isinstance(step.teacher, Guided | Autoguided)
        if guidance is None and self.embedded:
            raise UsageError("the student reads a guidance scale: give the law of these scales")
        if guidance is not None and not guided:
            raise UsageError("a law of guidance scales needs a teacher Guided(teacher, null)")
        if guidance is not None and not 0 <= guidance.low <= guidance.high:
            raise UsageError(f"guidance scales are 0 or more and ascend, got {guidance}")
        self.student = student
        self.step = step
        self.frozen = frozen_parts(step, distance)
        self.target = frozen_copy(student) if rate > 0 else None
        self.grid = grid
        self.guidance = guidance
        self.rate = rate
        self.weight = weight
        self.distance = distance
        self.drop = drop

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw an interval of the grid for each sample, noise, and the scale of its guidance."""
        b, device = len(batch), rng.device
        index = torch.randint(len(self.grid) - 1, (b,), generator=rng, device=device)
        t, r = self.interval(index)
        _, noise, dropped = draw_noised(batch, t, self.drop, rng)
        return Draws(t, r, noise, dropped, self.guidance(b, rng) if self.guidance else None)

    def interval(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(t, r)``, the ends of intervals ``(b,)`` that are counted from the data."""
        grid = self.grid.flip(0).to(index.device, widest(index.device))
        return grid[index + 1], grid[index]

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Average the distance between the student's answer and its target over the batch."""
        cond = dict(conditions(batch.cond, self.drop, draws.dropped))
        batch = taught = Batch(batch.x0, cond, batch.mask, batch.aux)
        if draws.guidance is not None:
            scaled = {**cond, "guidance": draws.guidance.to(batch.x0.dtype)}
            taught = Batch(batch.x0, scaled, batch.mask, batch.aux)
        # A network may read a scale if it is given, as FLUX.1-dev's; it learns the mean without it.
        own = taught if self.embedded else batch
        target = self.student if self.target is None else self.target
        each = consistency_loss(
            *(self.student, target, self.step, own, *draws[:3], self.weight, self.distance),
            taught=taught,
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
        """Users generate at any times, by default at those of LCM's scheduler, with fresh noise."""
        path, times = self.student.path, self.grid[:-1]
        numbers = range(1, min(MOST_STEPS, len(times)) + 1)
        guidance = guidance_of(self.drop, data)
        if self.embedded:
            assert self.guidance is not None
            guidance = Guidance(kind="embedded", min=self.guidance.low, max=self.guidance.high)
        sampling = Sampling(
            start=Start(t=path.t_max, std=path.start_std()),
            kind="renoise",
            times={n: tuple(thinned(times, n).tolist()) for n in numbers},
            any_times=True,
            grid="uniform",
            guidance=guidance,
        )
        return Contract(method="lcm", data=data, sampling=sampling)
