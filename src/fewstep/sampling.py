"""How a model is sampled: by the loop of its contract's kind, one batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from fewstep import sampling_options as options
from fewstep import solvers
from fewstep.contract import Contract
from fewstep.core import Cond, widest
from fewstep.errors import UsageError
from fewstep.models import AbstractDenoiser, Clamped
from fewstep.noise import SampleNoise
from fewstep.paths import Event
from fewstep.sampling_options import CHURNED, SOLVERS, Request, Solver
from fewstep.states import Answers, Callback, Watcher


def generate(
    denoiser: AbstractDenoiser,
    contract: Contract,
    request: Request,
    pairs: Sequence[tuple[int, int]],
    cond: Cond,
    device: torch.device,
    batch: int,
    callback: Callback | None = None,
) -> Tensor:
    """Samples ``(n, *shape)`` float32.

    Args:
        denoiser: of the model, guided where it is to be.
        contract: of the model.
        request: times, share of noise and solver.
        pairs: the seed and the index of each sample.
        cond: of all samples, on the CPU.
        device: where they are made.
        batch: samples at a time.
        callback: see :class:`~fewstep.states.State`; None watches nothing.

    Raises:
        UsageError: the batch is below 1.
    """
    if batch < 1:
        raise UsageError(f"batch must be at least 1, got {batch}")
    parts, draws = [], request.draws(contract.sampling.kind)
    for first in range(0, len(pairs), batch):
        own = slice(first, first + batch)
        part = {key: value[own].to(device) for key, value in cond.items()}
        mask = part["mask"] if contract.data.masked else None
        stream = options.noise(contract.data, pairs[own], mask, draws)
        watched = {"callback": callback, "first": first}
        parts.append(one_batch(denoiser, contract, request, stream, part, device, **watched))
    return torch.cat(parts)


def one_batch(
    denoiser: AbstractDenoiser,
    contract: Contract,
    request: Request,
    noise: SampleNoise,
    cond: Cond,
    device: torch.device,
    callback: Callback | None = None,
    first: int = 0,
) -> Tensor:
    """The samples of one batch; ``first`` is the place of its first one among all."""
    sampling, data = contract.sampling, contract.data
    x = noise(0).to(device, widest(device)) * sampling.start.std
    times = torch.tensor(request.times, dtype=torch.float64)
    if sampling.kind == "renoise" and data.range is not None:
        denoiser = Clamped(denoiser, *data.range)
    watch: solvers.Watch = solvers.unwatched
    if callback is not None:
        denoiser = Answers(denoiser)
        watch = Watcher(
            callback,
            len(request.times),
            first,
            answers=denoiser,
            estimates=sampling.kind == "renoise" or not denoiser.two_time,
            finish=partial(_finished, contract=contract, cond=cond),
            mask=cond["mask"] if data.masked else None,
        )
    if request.solver is not None:
        out = _solved(denoiser, x, times, noise, cond, request.solver, watch)
    elif sampling.kind == "renoise":
        out = solvers.multistep(denoiser, x, times, noise, cond, watch=watch)
    elif request.gamma is not None:
        gamma = request.gamma
        out = solvers.gamma_sampling(denoiser, x, times, noise, cond, gamma=gamma, watch=watch)
    else:
        out = solvers.deterministic(denoiser, x, times, cond, watch=watch)
    return _finished(out, contract, cond)


def _solved(
    denoiser: AbstractDenoiser,
    x: Event,
    times: Tensor,
    noise: SampleNoise,
    cond: Cond,
    solver: Solver,
    watch: solvers.Watch,
) -> Event:
    """A solver down the times, and the model's answer at the last of them."""
    if solver.churn:
        # As EDM's code does: noise is added before the last answer, too.
        churn, step = solvers.Churn(solver.churn), CHURNED[solver.name]
        grid = torch.cat([times, times.new_zeros(1)])
        return solvers.ode(
            denoiser, x, grid, cond, step=step, churn=churn, noise=noise, watch=watch
        )
    if solver.eta:
        eta = solver.eta
        x = solvers.stochastic_ddim(denoiser, x, times, noise, cond, eta=eta, watch=watch)
    else:
        x = SOLVERS[solver.name](denoiser, x, times, cond, watch=watch)
    last = times[-1:].to(x.device, x.dtype).expand(len(x))
    out = denoiser(x, last, None, cond)
    watch(torch.zeros_like(last), out)
    return out


def _finished(x: Tensor, contract: Contract, cond: Cond) -> Tensor:
    """Within the data's range, in float32, and 0 behind each sample's end."""
    data = contract.data
    out = (x if data.range is None else x.clamp(*data.range)).float()
    return out.masked_fill(cond["mask"] == 0, 0.0) if data.masked else out
