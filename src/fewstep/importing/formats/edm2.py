"""Pickles of EDM2: its U-Net in float16 under EDM's scalings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.errors import UsageError
from fewstep.importing.architectures.edm2 import edm2_unet
from fewstep.importing.archives import Archive
from fewstep.importing.choice import chosen
from fewstep.importing.contracts import Levels, contract_of, karras_scalings
from fewstep.importing.fitting import Description, fit
from fewstep.importing.formats import Format
from fewstep.importing.formats.edm import KARRAS
from fewstep.importing.inert import Persistent
from fewstep.importing.options import ImportOptions
from fewstep.importing.parts import Part, is_network, part_of
from fewstep.importing.report import Report
from fewstep.importing.result import Imported
from fewstep.importing.storages import Lazy
from fewstep.model import Model
from fewstep.models import Denoiser

UNCERTAINTY = "the learned uncertainty, which training needs and generating does not"
LATENTS = (
    "samples are latents of a variational autoencoder, which the file names and does not hold; "
    "decode them with that autoencoder to see pictures"
)
PIXELS = "StandardRGBEncoder"


def recognise(archive: Archive) -> bool:
    """Whether it holds an EDM2 network."""
    return bool(_networks(archive.content))


def read(archive: Archive, options: ImportOptions) -> Imported:
    """The model."""
    name, whole = network_of(archive, options)
    return imported(archive, whole, whole.state(), options, f"the file's {name!r}")


def network_of(archive: Archive, options: ImportOptions) -> tuple[str, Part]:
    """The network that the user means, and its name in the file.

    Raises:
        UsageError: it is none of EDM2's.
    """
    networks = _networks(archive.content)
    name = chosen(list(networks), options, archive.source)
    whole = part_of(networks[name])
    unet = whole.children.get("unet")
    if unet is None or unet.kind != "UNet":
        raise UsageError(f"{archive.source} holds a {whole.kind} without EDM2's UNet")
    classes, size = whole.whole("label_dim"), whole.whole("img_resolution")
    shape = (whole.whole("img_channels"), size, size)
    found = edm2_unet(unet.state(), dict(unet.walk())).spec
    if tuple(found["shape"]) != shape or found["classes"] != classes:
        raise UsageError(
            f"{archive.source}: the Precond says {size} pixels and {classes} classes, its tensors "
            f"{found['shape']} and {found['classes']}"
        )
    return name, whole


def imported(
    archive: Archive,
    whole: Part,
    tensors: Mapping[str, Lazy],
    options: ImportOptions,
    what: str,
    notes: tuple[str, ...] = (),
    *,
    latent: bool | None = None,
) -> Imported:
    """The model of a network.

    Args:
        archive: the file.
        whole: the network with its attributes.
        tensors: its weights, by the names of the file.
        options: of the user.
        what: which network this is, for the report.
        notes: what a user should know.
        latent: whether samples are latents; None reads the file's ``encoder``.
    """
    unet = whole.children["unet"]
    reading = options.reading or "edm"
    if reading not in KARRAS:
        raise UsageError(
            f"{archive.source} holds an EDM2 network; --as must be edm, consistency or "
            f"consistency-plain, got {reading}"
        )
    found = edm2_unet(unet.state(), dict(unet.walk()), "unet.")
    beside = {n: UNCERTAINTY for n in tensors if n.startswith("logvar_")}
    description = Description(found.spec, found.targets, {**found.unused, **beside})
    classes, shape = int(found.spec["classes"]), tuple(found.spec["shape"])
    if latent is None:
        encoder = archive.content.get("encoder")
        latent = isinstance(encoder, Persistent) and encoder.name != PIXELS
    levels = Levels(whole.number("sigma_data"), 0.002, 80.0).given(options)
    scalings = karras_scalings(reading, levels, 0.25)
    contract = contract_of(reading, scalings.path, shape, classes, options, latent=latent)
    network = fit(description, tensors, archive.source, archive.size)
    report = Report(
        format=f"EDM2's Precond, {what}",
        used={theirs: target.name for theirs, target in description.targets.items()},
        unused=description.unused,
        notes=(*((LATENTS,) if latent else ()), *notes),
    )
    return Imported(Model(Denoiser(network, scalings), contract), report)


def _networks(content: Any) -> dict[str, Persistent]:
    if not isinstance(content, dict):
        return {}
    return {
        str(name): value
        for name, value in content.items()
        if is_network(value) and value.name == "Precond"
    }


FORMAT = Format("EDM2 pickles", recognise, read)
