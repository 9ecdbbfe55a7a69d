"""Declared conditions: what they change, what padding must not change, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from every_net import BUILDS, built, conditions
from fewstep.core import Batch, UsageError
from fewstep.derivatives import jvp, jvp_apart
from fewstep.models import EDM, Denoiser, Guided, Judge, LowRank, grown, halved
from fewstep.models.nets import ADM, DDPMpp, DiT, NCSNpp, ResidualMLP, UNet1d
from fewstep.models.nets.conditions import MOST, RESERVED, Conditions
from fewstep.models.nets.dit import CrossAttention
from fewstep.models.spec import build_denoiser, build_network, denoiser_spec, network_spec
from fewstep.training.distribution import checkpoint_blocks
from oracles import D, normal

SEQUENTIAL = ["ddpmpp-declared", "dit-declared", "unet1d-declared"]
DECLARING = [*SEQUENTIAL, "mlp-vectors", "ncsnpp-vectors", "adm-vectors"]
PLAIN = [name for name in BUILDS if name not in DECLARING]
sequential = pytest.mark.parametrize("name", SEQUENTIAL)
T = torch.full((3,), 0.3, dtype=D)


def ask(network: nn.Module, **cond: Tensor | None) -> Tensor:
    given = {**(conditions(network) or {}), **cond}
    x = normal(3, *network.options["shape"])
    return network(x, T, None, {k: v for k, v in given.items() if v is not None})


@pytest.mark.parametrize("name", PLAIN)
def test_a_network_without_declared_conditions_has_no_trace_of_them(name):
    network = built(name)
    assert not {"vectors", "sequences", "images", "masked"} & set(network.options)
    assert not [k for k in network.state_dict() if "conditions" in k or "cross" in k]


@sequential
def test_the_names_are_in_the_keys_in_one_order(name):
    one = BUILDS[name](vectors={"b": 1, "a": 2}, images={"z": 1, "y": 2})
    declared = tuple(k for k in one.cond_keys if k not in RESERVED)
    assert declared == ("a", "b", "text", "text_mask", "y", "z")
    assert ("mask" in one.cond_keys) == (name == "unet1d-declared")
    spec = json.loads(json.dumps(network_spec(one), sort_keys=True))
    two = build_network(spec)
    assert network_spec(two) == network_spec(one)
    assert [*two.state_dict()] == [*one.state_dict()]


@pytest.mark.parametrize("name", ["dit", "ddpmpp", "mlp", "ncsnpp", "adm"])
def test_a_vector_is_mapped_into_the_embedding(name):
    module = Conditions(name, 6, {"pose": 4}).double()
    layers, pose = module.vectors["for_pose"], normal(3, 2, 2)
    hidden = pose.reshape(3, 4) @ layers.first.weight.T + layers.first.bias
    wanted = normal(3, 6) + F.silu(hidden) @ layers.last.weight.T + layers.last.bias
    torch.testing.assert_close(module.add_vectors(normal(3, 6), {"pose": pose}), wanted)
    alone = Conditions(name, 6, {"speed": 1}).double()
    assert alone.add_vectors(normal(3, 6), {"speed": torch.arange(3)}).dtype == D


def test_a_sequence_is_the_mean_of_its_real_tokens_and_their_places():
    module = Conditions("net", 6, None, {"text": (5, 2)}).double()
    part = module.sequences["for_text"]
    tokens, mask = normal(2, 3, 2), torch.tensor([[True, False, True], [False] * 3])
    hidden = tokens @ part.map.first.weight.T + part.map.first.bias + part.position[:3]
    rows = F.silu(hidden) @ part.map.last.weight.T + part.map.last.bias
    wanted = torch.stack([(rows[0, 0] + rows[0, 2]) / 2, part.null[0]])
    cond = {"text": tokens, "text_mask": mask}
    torch.testing.assert_close(module.add_pooled(torch.zeros(2, 6, dtype=D), cond), wanted)


def test_cross_attention_is_its_description():
    torch.manual_seed(0)
    layer = CrossAttention(6, 2).double()
    nn.init.normal_(layer.proj.weight)
    x, tokens = normal(2, 5, 6), normal(2, 3, 6, seed=1)
    mask = torch.tensor([[True, False, True], [True, False, False]])
    centred = x - x.mean(2, keepdim=True)
    q = centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt() @ layer.query.weight.T
    k, v = (tokens @ layer.keys.weight[rows].T for rows in (slice(0, 6), slice(6, 12)))
    out = torch.empty_like(x)
    for own in (slice(0, 3), slice(3, 6)):
        logits = q[..., own] @ k[..., own].transpose(1, 2) / 3**0.5
        weights = logits.exp() * mask[:, None]
        out[..., own] = weights / weights.sum(2, keepdim=True) @ v[..., own]
    torch.testing.assert_close(layer(x, tokens, mask), out @ layer.proj.weight.T)


@sequential
@pytest.mark.parametrize("junk", [0.0, 1e3, -7.0, float("inf")])
def test_more_padding_changes_no_answer(name, junk):
    network = built(name)
    given = conditions(network)
    text, mask = given["text"], given["text_mask"]
    first = ask(network)
    more = text.masked_fill(~mask[:, :, None], junk)
    more = F.pad(more, (0, 0, 0, 2), value=junk)
    found = ask(network, text=more, text_mask=F.pad(mask, (0, 2)))
    torch.testing.assert_close(found, first, rtol=0, atol=1e-6)
    # Fewer places, as long as none is real.
    rows = ask(network, text=text[:, :3], text_mask=mask[:, :3])
    torch.testing.assert_close(rows, first, rtol=0, atol=1e-6)


@sequential
def test_no_token_is_a_condition_of_its_own(name):
    network = built(name)
    empty = torch.zeros(3, 4, dtype=torch.bool)
    null = ask(network, text_mask=empty)
    assert null.isfinite().all()
    torch.testing.assert_close(null, ask(network, text=normal(3, 4, 5, seed=99), text_mask=empty))
    nothing = {"text": normal(3, 0, 5), "text_mask": torch.zeros(3, 0, dtype=torch.bool)}
    torch.testing.assert_close(null, ask(network, **nothing))
    assert ((null - ask(network)).abs().flatten(1).amax(1) > 1e-6).tolist() == [True, True, False]
    null.square().sum().backward()
    parameters = dict(network.named_parameters())
    assert parameters["conditions.sequences.for_text.null"].grad.any()
    # Processes that train together wait for a gradient of every weight, used or not.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters.values())


@sequential
def test_the_order_of_tokens_matters(name):
    network = built(name)
    full = torch.ones(3, 4, dtype=torch.bool)
    text = normal(3, 4, 5)
    a, b = ask(network, text=text, text_mask=full), ask(network, text=text.flip(1), text_mask=full)
    assert (a - b).abs().flatten(1).amax(1).min() > 1e-6


def test_an_image_stands_beside_the_sample():
    for name in SEQUENTIAL:
        network = built(name)
        first, sketch = ask(network), conditions(network)["sketch"]
        other = sketch.clone()
        other[1] += 1
        changed = (ask(network, sketch=other) - first).abs().flatten(1).amax(1)
        assert (changed > 1e-6).tolist() == [False, True, False]
    x, image = normal(2, 1, 4), normal(2, 3, 4)
    module = Conditions("net", 6, images={"b": 3, "a": 1})
    assert module.channels == 4
    joined = module.add_images(x, {"b": image, "a": x + 1})
    assert joined.equal(torch.cat([x, x + 1, image], 1))


@pytest.mark.parametrize("name", DECLARING)
def test_derivatives_through_every_new_part(name):
    """In time and state, in both ways of computing them, against a central difference."""
    network, h = built(name), 1e-6
    x, one = normal(3, *network.options["shape"]), torch.ones(3, dtype=D)
    v = normal(*x.shape, seed=1)
    cond = conditions(network)

    def answer(x: Tensor, t: Tensor) -> Tensor:
        return network(x, t, None, cond)

    value, tangent = jvp(answer, (x, T), (v, one))
    torch.testing.assert_close(value, answer(x, T))
    ends = [answer(x + s * h * v, T + s * h * one).detach() for s in (1, -1)]
    torch.testing.assert_close(tangent, (ends[0] - ends[1]) / (2 * h), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(jvp_apart(answer, (x, T), (v, one))[1], tangent)
    value.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@sequential
def test_derivatives_in_the_conditions_themselves(name):
    network, h = built(name), 1e-6
    cond = conditions(network)
    keys = ("pose", "text", "sketch")
    directions = tuple(normal(*cond[key].shape, seed=2) for key in keys)

    def answer(*values: Tensor) -> Tensor:
        return ask(network, **dict(zip(keys, values, strict=True)))

    given = tuple(cond[key] for key in keys)
    tangent = jvp(answer, given, directions)[1]
    ends = [
        answer(*(g + s * h * d for g, d in zip(given, directions, strict=True))).detach()
        for s in (1, -1)
    ]
    torch.testing.assert_close(tangent, (ends[0] - ends[1]) / (2 * h), rtol=1e-4, atol=1e-5)


@sequential
def test_growing_halving_adapters_guidance_and_features_know_conditions(name):
    network = built(name).float()
    denoiser = Denoiser(network, EDM(sigma_data=0.5)).eval()
    cond = {k: v.float() if v.is_floating_point() else v for k, v in conditions(network).items()}
    x = normal(3, *network.options["shape"]).float()
    exact = denoiser(x, T, None, cond)
    taller = grown(denoiser, two_time=True)
    assert taller.cond_keys == denoiser.cond_keys
    assert taller(x, T, T / 2, cond).equal(exact)
    half = halved(denoiser)
    torch.testing.assert_close(half(x, T, None, cond), exact, rtol=0.1, atol=0.1)
    fake = LowRank(half, rank=2)
    assert any("for_text" in key for key in fake.adapters)
    fake(x, T, None, cond).square().sum().backward()
    assert all(p.grad is not None for p in fake.parameters())
    null = {"pose": 0, "text_mask": False, "sketch": 0}
    guided = Guided(denoiser, null, 0.0)(x, T, None, cond)
    nothing = {k: torch.full_like(v, null[k]) if k in null else v for k, v in cond.items()}
    torch.testing.assert_close(guided, denoiser(x, T, None, nothing), rtol=1e-4, atol=1e-5)
    axis = -1 if name.startswith("dit") else 1
    judge = Judge(denoiser, Batch(x, cond), axis=axis, width=4)
    assert all(v.isfinite().all() for v in judge(denoiser, x, T, cond))
    checkpoint_blocks(network)
    torch.testing.assert_close(denoiser(x, T, None, cond), exact)
    again = build_denoiser(json.loads(json.dumps(denoiser_spec(taller))))
    again.load_state_dict(taller.state_dict())
    assert again.eval()(x, T, T / 2, cond).equal(exact)


@sequential
@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({"pose": None}, r"cond=\{'pose': float tensor .* 4 numbers per sample\}, got none"),
        ({"pose": normal(3, 5)}, r"4 numbers.*got float64 of shape \(3, 5\)"),
        ({"pose": normal(2, 6)}, r"'pose'.*got float64 of shape \(2, 6\)"),
        ({"pose": torch.tensor(1.0)}, r"'pose'.*of shape \(\)"),
        ({"text": None}, r"'text': float tensor \(b, length, 5\).*at most 6\}, got none"),
        ({"text": normal(3, 7, 5)}, r"at most 6\}, got float64 of shape \(3, 7, 5\)"),
        ({"text": normal(3, 4, 6)}, r"got float64 of shape \(3, 4, 6\)"),
        ({"text": normal(1, 4, 5)}, r"got float64 of shape \(1, 4, 5\)"),
        ({"text": normal(3, 5)}, r"got float64 of shape \(3, 5\)"),
        ({"text_mask": None}, r"'text_mask': bool tensor of shape \(3, 4\).*got none"),
        ({"text_mask": torch.ones(3, 3) > 0}, r"got bool of shape \(3, 3\)"),
        ({"text_mask": torch.ones(3, 4)}, r"got float32 of shape \(3, 4\)"),
        ({"sketch": None}, r"'sketch': float tensor \(b, c, \*space\) of shape \(3, 2, .*got none"),
        ({"sketch": normal(3, 2, 4)}, r"'sketch'.*got float64 of shape \(3, 2, 4\)"),
    ],
)
def test_conditions_that_do_not_fit(name, cond, message):
    with pytest.raises(UsageError, match=message):
        ask(built(name), **cond)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vectors": {"label": 3}}, "names of vectors.*none of.*'label'"),
        ({"images": {"mask": 3}}, "names of images.*'mask'"),
        ({"sequences": {"a.b": (3, 4)}}, "names of sequences.*'a.b'"),
        ({"vectors": {"": 3}}, "begin with a letter"),
        ({"vectors": {"_a": 3}}, "begin with a letter"),
        ({"vectors": {"a" * 65: 3}}, "at most 64"),
        ({"vectors": {"pose": 0}}, r"vectors with positive sizes.*got \{'pose': 0\}"),
        ({"vectors": {"pose": -1}}, "positive sizes"),
        ({"images": {"sketch": 0}}, r"such as \{'sketch': 1\}, got \{'sketch': 0\}"),
        ({"sequences": {"text": (0, 4)}}, r"such as \{'text': \(77, 768\)\}, got"),
        ({"sequences": {"text": (4, -1)}}, "positive sizes"),
        ({"vectors": {"a": 1}, "images": {"a": 1}}, "'a' twice"),
        ({"vectors": {"text_mask": 1}, "sequences": {"text": (1, 1)}}, "'text_mask' twice"),
        ({"vectors": {f"v{i}": 1 for i in range(MOST + 1)}}, f"at most {MOST} vectors"),
    ],
)
@pytest.mark.parametrize("build", [DDPMpp, DiT, UNet1d])
def test_declarations_that_are_refused(build, options, message):
    shape = (1, 8) if build is UNet1d else (1, 8, 8)
    with pytest.raises(UsageError, match=f"{build.__name__}: .*{message}"):
        build(shape, **options)


HOSTILE = [
    {"vectors": {"pose": 2**20 + 1}},
    {"vectors": {"pose": 10**30}},
    {"vectors": {"pose": float("nan")}},
    {"vectors": {"pose": "many"}},
    {"vectors": {"pose": [4]}},
    {"vectors": {"pose": None}},
    {"vectors": {"pose": {"pose": 4}}},
    {"vectors": ["pose"]},
    {"vectors": "pose"},
    {"vectors": 3},
    {"vectors": {"__class__": 3}},
    {"images": {"sketch": -(2**21)}},
    {"sequences": {"text": 5}},
    {"sequences": {"text": [5]}},
    {"sequences": {"text": [5, 4, 3]}},
    {"sequences": {"text": [2**21, 4]}},
    {"sequences": {"text": [4, 2**21]}},
    {"sequences": {"text": [4, None]}},
    {"masked": "perhaps"},
    {"shape": [None, 8]},
    {"shape": [1, 0]},
    {"shape": [None, None]},
    {"shape": None},
    {"shape": [1, None, None]},
    {"widths": [8, None]},
]


@pytest.mark.parametrize("options", HOSTILE, ids=lambda o: json.dumps(o)[:40])
def test_hostile_files_are_refused(options):
    spec = {"kind": "unet1d", "shape": [1, 8], "widths": [8, 8], **options}
    with torch.device("meta"), pytest.raises(UsageError):
        build_network(spec)


@pytest.mark.parametrize("build", [ResidualMLP, NCSNpp, ADM])
def test_networks_for_vectors_alone(build):
    network = build((3, 8, 8), vectors={"type": 2, "keys": 3})
    assert network.cond_keys == ("keys", "type")
    assert network.options["vectors"] == {"keys": 3, "type": 2}
    with pytest.raises(UsageError, match="sequences"):
        build_network({**network_spec(network), "sequences": {"text": [3, 4]}})
