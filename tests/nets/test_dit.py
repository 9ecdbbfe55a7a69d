import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import UsageError
from fewstep.models.nets.dit import SIZES, DiT, DiTBlock, TimeMLP, position_embedding
from oracles import D, normal

TINY = {"patch": 2, "depth": 1, "width": 8, "heads": 2}


def tiny(**options) -> DiT:
    torch.manual_seed(0)
    return DiT((3, 4, 6), **{**TINY, **options}).double()


# Millions of trainable parameters on latents of 4 x 32 x 32 with 1000 classes and a null one. The
# published networks' last layer has 2 x 4 outputs a pixel, ours 4.
@pytest.mark.parametrize(
    ("size", "millions"), [("s", 32.87), ("b", 130.32), ("l", 457.84), ("xl", 674.83)]
)
def test_parameters_of_published_networks(size, millions):
    with torch.device("meta"):
        network = DiT((4, 32, 32), patch=2, classes=1000, **SIZES[size])
    count = sum(p.numel() for p in network.parameters())
    unread = 4 * 2**2 * (SIZES[size]["width"] + 1)
    assert round((count + unread) / 1e6, 2) == millions


def test_positions():
    found = position_embedding(2, 3, 8)
    assert found.shape == (6, 8)

    def half(n: int) -> list[float]:
        return [math.sin(n), math.sin(n / 100), math.cos(n), math.cos(n / 100)]

    # Token 5 is in row 1 and column 2: the column comes first.
    assert found[5].tolist() == pytest.approx(half(2) + half(1), abs=1e-7)
    assert found[1].tolist() == pytest.approx(half(1) + half(0), abs=1e-7)
    assert found[3].tolist() == pytest.approx(half(0) + half(1), abs=1e-7)


def test_the_time_s_sinusoid():
    time = TimeMLP(8)
    seen: list[Tensor] = []
    time.first.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    time(torch.tensor([0.7]))
    angles = [0.7 * 1e4 ** (-i / 128) for i in range(128)]
    wanted = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    assert seen[0][0].tolist() == pytest.approx(wanted, abs=1e-6)


def standardised(x: Tensor) -> Tensor:
    centred = x - x.mean(2, keepdim=True)
    return centred / (centred.square().mean(2, keepdim=True) + 1e-6).sqrt()


def gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + (math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)).tanh())


def test_a_block_is_its_description():
    torch.manual_seed(0)
    block = DiTBlock(6, 2).double()
    with torch.no_grad():
        for p in block.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x, embedding = normal(2, 5, 6), normal(2, 6, seed=1)
    found = block(x, embedding)
    rows = (embedding * embedding.sigmoid()) @ block.modulate.weight.T + block.modulate.bias
    b1, s1, g1, b2, s2, g2 = (rows[:, None, 6 * i : 6 * (i + 1)] for i in range(6))
    h = standardised(x) * (1 + s1) + b1
    out = torch.empty_like(x)
    q, k, v = (
        h @ block.qkv.weight[6 * i : 6 * (i + 1)].T + block.qkv.bias[6 * i : 6 * (i + 1)]
        for i in range(3)
    )
    for n in range(2):
        own = slice(3 * n, 3 * (n + 1))
        weights = (q[..., own] @ k[..., own].transpose(1, 2) / 3**0.5).softmax(2)
        out[..., own] = weights @ v[..., own]
    x = x + g1 * (out @ block.proj.weight.T + block.proj.bias)
    h = standardised(x) * (1 + s2) + b2
    h = gelu(h @ block.up.weight.T + block.up.bias)
    x = x + g2 * (h @ block.down.weight.T + block.down.bias)
    assert block.up.out_features == 24
    torch.testing.assert_close(found, x)


def test_a_fresh_block_is_the_identity():
    block, x = DiTBlock(8, 2).double(), normal(2, 5, 8)
    assert block(x, normal(2, 8, seed=1)).equal(x)


def test_patches_are_read_and_written_in_the_published_order():
    network = tiny()
    for layer in (network.modulate, network.last):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    x, t = normal(2, 3, 4, 6), normal(2)
    found = network(x, t)
    filters = network.first.weight.reshape(8, 3, 2, 2)
    tokens = F.conv2d(x, filters, network.first.bias, stride=2).flatten(2).transpose(1, 2)
    tokens = tokens + position_embedding(2, 3, 8).double()
    embedding = F.silu(network.time(t))
    rows = embedding @ network.modulate.weight.T + network.modulate.bias
    tokens = standardised(tokens) * (1 + rows[:, None, 8:]) + rows[:, None, :8]
    out = (tokens @ network.last.weight.T + network.last.bias).reshape(2, 2, 3, 2, 2, 3)
    wanted = torch.einsum("nhwpqc->nchpwq", out).reshape(2, 3, 4, 6)
    torch.testing.assert_close(found, wanted)


def test_how_it_starts():
    torch.manual_seed(0)
    network = DiT((3, 4, 4), depth=2, width=256, heads=4, classes=200)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            assert not module.bias.any()
    assert float(network.label.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert network.label.weight.shape == (201, 256)
    for layer in (network.time.first, network.time.last):
        assert float(layer.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    block = network.blocks[1]
    for layer in (network.first, block.qkv, block.proj, block.up, block.down):
        bound = math.sqrt(6 / sum(layer.weight.shape))
        assert float(layer.weight.detach().abs().max()) == pytest.approx(bound, rel=0.02)
    for layer in (network.modulate, network.last, block.modulate):
        assert not layer.weight.any()


def test_embeddings_are_added():
    network = tiny(classes=3, two_time=True)
    nn.init.normal_(network.end.last.weight)
    seen: list[Tensor] = []
    network.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    t, s, label = normal(2), normal(2, seed=1), torch.tensor([3, 1])
    network(normal(2, 3, 4, 6), t, s, {"label": label})
    wanted = network.time(t) + network.end(s) + network.label.weight[label]
    torch.testing.assert_close(seen[0], wanted)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3, 4), {}, "divisible"),
        ((3, 4, 5), {}, r"patches of 2.*\(3, 4, 5\)"),
        ((3, 0, 4), {}, "divisible"),
        ((3, 4, 4), {"patch": 0}, "patches of 0"),
        ((3, 4, 4), {"width": 10}, "multiple of 4 and of the 2 heads, got 10"),
        ((3, 4, 4), {"heads": 3}, "of the 3 heads, got 8"),
        ((3, 4, 4), {"heads": 0}, "heads"),
        ((3, 4, 4), {"width": 0}, "got 0"),
    ],
)
def test_shapes_that_do_not_fit(shape, options, message):
    with pytest.raises(UsageError, match=message):
        DiT(shape, **{**TINY, **options})


def test_positions_travel_with_the_weights():
    network = tiny()
    assert network.state_dict()["position"].dtype == D
    assert network.state_dict()["position"].shape == (6, 8)
