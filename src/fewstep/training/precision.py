"""Which precision is the fastest here: measured at a run's start on two layers of its own.

Half precision is faster than float32 where the processor has instructions for it, and up to 60
times slower where it has none. Nothing that torch can be asked tells the two apart on every device,
so :func:`decided` times the network's largest convolution and its largest matrix product, forward
and backward, in both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fewstep.core import widest
from fewstep.data import Dataset
from fewstep.models import AbstractDenoiser
from fewstep.system.processes import ALONE, World
from fewstep.training.config import Precision, Run

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The types of autocast, by precision."""
SECONDS = 0.5
"""A measurement's length, at most, but for its first calls."""
PAIRS = 15
"""Calls in each precision, at most."""
CALL = 0.004
"""Seconds of one call in float32 from which the clock is exact enough."""
HOPELESS = 3.0
"""Where the first calls are so many times slower in half precision, no more are needed."""
SMALLEST = 1e8
"""Multiplications and additions of a microbatch below which time goes elsewhere."""
MARGIN = 1.05
"""Half precision has to be faster by this factor to be chosen; slower by it, it is warned of."""

_CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d}


@dataclass(frozen=True)
class Layer:
    """A convolution or a matrix product, as a network calls it.

    Args:
        call: the function of torch.
        rows: of the input that belong to one sample.
        input: shape of a row.
        weight: shape.
        settings: of a convolution: stride, padding and the like, by name.
        work: multiplications and additions of one sample in this layer.
        total: the same in all layers of its kind.
    """

    call: Callable[..., Tensor]
    rows: int
    input: tuple[int, ...]
    weight: tuple[int, ...]
    settings: Mapping[str, Any]
    work: float
    total: float = 0.0


@dataclass(frozen=True)
class Decision:
    """The precision of a run, and why.

    Args:
        precision: of the run.
        asked: what the settings say: a precision, or auto.
        ratio: seconds in float32 over seconds in half precision; None where none was measured.
        reason: in words, for the header; empty where there is nothing to say.
    """

    precision: Precision
    asked: str
    ratio: float | None = None
    reason: str = ""

    def record(self) -> dict[str, Any]:
        """What run.json keeps beside the setting; nothing where none was measured or chosen."""
        if self.asked != "auto":
            return {}
        return {"precision": {"asked": self.asked, "ratio": self.ratio, "reason": self.reason}}


def decided(
    run: Run, device: torch.device, world: World = ALONE, before: Mapping[str, Any] | None = None
) -> tuple[Run, Decision]:
    """The run with a precision in the place of ``auto``, which all processes share.

    Args:
        run: what will be trained.
        device: where.
        world: the processes; the first of them decides.
        before: the content of the run's run.json, where it is resumed: what it says stays.

    Returns:
        The run, and the decision; of a precision that was given, whether it is slow here.
    """
    decision = world.agreed(_decision(run, device, before) if world.first else None)
    return replace(run, config=replace(run.config, precision=decision.precision)), decision


def _decision(run: Run, device: torch.device, before: Mapping[str, Any] | None) -> Decision:
    asked = run.config.precision
    recorded: Any = before
    for key in ("run", "train", "precision"):
        recorded = recorded.get(key) if isinstance(recorded, Mapping) else None
    if asked == "auto" and recorded in ("fp32", *HALVES):
        return Decision(recorded, recorded, reason=f"precision: {recorded}, as the run began")
    if asked == "fp32":
        return Decision(asked, asked)
    if asked == "auto" and run.objective.capabilities.forward_mode:
        why = (
            "precision: fp32, because half precision costs a derivative in forward mode its digits"
        )
        return Decision("fp32", asked, reason=why)
    half: Precision = "bf16" if asked == "auto" else asked
    layers = largest_layers(run.objective.student, run.data)
    work = run.config.batch * sum(layer.total for layer in layers)
    if work < SMALLEST:
        if asked != "auto":
            return Decision(half, asked)
        why = "precision: fp32, because the network is too small for half precision to be faster"
        return Decision("fp32", asked, reason=why)
    ratio = speedup(layers, run.config.batch, device, HALVES[half])
    said = f"{half} is {ratio:.2f} times as fast as fp32 in the run's largest layers on {device}"
    if asked != "auto":
        slow = ratio * MARGIN < 1
        advice = f"warning: {said}; --train.precision fp32 or auto would train faster"
        return Decision(half, asked, ratio, advice if slow else "")
    precision: Precision = half if ratio > MARGIN else "fp32"
    return Decision(precision, asked, ratio, f"precision: {precision}, because {said}")


def largest_layers(student: AbstractDenoiser, data: Dataset) -> list[Layer]:
    """The student's convolution and its matrix product with the most work, each where it has one.

    Args:
        student: of any networks; it stays where it is.
        data: two of its samples pass the student.
    """
    device = next((p.device for p in student.parameters()), torch.device("cpu"))
    batch, path = data.batch([0, 1 % len(data)]).to(device), student.path
    t = path.time(torch.tensor([0.3, 1.5], dtype=widest(device), device=device))
    s = t / 2 if student.two_time else None
    cond = {k: torch.ones(2, device=device) for k in student.cond_keys} | dict(batch.cond)
    training = student.training
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _Layers() as layers:
        student.eval()
        try:
            student(path.perturb(batch.x0, torch.zeros_like(batch.x0), t), t, s, cond)
        finally:
            student.train(training)
    largest = []
    for convolution in (True, False):
        kind = [x for x in layers.seen if (x.call in _CONVOLUTIONS) == convolution]
        if kind:
            total = sum(layer.work for layer in kind)
            largest.append(replace(max(kind, key=lambda layer: layer.work), total=total))
    return largest


class _Layers(TorchFunctionMode):
    """Notes the convolutions and matrix products that two samples pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Layer] = []

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        if (func in _CONVOLUTIONS or func is F.linear) and len(args) > 1:
            x, weight = args[:2]
            names = ("bias", "stride", "padding", "dilation", "groups")
            given = {**dict(zip(names, args[2:], strict=False)), **(kwargs or {})}
            given.pop("bias", None)
            work, rows = answer.numel() / 2 * weight[0].numel(), max(1, len(x) // 2)
            shapes = tuple(x.shape[1:]), tuple(weight.shape)
            self.seen.append(Layer(func, rows, *shapes, given, work))
        return answer


def speedup(layers: Sequence[Layer], batch: int, device: torch.device, half: torch.dtype) -> float:
    """Seconds of the layers in float32 over those in half precision, each by its share of work.

    Args:
        layers: see :func:`largest_layers`.
        batch: samples of a microbatch; fewer are taken where so many would take too long.
        device: where.
        half: the type of half precision.
    """
    times = torch.tensor([_timed(layer, batch, device, half, len(layers)) for layer in layers])
    return float(times[:, 0].sum() / times[:, 1].sum())


def _timed(
    layer: Layer, batch: int, device: torch.device, half: torch.dtype, parts: int
) -> tuple[float, float]:
    """Median seconds of one sample's work of this kind, in float32 and in half precision."""
    n, share = 1, SECONDS / parts
    while True:
        single, double = (_calls(layer, n, device, dtype) for dtype in (None, half))
        pair = single(), double()  # the first calls of a shape compile kernels
        pair = single(), double()
        hopeless = pair[1] > max(HOPELESS * pair[0], CALL)
        if hopeless or n >= batch or pair[0] > CALL:
            break
        n = min(batch, 4 * n)
    pairs, began = [pair], time.perf_counter()
    while not hopeless and len(pairs) < PAIRS and time.perf_counter() - began < share:
        pairs.append((single(), double()))
    scale = layer.total / layer.work / n
    full, halved = (median(side) * scale for side in zip(*pairs, strict=True))
    return full, halved


def _calls(
    layer: Layer, n: int, device: torch.device, dtype: torch.dtype | None
) -> Callable[[], float]:
    """A forward and a backward pass of a layer on ``n`` samples, which returns its seconds."""
    rng = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(shape, generator=rng, dtype=torch.float32).to(device).requires_grad_()
        for shape in ((n * layer.rows, *layer.input), layer.weight)
    )

    def wait() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize()

    def call() -> float:
        wait()
        began = time.perf_counter()
        with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
            answer = layer.call(x, weight, **layer.settings)
        answer.sum().backward()
        wait()
        return time.perf_counter() - began

    return call
