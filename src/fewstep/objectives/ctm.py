r"""Consistency trajectory models (Kim, Lai, Liao et al. 2024): jumps between any two times.

The paper's g is the two-time denoiser $D_\theta(x, t, s)$, and its jump on noise levels

$$G_\theta(x, t, s) = \tfrac{s}{t}\, x + (1 - \tfrac{s}{t})\, D_\theta(x, t, s)$$

is ``denoiser.jump``, for any path. The loss has three terms:

- *soft consistency*: m solver steps of a teacher lead from $x_t$ to $x_u$; for a time $s \le u$
  the term is $d(f(x_t, t),\ \mathrm{sg}\, f(x_u, u))$ of the jumps
  $f(x, t) = G_{\theta^-}(G_\theta(x, t, s), s, t_{min})$, where gradients pass through the outer
  jump, that of an average $\theta^-$ of the student;
- *denoising*: $w(t) \|D_\theta(x_t, t, t) - x_0\|^2$, as the first term fades where s nears t;
- *adversarial*, with a discriminator: hinge terms of the first estimate above and the data.

The gradient of the first term weighs the other two, anew in each microbatch and process.
Consistency Policy (Prasad et al. 2024) is ``jumps=True, balanced=False, start_std=1`` and a
``chain``: its denoising term regresses $G_\theta(x_t, t, t_{min})$, and it adds the terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec
from fewstep.core import Batch, Cond, Rng, UsageError, same_dropout, widest
from fewstep.models import AbstractDenoiser
from fewstep.objectives.base import Capabilities, Loss, Objective, Phase
from fewstep.objectives.shared import adversarial as terms
from fewstep.objectives.shared.copies import follow, frozen_copy, on_path_of
from fewstep.objectives.shared.distances import Distance, l2
from fewstep.objectives.shared.drop import draw_noised
from fewstep.objectives.shared.jumps import estimate_error, jump_error, jumped, with_gamma
from fewstep.objectives.shared.weights import SnrWeight
from fewstep.paths import Event, Time
from fewstep.solvers import Step, heun
from fewstep.times import Times, Uniform, law_on


class Draws(NamedTuple):
    """``trajectory`` is ``(m + 1, b)``, from t to u; ``adversarial`` is a boolean scalar."""

    trajectory: Tensor
    s: Tensor
    noise: Tensor
    t_denoising: Tensor
    noise_denoising: Tensor
    adversarial: Tensor


class ConsistencyTrajectory(Objective):
    """CTM: ``student(x, t)`` denoises, for any solver; ``student.jump(x, t, s)`` goes to any time.

    Args:
        student: a denoiser of two times, whose network has a ``last_weight``.
        teacher: a denoiser on the same path; without one, the target takes its place.
        grid: descending from ``t_max`` to ``t_min``; 18 or 40 times of Karras's rule in the paper.
        solver_steps: the largest m, 17 or 39 in the paper; an m's chance is proportional to it.
        times, weight: of the denoising term; the paper has ``fewstep.times.HalfHigh`` and EDM's.
        solver: one step of the teacher's ODE.
        rate: averaging rate of the target, in [0, 1).
        distance: d; published runs use LPIPS.
        discriminator: from ``(x, t, cond)``, at ``t = t_min``, to a list of logits. It trains (or
            only its ``heads``, if it has them) at odd steps, the student at even ones.
        adversarial_start, adversarial: first step of the adversarial term, and a factor on it.
        gamma: share of noise with which users generate, in [0, 1] (``solvers.gamma_sampling``).
        jumps: the denoising term regresses the jump to ``t_min``, in the distance d.
        balanced, start_std, chain: weigh terms by their gradients; and see :func:`with_gamma`.
    """

    def __init__(
        self,
        student: AbstractDenoiser,
        teacher: AbstractDenoiser | None = None,
        *,
        grid: Tensor,
        solver_steps: int,
        times: Times,
        weight: SnrWeight,
        solver: Step = heun,
        rate: float = 0.999,
        distance: Distance = l2,
        discriminator: nn.Module | None = None,
        adversarial_start: int = 0,
        adversarial: float = 1.0,
        gamma: float = 0.0,
        jumps: bool = False,
        balanced: bool = True,
        start_std: float | None = None,
        chain: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if not student.two_time:
            raise UsageError("CTM jumps between any two times; take a network with two_time=True")
        path, most = student.path, len(grid) - 1
        fits = grid[[0, -1]].tolist() == [path.t_max, path.t_min] and 1 <= solver_steps <= most
        if not (fits and 0 <= rate < 1 and 0 <= gamma <= 1):
            raise UsageError(
                f"expected a grid from {path.t_max} to {path.t_min}, solver_steps in [1, {most}], "
                f"rate in [0, 1), gamma in [0, 1], got {grid.tolist(), solver_steps, rate, gamma}"
            )
        terms.last_weight(student)  # or refuse
        self.student, self.target = student, frozen_copy(student)
        self.teacher = None if teacher is None else on_path_of(student, teacher)
        self.discriminator: Any = discriminator
        if (judging := getattr(discriminator, "denoiser", None)) is not None:
            on_path_of(student, judging)
        own = {"teacher": teacher, "distance": distance, "discriminator.denoiser": judging}
        self.frozen = tuple(name for name, part in own.items() if isinstance(part, nn.Module))
        self.grid, self.solver_steps, self.solver, self.rate = grid, solver_steps, solver, rate
        self.times, self.weight = law_on(path, times), weight
        self.distance, self.error = distance, jump_error if jumps else estimate_error
        self.balanced, self.sampling = balanced, with_gamma(path, gamma, start_std, chain)
        self.adversarial_start, self.adversarial = adversarial_start, adversarial
        self.capabilities = Capabilities(shardable=discriminator is None)

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw the number of solver steps, common to all processes, and each sample's times."""
        b, points, device = len(batch), len(self.grid), rng.device
        chances = torch.arange(1.0, self.solver_steps + 1, device=device)
        m = 1 + int(torch.multinomial(chances, 1, generator=rng.common))
        first = torch.randint(points - m, (b,), generator=rng, device=device)
        last = first + m + (Uniform()(b, rng) * (points - m - first)).long()
        grid = self.grid.to(device, widest(device))
        trajectory = grid[first + torch.arange(m + 1, device=device)[:, None]]
        _, noise, _ = draw_noised(batch, trajectory[0], None, rng)
        t = self.times.draw(self.student.path, b, rng)
        t, noise_denoising, _ = draw_noised(batch, t, None, rng)
        adversarial = self.discriminator is not None and step >= self.adversarial_start
        return Draws(trajectory, grid[last], noise, t, noise_denoising, torch.tensor(adversarial))

    def arrive(self, x: Event, t: Time, s: Time, cond: Cond) -> Event:
        """Jump to ``s`` with the student, then to ``t_min`` with the target."""
        x = jumped(self.student, x, t, s, cond)
        return jumped(self.target, x, s, torch.full_like(s, self.target.path.t_min), cond)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Compute the three terms, weighed by their gradients."""
        path, cond, t, s = self.student.path, batch.cond, draws.trajectory[0], draws.s
        x_t = path.perturb(batch.x0, draws.noise, t)
        with torch.no_grad():
            x_u, teacher = x_t, self.target if self.teacher is None else self.teacher
            for r, u in pairwise(draws.trajectory):
                x_u = self.solver(teacher, x_u, r, u, cond)
            with same_dropout(x_t):
                target = self.arrive(x_u, draws.trajectory[-1], s, cond)
        estimate = self.arrive(x_t, t, s, cond)
        losses = {"consistency": self.distance(estimate, target, batch.mask).mean()}
        t = draws.t_denoising
        noisy = path.perturb(batch.x0, draws.noise_denoising, t)
        each = self.error(self.student, noisy, t, batch, self.distance)
        losses["denoising"] = (self.weight(path.snr(t)).to(each.dtype) * each).mean()
        if draws.adversarial:
            logits = self._logits(estimate, cond)
            losses["adversarial"] = terms.over_heads(terms.hinge_generator, logits)
        if not (self.balanced or draws.adversarial):
            return Loss(losses)
        limits = {"denoising": (0.0, 1e4), "adversarial": (0.01, 10.0)}
        losses, weights = terms.weighed(losses, limits, self.student)
        if draws.adversarial:
            losses["adversarial"] *= self.adversarial
        return Loss(losses, weights)

    def discriminate(self, batch: Batch, draws: Draws) -> Loss:
        """Compute the discriminator's hinge loss between data and estimates."""
        with torch.no_grad():
            x_t = self.student.path.perturb(batch.x0, draws.noise, draws.trajectory[0])
            fake = self.arrive(x_t, draws.trajectory[0], draws.s, batch.cond)
        logits = (self._logits(x, batch.cond) for x in (batch.x0, fake))
        return Loss({"discriminator": terms.over_heads(terms.hinge_discriminator, *logits)})

    def _logits(self, x: Event, cond: Cond) -> list[Tensor]:
        clean = x.new_full((len(x),), self.student.path.t_min, dtype=widest(x.device))
        return self.discriminator(x, clean, cond)

    def trains_student(self, step: int) -> bool:
        """Say whether a step trains the student; otherwise it trains the discriminator."""
        return self.discriminator is None or step < self.adversarial_start or step % 2 == 0

    def phases(self) -> Sequence[Phase]:
        """The student trains, or at some steps the discriminator."""
        student = Phase("student", self.student, self.draw, self.loss, self.trains_student)
        if (judge := self.discriminator) is None:
            return (student,)
        args = getattr(judge, "heads", judge), self.draw, self.discriminate
        return student, Phase("discriminator", *args, lambda step: not self.trains_student(step))

    def after_step(self, step: int) -> None:
        """Move the target towards the student after the student's updates."""
        if self.trains_student(step):
            follow(self.target, self.student, self.rate)

    def contract(self, data: DataSpec) -> Contract:
        """Users may jump between any two times, with a share gamma of fresh noise."""
        return Contract(method="ctm", data=data, sampling=self.sampling)
