r"""SiD, score identity distillation (Zhou et al. 2024), and SiDA with an adversary (2025).

x = G(z) is a sample, x_t the same with fresh noise, mu_r the teacher's answer to x_t and mu_f that
of a denoiser that trains on samples. The distance of the two laws after noise is
$F = E \|\mu_r - \mu_f\|^2$. Its value needs no perfect mu_f in one place: for the best mu_f the
error x - mu_f is orthogonal to every function of x_t, so

$$E[ (\mu_r - \mu_f) \cdot (\mu_r - x) ] = F,$$

and the errors of the two sides partly cancel while mu_f is only near its best. SiD subtracts a
times the second from the first,

$$L = E[ (\mu_r - \mu_f) \cdot ((\mu_r - x) - a (\mu_r - \mu_f)) / sg(mean|x - \mu_r|) ].$$

Without the denominator it is (1 - a) F at the best mu_f, 0 for a = 1 and negative for a = 1.2: its
value says nothing about progress. The log ``fisher`` does: F, which times $\alpha_t^2 / \sigma_t^4$
is the Fisher divergence of the noised laws. The generator follows the gradient with mu_f held,
which goes through x and **through the inputs of both networks**, whose weights rest. In one
dimension, with P and Q the variances of noised data and samples, the mean goes home where P / Q >
(2a - 2) / (2a - 1): for a = 1.2 not where Q > 3.5 P, for a = 1/2 everywhere.

The paper's generator takes noise of std 2.5 at t = 2.5, and t is uniform in t^(1/7) up to
KarrasUniform().at(0.8) = 24.4. mu_f trains as EDM does, at log-normal t.

SiDA (``judge``) adds heads on features of mu_f's own network, which tell samples from data: to the
generator's loss ``adversarial`` times the mean of 1 / mean|x - mu_r| times a cross-entropy of
logits limited to 10; to mu_f's half the cross-entropy of data and samples under the same noise,
times the mean weight over the dimension. As in the code both factors are means over the batch,
which couples samples.

The official losses are sums over the sample, the generator's times 100: ours are means, d and
100 d times smaller. The official adversarial term has 0.01 d beside this 100 d: hence 1e-4 here;
and mu_f's has 1 beside d, which is the division by the dimension.

Critic first, then generator, as in the official loop; each draws its own samples. With
``critic_updates`` = K the generator moves at every K-th step and the critic at all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec
from fewstep.core import Batch, Rng, UsageError, per_sample
from fewstep.models import AbstractDenoiser, Denoiser, Judge, LowRank
from fewstep.objectives.base import Loss, Objective, Phase, every
from fewstep.objectives.shared.adversarial import (
    over_heads,
    softplus_discriminator,
    softplus_generator,
)
from fewstep.objectives.shared.collapse import lag, statistics
from fewstep.objectives.shared.copies import on_path_of
from fewstep.objectives.shared.matching import (
    Compared,
    FewSteps,
    check_critic,
    denoising_error,
    draw_compared,
)
from fewstep.objectives.shared.weights import SnrWeight, karras_weight
from fewstep.times import KarrasUniform, LogNormal, Times, law_on

HIGHEST = float(KarrasUniform().at(torch.tensor(0.8, dtype=torch.float64)))


class SiD(Objective):
    """A generator that distils a teacher, without data unless there is a ``judge``.

    Args:
        student: the generator.
        teacher: a diffusion model on the student's path.
        fake: a one-time denoiser of samples on the same path, at best a copy of the teacher.
        generate: the generator's calls.
        times: the law of t at which the two are compared.
        critic_times: the law of t at which ``fake`` trains.
        weight: of ``fake``'s errors, by the signal-to-noise ratio.
        a: share of the second term; SiDA takes 1.
        critic_updates: updates of ``fake`` for each of the generator, 1 or more.
        judge: heads on features of ``fake``'s network.
        adversarial: weight of the generator's adversarial term, 0 or more.
    """

    frozen = ("teacher",)

    def __init__(
        self,
        student: AbstractDenoiser,
        teacher: AbstractDenoiser,
        fake: AbstractDenoiser,
        *,
        generate: FewSteps = FewSteps((2.5,)),  # noqa: B008 (immutable)
        times: Times = KarrasUniform(t_max=HIGHEST),  # noqa: B008 (immutable)
        critic_times: Times = LogNormal(),  # noqa: B008 (immutable)
        weight: SnrWeight = karras_weight(0.5),  # noqa: B008 (immutable)
        a: float = 1.2,
        critic_updates: int = 1,
        judge: Judge | None = None,
        adversarial: float = 1e-4,
    ) -> None:
        super().__init__()
        check_critic(student, fake, judge)
        if critic_updates < 1 or not adversarial >= 0:
            raise UsageError(
                "expected critic_updates >= 1 and adversarial >= 0, got "
                f"{critic_updates} and {adversarial}"
            )
        if judge is not None and not isinstance(fake, Denoiser | LowRank):
            raise UsageError(
                f"a judge reads features of a network, and {type(fake).__name__} is no Denoiser"
            )
        self.student = student
        self.teacher = on_path_of(student, teacher)
        self.fake = fake
        self.generate = generate.on(student.path)
        self.times = law_on(student.path, times)
        self.critic_times = law_on(student.path, critic_times)
        self.weight = weight
        self.a = a
        self.critic_updates = critic_updates
        self.judge = judge
        self.adversarial = adversarial

    def draw(self, batch: Batch, step: int, rng: Rng) -> Compared:
        """Draw samples, and noise at which the two networks are compared."""
        return draw_compared(batch, self.generate, self.times, self.student.path, rng)

    def draw_critic(self, batch: Batch, step: int, rng: Rng) -> Compared:
        """Draw samples, and noise at which ``fake`` trains."""
        return draw_compared(batch, self.generate, self.critic_times, self.student.path, rng)

    def loss(self, batch: Batch, draws: Compared) -> Loss:
        """Compute the generator's loss; ``fisher`` logs the mean square of mu_r - mu_f."""
        t, cond, mask = draws.t, batch.cond, batch.mask
        x = self.generate(self.student, batch, draws.made, cond)
        x_t = self.student.path.perturb(x, draws.noise, t)
        real, fake = self.teacher(x_t, t, None, cond), self.fake(x_t, t, None, cond)
        gap = real - fake
        size = per_sample((x - real).detach().abs(), mask).clamp(min=1e-5)
        each = per_sample(gap * (real - x - self.a * gap), mask)
        terms = {"identity": (each / size).mean()}
        logs = {"fisher": per_sample(gap**2, mask).mean(), "lag": lag(x, real, fake, mask)}
        if self.judge is not None:
            logits = [v.clamp(-10, 10) for v in self._judged(x_t, t, batch)]
            entropy = over_heads(softplus_generator, logits)
            terms["adversarial"] = self.adversarial * (1 / size).mean() * entropy
        return Loss(terms, {**logs, **statistics(x, batch)})

    def critic_loss(self, batch: Batch, draws: Compared) -> Loss:
        """Compute the weighted denoising error on samples."""
        x, weight = self._samples_and_weight(batch, draws)
        error = denoising_error(self.fake, x, draws.noise, draws.t, batch.cond, batch.mask)
        return Loss({"denoising": (weight * error).mean()})

    def judge_loss(self, batch: Batch, draws: Compared) -> Loss:
        """Compute how badly the judge tells data from samples, under the same noise."""
        x, weight = self._samples_and_weight(batch, draws)
        noised = (self.student.path.perturb(v, draws.noise, draws.t) for v in (batch.x0, x))
        real, made = (self._judged(v, draws.t, batch) for v in noised)
        entropy = over_heads(softplus_discriminator, real, made) / 2
        return Loss({"discriminator": weight.mean() / x[0].numel() * entropy})

    def _samples_and_weight(self, batch: Batch, draws: Compared) -> tuple[Tensor, Tensor]:
        x = self.generate.fixed(self.student, batch, draws.made, batch.cond)
        return x, self.weight(self.student.path.snr(draws.t)).to(x.dtype)

    def _judged(self, x_t: Tensor, t: Tensor, batch: Batch) -> list[Tensor]:
        assert self.judge is not None
        assert isinstance(self.fake, Denoiser | LowRank)
        return self.judge(self.fake, x_t, t, batch.cond)

    def phases(self) -> Sequence[Phase]:
        """The critic trains at every step, then the generator at every K-th."""
        module, more = self.fake, ()
        if self.judge is not None:
            module, more = nn.ModuleList([self.fake, self.judge]), (self.judge_loss,)
        critic = module, self.draw_critic, self.critic_loss
        return (
            Phase("critic", *critic, more=more, before=self.generate.before(self.student)),
            Phase("student", self.student, self.draw, self.loss, every(self.critic_updates)),
        )

    def contract(self, data: DataSpec) -> Contract:
        """Users may generate in as many calls as training had, or in the first few of them."""
        name = "sid" if self.judge is None else "sida"
        return self.generate.contract(name, self.student.path, data)
