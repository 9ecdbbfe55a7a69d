"""``DiTPipeline`` of diffusers: a transformer that reads a class, and an autoencoder.

The network is diffusers' own class: its time embedding has other frequencies than DiT's authors'.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.conditions import Label
from fewstep.contract import Contract, DataSpec, Guidance, Sampling, Start
from fewstep.errors import UsageError
from fewstep.frontends import Frontend
from fewstep.frontends.autoencoders import from_diffusers
from fewstep.frontends.stock import built
from fewstep.importing.archives import Archive, read_json
from fewstep.importing.contracts import METHODS
from fewstep.importing.fitting import Description, Target, fit
from fewstep.importing.folders import read_weights
from fewstep.importing.formats import Format
from fewstep.importing.formats.diffusers import scheduled
from fewstep.importing.formats.pipelines import latent_shape, refuse_parts
from fewstep.importing.options import ImportOptions
from fewstep.importing.report import Report
from fewstep.importing.result import Imported
from fewstep.importing.storages import Lazy
from fewstep.model import Model
from fewstep.models import Denoiser
from fewstep.models.nets.stock import DIT, POSITIONS, StockNetwork

LARGEST = 1024
"""Height of latents, beyond any published network's."""
VARIANCE = "the network's learned variance is left out of its answers"


def recognise(archive: Archive) -> bool:
    """Whether it is the folder of such a pipeline, or of its network."""
    return archive.kind == "folder" and _place(archive.source) is not None


def _place(root: Path) -> Path | None:
    for folder in (root / "transformer", root):
        path = folder / "config.json"
        if path.is_file():
            return folder if read_json(path).get("_class_name") == DIT else None
    return None


def read(archive: Archive, options: ImportOptions) -> Imported:
    """The model."""
    root, folder = archive.source, _place(archive.source)
    assert folder is not None
    refuse_parts(root, options)
    reading, scalings = scheduled(read_json(root / "scheduler" / "scheduler_config.json"), options)
    if reading != "ddpm-linear":
        raise UsageError(
            f"the scheduler of {root} is one of {reading}; a {DIT} can be imported beside those of "
            "DDPM's betas, linear and scaled_linear"
        )
    codec = from_diffusers(root / "vae")
    config = {k: v for k, v in read_json(folder / "config.json").items() if not k.startswith("_")}
    weights, positions = read_weights(folder), _positions(config)
    tensors = {**weights.tensors, POSITIONS: positions}
    targets = {name: Target(f"net.{name}") for name in tensors}
    spec = {
        "kind": "diffusers",
        "architecture": DIT,
        "config": config,
        "factor": codec.factor,
    }
    size = weights.size + positions.nbytes
    network = fit(Description(spec, targets), tensors, weights.source, size)
    assert isinstance(network, StockNetwork)
    own = network.net.config
    if network.channels != codec.channels:
        raise UsageError(
            f"{root}: the network makes latents of {network.channels} channels and the autoencoder "
            f"reads {codec.channels}; the two do not belong together"
        )
    shape, path = latent_shape(network, codec, options), scalings.path
    names, note = _names(root, own.num_embeds_ada_norm, options)
    label = Label(classes=own.num_embeds_ada_norm, names=names)
    method, kind = METHODS[reading]
    contract = Contract(
        method=method,
        data=DataSpec(shape=shape, range=None, conditions={"label": label}),
        sampling=Sampling(
            start=Start(t=path.t_max, std=path.start_std(1.0)),
            kind=kind,
            any_times=True,
            grid="uniform",
            guidance=Guidance(),
        ),
    )
    notes = (
        f"it makes latents of shape {shape}, which its codec decodes to images of shape "
        f"{codec.decoded_shape(shape)}",
        *((VARIANCE,) if own.out_channels == 2 * own.in_channels else ()),
        *note,
    )
    report = Report(
        format=f"diffusers' pipeline around a {DIT}, as {reading}",
        used={theirs: targets[theirs].name for theirs in weights.tensors},
        notes=notes,
    )
    model = Model(Denoiser(network, scalings), contract, frontend=Frontend(codec))
    return Imported(model, report)


def _positions(config: Mapping[str, Any]) -> Lazy:
    """The sinusoids that the network's class computes, and that no file holds."""
    with torch.device("meta"):
        net: Any = built(DIT, (DIT,), config, (POSITIONS,))
    own, shape = net.config, tuple(net.pos_embed.pos_embed.shape)
    if not isinstance(own.sample_size, int) or own.sample_size > LARGEST:
        raise UsageError(
            f"the network's sample_size is {own.sample_size!r:.60}; expected at most {LARGEST}"
        )

    def load() -> Tensor:
        from diffusers.models.embeddings import get_2d_sincos_pos_embed

        side = own.sample_size // own.patch_size
        table = get_2d_sincos_pos_embed(shape[2], side, base_size=side, output_type="pt")
        return torch.as_tensor(table).float()[None]

    return Lazy(shape, torch.float32, load)


def _names(
    root: Path, classes: int, options: ImportOptions
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """The names of the classes, those of the pipeline if it has one for each, and what to note."""
    if (names := options.class_names) is not None:
        if len(names) != classes:
            raise UsageError(
                f"--class-names gives {len(names)} names, the model has {classes} classes"
            )
        return names, ()
    index = root / "model_index.json"
    given = read_json(index).get("id2label") if index.is_file() else None
    if not isinstance(given, dict):
        return None, ()
    own = [given.get(str(i)) for i in range(classes)]
    listed = tuple(name for name in own if isinstance(name, str) and name)
    if len({*listed}) == classes:
        return listed, ()
    return None, ("the pipeline's names of classes are not one for each and are left out",)


FORMAT = Format("pipelines of diffusers that read a class", recognise, read)
