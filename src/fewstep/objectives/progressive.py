r"""Progressive distillation (Salimans & Ho 2022, alg. 2): N steps replace 2N steps of the teacher.

On a grid of 2N intervals, with $t > m > r$ two neighbours of them, the teacher takes two DDIM steps
$x_t \to x_m \to x_r$, with the answers $D_1$ and $D_2$. The student's target is the one answer
$\tilde x$ whose DDIM step from $t$ leads to the same $x_r$:

$$L = E[ w(t)\, d( D_\theta(x_t, t),\ \mathrm{sg}\, \tilde x ) ], \qquad
\tilde x = \frac{x_r - (\sigma_r/\sigma_t) x_t}{\alpha_r - (\sigma_r/\sigma_t) \alpha_t}.$$

With the two steps inserted, $x_t$ drops out, and with $\kappa = \alpha/\sigma$, $\tilde x$ is a
mean of the teacher's answers. The loss computes it so, as the quotient loses digits when N is
large.

$$\tilde x = (1 - \lambda) D_1 + \lambda D_2, \qquad
\lambda = \frac{\kappa_r - \kappa_m}{\kappa_r - \kappa_t} \to 1 \text{ as } \sigma_r \to 0.$$

Then N is halved and the student becomes the teacher. The original runs on a cosine VP path whose
last step ends on clean data: ``CosineVariancePreserving(t_min=0.0, ...)``. Song et al. 2023 run it
on noise levels, on a Karras grid that ends at ``t_min``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import Batch, Rng, UsageError, expand, widest
from fewstep.models import AbstractDenoiser
from fewstep.objectives.base import Loss, Objective, Phase
from fewstep.objectives.shared.copies import follow, frozen_copy, on_path_of
from fewstep.objectives.shared.distances import Distance, l2
from fewstep.objectives.shared.weights import SnrWeight, truncated_snr
from fewstep.paths import VarianceExploding
from fewstep.times import karras, uniform

__all__ = ["Draws", "Halving", "ProgressiveDistillation"]


@dataclass(frozen=True)
class Halving:
    """N by step: it is halved every ``steps`` until it is 1, where it stays.

    Args:
        start: N of the first stage, a power of two; its teacher takes twice as many steps.
        steps: length of a stage, in steps.
        last: length of the stage N = 2, in stages (N = 1 lasts as long as the training): 2 in Song
            et al.'s code. A learning rate that decays to 0 over ``steps`` wants 1, as Salimans &
            Ho's.
    """

    start: int
    steps: int
    last: int = 1

    def __post_init__(self) -> None:
        if self.start < 1 or self.start & (self.start - 1) or min(self.steps, self.last) < 1:
            raise UsageError(
                "Halving: expected start to be a power of two (N is halved down to 1), and steps "
                f"and last to be at least 1, got {self}"
            )

    def __call__(self, step: int) -> int:
        """Return N at a step."""
        long = self.start.bit_length() - 2  # stages before N = 2
        stage = step // self.steps
        if stage < long:
            return self.start >> stage
        return min(self.start, 2 if stage < long + self.last else 1)


class Draws(NamedTuple):
    """``t`` > ``m`` > ``r`` are ``(b,)``, and ``noise`` has the shape of the data."""

    t: Tensor
    m: Tensor
    r: Tensor
    noise: Tensor


class ProgressiveDistillation(Objective):
    """Distil a diffusion model into one of few DDIM steps, halving their number.

    The teacher is used in the first stage only, so it may be guided, or another network. Later
    stages distil ``previous``, the student at the end of the stage before. The end of a stage is
    state, and not a function of the step: a skipped step delays the next stage and loses nothing.

    Args:
        student: a one-time denoiser, as a rule a copy of the teacher.
        teacher: a diffusion model on the student's path.
        schedule: N by step.
        weight: of the signal-to-noise ratio at ``t``; of v-prediction, ``snr_plus_one``.
        distance: d.
        grid: number of points to descending times, of which every second one is the grid of half as
            many intervals; by default Karras's on noise levels and uniform on other paths.
    """

    intervals: Tensor
    reached: Tensor

    def __init__(
        self,
        student: AbstractDenoiser,
        teacher: AbstractDenoiser,
        *,
        schedule: Callable[[int], int],
        weight: SnrWeight = truncated_snr,
        distance: Distance = l2,
        grid: Callable[[int], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if student.two_time or teacher.two_time:
            raise UsageError("progressive distillation is of diffusion models; take one-time ones")
        path = student.path
        rule = karras if isinstance(path, VarianceExploding) else uniform
        self.grid = grid or (lambda points: rule(points, path.t_min, path.t_max))
        start = schedule(0)
        fine, coarse = self.grid(2 * start + 1), self.grid(start + 1)
        ends = fine[0] == path.t_max and fine[-1] == path.t_min
        if not ends or fine[::2].shape != coarse.shape or not fine[::2].allclose(coarse):
            raise UsageError(
                f"a grid must go from {path.t_max} to {path.t_min}, and every second time of that "
                f"of {2 * start} intervals be one of that of {start}, got {fine} and {coarse}"
            )
        self.student = student
        self.teacher = on_path_of(student, teacher)
        self.frozen = ("teacher", *(("distance",) if isinstance(distance, nn.Module) else ()))
        self.previous = frozen_copy(student).eval()
        self.schedule = schedule
        self.weight = weight
        self.distance = distance
        self.register_buffer("intervals", torch.tensor(start))
        self.register_buffer("reached", torch.tensor(start))

    def train(self, mode: bool = True) -> ProgressiveDistillation:
        """Put all in training mode but the teachers, which have no dropout."""
        nn.Module.train(self, mode)
        self.teacher.eval()
        self.previous.eval()
        return self

    def times(self, index: Tensor, intervals: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(t, m, r)``, float64, of intervals, int64 ``(b,)`` in [0, N - 1]."""
        grid = self.grid(2 * intervals + 1).to(index.device, widest(index.device))
        return grid[2 * index], grid[2 * index + 1], grid[2 * index + 2]

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw noise and an interval of the current grid for each sample, uniformly."""
        n, x0 = int(self.intervals), batch.x0
        index = torch.randint(n, (len(batch),), generator=rng, device=rng.device)
        noise = torch.randn(x0.shape, generator=rng, device=rng.device, dtype=x0.dtype)
        return Draws(*self.times(index, n), noise)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Average the weighted distance over the batch."""
        t, m, r, noise = draws
        path, cond = self.student.path, batch.cond
        x_t = path.perturb(batch.x0, noise, t)
        (at, st, *_), (am, sm, *_), (ar, sr, *_) = map(path.coefficients, (t, m, r))
        share = (ar - sr * am / sm) / (ar - sr * at / st)
        first = int(self.intervals) == self.schedule(0)
        with torch.no_grad():
            teacher = self.teacher if first else self.previous
            one = teacher(x_t, t, None, cond)
            two = teacher(path.transport(x_t, one, t, m), m, None, cond)
            target = one + expand(share, one) * (two - one)
        each = self.distance(self.student(x_t, t, None, cond), target, batch.mask)
        return Loss({"progressive": (self.weight(path.snr(t)).to(each.dtype) * each).mean()})

    def phases(self) -> Sequence[Phase]:
        """The student trains at every step."""
        return (Phase("student", self.student, self.draw, self.loss),)

    def after_step(self, step: int) -> None:
        """At a stage's end, make the student the next stage's teacher."""
        self.reached.copy_(self.intervals)
        if self.schedule(step + 1) != int(self.intervals):
            follow(self.previous, self.student, 0.0)
            self.intervals.fill_(self.schedule(step + 1))

    def stage(self, step: int) -> int:
        """Return N, so that the optimiser starts anew with each."""
        return int(self.intervals)

    def contract(self, data: DataSpec) -> Contract:
        """Users generate in the N DDIM steps of the last stage that trained."""
        path, n = self.student.path, int(self.reached)
        start = Start(t=path.t_max, std=path.start_std())
        times = {n: tuple(self.grid(n + 1)[:-1].tolist())}
        sampling = Sampling(start=start, kind="deterministic", times=times)
        return Contract(method="progressive", data=data, sampling=sampling)
