r"""Diff-Instruct (Luo et al. 2023) and variational score distillation (Wang et al. 2023).

Let $q_t$ be the density of generated samples $x$, noised, $x_t = \alpha_t x + \sigma_t \epsilon$,
and $p_t$ that of the teacher's samples. The integral over time of KL(q_t | p_t), weighted by
$w(t)$, decreases along differences of scores, which are differences of two denoisers: the
teacher's, $\mu_r$, and that of a network that trains on the generator's samples, $\mu_f$:

$$E[ w (s_q - s_p)\, \partial x_t / \partial\theta ]
= E[ w\, \mathrm{snr}\, (\mu_f - \mu_r)\, \partial x / \partial\theta ],
\qquad \mathrm{snr} = \alpha_t^2 / \sigma_t^2.$$

Diff-Instruct's gradient is $\mu_f - \mu_r$ itself: a ``gain`` $w\,\mathrm{snr}$ of 1. Unlike DMD
(Yin et al. 2024) it does not divide by the distance of the teacher's answer. Where the teacher has
dropout, both networks have it, with the same masks; so its layers are in training mode here, unless
it is guided and computes two answers.

Variational score distillation is the same with a guided teacher, noise predictions and $w =
\sigma_t^2$: since $\epsilon = (x_t - \alpha_t \mu) / \sigma_t$,

$$w (\epsilon_r - \epsilon_f) = w \frac{\alpha_t}{\sigma_t} (\mu_f - \mu_r),$$

a gain of $\alpha_t \sigma_t$: :func:`noise_gain`, with times from ``Uniform(0.02, 0.98)``. There
the network $\mu_f$ is a small change of the teacher's weights (LoRA). With the noise of $x_t$ in
the place of $\epsilon_f$, that is with $x$ for $\mu_f$, it would be score distillation sampling
(Poole et al. 2023).

The official loss is a sum over the sample, ours a mean: its gradient is smaller by the dimension.
The official critic trains before the generator, ours after it and on fresh samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.contract import Contract, DataSpec
from fewstep.core import Batch, Rng, UsageError, expand, same_dropout
from fewstep.models import AbstractDenoiser
from fewstep.objectives.base import Loss, Objective, Phase, every
from fewstep.objectives.shared.collapse import lag, statistics
from fewstep.objectives.shared.copies import on_path_of
from fewstep.objectives.shared.gradients import surrogate
from fewstep.objectives.shared.matching import (
    Compared,
    FewSteps,
    check_critic,
    denoising_error,
    draw_compared,
)
from fewstep.objectives.shared.weights import SnrWeight, unweighted
from fewstep.times import LogNormal, Times, law_on

LOG_NORMAL = LogNormal()


def noise_gain(snr: Tensor) -> Tensor:
    """Return alpha sigma, where alpha^2 + sigma^2 = 1: noise predictions times sigma^2."""
    return snr.sqrt() / (1 + snr)


class DiffInstruct(Objective):
    """Distribution matching without a normaliser; the defaults are Diff-Instruct's.

    Args:
        student: the generator, which starts as the teacher.
        teacher: a denoiser on the same path, guided if its guided samples are to be matched.
        fake: a one-time denoiser on the same path, which starts as the (unguided) teacher.
        generate: the student's calls; Diff-Instruct's is ``FewSteps((1.0,))`` on noise levels.
        weight: of the fake denoiser's loss; ``karras_weight(sigma_data)`` on noise levels.
        gain: of the generator's gradient, as a function of the signal-to-noise ratio.
        times, critic_times: laws of the times of comparison, and of those at which the fake trains.
        critic_updates: updates of ``fake`` for each of the generator, 1 or more.
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
        gain: SnrWeight = unweighted,
        times: Times = LOG_NORMAL,
        critic_times: Times = LOG_NORMAL,
        critic_updates: int = 1,
    ) -> None:
        super().__init__()
        check_critic(student, fake)
        if critic_updates < 1:
            raise UsageError(f"expected critic_updates of 1 or more, got {critic_updates}")
        self.student, self.fake = student, fake
        self.teacher = on_path_of(student, teacher)
        self.generate, self.weight, self.gain = generate.on(student.path), weight, gain
        self.times = law_on(student.path, times)
        self.critic_times = law_on(student.path, critic_times)
        self.critic_updates = critic_updates

    def draw(self, batch: Batch, step: int, rng: Rng) -> Compared:
        """Draw for the generator's loss."""
        return draw_compared(batch, self.generate, self.times, self.student.path, rng)

    def draw_critic(self, batch: Batch, step: int, rng: Rng) -> Compared:
        """Draw for the fake denoiser's loss."""
        return draw_compared(batch, self.generate, self.critic_times, self.student.path, rng)

    def loss(self, batch: Batch, draws: Compared) -> Loss:
        """Compute the generator's matching term."""
        cond, t, path = batch.cond, draws.t, self.student.path
        x = self.generate(self.student, batch, draws.made, cond)
        self.teacher.train(self.fake.training and self.teacher.calls == 1)
        with torch.no_grad():
            x_t = path.perturb(x, draws.noise, t)
            with same_dropout(x_t):
                real = self.teacher(x_t, t, None, cond)
            fake = self.fake(x_t, t, None, cond)
            gradient = expand(self.gain(path.snr(t)), x) * (fake - real)
            logs = {**statistics(x, batch), "lag": lag(x, real, fake, batch.mask)}
        self.teacher.eval()
        return Loss({"matching": surrogate(x, gradient, batch.mask).mean()}, logs)

    def critic_loss(self, batch: Batch, draws: Compared) -> Loss:
        """Compute the fake denoiser's error on samples."""
        x = self.generate.fixed(self.student, batch, draws.made, batch.cond)
        each = denoising_error(self.fake, x, draws.noise, draws.t, batch.cond, batch.mask)
        weight = self.weight(self.fake.path.snr(draws.t)).to(each.dtype)
        return Loss({"denoising": (weight * each).mean()})

    def phases(self) -> Sequence[Phase]:
        """The generator trains at every K-th step, then the fake denoiser at every one."""
        return (
            Phase("student", self.student, self.draw, self.loss, every(self.critic_updates)),
            Phase("critic", self.fake, self.draw_critic, self.critic_loss),
        )

    def contract(self, data: DataSpec) -> Contract:
        """Users may generate in as many calls as training had, or in the first few of them."""
        return self.generate.contract("diff-instruct", self.student.path, data)
