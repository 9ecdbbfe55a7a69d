r"""Phased consistency models (Wang et al. 2024): consistency within each phase of a trajectory.

A grid $t_{min} = a_0 < ... < a_N = t_{max}$ is cut into $M$ phases whose lower edges are $a_i$ with
$i = \lfloor kN/M \rfloor$. In an interval $(a_n, a_{n+1}]$ of a phase with edge $e$, one DDIM jump
by the student leads from either end to the edge, and both must arrive at the same point:

$$L = E[ d( f_\theta(x_t, t, e),\ \mathrm{sg} f_\theta(x_r, r, e) ) ], \quad t = a_{n+1},\ r = a_n$$

with $f_\theta(x, e, e) = x$, $d$ an elementwise Huber distance, and $x_r$ from a step of a (guided)
teacher, or from the same noise. The target has the student's own weights, no average of them. So
$M = 1$ is latent consistency without its skip at the data, and $M = N$ copies the teacher's steps.

Adversarial consistency: a discriminator on frozen features judges online answer and target (not
data), both noised again from the edge to one random time of the phase. It trains at even steps and
the student at odd ones, as in the official code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import Batch, Cond, Rng, UsageError, expand, same_dropout, widest
from fewstep.models import AbstractDenoiser, FeatureDiscriminator
from fewstep.objectives.base import Loss, Objective, Phase, every
from fewstep.objectives.shared.adversarial import hinge_discriminator, hinge_generator_bounded
from fewstep.objectives.shared.discrete import SameNoise, TeacherStep
from fewstep.objectives.shared.distances import Distance, Huber
from fewstep.objectives.shared.drop import ConditionDrop, conditions, draw_noised, guidance_of
from fewstep.paths import Event
from fewstep.times import Phases

HUBER = Huber()


class Renoising(NamedTuple):
    """Draws of the adversarial terms: times ``(b,)``, unit noise for answers and for targets."""

    t: Tensor
    fake: Tensor
    real: Tensor


class Draws(NamedTuple):
    """``t`` > ``r`` >= ``edge`` and ``dropped`` are ``(b,)``; ``noise`` has the data's shape."""

    t: Tensor
    r: Tensor
    edge: Tensor
    noise: Tensor
    dropped: Tensor | None = None
    again: Renoising | None = None


class PhasedConsistency(Objective):
    """PCM.

    Args:
        student: a one-time denoiser, or a two-time one, which reads the end of its jump.
        step: computes the earlier point of a pair; ``TeacherStep(teacher, ddim)`` in the paper.
        phases: the grid, from t_max to t_min, and M, which is also the number of sampling steps;
            Stable Diffusion's are ``Phases(strided(50), M)``.
        distance: d.
        drop: label dropping, which also makes guidance possible.
        discriminator: of the adversarial terms; None leaves them out.
        adversarial: their weight in the student's loss, 0 or more.
    """

    def __init__(
        self,
        student: AbstractDenoiser,
        step: TeacherStep | SameNoise,
        *,
        phases: Phases,
        distance: Distance = HUBER,
        drop: ConditionDrop | None = None,
        discriminator: FeatureDiscriminator | None = None,
        adversarial: float = 0.1,
    ) -> None:
        super().__init__()
        self.student = student
        self.step = step
        self.cut = phases
        self.distance = distance
        self.drop = drop
        self.discriminator = discriminator
        self.adversarial = adversarial
        taught = isinstance(step, TeacherStep)
        lives = {"earlier point": step.teacher.path if taught else step.path}
        frozen = {"step.teacher": taught, "distance": isinstance(distance, nn.Module)}
        if discriminator is not None:
            lives["discriminator"] = discriminator.denoiser.path
            frozen["discriminator.denoiser"] = True
        self.frozen = tuple(name for name, held in frozen.items() if held)
        path = student.path
        for name, own in lives.items():
            if own != path:
                raise UsageError(
                    f"the {name} lives on {own}, the student on {path}; read it there with .on"
                )
        if not adversarial >= 0:
            raise UsageError(f"the adversarial weight must be 0 or more, got {adversarial}")
        ends = float(phases.grid[0]), float(phases.grid[-1])
        if ends != (path.t_max, path.t_min):
            raise UsageError(
                f"the grid must go from t_max={path.t_max} to t_min={path.t_min}, got ends {ends}"
            )

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw an interval for each sample, noise, and what the adversarial terms need."""
        b, device = len(batch), rng.device
        index = torch.randint(self.cut.intervals, (b,), generator=rng, device=device)
        t, r, edge = self.cut.of(index)
        _, noise, dropped = draw_noised(batch, t, self.drop, rng)
        again = None
        if self.discriminator is not None:
            share = torch.rand(b, generator=rng, device=device, dtype=widest(device))
            fake, real = (draw_noised(batch, t, None, rng).noise for _ in range(2))
            again = Renoising(self.cut.within(index, share), fake, real)
        return Draws(t, r, edge, noise, dropped, again)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Compute the student's distance at the edge, and its adversarial term."""
        cond = conditions(batch.cond, self.drop, draws.dropped)
        online, target = self._at_edge(batch, draws, cond)
        terms = {"consistency": self.distance(online, target, batch.mask).mean()}
        if draws.again is not None:
            logits = self._logits(online, draws.again.fake, draws, cond)
            each = torch.stack([hinge_generator_bounded(fake) for fake in logits])
            terms["adversarial"] = self.adversarial * each.mean()
        return Loss(terms)

    def discriminator_loss(self, batch: Batch, draws: Draws) -> Loss:
        """Compute the mean hinge over the heads; targets are real, online answers are not."""
        cond = conditions(batch.cond, self.drop, draws.dropped)
        assert draws.again is not None
        with torch.no_grad():
            online, target = self._at_edge(batch, draws, cond)
        real = self._logits(target, draws.again.real, draws, cond)
        fake = self._logits(online, draws.again.fake, draws, cond)
        each = [hinge_discriminator(a, b) for a, b in zip(real, fake, strict=True)]
        return Loss({"discriminator": torch.stack(each).mean()})

    def _at_edge(self, batch: Batch, draws: Draws, cond: Cond) -> tuple[Event, Event]:
        """Compute online answer and target, with one dropout mask for both."""
        t, r, edge = draws[:3]
        batch = Batch(batch.x0, cond, batch.mask, batch.aux)
        x_t = self.student.path.perturb(batch.x0, draws.noise, t)
        with torch.no_grad():
            x_r = self.step(x_t, batch, draws.noise, t, r)
        with torch.no_grad(), same_dropout(x_t):
            target = self.student.jump(x_r, r, edge, cond)
            target = torch.where(expand(r > edge, x_r), target, x_r)
        return self.student.jump(x_t, t, edge, cond), target

    def _logits(self, x: Event, noise: Event, draws: Draws, cond: Cond) -> list[Tensor]:
        assert draws.again is not None
        assert self.discriminator is not None
        t = draws.again.t
        x = self.student.path.renoise(x, noise, t, draws.edge)
        return self.discriminator(x, t, cond)

    def phases(self) -> Sequence[Phase]:
        """The student trains; with a discriminator, its heads train before it and by turns."""
        if self.discriminator is None:
            return (Phase("student", self.student, self.draw, self.loss),)
        heads = self.discriminator.heads
        return (
            Phase("discriminator", heads, self.draw, self.discriminator_loss, every(2)),
            Phase("student", self.student, self.draw, self.loss, lambda step: step % 2 == 1),
        )

    def contract(self, data: DataSpec) -> Contract:
        """Users generate from edge to edge, one step a phase: no jump crosses an edge."""
        path = self.student.path
        sampling = Sampling(
            start=Start(t=path.t_max, std=path.start_std()),
            kind="deterministic",
            times={self.cut.count: (path.t_max, *self.cut.edges()[:-1].tolist())},
            guidance=guidance_of(self.drop, data),
        )
        return Contract(method="pcm", data=data, sampling=sampling)
