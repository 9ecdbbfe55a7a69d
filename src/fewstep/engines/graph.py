"""What is exported: a denoiser, or all steps of a sampler, as a function of tensors alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewstep import solvers
from fewstep.contract import Contract
from fewstep.core import entropy
from fewstep.errors import UsageError
from fewstep.models import AbstractDenoiser, Clamped

LENGTHS = (13, 1, 32)
"""Lengths at which a graph of a free length is compared with torch; it is exported at the first."""
MIDDLE = 5
"""Noise levels between the ends at which an exported graph is compared with torch."""


class DenoiserGraph(nn.Module):
    """``(x, t[, s], conditions) -> x0``, with the conditions in the order of ``names``.

    Args:
        denoiser: in evaluation mode.
    """

    def __init__(self, denoiser: AbstractDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.names = ("x", "t", *(("s",) if denoiser.two_time else ()), *denoiser.cond_keys)

    def forward(self, x: Tensor, t: Tensor, *rest: Tensor) -> Tensor:
        """The estimate of clean data ``(b, *shape)``."""
        given = dict(zip(self.names[2:], rest, strict=True))
        s = given.pop("s", None)
        return self.denoiser(x, t, s, given)


class SamplerGraph(nn.Module):
    """``(noise, conditions) -> samples``: a whole few-step sampler, whose noise is an input.

    Args:
        denoiser: in evaluation mode.
        contract: says how the model is sampled.
        times: of the calls, descending.

    Raises:
        UsageError: the model is a diffusion model, whose solver is no fixed graph, or its samples
            have a mask.
    """

    def __init__(
        self, denoiser: AbstractDenoiser, contract: Contract, times: tuple[float, ...]
    ) -> None:
        super().__init__()
        if contract.sampling.kind == "ode":
            raise UsageError(
                f"this {contract.method} model is sampled by a solver of an ODE, which is not "
                "exported as a graph; export the denoiser alone, without a number of steps"
            )
        if contract.data.masked:
            raise UsageError(
                "samples of this model have a mask, which no graph of a whole sampler reads; "
                "export the denoiser alone, without a number of steps"
            )
        self.denoiser, self.contract, self.times = denoiser, contract, times
        self.names = ("noise", *denoiser.cond_keys)

    def forward(self, noise: Tensor, *rest: Tensor) -> Tensor:
        """Samples ``(b, *shape)`` of unit noise ``(b, steps, *shape)``."""
        sampling, data = self.contract.sampling, self.contract.data
        cond = dict(zip(self.names[1:], rest, strict=True))
        times, denoiser = self.times, self.denoiser
        x = noise[:, 0] * sampling.start.std

        def fresh(i: int) -> Tensor:  # that of call 0 is where the sample starts
            return noise[:, i + 1]

        if sampling.kind == "renoise":
            if data.range is not None:
                denoiser = Clamped(denoiser, *data.range)
            out = solvers.multistep(denoiser, x, times, fresh, cond)
        elif sampling.gamma is not None:
            out = solvers.gamma_sampling(denoiser, x, times, fresh, cond, gamma=sampling.gamma)
        else:
            out = solvers.deterministic(denoiser, x, times, cond)
        return (out if data.range is None else out.clamp(*data.range)).float()


def lengths_of(contract: Contract) -> tuple[int | None, ...]:
    """Lengths at which a graph must answer: ``LENGTHS`` where data has a free axis, else none."""
    return LENGTHS if None in contract.data.shape else (None,)


def free_inputs(denoiser: AbstractDenoiser, contract: Contract) -> frozenset[str]:
    """The inputs of :class:`DenoiserGraph` whose last axis is as long as the samples."""
    if None not in contract.data.shape:
        return frozenset()
    first, second = (examples(denoiser, contract, 1, n) for n in (LENGTHS[0], LENGTHS[-1]))
    return frozenset(name for name in first if first[name].shape != second[name].shape)


def examples(
    denoiser: AbstractDenoiser, contract: Contract, n: int, length: int | None = None
) -> dict[str, Tensor]:
    """Inputs of :class:`DenoiserGraph` by name, ``n`` rows: the edges first, then the middle.

    The first row is zeros at the start's time, two rows are equal, and the times go from the
    start's down to the lowest at which torch's own answer is finite. Where data has a mask, the
    first row is whole and the others are shorter and shorter.

    Args:
        denoiser: of the graph.
        contract: of the model.
        n: rows.
        length: of the free axis of samples, where there is one; None is ``LENGTHS[0]``.
    """
    data, path = contract.data, denoiser.path
    shape = [LENGTHS[0] if length is None else length] * len(data.shape)
    shape = [size or free for size, free in zip(data.shape, shape, strict=True)]
    generator = torch.Generator().manual_seed(entropy(0, "export"))
    start = contract.sampling.start.t
    values = _conditions(denoiser, contract, n, shape[-1])
    low = _lowest(denoiser, contract, shape, values)
    steps = torch.linspace(0, 1, MIDDLE + 2, dtype=torch.float64)
    ratio = path.ratio(torch.tensor([start, low], dtype=torch.float64)).clamp(1e-3, 1e3)
    middle = path.time(ratio[0] * (ratio[1] / ratio[0]) ** steps)
    times = torch.cat([torch.tensor([start, start, low, low], dtype=torch.float64), middle[1:-1]])
    t = times[torch.arange(n) % len(times)]
    noise = torch.randn((n, *shape), generator=generator, dtype=torch.float64)
    clean = torch.randn((n, *shape), generator=generator, dtype=torch.float64) / 2
    x = path.perturb(clean, noise, t)
    x[0] = 0
    if n > 3:
        x[3] = x[2]
    if data.masked:
        x = x * values["mask"]
    inputs = {"x": x.float(), "t": t.float()}
    if denoiser.two_time:
        inputs["s"] = (
            t * torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)[torch.arange(n) % 3]
        ).float()
    return inputs | {key: values[key] for key in denoiser.cond_keys}


def _conditions(
    denoiser: AbstractDenoiser, contract: Contract, n: int, length: int
) -> dict[str, Tensor]:
    """What ``n`` rows depend on, in the kinds of numbers that a graph reads."""
    data = contract.data
    masks = {}
    if data.masked:
        masks = data.convert({"mask": [max(1, length * (n - i) // n) for i in range(n)]}, n)
    values = {**masks, **data.defaults(range(n), [*masks])}
    # A guidance scale that the network reads is no condition of the data.
    values = {key: torch.ones(n) for key in denoiser.cond_keys} | values
    return {k: v.float() if v.is_floating_point() else v for k, v in values.items()}


@torch.no_grad()
def _lowest(
    denoiser: AbstractDenoiser, contract: Contract, shape: list[int], values: dict[str, Tensor]
) -> float:
    """The path's ``t_min`` if the denoiser answers there, else a thousandth of the start."""
    t, start = denoiser.path.t_min, contract.sampling.start.t
    at = torch.full((1,), t, dtype=torch.float64)
    cond = {key: values[key][:1] for key in denoiser.cond_keys}
    x = torch.zeros((1, *shape), dtype=torch.float64)
    answer = denoiser(x, at, at if denoiser.two_time else None, cond)
    return t if bool(answer.isfinite().all()) else start / 1000
