"""Folders of diffusers: pipelines around a ``UNet2DModel``, or the network alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.errors import UsageError
from fewstep.importing.architectures.diffusers import diffusers_unet
from fewstep.importing.archives import Archive, read_json
from fewstep.importing.contracts import Levels, contract_of, karras_scalings
from fewstep.importing.fitting import fit
from fewstep.importing.folders import network_folder, read_config, read_weights
from fewstep.importing.formats import Format
from fewstep.importing.options import ImportOptions
from fewstep.importing.report import Report
from fewstep.importing.result import Imported
from fewstep.model import Model
from fewstep.models import (
    DataPrediction,
    Denoiser,
    NearestStep,
    NoisePrediction,
    Preconditioning,
    VPrediction,
)
from fewstep.paths import DiscreteVariancePreserving, VarianceExploding

CONSISTENCY = "CMStochasticIterativeScheduler"
KARRAS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
STEPS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)
PREDICTIONS = {"epsilon": NoisePrediction, "sample": DataPrediction, "v_prediction": VPrediction}


def recognise(archive: Archive) -> bool:
    """Whether it is a folder with a network's description."""
    return archive.kind == "folder" and bool(
        {"model_index.json", "config.json"} & {*archive.content}
    )


def read(archive: Archive, options: ImportOptions) -> Imported:
    """The model."""
    root = archive.source
    folder = network_folder(root)
    config = read_config(folder, "config.json", "UNet2DModel")
    scheduler = root / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        if options.reading is not None:
            raise UsageError(
                f"{root} has a scheduler, which says what the network's output means; leave out "
                f"--as {options.reading}"
            )
        reading, scalings = scheduled(read_json(scheduler), options)
    else:
        reading, scalings = alone(archive, options)
    weights = read_weights(folder)
    description, tensors = diffusers_unet(config, weights.tensors)
    shape, classes = tuple(description.spec["shape"]), int(description.spec["classes"])
    contract = contract_of(reading, scalings.path, shape, classes, options)
    network = fit(description, tensors, weights.source, weights.size)
    report = Report(
        format=f"diffusers' UNet2DModel, as {reading}",
        used={theirs: target.name for theirs, target in description.targets.items()},
        notes=description.notes,
    )
    return Imported(Model(Denoiser(network, scalings), contract), report)


def alone(archive: Archive, options: ImportOptions) -> tuple[str, Preconditioning]:
    """What a network means that has no scheduler beside it."""
    if options.reading is None or options.reading == "flow-reversed":
        raise UsageError(
            f"{archive.source} has no scheduler, so nothing says what the network's output means; "
            "give --as consistency, edm, ddpm-linear or ddpm-cosine, or the folder of the pipeline"
        )
    if options.reading == "ddpm-linear":
        return options.reading, _discrete({"beta_schedule": "linear"}, options)[1]
    if options.reading == "ddpm-cosine":
        return options.reading, _discrete({"beta_schedule": "squaredcos_cap_v2"}, options)[1]
    scale = 0.25 if options.reading == "edm" else 250.0
    levels = Levels(0.5, 0.002, 80.0).given(options)
    return options.reading, karras_scalings(options.reading, levels, scale)


def scheduled(config: Mapping[str, Any], options: ImportOptions) -> tuple[str, Preconditioning]:
    """What a network means beside this scheduler.

    Raises:
        UsageError: the scheduler is another, or has a setting that cannot be read.
    """
    kind = config.get("_class_name")
    if kind == CONSISTENCY:
        return "consistency", karras_scalings("consistency", _levels(config, options), 250.0)
    if kind in KARRAS:
        if config.get("prediction_type", "epsilon") != "epsilon":
            raise UsageError(f"a {kind} with the prediction type epsilon can be imported, no other")
        return "edm", karras_scalings("edm", _levels(config, options), 0.25)
    if kind in STEPS:
        return _discrete(config, options)
    raise UsageError(
        f"the scheduler is a {kind!r:.100}; networks beside {', '.join((CONSISTENCY, *KARRAS))} "
        f"and {', '.join(STEPS)} can be imported"
    )


def _levels(config: Mapping[str, Any], options: ImportOptions) -> Levels:
    levels = Levels(
        _number(config, "sigma_data", 0.5),
        _number(config, "sigma_min", 0.002),
        _number(config, "sigma_max", 80.0),
    )
    return levels.given(options)


def _discrete(config: Mapping[str, Any], options: ImportOptions) -> tuple[str, Preconditioning]:
    """Steps of DDPM; the betas are those of the configuration."""
    steps = int(_number(config, "num_train_timesteps", 1000))
    prediction = str(config.get("prediction_type", "epsilon"))
    schedule = str(config.get("beta_schedule", "linear"))
    special = config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr")
    cosine = schedule == "squaredcos_cap_v2" and prediction == "epsilon"
    known = (schedule in {"linear", "scaled_linear"} and prediction in PREDICTIONS) or cosine
    if special or not known or not 2 <= steps <= 10_000:
        raise UsageError(
            f"the scheduler has {steps} steps, beta_schedule {schedule!r:.60}, prediction_type "
            f"{prediction!r:.60} and {'special' if special else 'no special'} betas; linear and "
            "scaled_linear with epsilon, sample and v_prediction, and squaredcos_cap_v2 with "
            "epsilon can be imported"
        )
    if cosine:
        levels = Levels(1.0, 0.0065, 80.0).given(options)
        path = VarianceExploding(levels.sigma_min, levels.sigma_max)
        return "ddpm-cosine", NearestStep(steps=steps, path=path)
    path = DiscreteVariancePreserving(
        t_max=steps - 1.0,
        steps=steps,
        beta_start=_number(config, "beta_start", 1e-4),
        beta_end=_number(config, "beta_end", 0.02),
        scaled_linear=schedule == "scaled_linear",
    )
    return "ddpm-linear", PREDICTIONS[prediction](time_scale=1.0, path=path)


def _number(config: Mapping[str, Any], name: str, usual: float) -> float:
    value = config.get(name, usual)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise UsageError(f"the scheduler's {name} is {value!r:.100}; expected a number above 0")
    return float(value)


FORMAT = Format("folders of diffusers", recognise, read)
