"""Discriminators on the features of diffusion models: one small head on each block."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core import Batch, Cond, UsageError, local, same_dropout
from fewstep.models.denoiser import Denoiser
from fewstep.models.lora import LowRank
from fewstep.models.nets.blocks import label_of
from fewstep.paths import Event, Time


class _Enough(Exception):
    """All features are there; what is left of the network is of no use."""


class Heads(nn.Module):
    """Logits from features whose channels come last.

    With classes, the hidden layer's product with a vector of the label is added to each logit
    (projection, Miyato & Koyama 2018); at first it adds nothing.

    Args:
        channels: of each feature.
        width: of the hidden layer.
        classes: number of labels; 0 for none. Label ``classes`` is null.
    """

    def __init__(self, channels: Sequence[int], width: int, classes: int = 0) -> None:
        super().__init__()
        self.options = {"classes": classes}
        self.channels = [*channels]
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(c), nn.Linear(c, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
            )
            for c in channels
        )
        nothing = torch.zeros(classes + 1, width)
        labels = [nn.Embedding.from_pretrained(nothing.clone(), freeze=False) for _ in channels]
        self.labels = nn.ModuleList(labels if classes else [])

    def forward(self, features: Sequence[Tensor], cond: Cond | None = None) -> list[Tensor]:
        """One tensor a head, with a logit for each position of its feature."""
        widths = [f.shape[-1] for f in features]
        if widths != self.channels:
            raise UsageError(
                f"these heads are of features with {self.channels} channels, got {widths}; make "
                "them of the denoiser that is judged through"
            )
        if not self.labels:
            return [head(f) for head, f in zip(self.heads, features, strict=True)]
        label, logits = label_of(cond), []
        for head, vectors, f in zip(self.heads, self.labels, features, strict=True):
            assert isinstance(head, nn.Sequential)
            hidden, vector = head[:-1](f), vectors(label)
            vector = vector.reshape(len(vector), *[1] * (hidden.ndim - 2), -1)
            logits.append(head[-1](hidden) + (hidden * vector).sum(-1, keepdim=True))
        return logits


class Judge(nn.Module):
    """Heads on the features of the denoiser that is handed in at each call; it holds heads only.

    So a denoiser that learns beside them (DMD2's) can be judged through, or a frozen one.

    Args:
        denoiser: whose features' sizes it is made for.
        example: data, of which those are read.
        axis: where the channels of a feature are; -1 for a transformer's tokens.
        at: which units, counted as they run; none is all of them.
        width: width of the heads' hidden layer.
        classes: number of labels that the heads read; see :class:`Heads`.
    """

    def __init__(
        self,
        denoiser: Denoiser | LowRank,
        example: Batch,
        *,
        axis: int = 1,
        at: Sequence[int] = (),
        width: int = 64,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.axis, self.at = axis, tuple(at)
        t = torch.full((len(example),), denoiser.path.t_max, device=example.x0.device)
        with torch.no_grad():
            features = features_of(denoiser, example.x0, t, example.cond, axis, at)
        channels = [f.shape[-1] for f in features]
        self.heads = Heads(channels, width, classes).to(example.x0.device)

    def forward(
        self, denoiser: Denoiser | LowRank, x: Event, t: Time, cond: Cond | None = None
    ) -> list[Tensor]:
        """The heads' logits of ``x`` at ``t``."""
        return self.heads(features_of(denoiser, x, t, cond, self.axis, self.at), cond)


def features_of(
    denoiser: Denoiser | LowRank,
    x: Event,
    t: Time,
    cond: Cond | None = None,
    axis: int = 1,
    at: Sequence[int] = (),
) -> list[Tensor]:
    """What the ``units`` of a denoiser's network answer, in the order they run, channels last.

    They are caught by hooks, so any network that names its units will do, as it is: not compiled,
    because compiled code does not look for hooks that come later. Nothing is computed after the
    last of them, unless the network is sharded: shards are put back at its end. What dropout draws
    on the way there is drawn again by what follows, so both learn the same.
    """
    features: list[Tensor] = []
    kinds: tuple[type[nn.Module], ...] = getattr(denoiser.net, "units", ())
    units = [m for m in denoiser.net.modules() if isinstance(m, kinds)]
    if not units:
        raise UsageError(
            f"{type(denoiser.net).__name__} names no units to take features from; give the "
            "class an attribute units = (BlockClass, ...)"
        )
    if at and not all(-len(units) <= i < len(units) for i in at):
        raise UsageError(f"the network has {len(units)} units, got at={tuple(at)}")

    sharded = any(local(p) is not p for p in denoiser.net.parameters())
    wanted = 1 + max(i % len(units) for i in at or range(len(units)))

    with ExitStack() as stack:

        def keep(_: nn.Module, __: tuple[Tensor, ...], given: Any) -> None:
            # Blocks that also answer for the words of a text answer for the picture last.
            answer = given if isinstance(given, Tensor) else given[-1]
            features.append(answer)
            if len(features) == wanted:
                if not sharded:
                    raise _Enough
                stack.enter_context(same_dropout(answer))

        for unit in units:
            stack.callback(unit.register_forward_hook(keep).remove)
        with suppress(_Enough):
            denoiser.raw(x, t, None, cond)
    chosen = [features[i % len(units)] for i in at] if at else features
    return [f.movedim(axis, -1).to(x.dtype) for f in chosen]


class FeatureDiscriminator(nn.Module):
    """Heads on the features of a frozen denoiser, see :func:`features_of`; ``heads`` is to learn.

    Args:
        denoiser: frozen here; a diffusion model on the path of what is judged.
        example: data, of which the features' sizes are read.
        axis: where the channels of a feature are; -1 for a transformer's tokens.
        width: width of the heads' hidden layer.
        classes: number of labels that the heads read; see :class:`Heads`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        example: Batch,
        *,
        axis: int = 1,
        width: int = 64,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser.eval().requires_grad_(False)
        self.judge = Judge(denoiser, example, axis=axis, width=width, classes=classes)

    @property
    def heads(self) -> nn.Module:
        """What is to learn: from features and conditions to logits."""
        return self.judge.heads

    def features(self, x: Event, t: Time, cond: Cond | None = None) -> list[Tensor]:
        """What the heads read of ``x`` at ``t``."""
        return features_of(self.denoiser, x, t, cond, self.judge.axis)

    def forward(self, x: Event, t: Time, cond: Cond | None = None) -> list[Tensor]:
        """The heads' logits of ``x`` at ``t``."""
        return self.judge(self.denoiser, x, t, cond)
