"""State dicts of consistency trajectory models (sony/ctm), on either of its two networks."""

from __future__ import annotations

from fewstep.errors import UsageError
from fewstep.importing.architectures.openai import openai_unet
from fewstep.importing.architectures.song import song
from fewstep.importing.archives import Archive
from fewstep.importing.contracts import Levels, contract_of, karras_scalings
from fewstep.importing.fitting import fit
from fewstep.importing.formats import Format
from fewstep.importing.options import ImportOptions
from fewstep.importing.parts import plain_state
from fewstep.importing.report import Report
from fewstep.importing.result import Imported
from fewstep.importing.storages import merged
from fewstep.model import Model
from fewstep.models import Denoiser

LEVELS = Levels(0.5, 0.002, 80.0)
"""Constants of CTM's scripts; flags of them may set others."""
PREFIX = "model."
ASSUMED = "read with CTM's inner scalings (edm) and outer jump (euler), as its scripts have them"


def recognise(archive: Archive) -> bool:
    """Whether it is a state dict of a network that embeds a second time by layers of its own."""
    names = plain_state(archive.content) or {}
    return "time_embed_s.0.weight" in names or f"{PREFIX}map_layer0_s.weight" in names


def read(archive: Archive, options: ImportOptions) -> Imported:
    """The model."""
    if options.reading is not None:
        raise UsageError(
            f"{archive.source} holds a consistency trajectory model, which is read in one way "
            f"only; leave out --as {options.reading}"
        )
    tensors = dict(plain_state(archive.content) or {})
    pairs = {}
    for name in [*tensors]:
        first = name.replace(".affine_s.", ".affine.").replace(".emb_layers_s.", ".emb_layers.")
        if first != name and first in tensors:
            tensors[first] = merged(tensors, first, name)
            pairs[name] = first
    for name in pairs:
        del tensors[name]
    song_net = f"{PREFIX}map_layer0.weight" in tensors
    if song_net:
        own = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
        description = song(own, None, PREFIX)
    else:
        description = openai_unet(tensors, options)
    shape, classes = tuple(description.spec["shape"]), int(description.spec["classes"])
    scalings = karras_scalings("edm", LEVELS.given(options), 0.25 if song_net else 250.0)
    contract = contract_of("ctm", scalings.path, shape, classes, options)
    network = fit(description, tensors, archive.source, archive.size)
    used = {theirs: target.name for theirs, target in description.targets.items()}
    report = Report(
        format=f"consistency trajectory model on a {'SongUNet' if song_net else 'U-Net'}",
        used=used | {second: used[first] for second, first in pairs.items()},
        unused=description.unused,
        notes=(*description.notes, ASSUMED),
    )
    return Imported(Model(Denoiser(network, scalings), contract), report)


FORMAT = Format("state dicts of consistency trajectory models", recognise, read)
