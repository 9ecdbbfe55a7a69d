"""Directional derivatives of networks: forward mode, and a central difference for the rest.

Forward mode carries a tangent beside every value. torch's own rules for convolutions and linear
layers also multiply the value by the tangent of the weights, which is zero, and so take three
passes where two do; inside :func:`jvp` other rules stand in for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from fewstep.core import expand, same_dropout

Function = Callable[..., Tensor]
Derivative = Callable[[Function, tuple[Tensor, ...], tuple[Tensor, ...]], tuple[Tensor, Tensor]]
"""(fn, primals, tangents) -> its value, with gradient, and its directional derivative, without."""


def jvp(
    fn: Function,
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor, ...],
    *,
    differentiable: bool = False,
) -> tuple[Tensor, Tensor]:
    """Value (with gradient) and directional derivative of ``fn`` in one forward.

    The derivative is detached unless it is to be ``differentiable`` itself.

    Attention runs on the math kernel inside: the fused ones have no forward-mode rule
    (pytorch#128971), and some layouts fall back silently, so it is pinned here and nowhere else.
    """
    with sdpa_kernel(SDPBackend.MATH), _OwnRules():
        value, tangent, *_ = torch.func.jvp(fn, primals, tangents)
    return value, tangent if differentiable else tangent.detach()


def jvp_apart(
    fn: Function, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The derivative without a graph, then the value by a forward pass of its own.

    One pass more than :func:`jvp`, in the memory of a plain forward and backward pass; the only way
    with gradient checkpointing, whose hooks forward mode refuses. Dropout masks are the same.
    """
    with torch.no_grad(), same_dropout(primals[0]):
        _, tangent = jvp(fn, primals, tangents)
    return fn(*primals), tangent


def finite_difference(step: float = 1e-3) -> Derivative:
    """A central difference, for networks without forward-mode rules; its error is O(step^2).

    Args:
        step: of all primals at once, along the tangents; times ``(b,)`` below 1 shorten it, so that
            they stay above 0.
    """

    def derivative(
        fn: Function, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        times = [p.abs() for p in primals if p.ndim == 1]
        share = torch.stack(times).amin(0).clamp(1e-3, 1.0) if times else primals[0].new_ones(1)
        ends = []
        for h in (step * share, -step * share):
            moved = [p + expand(h, p) * v for p, v in zip(primals, tangents, strict=True)]
            with torch.no_grad(), same_dropout(primals[0]):
                ends.append(fn(*moved))
        change = ends[0] - ends[1]
        return fn(*primals), change / expand(2 * step * share, change)

    return derivative


class _OwnRules(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Any = None,
    ) -> Any:
        given = kwargs or {}
        if func is F.linear:
            return _linear(*args, **given)
        if func in _CONVOLUTIONS:
            return _convolution(func, *args, **given)
        if func in _NORMS:
            return _norm(func, *args, **given)
        return func(*args, **given)


_CONVOLUTIONS: dict[Any, int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}

_NORMS = {F.group_norm, F.layer_norm}


def _norm(func: Any, input: Tensor, *args: Any, **given: Any) -> Tensor:
    # In half precision with weights of full, torch's rule gives the tangent another precision than
    # the value, which the next layer refuses.
    return func(input.float() if input.dtype in _HALF else input, *args, **given).to(input.dtype)


_HALF = {torch.bfloat16, torch.float16}


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    return _Linear.apply(*_cast(input, weight, bias))


def _convolution(
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if isinstance(padding, str):
        return func(input, weight, bias, stride, padding, dilation, groups)
    n = _CONVOLUTIONS[func]
    each = [[v] * n if isinstance(v, int) else list(v) for v in (stride, padding, dilation)]
    return _Convolution.apply(*_cast(input, weight, bias), (*each, False, [0] * n, groups))


def _cast(*tensors: Tensor | None) -> Iterator[Tensor | None]:
    """What autocast would do, which knows torch's own convolutions only."""
    first = tensors[0]
    assert first is not None
    device = first.device.type
    wanted = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    return (x if x is None or wanted is None else x.to(wanted) for x in tensors)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _remember(ctx, *inputs[:2])

    @staticmethod
    def jvp(ctx: Any, x_t: Any, weight_t: Any, bias_t: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        parts = (
            None if x_t is None else F.linear(x_t, weight),
            None if weight_t is None else F.linear(x, weight_t),
            None if bias_t is None else bias_t.expand(*x.shape[:-1], -1),
        )
        return sum(part for part in parts if part is not None)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            grad @ weight if for_x else None,
            rows.T @ x.flatten(0, -2) if for_weight else None,
            rows.sum(0) if for_bias else None,
        )


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Any) -> Tensor:
        return torch.convolution(x, weight, bias, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.settings = inputs
        ctx.bias_size = None if bias is None else list(bias.shape)
        _remember(ctx, x, weight)

    @staticmethod
    def jvp(ctx: Any, x_t: Any, weight_t: Any, bias_t: Any, _: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        convolve = torch.convolution
        parts = (
            None if x_t is None else convolve(x_t, weight, None, *ctx.settings),
            None if weight_t is None else convolve(x, weight_t, None, *ctx.settings),
            None if bias_t is None else bias_t.reshape(-1, *[1] * (x.ndim - 2)),
        )
        return sum(part for part in parts if part is not None)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        gradients = torch.ops.aten.convolution_backward(
            grad, x, weight, ctx.bias_size, *ctx.settings, list(ctx.needs_input_grad[:3])
        )
        return (*gradients, None)


def _remember(ctx: Any, *tensors: Tensor) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
