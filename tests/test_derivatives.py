"""Directional derivatives: our rules against torch's, and each way against the others."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewstep.derivatives import finite_difference, jvp, jvp_apart
from fewstep.training.again import again
from oracles import D, normal


class Net(nn.Module):
    """Every layer that has a rule of our own, and one whose weight depends on time."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.strided = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding="same", groups=2, bias=False)
        self.dilated = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.narrow = nn.Conv1d(4, 3, 3)
        self.linear = nn.Linear(14, 5)
        self.embed = nn.Linear(1, 4 * 4 + 4)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, t):
        weight, bias = self.embed(t[:1, None]).squeeze(0).split((16, 4))
        h = self.dilated(self.grouped(self.strided(x).tanh()).sin())
        h = F.conv2d(h, weight.reshape(4, 4, 1, 1), bias)
        h = self.dropout(self.narrow(h.flatten(2)))
        return (
            F.linear(self.linear(h), weight[:10].reshape(2, 5), bias[:2]).sin() * t[:, None, None]
        )


def case(dropout: float = 0.0):
    torch.manual_seed(0)
    net = Net(dropout).double()
    primals = normal(3, 2, 8, 8), torch.rand(3, dtype=D) + 0.5
    return net, primals, (normal(3, 2, 8, 8, seed=1), torch.ones(3, dtype=D))


def gradients(net, scalar):
    return torch.autograd.grad(scalar, list(net.parameters()), allow_unused=True, retain_graph=True)


def test_our_rules_are_torchs():
    net, primals, tangents = case()
    ours = jvp(net, primals, tangents, differentiable=True)
    theirs = torch.func.jvp(net, primals, tangents)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-12)
        weights = normal(*own.shape, seed=2)
        pairs = zip(
            gradients(net, (own * weights).sum()),
            gradients(net, (other * weights).sum()),
            strict=True,
        )
        for a, b in pairs:
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_the_input_gets_its_gradient_too():
    net, (x, t), tangents = case()
    x.requires_grad_()
    found = [
        torch.autograd.grad(how(net, (x, t), tangents)[0].sum(), x)[0]
        for how in (jvp, torch.func.jvp)
    ]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


def test_weights_without_tangent_cost_no_pass():
    net, x = nn.Conv2d(2, 4, 3), torch.randn(2, 2, 8, 8)
    with torch.no_grad(), torch.profiler.profile() as profile:
        jvp(net, (x,), (x,))
    calls = {e.key: e.count for e in profile.key_averages()}
    assert calls["aten::convolution"] == 2


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_value_apart_is_the_same(dropout):
    net, primals, tangents = case(dropout)
    torch.manual_seed(7)
    value, tangent = jvp(net, primals, tangents)
    torch.manual_seed(7)
    apart = jvp_apart(net, primals, tangents)
    torch.testing.assert_close(apart[0], value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(apart[1], tangent, rtol=1e-12, atol=1e-12)
    assert apart[0].requires_grad
    assert not apart[1].requires_grad
    for a, b in zip(gradients(net, apart[0].sum()), gradients(net, value.sum()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_forward_mode_refuses_checkpointing_and_apart_does_not():
    net, primals, tangents = case()

    def recomputed(x, t):
        return again(net, x, t)

    value, tangent = jvp(net, primals, tangents)
    with pytest.raises(RuntimeError, match="computed again"):
        jvp(recomputed, primals, tangents)[0].sum().backward()
    found = jvp_apart(recomputed, primals, tangents)
    torch.testing.assert_close(found, (value, tangent), rtol=1e-12, atol=1e-12)
    for a, b in zip(gradients(net, found[0].sum()), gradients(net, value.sum()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_central_difference_is_of_second_order(dropout):
    net, (x, t), tangents = case(dropout)
    primals = (x, t + 1)  # times below 1 shorten the step
    torch.manual_seed(7)
    value, tangent = jvp(net, primals, tangents)
    errors = []
    for step in (1e-2, 5e-3):
        torch.manual_seed(7)
        found = finite_difference(step)(net, primals, tangents)
        torch.testing.assert_close(found[0], value, rtol=1e-12, atol=1e-12)
        errors.append((found[1] - tangent).abs().max())
    assert 3.5 < float(errors[0] / errors[1]) < 4.5
    assert float(errors[1]) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_values_and_derivatives_its_precision(dtype):
    torch.manual_seed(0)
    first, norm, last = nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Linear(8, 2)

    def net(x):
        return last(norm(first(x)).sin())

    x, v = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    expected = jvp(net, (x,), (v,))
    with torch.autocast("cpu", dtype):
        found = jvp(net, (x,), (v,))
    assert found[0].dtype == found[1].dtype == dtype
    for a, b in zip(found, expected, strict=True):
        assert (a.float() - b).norm() < 0.03 * b.norm()
    found[0].float().sum().backward()
    half = first.weight.grad.clone()
    first.weight.grad = None
    expected[0].sum().backward()
    assert (half - first.weight.grad).norm() < 0.03 * half.norm()


def test_differences_keep_times_above_0():
    t = torch.tensor([1e-2, 1e-4, 3.0], dtype=D)
    x = normal(3, 2)
    value, tangent = finite_difference(1e-2)(
        lambda x, t: x * t.log()[:, None], (x, t), (torch.zeros_like(x), torch.ones_like(t))
    )
    torch.testing.assert_close(tangent, x / t[:, None], rtol=1e-2, atol=0)
    assert value.isfinite().all()
