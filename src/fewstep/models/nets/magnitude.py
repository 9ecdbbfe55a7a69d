"""Layers that keep magnitudes: unit variance in, unit variance out (Karras et al. 2024, app. B)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import normal, uniform


def normalise(x: Tensor, dims: int | tuple[int, ...], eps: float = 1e-4) -> Tensor:
    """``x`` over its root mean square along ``dims``, which is taken in float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=wide)
    # Of the sizes without the batch: an exported graph would fix what a whole count depends on.
    share = norm.shape[1:].numel() / x.shape[1:].numel()
    return x / (eps + norm * math.sqrt(share)).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU over its root mean square on unit normals (eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """From ``a`` (t = 0) to ``b`` (t = 1) without loss of variance (eq. 88)."""
    return a.lerp(b, t) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Channels of both, in which ``b`` counts ``t`` however many channels it has (eq. 103)."""
    n_a, n_b = a.shape[1], b.shape[1]
    scale = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (scale * (1 - t) / math.sqrt(n_a)), b * (scale * t / n_b**0.5)], dim=1)


class MPFourier(nn.Module):
    """Cosines of random frequencies and phases, which are data and travel with the weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", normal(channels, scale=2 * math.pi))
        self.register_buffer("phases", uniform(channels, scale=2 * math.pi))

    def forward(self, t_B: Tensor) -> Tensor:
        """``(b, channels)``, of unit variance (eq. 75)."""
        frequencies, phases = (self.get_buffer(n).to(t_B.dtype) for n in ("frequencies", "phases"))
        return math.sqrt(2) * (t_B.outer(frequencies) + phases).cos()


class MPConv(nn.Module):
    """A convolution (or with ``kernel`` 0 a linear map) by normalised weights, without bias.

    Gradients pass through the normalisation, and so are tangent to the weights' spheres.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int = 0) -> None:
        super().__init__()
        sides = (kernel, kernel) if kernel else ()
        self.weight = nn.Parameter(normal(c_out, c_in, *sides))
        if not self.weight.is_meta:
            self.normalise_weights()

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """``(b, c_out, ...)``, times ``gain`` (eq. 47)."""
        weight = self.weight
        scale = gain / math.sqrt(weight[0].numel())
        weight = (normalise(weight, (*range(1, weight.ndim),)) * scale).to(x.dtype)
        if weight.ndim == 2:
            return x @ weight.T
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    @torch.no_grad()
    def normalise_weights(self) -> None:
        """Put each output's n weights back on the sphere of radius sqrt(n) (eq. 66)."""
        self.weight.copy_(normalise(self.weight, (*range(1, self.weight.ndim),)))
