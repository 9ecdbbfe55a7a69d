"""Files of DiT and SiT: state dicts, alone or as the average of a training state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.errors import UsageError
from fewstep.importing.architectures.dit import dit
from fewstep.importing.archives import Archive
from fewstep.importing.choice import chosen
from fewstep.importing.contracts import contract_of
from fewstep.importing.fitting import fit
from fewstep.importing.formats import Format
from fewstep.importing.formats.openai import openai_scalings
from fewstep.importing.options import ImportOptions
from fewstep.importing.parts import plain_state
from fewstep.importing.report import Report
from fewstep.importing.result import Imported
from fewstep.importing.storages import Lazy
from fewstep.model import Model
from fewstep.models import Denoiser, ReversedFlow

WHOLE = "the file"
FIRST = "x_embedder.proj.weight"
LATENTS = (
    "published networks generate latents of the autoencoder sd-vae-ft; decode them with it, after "
    "dividing by 0.18215"
)


def recognise(archive: Archive) -> bool:
    """Whether it holds a state dict with the names of DiT."""
    return bool(_networks(archive.content))


def read(archive: Archive, options: ImportOptions) -> Imported:
    """The model."""
    networks = _networks(archive.content)
    name = WHOLE if [*networks] == [WHOLE] and options.weights is None else None
    name = name or chosen([*networks], options, archive.source)
    if options.reading not in {"ddpm-linear", "flow-reversed"}:
        raise UsageError(
            f"{archive.source} has the network of DiT and SiT, and does not say which it is; give "
            "--as ddpm-linear (DiT, which predicts the noise) or --as flow-reversed (SiT, which "
            f"predicts a velocity on the linear path), got {options.reading}"
        )
    tensors = networks[name]
    description = dit(tensors, options)
    flow = options.reading == "flow-reversed"
    scalings = ReversedFlow() if flow else openai_scalings("ddpm-linear", options)
    shape, classes = tuple(description.spec["shape"]), int(description.spec["classes"])
    latent = shape[0] == 4
    contract = contract_of(
        options.reading, scalings.path, shape, classes, options, latent=latent, guided=True
    )
    network = fit(description, tensors, archive.source, archive.size)
    report = Report(
        format=f"{'SiT' if flow else 'DiT'}, {name}",
        used={theirs: target.name for theirs, target in description.targets.items()},
        notes=(*description.notes, *((LATENTS,) if latent else ())),
    )
    return Imported(Model(Denoiser(network, scalings), contract), report)


def _networks(content: Any) -> dict[str, Mapping[str, Lazy]]:
    whole = plain_state(content)
    if whole is not None:
        return {WHOLE: whole} if FIRST in whole else {}
    if not isinstance(content, dict):
        return {}
    states = {str(name): plain_state(value) for name, value in content.items()}
    return {name: state for name, state in states.items() if state is not None and FIRST in state}


FORMAT = Format("files of DiT and SiT", recognise, read)
