"""Whether forward-mode derivatives of a network run, and whether they are right."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.core import expand, widest
from fewstep.derivatives import finite_difference, jvp
from fewstep.doctor.findings import Finding, Severity
from fewstep.doctor.probe import Probe
from fewstep.models import AbstractDenoiser, Denoiser

COPIED = 2**30
"""Networks with more parameters than this are not copied in float64."""
WRONG = 1e-3
"""Largest error, as a share of the derivative's norm; in float64 a right one has 1e-6."""
STEPS = (1e-4, 1e-5, 1e-6)
SAMPLES, TIMES = 2, 3
NEEDED_BY = "sCM, MeanFlow, rCM and flow maps"
AROUND = f"give {NEEDED_BY} --train.derivative difference; other methods do without"

Call = Callable[[Tensor, Tensor], Tensor]


def derivatives(probe: Probe) -> Finding:
    """Run forward mode in x and time; compare it with finite differences in float64."""
    denoiser = probe.denoiser
    try:
        _, tangent = _tangent(*_network(probe, denoiser))
    except Exception as error:  # whatever a user's own network raises
        first = (str(error).splitlines() or [type(error).__name__])[0]
        return _finding(f"forward mode fails ({first})", "warn", AROUND)
    if not bool(tangent.isfinite().all()):
        return _finding("forward mode is not finite", "warn", AROUND)
    if sum(p.numel() for p in denoiser.parameters()) > COPIED:
        return _finding("forward mode runs; too large to compare it", "note", "fine")
    device = probe.x0.device
    on = device if widest(device) == torch.float64 else torch.device("cpu")
    return _compared(*_network(probe, copy.deepcopy(denoiser).to(on).double()))


def _compared(call: Call, x: Tensor, c: Tensor) -> Finding:
    direction, tangent = _tangent(call, x, c)
    tangents = (direction, torch.ones_like(c))
    differences = [finite_difference(step)(call, (x, c), tangents)[1] for step in STEPS]
    wrong = min(float((tangent - d).norm() / d.norm().clamp(min=1e-30)) for d in differences)
    _, in_time = jvp(call, (x, c), (torch.zeros_like(x), torch.ones_like(c)))
    # The same samples at each other's times: what time changes over the path.
    value = call(x, c)
    over_path = float((call(x, c.roll(SAMPLES)) - value).norm() / value.norm().clamp(min=1e-30))
    numbers = {"difference": wrong, "over_path": over_path, "in_time": float(in_time.norm())}
    if over_path > WRONG and not bool(in_time.any()):
        return _finding(
            "the derivative in time is 0, though answers change over the path",
            "warn",
            f"the network rounds its time: embed it unrounded for {NEEDED_BY}, where "
            "--train.derivative difference does not help either; other methods do without",
            numbers,
        )
    if not wrong < WRONG:
        return _finding(
            f"forward mode differs from finite differences by {wrong:.2g} of its norm",
            "warn",
            f"an operation has a wrong rule, or values are rounded: {AROUND}",
            numbers,
        )
    value = f"forward mode runs, within {wrong:.1g} of finite differences"
    if over_path <= WRONG:
        advice = "check that the network reads its time: answers do not depend on it"
        return _finding(value, "warn", advice, numbers)
    return _finding(value, "fine", "fine", numbers)


def _finding(
    value: str, severity: Severity, advice: str, numbers: dict[str, float] | None = None
) -> Finding:
    return Finding(
        name="derivatives", value=value, advice=advice, severity=severity, numbers=numbers or {}
    )


def _tangent(call: Call, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """A direction in x, and the derivative along it and time."""
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
    return direction, jvp(call, (x, c), (direction, torch.ones_like(c)))[1]


def _network(probe: Probe, denoiser: AbstractDenoiser) -> tuple[Call, Tensor, Tensor]:
    """The network as a function of its input and its time, and some of both.

    Of another denoiser than a plain one, it is the answer as a function of x and t.
    """
    weight = next(denoiser.parameters())
    few = probe.repeated(SAMPLES)
    times = probe.times(TIMES + 2)[1:-1]
    x = torch.cat([few.noisy(time) for time in times]).to(weight.device)
    t = torch.cat([few.at(time) for time in times]).to(weight.device)
    cond = {k: torch.cat([v] * TIMES).to(weight.device) for k, v in few.cond.items()}
    if weight.dtype == torch.float64:
        x, t = x.double(), t.double()
        cond = {k: v.double() if v.is_floating_point() else v for k, v in cond.items()}
    if not isinstance(denoiser, Denoiser):
        return lambda x, t: denoiser(x, t, None, cond), x, t
    _, _, c_in, c_noise = denoiser.preconditioning.coefficients(t)
    kinds = weight.dtype, getattr(denoiser.net, "time_dtype", weight.dtype)
    own = {key: cond[key] for key in (*denoiser.cond_keys, *denoiser.optional_keys) if key in cond}

    def call(x: Tensor, c: Tensor) -> Tensor:
        return denoiser.net(x, c, c if denoiser.two_time else None, own)

    return call, (expand(c_in, x) * x).to(kinds[0]), c_noise.to(kinds[1])
