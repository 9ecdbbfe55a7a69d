"""Optimisers of a run are torch's, and RAdam by the fused kernel of Adam is RAdam."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fewstep.training.config import TrainConfig
from fewstep.training.optimizers import RADAM, FusedRAdam, optimizer_of, rectification


def parameters(n: int = 5) -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    shapes = [(k + 1, 3) for k in range(n)]
    return [nn.Parameter(torch.randn(s, generator=rng, dtype=torch.float32)) for s in shapes]


def descend(optimizer: torch.optim.Optimizer, steps: int, absent: tuple[int, ...] = ()) -> None:
    """Give random gradients, none to the parameters ``absent`` at odd steps."""
    rng = torch.Generator().manual_seed(1)
    (group,) = optimizer.param_groups
    for step in range(steps):
        group["lr"] = 1e-2 / (1 + step)
        for k, p in enumerate(group["params"]):
            g = torch.randn(p.shape, generator=rng, dtype=torch.float32) * 10.0 ** (k - 3)
            p.grad = None if k in absent and step % 2 else g
        optimizer.step()


@pytest.mark.parametrize("absent", [(), (1, 3)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.99), (0.0, 0.9)])
def test_radam_is_torchs(betas, decay, absent):
    first = parameters()
    pairs = []
    for kind in (FusedRAdam, torch.optim.RAdam):
        own = copy.deepcopy(first)
        # With such an eps its place in the formula counts.
        optimizer = kind(own, lr=1e-2, betas=betas, weight_decay=decay, eps=1e-2)
        descend(optimizer, 40, absent)
        pairs.append((own, optimizer.state_dict()["state"]))
    (ours, our_state), (theirs, their_state) = pairs
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=1e-7)
    for k, state in their_state.items():
        for name, value in state.items():
            torch.testing.assert_close(our_state[k][name], value, rtol=2e-6, atol=1e-9)


def test_the_first_steps_are_torchs_to_the_bit():
    ours, theirs = parameters(), parameters()
    descend(FusedRAdam(ours, lr=1e-2), 5)
    descend(torch.optim.RAdam(theirs, lr=1e-2), 5)
    assert all(map(torch.equal, ours, theirs))
    assert [rectification(k, 0.999) is None for k in range(1, 8)] == [True] * 5 + [False] * 2


def test_a_later_step_is_one_kernel():
    own = parameters()
    optimizer = FusedRAdam(own, lr=1e-2)
    descend(optimizer, 6)
    with torch.profiler.profile() as profile:
        optimizer.step()
    counts = {e.key: e.count for e in profile.key_averages()}
    assert counts["aten::_fused_adam_"] == 1
    assert "aten::addcmul_" not in counts


def test_the_state_of_one_goes_on_in_the_other():
    ours = FusedRAdam(parameters(), lr=1e-2)
    descend(ours, 8)
    other = torch.optim.RAdam(parameters(), lr=1e-2)
    other.load_state_dict(copy.deepcopy(ours.state_dict()))
    again = FusedRAdam(parameters(), lr=1e-2)
    again.load_state_dict(copy.deepcopy(other.state_dict()))
    for optimizer in (ours, again):
        for p in optimizer.param_groups[0]["params"]:
            p.data.zero_()
        descend(optimizer, 3)
    pairs = zip(ours.param_groups[0]["params"], again.param_groups[0]["params"], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_where_the_kernel_does_not_fit_radam_is_torchs_own():
    config = TrainConfig(steps=1, optimizer="radam")
    assert type(optimizer_of(parameters(), config)) is FusedRAdam
    mixed = [*parameters(), nn.Parameter(torch.zeros(2, dtype=torch.float64))]
    assert type(optimizer_of(mixed, config)) is RADAM
