"""Schedulers of diffusers that read a network as one of the library's parametrisations does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fewstep.contract import Contract
from fewstep.errors import UsageError
from fewstep.exporting.unet2d import DOORS
from fewstep.models import (
    EDM,
    ConsistencyBoundary,
    DataPrediction,
    NearestStep,
    NoisePrediction,
    Preconditioning,
    VPrediction,
)
from fewstep.paths import DiscreteVariancePreserving, VarianceExploding
from fewstep.times import karras

POINTS = 40
"""Points of the grid of published consistency models, which is diffusers' default."""
MOST_POINTS = 1000
CLOSE = 1e-3
"""Largest relative error of a noise level that is no reason for another grid; published levels
are rounded to as much."""
LADDER = 250.0
"""What ``CMStochasticIterativeScheduler`` multiplies ln(sigma) by; EDM's schedulers take 0.25."""
PREDICTIONS = {
    NoisePrediction: "epsilon",
    DataPrediction: "sample",
    VPrediction: "v_prediction",
}


@dataclass(frozen=True)
class Call:
    """How the stock pipeline samples in some number of steps.

    Args:
        timesteps: positions on the scheduler's grid, descending; the last is 0.
        sigmas: noise levels of these positions, descending.
        wanted: noise levels at which the model itself is sampled in so many steps.
    """

    timesteps: tuple[int, ...]
    sigmas: tuple[float, ...]
    wanted: tuple[float, ...]

    @property
    def error(self) -> float:
        """The largest relative difference of a noise level from the model's own."""
        pairs = zip(self.sigmas, self.wanted, strict=True)
        return max(abs(sigma / wanted - 1) for sigma, wanted in pairs)


def scheduler_of(scalings: Preconditioning, contract: Contract) -> dict[str, Any]:
    """The scheduler's configuration.

    Args:
        scalings: of the denoiser.
        contract: of the model.

    Raises:
        UsageError: no scheduler of diffusers reads a network so.
    """
    kind = contract.sampling.kind
    if kind == "renoise":
        return _consistency(scalings, contract)
    if kind != "ode":
        raise UsageError(
            f"diffusers' schedulers for UNet2DModel sample consistency models and diffusion "
            f"models; this {contract.method} model is sampled otherwise ({kind}); {DOORS}"
        )
    if isinstance(scalings, EDM):
        _check_levels(scalings, contract, 0.25, "EDMEulerScheduler")
        return {"_class_name": "EDMEulerScheduler", **_levels(scalings), "rho": 7.0}
    return _ddpm(scalings)


def _consistency(scalings: Preconditioning, contract: Contract) -> dict[str, Any]:
    name = "CMStochasticIterativeScheduler"
    if not isinstance(scalings, ConsistencyBoundary):
        raise UsageError(
            f"{name} has the scalings of ConsistencyBoundary, this model has those of "
            f"{type(scalings).__name__}; {DOORS}"
        )
    _check_levels(scalings, contract, LADDER, name)
    if contract.data.range != (-1.0, 1.0):
        raise UsageError(
            "ConsistencyModelPipeline makes pictures of samples between -1 and 1, this model's "
            f"range is {contract.data.range}; {DOORS}"
        )
    low, high = scalings.path.t_min, scalings.path.t_max
    times = [own for own in contract.sampling.times.values() if len(own) > 1]
    return {
        "_class_name": name,
        "num_train_timesteps": points_for(times, low, high),
        **_levels(scalings),
        "sigma_min": finite_sigma_min(low),
        "rho": 7.0,
        "s_noise": 1.0,
        "clip_denoised": True,
    }


def _check_levels(
    scalings: EDM | ConsistencyBoundary, contract: Contract, ladder: float, name: str
) -> None:
    start, path = contract.sampling.start, scalings.path
    if scalings.time_scale != ladder:
        raise UsageError(
            f"{name} gives the network {ladder:g} ln(sigma), this network reads "
            f"{scalings.time_scale:g} ln(sigma); {DOORS}"
        )
    if type(path) is not VarianceExploding or start.t != path.t_max or start.std != path.t_max:
        raise UsageError(
            f"{name} starts from noise of its highest level on a variance-exploding path, this "
            f"model from a standard deviation of {start.std:g} at {start.t:g} on {path}; {DOORS}"
        )


def _levels(scalings: EDM | ConsistencyBoundary) -> dict[str, float]:
    path = scalings.path
    levels = {"sigma_min": path.t_min, "sigma_max": path.t_max}
    return {**levels, "sigma_data": scalings.sigma_data}


def _ddpm(scalings: Preconditioning) -> dict[str, Any]:
    """Steps of DDPM, which pass the network the number of the step."""
    common = {"_class_name": "DDPMScheduler", "clip_sample": False, "variance_type": "fixed_small"}
    if isinstance(scalings, NearestStep) and (scalings.ratio, scalings.offset) == (0.001, 0.008):
        return {
            **common,
            "num_train_timesteps": scalings.steps,
            "beta_schedule": "squaredcos_cap_v2",
            "prediction_type": "epsilon",
        }
    path = scalings.path
    if (
        not isinstance(scalings, NoisePrediction | DataPrediction | VPrediction)
        or not isinstance(path, DiscreteVariancePreserving)
        or scalings.time_scale != 1
        or path.t_max != path.steps - 1
    ):
        raise UsageError(
            "diffusers has schedulers for EDM's scalings on noise levels, and for predictions of "
            "noise, data or v on a table of betas whose numbers the network reads; this model has "
            f"{scalings}; {DOORS}"
        )
    return {
        **common,
        "num_train_timesteps": path.steps,
        "beta_start": path.beta_start,
        "beta_end": path.beta_end,
        "beta_schedule": "scaled_linear" if path.scaled_linear else "linear",
        "prediction_type": PREDICTIONS[type(scalings)],
    }


def finite_sigma_min(low: float) -> float:
    """The lowest noise level, rounded to float32 where diffusers' last step needs that.

    That step adds noise of sqrt(float32(low)^2 - low^2), whose root is of a negative number, and
    the pictures NaN, for a quarter of all levels (diffusers 0.42.1).
    """
    rounded = torch.tensor(low, dtype=torch.float32)
    return low if bool(rounded**2 - low**2 >= 0) else float(rounded)


def points_for(times: Sequence[Sequence[float]], low: float, high: float) -> int:
    """The number of points of a grid on which noise levels lie.

    Args:
        times: noise levels of each number of steps, descending.
        low: the grid's lowest level.
        high: the grid's highest level.

    Returns:
        40 if all levels are within 0.1% of that grid; otherwise the number up to 1000 with the
        smallest error, the smallest of equal ones.
    """

    def error(points: int) -> float:
        calls = [call_for(own, points, low, high) for own in times]
        return max((1.0 if c is None else c.error for c in calls), default=0.0)

    if error(POINTS) <= CLOSE:
        return POINTS
    return min(range(2, MOST_POINTS + 1), key=lambda points: (round(error(points), 9), points))


def call_for(times: Sequence[float], points: int, low: float, high: float) -> Call | None:
    """The positions that are nearest to noise levels; None where two levels share one.

    Args:
        times: noise levels, descending from the highest of the grid.
        points: of the grid.
        low: the grid's lowest level.
        high: the grid's highest level.
    """
    grid = karras(points, low, high)
    wanted = torch.tensor(times, dtype=torch.float64)
    places = (grid.log()[None] - wanted.log()[:, None]).abs().argmin(1)
    if bool((places.diff() <= 0).any()):
        return None
    sigmas = tuple(grid[places].tolist())
    # The scheduler reads a list from its end.
    return Call(tuple(places.flip(0).tolist()), sigmas, tuple(times))
