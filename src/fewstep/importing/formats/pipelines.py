"""Pipelines of diffusers that read texts: SD 1.5 and 2, SDXL, SD3 and Flux.

The network is diffusers' own class with the folder's weights, the autoencoder becomes the model's
``codec/`` and the text encoders its ``text/``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.contract import Contract, DataSpec, Guidance, Sampling, Start
from fewstep.errors import UsageError
from fewstep.frontends import Codec, Frontend
from fewstep.frontends.autoencoders import from_diffusers
from fewstep.frontends.encoders import Encoders, from_folder
from fewstep.importing.archives import Archive, read_json
from fewstep.importing.contracts import METHODS
from fewstep.importing.fitting import Description, Target, fit
from fewstep.importing.folders import read_weights
from fewstep.importing.formats import Format
from fewstep.importing.formats.diffusers import STEPS, scheduled
from fewstep.importing.options import ImportOptions
from fewstep.importing.report import Report
from fewstep.importing.result import Imported
from fewstep.model import Model
from fewstep.models import Denoiser, Flow, Preconditioning
from fewstep.models.nets.stock import FLUX, READERS, UNET, StockNetwork
from fewstep.paths import Linear

FLOW = "FlowMatchEulerDiscreteScheduler"

LATENTS = {FLUX: 128}
"""Height of latents where a configuration does not say: 1024 pixels, the pipeline's default."""

LOWEST, HIGHEST = -10.0, 10.0
"""Exponents of the factor by which times are shifted; those of Flux are 0.5 to 1.15."""

PLACES = ("unet", "transformer")
"""Folders in which pipelines have their network."""


def recognise(archive: Archive) -> bool:
    """Whether it is the folder of a pipeline around one of these networks, or of one of them."""
    return archive.kind == "folder" and _place(archive.source) is not None


def _place(root: Path) -> Path | None:
    for folder in (*(root / name for name in PLACES), root):
        path = folder / "config.json"
        if path.is_file():
            return folder if read_json(path).get("_class_name") in READERS else None
    return None


def read(archive: Archive, options: ImportOptions) -> Imported:
    """The model."""
    root, folder = archive.source, _place(archive.source)
    assert folder is not None
    refuse_parts(root, options)
    config = read_json(folder / "config.json")
    architecture = str(config["_class_name"])
    reading, scalings, flow = _scheduled(root, architecture, options)
    codec, text = from_diffusers(root / "vae"), from_folder(root)
    spec = {
        "kind": "diffusers",
        "architecture": architecture,
        "config": {k: v for k, v in config.items() if not k.startswith("_")},
        "factor": codec.factor,
        # The pipelines hide no padding of CLIP's tokens; T5 alone says which of its are there.
        **({"masked": True} if text.texts.family == "t5" and architecture == UNET else {}),
    }
    weights = read_weights(folder)
    targets = {name: Target(f"net.{name}") for name in weights.tensors}
    network = fit(Description(spec, targets), weights.tensors, weights.source, weights.size)
    assert isinstance(network, StockNetwork)
    _check(network, codec, text, root)
    shape = latent_shape(network, codec, options)
    data = DataSpec(shape=shape, range=None, conditions=text.conditions)
    method, kind = METHODS[reading]
    sampling = Sampling(
        start=Start(t=scalings.path.t_max, std=scalings.path.start_std(1.0)),
        kind=kind,
        any_times=True,
        grid="uniform",
        shift=_shift(flow, shape) if flow is not None else 1.0,
        guidance=Guidance(),
    )
    report = Report(
        format=f"diffusers' pipeline around a {architecture}, as {reading}",
        used={theirs: target.name for theirs, target in targets.items()},
        notes=(
            f"it makes latents of shape {shape}, which its codec decodes to images of shape "
            f"{codec.decoded_shape(shape)}, and reads prompts of at most {text.length} tokens",
        ),
    )
    contract = Contract(method=method, data=data, sampling=sampling)
    model = Model(Denoiser(network, scalings), contract, frontend=Frontend(codec, text))
    return Imported(model, report)


def refuse_parts(root: Path, options: ImportOptions) -> None:
    """Refuse a folder without the parts that every pipeline has.

    Raises:
        UsageError: one is missing, or the user says what the scheduler says.
    """
    if not (root / "vae" / "config.json").is_file():
        raise UsageError(
            f"{root} has no vae/, so nothing turns its latents into images; give the folder of the "
            "whole pipeline"
        )
    if options.reading is not None:
        raise UsageError(
            f"{root} has a scheduler, which says what the network's output means; leave out "
            f"--as {options.reading}"
        )
    if not (root / "scheduler" / "scheduler_config.json").is_file():
        raise UsageError(
            f"{root} has no scheduler/scheduler_config.json, which says what the network's output "
            "means; give the folder of the whole pipeline"
        )


def _scheduled(
    root: Path, architecture: str, options: ImportOptions
) -> tuple[str, Preconditioning, Mapping[str, Any] | None]:
    """What the output means, and the scheduler's settings where it is the velocity of a flow."""
    config = read_json(root / "scheduler" / "scheduler_config.json")
    name = config.get("_class_name")
    if name == FLOW:
        if config.get("invert_sigmas"):
            raise UsageError(f"the {FLOW} has invert_sigmas, whose times run the other way")
        steps = config.get("num_train_timesteps", 1000)
        if steps != 1000:
            raise UsageError(f"the {FLOW} has {steps!r:.60} steps, expected 1000")
        return "flow", Flow(time_scale=1000.0, path=Linear()), config
    if architecture != UNET or name not in STEPS:
        able = (FLOW,) if architecture != UNET else (*STEPS, FLOW)
        raise UsageError(
            f"the scheduler of {root} is a {name!r:.100}; a {architecture} can be imported beside "
            f"{', '.join(able)}"
        )
    reading, scalings = scheduled(config, options)
    if reading != "ddpm-linear":
        raise UsageError(
            f"the scheduler of {root} has the beta_schedule {config.get('beta_schedule')!r:.60}; "
            "linear and scaled_linear can be imported"
        )
    return reading, scalings, None


def _shift(config: Mapping[str, Any], shape: tuple[int, ...]) -> float:
    """The factor by which the scheduler shifts times, which depends on the size of pictures."""

    def number(name: str, usual: float) -> float:
        value = config.get(name, usual)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise UsageError(f"the scheduler's {name} is {value!r:.60}; expected a number above 0")
        return float(value)

    if not config.get("use_dynamic_shifting"):
        return number("shift", 1.0)
    tokens = shape[1] * shape[2] / 4
    low, high = number("base_image_seq_len", 256), number("max_image_seq_len", 4096)
    base, most = number("base_shift", 0.5), number("max_shift", 1.15)
    if low == high:
        raise UsageError(f"the scheduler's base_image_seq_len and max_image_seq_len are both {low}")
    mu = base + (tokens - low) * (most - base) / (high - low)
    linear = config.get("time_shift_type") == "linear"
    if not LOWEST < mu < HIGHEST or (linear and mu <= 0):
        raise UsageError(
            f"the scheduler shifts times by {mu:g} for {tokens:g} tokens, which leaves none apart"
        )
    return mu if linear else math.exp(mu)


def latent_shape(
    network: StockNetwork, codec: Codec, options: ImportOptions
) -> tuple[int, int, int]:
    """The shape of latents: of the size that the user gives, or the network's own.

    Raises:
        UsageError: no size is known, or none of whole latents.
    """
    size = network.options["config"].get("sample_size", LATENTS.get(network.architecture))
    sides = [size, size] if not isinstance(size, list) else size
    if options.resolution is not None:
        if options.resolution % codec.factor:
            raise UsageError(
                f"--resolution must be a multiple of {codec.factor}, got {options.resolution}"
            )
        sides = [options.resolution // codec.factor] * 2
    if len(sides) != 2 or not all(type(n) is int and n > 0 for n in sides):
        raise UsageError(f"the network's sample_size is {size!r:.60}; give --resolution in pixels")
    return (network.channels, sides[0], sides[1])


def _check(network: StockNetwork, codec: Codec, text: Encoders, root: Path) -> None:
    """Refuse parts that do not belong together, before the first call fails somewhere inside."""
    if network.channels != codec.channels:
        raise UsageError(
            f"{root}: the network makes latents of {network.channels} channels and the autoencoder "
            f"reads {codec.channels}; the two do not belong together"
        )
    own, made = network.net.config, text.conditions
    unread = {*network.cond_keys} - {key for n, one in made.items() for key in one.null(n)}
    if unread:
        raise UsageError(
            f"{root}: the network reads {', '.join(sorted(unread))}, which the text encoders of "
            f"the family {text.texts.family} do not make"
        )
    width = own.cross_attention_dim if network.architecture == UNET else own.joint_attention_dim
    wide = made["text"].null("text")["text"].shape[-1]
    if isinstance(width, int) and width != wide:
        raise UsageError(
            f"{root}: the network reads tokens of {width} numbers, the text encoders make {wide}"
        )


FORMAT = Format("pipelines of diffusers that read texts", recognise, read)
