r"""Adversarial distillation: ADD (Sauer et al. 2024a) and LADD, on latents (Sauer et al. 2024b).

A student denoises data $x_s$ at a few times s, with the answer $\hat x = D_\theta(x_s, s)$. Small
heads $H_k$ on the features $F_k$ of a frozen network tell its answers from data, by hinges:

$$L_H = E \max(0, 1 - H_k(F_k(x_t))) + E \max(0, 1 + H_k(F_k(\hat x_t)))
    + \gamma\, E \| \nabla_{F_k} H_k(F_k(x_t)) \|^2, \qquad L_{adv} = -E\, H_k(F_k(\hat x_t)).$$

- *ADD* judges clean images (no t) by the features of a network made for images, and adds the
  distance to a teacher's answer,

    $$\lambda\, E\, c(t)\, \| \hat x - \mathrm{sg}\, \mu(\alpha_t\, \mathrm{sg}\, \hat x
    + \sigma_t \epsilon,\ t) \|^2,$$

    where $c(t)$ is the paper's $\alpha_t$. Its path is variance preserving; on any path this is
    $(1 + \sigma_t^2 / \alpha_t^2)^{-1/2}$.

- *LADD* judges by the features of a diffusion model, at noise levels whose law says how much form
  and how much detail count. Data and answers get the same noise and t. Where samples of the teacher
  stand in for data there is no other term.

The papers add up heads, and squares over the sample; here both are means. The penalty (R1) alone
has the square of a sample's whole feature, for the sum of its logits. The papers draw s for each
sample (in LADD mostly pure noise); here it is common to a batch, and every s is as likely. Heads
train at odd steps, the student at even ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec
from fewstep.core import Batch, Rng, UsageError, widest
from fewstep.models import AbstractDenoiser, FeatureDiscriminator, Judge
from fewstep.objectives.base import Loss, Objective, Phase, every
from fewstep.objectives.shared.adversarial import hinge_discriminator, hinge_generator, over_heads
from fewstep.objectives.shared.collapse import statistics
from fewstep.objectives.shared.copies import on_path_of
from fewstep.objectives.shared.distances import l2
from fewstep.objectives.shared.drop import Draws as Noised
from fewstep.objectives.shared.drop import draw_noised
from fewstep.objectives.shared.matching import FewSteps, Made
from fewstep.paths import Event
from fewstep.times import LogNormal, Times, law_on

LEVELS = LogNormal(1.0, 1.0)
"""LADD's law of sigma/alpha, whose times on a linear path are logit-normal (1, 1)."""


class Draws(NamedTuple):
    """Draws of the answers, then times and noise at which the judge and the teacher get them."""

    made: Made
    judged: Noised
    taught: Noised | None


class LADD(Objective):
    """LADD and, with ``times=None`` and a teacher, ADD.

    Args:
        student: a generator, which starts as a diffusion model.
        judge: a :class:`fewstep.models.FeatureDiscriminator`, or any module from ``(x, t, cond)``
            to a list of logits. If it has ``heads``, only these train, and its submodules beside
            them are frozen; a penalty needs them, from features and conditions to logits, and
            ``features(x, t, cond)``.
        generate: the student's calls, e.g. ``FewSteps((1.0, 0.75, 0.5, 0.25), inputs="noised")``.
        times: law of the times at which the judge gets answers, e.g. ``LEVELS``, which suits data
            of standard deviation 1; None gives it clean answers, at ``t_min``.
        teacher: a denoiser for the distillation term.
        teacher_times: law of the times at which the teacher gets answers; uniform in the paper.
        distillation: lambda, 0 or more.
        penalty: gamma, 0 or more.
        heads_rate: learning rate of the heads as a multiple of the run's, above 0.
    """

    def __init__(
        self,
        student: AbstractDenoiser,
        judge: nn.Module,
        *,
        generate: FewSteps,
        times: Times | None,
        teacher: AbstractDenoiser | None = None,
        teacher_times: Times | None = None,
        distillation: float = 2.5,
        penalty: float = 1e-5,
        heads_rate: float = 1.0,
    ) -> None:
        super().__init__()
        if isinstance(judge, FeatureDiscriminator) and judge.denoiser.path != student.path:
            raise UsageError(
                f"the judge lives on {judge.denoiser.path}, the student on {student.path}; make it "
                "of a denoiser read there with .on"
            )
        if isinstance(judge, Judge):
            raise UsageError(
                "a Judge must be given the denoiser it judges through, and LADD gives none; take a "
                "FeatureDiscriminator"
            )
        laws = ((v if v is None else law_on(student.path, v)) for v in (times, teacher_times))
        self.times, self.teacher_times = laws
        if (teacher is None) != (teacher_times is None):
            raise UsageError("a teacher and teacher_times go together: give both, or neither")
        if not (distillation >= 0 and penalty >= 0 and heads_rate > 0):
            raise UsageError(
                "expected distillation >= 0, penalty >= 0 and heads_rate > 0, got "
                f"{distillation}, {penalty} and {heads_rate}"
            )
        if penalty and not (hasattr(judge, "features") and hasattr(judge, "heads")):
            raise UsageError(
                f"the penalty is at the features that heads read, and {type(judge).__name__} has "
                "no features and heads; take penalty=0"
            )
        self.student = student
        self.judge: Any = judge
        self.generate = generate.on(student.path)
        self.teacher = None if teacher is None else on_path_of(student, teacher)
        heads = getattr(judge, "heads", None)
        beside = [
            n for n, m in judge.named_children() if heads is not None and heads not in m.modules()
        ]
        self.frozen = (*(["teacher"] if teacher else []), *(f"judge.{n}" for n in beside))
        self.distillation, self.penalty, self.heads_rate = distillation, penalty, heads_rate

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw the student's input, and one time and noise for each use of its answer."""
        b, device, path = len(batch), rng.device, self.student.path
        made = self.generate.draw(batch, rng)
        t = torch.full((b,), path.t_min, dtype=widest(device), device=device)
        if self.times is not None:
            t = self.times.draw(path, b, rng).clamp(path.t_min, path.t_max)
        judged, taught = draw_noised(batch, t, None, rng), None
        if self.teacher_times is not None:
            at = self.teacher_times.draw(path, b, rng)
            taught = draw_noised(batch, at, None, rng)
        return Draws(made, judged, taught)

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Compute the student's adversarial and distillation terms."""
        x = self.generate(self.student, batch, draws.made, batch.cond)
        logits = self.judge(self._shown(x, draws.judged), draws.judged.t, batch.cond)
        losses = {"adversarial": over_heads(hinge_generator, logits)}
        if self.teacher is not None and draws.taught is not None:
            path, t = self.teacher.path, draws.taught.t
            with torch.no_grad():
                target = self.teacher(path.perturb(x, draws.taught.noise, t), t, None, batch.cond)
            weight = (1 + path.ratio(t) ** 2).rsqrt().to(x.dtype)
            losses["distillation"] = self.distillation * (weight * l2(x, target, batch.mask)).mean()
        return Loss(losses, statistics(x, batch))

    def heads_loss(self, batch: Batch, draws: Draws) -> Loss:
        """Compute the hinges of the heads, and the penalty of their gradient on data."""
        t, cond, losses = draws.judged.t, batch.cond, {}
        answer = self.generate.fixed(self.student, batch, draws.made, cond)
        shown = self._shown(batch.x0, draws.judged)
        if self.penalty:
            features = [f.detach().requires_grad_() for f in self.judge.features(shown, t, cond)]
            real = self.judge.heads(features, cond)
            slopes = torch.autograd.grad([v.sum() for v in real], features, create_graph=True)
            squares = [slope.flatten(1).square().sum(1).mean() for slope in slopes]
            losses["penalty"] = self.penalty * torch.stack(squares).mean()
        else:
            real = self.judge(shown, t, cond)
        fake = self.judge(self._shown(answer, draws.judged), t, cond)
        losses["heads"] = over_heads(hinge_discriminator, real, fake)
        sides = {"logits/real": real, "logits/fake": fake}
        means = {name: over_heads(Tensor.mean, side) for name, side in sides.items()}
        return Loss(losses, {name: mean.detach() for name, mean in means.items()})

    def _shown(self, x: Event, judged: Noised) -> Event:
        """Return what the judge gets of a sample: with noise, or for ADD the sample itself."""
        if self.times is None:
            return x
        return self.student.path.perturb(x, judged.noise, judged.t)

    def phases(self) -> Sequence[Phase]:
        """The student trains at even steps, the heads at odd ones."""
        heads = getattr(self.judge, "heads", self.judge)
        args = heads, self.draw, self.heads_loss, lambda step: step % 2 == 1
        return (
            Phase("student", self.student, self.draw, self.loss, every(2)),
            Phase("heads", *args, rate=self.heads_rate),
        )

    def contract(self, data: DataSpec) -> Contract:
        """Users may generate in as many calls as training had, or in the first few of them."""
        return self.generate.contract("ladd", self.student.path, data)
