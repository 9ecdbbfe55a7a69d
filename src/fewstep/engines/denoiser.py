"""Denoisers whose answers come from an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fewstep.core import Cond
from fewstep.models import AbstractDenoiser
from fewstep.paths import Event, Time

if TYPE_CHECKING:
    from fewstep.engines.sessions import Session


class EngineDenoiser(AbstractDenoiser):
    """A denoiser that an engine's session answers for, in float32 on the CPU.

    Args:
        denoiser: whose graph the session runs; it says the path, the conditions and the cost.
        session: from arrays by name to the answer.
    """

    def __init__(self, denoiser: AbstractDenoiser, session: Session) -> None:
        super().__init__()
        self.session = session
        self.path, self.cond_keys = denoiser.path, denoiser.cond_keys
        self.two_time, self.calls = denoiser.two_time, denoiser.calls

    def forward(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        """x0_hat in the precision of ``x``."""
        inputs = {"x": x.float(), "t": t.float()}
        if self.two_time:
            inputs["s"] = (t if s is None else s).float()
        for key in self.cond_keys:
            value = (cond or {})[key]
            inputs[key] = value.float() if value.is_floating_point() else value
        arrays = {key: value.detach().contiguous().numpy() for key, value in inputs.items()}
        return torch.from_numpy(self.session(arrays)).to(x.dtype)


class CompiledDenoiser(AbstractDenoiser):
    """A denoiser whose forward pass torch's compiler has translated.

    Args:
        denoiser: whose weights are shared.
    """

    def __init__(self, denoiser: AbstractDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.compiled = torch.compile(denoiser)
        self.path, self.cond_keys = denoiser.path, denoiser.cond_keys
        self.two_time, self.calls = denoiser.two_time, denoiser.calls

    def forward(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        """x0_hat."""
        return self.compiled(x, t, s, cond)
