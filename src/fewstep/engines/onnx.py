"""Graphs as ONNX files, exported by torch's exporter."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.engines.sessions import extra
from fewstep.errors import UsageError

OPSET = 20
"""The exporter's own default, which current runtimes read; newer ones are not written."""
ALONE = 2**30
"""Bytes of weights up to which a graph is one file; beyond, weights lie in a file beside it."""


def write_onnx(
    graph: nn.Module,
    inputs: Mapping[str, Tensor],
    out: Path,
    output: str = "x0",
    notes: Mapping[str, Any] | None = None,
    free: Collection[str] = (),
) -> None:
    """Write a graph with a free batch.

    The exporter's optimiser is off: it takes a constant of 1e-8 for 0, so that log(t + 1e-8) and
    x / (norm + 1e-8) become infinite at 0 (torch 2.13, onnxscript 0.7.2). Runtimes optimise anyway.
    Stack traces, which hold paths of this machine, are taken out.

    Args:
        graph: in evaluation mode; its inputs are tensors alone.
        inputs: examples by name, in the order of its arguments, batch first.
        out: the file.
        output: name of the one output.
        notes: JSON values to write into the file's metadata, by name.
        free: inputs whose last axis is free too.

    Raises:
        UsageError: the extra ``onnx`` is not installed, or the network cannot be exported.
    """
    extra("onnxscript", "onnx")
    onnx = extra("onnx", "onnx")
    assert not graph.training
    names = [*inputs]
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=free_sizes(inputs, free, "batch", "length"),
                input_names=names,
                output_names=[output],
                optimize=False,
                verbose=False,
                custom_translation_table={torch.ops.aten.mish.default: _mish},
            )
    except Exception as error:  # whatever the exporter raises on an unusual network
        raise UsageError(
            f"torch cannot export this network to ONNX ({reason(error)}); use the engine eager or "
            "compile"
        ) from error
    assert program is not None
    model = program.model_proto
    _strip(model)
    for key, value in (notes or {}).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value, sort_keys=True)
    large = sum(v.numel() * v.element_size() for v in graph.state_dict().values()) > ALONE
    onnx.save(model, str(out), save_as_external_data=large, location=f"{out.name}.data")


def _mish(x: Any) -> Any:
    """Mish, x tanh(log(1 + e^x)), as x n / (n + 2) with n = e^x (e^x + 2), exactly.

    OpenVINO has no code for its own Mish on some processors, and makes one of the softplus and tanh
    that define it (openvino 2026.4). From x = 20 on the quotient is 1 in float32, so e^x needs no
    larger x. The product keeps NaN.
    """
    op = extra("onnxscript", "onnx").opset20
    e = op.Exp(op.Min(x, op.Constant(value_float=20.0)))
    n = op.Mul(e, op.Add(e, op.Constant(value_float=2.0)))
    return op.Mul(x, op.Div(n, op.Add(n, op.Constant(value_float=2.0))))


def reason(error: BaseException) -> str:
    """The first line of what an exporter met at first, which is the cause of what it raises."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def free_sizes(
    inputs: Mapping[str, Tensor], free: Collection[str], batch: Any, length: Any
) -> tuple[Any, ...]:
    """What torch's exporters want to know of the inputs: which axes are free, and their names.

    Args:
        inputs: examples by name; those after x and t, or after noise, are variadic arguments.
        free: inputs whose last axis is free, like the first axis of all.
        batch: how the exporter is told of a free batch.
        length: how it is told of a free length.
    """
    axes = [
        {0: batch, **({value.ndim - 1: length} if name in free else {})}
        for name, value in inputs.items()
    ]
    named = 1 if "noise" in inputs else 2
    return (*axes[:named], *([tuple(axes[named:])] if axes[named:] else []))


def _strip(model: Any) -> None:
    """Take out of a graph what is of the machine and not of the graph."""
    for graph in (model.graph, *model.functions):
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
        del graph.metadata_props[:]
        for value in graph.value_info:
            del value.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.metadata_props[:]
    model.doc_string = ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says on the way, which no user can act on."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
