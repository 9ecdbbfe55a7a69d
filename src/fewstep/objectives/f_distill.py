r"""f-distill (Xu et al. 2025, arXiv 2502.15681): distribution matching by any f-divergence.

This is DMD2's matching term (Yin et al. 2024b) with each sample's gradient times $h(r) = f''(r)\,
r^2$ of its density ratio $r$ (:mod:`fewstep.objectives.shared.ratios`). For
$x_t = \alpha_t x + \sigma_t \epsilon$, $\mu_r$ is the teacher's answer and $\mu_f$ that of a
network that trains on samples:

$$L = E[ \tfrac12 \mathrm{mean}(x - \mathrm{sg}(x - h g))^2 ]
+ \lambda_G E[ \log(1 + e^{-d(x_t)}) ], \qquad g = (\mu_f - \mu_r) / \mathrm{mean}|x - \mu_r|.$$

The best judge d (a discriminator of data and samples) has the logit log r. As in FastGen, its
answer to the very $x_t$ that is matched gives both r and the adversarial term, so it trains at the
times of matching; and h is divided by its mean over the microbatch, so that no divergence takes
larger steps than another.

The critic (denoiser of samples, and judge) trains at every step, the generator at every K-th; the
critic draws noise of its own, and so it gets fresh samples of the generator after its update.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec
from fewstep.core import Batch, Cond, Rng, UsageError, expand
from fewstep.models import AbstractDenoiser, Autoguided, Guided
from fewstep.objectives.base import Loss, Objective, Phase, every
from fewstep.objectives.shared.adversarial import (
    over_heads,
    softplus_discriminator,
    softplus_generator,
)
from fewstep.objectives.shared.collapse import lag, statistics
from fewstep.objectives.shared.copies import on_path_of
from fewstep.objectives.shared.drop import Draws as Noised
from fewstep.objectives.shared.drop import draw_noised
from fewstep.objectives.shared.gradients import matching_gradient, surrogate
from fewstep.objectives.shared.matching import (
    Compared,
    FewSteps,
    Made,
    check_critic,
    denoising_error,
    draw_compared,
)
from fewstep.objectives.shared.ratios import Divergence, Factors
from fewstep.objectives.shared.weights import SnrWeight
from fewstep.paths import Event, Time
from fewstep.times import KarrasIndex, Times, law_on

LEVELS, ALL_LEVELS = KarrasIndex(), KarrasIndex(0, 999)


class CriticDraws(NamedTuple):
    """The critic's draws: samples, time and noise of the denoiser, and the judge's inputs."""

    made: Made
    t: Tensor
    noise: Tensor
    real: Noised
    fake: Noised


class FDistill(Objective):
    """Distribution matching, where a factor on each sample chooses the divergence.

    Args:
        student: the generator, which starts as the teacher.
        teacher: a denoiser on the same path, guided if its guided samples are to be matched.
        fake: a one-time denoiser on the same path, which starts as the (unguided) teacher.
        judge: from ``(denoiser, x_t, t, cond)`` to a list of logits, as ``models.Judge``.
        generate: the student's calls.
        weight: of the fake denoiser's loss; ``karras_weight(sigma_data)`` on noise levels.
        divergence: f; FastGen takes "kl" for CIFAR-10.
        times, critic_times: laws of the times of comparison, and of those at which the fake trains.
        critic_updates: K, 1 or more.
        adversarial, adversarial_critic: weights of the judge's terms; 0 or more, and above 0.
        adversarial_times: law of the times at which the judge trains; None is ``times``.
        judged: the denoiser whose features the judge reads: ``fake``, whose features train with it,
            or the teacher.
        ratio, bins, rate: limits of r and its normalisation, see :class:`Factors`.
    """

    frozen = ("teacher",)

    def __init__(
        self,
        student: AbstractDenoiser,
        teacher: AbstractDenoiser,
        fake: AbstractDenoiser,
        judge: nn.Module,
        *,
        generate: FewSteps,
        weight: SnrWeight,
        divergence: Divergence = "js",
        times: Times = LEVELS,
        critic_times: Times = ALL_LEVELS,
        critic_updates: int = 5,
        adversarial: float = 3e-3,
        adversarial_critic: float = 1e-2,
        adversarial_times: Times | None = None,
        judged: Literal["fake", "teacher"] = "fake",
        ratio: tuple[float, float] = (0.1, 20.0),
        bins: int = 10,
        rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_critic(student, fake, judge)
        laws = times, critic_times, adversarial_times or times
        self.times, self.critic_times, self.judge_times = (law_on(student.path, v) for v in laws)
        sound = critic_updates >= 1 and adversarial >= 0 and adversarial_critic > 0
        if not sound or judged not in ("fake", "teacher"):
            raise UsageError(
                "expected critic_updates >= 1, adversarial >= 0, adversarial_critic > 0 (else the "
                "judge learns no ratios) and judged='fake' or 'teacher', got "
                f"{critic_updates}, {adversarial}, {adversarial_critic} and {judged!r}"
            )
        self.student, self.teacher = student, on_path_of(student, teacher)
        self.critic = nn.ModuleDict({"fake": fake, "judge": judge})
        self.factors = Factors(divergence, student.path, limits=ratio, bins=bins, rate=rate)
        self.generate, self.weight, self.judged = generate.on(student.path), weight, judged
        self.critic_updates = critic_updates
        self.adversarial, self.adversarial_critic = adversarial, adversarial_critic

    def draw(self, batch: Batch, step: int, rng: Rng) -> Compared:
        """Draw for the generator's loss."""
        self.factors.begin(step)
        return draw_compared(batch, self.generate, self.times, self.student.path, rng)

    def draw_critic(self, batch: Batch, step: int, rng: Rng) -> CriticDraws:
        """Draw for the critic's losses."""
        path = self.student.path
        own = draw_compared(batch, self.generate, self.critic_times, path, rng)
        times = (self.judge_times.draw(path, len(batch), rng) for _ in range(2))
        judged = (draw_noised(batch, t, None, rng) for t in times)
        return CriticDraws(*own, *judged)

    def loss(self, batch: Batch, draws: Compared) -> Loss:
        """Compute the generator's matching with factors, and its adversarial term."""
        cond, t, mask = batch.cond, draws.t, batch.mask
        x = self.generate(self.student, batch, draws.made, cond)
        x_t = self.student.path.perturb(x, draws.noise, t)
        logits = self._logits(x_t, t, cond)
        with torch.no_grad():
            real = self.teacher(x_t, t, None, cond)
            fake = self.critic["fake"](x_t, t, None, cond)
            ratio = self.factors.ratio(logits)
            h = self.factors(ratio, t)
            logs = {"ratio": ratio.mean(), "factor/min": h.min(), "factor/max": h.max()}
            logs |= {**statistics(x, batch), "lag": lag(x, real, fake, mask)}
        gradient = expand(h, x) * matching_gradient(x, real, fake, mask)
        terms = {"matching": surrogate(x, gradient, mask).mean()}
        terms["adversarial"] = self.adversarial * over_heads(softplus_generator, logits)
        return Loss(terms, logs)

    def critic_loss(self, batch: Batch, draws: CriticDraws) -> Loss:
        """Compute the fake denoiser's error on samples."""
        x = self.generate.fixed(self.student, batch, draws.made, batch.cond)
        fake: Any = self.critic["fake"]
        each = denoising_error(fake, x, draws.noise, draws.t, batch.cond, batch.mask)
        weight = self.weight(fake.path.snr(draws.t)).to(each.dtype)
        return Loss({"denoising": (weight * each).mean()})

    def judge_loss(self, batch: Batch, draws: CriticDraws) -> Loss:
        """Compute how badly the judge tells data from samples."""
        cond, perturb = batch.cond, self.student.path.perturb
        x = self.generate.fixed(self.student, batch, draws.made, cond)
        inputs = (batch.x0, draws.real), (x, draws.fake)
        logits = [self._logits(perturb(x, at.noise, at.t), at.t, cond) for x, at in inputs]
        entropy = over_heads(softplus_discriminator, *logits)
        return Loss({"judge": self.adversarial_critic * entropy})

    def _logits(self, x_t: Event, t: Time, cond: Cond) -> list[Tensor]:
        denoiser = self.teacher if self.judged == "teacher" else self.critic["fake"]
        if isinstance(denoiser, Guided | Autoguided):
            denoiser = denoiser.denoiser
        return self.critic["judge"](denoiser, x_t, t, cond)

    def after_step(self, step: int) -> None:
        """Update the running means of the ratios."""
        self.factors.finish()

    def phases(self) -> Sequence[Phase]:
        """The generator trains at every K-th step, then the critic at every one."""
        more = (self.judge_loss,)
        critic = self.critic, self.draw_critic, self.critic_loss
        return (
            Phase("student", self.student, self.draw, self.loss, every(self.critic_updates)),
            Phase("critic", *critic, more=more, before=self.generate.before(self.student)),
        )

    def contract(self, data: DataSpec) -> Contract:
        """Users may generate in as many calls as training had, or in the first few of them."""
        return self.generate.contract("f-distill", self.student.path, data)
