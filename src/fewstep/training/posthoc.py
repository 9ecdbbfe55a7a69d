r"""Power-function averages of the weights and their reconstruction afterwards (EDM2).

Karras et al. 2024, section 3 and appendix C. A profile of exponent gamma averages the weights seen
so far as $p(\tau) = (\gamma + 1) \tau^\gamma / t^{\gamma + 1}$; its relative width is its standard
deviation over t. From stored averages of two widths the average of any other width, also one never
tracked, is their least-squares combination. Offsets are in samples seen, or in updates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fewstep.errors import UsageError

__all__ = [
    "PowerFunction",
    "edm2_learning_rate",
    "exponent_to_std",
    "posthoc_coefficients",
    "power_rate",
    "std_to_exponent",
]

Array = NDArray[np.float64]

WIDEST = 12**-0.5
"""The relative width of the flat average of everything seen, gamma = 0."""


def exponent_to_std(exponent: ArrayLike) -> Array:
    """Relative width of a profile of exponent gamma."""
    gamma = np.asarray(exponent, np.float64)
    return np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))


def std_to_exponent(std: ArrayLike) -> Array:
    """The exponent gamma > 0 of a relative width: the largest root of its cubic.

    Raises:
        UsageError: a width outside (0, 1/sqrt(12)), the flat average's.
    """
    std = np.asarray(std, np.float64)
    if not np.all((std > 0) & (std < WIDEST)):
        raise UsageError(
            f"a power-function average has a relative width between 0 and {WIDEST:.4f}, that of "
            f"the average of everything, got {std.tolist()}; 0.05 and 0.1 are usual"
        )
    roots = [np.roots([1, 7, 16 - s**-2, 12 - s**-2]).real.max() for s in std.ravel()]
    return np.reshape(roots, std.shape)


def power_rate(std: ArrayLike, after: ArrayLike, step: ArrayLike) -> Array:
    """Rate at which the average is kept in the update that ends at ``after`` (eq. 3).

    Args:
        std: relative width.
        after: samples seen after the update; the first one's ``after`` is its ``step``, rate 0.
        step: samples of the update.
    """
    kept = 1 - np.asarray(step, np.float64) / np.asarray(after, np.float64)
    return kept ** (std_to_exponent(std) + 1)


@dataclass(frozen=True)
class PowerFunction:
    """The averaging rule of a relative width: a rule of :mod:`fewstep.training.averages`.

    With a constant batch, counting updates is counting samples. The first update copies the
    student, so the initial weights never count.

    Raises:
        UsageError: a width outside (0, 1/sqrt(12)).
    """

    std: float

    def __post_init__(self) -> None:
        std_to_exponent(self.std)

    @cached_property
    def exponent(self) -> float:
        """Its gamma."""
        return float(std_to_exponent(self.std))

    def __call__(self, updates: int) -> float:
        """Rate of the next update after ``updates`` of them."""
        return (updates / (updates + 1)) ** (self.exponent + 1)


def posthoc_coefficients(
    in_offsets: ArrayLike, in_stds: ArrayLike, out_offsets: ArrayLike, out_stds: ArrayLike
) -> Array:
    """Weights of stored averages that come nearest to wanted ones.

    Each column sums to 1. The system is badly conditioned: sum the averages in float32 or wider.

    Args:
        in_offsets: when each stored average was taken, ``(n,)``.
        in_stds: their relative widths, ``(n,)``.
        out_offsets: the wanted ones' offsets, ``(m,)``, or the number of one.
        out_stds: their relative widths, likewise.

    Returns:
        ``(n, m)`` in float64.

    Raises:
        UsageError: offsets or widths that do not pair up, or stored averages that are not distinct.
    """
    in_t, in_gamma = _profiles("stored", in_offsets, in_stds)
    out_t, out_gamma = _profiles("wanted", out_offsets, out_stds)
    if len({*zip(in_t.tolist(), in_gamma.tolist(), strict=True)}) < len(in_t):
        raise UsageError("two stored averages have the same offset and width; give each once")
    gram = _inner(in_t[:, None], in_gamma[:, None], in_t, in_gamma)
    wanted = _inner(in_t[:, None], in_gamma[:, None], out_t, out_gamma)
    weights = np.linalg.solve(gram, wanted)
    return weights / weights.sum(axis=0)


def _profiles(which: str, offsets: ArrayLike, stds: ArrayLike) -> tuple[Array, Array]:
    t, std = (np.atleast_1d(np.asarray(v, np.float64)) for v in (offsets, stds))
    if t.shape != std.shape or t.ndim != 1 or not len(t) or not np.all(t > 0):
        raise UsageError(
            f"{which} averages need as many offsets above 0 as widths, got offsets {t.tolist()} "
            f"and widths {std.tolist()}"
        )
    return t, std_to_exponent(std)


def _inner(t: Array, gamma: Array, u: Array, delta: Array) -> Array:
    """Inner products of profiles; each is integrated up to the earlier of the two ends."""
    early = np.where(t < u, (t / u) ** delta, (u / t) ** gamma)
    return (gamma + 1) * (delta + 1) * early / ((gamma + delta + 1) * np.maximum(t, u))


def edm2_learning_rate(
    step: float, *, peak: float, decay_from: float, batch: int, warmup: float = 10e6
) -> float:
    """EDM2's inverse square root in the updates, under a linear rise in the samples.

    Args:
        step: updates made, counted from 0.
        peak: alpha_ref.
        decay_from: t_ref, the update at which the decay begins.
        batch: samples of an update.
        warmup: samples over which the rate rises from 0; 0 for none.
    """
    rise = min(step * batch / warmup, 1.0) if warmup else 1.0
    return peak * rise / math.sqrt(max(step / decay_from, 1.0))
