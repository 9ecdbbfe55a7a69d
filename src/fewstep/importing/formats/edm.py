"""Pickles of EDM, ECT and TCM: networks of NVIDIA's persistence under one of their scalings."""

from __future__ import annotations

import math
from typing import Any

from fewstep.contract import Contract
from fewstep.errors import UsageError
from fewstep.importing.architectures.dhariwal import dhariwal
from fewstep.importing.architectures.song import song
from fewstep.importing.archives import Archive
from fewstep.importing.choice import chosen
from fewstep.importing.contracts import Levels, contract_of, karras_scalings
from fewstep.importing.fitting import Description, fit
from fewstep.importing.formats import Format
from fewstep.importing.inert import Persistent
from fewstep.importing.options import ImportOptions
from fewstep.importing.parts import Part, is_network, part_of
from fewstep.importing.report import Report
from fewstep.importing.result import Imported
from fewstep.model import Model
from fewstep.models import Denoiser, NearestStep, NoisePrediction, Preconditioning, ScoreMatching
from fewstep.models.preconditioning import cosine_levels
from fewstep.paths import VarianceExploding, VariancePreserving

SCALINGS = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond", "ECMPrecond")
KARRAS = ("edm", "consistency", "consistency-plain")
LOWEST, HIGHEST = 0.002, 80.0
"""The range of noise levels of EDM's sampler, which a network's own range cuts."""
TABLE = "a table of noise levels, which the model has in its code"
RAW = (
    "the file holds the trained network itself, not an average of its weights; samples of an "
    "average (a network-snapshot file) are better"
)


def recognise(archive: Archive) -> bool:
    """Whether it holds a network under one of EDM's scalings."""
    return any(value.name in SCALINGS for value in _networks(archive.content).values())


def read(archive: Archive, options: ImportOptions) -> Imported:
    """The model."""
    networks = _networks(archive.content)
    name = chosen(list(networks), options, archive.source)
    whole = part_of(networks[name])
    inner = whole.children.get("model")
    if inner is None or inner.kind not in {"SongUNet", "DhariwalUNet"}:
        kind = inner.kind if inner is not None else "no network"
        raise UsageError(
            f"{archive.source} holds a {whole.kind} of {kind!r}, expected SongUNet or DhariwalUNet"
        )
    description = _described(whole, inner)
    reading = _reading(archive, whole, options)
    classes = int(description.spec["classes"])
    shape = tuple(description.spec["shape"])
    size = whole.whole("img_resolution")
    if (whole.whole("img_channels"), size, size) != shape or whole.whole("label_dim") != classes:
        raise UsageError(
            f"{archive.source}: the {whole.kind} says {size} pixels, {whole.whole('label_dim')} "
            f"classes and {whole.whole('img_channels')} channels, its tensors {shape} and {classes}"
        )
    scalings = _scalings(whole, reading, options)
    dropped = inner.attributes.get("label_dropout", 0)
    contract: Contract = contract_of(
        reading, scalings.path, shape, classes, options, guided=bool(dropped)
    )
    tensors = whole.state()
    network = fit(description, tensors, archive.source, archive.size)
    notes = (*description.notes, *((RAW,) if name == "net" else ()))
    report = Report(
        format=f"{whole.kind} of {inner.kind}, the file's {name!r}",
        used={theirs: target.name for theirs, target in description.targets.items()},
        unused=description.unused,
        notes=notes,
    )
    return Imported(Model(Denoiser(network, scalings), contract), report)


def _networks(content: Any) -> dict[str, Persistent]:
    if not isinstance(content, dict):
        return {}
    return {str(name): value for name, value in content.items() if is_network(value)}


def _described(whole: Part, inner: Part) -> Description:
    tensors, parts = inner.state(), dict(inner.walk())
    if inner.kind == "SongUNet":
        description = song(tensors, parts, "model.")
    else:
        description = dhariwal(tensors, parts, "model.", whole.whole("img_channels"))
    tables = dict.fromkeys(whole.tensors, TABLE)
    return Description(
        description.spec,
        description.targets,
        {**description.unused, **tables},
        description.notes,
    )


def _reading(archive: Archive, whole: Part, options: ImportOptions) -> str:
    """What the output means: the user's word where the file allows several."""
    if whole.kind not in {"EDMPrecond", "ECMPrecond"}:
        if options.reading not in (None, "edm"):
            raise UsageError(
                f"{archive.source} holds a diffusion model with {whole.kind}; leave out --as "
                f"{options.reading}"
            )
        return "edm"
    if options.reading is not None:
        if options.reading not in KARRAS:
            raise UsageError(
                f"{archive.source} holds a {whole.kind}; --as must be edm, consistency or "
                f"consistency-plain, got {options.reading}"
            )
        return options.reading
    if whole.kind == "EDMPrecond":
        return "edm"
    loss = archive.content.get("loss_fn")
    if isinstance(loss, Persistent) and isinstance(loss.state, dict) and "q" in loss.state:
        # Truncated training (TCM) has the same class name, and no boundary in any mode.
        return "consistency-plain" if "boundary_prob" in loss.state else "consistency"
    raise UsageError(
        f"{archive.source} holds a consistency model, and does not say which of two scalings its "
        "network has: give --as consistency (ECT, whose scalings have a boundary at the lowest "
        "noise level) or --as consistency-plain (TCM, which has EDM's scalings)"
    )


def _scalings(whole: Part, reading: str, options: ImportOptions) -> Preconditioning:
    if whole.kind in {"EDMPrecond", "ECMPrecond"}:
        low, high = whole.number("sigma_min"), whole.number("sigma_max")
        lowest = LOWEST if whole.kind == "EDMPrecond" else 0.0
        levels = Levels(whole.number("sigma_data"), max(lowest, low), min(HIGHEST, high))
        return karras_scalings(reading, levels.given(options), 0.25)
    own = Levels(
        1.0, max(LOWEST, whole.number("sigma_min")), min(HIGHEST, whole.number("sigma_max"))
    )
    levels = own.given(options)
    path = VarianceExploding(levels.sigma_min, levels.sigma_max)
    if whole.kind == "VEPrecond":
        return ScoreMatching(path=path)
    if whole.kind == "VPPrecond":
        inner = VariancePreserving(
            whole.number("epsilon_t"), 1.0, whole.number("beta_d"), whole.number("beta_min")
        )
        return NoisePrediction(time_scale=whole.number("M") - 1, path=inner).on(path)
    steps, ratio, offset = whole.whole("M"), whole.number("C_1"), whole.number("C_2")
    if not 1 <= steps <= 10_000:
        raise UsageError(f"the file's schedule has {steps} steps, expected 1 to 10000")
    _check_table(whole, steps, ratio, offset)
    return NearestStep(steps=steps, ratio=ratio, offset=offset, path=path)


def _check_table(whole: Part, steps: int, ratio: float, offset: float) -> None:
    table = whole.tensors.get("u")
    if table is None or table.shape != (steps + 1,):
        raise UsageError("the file's iDDPMPrecond has no table of noise levels for its steps")
    want = cosine_levels(steps, ratio, offset)
    error = (table.tensor().double() - want).abs() / want.clamp(min=1e-3)
    if not (math.isfinite(float(error.max())) and float(error.max()) < 1e-3):
        raise UsageError(
            "the file's table of noise levels is not the cosine schedule that its numbers describe"
        )


FORMAT = Format("EDM, ECT and TCM pickles", recognise, read)
