"""Where the path ends, how large the data is, and whether values stay in their range."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.doctor.findings import Finding
from fewstep.doctor.probe import Probe
from fewstep.doctor.readings import declared_sigma_data

VISIBLE = 0.02
"""From this signal over noise on, the data shows in what one-call students start from."""
START_OFF = 0.05
"""Share by which the start's standard deviation may differ from that of noisy data."""
SCALE_OFF = 1.2
"""Ratio from which the data's scale counts as another than the network's."""
MARGIN = 0.1
"""Share of the range's width that values may leave it by."""
DATA_BEYOND, ANSWERS_BEYOND = 0.01, 0.05
"""Share of values that may lie further out."""
FEW_CHANNELS = 4


def terminal(probe: Probe) -> Finding:
    """How much of the data is left where sampling starts."""
    model = probe.model
    path, start = model.denoiser.path, model.contract.sampling.start
    alpha, sigma = (
        float(c) for c in path.coefficients(torch.tensor([start.t], dtype=torch.float64))[:2]
    )
    std = probe.std
    signal = alpha * std / sigma
    needed = ((alpha * std) ** 2 + sigma**2) ** 0.5
    whose = "" if probe.has_data else " for data of an assumed standard deviation 0.5"
    value = f"at t={start.t:g} signal / noise is {signal:.2g}{whose}"
    numbers = {
        "t": start.t,
        "alpha": alpha,
        "sigma": sigma,
        "signal_over_noise": signal,
        "snr": (alpha / sigma) ** 2,
        "start_std": start.std,
        "noisy_std": needed,
    }
    name, severity, advice = "terminal SNR", "fine", "fine"
    if abs(start.std / needed - 1) > START_OFF:
        severity = "warn"
        value += f", and sampling starts from standard deviation {start.std:g}"
        advice = f"set sampling.start.std to {needed:.4g}, which noisy data has there"
    elif signal > VISIBLE:
        severity = "warn"
        advice = (
            "one-call students start where the data still shows, so pure noise is off: distil a "
            f"teacher with a zero-terminal-SNR schedule, or keep start.std = {needed:.4g} and "
            "expect a wrong brightness"
        )
    elif start.t < path.t_max * (1 - 1e-6):
        severity = "note"
        advice = f"the path goes on to t={path.t_max:g}; students start at {start.t:g} too"
    return Finding(name=name, value=value, advice=advice, severity=severity, numbers=numbers)


def scale(probe: Probe) -> Finding:
    """The data's standard deviation beside the one that the network was made for."""
    sigma_data = declared_sigma_data(getattr(probe.denoiser, "preconditioning", None))
    made = "no sigma_data" if sigma_data is None else f"sigma_data {sigma_data:g}"
    name = "scale of the data"
    if not probe.has_data:
        value = f"not measured without data; the network has {made}"
        return Finding(name=name, value=value, advice="give --data", severity="note")
    x0 = probe.x0
    std = float(x0.std())
    numbers = {"std": std, "mean": float(x0.mean()), "sigma_data": sigma_data}
    value = f"standard deviation {std:.3g}"
    channels = x0.transpose(0, 1).flatten(1).std(1).tolist() if x0.ndim > 1 else [std]
    numbers["channels"] = channels
    if 1 < len(channels) <= FEW_CHANNELS:
        value += f" (by channel {', '.join(f'{c:.3g}' for c in channels)})"
    elif len(channels) > 1:
        value += f" (by channel {min(channels):.3g} to {max(channels):.3g})"
    value += f", the network has {made}"
    if std == 0:
        return Finding(
            name=name,
            value=value,
            advice="all samples are equal: check the data",
            severity="stop",
            numbers=numbers,
        )
    if sigma_data is None:
        advice = f"fine; methods that ask for sigma_data need {std:.3g}"
        return Finding(name=name, value=value, advice=advice, numbers=numbers)
    ratio = std / sigma_data
    numbers["ratio"] = ratio
    if 1 / SCALE_OFF <= ratio <= SCALE_OFF:
        return Finding(name=name, value=value, numbers=numbers)
    advice = (
        f"multiply the data by {1 / ratio:.3g} if the teacher was trained so (latents have a scale "
        f"factor), or train the teacher with sigma_data={std:.3g}"
    )
    return Finding(
        name=name,
        value=f"{value}: {ratio:.3g} times",
        advice=advice,
        severity="warn",
        numbers=numbers,
    )


def values(probe: Probe, times: int = 4) -> Finding:
    """The range of the data and of the model's answers beside the contract's."""
    answers = _answers(probe, times)
    limits = probe.model.contract.data.range
    numbers: dict[str, object] = {"range": limits}
    parts = []
    for name, x in (("data", probe.x0 if probe.has_data else None), ("answers", answers)):
        if x is not None:
            low, high = float(x.min()), float(x.max())
            numbers[name] = (low, high)
            parts.append(f"{name} in [{low:.3g}, {high:.3g}]")
    bounds = "unbounded" if limits is None else f"in [{limits[0]:g}, {limits[1]:g}]"
    value = f"{', '.join(parts)}; the contract says {bounds}"
    severity, advice = "fine", "fine"
    if limits is None:
        if probe.has_data and probe.x0.ndim == 4 and probe.x0.shape[1] in {1, 3}:
            inside = float(probe.x0.abs().max()) <= 1
            if inside:
                severity = "note"
                advice = "if these are pixels, set data.range to [-1, 1] in config.json"
        return Finding(name="range", value=value, advice=advice, severity=severity, numbers=numbers)
    low, high = limits
    beyond = numbers["answers_beyond"] = _share_beyond(answers, low, high)
    if probe.has_data:
        outside = numbers["data_beyond"] = _share_beyond(probe.x0, low, high)
        if outside > DATA_BEYOND:
            severity = "stop"
            advice = (
                f"{outside:.0%} of the data lies outside: scale pixels to [{low:g}, {high:g}], or "
                "set data.range to null for latents"
            )
        elif low < 0 <= float(probe.x0.min()) and float(probe.x0.max()) > 0:
            severity = "warn"
            advice = f"no value is below 0: scale pixels to [{low:g}, {high:g}], not [0, 1]"
    if severity == "fine" and beyond > ANSWERS_BEYOND:
        severity = "warn"
        advice = (
            f"{beyond:.0%} of the answers' values lie outside: check the parametrisation, or set "
            "data.range to null if the model makes latents"
        )
    return Finding(name="range", value=value, advice=advice, severity=severity, numbers=numbers)


def _answers(probe: Probe, times: int) -> Tensor:
    """Clean answers at times spread over the path; without data, those to pure noise."""
    if not probe.has_data:
        return probe.x0
    denoiser = probe.denoiser
    return torch.cat(
        [
            denoiser(part.noisy(time), part.at(time), None, part.cond)
            for part in probe.chunks()
            for time in probe.times(times)
        ]
    )


def _share_beyond(x: Tensor, low: float, high: float) -> float:
    room = MARGIN * (high - low)
    return float(((x < low - room) | (x > high + room)).double().mean())
