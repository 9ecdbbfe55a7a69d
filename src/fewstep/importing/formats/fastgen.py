"""Checkpoints of NVIDIA's FastGen on EDM's networks: training states and converted state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.errors import UsageError
from fewstep.importing.architectures.song import song
from fewstep.importing.archives import Archive
from fewstep.importing.choice import chosen
from fewstep.importing.contracts import Levels, contract_of, karras_scalings
from fewstep.importing.fitting import fit
from fewstep.importing.formats import Format
from fewstep.importing.formats.edm import KARRAS
from fewstep.importing.options import ImportOptions
from fewstep.importing.parts import plain_state
from fewstep.importing.report import Report
from fewstep.importing.result import Imported
from fewstep.importing.storages import Lazy
from fewstep.model import Model
from fewstep.models import Denoiser

LEVELS = Levels(0.5, 0.002, 80.0)
"""Constants of FastGen's EDM networks."""
PREFIX = "model."
FIRST = f"{PREFIX}map_layer0.weight"
WHOLE = "the file"
"""The network of a file that holds one only."""


def recognise(archive: Archive) -> bool:
    """Whether it holds state dicts with the names of EDM's networks."""
    return bool(_networks(archive.content))


def read(archive: Archive, options: ImportOptions) -> Imported:
    """The model."""
    networks = _networks(archive.content)
    name = WHOLE if [*networks] == [WHOLE] and options.weights is None else None
    name = name or chosen([*networks], options, archive.source)
    tensors = networks[name]
    own = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    if f"enc.{_resolution(own)}_conv.weight" not in own or "out_conv.weight" in own:
        raise UsageError(
            f"{archive.source} holds a network of FastGen's that is no SongUNet; of its networks "
            "only this one can be imported"
        )
    description = song(own, None, PREFIX)
    two_time = bool(description.spec.get("two_time"))
    reading = _reading(archive, options, two_time)
    levels = LEVELS.given(options)
    scalings = karras_scalings("edm" if two_time else reading, levels, 0.25)
    shape, classes = tuple(description.spec["shape"]), int(description.spec["classes"])
    contract = contract_of(reading, scalings.path, shape, classes, options)
    network = fit(description, tensors, archive.source, archive.size)
    report = Report(
        format=f"FastGen's EDMPrecond of SongUNet, {name}",
        used={theirs: target.name for theirs, target in description.targets.items()},
        unused=description.unused,
        notes=description.notes,
    )
    return Imported(Model(Denoiser(network, scalings), contract), report)


def _networks(content: Any) -> dict[str, Mapping[str, Lazy]]:
    whole = plain_state(content)
    if whole is not None:
        return {WHOLE: whole} if FIRST in whole else {}
    inner = content.get("model") if isinstance(content, dict) else None
    if not isinstance(inner, dict):
        return {}
    states = {str(name): plain_state(value) for name, value in inner.items()}
    return {name: state for name, state in states.items() if state is not None and FIRST in state}


def _resolution(tensors: Mapping[str, Lazy]) -> str:
    """The name of the finest resolution."""
    names = [n.removeprefix("enc.").removesuffix("_conv.weight") for n in tensors if "_conv." in n]
    return next((n for n in names if n.count("x") == 1 and f"enc.{n}_conv.weight" in tensors), "")


def _reading(archive: Archive, options: ImportOptions, two_time: bool) -> str:
    if two_time:
        if options.reading is not None:
            raise UsageError(
                f"{archive.source} holds a network of two times, which is read as a mean flow; "
                f"leave out --as {options.reading}"
            )
        return "meanflow"
    if options.reading not in KARRAS:
        raise UsageError(
            f"{archive.source} does not say how its network was trained; give --as edm (a "
            "diffusion model, such as the teacher) or --as consistency-plain (a consistency model, "
            "or any student that is sampled by noising and denoising)"
        )
    return str(options.reading)


FORMAT = Format("checkpoints of FastGen", recognise, read)
