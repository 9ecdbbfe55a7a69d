"""What a call of the network costs, and whether its answers and weights are finite."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from fewstep.doctor.findings import Finding
from fewstep.doctor.probe import Probe
from fewstep.system.allocations import Watched

MIB = 2**20
REPEATS = 5
BATCHES = (1, 16)


def answers(probe: Probe) -> Finding:
    """Whether answers at both ends of the path are finite."""
    model = probe.model
    start = model.contract.sampling.start.t
    path = model.denoiser.path
    end = path.t_min
    if not float(path.coefficients(torch.tensor([end], dtype=torch.float64)).sigma) > 0:
        end = model.times()[-1]  # samplers do not call the network on clean data
    bad = {}
    for name, t, x in (("start", start, probe.start()), ("end", end, probe.noisy(end, path))):
        out = model.denoiser(x, probe.at(t), None, probe.cond)
        bad[name] = 1 - float(out.isfinite().double().mean())
    numbers = {"start": start, "end": end, **{f"bad_at_{k}": v for k, v in bad.items()}}
    if not any(bad.values()):
        value = f"all finite at t={start:g} and t={end:g}"
        return Finding(name="answers", value=value, numbers=numbers)
    value = ", ".join(
        f"{share:.0%} not finite at t={numbers[name]:g}" for name, share in bad.items() if share
    )
    advice = (
        "check the weights; a preconditioning that divides by alpha or sigma needs a path whose "
        "t_max or t_min stops before they are 0, or another preconditioning (v, flow)"
    )
    return Finding(name="answers", value=value, advice=advice, severity="stop", numbers=numbers)


def weights(probe: Probe) -> Finding:
    """The precision of the weights, and whether they are finite."""
    parameters = [*probe.model.denoiser.parameters()]
    bad = sum(int((~p.isfinite()).sum()) for p in parameters)
    kinds = sorted({str(p.dtype).removeprefix("torch.") for p in parameters})
    count = sum(p.numel() for p in parameters)
    value = f"{count:,} parameters in {', '.join(kinds)}"
    numbers = {"parameters": count, "dtypes": kinds, "not_finite": bad}
    severity, advice = "fine", "fine"
    if bad:
        value = f"{value}, {bad:,} of them not finite"
        severity, advice = "stop", "take an earlier checkpoint: this one diverged"
    elif {"float16", "bfloat16"} & set(kinds):
        severity, advice = "warn", "convert the model with model.denoiser.float() before distilling"
    return Finding(name="weights", value=value, advice=advice, severity=severity, numbers=numbers)


def cost(probe: Probe, limit: float = 20.0) -> Finding:
    """Time and memory of a call, and what a sample of the default sampling costs.

    Memory is the weights and, beside them, the most bytes of tensors that live during a call; a
    device's allocator and its kernels take some more.

    Args:
        probe: with any samples.
        limit: seconds after which no further call is timed.
    """
    model = probe.model
    calls = model.calls() * model.denoiser.calls
    held = sum(t.untyped_storage().nbytes() for t in model.denoiser.state_dict().values())
    numbers: dict[str, float | None] = {"calls": calls, "weights_bytes": held}
    began = time.perf_counter()
    parts = []
    for size in BATCHES:
        work = _call(probe.repeated(size))
        try:
            peak = held + _most_alive(work)
            seconds, repeats = _seconds(work, probe.x0.device, began + limit)
        except torch.OutOfMemoryError:
            parts.append(f"batch {size} does not fit")
            break
        numbers |= {f"seconds_{size}": seconds, f"peak_bytes_{size}": peak}
        parts.append(f"{seconds * 1e3:,.3g} ms and {peak / MIB:,.0f} MiB at batch {size}")
        if repeats < REPEATS:
            parts.append(f"{repeats} {_calls(repeats)} timed, the limit is {limit:g} s")
            break
    each = numbers.get(f"seconds_{BATCHES[0]}")
    value = f"a call takes {', '.join(parts)}; a sample takes {calls} {_calls(calls)}"
    if each is None:
        advice = "one sample does not fit: take a larger device or a smaller model"
        return Finding(name="cost", value=value, advice=advice, severity="stop", numbers=numbers)
    if calls > 1:
        value += f", {calls * each:,.2g} s"
    return Finding(name="cost", value=value, numbers=numbers)


def _calls(count: int) -> str:
    return "call" if count == 1 else "calls"


def _call(probe: Probe) -> Callable[[], Tensor]:
    """A call of the denoiser in the middle of the path."""
    path = probe.model.denoiser.path
    (middle,) = probe.times(3, path)[1:2]
    x, t = probe.noisy(middle, path), probe.at(middle)
    return lambda: probe.model.denoiser(x, t, None, probe.cond)


def _most_alive(work: Callable[[], Tensor]) -> int:
    with Watched() as watched:
        work()
    return max(watched.line, default=0)


def _seconds(
    work: Callable[[], Tensor], device: torch.device, deadline: float
) -> tuple[float, int]:
    """The median of some calls, and their number; at least one, and none after the deadline."""
    times: list[float] = []
    while len(times) < REPEATS and (not times or time.perf_counter() < deadline):
        began = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        times.append(time.perf_counter() - began)
    return median(times), len(times)
