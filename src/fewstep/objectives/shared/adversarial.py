"""Adversarial terms of losses, and weights that make the gradients of terms equally large."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.core import UsageError
from fewstep.models import AbstractDenoiser, adapted_layers


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


def last_weight(student: AbstractDenoiser) -> Tensor:
    """Return the weight that a student's network names as its last, or its adapter's outer one.

    A gradient at the outer matrix of an adapter is the gradient at the frozen weight, projected
    once, so that the sizes of two terms are compared there too.

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
    adapted = (layer for layer in adapted_layers(net).values() if layer.weight is weight)
    return next((layer.adapter.up.weight for layer in adapted), weight)


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
    if not at.requires_grad:
        raise UsageError(
            "terms are weighed by gradients at the network's last weight, which is frozen here; "
            "let its last layer learn (--lora-targets must name it, too)"
        )
    grads = {k: torch.autograd.grad(v, at, retain_graph=True)[0] for k, v in terms.items()}
    sizes = {name: grad.norm() for name, grad in grads.items()}
    first, *others = terms
    weights = {k: (sizes[first] / (sizes[k] + 1e-4)).clamp(*limits[k]) for k in others}
    scaled = {name: weight * terms[name] for name, weight in weights.items()}
    return {first: terms[first], **scaled}, {f"{k}_weight": v for k, v in weights.items()}
