"""What a model makes of its label, of no label, and of a guidance scale."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.doctor.findings import Finding, Severity
from fewstep.doctor.probe import Probe

NAME = "guidance"
LEAST = 1e-3
"""Change of the answers, over the data's scale, below which a label counts as ignored."""
WORSE = 1.05
"""How many times the error of wrong labels the null label has to have to be untrained."""
TIMES = 4


def guidance(probe: Probe) -> Finding:
    """Whether, and how, the model can be guided."""
    denoiser, contract = probe.model.denoiser, probe.model.contract
    classes, allowed = contract.data.labels, contract.sampling.guidance
    keys = (*denoiser.cond_keys, *getattr(denoiser, "optional_keys", ()))
    limits = "" if allowed is None else f"from {allowed.min:g} to {allowed.max:g}"
    if "guidance" in keys and allowed is not None and allowed.embedded:
        return _finding(f"the network reads a scale {limits} itself", "fine", "fine")
    if "guidance" in keys:
        return _finding(
            "the network reads a guidance scale itself",
            "note",
            "give the scale as its condition, and leave --guidance out: it is guided already",
        )
    if "label" not in keys:
        if allowed is None:
            return _finding("none, the network reads no label", "fine", "fine")
        if read := [name for name in contract.data.nulls if name in keys]:
            return _finding(f"scales {limits}, against no {', '.join(read)}", "fine", "fine")
        return _finding(
            f"the contract allows scales {limits}, but the network reads no label",
            "warn",
            "leave --guidance out, and set sampling.guidance to null in config.json",
        )
    if not (classes and "label" in probe.cond):
        return _finding("the contract has no labels, the network reads one", "stop", "set labels")
    label = probe.cond["label"]
    own = _answers(probe, label)
    other = _answers(probe, (label + 1) % classes)
    numbers = {"label_changes": _change(own, other, probe)}
    if classes > 1 and numbers["label_changes"] < LEAST:
        return _finding(
            f"labels change the answers by {numbers['label_changes']:.1g} of the data's scale",
            "warn",
            "the network ignores its labels: leave --guidance out, and expect no classes",
            numbers,
        )
    if allowed is None:
        return _finding(
            f"{classes} labels, and the contract allows none",
            "note",
            "leave --guidance out: this model was trained without a null label",
            numbers,
        )
    try:
        null = _answers(probe, torch.full_like(label, classes))
    except (IndexError, RuntimeError) as error:
        return _finding(
            f"the network refuses the null label {classes}: {str(error).splitlines()[0]}",
            "warn",
            "leave --guidance out, and set sampling.guidance to null in config.json",
            numbers,
        )
    numbers["null_changes"] = _change(own, null, probe)
    value = f"scales {limits}; no label changes the answers by {numbers['null_changes']:.2g}"
    if not numbers["null_changes"] >= LEAST:
        return _finding(
            value, "warn", "leave --guidance out: it has no effect or no answer", numbers
        )
    if not probe.has_data:
        advice = "give --data to see whether the null label was trained"
        return _finding(value, "note", advice, numbers)
    errors = {
        name: _error(answers, probe)
        for name, answers in (("own", own), ("wrong", other), ("null", null))
    }
    numbers |= {f"{name}_label_error": error for name, error in errors.items()}
    value += " of the data's scale"
    if errors["null"] > WORSE * max(errors["wrong"], errors["own"]):
        return _finding(
            f"{value}, and is worse than wrong labels "
            f"({errors['null'] / errors['wrong']:.3g} times the error)",
            "warn",
            "leave --guidance out: the null label was never trained (drop labels in training)",
            numbers,
        )
    return _finding(value, "fine", "fine", numbers)


def _finding(
    value: str, severity: Severity, advice: str, numbers: dict[str, float] | None = None
) -> Finding:
    return Finding(name=NAME, value=value, advice=advice, severity=severity, numbers=numbers or {})


def _times(probe: Probe) -> list[float]:
    """Noise levels around the data's scale, where a label matters."""
    return probe.times(TIMES + 2)[1:-1]


def _answers(probe: Probe, label: Tensor) -> Tensor:
    """Answers with these labels, ``(times, n, *shape)``."""
    denoiser = probe.denoiser
    return torch.stack(
        [
            denoiser(probe.noisy(t), probe.at(t), None, {**probe.cond, "label": label})
            for t in _times(probe)
        ]
    )


def _change(one: Tensor, other: Tensor, probe: Probe) -> float:
    return float(((one - other) ** 2).mean().sqrt()) / probe.std


def _error(answers: Tensor, probe: Probe) -> float:
    return float(((answers - probe.x0) ** 2).mean())
