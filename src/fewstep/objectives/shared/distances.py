"""Distances between two batches of samples, ``(b,)``, which several methods share.

Each is a mean over the sample, except where its paper has something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import UsageError, per_sample
from fewstep.paths import Event

Distance = Callable[[Event, Event, Tensor | None], Tensor]
"""A function from two batches of samples and a mask to ``(b,)``."""


def l1(a: Event, b: Event, mask: Tensor | None = None) -> Tensor:
    """Compute the mean absolute difference."""
    return per_sample((a - b).abs(), mask)


def l2(a: Event, b: Event, mask: Tensor | None = None) -> Tensor:
    """Compute the mean squared difference."""
    return per_sample((a - b) ** 2, mask)


def l2_at_32(a: Event, b: Event, mask: Tensor | None = None) -> Tensor:
    """Compute the mean squared difference of images resized to 32 x 32 (OpenAI's "l2-32")."""
    _no_mask(mask)
    a, b = (F.interpolate(x, size=(32, 32), mode="bilinear") for x in (a, b))
    return per_sample((a - b) ** 2)


@dataclass(frozen=True)
class PseudoHuber:
    r"""$\sqrt{\|a - b\|^2 + c^2} - c$ of the whole sample (Song & Dhariwal 2024, eq. 7).

    Args:
        c: in units of the norm of a whole sample. ``None`` is the paper's 0.00054 sqrt(d), and 0
            the plain norm (ECT), whose gradient is 0 where the two samples are equal.
    """

    c: float | None = None

    def __call__(self, a: Event, b: Event, mask: Tensor | None = None) -> Tensor:
        """Compute the distances ``(b,)``; the norm is a sum over the sample, not a mean."""
        c = 0.00054 * a[0].numel() ** 0.5 if self.c is None else self.c
        square = ((a - b) ** 2 if mask is None else (a - b) ** 2 * mask).flatten(1).sum(1)
        if c == 0:  # the root has no derivative at 0
            return torch.where(square > 0, square, torch.ones_like(square)).sqrt() * (square > 0)
        return (square + c**2).sqrt() - c


@dataclass(frozen=True)
class Huber:
    r"""The mean of $\sqrt{(a - b)^2 + c^2} - c$ over the elements of a sample (LCM, PCM).

    Args:
        c: in units of one element.
    """

    c: float = 0.001

    def __call__(self, a: Event, b: Event, mask: Tensor | None = None) -> Tensor:
        """Compute the distances ``(b,)``."""
        return per_sample(((a - b) ** 2 + self.c**2).sqrt() - self.c, mask)


@dataclass(frozen=True)
class ElementwisePseudo:
    r"""The mean of $\sqrt{(a - b)^4 + c^2} - c$ over the elements (code of Consistency Policy).

    It is almost the squared difference, which it equals at c = 0.

    Args:
        c: in units of one element's square. ``None`` is 0.00054 sqrt(d) of a whole sample.
    """

    c: float | None = 0.0

    def __call__(self, a: Event, b: Event, mask: Tensor | None = None) -> Tensor:
        """Compute the distances ``(b,)``."""
        c = 0.00054 * a[0].numel() ** 0.5 if self.c is None else self.c
        square = (a - b) ** 2
        return per_sample(square if c == 0 else (square**2 + c**2).sqrt() - c, mask)


class Perceptual(nn.Module):
    """Distance in the features of a frozen network.

    Each feature map is normalised to unit length over its channels, as LPIPS does with heads of
    ones; squared differences are averaged over positions and summed over maps. :class:`LPIPS` is
    the true one.

    Args:
        features: images ``(b, c, h, w)`` in [-1, 1] to a list of maps ``(b, f, *space)``.
        size: images with a shorter side, in pixels, are enlarged to it (bilinear) first; OpenAI's
            code takes 224 for images under 256.
    """

    def __init__(self, features: nn.Module, size: int | None = None) -> None:
        super().__init__()
        self.features = features.eval().requires_grad_(False)
        self.size = size

    def forward(self, a: Event, b: Event, mask: Tensor | None = None) -> Tensor:
        """Compute the distances ``(b,)``."""
        _no_mask(mask)
        maps = zip(self._maps(a), self._maps(b), strict=True)
        return torch.stack([_channel_distance(f, g) for f, g in maps]).sum(0)

    def _maps(self, x: Event) -> list[Tensor]:
        return self.features(_enlarged(x, self.size))


class LPIPS(nn.Module):
    """True LPIPS as a distance.

    Args:
        network: ``lpips.LPIPS(net="vgg")`` (extra ``lpips``), which is frozen here.
        size: images with a shorter side, in pixels, are enlarged to it first, as in OpenAI's code.
    """

    def __init__(self, network: nn.Module, size: int = 224) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.size = size

    def forward(self, a: Event, b: Event, mask: Tensor | None = None) -> Tensor:
        """Compute the distances ``(b,)``."""
        _no_mask(mask)
        return self.network(_enlarged(a, self.size), _enlarged(b, self.size)).flatten()


def _no_mask(mask: Tensor | None) -> None:
    if mask is not None:
        raise UsageError("this distance mixes positions and cannot leave out masked ones; take l2")


def _enlarged(x: Event, size: int | None) -> Tensor:
    if size is None or min(x.shape[-2:]) >= size:
        return x
    return F.interpolate(x, size=(size, size), mode="bilinear")


def _channel_distance(f: Tensor, g: Tensor) -> Tensor:
    f, g = (F.normalize(m.flatten(2), dim=1, eps=1e-10) for m in (f, g))
    return ((f - g) ** 2).sum(1).mean(1)
