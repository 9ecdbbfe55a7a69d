"""What lies beside an exported graph: the contract as JSON, and a card with the exact call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fewstep.card_text import MOVED
from fewstep.engines.graph import LENGTHS
from fewstep.model import Model
from fewstep.version import __version__

OPEN = {
    "onnx": (
        "import onnxruntime\n\nsession = onnxruntime.InferenceSession({file})\n"
        "run = lambda **inputs: session.run(None, inputs)[0]\n"
    ),
    "openvino": (
        "import openvino\n\ncore = openvino.Core()\n"
        "exact = {{'INFERENCE_PRECISION_HINT': 'f32'}}  # also where the processor has bfloat16\n"
        "compiled = core.compile_model({file}, 'CPU', exact)\n"
        "run = lambda **inputs: next(iter(compiled(inputs).values()))\n"
    ),
    "torch": (
        "import torch\n\nprogram = torch.export.load({file}).module()\n"
        "run = lambda **inputs: program(*map(torch.from_numpy, inputs.values())).numpy()\n"
    ),
}


def notes(model: Model, to: str, steps: int | None) -> dict[str, Any]:
    """The contract, and the times of samples, as JSON values."""
    counts = sorted(model.contract.sampling.times) or [len(model.times())]
    wanted = counts if steps is None else [steps]
    return {
        "format": to,
        "graph": "denoiser" if steps is None else "sampler",
        "fewstep": __version__,
        "contract": model.contract.model_dump(mode="json"),
        "inputs": ["noise"]
        if steps is not None
        else ["x", "t", *(["s"] if model.denoiser.two_time else [])],
        "conditions": [*model.denoiser.cond_keys],
        "times": {str(count): model.times(count) for count in wanted},
    }


def write_notes(folder: Path, content: dict[str, Any]) -> None:
    """Write ``fewstep.json``."""
    text = json.dumps(content, indent=2) + "\n"
    (folder / "fewstep.json").write_text(text, encoding="utf-8")


def card(model: Model, to: str, folder: Path, file: str, said: dict[str, Any], error: float) -> str:
    """README.md: what the graph is, how exact it is, and how to sample with it.

    Args:
        model: that was exported.
        to: the format.
        folder: that will hold the graph.
        file: the name of the graph in it.
        said: the content of ``fewstep.json``.
        error: the largest difference to torch's answers.
    """
    data, sampling = model.contract.data, model.contract.sampling
    whole = said["graph"] == "sampler"
    what = "whole sampler" if whole else "denoiser"
    return (
        f"# A {model.contract.method} model for {to}\n\n"
        f"`{file}` is the {what} of a model of {data.summary()}, exported by fewstep "
        f"{said['fewstep']} in float32. Its answers differ from torch's by {error:.2g} at most, "
        "compared at the ends of the path, on zeros and on equal rows, in batches of several "
        "sizes.\n\n"
        f"{_inputs(model, said)}\n\n"
        f"```python\nimport numpy as np\n{OPEN[to].format(file=json.dumps(str(folder / file)))}\n"
        f"{_sampler_call(model, said) if whole else _loop(model)}```\n\n{MOVED}\n\n"
        f"Sampling is of the kind `{sampling.kind}`; `fewstep.json` has the whole contract and the "
        "times. Noise is always an input: noise that is drawn inside a graph obeys no seed.\n"
    )


def _shape(model: Model) -> str:
    """The sizes of a sample between commas; a free one is called ``length``."""
    return ", ".join("length" if size is None else str(size) for size in model.contract.data.shape)


def _inputs(model: Model, said: dict[str, Any]) -> str:
    shape = _shape(model)
    rows = {
        "x": f"float32 (b, {shape}): noisy data, not scaled",
        "t": "float32 (b,): its time on the model's path, which is the noise level for EDM's",
        "s": "float32 (b,): the time that the answer carries to, 0 for clean data",
        "noise": f"float32 (b, steps, {shape}): unit Gaussian noise of each step",
        "mask": f"float32 (b, 1, {_shape(model).partition(', ')[2]}): 1 where a sample is real",
        "label": f"int64 (b,): the class from 0; {model.contract.data.labels} stands for none",
    }
    names = [*said["inputs"], *said["conditions"]]
    return "\n".join(
        ["| input | what it is |", "| --- | --- |"]
        + [f"| `{name}` | {rows.get(name, 'a condition, batch first')} |" for name in names]
    )


def _conditions(model: Model) -> str:
    keys = model.denoiser.cond_keys
    known = {
        "label": "np.arange(n) % " + str(max(model.contract.data.labels, 1)),
        "mask": "np.ones_like(x[:, :1], np.float32)",
    }
    return "".join(f", {key}={known.get(key, '...')}" for key in keys)


def _sampler_call(model: Model, said: dict[str, Any]) -> str:
    (steps,) = said["times"]
    shape = _shape(model)
    return (
        f"n = 4\nnoise = np.random.default_rng(0).standard_normal((n, {steps}, {shape}))\n"
        f"samples = run(noise=noise.astype(np.float32){_conditions(model)})\n"
    )


def _loop(model: Model) -> str:
    """The first call of a sample, which is the whole sample of a one-step model."""
    start = model.contract.sampling.start
    shape = _shape(model)
    second = ", s=np.zeros(n, np.float32)" if model.denoiser.two_time else ""
    free = f"length = {LENGTHS[-1]}\n" if None in model.contract.data.shape else ""
    return (
        f"n = 4\n{free}x = np.random.default_rng(0).standard_normal((n, {shape})) * {start.std:g}\n"
        f"t = np.full(n, {start.t!r}, np.float32)\n"
        f"x0 = run(x=x.astype(np.float32), t=t{second}{_conditions(model)})\n"
    )
