"""State dicts of OpenAI's consistency_models and guided-diffusion."""

from __future__ import annotations

from fewstep.errors import UsageError
from fewstep.importing.architectures.openai import openai_unet
from fewstep.importing.archives import Archive
from fewstep.importing.contracts import Levels, contract_of, karras_scalings
from fewstep.importing.fitting import fit
from fewstep.importing.formats import Format
from fewstep.importing.options import ImportOptions
from fewstep.importing.parts import plain_state
from fewstep.importing.report import Report
from fewstep.importing.result import Imported
from fewstep.model import Model
from fewstep.models import Denoiser, NearestStep, NoisePrediction, Preconditioning
from fewstep.paths import DiscreteVariancePreserving, VarianceExploding

LEVELS = Levels(0.5, 0.002, 80.0)
"""Constants of OpenAI's code; flags of it may set the last two otherwise."""
TIME_SCALE = 250.0


def recognise(archive: Archive) -> bool:
    """Whether it is a state dict with OpenAI's names, and one time."""
    names = plain_state(archive.content) or {}
    known = ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight")
    return all(name in names for name in known) and "time_embed_s.0.weight" not in names


def read(archive: Archive, options: ImportOptions) -> Imported:
    """The model."""
    tensors = plain_state(archive.content) or {}
    if options.reading is None or options.reading == "flow-reversed":
        raise UsageError(
            f"{archive.source} has the network of OpenAI's repositories, and does not say what its "
            "output means: give --as consistency (cd and ct files), --as edm (the teachers of "
            "consistency_models), or --as ddpm-linear or ddpm-cosine (guided-diffusion, by its "
            "flag --noise_schedule)"
        )
    description = openai_unet(tensors, options)
    scalings = openai_scalings(options.reading, options)
    contract = contract_of(
        options.reading,
        scalings.path,
        tuple(description.spec["shape"]),
        int(description.spec["classes"]),
        options,
    )
    network = fit(description, tensors, archive.source, archive.size)
    report = Report(
        format=f"U-Net of OpenAI's repositories, as {options.reading}",
        used={theirs: target.name for theirs, target in description.targets.items()},
        notes=description.notes,
    )
    return Imported(Model(Denoiser(network, scalings), contract), report)


def openai_scalings(reading: str, options: ImportOptions) -> Preconditioning:
    """What the output of a network of OpenAI's repositories means."""
    if reading == "ddpm-linear":
        path = DiscreteVariancePreserving(
            beta_start=1e-4, beta_end=0.02, scaled_linear=False, steps=1000
        )
        return NoisePrediction(time_scale=1.0, path=path)
    levels = LEVELS.given(options)
    if reading == "ddpm-cosine":
        low = max(levels.sigma_min, 0.0065)
        return NearestStep(path=VarianceExploding(low, levels.sigma_max))
    return karras_scalings(reading, levels, TIME_SCALE)


FORMAT = Format("state dicts of OpenAI's repositories", recognise, read)
