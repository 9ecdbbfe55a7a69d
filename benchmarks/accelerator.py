"""Training and sampling speed of EDM's CIFAR-10 network on an accelerator.

python benchmarks/accelerator.py [--device cuda] [--batch 512] [--channels 128] [--steps 20]

Prints JSON: images per second of forward plus backward passes, eager and compiled, fp32 and bf16,
with and without channels-last; each one's share of the matrix peak that this device reached in one
large product of the same precision; and one-step sampling, eager and, on CUDA, as a graph.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import product

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fewstep.models.nets import DDPMpp
from fewstep.system.devices import usable_device

SHAPE = (3, 32, 32)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def seconds(work: Callable[[], object], device: torch.device, steps: int) -> float:
    """Of one call, after three that warm up."""
    for _ in range(3):
        work()
    wait(device)
    began = time.perf_counter()
    for _ in range(steps):
        work()
    wait(device)
    return (time.perf_counter() - began) / steps


def wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def peak(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Floating-point operations per second of a square matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device, 10)


def network(channels: int, device: torch.device) -> DDPMpp:
    torch.manual_seed(0)
    return DDPMpp(SHAPE, channels, (2, 2, 2), blocks=4, attention=(16,), dropout=0.13).to(device)


def training(net: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> Callable[[], None]:
    times = torch.randn(len(x), device=x.device)

    def step() -> None:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            loss = net(x, times).float().square().mean()
        loss.backward()
        for parameter in net.parameters():
            parameter.grad = None

    return step


def sampling(net: nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    net.eval()
    times = torch.zeros(len(x), device=x.device)

    @torch.no_grad()
    def eager() -> torch.Tensor:
        return net(x, times)

    if x.device.type != "cuda":
        return {"eager": eager}
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            eager()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        eager()
    return {"eager": eager, "graph": graph.replay}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--matrix", type=int, default=8192)
    given = parser.parse_args()
    device = usable_device(given.device)
    peaks = {name: peak(device, dtype, given.matrix) for name, dtype in DTYPES.items()}
    found: dict[str, object] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "batch": given.batch,
        "peak_tflops": {name: round(flops / 1e12, 3) for name, flops in peaks.items()},
    }
    x = torch.randn(given.batch, *SHAPE, device=device)
    with FlopCounterMode(display=False) as counter:
        training(network(given.channels, device), x[:1], torch.float32)()
    flops = counter.get_total_flops() * given.batch

    for name, compiled, last in product(DTYPES, (False, True), (False, True)):
        layout = torch.channels_last if last else torch.contiguous_format
        net = network(given.channels, device).to(memory_format=layout)
        if compiled:
            net.compile()
        work = training(net, x.to(memory_format=layout), DTYPES[name])
        took = seconds(work, device, given.steps)
        key = "-".join(["compiled" if compiled else "eager", name, *["last"] * last])
        found[key] = {
            "images_per_second": round(given.batch / took, 1),
            "share_of_peak": round(flops / took / peaks[name], 3),
        }
        print(key, found[key], flush=True)

    for batch in (1, 64):
        net = network(given.channels, device)
        for name, work in sampling(net, torch.randn(batch, *SHAPE, device=device)).items():
            took = seconds(work, device, given.steps)
            found[f"sample-{name}-{batch}"] = {"milliseconds": round(took * 1e3, 2)}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
