"""``fewstep merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro


def merge(
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")],
    adapters: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="ADAPTER ...")],
    /,
    *,
    out: Path,
    scale: tuple[float, ...] = (),
) -> None:
    """Add low-rank adapters (LoRA) to the weights of a model.

    The changes of several adapters are summed exactly. An adapter of another model is refused with
    the names of the layers that do not fit.

    Args:
        model: the model that the adapters were trained on: a model folder, a run folder or a
            bundled name.
        adapters: safetensors files or folders in the dialects of peft, diffusers or kohya, or runs
            that trained with --lora.
        out: the model folder to write.
        scale: the factors by which the adapters are multiplied, one number for each; by default 1.
    """
    from fewstep.merging import merge as merged
    from fewstep.model import load

    made = merged(load(model, device="cpu"), adapters, scale or None)
    made.save(out)
    count = len(adapters)
    print(f"wrote {made!r} with {count} adapter{'s' * (count != 1)} added to {out}")
