"""Pictures between the pictures of seeds, by a walk along the sphere of their start noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep import sampling_options as options
from fewstep import schedule
from fewstep.errors import UsageError
from fewstep.model import Model
from fewstep.noise import SampleNoise
from fewstep.sampling import one_batch


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation of noise (Shoemake 1985; Song et al. 2023, appendix D).

    Args:
        a: noise of one sample, which ``share`` 0 returns.
        b: likewise for 1.
        share: of the way, in [0, 1].
    """
    angle = torch.arccos(((a / a.norm()) * (b / b.norm())).sum().clamp(-1, 1))
    if float(angle.sin()) < 1e-6:
        return torch.lerp(a, b, share)
    return (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()


class _Walk:
    """Start noise on the way between seeds; all frames share the noise of later steps."""

    def __init__(
        self, ends: Tensor, shares: Sequence[tuple[int, float]], first: SampleNoise
    ) -> None:
        self.first, self.frames, self.begun = first, len(shares), False
        self.start = torch.stack([slerp(ends[k], ends[k + 1], s) for k, s in shares])

    def __call__(self, i: int) -> Tensor:
        """``(frames, *shape)``; asked in order, as :class:`~fewstep.noise.SampleNoise` is."""
        own = self.first(i)
        if self.begun:
            return own.expand(self.frames, *own.shape[1:])
        self.begun = True
        return self.start


def interpolate(
    model: Model,
    seeds: Sequence[int],
    *,
    frames: int = 9,
    steps: int | None = None,
    times: Sequence[float] | None = None,
    label: int | str | None = None,
    prompts: str | None = None,
    guidance: float | None = None,
    cond: dict[str, Any] | None = None,
    batch: int = 512,
) -> Tensor:
    """Pictures between those that the model draws for some seeds.

    The first frame is that of the first seed, ``model.sample(seeds=seeds[:1], label=label)``, and
    the last one that of the last seed, where one step is made. With more steps all frames share the
    fresh noise of the first seed, so that only the start moves.

    Args:
        model: of pixels or latents.
        seeds: at least two, which are visited in turn.
        frames: from one seed to the next, both included; at least 2.
        steps: see :meth:`fewstep.Model.times`.
        times: the times themselves instead.
        label: one class for all frames; by default that of the first seed.
        prompts: one text for all frames.
        guidance: scale of classifier-free guidance.
        cond: conditions by name, the same for all frames.
        batch: frames at a time.

    Returns:
        ``((len(seeds) - 1) * (frames - 1) + 1, *shape)`` float32, in the range of the data.

    Raises:
        UsageError: there are fewer than two seeds or frames, or the model does not allow the rest.
    """
    if len(seeds) < 2 or frames < 2:
        raise UsageError(
            f"an interpolation needs at least 2 seeds and 2 frames, got {len(seeds)} and {frames}"
        )
    contract = model.contract
    if contract.data.masked:
        raise UsageError("samples of this model differ in length, so none lie between two of them")
    request = options.Request(
        model.times(steps) if times is None else schedule.given_times(contract, times),
        options.gamma(contract, None),
        options.solver(contract, model.denoiser.path),
    )
    shares = [(k, i / (frames - 1)) for k in range(len(seeds) - 1) for i in range(frames - 1)]
    shares.append((len(seeds) - 2, 1.0))
    own = [seeds[0]] * len(shares)
    conditions = model.conditions(own, cond, label=label, prompts=prompts)
    denoiser = model.guided(guidance, conditions)
    pairs = options.pairs(len(seeds), 0, 0, seeds)
    ends = model.noise(pairs)(0)
    parts = []
    for first in range(0, len(shares), batch):
        some = slice(first, first + batch)
        part = {key: value[some].to(model.device) for key, value in conditions.items()}
        walk: Any = _Walk(ends, shares[some], model.noise(pairs[:1]))
        with torch.no_grad():
            parts.append(one_batch(denoiser, contract, request, walk, part, model.device))
    x = torch.cat(parts)
    codec = model.frontend.codec
    return x if codec is None else codec.decode(x)
