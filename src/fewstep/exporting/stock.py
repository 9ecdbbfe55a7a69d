"""Folders that diffusers loads without code of this library: a network, a scheduler and a card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from fewstep.engines.check import largest_error
from fewstep.errors import UsageError
from fewstep.exporting.card import write_notes
from fewstep.exporting.schedulers import Call, call_for, scheduler_of
from fewstep.exporting.stock_card import stock_card
from fewstep.exporting.unet2d import DOORS, unet2d
from fewstep.importing import import_checkpoint
from fewstep.model import Model
from fewstep.models import Denoiser
from fewstep.system.files import whole_folder
from fewstep.version import __version__

VERSION = "0.30.0"
"""The oldest version of diffusers that has everything that the folder names."""
PIPELINES = {
    "CMStochasticIterativeScheduler": "ConsistencyModelPipeline",
    "DDPMScheduler": "DDPMPipeline",
}
OFTEN = (1, 2, 4)
"""Numbers of steps that a model which allows any times is often sampled in."""


def export_folder(model: Model, out: Path) -> float:
    """Write a model as diffusers' ``UNet2DModel`` and scheduler, and read it back.

    Args:
        model: on the CPU.
        out: the folder, which is written whole or not at all.

    Returns:
        The largest difference between the model's answers and those of the model that
        :func:`~fewstep.importing.import_checkpoint` reads from the folder, in the data's unit.

    Raises:
        UsageError: diffusers has no class that computes what the model computes.
    """
    if type(model.denoiser) is not Denoiser:
        raise UsageError(
            f"this model is a {type(model.denoiser).__name__}, diffusers' pipelines around "
            f"UNet2DModel have one network and no more; {DOORS}"
        )
    scheduler = scheduler_of(model.denoiser.preconditioning, model.contract)
    config, tensors = unet2d(model.denoiser.net)
    pipeline = pipeline_for(model, scheduler)
    content = {
        "format": "diffusers",
        "fewstep": __version__,
        "contract": model.contract.model_dump(mode="json"),
        "pipeline": pipeline,
        "scheduler": scheduler["_class_name"],
        "calls": said(calls_of(model, scheduler)),
    }
    with whole_folder(out) as folder:
        network = folder / "unet" if pipeline else folder
        _write(network / "config.json", config)
        save_file(tensors, network / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        _write(folder / "scheduler" / "scheduler_config.json", scheduler)
        if pipeline:
            parts = {"unet": "UNet2DModel", "scheduler": scheduler["_class_name"]}
            index = {key: ["diffusers", name] for key, name in parts.items()}
            _write(folder / "model_index.json", {"_class_name": pipeline, **index})
        error = read_back(model, folder)
        write_notes(folder, {**content, "largest_error": error})
        text = stock_card(model, out, scheduler, pipeline, calls_of(model, scheduler))
        (folder / "README.md").write_text(text, encoding="utf-8")
    return error


def pipeline_for(model: Model, scheduler: Mapping[str, Any]) -> str | None:
    """The stock pipeline; None where diffusers has none that gives the network what it needs.

    Raises:
        UsageError: pictures of a consistency model are not square.
    """
    data, name = model.contract.data, scheduler["_class_name"]
    square = len({*data.shape[1:]}) == 1
    if name == "CMStochasticIterativeScheduler" and not square:
        raise UsageError(
            "ConsistencyModelPipeline makes square pictures, this model's samples are "
            f"{data.shape}; {DOORS}"
        )
    if name == "DDPMScheduler" and (data.labels or data.range != (-1.0, 1.0)):
        return None  # DDPMPipeline gives no labels, and makes pictures of its samples
    return PIPELINES.get(name)


def calls_of(model: Model, scheduler: Mapping[str, Any]) -> dict[int, Call | None]:
    """For numbers of steps of a consistency model, how the stock pipeline makes them."""
    if scheduler["_class_name"] != "CMStochasticIterativeScheduler":
        return {}
    sampling = model.contract.sampling
    counts = {*sampling.times, *(OFTEN if sampling.any_times else ())}
    points = scheduler["num_train_timesteps"]
    low, high = scheduler["sigma_min"], scheduler["sigma_max"]
    return {n: call_for(model.times(n), points, low, high) for n in sorted(counts)}


def said(calls: Mapping[int, Call | None]) -> dict[str, Any]:
    """The calls as JSON values."""
    return {
        str(steps): {
            "timesteps": call.timesteps,
            "sigmas": call.sigmas,
            "times": call.wanted,
            "relative_error": call.error,
        }
        for steps, call in calls.items()
        if call is not None
    }


def read_back(model: Model, folder: Path) -> float:
    """The largest difference to the answers of the model that an import of the folder gives.

    Raises:
        UsageError: they differ by more than an exported graph may.
    """
    other = import_checkpoint(folder).model.denoiser

    def session(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        given = {key: torch.from_numpy(value) for key, value in inputs.items()}
        x, t = given.pop("x"), given.pop("t")
        return other(x, t, None, given).numpy()

    return largest_error(model.denoiser.float(), model.contract, session)


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    known = {"_class_name": content["_class_name"], "_diffusers_version": VERSION}
    text = json.dumps({**known, **content}, indent=2) + "\n"
    file.write_text(text, encoding="utf-8")
