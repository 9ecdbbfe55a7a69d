"""A discriminator on the features of a frozen diffusion model: one small head on each block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewstep.core import Batch, Cond, UsageError
from fewstep.models.denoiser import Denoiser
from fewstep.paths import Event, Time


class Heads(nn.Module):
    """Logits from features whose channels come last.

    Args:
        channels: of each feature.
        width: of the hidden layer.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(c), nn.Linear(c, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
            )
            for c in channels
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """One tensor a head, with a logit for each position of its feature."""
        return [head(f) for head, f in zip(self.heads, features, strict=True)]


class FeatureDiscriminator(nn.Module):
    """Heads on what the ``units`` of a denoiser's network answer; only ``heads`` is to be trained.

    The answers are caught by hooks, so any network that names its units will do, as it is: not
    compiled, because compiled code does not look for hooks that come later.

    Args:
        denoiser: frozen here; a diffusion model on the path of what is judged.
        example: data, of which the features' sizes are read.
        axis: where the channels of a feature are; -1 for a transformer's tokens.
        width: of the heads' hidden layer.
    """

    def __init__(
        self, denoiser: Denoiser, example: Batch, *, axis: int = 1, width: int = 64
    ) -> None:
        super().__init__()
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.axis = axis
        t = torch.full((len(example),), denoiser.path.t_max, device=example.x0.device)
        with torch.no_grad():
            features = self.features(example.x0, t, example.cond)
        if not features:
            raise UsageError(
                f"{type(denoiser.net).__name__} names no units to take features from; give the "
                "class an attribute units = (BlockClass, ...)"
            )
        self.heads = Heads([f.shape[-1] for f in features], width).to(example.x0.device)

    def features(self, x: Event, t: Time, cond: Cond | None = None) -> list[Tensor]:
        """What each unit answers, in the order in which they run, channels last."""
        found: list[Tensor] = []
        kinds: tuple[type[nn.Module], ...] = getattr(self.denoiser.net, "units", ())
        units = [m for m in self.denoiser.net.modules() if isinstance(m, kinds)]

        def keep(_: nn.Module, __: tuple[Tensor, ...], answer: Tensor) -> None:
            found.append(answer)

        hooks = [unit.register_forward_hook(keep) for unit in units]
        try:
            self.denoiser.raw(x, t, None, cond)
        finally:
            for hook in hooks:
                hook.remove()
        return [f.movedim(self.axis, -1).to(x.dtype) for f in found]

    def forward(self, x: Event, t: Time, cond: Cond | None = None) -> list[Tensor]:
        """The heads' logits of ``x`` at ``t``."""
        return self.heads(self.features(x, t, cond))
