"""What the recipes of several methods share: distances, a generator's parts, settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypedDict

from fewstep.errors import UsageError
from fewstep.recipes.options import DistanceName

if TYPE_CHECKING:
    from fewstep.models import AbstractDenoiser, Denoiser, FeatureDiscriminator
    from fewstep.objectives.shared.discrete import PairWeight
    from fewstep.objectives.shared.distances import Distance
    from fewstep.objectives.shared.matching import FewSteps
    from fewstep.objectives.shared.weights import SnrWeight
    from fewstep.paths import Path, Trig
    from fewstep.recipes.start import Start
    from fewstep.times import KarrasIndex

Features = Literal["fake", "teacher"]

# Settings.

LEVELS: Mapping[str, object] = {"level": 1.5, "highest": 5.0, "critic_updates": 2}
"""In minutes, a generator does not learn to start from almost nothing but noise."""

CHASED: Mapping[str, object] = {"batch": 64, "lr": 5e-4, "betas": (0.0, 0.999)}
"""With momentum, generators that face a discriminator fall behind; the others do not mind."""

CONTINUOUS: Mapping[str, object] = {"lr": 1e-4}
"""Larger steps of a derivative's bootstrap diverge on networks of minutes."""

RADAM: Mapping[str, object] = {"optimizer": "radam"}
ADAMW: Mapping[str, object] = {"optimizer": "adamw", "weight_decay": 0.01, "clip": 10.0}
NO_MOMENTUM: Mapping[str, object] = {"betas": (0.0, 0.999)}
ITSELF: Mapping[str, object] = {"flip": False, "rates": (0.0,)}
"""The student is delivered, and no average of it."""

HALF_LIFE: Mapping[str, object] = {"flip": False, "rates": (), "half_life": 0.5e6, "dropout": 0.13}


# Parts.


def distance(name: DistanceName, c: float | None = None) -> Distance:
    """The distance of that name.

    Args:
        name: lpips needs the extra of that name.
        c: constant of pseudo-huber.

    Raises:
        UsageError: the extra is not installed.
    """
    from fewstep.objectives.shared.distances import LPIPS, PseudoHuber, l1, l2

    if name != "lpips":
        return {"l1": l1, "l2": l2, "pseudo-huber": PseudoHuber(c)}[name]
    try:
        from lpips import LPIPS as Network  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            "distance=lpips needs the extra, pip install 'fewstep[lpips]'; or choose l2, l1 or "
            "pseudo-huber"
        ) from error
    return LPIPS(Network(net="vgg", verbose=False))


def per_root_dimension(c: float, start: Start) -> float:
    """A pseudo-Huber constant that is given over the root of the sample's dimension."""
    return c * math.prod(start.data.shape) ** 0.5


def pair_weight(start: Start, path: Path, edm: bool) -> PairWeight:
    """EDM's weight of the later time, 1/t^2 + 1/sigma_data^2, or 1/(t - r)."""
    from fewstep.objectives.shared.discrete import inverse_gap
    from fewstep.objectives.shared.weights import karras_weight

    snr = karras_weight(start.sigma_data)
    return (lambda t, r: snr(path.snr(t))) if edm else inverse_gap


def trig(start: Start) -> Trig:
    """The trigonometric path from clean data to the teacher's highest noise level."""
    from fewstep.paths import Trig

    sigma_data = start.sigma_data
    return Trig(t_max=math.atan(start.levels.t_max / sigma_data), sigma_data=sigma_data)


def discriminator(start: Start, path: Path, weight: float) -> FeatureDiscriminator | None:
    """A discriminator on the teacher's features for a term of that weight; none at weight 0."""
    if not weight >= 0:
        raise UsageError(f"adversarial is a weight, 0 or more, got {weight}; 0 leaves it out")
    return start.discriminator(path) if weight else None


class Generator(TypedDict):
    """What the objectives of distribution matching share, as keyword arguments."""

    teacher: AbstractDenoiser
    generate: FewSteps
    weight: SnrWeight
    times: KarrasIndex
    critic_times: KarrasIndex


def generator(
    start: Start, steps: int, level: float | None, highest: float | None
) -> tuple[Denoiser, Generator]:
    """The student, and what distribution matching needs beside it and the fake denoiser.

    Args:
        start: of the run.
        steps: network calls of a sample.
        level: noise level that the generator starts from; None is the teacher's highest.
        highest: noise level up to which scores are compared; None is the teacher's highest.
    """
    from fewstep.objectives.shared.matching import FewSteps
    from fewstep.objectives.shared.weights import karras_weight
    from fewstep.paths import VarianceExploding
    from fewstep.times import KarrasIndex

    own = start.levels
    first: float = own.t_max if level is None else level
    top: float = own.t_max if highest is None else highest
    if not own.t_min < min(first, top) <= max(first, top) <= own.t_max:
        raise UsageError(
            f"noise levels must lie above {own.t_min} and be {own.t_max} at most, got "
            f"{first} and {top}"
        )
    # Noised again, an answer counts as clean data, in training as in sampling.
    path = VarianceExploding(0.0, own.t_max)
    # From a lower level on, the later times keep their places on a logarithmic scale.
    low, share = own.t_min, math.log(first / own.t_min) / math.log(own.t_max / own.t_min)
    times = (first, *(low * (t / low) ** share for t in start.times(path, steps)[1:]))
    return start.student(path), {
        "teacher": start.teacher_on(path),
        "generate": FewSteps(times),
        "weight": karras_weight(start.sigma_data),
        "times": KarrasIndex(t_min=own.t_min, t_max=top),
        "critic_times": KarrasIndex(0, 999, t_min=own.t_min, t_max=top),
    }


# Checks.


def at_least(name: str, value: int, least: int) -> None:
    """Refuse a number that is too small."""
    if value < least:
        raise UsageError(f"{name} must be at least {least}, got {value}")


def share(name: str, value: float) -> None:
    """Refuse what lies outside [0, 1)."""
    if not 0 <= value < 1:
        raise UsageError(f"{name} must lie in [0, 1), got {value}")
