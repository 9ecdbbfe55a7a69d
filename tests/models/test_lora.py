"""Adapters on shared weights: the same answers at first, little to learn, nothing changed."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from every_net import BUILDS, built, conditions
from fewstep.core import Batch, UsageError
from fewstep.models import EDM, Denoiser, Guided, Judge, LowRank, features_of
from fewstep.models.low_rank import LowRankMap
from fewstep.training.distribution import checkpoint_blocks, networks, units
from oracles import D, normal

T = torch.tensor([0.3, 1.0, 5.0], dtype=D)


def teacher(name: str = "ddpmpp") -> Denoiser:
    return Denoiser(built(name), EDM(sigma_data=0.5)).eval().requires_grad_(False)


def asked(denoiser, name: str = "ddpmpp") -> tuple:
    net = denoiser.net
    return normal(3, *BUILDS[name]().options["shape"]), T, None, conditions(net)


def moved(fake: LowRank) -> LowRank:
    with torch.no_grad():
        for p in fake.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return fake


@pytest.mark.parametrize("name", BUILDS)
def test_every_network_answers_the_same_and_all_adapters_learn(name):
    real = teacher(name)
    fake = LowRank(real, rank=2)
    given = asked(real, name)
    assert fake(*given).equal(real(*given))
    before = copy.deepcopy(real.state_dict())
    moved(fake)(*given).square().sum().backward()
    assert not [n for n, p in fake.named_parameters() if p.grad is None]
    assert all(p.grad is None for p in real.parameters())
    assert not fake(*given).equal(real(*given))
    assert all(v.equal(before[k]) for k, v in real.state_dict().items())


def test_it_is_the_network_with_the_product_added_to_its_weights():
    real = teacher()
    fake = moved(LowRank(real, rank=2, alpha=4))
    whole = copy.deepcopy(real)
    for name, adapter in fake.adapters.items():
        layer = whole.get_submodule(name.replace("/", "."))
        up, down = adapter.up.weight.flatten(1), adapter.down.weight.flatten(1)
        layer.weight.add_(2 * (up @ down).reshape(layer.weight.shape))
    given = asked(real)
    torch.testing.assert_close(fake(*given), whole(*given), atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(fake.raw(*given), whole.raw(*given), atol=1e-12, rtol=1e-12)


def test_weights_are_shared_and_only_adapters_are_its_own():
    real = teacher()
    fake = LowRank(real, rank=2)
    theirs = {id(p) for p in real.parameters()}
    assert theirs <= {id(p) for p in fake.net.parameters()}
    assert not theirs & {id(p) for p in fake.parameters()}
    assert all(name.startswith("adapters.") for name in fake.state_dict())
    assert sum(p.numel() for p in fake.parameters()) < sum(p.numel() for p in real.parameters())
    fake.requires_grad_(True)
    assert not any(p.requires_grad for p in real.parameters())
    state = moved(fake).state_dict()
    other = LowRank(real, rank=2)
    other.load_state_dict(state)
    assert other(*asked(real)).equal(fake(*asked(real)))


def test_modes_and_moves_reach_the_whole_tree():
    real = teacher("mlp")
    fake = LowRank(real)
    assert fake.train().net.training
    assert not real.training
    assert not fake.eval().net.training
    fake.float()
    assert {t.dtype for t in (*fake.net.parameters(), *fake.net.buffers())} == {torch.float32}
    assert {p.dtype for p in real.parameters()} == {torch.float32}
    assert next(real.buffers()).dtype == D


def test_weights_of_half_precision_have_adapters_in_single():
    real = teacher().bfloat16()
    fake = LowRank(real, rank=2)
    x, t, s, cond = asked(real)
    assert {p.dtype for p in fake.parameters()} == {torch.float32}
    assert fake(x.float(), t, s, cond).equal(real(x.float(), t, s, cond))
    moved(fake)(x.float(), t, s, cond).sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in fake.parameters())


def test_blocks_are_computed_again_in_its_own_tree():
    real = teacher()
    plain, fake = LowRank(real, rank=2), LowRank(real, rank=2)
    fake.load_state_dict(moved(plain).state_dict())
    (network,) = networks([nn.ModuleDict({"fake": fake})])
    checkpoint_blocks(network)
    assert all(isinstance(u.forward, partial) for u in units(fake.net))
    assert not any(isinstance(u.forward, partial) for u in units(real.net))
    given = asked(real)
    for each in (plain, fake):
        each(*given).square().sum().backward()
    grads = ([p.grad for p in each.parameters()] for each in (plain, fake))
    assert all(a.equal(b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_features_go_through_the_adapters(checkpointed):
    real = teacher()
    fake = moved(LowRank(real, rank=2))
    if checkpointed:
        checkpoint_blocks(fake.net)
    x, t, _, cond = asked(real)
    judge = Judge(fake, Batch(x, cond), at=(1,), width=4).double()
    logits = judge(fake, x.requires_grad_(), t, cond)
    torch.stack([v.mean() for v in logits]).sum().backward()
    assert x.grad.abs().sum() > 0
    first, last = fake.adapters["net/encoder/0/conv0"], fake.adapters["net/last"]
    assert first.up.weight.grad.abs().sum() > 0
    assert last.up.weight.grad is None
    (found,) = features_of(fake, x, t, cond, at=(1,))
    (theirs,) = features_of(real, x, t, cond, at=(1,))
    assert not found.equal(theirs)


def test_a_copy_of_both_shares_weights_too():
    real = teacher()
    both = copy.deepcopy(nn.ModuleDict({"real": real, "fake": LowRank(real, rank=2)}))
    shared = {id(p) for p in both["real"].parameters()}
    assert shared <= {id(p) for p in both["fake"].net.parameters()}
    tree = {id(m) for m in both["fake"].net.modules() if isinstance(m, LowRankMap)}
    assert tree == {id(m) for m in both["fake"].adapters.values()}


def test_what_cannot_be_adapted_is_refused():
    class Bare(nn.Module):
        cond_keys, two_time = (), False

        def forward(self, x, c_noise, s_noise=None, cond=None):
            return x

    with pytest.raises(UsageError, match="the one that it wraps"):
        LowRank(Guided(teacher(), {"label": 3}))
    with pytest.raises(UsageError, match="rank"):
        LowRank(teacher(), rank=0)
    with pytest.raises(UsageError, match="no linear map"):
        LowRank(Denoiser(Bare(), EDM(sigma_data=0.5)))
