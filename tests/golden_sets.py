"""Golden vectors: arrays that official implementations computed, and the stand-ins they ran on.

A folder holds, for each topic, ``TOPIC.npz`` and ``TOPIC.json`` (what each array is and with which
settings), and the stand-ins' coefficients in ``manifest.json`` or ``networks.json``. It is
``tests/golden``, or what ``FEWSTEP_GOLDEN`` names; nothing here or in the tests knows a number
of it. A topic's test hands :func:`check` one function a call of the official code; it turns a
case (settings and inputs) into ``(output, value)`` pairs, each of which is compared.
"""

from __future__ import annotations

import json
import math
import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as File
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from fewstep.core import Batch, Cond, expand
from fewstep.models import EDM, AbstractDenoiser, ConsistencyBoundary, Denoiser
from fewstep.objectives.shared.weights import (
    SnrWeight,
    karras_weight,
    snr_plus_one,
    snr_weight,
    truncated_snr,
    unweighted,
)
from fewstep.paths import Event, Path, Time, VarianceExploding
from fewstep.times.laws import Law

LARGE = 100_000
"""Draws of a law that a sample is compared with."""

NO_SUCH_SOLVER = "a solver of many calls a step; the library's are those of its methods' teachers"
NO_WEIGHT = "no published run weighs CTM's loss by time, and fewstep's has no such weight"
OTHER_SCHEDULER = "a sampler that other topics have; of this one DPM-Solver++(2M) is compared"
EXCEPTED = {
    **{
        ("diffusers_sched", f"{kind}Scheduler.{call}"): OTHER_SCHEDULER
        for kind in (
            "CMStochasticIterative",
            "DDIM",
            "EDMEuler",
            "EulerDiscrete",
            "FlowMatchEulerDiscrete",
            "HeunDiscrete",
            "LCM",
            "TCD",
        )
        for call in (
            "set_timesteps",
            "step",
            "alphas_cumprod",
            "sigma_to_t",
            "get_scalings_for_boundary_condition",
            "get_scalings_for_boundary_condition_discrete",
        )
    },
    ("diffusers_sched", "dpm3m_9"): "of third order, which no sampler here is",
    ("ctm", "w_sq-t-inverse"): NO_WEIGHT,
    ("ctm", "w_uniform_g"): NO_WEIGHT,
    ("flow_matching", "ode_heun3"): NO_SUCH_SOLVER,
    ("flow_matching", "ode_midpoint"): NO_SUCH_SOLVER,
    ("flow_matching", "ode_rk4"): NO_SUCH_SOLVER,
    ("robots_cp", "step_karras_third"): NO_SUCH_SOLVER,
    ("robots_cp", "step_karras_fourth"): NO_SUCH_SOLVER,
    ("robots_cp", "step_corr"): NO_SUCH_SOLVER,
    **{
        ("robots_cp", f"norm_{kind}"): "a normaliser that no published run of it uses"
        for kind in ("limits_nooffset", "gaussian", "gaussian_nooffset")
    },
    ("robots_cp", "sampler_uniform"): "neighbours of a grid, which its published runs do not draw",
    ("robots_cp", "sampler_log_normal_next_times"): "likewise",
    ("robots_cp", "sampler_ctm_to_cm"): "it stops at the highest level, as a cast makes 0 of 0.02",
    ("robots_cp", "sampler_ctm_to_cm_ln"): "likewise",
    ("robots_cp", "loss5"): "likewise; jumps up from a level are none of the library's",
    ("robots_cp", "ema"): "a warm-up of averages that the trainer's does not copy",
    ("openai_schedules", "progdist_ema"): "the rate, 1, of a target that the loss does not take",
}
"""(topic, call, case or array) -> why its outputs are not compared."""


def folder() -> File:
    return File(os.environ.get("FEWSTEP_GOLDEN") or File(__file__).parent / "golden")


# Entries.


@dataclass(frozen=True)
class Entry:
    """One array; floating ones in float64, whatever they were computed in."""

    name: str
    settings: dict[str, Any]
    array: Tensor

    def excepted(self, topic: str) -> str | None:
        """Why this output is not compared, if it is not."""
        settings = self.settings
        keys = [(topic, name) for name in (settings["call"], settings["case"], self.name)]
        return next((EXCEPTED[key] for key in keys if key in EXCEPTED), None)

    def mismatch(self, value: Tensor, view: Callable[[Tensor], Tensor] | None) -> str | None:
        """How ``value`` is not this array (or a ``view`` of it) within the recorded tolerance."""
        want = self.array if view is None else view(self.array)
        value = value.detach()
        if value.shape != want.shape:
            return f"{self.name}: shape {tuple(value.shape)}, expected {tuple(want.shape)}"
        error = (value.double() - want.double()).abs()
        atol, rtol = (self.settings.get(name, 0.0) for name in ("atol", "rtol"))  # integers: none
        bound = atol + rtol * want.double().abs()
        if bool((error <= bound).all()):  # false for nan
            return None
        worst = error.max().item()
        return f"{self.name}: off by up to {worst:.3g} where at most {bound.max().item():.3g} is"

    def unlikely(self, law: Law, path: Path) -> str | None:
        """How this array, a sample without a tolerance, is none of ``law`` (Kolmogorov-Smirnov)."""
        assert self.settings["statistical"], self.name
        own = law.draw(path, LARGE, torch.Generator().manual_seed(0))
        found = stats.ks_2samp(self.array.numpy(), own.numpy())
        if found.pvalue > 1e-3:
            return None
        return f"{self.name}: of {law} with probability {found.pvalue:.3g}"


@dataclass(frozen=True)
class Case:
    """The outputs of one official call, with its settings and inputs."""

    settings: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Entry]

    def __getitem__(self, key: str) -> Any:
        return self.settings[key]


class Topic:
    def __init__(self, name: str) -> None:
        self.name = name
        document = json.loads((folder() / f"{name}.json").read_text())
        with np.load(folder() / f"{name}.npz") as arrays:
            self.entries = {
                e["name"]: Entry(e["name"], _numbers(e["settings"]), _tensor(arrays[e["name"]]))
                for e in document["entries"]
            }
        # A gradient that names its loss in the place of a call belongs to the loss's call.
        for entry in self.entries.values():
            if "grad_of" in entry.settings and "call" not in entry.settings:
                case, loss = entry.settings["case"], entry.settings["grad_of"]
                calls = {
                    e.settings["output"]: e.settings["call"]
                    for e in self.entries.values()
                    if e.settings["case"] == case and "call" in e.settings
                }
                # A gradient of a sum of losses is of the call that makes all of them.
                entry.settings["call"] = calls.get(loss) or next(iter(calls.values()))
        self.outputs = [e for e in self.entries.values() if e.settings["role"] == "output"]
        self.compared: set[str] = set()
        self.failures: list[str] = []

    def cases(self) -> Iterator[Case]:
        """Outputs, less the excepted, by what produced them: all but their own settings."""
        groups: dict[str, list[Entry]] = {}
        for entry in self.outputs:
            if entry.excepted(self.name) is None:
                own = {"output", "grad_of", "rtol", "atol", "dtype"}
                shared = {k: v for k, v in entry.settings.items() if k not in own}
                groups.setdefault(json.dumps(shared, sort_keys=True), []).append(entry)
        for entries in groups.values():
            settings = entries[0].settings
            named = settings.get("inputs", {}).items()
            # Where a call made several draws, its test reads them by their own settings.
            inputs = {k: self.array(name) for k, name in named if isinstance(name, str)}
            yield Case(settings, inputs, {e.settings["output"]: e for e in entries})

    def array(self, name: str) -> Tensor:
        """An entry's; ``NAME[i]`` is its row i."""
        entry, row = re.fullmatch(r"(.+?)(?:\[(\d+)\])?", name).groups()
        array = self.entries[entry].array
        return array if row is None else array[int(row)]

    def compare(
        self, entry: Entry, value: Tensor, view: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Record that ``entry`` was compared; a comparison of a mere ``view`` does not count."""
        if view is None:
            self.compared.add(entry.name)
        failure = entry.mismatch(value, view)
        if failure is not None:
            self.failures.append(failure)

    def compare_law(self, entry: Entry, law: Law, path: Path) -> None:
        """Record that ``entry`` was compared to the law of which it is a sample."""
        self.compared.add(entry.name)
        failure = entry.unlikely(law, path)
        if failure is not None:
            self.failures.append(failure)

    def missed(self) -> list[str]:
        """Outputs that are neither compared nor excepted."""
        return [
            e.name
            for e in self.outputs
            if e.name not in self.compared and e.excepted(self.name) is None
        ]


Produce = Callable[[Case], Iterator[tuple[Any, ...]]]
"""A case to ``(output, value)`` or ``(output, value, view)``, see :meth:`Topic.compare`, or to
``(output, law, path)``, see :meth:`Topic.compare_law`."""


def check(name: str, calls: Mapping[str, Produce], record_property: Callable[..., None]) -> None:
    """Compare a topic, hand its line to the terminal summary, and fail on any difference."""
    topic = Topic(name)
    for case in topic.cases():
        try:
            for output, value, *more in calls[case["call"]](case):
                compare = topic.compare_law if isinstance(value, Law) else topic.compare
                compare(case.outputs[output], value, *more)
        except Exception:
            topic.failures.append(f"{case['case']}: {traceback.format_exc(limit=-3)}")
    line = f"golden {name}: {len(topic.compared)} of {len(topic.outputs)} arrays compared"
    record_property("golden", line)
    failures = topic.failures + [f"{n}: neither compared nor excepted" for n in topic.missed()]
    assert not failures, "\n".join([f"{len(failures)} failures in {name}", *failures])


def _numbers(value: Any) -> Any:
    """Settings with the infinity that JSON lacks."""
    if isinstance(value, dict):
        return {k: _numbers(v) for k, v in value.items()}
    return math.inf if value == "inf" else value


def _tensor(array: np.ndarray) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.double() if tensor.is_floating_point() else tensor


# Stand-ins.


@dataclass(frozen=True)
class Networks:
    """The folder's coefficients by role, and the text that says what they mean."""

    network_doc: str
    coefficients: dict[str, dict[str, float]]

    @cached_property
    def sigma_data(self) -> float:
        """Of the closed-form denoiser D; the text is the only place that has it."""
        found = re.search(r"\bsd = (\d+(?:\.\d+)?)", self.network_doc)
        assert found, "network_doc does not say what sd is"
        return float(found[1])


def networks() -> Networks:
    manifest = folder() / "manifest.json"
    file = manifest if manifest.exists() else folder() / "networks.json"
    document = json.loads(file.read_text())
    return Networks(document["network_doc"], document["coefficients"])


class StandIn(nn.Module):
    """F(x, s, y) of ``network_doc``; with ``k`` its F2, which reads a second time.

    a, b, c, h are trained. With ``d`` it reads ``cond["condition"]``, ``(b, K)``.
    """

    def __init__(
        self,
        a: float,
        b: float,
        c: float,
        h: float,
        g: float,
        d: float | None = None,
        k: float | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"a": a, "b": b, "c": c, "h": h}.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))
        self.register_buffer("g", torch.tensor(g, dtype=torch.float64))
        self.d, self.k = d, k
        self.cond_keys = () if d is None else ("condition",)
        self.two_time = k is not None

    @property
    def last_weight(self) -> Tensor:
        return self.get_parameter("a")

    def forward(
        self, x: Tensor, c_noise: Tensor, s_noise: Tensor | None = None, cond: Cond | None = None
    ) -> Tensor:
        angle = expand(self.g * c_noise, x)
        out = self.a * x + self.b * x.tanh() * angle.sin() + self.c * angle.cos()
        out = out + self.h * x.roll(1, -1)
        if self.d is not None:
            y = (cond or {})["condition"]
            w = torch.linspace(-1, 1, y.shape[1], dtype=y.dtype)
            out = out + self.d * expand(y @ w, x)
        if self.k is not None and s_noise is not None:
            out = out + self.k * x.tanh() * expand(self.g * s_noise, x).cos()
        return out


def stand_in(
    role: str,
    coefficients: Mapping[str, Mapping[str, float]],
    gscale: float = 1.0,
    *,
    condition: bool = False,
    second: bool = False,
) -> StandIn:
    of = coefficients[role]
    return StandIn(
        *(of[name] for name in ("a", "b", "c", "h")),
        of["g"] * gscale,
        of["d"] if condition else None,
        of["k"] if second else None,
    )


class ClosedForm(AbstractDenoiser):
    """D of ``network_doc``, on any path: read at x / alpha and sigma / alpha."""

    def __init__(self, net: StandIn, sigma_data: float, path: Path) -> None:
        super().__init__()
        self.net, self.sigma_data, self.path = net, sigma_data, path
        self.cond_keys, self.two_time = net.cond_keys, net.two_time

    def forward(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        alpha, sigma, _, _ = self.path.coefficients(t)
        x, level = x / expand(alpha, x), sigma / alpha
        std = (level**2 + self.sigma_data**2).sqrt()
        second = None if s is None else self.path.ratio(s).clamp(min=1e-6).log() / 4
        answer = self.net(x / expand(std, x), level.log() / 4, second, cond)
        skip, out = (self.sigma_data / std) ** 2, level * self.sigma_data / std
        return expand(skip, x) * x + expand(out, x) * answer


def closed_form(
    role: str, path: Path, *, condition: bool = False, second: bool = False
) -> ClosedForm:
    """With ``condition`` and ``second`` as FastGen's stand-ins: see :func:`stand_in`."""
    found = networks()
    net = stand_in(role, found.coefficients, condition=condition, second=second)
    return ClosedForm(net, found.sigma_data, path)


# What topics share.


def noise_levels(case: Case) -> VarianceExploding:
    """The path whose ends are the case's; calls that need no upper end record none."""
    return VarianceExploding(case["sigma_min"], case.settings.get("sigma_max", math.inf))


def karras_denoiser(case: Case, role: str, boundary: bool) -> Denoiser:
    """OpenAI's ``KarrasDenoiser`` over F; its ``distillation`` is the boundary condition."""
    scale = re.fullmatch(r"([\d.]+)\*ln\(sigma\+1e-44\)", case["net_time"])  # 1e-44 guards log(0)
    assert scale, case["net_time"]
    scalings = ConsistencyBoundary if boundary else EDM
    return Denoiser(
        stand_in(role, networks().coefficients, case["gscale"]),
        scalings(
            sigma_data=case["sigma_data"], time_scale=float(scale[1]), path=noise_levels(case)
        ),
    )


def weighting(name: str, sigma_data: float) -> SnrWeight:
    """By OpenAI's names."""
    return {
        "uniform": unweighted,
        "snr": snr_weight,
        "snr+1": snr_plus_one,
        "truncated-snr": truncated_snr,
        "karras": karras_weight(sigma_data),
    }[name]


def each_loss(objective: Any, x0: Tensor, draws: Any) -> Tensor:
    """The public loss of each sample alone, ``(b,)``."""
    losses = []
    for i in range(len(x0)):
        one = slice(i, i + 1)
        drawn = type(draws)(*(None if d is None else d[one] for d in draws))
        losses.append(objective.loss(Batch(x0[one]), drawn).total())
    return torch.stack(losses)


def each_element(objective: Any, x0: Tensor, draws: Any) -> Tensor:
    """The public loss of each element alone, shaped as the data: all others are masked."""
    only = torch.eye(x0[0].numel(), dtype=x0.dtype).reshape(-1, 1, *x0.shape[1:])
    losses = []
    for i in range(len(x0)):
        one = slice(i, i + 1)
        drawn = type(draws)(*(None if d is None else d[one] for d in draws))

        def loss(mask: Tensor, one: slice = one, drawn: Any = drawn) -> Tensor:
            return objective.loss(Batch(x0[one], mask=mask), drawn).total()

        losses.append(torch.func.vmap(loss)(only).reshape(x0[0].shape))
    return torch.stack(losses)


def gradients(case: Case, objective: Any, x0: Tensor, draws: Any) -> Iterator[tuple[str, Tensor]]:
    """``grad_*``: one backward of the public loss of the whole batch."""
    objective.zero_grad()
    objective.loss(Batch(x0), draws).total().backward()
    for output in case.outputs:
        if output.startswith("grad_"):
            yield output, objective.student.net.get_parameter(output.removeprefix("grad_")).grad
