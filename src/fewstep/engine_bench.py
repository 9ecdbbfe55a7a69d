"""How long a sample takes by each engine beside torch, in one run on this machine.

A whole call of ``Model.sample`` in one step is timed, noise included. Ratios are medians over
interleaved pairs. Beside the engines, torch itself is timed with weights in its memory format
``channels_last``, in which a pixel's channels lie side by side. The networks are DDPM++ of 64
channels on 32 x 32 pixels, and the bundled model of digits.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from fewstep.bench import SHAPE, interleaved, network
from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.errors import UsageError
from fewstep.model import Model, load
from fewstep.models import ConsistencyBoundary, Denoiser

ENGINES = {"onnx": "onnxruntime", "openvino": "openvino"}
"""The engines that are compared, and the module that each needs."""
CHANNELS_LAST = "channels_last"
CONVOLUTIONS = "ddpmpp"
"""The network that has convolutions, whose weights alone have a memory format."""
BATCHES = (1, 64)


def run(threads: int, pairs: int, batches: Sequence[int] = BATCHES) -> list[dict[str, Any]]:
    """A row for each network, batch and engine, and for convolutions with channels last.

    Args:
        threads: of torch, and of the engines.
        pairs: measurements of each side of a ratio.
        batches: numbers of samples of one call.

    Returns:
        ``network``, ``batch``, ``engine``, ``eager_ms`` and ``engine_ms`` (medians), ``ratio``, and
        ``difference``, the largest one between the samples.

    Raises:
        UsageError: none of the engines is installed.
    """
    engines = [name for name, module in ENGINES.items() if find_spec(module)]
    if not engines:
        raise UsageError("no engine is installed: pip install 'fewstep[openvino]' installs both")
    torch.set_num_threads(threads)
    rows = []
    with tempfile.TemporaryDirectory() as root:
        subjects = {
            CONVOLUTIONS: large().save(Path(root) / "ddpmpp", samples=0),
            "digits-cd": "digits-cd",
        }
        for name, where in subjects.items():
            eager = load(where, device="cpu")
            for engine in engines:
                other = load(where, engine=engine)
                rows += [_row(name, engine, eager, other, n, pairs) for n in batches]
            if name == CONVOLUTIONS:
                other = channels_last(where)
                rows += [_row(name, CHANNELS_LAST, eager, other, n, pairs) for n in batches]
    return rows


def _row(name: str, engine: str, eager: Model, other: Model, n: int, pairs: int) -> dict[str, Any]:
    def ours() -> Any:
        return other.sample(n, steps=1)

    def bare() -> Any:
        return eager.sample(n, steps=1)

    difference = float((ours() - bare()).abs().max())
    times = interleaved(ours, bare, pairs)
    return {
        "network": name,
        "batch": n,
        "engine": engine,
        "eager_ms": median(times[1]) * 1e3,
        "engine_ms": median(times[0]) * 1e3,
        "ratio": median(a / b for a, b in zip(*times, strict=True)),
        "difference": difference,
    }


def channels_last(where: str | Path) -> Model:
    """A model whose weights of convolutions have their channels last; its samples are the same.

    Convolutions answer in the format of their weights, so that no input has to be changed.
    """
    model = load(where, device="cpu")
    for weight in model.denoiser.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return model


def large() -> Model:
    """A model of random weights on the network of ``fewstep bench``."""
    torch.manual_seed(0)
    net = network()
    with torch.no_grad():
        for p in net.parameters():
            if not bool(p.any()):
                nn.init.normal_(p, std=0.02)
    scalings = ConsistencyBoundary(sigma_data=0.5)
    start = Start(t=scalings.path.t_max, std=scalings.path.t_max)
    sampling = Sampling(start=start, kind="renoise", times={1: (start.t,)}, any_times=True)
    contract = Contract(method="cd", data=DataSpec(shape=SHAPE), sampling=sampling)
    return Model(Denoiser(net, scalings), contract)


def main(threads: int, pairs: int, as_json: bool) -> None:
    """Print the rows."""
    rows = run(threads, pairs)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'network':<10} {'batch':>5}  {'engine':<13} {'eager':>10} {'engine':>10} {'ratio':>6}")
    for row in rows:
        times = f"{row['eager_ms']:>7.1f} ms {row['engine_ms']:>7.1f} ms {row['ratio']:>6.2f}"
        print(f"{row['network']:<10} {row['batch']:>5}  {row['engine']:<13} {times}")
    print(f"{threads} thread(s), medians of {pairs} pairs")
