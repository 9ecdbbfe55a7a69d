"""How imported models are sampled: preconditioning and contract by what their outputs mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import ValidationError

from fewstep.conditions import Condition, Label
from fewstep.contract import Contract, DataSpec, Guidance, Sampling, Start
from fewstep.errors import UsageError
from fewstep.importing.options import ImportOptions
from fewstep.models.preconditioning import EDM, ConsistencyBoundary, Preconditioning
from fewstep.paths import Path, VarianceExploding

Kind = Literal["renoise", "deterministic", "gamma", "ode"]

METHODS: dict[str, tuple[str, Kind]] = {
    "edm": ("edm", "ode"),
    "ddpm-linear": ("edm", "ode"),
    "ddpm-cosine": ("edm", "ode"),
    "flow-reversed": ("flow_matching", "ode"),
    "flow": ("flow_matching", "ode"),
    "consistency": ("consistency", "renoise"),
    "consistency-plain": ("consistency", "renoise"),
    "meanflow": ("meanflow", "deterministic"),
    "ctm": ("ctm", "gamma"),
}
"""The method and the kind of sampling of each reading; networks of two times have the last two."""


@dataclass(frozen=True)
class Levels:
    """Noise levels of a Karras-style model; an option of the user comes before the file's number.

    Args:
        sigma_data: standard deviation of the data.
        sigma_min: the lowest level.
        sigma_max: the highest level.
    """

    sigma_data: float
    sigma_min: float
    sigma_max: float

    def given(self, options: ImportOptions) -> Levels:
        """These levels, where the user gives no others.

        Raises:
            UsageError: the lowest is not below the highest.
        """
        levels = Levels(
            options.sigma_data or self.sigma_data,
            options.sigma_min or self.sigma_min,
            options.sigma_max or self.sigma_max,
        )
        if not 0 <= levels.sigma_min < levels.sigma_max:
            raise UsageError(
                f"noise levels must run from low to high, got {levels.sigma_min} to "
                f"{levels.sigma_max}; give --sigma-min and --sigma-max"
            )
        return levels


def karras_scalings(reading: str, levels: Levels, time_scale: float) -> Preconditioning:
    """EDM's scalings, or those of a consistency model with its boundary."""
    path = VarianceExploding(levels.sigma_min, levels.sigma_max)
    kind = ConsistencyBoundary if reading == "consistency" else EDM
    return kind(sigma_data=levels.sigma_data, time_scale=time_scale, path=path)


def contract_of(
    reading: str,
    path: Path,
    shape: tuple[int, ...],
    classes: int,
    options: ImportOptions,
    *,
    latent: bool = False,
    guided: bool = False,
) -> Contract:
    """The contract of a model.

    Args:
        reading: what the network's output means.
        path: on which the model lives.
        shape: of a sample.
        classes: number of classes, 0 for none.
        options: names of the classes.
        latent: whether samples have no range.
        guided: whether training left out the label for a share of the samples.

    Raises:
        UsageError: the names do not fit the classes.
    """
    names = options.class_names
    if names is not None and len(names) != classes:
        raise UsageError(f"--class-names gives {len(names)} names, the model has {classes} classes")
    try:
        label: dict[str, Condition] = {}
        if classes:
            label["label"] = Label(classes=classes, names=names)
        data = DataSpec(
            shape=shape,
            range=None if latent or options.latent else (-1.0, 1.0),
            conditions=label,
        )
    except ValidationError as error:
        raise UsageError("; ".join(e["msg"] for e in error.errors())) from error
    method, kind = METHODS[reading]
    sampling = Sampling(
        start=Start(t=path.t_max, std=path.start_std()),
        kind=kind,
        times={} if kind == "ode" else {1: (path.t_max,)},
        any_times=True,
        grid="uniform" if reading.startswith(("ddpm", "flow")) else "karras",
        guidance=Guidance() if guided and classes else None,
        gamma=0.0 if kind == "gamma" else None,
    )
    return Contract(method=method, data=data, sampling=sampling)
