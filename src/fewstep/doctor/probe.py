"""The samples, the noise and the conditions that a model is examined with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fewstep.core import UsageError, entropy, widest
from fewstep.data import Dataset
from fewstep.data.specs import conditions_of
from fewstep.model import Model
from fewstep.models import AbstractDenoiser, Denoiser
from fewstep.models.preconditioning import Reparametrised
from fewstep.paths import Path

SEED = 0
CHUNK = 64
"""Samples in one network call, at most."""
WIDEST = 100.0
"""Noise levels are examined between the data's scale over this and the scale times this."""


@dataclass(frozen=True)
class Probe:
    """What a model is examined with; every tensor lies on the model's device.

    Args:
        model: the one that is examined.
        x0: clean samples ``(n, *shape)``; the model's own answers to pure noise without data.
        noise: as many unit Gaussian samples.
        cond: the conditions of the samples.
        has_data: whether ``x0`` is data.
    """

    model: Model
    x0: Tensor
    noise: Tensor
    cond: dict[str, Tensor]
    has_data: bool

    @property
    def denoiser(self) -> AbstractDenoiser:
        """The model's denoiser, read on the path that its network was made for."""
        denoiser = self.model.denoiser
        if isinstance(denoiser, Denoiser):
            scalings = denoiser.preconditioning
            if isinstance(scalings, Reparametrised):
                while isinstance(scalings, Reparametrised):
                    scalings = scalings.inner
                return Denoiser(denoiser.net, scalings).eval()
        return denoiser

    @property
    def std(self) -> float:
        """Standard deviation of ``x0``, or 0.5 where it is no data."""
        return float(self.x0.std()) if self.has_data and float(self.x0.std()) > 0 else 0.5

    def __len__(self) -> int:
        return len(self.x0)

    def first(self, n: int) -> Probe:
        """The same with at most ``n`` samples."""
        cond = {key: value[:n] for key, value in self.cond.items()}
        return replace(self, x0=self.x0[:n], noise=self.noise[:n], cond=cond)

    def repeated(self, n: int) -> Probe:
        """The same with exactly ``n`` samples, which come again in turn."""
        index = torch.arange(n, device=self.x0.device) % len(self)
        cond = {key: value[index] for key, value in self.cond.items()}
        return replace(self, x0=self.x0[index], noise=self.noise[index], cond=cond)

    def times(self, count: int, path: Path | None = None) -> list[float]:
        """``count`` times of a path, from data to noise, evenly spaced in log(sigma/alpha)."""
        path = path or self.denoiser.path
        ends = path.ratio(torch.tensor([path.t_min, path.t_max], dtype=torch.float64))
        low, high = ends.tolist()
        low, high = max(low, self.std / WIDEST), min(high, self.std * WIDEST)
        ratios = torch.logspace(np.log10(low), np.log10(high), count, dtype=torch.float64)
        return path.time(ratios).clamp(path.t_min, path.t_max).tolist()

    def at(self, time: float) -> Tensor:
        """The time for every sample."""
        return torch.full((len(self),), time, dtype=self.x0.dtype, device=self.x0.device)

    def noisy(self, time: float, path: Path | None = None) -> Tensor:
        """The samples at a time of the path, by default the denoiser's."""
        return (path or self.denoiser.path).perturb(self.x0, self.noise, self.at(time))

    def start(self) -> Tensor:
        """What the model's samples start from."""
        return self.noise * self.model.contract.sampling.start.std

    def chunks(self) -> Iterator[Probe]:
        """The samples in parts of one network call each."""
        for start in range(0, len(self), CHUNK):
            part = slice(start, start + CHUNK)
            cond = {key: value[part] for key, value in self.cond.items()}
            yield replace(self, x0=self.x0[part], noise=self.noise[part], cond=cond)


def prepare(model: Model, data: Dataset | None, n: int) -> Probe:
    """A probe of ``n`` samples, at most as many as there are data.

    Raises:
        UsageError: the data is not what the model generates, or lacks a condition.
    """
    spec, device = model.contract.data, model.device
    generator = torch.Generator().manual_seed(entropy(SEED, "doctor"))
    cond: dict[str, Tensor] = {}
    x0 = None
    if data is not None:
        if not spec.fits(data.shape):
            raise UsageError(
                f"the model generates samples of shape {spec.shape}, the data has "
                f"{tuple(data.shape)}; give its training data with --data"
            )
        rng = np.random.default_rng(entropy(SEED, "doctor"))
        n = min(n, len(data))
        batch = data.batch(np.sort(rng.permutation(len(data))[:n]))
        x0, cond = batch.x0, conditions_of(batch)
    else:
        cond = model.conditions(range(n))
    if "guidance" in model.denoiser.cond_keys:
        allowed = model.contract.sampling.guidance
        scale = allowed.min if allowed is not None and allowed.embedded else 1.0
        cond = {"guidance": torch.full((n,), scale, dtype=torch.float64), **cond}
    missing = [key for key in model.denoiser.cond_keys if key not in cond]
    if missing:
        raise UsageError(
            f"the network needs the condition(s) {missing}, which the data does not have; examine "
            "it with a data set whose batches hold them"
        )
    wide = widest(device)
    shape = [size or cond["mask"].shape[-1] for size in spec.shape] if x0 is None else x0.shape[1:]
    noise = torch.randn((n, *shape), generator=generator, dtype=torch.float64).to(device, wide)
    cond = {key: value.to(device) for key, value in cond.items()}
    if x0 is not None:
        return Probe(model, x0.to(device, wide), noise, cond, has_data=True)
    return Probe(model, torch.zeros_like(noise), noise, cond, has_data=False)


def with_answers(probe: Probe) -> Probe:
    """Without data, the model's answers to what its samples start from take the place of data."""
    if probe.has_data:
        return probe
    start = probe.model.contract.sampling.start.t
    parts = [
        probe.model.denoiser(part.start(), part.at(start), None, part.cond)
        for part in probe.chunks()
    ]
    return replace(probe, x0=torch.cat(parts).to(probe.x0).nan_to_num(0.0, 0.0, 0.0))
