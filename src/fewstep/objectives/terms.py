"""Parts that methods share: weights, conditions, draws, copies, tangents, adversarial terms."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.contract import DataSpec, Guidance
from fewstep.core import Batch, Cond, Rng, UsageError, expand, local, null_like, per_sample
from fewstep.models import AbstractDenoiser, Denoiser
from fewstep.paths import Event, Time, Trig
from fewstep.weights import averageable, freeze, write

M = TypeVar("M", bound=nn.Module)

SnrWeight = Callable[[Tensor], Tensor]
"""A function from (alpha/sigma)^2 to weights, each ``(b,)``."""


# Weights, as functions of the signal-to-noise ratio, 1/sigma^2 on VE.


def unweighted(snr: Tensor) -> Tensor:
    """Return 1."""
    return torch.ones_like(snr)


def snr_weight(snr: Tensor) -> Tensor:
    """Return the ratio itself, the weight of noise prediction."""
    return snr


def snr_plus_one(snr: Tensor) -> Tensor:
    """Return snr + 1, the weight of v-prediction."""
    return snr + 1


def truncated_snr(snr: Tensor) -> Tensor:
    """Return max(snr, 1) (Salimans & Ho 2022)."""
    return snr.clamp(min=1)


def karras_weight(sigma_data: float) -> SnrWeight:
    """Make snr + 1/sigma_data^2: EDM's (sigma^2 + sigma_data^2)/(sigma sigma_data)^2."""
    return lambda snr: snr + sigma_data**-2


def min_snr(gamma: float = 5.0) -> SnrWeight:
    """Make min(snr, gamma) (Hang et al. 2023)."""
    return lambda snr: snr.clamp(max=gamma)


def equal_weight(t: Tensor, r: Tensor) -> Tensor:
    """1 for every pair of times."""
    return torch.ones_like(t)


# Conditions.


@dataclass(frozen=True)
class ConditionDrop:
    """Replace conditions by null for a share of the samples: classifier-free guidance's training.

    Args:
        probability: of a sample losing its conditions.
        null: their values there by key: tensors without a batch, as
            :attr:`fewstep.contract.DataSpec.nulls` has them, or numbers.
    """

    probability: float
    null: Mapping[str, Tensor | float]

    def draw(self, b: int, rng: torch.Generator) -> Tensor:
        """Which samples lose them: bool ``(b,)``."""
        return torch.rand(b, generator=rng, device=rng.device) < self.probability

    def apply(self, cond: Cond, dropped: Tensor) -> Cond:
        """The conditions with nulls where ``dropped``."""
        return {
            key: torch.where(
                dropped.reshape(-1, *[1] * (value.ndim - 1)),
                null_like(value, self.null[key]),
                value,
            )
            if key in self.null
            else value
            for key, value in cond.items()
        }


def guidance_of(drop: ConditionDrop | None, data: DataSpec) -> Guidance | None:
    """The guidance of a model that was trained with these conditions dropped; None if none were."""
    if drop is None or drop.probability <= 0:
        return None
    every = drop.null.keys() >= data.nulls.keys()
    return Guidance(keys=None if every else tuple(drop.null))


def conditions(cond: Cond, drop: ConditionDrop | None, dropped: Tensor | None) -> Cond:
    """Return the conditions for the model, with null in the samples to drop."""
    return cond if drop is None or dropped is None else drop.apply(cond, dropped)


# Draws of methods that noise the data to one time.


class Draws(NamedTuple):
    """``t`` and ``dropped`` are ``(b,)``, and ``noise`` has the shape of the data."""

    t: Tensor
    noise: Tensor
    dropped: Tensor | None = None


def draw_noised(batch: Batch, t: Tensor, drop: ConditionDrop | None, rng: Rng) -> Draws:
    """Draw noise for the times ``t``, and the samples whose conditions are dropped."""
    noise = torch.randn(batch.x0.shape, generator=rng, device=rng.device, dtype=batch.x0.dtype)
    return Draws(t, noise, drop.draw(len(batch), rng) if drop else None)


# TrigFlow, where dx/dt = sigma_data F (Lu & Song 2025).


def trig_flow(denoiser: AbstractDenoiser, x_t: Event, t: Time, cond: Cond | None = None) -> Event:
    """Compute F = (cos t x - D) / (sigma_data sin t) of any denoiser on a :class:`Trig` path.

    Where the denoiser has a network, its own output is used: the terms that cancel above then
    cancel in the scalars, and F is as exact at t = 0.001 as elsewhere.
    """
    assert isinstance(denoiser.path, Trig)
    scale = denoiser.path.sigma_data * t.sin()
    if not isinstance(denoiser, Denoiser):
        answer = denoiser(x_t, t, None, cond)
        return (expand(t.cos(), x_t) * x_t - answer) / expand(scale, x_t)
    c_skip, c_out, _, _ = denoiser.preconditioning.coefficients(t)
    skip = expand((t.cos() - c_skip) / scale, x_t) * x_t
    return skip - expand(c_out / scale, x_t) * denoiser.raw(x_t, t, None, cond)


def trig_tangent(
    x_t: Event, gap: Event, rate: Event, t: Time, lead: Tensor, r_x: Tensor, r_rate: Tensor
) -> Event:
    r"""Compute cos t df/dt of a consistency function, by pieces that are bounded at both ends.

    $g = -\cos t\, lead\, gap - r_x \cos t \sin t\, x_t - r_{rate}\, rate$; with lead = cos t and
    r = 1 it is the derivative. Methods change the ``(b,)`` factors while they warm up. ``gap`` is
    sigma_data F - dx/dt, ``rate`` sigma_data cos t sin t dF/dt along dx/dt.
    """
    x_gain = r_x * t.cos() * t.sin()
    return -(
        expand(t.cos() * lead, gap) * gap + expand(x_gain, x_t) * x_t + expand(r_rate, rate) * rate
    )


def normalised(g: Event, c: float = 0.1) -> Event:
    """Return g / (|g| + c), with the norm of the whole sample."""
    norm = torch.linalg.vector_norm(g.flatten(1), dim=1)
    return g / expand(norm + c, g)


def clipped(g: Event) -> Event:
    """Limit every element to [-1, 1]."""
    return g.clamp(-1, 1)


# Copies of the student.


def frozen_copy(module: M) -> M:
    """Copy a module out of any optimiser's reach, in the same mode (train or eval)."""
    return freeze(copy.deepcopy(module))


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Set parameters to rate * target + (1 - rate) * source; copy buffers and integers."""
    pairs = [*zip(target.parameters(), source.parameters(), strict=True)]
    followers = [local(old) for old, _ in pairs if averageable(old)]
    sources = [local(new) for old, new in pairs if averageable(old)]
    torch._foreach_lerp_(followers, sources, 1 - rate)  # pyright: ignore[reportPrivateImportUsage]
    rest = [(old, new) for old, new in pairs if not averageable(old)]
    for old, new in (*rest, *zip(target.buffers(), source.buffers(), strict=True)):
        write(old, new)


def on_path_of(student: AbstractDenoiser, teacher: AbstractDenoiser) -> AbstractDenoiser:
    """Freeze the teacher and return it.

    Raises:
        UsageError: it is on another path than the student.
    """
    if teacher.path != student.path:
        raise UsageError(
            f"the teacher lives on {teacher.path}, the student on {student.path}; read the teacher "
            "on the student's path with teacher.on(student.path)"
        )
    return teacher.eval().requires_grad_(False)


# Distribution matching (Yin et al. 2024): down the KL divergence of samples from a teacher.


def matching_gradient(
    x: Event, real: Event, fake: Event, mask: Tensor | None = None, floor: float = 0.0
) -> Event:
    """Compute (fake - real) / mean|x - real| for each sample, 0 where not finite; without gradient.

    Args:
        x: generated samples, clean.
        real: the teacher's answers to them, noised; with guidance, if the teacher is guided.
        fake: the answers of a denoiser that trains on generated samples.
        mask: of ragged data, broadcastable to ``x``.
        floor: smallest value of the mean, 0 or more.
    """
    x, real, fake = x.detach(), real.detach(), fake.detach()
    size = per_sample((x - real).abs(), mask).clamp(min=floor)
    return ((fake - real) / expand(size, x)).nan_to_num(0.0, 0.0, 0.0)


def surrogate(x: Event, gradient: Event, mask: Tensor | None = None) -> Tensor:
    """Compute half the mean square of x - sg(x - gradient), ``(b,)``: its gradient is this / d."""
    return per_sample((x - (x - gradient).detach()) ** 2, mask) / 2


# Adversarial terms. Logits are of any shape; each term is a mean over all of them.


def softplus_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Compute E log(1 + e^-real) + E log(1 + e^fake)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def softplus_generator(fake: Tensor) -> Tensor:
    """Compute E log(1 + e^-fake), which does not saturate (Goodfellow et al. 2014)."""
    return F.softplus(-fake).mean()


def over_heads(term: Callable[..., Tensor], *logits: Sequence[Tensor]) -> Tensor:
    """Average a term over the heads of a discriminator."""
    return torch.stack([term(*each) for each in zip(*logits, strict=True)]).mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Compute E max(0, 1 - real) + E max(0, 1 + fake)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """Compute -E fake."""
    return -fake.mean()


def hinge_generator_bounded(fake: Tensor) -> Tensor:
    """Compute E max(0, 1 - fake), without gain beyond the margin (Wang et al. 2024)."""
    return F.relu(1 - fake).mean()


# Terms weighed to each other by their gradients at one weight (Esser et al. 2021).


def last_weight(student: AbstractDenoiser) -> Tensor:
    """Return the weight that a student's network names as its last.

    Raises:
        UsageError: the network names none.
    """
    net = getattr(student, "net", student)
    weight = getattr(net, "last_weight", None)
    if weight is None:
        raise UsageError(
            f"{type(net).__name__} has no last_weight, at which terms are weighed; give it that "
            "attribute: the weight (a Parameter) of its last layer"
        )
    return weight


def weighed(
    terms: Mapping[str, Tensor],
    limits: Mapping[str, tuple[float, float]],
    student: AbstractDenoiser,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weigh all terms but the first, so that their gradients are as large as its own.

    Args:
        terms: scalars by name; they can still be back-propagated afterwards.
        limits: the least and the largest weight, by name.
        student: its :func:`last_weight` is where gradients are compared.

    Returns:
        The terms, and the weights by name.
    """
    at = last_weight(student)
    grads = {k: torch.autograd.grad(v, at, retain_graph=True)[0] for k, v in terms.items()}
    sizes = {name: grad.norm() for name, grad in grads.items()}
    first, *others = terms
    weights = {k: (sizes[first] / (sizes[k] + 1e-4)).clamp(*limits[k]) for k in others}
    scaled = {name: weight * terms[name] for name, weight in weights.items()}
    return {first: terms[first], **scaled}, {f"{k}_weight": v for k, v in weights.items()}
