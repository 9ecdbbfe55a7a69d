"""The codec of action chunks: a robot's units on one side, numbers in [-1, 1] on the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.contract import DataSpec
from fewstep.errors import UsageError

SMALLEST = 1e-4
"""A dimension whose values span less than this counts as constant."""


def limits(x: Tensor, smallest: float = SMALLEST) -> tuple[Tensor, Tensor]:
    """Shift and scale by which the least and the largest value become -1 and 1.

    This is the normaliser ``limits`` of Diffusion Policy (Chi et al. 2023): z = (x - shift) scale.
    A dimension that hardly varies has the scale 1, and its least value becomes 0.

    Args:
        x: ``(..., d)``.
        smallest: the span below which a dimension counts as constant.

    Returns:
        Shift and scale, each ``(d,)``.
    """
    rows = x.flatten(0, -2)
    low, high = rows.amin(0), rows.amax(0)
    constant = high - low < smallest
    shift = torch.where(constant, low, (low + high) / 2)
    return shift, torch.where(constant, 1.0, 2 / (high - low).clamp(min=smallest))


class Observations(nn.Module):
    """Shift and scale of the numbers that a robot observes.

    Args:
        channels: numbers of an action.
        observed: numbers of an observation.
    """

    def __init__(self, channels: int, observed: int) -> None:
        super().__init__()
        self.channels = channels
        self.options: dict[str, Any] = {"channels": channels, "observed": observed}
        self.register_buffer("shift", torch.zeros(observed))
        self.register_buffer("scale", torch.ones(observed))

    def forward(self, x: Tensor) -> Tensor:
        """Numbers about in [-1, 1] of observations ``(..., observed)``."""
        return (x - self.get_buffer("shift")) * self.get_buffer("scale")


class ChunkCodec(nn.Module):
    """Between action chunks ``(b, actions, horizon)`` in the robot's units and in [-1, 1].

    It also has the normaliser of observations, so that whoever loads a policy can observe as its
    training did.

    Args:
        net: the normaliser of observations.
        shift: of each action: z = (action - shift) scale.
        scale: likewise.

    Raises:
        UsageError: the numbers do not fit, or are not finite and above 0.
    """

    def __init__(self, net: Observations, shift: Sequence[float], scale: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        for name, given in (("shift", shift), ("scale", scale)):
            value = torch.as_tensor(given, dtype=torch.float32).flatten()
            if len(value) != net.channels or not bool(value.isfinite().all()):
                raise UsageError(
                    f"the {name} of a codec of chunks is one finite number for each of its "
                    f"{net.channels} actions, got {given}"
                )
            self.register_buffer(name, value)
        if not bool((self.get_buffer("scale") > 0).all()):
            raise UsageError("the scale of a codec of chunks must be above 0")

    @classmethod
    def fitted(cls, actions: Tensor, observations: Tensor) -> ChunkCodec:
        """The codec that maps all values of a data set to [-1, 1].

        Args:
            actions: ``(n, actions)``.
            observations: ``(n, observed)``.
        """
        net = Observations(actions.shape[1], observations.shape[1])
        for name, value in zip(("shift", "scale"), limits(observations), strict=True):
            net.get_buffer(name).copy_(value)
        shift, scale = limits(actions)
        return cls(net, shift.tolist(), scale.tolist())

    @property
    def channels(self) -> int:
        """Numbers of an action."""
        return self.net.channels

    @property
    def observed(self) -> int:
        """Numbers of an observation."""
        return self.net.options["observed"]

    @property
    def scaling(self) -> dict[str, list[float]]:
        """Shift and scale of each action."""
        return {name: self.get_buffer(name).tolist() for name in ("shift", "scale")}

    def shape_of(self, shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """The shape of normalised chunks, which is that of chunks ``(actions, horizon)``.

        Raises:
            UsageError: these are no such chunks.
        """
        if len(shape) != 2 or shape[0] != self.channels:
            raise UsageError(
                f"this codec reads chunks ({self.channels}, horizon) of actions, got samples of "
                f"shape {tuple(shape)}"
            )
        return tuple(shape)

    def decoded_shape(self, shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """The shape of decoded chunks, which is the same."""
        return tuple(shape)

    def decoded_spec(self, spec: DataSpec) -> DataSpec:
        """The specification of decoded chunks, which have the robot's units."""
        return DataSpec(shape=spec.shape, range=None, conditions=spec.conditions)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Normalised chunks ``(b, actions, horizon)`` float32."""
        self.shape_of(x.shape[1:])
        return (x.float() - self._each("shift")) * self._each("scale")

    @torch.no_grad()
    def decode(self, z: Tensor, batch: int | None = None) -> Tensor:
        """Chunks ``(b, actions, horizon)`` float32 in the robot's units.

        Args:
            z: normalised chunks.
            batch: has no meaning here, as nothing is computed but a product and a sum.
        """
        return z.float() / self._each("scale") + self._each("shift")

    @torch.no_grad()
    def observe(self, observations: Tensor) -> Tensor:
        """Normalised observations ``(..., observed)`` float32.

        Raises:
            UsageError: the observations have another dimension.
        """
        if observations.shape[-1] != self.observed:
            raise UsageError(
                f"the policy observes {self.observed} numbers, got {observations.shape[-1]}"
            )
        return self.net(observations.float())

    def _each(self, name: str) -> Tensor:
        return self.get_buffer(name)[None, :, None]
