"""Models for other programs: ONNX, OpenVINO, torch.export and diffusers, compared with torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fewstep.adapters.files import NAMES as ADAPTER_FILES
from fewstep.engines.check import LARGEST_ERROR, difference, evaluated, largest_error
from fewstep.engines.graph import DenoiserGraph, SamplerGraph, examples, free_inputs
from fewstep.engines.onnx import free_sizes, reason, write_onnx
from fewstep.engines.sessions import Session, extra, open_onnx, open_openvino
from fewstep.errors import UsageError, nearest
from fewstep.exporting.adapter import export_adapter
from fewstep.exporting.card import card, notes, write_notes
from fewstep.exporting.stock import export_folder
from fewstep.model import Model
from fewstep.system.files import check_replaceable, whole_folder

__all__ = ["FORMATS", "LARGEST_ERROR", "Format", "export"]

Format = Literal["onnx", "openvino", "torch", "diffusers", "lora"]
FORMATS: tuple[str, ...] = get_args(Format)
NAMES = frozenset(
    {"README.md", "fewstep.json", "model.onnx", "model.onnx.data", "model.xml", "model.bin"}
    | {"model.pt2", "model_index.json", "unet", "scheduler"}
    | ADAPTER_FILES
)
"""What an exported folder may hold."""
SAMPLES = (1, 3)
"""Sizes of the batches in which a whole sampler is compared with torch."""


def export(
    model: Model, to: str, out: str | Path, steps: int | None = None, *, dialect: str | None = None
) -> float:
    """Write a model for another program, with a card that says how to call it.

    The folder holds the graph, ``fewstep.json`` with the contract and the times, and README.md. The
    graph is the denoiser ``(x, t[, s], conditions) -> x0``, or a whole sampler.

    Args:
        model: on any device; the graph is exported in float32.
        to: ``onnx``, ``openvino`` or ``torch`` (torch.export); ``diffusers`` writes no graph, see
            :func:`~fewstep.exporting.stock.export_folder`; ``lora`` writes the adapter of a model
            that was trained with one, see :func:`~fewstep.exporting.adapter.export_adapter`.
        out: the folder, which is written whole or not at all.
        steps: export all steps of the sampler as one graph, whose noise is an input; None exports
            the denoiser.
        dialect: of an adapter: ``peft`` (by default), ``diffusers`` or ``kohya``.

    Returns:
        The largest difference between the graph's answers and torch's, in the data's unit; of an
        adapter, between the changes of weights.

    Raises:
        UsageError: there is no such format, its extra is not installed, the network cannot be
            exported, the graph differs from torch by more than ``LARGEST_ERROR``, or the folder
            holds something else than an earlier export.
    """
    if to not in FORMATS:
        raise UsageError(f"unknown format {to!r}; {nearest(to, FORMATS)}")
    if steps is not None and to in {"torch", "diffusers", "lora"}:
        raise UsageError("a whole sampler is exported to onnx or openvino; leave out the steps")
    if dialect is not None and to != "lora":
        raise UsageError(
            f"the dialect is that of an adapter; leave it out, or export to lora, not {to}"
        )
    model = model.to("cpu")
    check_replaceable(Path(out), NAMES, "fewstep.json")
    if to == "diffusers":
        return export_folder(model, Path(out))
    if to == "lora":
        return export_adapter(model, Path(out), dialect or "peft")
    denoiser = model.denoiser.float()
    said = notes(model, to, steps)
    with whole_folder(Path(out)) as folder:
        if steps is None:
            graph, inputs = DenoiserGraph(denoiser), examples(denoiser, model.contract, 2)
            free = free_inputs(denoiser, model.contract)
        else:
            graph, inputs = _sampler(model, steps), _noise(model, steps, 2)
            free = frozenset()
        file = WRITERS[to](evaluated(graph), inputs, free, folder, said)
        session = _open(to, file)
        if steps is None:
            error = largest_error(denoiser, model.contract, session)
        else:
            error = _sampler_error(model, steps, session)
        write_notes(folder, {**said, "largest_error": error})
        text = card(model, to, Path(out), file.name, said, error)
        (folder / "README.md").write_text(text, encoding="utf-8")
    return error


def _sampler(model: Model, steps: int) -> SamplerGraph:
    return SamplerGraph(model.denoiser, model.contract, tuple(model.times(steps)))


def _noise(model: Model, steps: int, n: int) -> dict[str, Tensor]:
    """Inputs of a whole sampler: noise ``(n, steps, *shape)`` and the conditions by name."""
    like = examples(model.denoiser, model.contract, n)
    pairs = [(0, i) for i in range(n)]
    drawn = model.noise(pairs, calls=steps)
    noise = torch.stack([drawn(i) for i in range(steps)], 1).float()
    return {"noise": noise, **{key: like[key] for key in model.denoiser.cond_keys}}


def _sampler_error(model: Model, steps: int, session: Session) -> float:
    """The largest difference to :meth:`Model.sample` at the same noise and conditions."""
    errors = []
    for n in SAMPLES:
        inputs = _noise(model, steps, n)
        out = session({key: value.numpy() for key, value in inputs.items()})
        errors.append(difference(torch.from_numpy(out), model.sample(n, steps=steps)))
    return max(errors)


def _write_onnx(
    graph: nn.Module,
    inputs: dict[str, Tensor],
    free: frozenset[str],
    folder: Path,
    said: dict[str, Any],
) -> Path:
    file = folder / "model.onnx"
    output = "x0" if "x" in inputs else "samples"
    write_onnx(graph, inputs, file, output, {"fewstep": said}, free)
    return file


def _write_openvino(
    graph: nn.Module,
    inputs: dict[str, Tensor],
    free: frozenset[str],
    folder: Path,
    said: dict[str, Any],
) -> Path:
    """OpenVINO's own format, made of the ONNX graph, whose operators it reads as torch means them.

    Weights and tables of times are stored in float32; OpenVINO's default is float16, in which
    70,000 becomes 65,504 (openvino 2026.4).
    """
    vino = extra("openvino", "openvino")
    source = _write_onnx(graph, inputs, free, folder, said)
    model = vino.Core().read_model(str(source))
    file = folder / "model.xml"
    vino.save_model(model, str(file), compress_to_fp16=False)
    for path in folder.glob("model.onnx*"):
        path.unlink()
    return file


def _write_torch(
    graph: nn.Module,
    inputs: dict[str, Tensor],
    free: frozenset[str],
    folder: Path,
    said: dict[str, Any],
) -> Path:
    # A named size may be found to be none of those that were named, so a length has no name.
    batch = torch.export.Dim.DYNAMIC if free else torch.export.Dim("batch", min=1)
    shapes = free_sizes(inputs, free, batch, torch.export.Dim.DYNAMIC)
    try:
        program = torch.export.export(graph, tuple(inputs.values()), dynamic_shapes=shapes)
    except Exception as error:  # whatever the exporter raises on an unusual network
        raise UsageError(f"torch.export cannot trace this network: {reason(error)}") from error
    file = folder / "model.pt2"
    torch.export.save(program, file)
    return file


Inputs = dict[str, Tensor]
Writer = Callable[[nn.Module, Inputs, frozenset[str], Path, dict[str, Any]], Path]
WRITERS: dict[str, Writer] = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "torch": _write_torch,
}


def _open(to: str, file: Path) -> Session:
    if to == "onnx":
        return open_onnx(file)
    if to == "openvino":
        return open_openvino(file)
    program = torch.export.load(file).module()

    def session(inputs: Any) -> Any:
        return program(*(torch.from_numpy(value) for value in inputs.values())).numpy()

    return session
