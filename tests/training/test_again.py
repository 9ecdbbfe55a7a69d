"""Blocks that are computed again: the same numbers, less kept, and nothing of torch's compiler."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import ranks
from fewstep.training.again import again

TRAINING = """
import sys

sys.path.insert(0, {folder!r})
import ranks

made, _ = ranks.trained({name!r}, checkpointing={again}, optimizer={optimizer!r})
made.state()
print("torch._dynamo" in sys.modules)
"""


class Block(nn.Module):
    """Convolutions with dropout between; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        self.calls = 0

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        h = nn.functional.dropout(self.first(x).tanh(), 0.5)
        return self.last(h * h) + (0 if shift is None else shift)


def gradients(block: Block, call, autocast: bool = False) -> list[torch.Tensor]:
    x = torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_()
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16, autocast):
        y = call(block, call(block, x), x)
    torch.rand(5)  # what comes between must not move the masks
    return [y.detach(), *torch.autograd.grad(y.float().square().sum(), [x, *block.parameters()])]


@pytest.mark.parametrize("autocast", [False, True])
def test_it_is_the_same_to_the_bit(autocast):
    plain, block = Block(), Block()
    wanted = gradients(plain, lambda f, *args: f(*args), autocast)
    found = gradients(block, again, autocast)
    assert (plain.calls, block.calls) == (2, 4)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_generator_goes_on_as_if_nothing_had_been_repeated():
    block, x = Block(), torch.ones(3, 4, requires_grad=True)
    y = again(block, x).sum()
    torch.manual_seed(5)
    y.backward()
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))


def test_nothing_is_kept_inside_and_nothing_stays():
    inside = []

    def function(x: torch.Tensor) -> torch.Tensor:
        h = x.exp()  # saves its own answer
        inside.append(weakref.ref(h))
        return h.sin().sum()

    gc.disable()
    try:
        y = again(function, torch.ones(3, requires_grad=True))
        assert inside[0]() is None
        y.backward()
        assert len(inside) == 2
        assert inside[1]() is None
    finally:
        gc.enable()


def test_a_graph_may_be_gone_through_twice_and_differentiated_twice():
    x = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    y = again(lambda v: (v.sin() * v.exp()).sum(), x)
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(y, x, retain_graph=True)[0], first)
    (slope,) = torch.autograd.grad(y, x, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), x)
    torch.testing.assert_close(second, 2 * x.cos() * x.exp())


def test_without_gradients_it_is_a_call():
    block = Block()
    with torch.no_grad():
        assert not again(block, torch.ones(3, 4)).requires_grad
    assert block.calls == 1


def test_a_block_that_does_something_else_is_told():
    shapes = iter([2, 3])

    def function(x: torch.Tensor) -> torch.Tensor:
        return x.expand(next(shapes)).exp().sum()

    y = again(function, torch.ones(1, requires_grad=True))
    with pytest.raises(RuntimeError, match="something else when it was computed again"):
        y.backward()


@pytest.mark.parametrize(
    ("name", "optimizer"), [("consistency", "radam"), ("critic", "adam"), ("critic", "adamw")]
)
def test_training_does_not_bring_the_compiler(name, optimizer):
    folder, checkpointing = str(Path(ranks.__file__).parent), name == "consistency"
    code = TRAINING.format(folder=folder, name=name, again=checkpointing, optimizer=optimizer)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False"], done.stderr[-2000:]
