"""What a caller asks of a model when sampling, checked against its contract."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from fewstep import solvers
from fewstep.contract import Contract, DataSpec
from fewstep.core import Cond
from fewstep.errors import UsageError, UsageWarning, nearest
from fewstep.frontends import TextReader
from fewstep.models import AbstractDenoiser, AtScale, Guided
from fewstep.noise import SampleNoise
from fewstep.paths import Event, Path, VarianceExploding
from fewstep.values import lengths_of, undeclared

Loop = Callable[..., Event]
"""(denoiser, x, times, cond, *, watch) -> x at the last of the times."""

SOLVERS: dict[str, Loop] = {
    "heun": solvers.ode,
    "euler": partial(solvers.ode, step=solvers.euler),
    "ddim": partial(solvers.ode, step=solvers.ddim),
    "dpm": partial(solvers.ode, step=solvers.dpm_midpoint),
    "dpm++2m": solvers.dpmpp_2m,
}
"""The solvers of a diffusion model's ODE by name."""

CHURNED = {"heun": solvers.heun, "euler": solvers.euler}
"""The solvers that can add noise before each step."""


@dataclass(frozen=True)
class Solver:
    """A solver of a diffusion model's ODE.

    Args:
        name: a key of ``SOLVERS``.
        eta: share of noise in each step of ddim, from 0 (none) to 1 (ancestral sampling).
        churn: EDM's amount of noise that is added before the steps, at least 0.
    """

    name: str = "heun"
    eta: float = 0.0
    churn: float = 0.0

    def calls(self, steps: int) -> int:
        """Network calls of a sample of so many steps."""
        return 2 * steps - 1 if self.name in {"heun", "dpm"} else steps


@dataclass(frozen=True)
class Request:
    """What a caller asks of a model, as its contract allows it.

    Args:
        times: of the calls, descending.
        gamma: share of noise of models of kind gamma; None for all others.
        solver: of diffusion models; None for all others.
    """

    times: list[float]
    gamma: float | None = None
    solver: Solver | None = None

    def draws(self, kind: str) -> int:
        """How many times the noise of a sample is asked for, its start included."""
        solver = self.solver or Solver()
        fresh = kind == "renoise" or self.gamma is not None or solver.eta > 0
        return len(self.times) + 1 if solver.churn > 0 else len(self.times) if fresh else 1


def pairs(n: int, seed: int, first: int, seeds: Sequence[int] | None) -> list[tuple[int, int]]:
    """The seed and the index of each sample.

    Args:
        n: number of samples, where ``seeds`` are not given.
        seed: of all of these.
        first: the index of the first of these.
        seeds: one for each sample instead.

    Raises:
        UsageError: there is no sample, or a number below 0.
    """
    numbers = range(first, first + n)
    given = [(seed, i) for i in numbers] if seeds is None else [(s, 0) for s in seeds]
    if not given:
        raise UsageError(f"asked for {n} samples; expected at least 1")
    if any(s < 0 or i < 0 for s, i in given):
        raise UsageError("a seed, and the number of a sample, must be 0 or more")
    return given


def solver(
    contract: Contract,
    path: Path,
    name: str | None = None,
    eta: float | None = None,
    churn: float | None = None,
) -> Solver | None:
    """The solver that a caller asks for; None for a model that is sampled without one.

    Args:
        contract: of the model.
        path: of its denoiser.
        name: a key of ``SOLVERS``; by default heun.
        eta: see :class:`Solver`.
        churn: likewise.

    Raises:
        UsageError: the model has no ODE to solve, or the values do not fit together.
    """
    given = {"solver": name, "eta": eta, "churn": churn}
    asked = ", ".join(f"{key}={value!r}" for key, value in given.items() if value is not None)
    if contract.sampling.kind != "ode":
        if asked:
            raise UsageError(
                f"this {contract.method} model is sampled by {contract.sampling.kind}, in a few "
                f"calls and with no ODE to solve, so {asked} means nothing to it; leave it out"
            )
        return None
    name = "heun" if name is None else name
    if name not in SOLVERS:
        raise UsageError(f"unknown solver {name!r}; {nearest(name, SOLVERS)}")
    if eta is not None and name != "ddim":
        raise UsageError(f"eta belongs to the solver ddim, got {name}; give solver ddim with it")
    if eta is not None and not 0 <= eta <= 1:
        raise UsageError(f"eta must be in [0, 1], got {eta}")
    if churn is not None and name not in CHURNED:
        raise UsageError(
            f"churn belongs to the solvers {' and '.join(CHURNED)}, got {name}; leave churn out"
        )
    if churn is not None and not (math.isfinite(churn) and churn >= 0):
        raise UsageError(f"churn must be finite and at least 0, got {churn}")
    if churn and not isinstance(path, VarianceExploding):
        raise UsageError(
            "churn is defined where time is the noise level, and this model's path is "
            f"{type(path).__name__}; leave churn out, or take the solver ddim with eta"
        )
    return Solver(name, eta or 0.0, churn or 0.0)


def gamma(contract: Contract, given: float | None) -> float | None:
    """The share of noise between jumps; None for a model that has none.

    Raises:
        UsageError: the model has none, or it is outside of [0, 1].
    """
    own = contract.sampling.gamma
    if given is None:
        return own
    if own is None:
        raise UsageError(
            f"this {contract.method} model is sampled by {contract.sampling.kind}, "
            f"which has no gamma, got gamma={given}; leave it out"
        )
    if not 0 <= given <= 1:
        raise UsageError(f"gamma must be in [0, 1], got {given}")
    return given


def guided(
    denoiser: AbstractDenoiser, contract: Contract, guidance: float | None, cond: Cond
) -> AbstractDenoiser:
    """The denoiser, guided at that scale: see ``Model.guided``."""
    allowed = contract.sampling.guidance
    embedded = allowed is not None and allowed.embedded
    if guidance is None and allowed is not None and embedded:
        guidance = allowed.min
    if guidance is None or (guidance == 1.0 and not embedded):
        return denoiser
    if allowed is None:
        raise UsageError(
            f"this {contract.method} model cannot be guided, got guidance={guidance}; leave it out"
        )
    if not (math.isfinite(guidance) and allowed.min <= guidance <= allowed.max):
        raise UsageError(f"guidance must be in [{allowed.min}, {allowed.max}], got {guidance}")
    if embedded:
        return AtScale(denoiser, guidance)
    left_out = cond if allowed.keys is None else allowed.keys
    nulls = {k: v for k, v in contract.data.nulls.items() if k in cond and k in left_out}
    if not nulls:
        raise UsageError(
            "guidance needs a condition to guide towards, such as a label; this model has none"
        )
    return Guided(denoiser, nulls, guidance)


def read_prompts(
    reader: TextReader | None,
    prompts: str | Sequence[str] | None,
    cond: Mapping[str, Any] | None,
    n: int,
) -> dict[str, Any]:
    """Given conditions in which texts are what the network reads.

    Args:
        reader: of the model, if it has one.
        prompts: one text for all samples, or one each.
        cond: other conditions by name; a text may be given there by its name too.
        n: samples.

    Raises:
        UsageError: the model reads no texts, or their number is wrong.
    """
    given = dict(cond or {})
    named = {} if reader is None else reader.conditions
    main = next(iter(named), "text")
    if prompts is not None and main in given:
        raise UsageError(f"prompts and cond[{main!r}] say the same; give one of them")
    texts = prompts if prompts is not None else given.get(main)
    if isinstance(texts, str):
        texts = [texts]
    if texts is None or (prompts is None and not _are_texts(texts)):
        return given
    if reader is None:
        raise UsageError(
            f"this model reads no texts, got the prompts {texts!r:.60}; leave them out"
        )
    if not _are_texts(texts) or len(texts) not in {1, n}:
        raise UsageError(
            f"expected one prompt, or {n} with one for each sample, got {len(texts)} prompt(s)"
            if _are_texts(texts)
            else f"expected one prompt, or {n} with one for each sample, got {texts!r:.60}"
        )
    if cut := reader.cut(texts):
        warnings.warn(
            f"the prompt {texts[cut[0]][:60]!r} has more than {reader.length} tokens; its end is "
            "not read",
            UsageWarning,
            stacklevel=3,
        )
    values = reader.encode(texts)
    return {**given, **{key: value.expand(n, *value.shape[1:]) for key, value in values.items()}}


def _are_texts(value: Any) -> bool:
    return (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(v, str) for v in value)
    )


def conditions(
    denoiser: AbstractDenoiser,
    data: DataSpec,
    own: Sequence[int],
    cond: Mapping[str, Any] | None,
    *,
    label: Any = None,
    lengths: Any = None,
) -> dict[str, Tensor]:
    """All conditions of samples: see ``Model.conditions``."""
    if not isinstance(cond or {}, Mapping):
        raise UsageError(
            f"cond maps names of conditions to values, as in cond={{'label': 3}}; got {cond!r}"
        )
    given = dict(cond or {})
    if label is not None and not data.labels:
        raise UsageError(f"this model has no labels, got label={label}")
    if lengths is not None and not data.masked:
        raise UsageError(
            f"all samples of this model have the shape {data.shape}; leave out lengths"
        )
    for name, word, value in (("label", "label", label), ("mask", "lengths", lengths)):
        if value is not None and name in given:
            raise UsageError(f"{word} and cond[{name!r}] say the same; give one of them")
        given |= {} if value is None else {name: value}
    # What a network reads beside the data's conditions, such as its augmentation.
    reads = {*denoiser.cond_keys, *getattr(denoiser, "optional_keys", ())}
    further = {
        key: undeclared(key, given.pop(key), len(own))
        for key in [*given]
        if key in reads - {*data.keys}
    }
    return {**data.defaults(own, [*given]), **data.convert(given, len(own)), **further}


def noise(
    data: DataSpec,
    pairs: Sequence[tuple[int, int]],
    mask: Tensor | None = None,
    calls: int | None = None,
) -> SampleNoise:
    """The noise of the samples of these seeds and indices.

    Args:
        data: that the samples are of.
        pairs: the seed and the index of each sample.
        mask: which positions of each are real, where samples differ in length.
        calls: how many steps will ask for noise, where that is known.
    """
    if mask is None:
        shape = [size for size in data.shape if size is not None]
        return SampleNoise(pairs, shape, calls=calls)
    real = [own or there for own, there in zip(data.shape[1:], mask.shape[2:], strict=True)]
    return SampleNoise(pairs, (data.shape[0] or 1, *real), lengths_of(mask), calls)
