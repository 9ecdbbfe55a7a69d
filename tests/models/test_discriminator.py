"""A discriminator on the features of frozen networks of every kind."""

import pytest
import torch
from torch import nn

from fewstep.core import Batch, UsageError
from fewstep.models import EDM, Denoiser, FeatureDiscriminator, Judge, features_of
from fewstep.models.nets import DiT
from oracles import normal
from small_nets import NETWORKS, shaken


def example(network: nn.Module) -> Batch:
    x = normal(3, *network.options["shape"]).float()
    return Batch(x, {k: torch.tensor([0, 1, 2]) for k in network.cond_keys})


def judge(network: nn.Module, **options) -> FeatureDiscriminator:
    denoiser = Denoiser(shaken(network), EDM(sigma_data=0.5))
    return FeatureDiscriminator(denoiser, example(network), width=4, **options)


T = torch.tensor([0.3, 1.0, 5.0], dtype=torch.float64)
MAKE = {**NETWORKS, "dit": lambda: DiT((1, 4, 4), 2, 2, 8, 2, classes=3)}


@pytest.mark.parametrize("kind", MAKE)
def test_every_unit_has_a_head_and_the_input_a_gradient(kind):
    network = MAKE[kind]()
    found = judge(network, axis=-1 if kind == "dit" else 1)
    units = [m for m in network.modules() if isinstance(m, network.units)]
    batch = example(network)
    x = batch.x0.requires_grad_()
    logits = found(x, T, batch.cond)
    assert len(logits) == len(found.heads.heads) == len(units) > 0
    assert all(v.shape[0] == 3 and v.shape[-1] == 1 for v in logits)
    torch.stack([v.mean() for v in logits]).sum().backward()
    assert x.grad.abs().min() > 0
    assert all(p.grad is None for p in found.denoiser.parameters())
    assert all(p.grad is not None for p in found.heads.parameters())
    assert not any(m._forward_hooks for m in network.modules())


def test_heads_of_another_network_are_refused():
    found = judge(NETWORKS["mlp"]())
    other = Denoiser(MAKE["dit"](), EDM(sigma_data=0.5))
    batch = example(other.net)
    with pytest.raises(UsageError, match=r"heads are of features with \[.*got \[8, 8\]; make them"):
        found.heads(features_of(other, batch.x0, T, batch.cond, -1), batch.cond)


def test_features_are_what_the_blocks_answer_to_the_scaled_input():
    network = NETWORKS["mlp"]()
    found, batch = judge(network), example(network)
    c_in, c_noise = (v.float() for v in found.denoiser.preconditioning.coefficients(T)[2:])
    seen = []
    hook = network.blocks[1].register_forward_hook(lambda _, __, out: seen.append(out))
    network(c_in[:, None] * batch.x0, c_noise, None, batch.cond)
    hook.remove()
    assert features_of(found.denoiser, batch.x0, T, batch.cond)[1].equal(seen[0])
    (last,) = features_of(found.denoiser, batch.x0, T, batch.cond, at=(1,))
    assert last.equal(seen[0])


@pytest.mark.parametrize(("at", "ran"), [((1,), 2), ((0, -3), 8), ((), 10), ((-1,), 10)])
def test_nothing_runs_after_the_last_feature(at, ran):
    network = shaken(NETWORKS["ddpmpp"]()).eval()
    denoiser, batch = Denoiser(network, EDM(sigma_data=0.5)), example(network)
    calls = []
    for m in network.modules():
        if isinstance(m, network.units) or m is network.last:
            m.register_forward_hook(lambda m, *_: calls.append(m))
    every = features_of(denoiser, batch.x0, T, batch.cond)
    calls.clear()
    some = features_of(denoiser, batch.x0, T, batch.cond, at=at)
    assert len(every) == 10
    assert len(calls) == ran
    assert network.last not in calls
    assert all(f.equal(every[i]) for f, i in zip(some, at, strict=False))


def test_hooks_are_gone_after_an_error():
    network = NETWORKS["mlp"]()
    found = judge(network)
    with pytest.raises(UsageError, match="label"):
        found(example(network).x0, T, {})
    assert not any(m._forward_hooks for m in network.modules())


def test_a_network_without_units_is_refused():
    class Bare(nn.Module):
        cond_keys, two_time = (), False

        def forward(self, x, c_noise, s_noise=None, cond=None):
            return x

    with pytest.raises(UsageError, match="units"):
        FeatureDiscriminator(Denoiser(Bare(), EDM(sigma_data=0.5)), Batch(torch.zeros(1, 2)))


def test_a_judge_holds_heads_only_and_judges_through_what_it_is_handed():
    network = NETWORKS["mlp"]()
    denoiser, batch = Denoiser(shaken(network), EDM(sigma_data=0.5)), example(network)
    found = Judge(denoiser, batch, at=(1,), width=4)
    assert {name.split(".")[0] for name, _ in found.named_parameters()} == {"heads"}
    (logits,) = found(denoiser, batch.x0, T, batch.cond)
    logits.sum().backward()
    assert network.blocks[1].up.weight.grad.abs().sum() > 0
    assert network.last.weight.grad is None
    with pytest.raises(UsageError, match="units"):
        Judge(denoiser, batch, at=(7,))


@pytest.mark.parametrize("kind", ["mlp", "ddpmpp", "dit"])
def test_heads_are_told_the_label_by_a_projection(kind):
    network = MAKE[kind]()
    axis, batch = (-1 if kind == "dit" else 1), example(network)
    torch.manual_seed(0)
    plain = judge(network, axis=axis)
    torch.manual_seed(0)
    found = judge(network, axis=axis, classes=3)
    features = found.features(batch.x0, T, batch.cond)
    for a, b in zip(found(batch.x0, T, batch.cond), plain.heads(features), strict=True):
        assert a.equal(b)
    for vectors in found.heads.labels:
        nn.init.normal_(vectors.weight)
    told = found.heads(features, batch.cond)
    for i, (feature, logits) in enumerate(zip(features, told, strict=True)):
        norm, up, act, last = found.heads.heads[i]
        vectors = found.heads.labels[i].weight
        assert vectors.shape == (4, 4)
        for k in range(3):
            hidden = act(up(norm(feature[k])))
            wanted = last(hidden) + (hidden @ vectors[k])[..., None]
            torch.testing.assert_close(logits[k], wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="label"):
        found.heads(features)


def test_heads_without_classes_have_none():
    found = judge(NETWORKS["mlp"]())
    assert not found.heads.labels
    assert not any("labels" in name for name in found.state_dict())
