#!/usr/bin/env bash
# torch 2.13.0, onnxscript 0.7.2, onnx 1.23.2, onnxruntime 1.32.0 (CPU): a batch that is declared
# free is fixed without an error where a module calls len() on a tensor.
#
# Expected: torch.onnx.export(dynamo=True, dynamic_shapes={0: Dim("batch")}) writes a graph with a
# free first axis, or raises, because the declared axis cannot be free. Seen: it returns a graph
# whose input has the example's batch as a constant; ONNX Runtime then refuses every other batch.
# With x.shape[0] in the place of len(x) the axis is free. torch.export alone raises on the first.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0
cat > "$work/batch.py" <<'PY'
import sys
import warnings

import torch
from torch.export import Dim

warnings.simplefilter("ignore")


class ByLen(torch.nn.Module):
    def forward(self, x):
        return x + torch.full((len(x), 1), 2.0)


class ByShape(torch.nn.Module):
    def forward(self, x):
        return x + torch.full((x.shape[0], 1), 2.0)


def first_axis(module):
    shapes = ({0: Dim("batch", min=1)},)
    example = (torch.zeros(2, 3),)
    try:
        torch.export.export(module, example, dynamic_shapes=shapes)
        raised = "nothing"
    except Exception as error:
        raised = type(error).__name__
    program = torch.onnx.export(
        module, example, dynamo=True, dynamic_shapes=shapes, input_names=["x"], verbose=False
    )
    axis = program.model_proto.graph.input[0].type.tensor_type.shape.dim[0]
    kind = f"fixed at {axis.dim_value}" if axis.HasField("dim_value") else "free"
    print(f"{type(module).__name__}: torch.export raises {raised}; the ONNX batch is {kind}")
    return raised, kind


found = [first_axis(ByLen()), first_axis(ByShape())]
sys.exit(0 if [kind for _, kind in found] == ["fixed at 2", "free"] else 3)
PY
"$work/venv/bin/python" "$work/batch.py" 2>/dev/null
echo "as described: the declared batch is fixed without an error"
