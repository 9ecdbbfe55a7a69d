"""What the methods of distribution matching share: a generator of few calls, and its critic.

While it trains, the generator makes samples as users will make them: from noise alone, at its few
fixed times. The critic is a denoiser of these samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import Batch, Cond, Rng, UsageError, widest
from fewstep.models import AbstractDenoiser, FeatureDiscriminator
from fewstep.objectives.shared.distances import l2
from fewstep.objectives.shared.drop import draw_noised
from fewstep.paths import Event, Path, Time
from fewstep.times import Law


class Made(NamedTuple):
    """Draws of samples: unit noise before each call, ``(calls, b, *event)``; the call that trains.

    ``call`` is a scalar in [0, calls), common to all processes. ``answer`` holds the samples,
    without gradient, where they were computed before.
    """

    noise: Tensor
    call: Tensor
    answer: Tensor | None = None


@dataclass(frozen=True)
class FewSteps:
    """A generator's calls.

    The answer of every call is a sample. A random one of the calls trains, and the gradient passes
    through it alone. Its input comes from the calls before it, from noise and noise again (backward
    simulation, Yin et al. 2024b), so that in training as in sampling it sees the student's own
    answers. With ``inputs="noised"`` its input is noised data instead, and noise alone at the first
    call.

    Args:
        times: descending, above 0, in the path's unit; at the first there is nothing but noise.
        inputs: of the calls after the first.
    """

    times: tuple[float, ...]
    inputs: Literal["simulated", "noised"] = "simulated"

    def __post_init__(self) -> None:
        if not self.times or not all(a > b for a, b in pairwise([*self.times, 0.0])):
            raise UsageError(f"expected one or more descending times above 0, got {self.times}")

    def on(self, path: Path) -> FewSteps:
        """Check the times against a path, and return itself.

        Raises:
            UsageError: the path does not have these times.
        """
        if not path.t_min < self.times[-1] <= self.times[0] <= path.t_max:
            raise UsageError(
                f"the calls' times {self.times} must lie above {path.t_min:g} and be at most "
                f"{path.t_max:g}, as those of {path}"
            )
        return self

    def draw(self, batch: Batch, rng: Rng) -> Made:
        """Draw the call that trains, and the noise before each call."""
        calls, device = len(self.times), rng.device
        call = torch.randint(calls, (), generator=rng.common, device=device)
        shape = (calls, *batch.x0.shape)
        return Made(torch.randn(shape, generator=rng, device=device, dtype=batch.x0.dtype), call)

    def asked(
        self, student: AbstractDenoiser, batch: Batch, draws: Made, cond: Cond
    ) -> tuple[Event, Time]:
        """Return the input of the call that trains, and its time; without gradient."""
        path, call = student.path, int(draws.call)
        times = torch.tensor(self.times, dtype=widest(batch.x0.device), device=batch.x0.device)
        each = times[:, None].expand(-1, len(batch))
        if call and self.inputs == "noised":
            return path.perturb(batch.x0, draws.noise[call], each[call]), each[call]
        x = draws.noise[0] * path.coefficients(times[:1]).sigma.to(draws.noise.dtype)
        with torch.no_grad():
            for i in range(call):
                answer = answered(student, x, each[i], cond)
                x = path.renoise(answer, draws.noise[i + 1], each[i + 1])
        return x, each[call]

    def __call__(self, student: AbstractDenoiser, batch: Batch, draws: Made, cond: Cond) -> Event:
        """Generate samples, with gradient through the call that trains."""
        x, t = self.asked(student, batch, draws, cond)
        return answered(student, x, t, cond)

    @torch.no_grad()
    def fixed(self, student: AbstractDenoiser, batch: Batch, draws: Made, cond: Cond) -> Event:
        """Generate samples without gradient, for a critic."""
        return self(student, batch, draws, cond) if draws.answer is None else draws.answer

    def before(self, student: AbstractDenoiser) -> Callable[[Batch, Any], Any]:
        """Make a function that adds samples without gradient to draws, for a critic's losses."""

        def sampled(batch: Batch, draws: Any) -> Any:
            answer = self.fixed(student, batch, draws.made, batch.cond)
            return draws._replace(made=draws.made._replace(answer=answer))

        return sampled

    def contract(self, method: str, path: Path, data: DataSpec) -> Contract:
        """Users may generate in as many calls as training had, or in the first few of them."""
        first = torch.tensor([self.times[0]], dtype=torch.float64)
        sampling = Sampling(
            start=Start(t=self.times[0], std=float(path.coefficients(first).sigma)),
            kind="renoise",
            times={n: self.times[:n] for n in range(1, len(self.times) + 1)},
        )
        return Contract(method=method, data=data, sampling=sampling)


def check_critic(
    student: AbstractDenoiser, fake: AbstractDenoiser, judge: nn.Module | None = None
) -> None:
    """Check that the fake denoiser can train on the student's samples.

    Raises:
        UsageError: it is of another kind or path, or the judge brings a denoiser along.
    """
    path = student.path
    if fake.path != path or fake.two_time or fake.calls != 1:
        raise UsageError(
            f"the fake denoiser must be a one-time network without guidance on the student's "
            f"{path}, got {type(fake).__name__} of {1 + fake.two_time} time(s) on {fake.path}; "
            "give a copy of the teacher"
        )
    if isinstance(judge, FeatureDiscriminator):
        raise UsageError(
            "the judge is asked with a denoiser, and a FeatureDiscriminator has its own; take a "
            "Judge, made of the fake denoiser or, with judged='teacher', of the teacher"
        )


class Compared(NamedTuple):
    """Draws of samples, then time ``(b,)`` and unit noise at which two denoisers are compared."""

    made: Made
    t: Tensor
    noise: Tensor


def draw_compared(batch: Batch, generate: FewSteps, times: Law, path: Path, rng: Rng) -> Compared:
    """Draw the samples' own noise, then a time of the path and noise for each."""
    made, t = generate.draw(batch, rng), times.draw(path, len(batch), rng)
    return Compared(made, *draw_noised(batch, t, None, rng)[:2])


def answered(student: AbstractDenoiser, x: Event, t: Time, cond: Cond) -> Event:
    """Compute the student's sample: its answer, or its jump to ``t_min`` if it has two times."""
    end = torch.full_like(t, student.path.t_min)
    return (student.jump if student.two_time else student)(x, t, end, cond)


def denoising_error(
    denoiser: AbstractDenoiser, x: Event, noise: Event, t: Time, cond: Cond, mask: Tensor | None
) -> Tensor:
    """Compute the mean square of D(x_t, t) - x, ``(b,)``; no gradient reaches ``x``."""
    x = x.detach()
    return l2(denoiser(denoiser.path.perturb(x, noise, t), t, None, cond), x, mask)
