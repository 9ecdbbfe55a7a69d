r"""Shortcut models (Frans, Hafner, Levine & Abbeel 2024): two small jumps replace a large one.

$s(x_t, t, d)$ is the average velocity of a jump of size $d$ on the linear path; here its end is the
second time, and $s(x, t, d) = (x - D(x, t, t - d))/t$. Most samples have the velocity itself as
target, at d = 0 (flow matching); of every few, one has two jumps of half its size
(self-consistency):

$$s(x_t, t, 0) = \epsilon - x_0, \qquad
s(x_t, t, 2d) = \mathrm{sg} \tfrac12 ( s^-(x_t, t, d) + s^-(x', t - d, d) ),
\quad x' = x_t - d\, s^-(x_t, t, d),$$

where $s^-$ follows the student. Sizes are 1, 1/2, 1/4, ... and times multiples of the size. Two
halves of the smallest are velocities, d = 0. In the paper and its code time runs from noise to
data; the code leaves a share 1e-5 of noise in the data, here there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import Batch, Cond, Rng, UsageError, expand, widest
from fewstep.models import AbstractDenoiser, Guided
from fewstep.objectives.base import Capabilities, Loss, Objective, Phase
from fewstep.objectives.shared.copies import follow, frozen_copy
from fewstep.objectives.shared.distances import l2
from fewstep.objectives.shared.drop import ConditionDrop, conditions, draw_noised, guidance_of
from fewstep.paths import Event, Linear, Time


class Draws(NamedTuple):
    """Times ``t`` and ends ``s`` ``(b,)``, jumps first, then velocities, where s = t."""

    t: Tensor
    s: Tensor
    noise: Tensor
    dropped: Tensor | None = None


class Shortcut(Objective):
    """One-step to many-step in one training, without a teacher.

    Args:
        student: a two-time denoiser on ``Linear()``.
        sections: of the finest grid, a power of 2; the smallest jump is two of its sections.
        every: one sample in this many trains a jump, 2 or more.
        rate: averaging rate of the target, in [0, 1).
        clip: limit of the point between two jumps, and of their average velocity; None is none.
        drop: label dropping, of velocities only.
        guidance: scale of the guidance of the smallest jumps, which the larger ones inherit; it
            needs ``drop``, and 1 is none.
    """

    def __init__(
        self,
        student: AbstractDenoiser,
        *,
        sections: int = 128,
        every: int = 8,
        rate: float = 0.999,
        clip: float | None = 4.0,
        drop: ConditionDrop | None = None,
        guidance: float = 1.0,
    ) -> None:
        super().__init__()
        if not student.two_time:
            raise UsageError("a shortcut model reads where it jumps to; take a two-time network")
        if student.path != Linear():
            raise UsageError(
                f"shortcut models divide the whole linear path, got {student.path}; read the "
                "student there with .on(Linear())"
            )
        if sections < 2 or sections & (sections - 1) or every < 2:
            raise UsageError(
                f"expected sections 2, 4, 8, ... and every at least 2, got sections={sections}, "
                f"every={every}"
            )
        if not 0 <= rate < 1:
            raise UsageError(f"expected an averaging rate in [0, 1), got {rate}")
        if guidance != 1 and drop is None:
            raise UsageError("guidance needs the student's answer without a label: give drop")
        self.student = student
        self.target = frozen_copy(student)
        self.sections = sections
        self.every = every
        self.capabilities = Capabilities(batch_multiple=every)
        self.rate = rate
        self.clip = clip
        self.drop = drop
        self.guidance = guidance

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw sizes in equal parts, the remainder in turn, and times on the grid of the size."""
        b, jumps, levels = len(batch), self._jumps(batch), self.sections.bit_length() - 1
        row = torch.arange(b, device=rng.device)
        first = torch.randint(levels, (1,), generator=rng, device=rng.device)
        steps = torch.where(row < jumps, 2 ** ((row + first) % levels), self.sections)
        part = torch.rand(b, generator=rng, device=rng.device, dtype=widest(rng.device))
        t = 1 - (part * steps).floor() / steps
        s = torch.where(row < jumps, t - 1 / steps.to(t), t)
        _, noise, dropped = draw_noised(batch, t, self.drop, rng)
        return Draws(t, s, noise, None if dropped is None else dropped & (row >= jumps))

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Compute the squared error of velocities; the two terms add up to the batch's mean."""
        t, s, noise, dropped = draws
        path, jumps = self.student.path, self._jumps(batch)
        cond = conditions(batch.cond, self.drop, dropped)
        x_t = path.perturb(batch.x0, noise, t)
        with torch.no_grad():
            jumping = {key: value[:jumps] for key, value in cond.items()}
            taught = self.bootstrap(x_t[:jumps], t[:jumps], s[:jumps], jumping)
        target = torch.cat([taught, (noise - batch.x0)[jumps:]])
        each = l2(path.velocity(x_t, self.student(x_t, t, s, cond), t), target, batch.mask)
        flow, bootstrap = each[jumps:].sum() / len(batch), each[:jumps].sum() / len(batch)
        return Loss({"flow": flow, "bootstrap": bootstrap})

    def bootstrap(self, x: Event, t: Time, s: Time, cond: Cond) -> Event:
        """Compute the average velocity of two jumps of half the size."""
        middle = (t + s) / 2
        smallest = (t - s) * self.sections < 3
        cond = {**cond, "guidance": torch.where(smallest, self.guidance, 1.0)}
        target = self.target
        if self.drop is not None and self.guidance != 1:
            target = Guided(self.target, self.drop.null)

        def velocity(x: Event, t: Time, s: Time) -> Event:
            return self.student.path.velocity(x, target(x, t, s, cond), t)

        first = velocity(x, t, torch.where(smallest, t, middle))
        between = self._clipped(x + expand(middle - t, x) * first)
        second = velocity(between, middle, torch.where(smallest, middle, s))
        return self._clipped((first + second) / 2)

    def phases(self) -> Sequence[Phase]:
        """The student trains at every step."""
        return (Phase("student", self.student, self.draw, self.loss),)

    def after_step(self, step: int) -> None:
        """Move the target towards the student."""
        follow(self.target, self.student, self.rate)

    def contract(self, data: DataSpec) -> Contract:
        """Users generate in equal jumps of the sizes that trained."""
        counts = [2**level for level in range(self.sections.bit_length() - 1)]
        sampling = Sampling(
            start=Start(t=1.0, std=1.0),
            kind="deterministic",
            times={n: tuple(1 - i / n for i in range(n)) for n in counts},
            grid="uniform",
            guidance=guidance_of(self.drop, data),
        )
        return Contract(method="shortcut", data=data, sampling=sampling)

    def _jumps(self, batch: Batch) -> int:
        return len(batch) // self.every

    def _clipped(self, x: Tensor) -> Tensor:
        return x if self.clip is None else x.clamp(-self.clip, self.clip)
