r"""DMD2 (Yin et al. 2024b): distribution matching with a quick critic, and a judge of real data.

A teacher, $\mu_r$, and $\mu_f$, which trains on generated samples, denoise samples x of the
generator that are noised to $x_t$. With y data and d the logit of a judge (a discriminator), the
generator's loss is

$$\tfrac12 \mathrm{mean}(x - \mathrm{sg}(x - g))^2 + \lambda_G \log(1 + e^{-d(x_u)}), \quad
g = (\mu_f(x_t, t) - \mu_r(x_t, t)) / \mathrm{mean}|x - \mu_r(x_t, t)|$$

at every K-th step, and that of the critic, $\mu_f$ and heads of d on its features,

$$w(t)\, \mathrm{mean}(\mu_f(x_t, t) - x)^2
+ \lambda_D (\log(1 + e^{d(x_u)}) + \log(1 + e^{-d(y_v)}))$$

at every one; each term has its own times and noise. At the best d, the log of the densities' ratio
r, the gradient of the generator's term is along $(s_f - s_r)/(1 + r)$. The input of a later call of
the generator comes from its earlier calls: see ``FewSteps``. The official critic trains on the very
samples of the generator's update; ours on fresh ones of the updated generator, of the same labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec
from fewstep.core import Batch, Cond, Rng, UsageError, widest
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
from fewstep.objectives.shared.matching import FewSteps, Made, check_critic, denoising_error
from fewstep.objectives.shared.weights import SnrWeight
from fewstep.paths import Event
from fewstep.times import KarrasIndex, Law, Times, law_on

LEVELS, ALL_LEVELS = KarrasIndex(), KarrasIndex(0, 999)


class Draws(NamedTuple):
    """Draws of samples, of their noising, of the judge's inputs, and unit noise for the penalty."""

    made: Made
    noised: Noised
    fake: Noised | None = None
    real: Noised | None = None
    disturbance: Tensor | None = None


class DMD2(Objective):
    """Distribution matching; with a ``judge``, adversarial terms beside it.

    Args:
        student, generate: the generator, which starts as the teacher, and its calls.
        teacher: a denoiser on the same path, guided if its guided samples are to be matched.
        fake: a one-time denoiser on the same path, which starts as the teacher.
        weight: of the fake denoiser's error; on noise levels ``karras_weight(sigma_data)``.
        times, critic_times: laws of the times of comparison, and of those at which the fake trains.
        critic_updates: K; 5 on ImageNet, 10 for Stable Diffusion 1.5.
        judge: of ``(denoiser, x_t, t, cond)``, a :class:`fewstep.models.Judge`.
        adversarial, adversarial_critic: weights of its terms, 0 or more.
        adversarial_times: law of the times of its inputs; None gives clean samples, at ``t_min``.
        judged: the denoiser whose features it reads, ``fake`` or the frozen teacher (FastGen).
        penalty: weight, in the judge's loss, of the squared change of its logits by more noise, of
            ``penalty_std``, on the data (approximate R1, Lin et al. 2025); 100 to 1000 in FastGen.
    """

    frozen = ("teacher",)

    def __init__(
        self,
        student: AbstractDenoiser,
        teacher: AbstractDenoiser,
        fake: AbstractDenoiser,
        *,
        generate: FewSteps,
        weight: SnrWeight,
        times: Times = LEVELS,
        critic_times: Times = ALL_LEVELS,
        critic_updates: int = 5,
        judge: nn.Module | None = None,
        adversarial: float = 3e-3,
        adversarial_critic: float = 1e-2,
        adversarial_times: Times | None = ALL_LEVELS,
        judged: Literal["fake", "teacher"] = "fake",
        penalty: float = 0.0,
        penalty_std: float = 0.1,
    ) -> None:
        super().__init__()
        path, adversarial_times = student.path, None if judge is None else adversarial_times
        check_critic(student, fake, judge)
        weights = adversarial, adversarial_critic, penalty, penalty_std
        sound = critic_updates >= 1 and all(w >= 0 for w in weights)
        if not sound or judged not in ("fake", "teacher"):
            given = f"critic_updates={critic_updates}, weights {weights} and judged={judged!r}"
            raise UsageError(f"expected 1 or more, 0 or more, and fake or teacher, got {given}")
        self.student, self.teacher = student, on_path_of(student, teacher)
        self.critic: Any = nn.ModuleDict({"fake": fake} | ({"judge": judge} if judge else {}))
        self.critic_updates = critic_updates
        self.generate, self.weight, self.judged = generate.on(student.path), weight, judged
        self.times, self.critic_times = law_on(path, times), law_on(path, critic_times)
        self.adversarial_times = adversarial_times and law_on(path, adversarial_times)
        self.adversarial, self.adversarial_critic, self.penalty, self.penalty_std = weights

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw for the generator's loss."""
        made = self.generate.draw(batch, rng)
        return Draws(made, self._noised(self.times, batch, rng), self._to_judge(batch, rng))

    def draw_critic(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw for the critic's losses."""
        made, noised = self.generate.draw(batch, rng), self._noised(self.critic_times, batch, rng)
        fake, real = self._to_judge(batch, rng), self._to_judge(batch, rng)
        disturbance = draw_noised(batch, noised.t, None, rng).noise if self.penalty else None
        return Draws(made, noised, fake, real, disturbance)

    def _noised(self, law: Law, batch: Batch, rng: Rng) -> Noised:
        return draw_noised(batch, law.draw(self.student.path, len(batch), rng), None, rng)

    def _to_judge(self, batch: Batch, rng: Rng) -> Noised | None:
        if "judge" not in self.critic:
            return None
        if self.adversarial_times is not None:
            return self._noised(self.adversarial_times, batch, rng)
        least = torch.tensor(self.student.path.t_min, dtype=widest(rng.device), device=rng.device)
        return Noised(least.expand(len(batch)), torch.zeros_like(batch.x0))

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Compute the generator's matching and adversarial terms."""
        x = self.generate(self.student, batch, draws.made, batch.cond)
        t, noise, _ = draws.noised
        with torch.no_grad():
            asked = self.student.path.perturb(x, noise, t), t, None, batch.cond
            real, fake = self.teacher(*asked), self.critic["fake"](*asked)
            logs = {**statistics(x, batch), "lag": lag(x, real, fake, batch.mask)}
        gradient = matching_gradient(x, real, fake, batch.mask)
        terms = {"matching": surrogate(x, gradient, batch.mask).mean()}
        if draws.fake is not None:
            logits = self._logits(x, draws.fake, batch.cond)
            terms["adversarial"] = self.adversarial * over_heads(softplus_generator, logits)
        return Loss(terms, logs)

    def critic_loss(self, batch: Batch, draws: Draws) -> Loss:
        """Compute the error of the fake denoiser."""
        x = self.generate.fixed(self.student, batch, draws.made, batch.cond)
        t, noise, _ = draws.noised
        each = denoising_error(self.critic["fake"], x, noise, t, batch.cond, batch.mask)
        weight = self.weight(self.student.path.snr(t)).to(each.dtype)
        return Loss({"denoising": (weight * each).mean()})

    def judge_loss(self, batch: Batch, draws: Draws) -> Loss:
        """Compute how badly the judge tells data from samples."""
        scale, cond = self.adversarial_critic, batch.cond
        x = self.generate.fixed(self.student, batch, draws.made, cond)
        real, fake = self._logits(batch.x0, draws.real, cond), self._logits(x, draws.fake, cond)
        terms = {"judge": scale * over_heads(softplus_discriminator, real, fake)}
        if draws.disturbance is not None:
            moved = self._logits(batch.x0, draws.real, cond, self.penalty_std * draws.disturbance)
            terms["penalty"] = scale * self.penalty * over_heads(F.mse_loss, real, moved)
        first, other = (over_heads(lambda d: d.detach().sigmoid().mean(), v) for v in (real, fake))
        return Loss(terms, {"realism/real": first, "realism/fake": other})

    def _logits(
        self, x: Event, at: Noised | None, cond: Cond, add: Tensor | int = 0
    ) -> list[Tensor]:
        assert at is not None
        denoiser = self.teacher if self.judged == "teacher" else self.critic["fake"]
        if isinstance(denoiser, Guided | Autoguided):
            denoiser = denoiser.denoiser
        x_t = self.student.path.perturb(x, at.noise, at.t) + add
        return self.critic["judge"](denoiser, x_t, at.t, cond)

    def phases(self) -> Sequence[Phase]:
        """The generator trains at every K-th step, then the critic at every one."""
        more = (self.judge_loss,) if "judge" in self.critic else ()
        critic = self.critic, self.draw_critic, self.critic_loss
        return (
            Phase("student", self.student, self.draw, self.loss, every(self.critic_updates)),
            Phase("critic", *critic, more=more, before=self.generate.before(self.student)),
        )

    def contract(self, data: DataSpec) -> Contract:
        """Users may generate in as many calls as training had, or in the first few of them."""
        return self.generate.contract("dmd2", self.student.path, data)
