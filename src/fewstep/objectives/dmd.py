r"""Distribution matching distillation, DMD (Yin et al. 2024a, eq. 7 and 8, alg. 1 and 2).

A generator G turns noise into a sample in one call (arXiv 2311.18828). The loss decreases the
divergence $KL(p_{fake} \| p_{real})$ of its samples from the distribution of a teacher, both noised
to many levels t. Its gradient (eq. 7) is

$$E[ w_t \alpha_t (s_{fake}(x_t, t) - s_{real}(x_t, t))\, \partial G / \partial\theta ],
    \quad x = G(z),\ x_t = \alpha_t x + \sigma_t \epsilon,$$

with the scores of the teacher and of a denoiser, ``fake``, that trains on samples as they change.
In terms of denoisers $\mu$ it is $s_{fake} - s_{real} = (\alpha / \sigma^2) (\mu_{fake} -
\mu_{real})$. With the weight of each sample (eq. 8) $w_t = \sigma^2 / (\alpha\, \mathrm{mean}|x -
\mu_{real}|)$ the loss is

$$g = (\mu_{fake} - \mu_{real}) / \mathrm{mean}|x - \mu_{real}|, \qquad
    L_{DM} = \tfrac12 \mathrm{mean} (x - \mathrm{sg}[x - g])^2.$$

Eq. 7 with eq. 8 has a further factor $\alpha_t$, which the paper's algorithm 2 and DMD2's code
leave out; we follow these. On noise levels the factor is 1. The mean is over the sample, also in
the gradient, which is $g / d$.

The divergence alone loses modes that no sample is near, and it overshoots where the fake lags
behind. So the generator also learns pairs of noise and the solution y of the teacher's ODE from it
(algorithm 1):

$$L = L_{DM} + \lambda\, E[ d(G(z), y) ].$$

A ``Guided`` teacher gives a student of that scale. Its pairs must have that scale too, while the
fake is never guided. Generated samples take the batch's conditions, and pairs have their own.

The critic's update follows the generator's and uses samples of its own, from the updated
generator, where the official code takes the same samples for both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fewstep.contract import Contract, DataSpec
from fewstep.core import Batch, Rng, UsageError
from fewstep.models import AbstractDenoiser
from fewstep.objectives.base import Loss, Objective, Phase, every
from fewstep.objectives.shared.collapse import lag, statistics
from fewstep.objectives.shared.copies import on_path_of
from fewstep.objectives.shared.distances import Distance, l2
from fewstep.objectives.shared.gradients import matching_gradient, surrogate
from fewstep.objectives.shared.matching import (
    Compared,
    FewSteps,
    Made,
    check_critic,
    denoising_error,
    draw_compared,
)
from fewstep.objectives.shared.weights import SnrWeight
from fewstep.times import KarrasIndex, Times, law_on

LEVELS, ALL_LEVELS = KarrasIndex(), KarrasIndex(0, 999)


class DMD(Objective):
    """Distribution matching distillation of a teacher into a generator of one call.

    Args:
        student: the generator, which starts as the teacher.
        teacher: a denoiser on the student's path.
        fake: the denoiser of generated samples, which starts as the (unguided) teacher.
        generate: the time of the only call, e.g. ``FewSteps((80.0,))``.
        weight: of the fake's loss; the teacher's own, for EDM ``karras_weight(sigma_data)``.
        times: the law of the times at which the scores are compared.
        critic_times: the law of the times at which the fake trains; all of the teacher's times.
        distance: d of the pairs; LPIPS in the paper.
        regression: lambda, 0 or more; 0 needs no pairs. Otherwise ``batch.aux`` has ``pair_noise``
            of unit variance, ``pair_x`` and, for students that read labels or other conditions,
            ``pair_label`` and ``pair_cond_KEY``.
        critic_updates: updates of the fake for each of the generator, 1 or more. The paper has 1;
            more help without pairs (Yin et al. 2024b).
    """

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
        distance: Distance = l2,
        regression: float = 0.25,
        critic_updates: int = 1,
    ) -> None:
        super().__init__()
        if len(generate.times) != 1:
            raise UsageError(f"DMD's generator makes one call, got the times {generate.times}")
        check_critic(student, fake)
        if not regression >= 0 or critic_updates < 1:
            raise UsageError(
                "expected regression >= 0 and critic_updates >= 1, got "
                f"{regression} and {critic_updates}"
            )
        self.student = student
        self.teacher = on_path_of(student, teacher)
        self.fake = fake
        self.frozen = ("teacher", *(("distance",) if isinstance(distance, nn.Module) else ()))
        self.generate = generate.on(student.path)
        self.weight = weight
        self.times = law_on(student.path, times)
        self.critic_times = law_on(student.path, critic_times)
        self.distance = distance
        self.regression = regression
        self.critic_updates = critic_updates

    def draw(self, batch: Batch, step: int, rng: Rng) -> Compared:
        """Draw what generates samples, and the noise at which the scores are compared."""
        return draw_compared(batch, self.generate, self.times, self.student.path, rng)

    def draw_critic(self, batch: Batch, step: int, rng: Rng) -> Compared:
        """Draw what generates samples, and the noise at which the fake trains."""
        return draw_compared(batch, self.generate, self.critic_times, self.student.path, rng)

    def loss(self, batch: Batch, draws: Compared) -> Loss:
        """Compute the distribution matching of the generator (alg. 2)."""
        x = self.generate(self.student, batch, draws.made, batch.cond)
        with torch.no_grad():
            x_t = self.student.path.perturb(x, draws.noise, draws.t)
            real, fake = (d(x_t, draws.t, None, batch.cond) for d in (self.teacher, self.fake))
            logs = {"lag": lag(x, real, fake, batch.mask), **statistics(x, batch)}
        gradient = matching_gradient(x, real, fake, batch.mask)
        return Loss({"matching": surrogate(x, gradient, batch.mask).mean()}, logs)

    def regression_loss(self, batch: Batch, draws: Compared) -> Loss:
        """Compare the generator's answers to the pairs' noise with the teacher's samples."""
        own = ["label" if key == "label" else f"cond_{key}" for key in self.student.cond_keys]
        keys = ("pair_noise", "pair_x", *(f"pair_{key}" for key in own))
        missing = [key for key in keys if key not in batch.aux]
        if missing:
            raise UsageError(
                f"DMD learns from pairs, and the batch has no {', '.join(missing)}; make pairs "
                "with `fewstep data pairs`, or leave them out with regression=0"
            )
        noise, x = batch.aux["pair_noise"], batch.aux["pair_x"]
        named = {key.removeprefix("pair_"): value for key, value in batch.aux.items()}
        cond = {k.removeprefix("cond_"): v for k, v in named.items() if k.startswith("cond_")}
        cond |= {"label": named["label"]} if "label" in own else {}
        pairs = Batch(x, cond)
        answer = self.generate(self.student, pairs, Made(noise[None], draws.made.call), pairs.cond)
        return Loss({"regression": self.regression * self.distance(answer, x, None).mean()})

    def critic_loss(self, batch: Batch, draws: Compared) -> Loss:
        """Compute the fake's denoising error on generated samples."""
        x = self.generate.fixed(self.student, batch, draws.made, batch.cond)
        error = denoising_error(self.fake, x, draws.noise, draws.t, batch.cond, batch.mask)
        weight = self.weight(self.student.path.snr(draws.t)).to(error.dtype)
        return Loss({"denoising": (weight * error).mean()})

    def phases(self) -> Sequence[Phase]:
        """The generator trains at every K-th step, then the fake at every one."""
        more = (self.regression_loss,) if self.regression else ()
        due = every(self.critic_updates)
        return (
            Phase("student", self.student, self.draw, self.loss, due, more),
            Phase("critic", self.fake, self.draw_critic, self.critic_loss),
        )

    def contract(self, data: DataSpec) -> Contract:
        """Users generate in one call, at the time that training had."""
        return self.generate.contract("dmd", self.student.path, data)
