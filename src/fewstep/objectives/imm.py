r"""Inductive Moment Matching (Zhou, Ermon & Song 2025).

A two-time model's jump $f_{s,t}$ carries samples of $x_t$ to samples of $x_s$. Its samples from a
little less noise must have the same distribution: with $x_r$ on the DDIM line from $x_t$ to $x_0$,

$$y_t = f_{s,t}(x_t), \quad y_r = \mathrm{sg} f_{s,r}(x_r), \qquad s \le r < t,$$

$$L = E\, \frac{w(s, t)}{M^2} \sum_{i,j=1}^{M}
    k(y_t^i, y_t^j) + k(y_r^i, y_r^j) - 2 k(y_t^i, y_r^j),$$

the squared maximum mean discrepancy of M samples that share their times, with the Laplace kernel
$k(x, y) = \exp(-\max(\|x - y\|, 10^{-8}) / (d\,|c_{out}(s, t)|))$, where d is the sample's
dimension. One sample a group is a consistency model (with times s and the distance $1 - k$).

$c_{out}(s, t)$ is the factor of the network's output in the jump. Transport of a denoiser's answer
gives all three of the paper's parametrisations:

| paper | preconditioning of the student | $c_{out}(s, t)$, for sigma_data 1 |
| --- | --- | --- |
| identity (DDIM) | D is the network | $\alpha_s - \alpha_t \sigma_s / \sigma_t$ |
| Simple-EDM | EDM's ``.on(path)`` if its levels reach as far; TrigFlow on Trig | $\alpha_s \sigma_t - \alpha_t \sigma_s$ over $\sqrt{\alpha_t^2 + \sigma_t^2}$ |
| Euler-FM | Flow on Linear | $-(t - s)$ |

The paper's noise has the data's standard deviation, as Trig's has. Linear's has 1: there sigma_data
counts as part of the noise level (the paper's $\sigma$ is ours over sigma_data), and its OT-FM
is Linear with data of standard deviation 1.

The distance of a sample to its own earlier self enters with its kink, so a step of almost no length
is a consistency model's with a norm for distance, whatever M: its target is the spatial median of
the answers that x_t allows, not their mean. In the plane this pushes modes apart (by a tenth
between two); in many dimensions the two are close.

Samples meet those of their own group only, and groups are neighbours in a microbatch: two processes
equal two accumulated microbatches.
"""  # noqa: E501 (a table's row)

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import Batch, Rng, UsageError, same_dropout, widest
from fewstep.models import Denoiser
from fewstep.objectives.base import Capabilities, Loss, Objective, Phase
from fewstep.objectives.shared.drop import ConditionDrop, conditions, draw_noised, guidance_of
from fewstep.times import Uniform

MIDDLE = 1.4
"""The paper's noise level of the second of two calls, in units of sigma_data."""


class Draws(NamedTuple):
    """``t`` > ``r`` >= ``s`` and ``dropped`` are ``(b,)``; ``noise`` has the data's shape."""

    t: Tensor
    r: Tensor
    s: Tensor
    noise: Tensor
    dropped: Tensor | None = None


class InductiveMomentMatching(Objective):
    r"""IMM, from scratch.

    Args:
        student: a two-time denoiser, whose path must end before pure noise: the paper's range is
            [0.006, 0.994], and [0, 0.994] on latents.
        sigma_data: standard deviation of the data, above 0.
        group: M, the number of samples that share their times; training collapses below 4.
        k: r is $1/2^k$ of the range of sigma/alpha before t; 15 in the paper on CIFAR-10.
        a, b: of $w = \frac12 \mathrm{sigmoid}(b - \lambda_t) (-\dot\lambda_t) \alpha_t^a /
            (\alpha_t^2 + \sigma_t^2)$, $\lambda$ the log-SNR; b is 5 on CIFAR-10.
        drop: label dropping, which also makes guidance possible.
    """

    def __init__(
        self,
        student: Denoiser,
        *,
        sigma_data: float,
        group: int = 4,
        k: float = 12,
        a: float = 1.0,
        b: float = 4.0,
        drop: ConditionDrop | None = None,
    ) -> None:
        super().__init__()
        if not student.two_time:
            raise UsageError("IMM jumps from any time to any other; take a two-time network")
        path = student.path
        end = torch.tensor([path.t_max], dtype=torch.float64)
        if float(path.coefficients(end).alpha) < 1e-6:
            raise UsageError(
                f"IMM steps in sigma/alpha, which has no bound on {path}; end the path before "
                "pure noise, e.g. Linear(0.006, 0.994)"
            )
        if group < 1 or sigma_data <= 0 or k < 0:
            raise UsageError(
                f"expected group >= 1, sigma_data > 0 and k >= 0, got {group}, {sigma_data}, {k}"
            )
        self.student = student
        self.scalings = student.preconditioning.coefficients
        self.group = group
        self.capabilities = Capabilities(batch_multiple=group)
        self.sigma_data = sigma_data
        self.k, self.a, self.b = k, a, b
        self.drop = drop

    def earlier(self, t: Tensor, s: Tensor) -> Tensor:
        """Return r: a constant step in sigma/alpha before ``t``, but not before ``s``."""
        path = self.student.path
        low, high = path.ratio(t.new_tensor([path.t_min, path.t_max]))
        ratio = path.ratio(t) - (high - low) / 2**self.k
        return torch.maximum(s, path.time(ratio.clamp(min=low)))

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw for each group t, and s below it, both uniform; and noise for each sample."""
        if len(batch) % self.group:
            raise UsageError(f"IMM needs batches of a multiple of {self.group}, got {len(batch)}")
        path, groups = self.student.path, len(batch) // self.group
        share, part = Uniform()(groups, rng), Uniform()(groups, rng)
        t = path.t_max - (path.t_max - path.t_min) * share
        s = path.t_min + (t - path.t_min) * part
        t, r, s = (v.repeat_interleave(self.group) for v in (t, self.earlier(t, s), s))
        return Draws(t, r, s, *draw_noised(batch, t, self.drop, rng)[1:])

    def weight(self, t: Tensor) -> Tensor:
        """Return w at the times ``(b,)``."""
        path = self.student.path
        alpha, sigma, d_alpha, d_sigma = path.coefficients(t)
        level = sigma / self.sigma_data
        logsnr = 2 * (alpha / level).log()
        slope = 2 * (d_sigma / sigma - d_alpha / alpha)
        return 0.5 * (self.b - logsnr).sigmoid() * slope * alpha**self.a / (alpha**2 + level**2)

    def c_out(self, t: Tensor, s: Tensor) -> Tensor:
        """Return the factor of the network's output in the jump from ``t`` to ``s``."""
        path = self.student.path
        (alpha_t, sigma_t, _, _), (alpha_s, sigma_s, _, _) = map(path.coefficients, (t, s))
        return (alpha_s - sigma_s / sigma_t * alpha_t) * self.scalings(t).c_out

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Average the weighted discrepancy over the groups; ``mmd`` logs it without weight."""
        if batch.mask is not None:
            raise UsageError("IMM compares every sample with every other and takes no masks")
        cond = conditions(batch.cond, self.drop, draws.dropped)
        path, (t, r, s) = self.student.path, draws[:3]
        x_t = path.perturb(batch.x0, draws.noise, t)
        x_r = path.transport(x_t, batch.x0, t, r)
        with torch.no_grad(), same_dropout(x_t):
            y_r = self.student.jump(x_r, r, s, cond)
        y_t = self.student.jump(x_t, t, s, cond)

        t, s = (v[:: self.group] for v in (t, s))
        y_t, y_r = (y.reshape(len(t), self.group, -1) for y in (y_t, y_r))
        width = (self.c_out(t, s).abs() * y_t.shape[-1]).to(y_t.dtype)
        each = laplace(y_t, y_t, width) + laplace(y_r, y_r, width) - 2 * laplace(y_t, y_r, width)
        mmd = each.flatten(1).mean(1)
        weighted = self.weight(t).to(mmd.dtype) * mmd
        return Loss({"imm": weighted.mean()}, {"mmd": mmd.detach().mean()})

    def phases(self) -> Sequence[Phase]:
        """The student trains at every step."""
        return (Phase("student", self.student, self.draw, self.loss),)

    def contract(self, data: DataSpec) -> Contract:
        """Users may jump between any times, guided if labels were dropped."""
        path = self.student.path
        level = torch.tensor([MIDDLE * self.sigma_data], dtype=widest("cpu"))
        two = (path.t_max, float(path.time(level)))
        sampling = Sampling(
            start=Start(t=path.t_max, std=path.start_std(self.sigma_data)),
            kind="deterministic",
            times={1: (path.t_max,), 2: two},
            any_times=True,
            grid="uniform",
            guidance=guidance_of(self.drop, data),
        )
        return Contract(method="imm", data=data, sampling=sampling)


def laplace(x: Tensor, y: Tensor, width: Tensor) -> Tensor:
    """Compute the kernel of all pairs: ``(g, m, d)`` twice and ``(g,)`` to ``(g, m, m)``.

    The distances come without matrix products, whose rounding would hide those of near samples.
    """
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=1e-8)
    return (-distance / width[:, None, None]).exp()
