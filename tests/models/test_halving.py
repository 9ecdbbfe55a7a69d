"""Half the memory, and no more error than autocast makes."""

from __future__ import annotations

import pytest
import torch

from every_net import BUILDS, built, conditions
from fewstep.models import EDM, Denoiser, Guided, LowRank, halved
from fewstep.paths import Linear
from oracles import D, normal

T = torch.tensor([0.3, 5.0, 60.0], dtype=D)


def single(name: str) -> Denoiser:
    return Denoiser(built(name).float(), EDM(sigma_data=0.5)).eval()


def given(denoiser, name: str):
    cond = conditions(denoiser.net)
    cond = cond and {k: v.float() if v.is_floating_point() else v for k, v in cond.items()}
    return normal(3, *BUILDS[name]().options["shape"]).float() * T.float().reshape(3, 1, 1, 1)[
        (..., *[0] * (3 - len(BUILDS[name]().options["shape"])))
    ], cond


@torch.no_grad()
@pytest.mark.parametrize("name", BUILDS)
def test_every_network_is_as_exact_as_under_autocast(name):
    whole = single(name)
    x, cond = given(whole, name)
    half = halved(whole)
    exact, found = whole(x, T, None, cond), half(x, T, None, cond)
    with torch.autocast("cpu", torch.bfloat16):
        usual, both = whole(x, T, None, cond), half(x, T, None, cond)
    error, limit = ((v - exact).square().mean().sqrt() for v in (found, usual))
    assert found.dtype == torch.float32
    assert 0 < error < 2 * limit + 0.003 * exact.square().mean().sqrt()
    assert (both - exact).square().mean().sqrt() < 2 * limit + 0.003 * exact.square().mean().sqrt()


def test_weights_are_halved_and_frozen_and_buffers_are_not():
    whole = single("ncsnpp")
    half = halved(whole)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in half.buffers()} == {torch.float32}
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in half.parameters())
    assert not any(m._forward_hooks for m in whole.modules())


def test_wrapped_moved_and_shared():
    whole = single("ddpmpp")
    x, cond = given(whole, "ddpmpp")
    guided = halved(Guided(whole, {"label": 3}, 1.0))
    half = halved(whole)
    torch.testing.assert_close(
        guided(x, T, None, cond), half(x, T, None, cond), rtol=0.02, atol=0.02
    )
    moved, there = whole.on(Linear()), half.on(Linear())
    t = torch.tensor([0.1, 0.5, 0.9], dtype=D)
    torch.testing.assert_close(
        there(x, t, None, cond), moved(x, t, None, cond), rtol=0.05, atol=0.05
    )
    fake = LowRank(half, rank=2)
    assert fake(x, T, None, cond).equal(half(x, T, None, cond))
    fake(x, T, None, cond).square().sum().backward()
    assert {p.grad.dtype for p in fake.parameters()} == {torch.float32}
