"""``fewstep import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from fewstep.option_kinds import File, Real, Text, Whole, optional

Reading = Literal[
    "edm", "consistency", "consistency-plain", "ddpm-linear", "ddpm-cosine", "flow-reversed"
]


def import_(
    source: Annotated[str, tyro.conf.arg(metavar="FILE_OR_FOLDER")],
    /,
    *,
    out: Path,
    reading: Annotated[Reading | None, optional("|".join(get_args(Reading)), name="as")] = None,
    weights: Text = None,
    resolution: Whole = None,
    heads: Whole = None,
    head_channels: Whole = None,
    new_attention_order: bool = False,
    sigma_data: Real = None,
    sigma_min: Real = None,
    sigma_max: Real = None,
    class_names: File = None,
    latent: bool = False,
    below: Text = None,
    at: Real = None,
    report: File = None,
) -> None:
    """Make a model of a checkpoint of another repository; nothing in it is executed.

    Args:
        source: a file of torch.save, a network pickle of NVIDIA's repositories, a safetensors file,
            or a folder that diffusers wrote. It is recognised by what is in it, not by its name.
            hub:OWNER/NAME[@REVISION] is a repository of the Hugging Face Hub that holds one of
            these, and hub:OWNER/NAME/FILE[@REVISION] one of its files.
        out: the model folder to write.
        reading: what the network's output means and how the model is sampled, where the file allows
            several: edm (a diffusion model), consistency (with the scalings that have a boundary at
            the lowest noise level), consistency-plain (with EDM's scalings), ddpm-linear or
            ddpm-cosine (noise prediction on 1000 steps), flow-reversed (a velocity whose time runs
            to the data, as SiT's).
        weights: the network in the file, such as ema or net, where it holds several.
        resolution: height and width of a picture, where the file does not say.
        heads: the number of attention heads, where the file does not say.
        head_channels: channels of an attention head, in place of --heads.
        new_attention_order: the network was trained with guided-diffusion's flag of this name.
        sigma_data: standard deviation of the data in the scalings, in place of the file's.
        sigma_min: the lowest noise level, in place of the file's.
        sigma_max: the highest noise level, in place of the file's.
        class_names: a text file with the name of a class on each line, in the order of the classes.
        latent: samples are latents, whose values have no range.
        below: the checkpoint of a second network, which answers below a noise level, as in TCM.
        at: that noise level, TCM's transition_t.
        report: a JSON file to write, with what became of every tensor.
    """
    from fewstep.cli.values import replaced
    from fewstep.errors import UsageError
    from fewstep.importing import ImportOptions, import_checkpoint, import_pair
    from fewstep.system.files import write_json

    options = ImportOptions(
        reading=reading,
        weights=weights,
        resolution=resolution,
        heads=heads,
        head_channels=head_channels,
        new_attention_order=new_attention_order,
        sigma_data=sigma_data,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        class_names=None if class_names is None else _lines(class_names),
        latent=latent,
    )
    if (below is None) != (at is None):
        raise UsageError("--below and --at belong together; give both or neither")
    if below is not None and at is not None:
        imported = import_pair(source, below, at, options)
    else:
        imported = import_checkpoint(source, options)
    before = replaced(out)
    imported.model.save(out, card=imported.readme(out))
    print(imported.report.summary())
    if report is not None:
        also = replaced(report)
        write_json(report, imported.report.as_json())
        print(f"wrote {report}{also}")
    print(f"wrote {imported.model!r} to {out}{before}")


def _lines(path: Path) -> tuple[str, ...]:
    from fewstep.errors import UsageError, in_words

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"--class-names: {path} cannot be read: {in_words(error)}") from error
    return tuple(line.strip() for line in text.split("\n") if line.strip())
