"""A model that can be shipped: a denoiser and its contract; load, save, sample."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from fewstep import solvers
from fewstep.bundled import BUNDLED
from fewstep.contract import Contract
from fewstep.core import Cond
from fewstep.errors import UsageError, nearest
from fewstep.models import AbstractDenoiser, Clamped, Guided
from fewstep.models.spec import build_denoiser, denoiser_spec
from fewstep.noise import SampleNoise as SampleNoise
from fewstep.paths import VarianceExploding
from fewstep.system.devices import usable_device
from fewstep.system.files import sha256, whole_folder
from fewstep.times import karras, uniform
from fewstep.values import lengths_of, undeclared
from fewstep.weights import freeze, load_weights, separate, tied

FORMAT = 2
"""Format of the config.json that is written; format 1 can be read too."""
READABLE = (1, 2)
EDM_LEVELS = VarianceExploding()


class Model:
    """A denoiser with its contract, on a device.

    Args:
        denoiser: in evaluation mode afterwards.
        contract: how it may be sampled.
    """

    def __init__(self, denoiser: AbstractDenoiser, contract: Contract) -> None:
        self.denoiser = freeze(denoiser.eval())
        self.contract = contract

    def __repr__(self) -> str:
        data, sampling = self.contract.data, self.contract.sampling
        count = sum(p.numel() for p in self.denoiser.parameters())
        return (
            f"Model({self.contract.method}, {sampling.kind}, {data.summary()}, "
            f"{count:,} parameters, {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.denoiser.parameters()).device

    def to(self, device: torch.device | str) -> Model:
        """Move the weights."""
        self.denoiser.to(device)
        return self

    def times(self, steps: int | None = None) -> list[float]:
        """The times of ``steps`` steps; an ODE ends on the model's answer at the last of them.

        ``None`` is the contract's fewest steps, or 18 for an ODE.
        """
        sampling = self.contract.sampling
        if steps is None:
            steps = 18 if sampling.kind == "ode" else min(sampling.times, default=1)
        if steps < 1:
            raise UsageError(f"steps must be at least 1, got {steps}")
        if steps in sampling.times:
            return list(sampling.times[steps])
        if not sampling.any_times:
            raise UsageError(
                f"this {self.contract.method} model is made for {sorted(sampling.times)} step(s), "
                f"got {steps}"
            )
        rule = karras if sampling.grid == "karras" else uniform
        path = self.denoiser.path
        if sampling.kind == "ode":
            # The last call is at t_min, or a step before it where that is clean data already.
            end = torch.tensor([path.t_min], dtype=torch.float64)
            points = steps if float(path.coefficients(end).sigma) > 0 else steps + 1
            return rule(points, path.t_min, sampling.start.t).tolist()[:steps]
        if sampling.grid == "uniform":
            return uniform(steps + 1, path.t_min, sampling.start.t).tolist()[:steps]
        # In noise levels, on whichever path; from EDM's lowest where the path ends on clean data.
        ends = path.ratio(torch.tensor([path.t_min, sampling.start.t], dtype=torch.float64))
        low, high = ends.clamp(EDM_LEVELS.t_min, EDM_LEVELS.t_max).tolist()
        later = path.time(karras(steps + 1, low, high)[1:steps]).tolist()
        return [sampling.start.t, *later]

    def serves(self, steps: int) -> bool:
        """Whether the model can be sampled in so many steps."""
        return self.contract.sampling.any_times or steps in self.contract.sampling.times

    def calls(self, steps: int | None = None, guidance: float | None = None) -> int:
        """Network calls of one sample; a guided call counts as two."""
        steps = len(self.times(steps))
        calls = 2 * steps - 1 if self.contract.sampling.kind == "ode" else steps
        return calls * (2 if guidance not in (None, 1.0) else 1)

    @torch.no_grad()
    def sample(
        self,
        n: int = 1,
        *,
        steps: int | None = None,
        times: Sequence[float] | None = None,
        seed: int = 0,
        first: int = 0,
        seeds: Sequence[int] | None = None,
        label: int | str | Sequence[int | str] | Tensor | None = None,
        lengths: int | Sequence[int] | Tensor | None = None,
        guidance: float | None = None,
        gamma: float | None = None,
        cond: Mapping[str, Any] | None = None,
        batch: int = 512,
    ) -> Tensor:
        """Generate.

        Args:
            n: number of samples; sample i is a function of (seed, first + i).
            steps: see :meth:`times`.
            times: the times themselves, descending, where the contract allows any.
            seed: of all samples.
            first: the first sample's number, so that several processes can share the work.
            seeds: one a sample instead; sample i is then a function of (seeds[i], 0).
            label: one for all or one each, a class's name or a number in [0, k], where k is "no
                label"; by default the index, or the sample's own seed, modulo k.
            lengths: one for all or one each, of a model whose samples differ in length.
            guidance: scale of classifier-free guidance; 1 is none.
            gamma: share of noise of models of kind gamma, from 0 (none) to 1 (all, at each step);
                by default the contract's.
            cond: conditions by name, as :meth:`~fewstep.contract.DataSpec.convert` reads them; the
                others have their defaults.
            batch: samples at a time; changes nothing but memory and speed.

        Returns:
            ``(n, *shape)`` float32 on the model's device, within the data's range. Samples of
            different lengths are as long as the longest, and 0 behind their own ends.

        Raises:
            UsageError: what is asked contradicts the contract.
        """
        numbers = range(first, first + n)
        pairs = [(seed, i) for i in numbers] if seeds is None else [(s, 0) for s in seeds]
        if not pairs:
            raise UsageError(f"asked for {n} samples; expected at least 1")
        if batch < 1:
            raise UsageError(f"batch must be at least 1, got {batch}")
        if any(s < 0 or i < 0 for s, i in pairs):
            raise UsageError("a seed, and the number of a sample, must be 0 or more")
        grid = self._given_times(times) if times is not None else self.times(steps)
        own = [i if seeds is None else s for s, i in pairs]
        conditions = self.conditions(own, cond, label=label, lengths=lengths)
        denoiser = self.guided(guidance, conditions)
        gamma = self._gamma(gamma)
        parts = []
        for start in range(0, len(pairs), batch):
            chosen = slice(start, start + batch)
            part = {k: v[chosen].to(self.device) for k, v in conditions.items()}
            parts.append(self._sample_batch(denoiser, pairs[chosen], grid, part, gamma))
        return torch.cat(parts)

    def _sample_batch(
        self,
        denoiser: AbstractDenoiser,
        pairs: Sequence[tuple[int, int]],
        grid: list[float],
        cond: Cond,
        gamma: float | None,
    ) -> Tensor:
        sampling, data = self.contract.sampling, self.contract.data
        mask = cond["mask"] if data.masked else None
        further = sampling.kind == "renoise" or gamma is not None
        noise = self.noise(pairs, mask, calls=len(grid) if further else 1)
        wide = solvers.widest(self.device)
        x = noise(0).to(self.device, wide) * sampling.start.std
        times = torch.tensor(grid, dtype=torch.float64)
        if sampling.kind == "ode":
            x = solvers.ode(denoiser, x, times, cond)
            out = denoiser(x, times[-1:].to(x.device, x.dtype).expand(len(x)), None, cond)
        elif sampling.kind == "renoise":
            if data.range is not None:
                denoiser = Clamped(denoiser, *data.range)
            out = solvers.multistep(denoiser, x, times, noise, cond)
        elif gamma is not None:
            out = solvers.gamma_sampling(denoiser, x, times, noise, cond, gamma=gamma)
        else:
            out = solvers.deterministic(denoiser, x, times, cond)
        out = (out if data.range is None else out.clamp(*data.range)).float()
        return out if mask is None else out.masked_fill(mask == 0, 0.0)

    def noise(
        self,
        pairs: Sequence[tuple[int, int]],
        mask: Tensor | None = None,
        *,
        calls: int | None = None,
    ) -> SampleNoise:
        """The noise of the samples of these seeds and indices.

        Args:
            pairs: seed and index of each.
            mask: which positions of each are real, where samples differ in length.
            calls: how many steps will ask for noise, where that is known.
        """
        shape = self.contract.data.shape
        if mask is None:
            return SampleNoise(pairs, [size for size in shape if size is not None], calls=calls)
        real = [own or there for own, there in zip(shape[1:], mask.shape[2:], strict=True)]
        return SampleNoise(pairs, (shape[0] or 1, *real), lengths_of(mask), calls)

    def _given_times(self, times: Sequence[float]) -> list[float]:
        start = self.contract.sampling.start.t
        grid = [float(t) for t in times]
        ordered = all(a > b for a, b in pairwise(grid))
        if not grid or not ordered or grid[0] != start or grid[-1] <= 0:
            raise UsageError(f"times must descend from {start} and stay above 0, got {grid}")
        if (
            not self.contract.sampling.any_times
            and tuple(grid) not in self.contract.sampling.times.values()
        ):
            raise UsageError(
                f"this {self.contract.method} model is made for the times "
                f"{self.contract.sampling.times}, got {grid}"
            )
        return grid

    def _gamma(self, gamma: float | None) -> float | None:
        own = self.contract.sampling.gamma
        if gamma is None:
            return own
        if own is None:
            raise UsageError(
                f"this {self.contract.method} model is sampled by {self.contract.sampling.kind}, "
                f"which has no gamma, got gamma={gamma}; leave it out"
            )
        if not 0 <= gamma <= 1:
            raise UsageError(f"gamma must be in [0, 1], got {gamma}")
        return gamma

    def conditions(
        self,
        own: Sequence[int],
        cond: Mapping[str, Any] | None = None,
        *,
        label: Any = None,
        lengths: Any = None,
    ) -> dict[str, Tensor]:
        """All conditions of samples, on the CPU: what is given, else the defaults.

        Args:
            own: the samples' own numbers, by which the classes take turns.
            cond: by name.
            label: another way to give ``cond["label"]``.
            lengths: another way to give ``cond["mask"]``.

        Raises:
            UsageError: a condition that the model does not have, or a value that does not fit.
        """
        data, given = self.contract.data, dict(cond or {})
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
        reads = {*self.denoiser.cond_keys, *getattr(self.denoiser, "optional_keys", ())}
        further = {
            key: undeclared(key, given.pop(key), len(own))
            for key in [*given]
            if key in reads - {*data.keys}
        }
        return {**data.defaults(own, [*given]), **data.convert(given, len(own)), **further}

    def guided(self, guidance: float | None, cond: Cond) -> AbstractDenoiser:
        """The denoiser, guided at that scale."""
        allowed = self.contract.sampling.guidance
        if guidance is None or guidance == 1.0:
            return self.denoiser
        if allowed is None:
            raise UsageError(
                f"this {self.contract.method} model cannot be guided, got guidance={guidance}; "
                "leave it out"
            )
        if not (math.isfinite(guidance) and allowed.min <= guidance <= allowed.max):
            raise UsageError(f"guidance must be in [{allowed.min}, {allowed.max}], got {guidance}")
        left_out = cond if allowed.keys is None else allowed.keys
        nulls = {k: v for k, v in self.contract.data.nulls.items() if k in cond and k in left_out}
        if not nulls:
            raise UsageError(
                "guidance needs a condition to guide towards, such as a label; this model has none"
            )
        return Guided(self.denoiser, nulls, guidance)

    def config(self, weights: bytes) -> dict[str, Any]:
        """``config.json`` for these weights."""
        return {
            "format": FORMAT,
            "denoiser": denoiser_spec(self.denoiser),
            **self.contract.model_dump(mode="json"),
            "sha256": sha256(weights),
        }

    def save(
        self, path: str | Path, *, card: str | None = None, dtype: torch.dtype | None = None
    ) -> Path:
        """Write ``model.safetensors``, ``config.json`` and ``README.md``; whole or not at all.

        Args:
            path: the model folder.
            card: text of the README; by default a short one.
            dtype: of the stored weights, e.g. ``torch.float16``; buffers keep theirs.
        """
        whole = self.denoiser.state_dict()
        ties = tied(whole)
        state = separate({name: value for name, value in whole.items() if name not in ties})
        if dtype is not None:
            names = {name for name, p in self.denoiser.named_parameters() if p.is_floating_point()}
            state = {k: v.to(dtype) if k in names else v for k, v in state.items()}
        weights = dump_tensors(state, {"format": "pt"})
        with whole_folder(Path(path)) as folder:
            (folder / "model.safetensors").write_bytes(weights)
            shared = {"tied": ties} if ties else {}
            config = json.dumps({**self.config(weights), **shared}, indent=2)
            (folder / "config.json").write_text(config + "\n", encoding="utf-8")
            (folder / "README.md").write_text(card or self._card(), encoding="utf-8")
        return Path(path)

    def _card(self) -> str:
        data, sampling = self.contract.data, self.contract.sampling
        return (
            f"# A {self.contract.method} model made with fewstep\n\n"
            f"Samples of {data.summary()}; sampling: {sampling.kind}.\n\n"
            "```python\nimport fewstep\n\nx = fewstep.load('PATH').sample(16)\n```\n"
        )


def load(
    model: str | Path,
    *,
    network: nn.Module | None = None,
    device: str | torch.device | None = None,
    average: str | None = None,
    step: int | None = None,
) -> Model:
    """A model from a model folder, a run folder (its newest model) or a bundled name.

    Args:
        model: the folder or name; an existing path wins over a name.
        network: the user's own network, for a model that was saved with one.
        device: where to put it; an accelerator if there is one.
        average: another of the run's averages than its first.
        step: the run's model as it was at this step, of which a checkpoint is kept.

    Raises:
        UsageError: nothing is there, or what is there does not fit; the message says which keys.
    """
    folder = find(model, average, step)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = (folder / "model.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} holds no readable model: {error}") from error
    if not isinstance(config, dict) or config.get("format") not in READABLE:
        raise UsageError(
            f"{folder}/config.json is of none of the formats {READABLE}, which this version reads"
        )
    try:
        contract = Contract.model_validate({key: config.get(key) for key in Contract.model_fields})
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UsageError(f"{folder}/config.json: " + "; ".join(lines)) from error
    # Custom networks come built; the library's own are built without memory until shapes agree.
    with torch.device("meta" if network is None else "cpu"):
        denoiser = build_denoiser(config.get("denoiser"), network)
    load_weights(denoiser, weights, folder, config.get("sha256"), _ties(config, folder))
    return Model(denoiser, contract).to(usable_device(device))


def _ties(config: dict[str, Any], folder: Path) -> dict[str, str]:
    ties = config.get("tied", {})
    if not isinstance(ties, dict) or not all(isinstance(name, str) for name in ties.values()):
        raise UsageError(f"{folder}/config.json: tied must hold names by name, got {ties!r}")
    return ties


def find(model: str | Path, average: str | None = None, step: int | None = None) -> Path:
    """The model folder that a MODEL argument means."""
    path = Path(model)
    if step is not None:
        return _at_step(path, average, step)
    if path.exists():
        if average is not None:
            return _average(path, average)
        for folder in (path, path / "model"):
            if (folder / "config.json").is_file():
                return folder
        raise UsageError(f"{path} is neither a model folder nor a run that has saved a model")
    if str(model) in BUNDLED:
        if average is not None:
            raise UsageError(f"the bundled {model} has one average only; leave --average out")
        return Path(str(resources.files("fewstep") / "assets" / str(model)))
    raise UsageError(
        f"no model {str(model)!r}: not a folder, and not bundled; {nearest(str(model), BUNDLED)}"
    )


def _at_step(run: Path, average: str | None, step: int) -> Path:
    if average is not None:
        raise UsageError("checkpoints keep the run's first average only; give --step or --average")
    known = sorted(int(p.parts[-3]) for p in run.glob("checkpoints/[0-9]*/model/config.json"))
    if step not in known:
        raise UsageError(
            f"{run} keeps no model of training step {step}; it has {known or 'none'} (training "
            "keeps those that --train.keep and --train.keep-every say; --steps is the number of "
            "sampling steps)"
        )
    return run / "checkpoints" / f"{step:09d}" / "model"


def _average(run: Path, name: str) -> Path:
    known = sorted(p.parent.name for p in run.glob("averages/*/config.json"))
    if name not in known:
        raise UsageError(f"{run} has no average {name!r} besides its model; it has {known}")
    return run / "averages" / name
