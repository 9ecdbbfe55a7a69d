"""``fewstep export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from fewstep.option_kinds import Text, Whole, optional


def export(
    model: Annotated[str, tyro.conf.arg(metavar="MODEL")],
    /,
    *,
    to: Literal["onnx", "openvino", "torch", "diffusers", "lora"],
    out: Path,
    sampler: Whole = None,
    average: Text = None,
    dialect: Annotated[
        Literal["peft", "diffusers", "kohya"] | None, optional("{peft,diffusers,kohya}")
    ] = None,
) -> None:
    """Write a model for another program, and compare its answers with torch's.

    The folder holds the graph, the contract and a card with the exact call. The export fails if an
    answer differs from torch's by more than 1e-4. For diffusers the folder holds a network and a
    scheduler in place of a graph, and the answers are those of what `fewstep import` reads from it.
    For lora it holds the adapter of a model that was trained with --lora, and no model.

    Args:
        model: a model folder, a run folder, a bundled name or hub:OWNER/NAME[@REVISION].
        to: the program that the export is for: onnx is for ONNX Runtime and others, openvino for
            OpenVINO, torch for torch.export, diffusers for its UNet2DModel and
            ConsistencyModelPipeline, lora for programs that add adapters to a model of their own.
        out: the folder to write.
        sampler: a number of steps; exports all steps of the sampler as one graph, whose noise is
            an input. By default the graph is the denoiser alone.
        average: name of one of the run's averages; by default the first.
        dialect: the names that the adapter's file uses, with --to lora; by default peft.
    """
    from fewstep.cli.values import replaced
    from fewstep.exporting import export as write
    from fewstep.model import load

    before = replaced(out)
    error = write(load(model, average=average, device="cpu"), to, out, sampler, dialect=dialect)
    if to == "lora":
        print(
            f"wrote {out}{before}; read again, it changes weights by the same, within {error:.2g}"
        )
        return
    print(f"wrote {out}{before}; its answers differ from torch's by {error:.2g} at most")
