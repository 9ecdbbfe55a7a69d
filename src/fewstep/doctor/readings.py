"""Which parametrisation explains a network's raw output best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core import expand, per_sample
from fewstep.doctor.findings import Finding, Severity
from fewstep.doctor.probe import CHUNK, Probe
from fewstep.models import (
    EDM,
    PRECONDITIONINGS,
    DataPrediction,
    Denoiser,
    Flow,
    NoisePrediction,
    Preconditioning,
    ScoreMatching,
    TrigFlow,
    VPrediction,
)
from fewstep.paths import Path, Trig, VarianceExploding

NAME = "parametrisation"
LEVELS = 10
BETTER = 1.25
"""Times the error of another reading that the declared one has to have to be wrong."""
SLIGHTLY, SURE = 1.01, 3.0
"""To be doubtful: likewise, and standard errors by which the two differ."""
POOR, USELESS = 1.15, 2.0
"""Errors, relative to a linear predictor's, of a network that is hardly trained or not at all."""
BARELY = 0.98
"""From this error on, a network predicts no better than a line does."""
ANY_LEVEL = VarianceExploding(1e-9, 1e9)


@dataclass(frozen=True)
class Reading:
    """What a raw output may mean: its scalings, and whether its sign is turned."""

    scalings: Preconditioning
    sign: int = 1

    def answer(self, x: Tensor, out: Tensor, t: Tensor) -> Tensor:
        """The clean data that the output means then."""
        c_skip, c_out, _, _ = self.scalings.coefficients(t)
        return expand(c_skip, x) * x + self.sign * expand(c_out, x) * out


def readings(path: Path, sigma_data: float) -> dict[str, Reading]:
    """Every reading of an output on a path, by its kind in ``config.json``."""
    v, flow = VPrediction(path=path), Flow(path=path)
    return {
        "noise": Reading(NoisePrediction(path=path)),
        "data": Reading(DataPrediction(path=path)),
        "v": Reading(v),
        "flow": Reading(flow),
        "edm": Reading(EDM(sigma_data=sigma_data, path=ANY_LEVEL).on(path)),
        "trigflow": Reading(TrigFlow(path=Trig(sigma_data=sigma_data)).on(path)),
        "score": Reading(ScoreMatching(path=ANY_LEVEL).on(path)),
        "v with its sign turned": Reading(v, -1),
        "flow with its sign turned": Reading(flow, -1),
    }


def parametrisation(probe: Probe, levels: int = LEVELS, deep: bool = True) -> Finding:
    """Compare every reading of the network's output with the declared one.

    The error of a reading is the mean squared error of its clean data over that of the best linear
    predictor of each coordinate, as a geometric mean over noise levels. It is 1 for an exact
    network of Gaussian data, and less for one that knows more than means and variances.

    Args:
        probe: with data; without, only answers to pure noise are looked at.
        levels: number of noise levels.
        deep: whether to also try other scalings of the input where no reading fits.
    """
    denoiser = probe.denoiser
    if not probe.has_data:
        return _without_data(probe)
    times = probe.times(levels)
    if not isinstance(denoiser, Denoiser):
        errors = _errors(probe, times, {}, None)
        return _verdict(probe, type(denoiser).__name__, "", errors)
    scalings = denoiser.preconditioning
    declared = kind_of(scalings)
    sigma_data = declared_sigma_data(scalings) or 0.5
    others = readings(denoiser.path, sigma_data)
    others.pop(declared, None)
    errors = _errors(probe, times, others, scalings)
    least = min(map(geometric_mean, errors.values()))
    feed = _better_feed(probe.first(CHUNK), times[::2], least) if deep and least > POOR else ""
    best = min(others, key=lambda name: geometric_mean(errors[name]))
    silent = geometric_mean(_silent(probe, times, others[best]))
    return _verdict(probe, declared, feed, errors, silent)


def kind_of(scalings: Preconditioning) -> str:
    """The kind in ``config.json``."""
    return next(
        (name for name, cls in PRECONDITIONINGS.items() if cls is type(scalings)),
        type(scalings).__name__,
    )


def declared_sigma_data(scalings: object) -> float | None:
    """The data's standard deviation that scalings or their path were made for, if any."""
    for owner in (scalings, getattr(scalings, "path", None)):
        value = getattr(owner, "sigma_data", None)
        if value is not None:
            return float(value)
    return None


def geometric_mean(errors: Tensor) -> float:
    """Over noise levels, of the mean over samples; infinite if one is not finite."""
    levels = errors.mean(1)
    return (
        float(levels.clamp(min=1e-30).log().mean().exp()) if levels.isfinite().all() else math.inf
    )


def standard_errors(worse: Tensor, better: Tensor) -> float:
    """By how many of them the mean errors differ; samples are paired, noise levels weigh alike."""
    difference = ((worse - better) / better.mean(1, keepdim=True)).mean(0)
    return float(difference.mean() / difference.std() * len(difference) ** 0.5)


def linear_answer(probe: Probe, x: Tensor, time: float, mean: Tensor, variance: Tensor) -> Tensor:
    """The best prediction of each coordinate by a line through its noisy value."""
    alpha, sigma, _, _ = probe.denoiser.path.coefficients(probe.at(time))
    alpha, sigma = expand(alpha, x), expand(sigma, x)
    gain = alpha * variance / (alpha**2 * variance + sigma**2)
    return mean + gain * (x - alpha * mean)


DECLARED = "as declared"


def _errors(
    probe: Probe,
    times: Sequence[float],
    others: dict[str, Reading],
    feed: Preconditioning | None,
) -> dict[str, Tensor]:
    """The errors ``(levels, n)`` of readings, and those of the denoiser itself ``as declared``.

    ``feed`` scales the network's input; without it, only the denoiser's answers are judged.
    """
    denoiser = probe.denoiser
    mean, variance = probe.x0.mean(0), probe.x0.var(0, correction=0)
    errors: dict[str, list[Tensor]] = {DECLARED: [], **{name: [] for name in others}}
    for time in times:
        line: list[Tensor] = []
        level: dict[str, list[Tensor]] = {name: [] for name in errors}
        for part in probe.chunks():
            x, t = part.noisy(time), part.at(time)
            line.append(per_sample((linear_answer(part, x, time, mean, variance) - part.x0) ** 2))
            if feed is None or not isinstance(denoiser, Denoiser):
                answers = {DECLARED: denoiser(x, t, None, part.cond)}
            else:
                out = Denoiser(denoiser.net, feed).raw(x, t, None, part.cond)
                answers = {DECLARED: Reading(feed).answer(x, out, t)}
                answers |= {name: other.answer(x, out, t) for name, other in others.items()}
            for name, answer in answers.items():
                level[name].append(per_sample((answer - part.x0) ** 2))
        least = torch.cat(line).mean().clamp(min=1e-30)
        for name, parts in level.items():
            errors[name].append(torch.cat(parts) / least)
    return {name: torch.stack(levels).cpu() for name, levels in errors.items()}


def _silent(probe: Probe, times: Sequence[float], reading: Reading) -> Tensor:
    """The errors ``(levels, n)`` that a reading would have of a network whose output is 0."""
    mean, variance = probe.x0.mean(0), probe.x0.var(0, correction=0)
    levels = []
    for time in times:
        x = probe.noisy(time)
        line = per_sample((linear_answer(probe, x, time, mean, variance) - probe.x0) ** 2)
        answer = reading.answer(x, torch.zeros_like(x), probe.at(time))
        levels.append(per_sample((answer - probe.x0) ** 2) / line.mean().clamp(min=1e-30))
    return torch.stack(levels).cpu()


def _better_feed(probe: Probe, times: Sequence[float], least: float) -> str:
    """Another scaling of input and time with which a reading fits, in words, or nothing."""
    path = probe.denoiser.path
    feeds: dict[str, Preconditioning] = {
        f"x and {scale:g} t": NoisePrediction(time_scale=scale, path=path) for scale in (1.0, 999.0)
    }
    for sigma_data in (0.5, 1.0, float(f"{probe.std:.2g}")):
        for scale in (0.25, 250.0):
            edm = EDM(sigma_data=sigma_data, time_scale=scale, path=ANY_LEVEL).on(path)
            feeds[f"EDM's input (sigma_data {sigma_data:g}, time_scale {scale:g})"] = edm
    fits: dict[str, float] = {}
    for name, feed in feeds.items():
        others = readings(path, declared_sigma_data(getattr(feed, "inner", feed)) or 0.5)
        errors = _errors(probe, times, others, feed)
        del errors[DECLARED]
        for kind, levels in errors.items():
            words = f"the network fits with {name} as its input, read as {kind}"
            fits[words] = geometric_mean(levels)
    best = min(fits, key=lambda words: fits[words])
    return f"{best} ({fits[best]:.3g})" if fits[best] < min(least / BETTER, POOR) else ""


def _verdict(
    probe: Probe,
    declared: str,
    feed: str,
    errors: dict[str, Tensor],
    silent: float = math.inf,
) -> Finding:
    """What the errors of all readings say.

    ``silent`` is the error of the best other reading if the network always answered 0. A reading
    that is no better than that explains nothing: a network that has hardly begun to learn, whose
    output is almost 0, fits it too.
    """
    means = {name: geometric_mean(levels) for name, levels in errors.items()}
    own = means[DECLARED]
    rest = sorted((name for name in means if name != DECLARED), key=lambda name: means[name])
    # Answers of consistency models are samples rather than means: twice the error at most.
    spare = 1.0 if probe.model.contract.sampling.kind == "ode" else 2.0
    value = (
        f"{declared} (as declared) has {own:.3g} times a linear predictor's error over "
        f"{len(errors[DECLARED])} noise levels"
    )
    if rest:
        value += f", the next best reading {rest[0]} {means[rest[0]]:.3g}"
    best = min([DECLARED, *rest], key=lambda name: means[name])
    numbers = {
        "declared": declared,
        "best": declared if best == DECLARED else best,
        "errors": {declared: own, **{name: means[name] for name in rest}},
        "levels": errors[DECLARED].mean(1).tolist(),
    }

    def finding(severity: Severity, advice: str) -> Finding:
        return Finding(name=NAME, value=value, advice=advice, severity=severity, numbers=numbers)

    advice = (
        f"its output reads as {best}, not {declared}: declare that in config.json; the weights stay"
    )
    if feed:
        return finding("stop", f"{feed}: declare that in config.json; the weights stay")
    if own > BETTER * means[best] and means[best] <= POOR * spare:
        if means[best] > BARELY * silent:
            return finding("warn", f"its output says almost nothing: train it longer, or {advice}")
        return finding("stop", advice)
    if own > USELESS * spare:
        return finding(
            "stop", "no reading fits: check the weights, the data and the times the network sees"
        )
    if own > SLIGHTLY * means[best] and standard_errors(errors[DECLARED], errors[best]) > SURE:
        if means[best] > SLIGHTLY * spare:
            both = f"neither as {declared} nor as {best} does its output fit: both are worse than a"
            return finding("warn", f"{both} linear predictor; train it longer, or give its data")
        return finding("warn", f"perhaps {advice}")
    if own > POOR * spare:
        return finding("warn", "worse than a linear predictor: train it longer, or give its data")
    if own > BARELY and spare == 1.0:
        return finding("note", "no better than a line: train it longer, unless data is Gaussian")
    return finding("fine", "fine")


def _without_data(probe: Probe) -> Finding:
    """Only whether answers to pure noise have a plausible size."""
    start = probe.model.contract.sampling.start
    spread = float(probe.x0.std())
    limits = probe.model.contract.data.range
    scalings = getattr(probe.denoiser, "preconditioning", None)
    scale = declared_sigma_data(scalings) or (1.0 if limits is None else max(map(abs, limits)))
    numbers = {"declared": kind_of(scalings) if scalings else "", "spread": spread}
    value = f"not compared without data; answers at t={start.t:g} have standard deviation "
    value += f"{spread:.3g}"
    if not spread <= 4 * scale:
        advice = (
            f"a network of data of scale {scale:g} does not answer so: it is likely of another "
            "parametrisation; give --data to see which"
        )
        return Finding(name=NAME, value=value, advice=advice, severity="warn", numbers=numbers)
    advice = "give --data to compare the readings of its output"
    return Finding(name=NAME, value=value, advice=advice, severity="note", numbers=numbers)
