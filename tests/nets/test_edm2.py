import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import UsageError
from fewstep.models.nets.edm2 import EDM2, SIZES, EDM2Block, Uncertainty
from fewstep.models.nets.magnitude import MPConv, mp_cat, mp_silu
from oracles import D, normal

TINY = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}


def tiny(**options) -> EDM2:
    torch.manual_seed(0)
    return EDM2((2, 8, 8), **{**TINY, **options}).double()


def rms(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


# Millions of trainable parameters. An uncertainty has 128 more, so two decimals fit both with it
# and without.
@pytest.mark.parametrize(
    ("shape", "size", "classes", "millions"),
    [
        ((4, 64, 64), "xxs", 1000, 31.31),
        ((4, 64, 64), "xs", 1000, 124.71),
        ((4, 64, 64), "s", 1000, 280.21),
        ((4, 64, 64), "m", 1000, 497.81),
        ((4, 64, 64), "l", 1000, 777.50),
        ((4, 64, 64), "xl", 1000, 1119.28),
        ((4, 64, 64), "xxl", 1000, 1523.16),
        ((3, 64, 64), "xs", 1000, 124.71),
        ((3, 64, 64), "s", 1000, 280.21),
        ((4, 64, 64), "xs", 0, 124.20),
    ],
)
def test_parameters_of_published_networks(shape, size, classes, millions):
    with torch.device("meta"):
        network, head = EDM2(shape, classes=classes, **SIZES[size]), Uncertainty()
    count = sum(p.numel() for p in network.parameters())
    own = sum(p.numel() for p in head.parameters())
    assert own == 128
    assert round(count / 1e6, 2) == round((count + own) / 1e6, 2) == millions


# Blocks.


def spherical(layer: MPConv, gain: float = 1.0) -> Tensor:
    w = layer.weight.detach()
    flat = w.flatten(1)
    norm = flat.norm(dim=1, keepdim=True) / flat.shape[1] ** 0.5
    return (flat / (norm + 1e-4) * gain / flat.shape[1] ** 0.5).reshape(w.shape)


def blended(a: Tensor, b: Tensor) -> Tensor:
    return (0.7 * a + 0.3 * b) / math.sqrt(0.58)


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp()) / 0.596


def pixelwise(x: Tensor, dim: int = 1) -> Tensor:
    return x / (x.square().mean(dim, keepdim=True).sqrt() + 1e-4)


def attention(block: EDM2Block, x: Tensor, heads: int) -> Tensor:
    b, c, h, w = x.shape
    rows = torch.einsum("oc,bcl->bol", spherical(block.qkv)[:, :, 0, 0], x.flatten(2))
    out = torch.empty_like(x.flatten(2))
    d = c // heads
    for n in range(heads):
        of_head = rows[:, 3 * d * n : 3 * d * (n + 1)]
        q, k, v = (pixelwise(of_head[:, i::3]) for i in range(3))
        map_BLM = torch.einsum("bdl,bdm->blm", q, k).div(d**0.5).softmax(2)
        out[:, d * n : d * (n + 1)] = torch.einsum("blm,bdm->bdl", map_BLM, v)
    mixed = torch.einsum("oc,bcl->bol", spherical(block.proj)[:, :, 0, 0], out)
    return mixed.reshape(b, c, h, w)


@pytest.mark.parametrize("encoder", [True, False])
@pytest.mark.parametrize(("resample", "side"), [(0.5, 3), (1, 6), (2, 12)])
@pytest.mark.parametrize(("c_in", "c_out", "heads"), [(4, 6, 0), (6, 6, 1), (5, 128, 2)])
def test_a_block_is_its_description(encoder, resample, side, c_in, c_out, heads):
    torch.manual_seed(0)
    options = {"encoder": encoder, "resample": resample, "attend": heads > 0}
    block = EDM2Block(c_in, c_out, 7, **options).double()
    nn.init.constant_(block.gain, 0.6)
    x, embedding = normal(2, c_in, 6, 6), normal(2, 7, seed=1)
    found = block(x, embedding)
    if resample == 0.5:
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    if resample == 2:
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def project(x: Tensor) -> Tensor:
        return x if c_in == c_out else F.conv2d(x, spherical(block.skip))

    if encoder:
        x = pixelwise(project(x))
    y = F.conv2d(silu(x), spherical(block.conv0), padding=1)
    scale = 1 + embedding @ spherical(block.modulate, 0.6).T
    y = F.conv2d(silu(y * scale[:, :, None, None]), spherical(block.conv1), padding=1)
    x = blended(x if encoder else project(x), y)
    if heads:
        x = blended(x, attention(block, x, heads))
    assert found.shape == (2, c_out, side, side)
    torch.testing.assert_close(found, x, rtol=1e-8, atol=1e-8)


def test_activations_are_clipped():
    torch.manual_seed(0)
    block = EDM2Block(4, 4, 7, encoder=False)
    assert block(1e4 * torch.ones(1, 4, 4, 4), torch.zeros(1, 7)).abs().max() == 256


def test_heads_must_fit():
    with pytest.raises(UsageError, match="200 channels do not split into 3 heads"):
        EDM2Block(4, 200, 7, encoder=True, attend=True)
    EDM2Block(4, 200, 7, encoder=True)


# The network.


def test_a_fresh_network_answers_nothing_and_reads_no_embedding():
    network, x = tiny(classes=3), normal(2, 2, 8, 8)
    first, second = ({"label": torch.tensor(v)} for v in ([0, 1], [2, 3]))
    t = torch.tensor([0.1, 0.7], dtype=D)
    assert not network(x, t, None, first).any()
    nn.init.ones_(network.last_gain)
    assert network(x, t, None, first).equal(network(x, t + 1, None, second))
    for block in network.modules():
        if isinstance(block, EDM2Block):
            nn.init.ones_(block.gain)
    assert not network(x, t, None, first).allclose(network(x, t + 1, None, first))
    assert not network(x, t, None, first).allclose(network(x, t, None, second))


def test_magnitudes_stay_through_the_network():
    torch.manual_seed(0)
    network = EDM2((3, 16, 16), channels=32, multipliers=(1, 2), blocks=2, attention=(8,))
    nn.init.ones_(network.last_gain)
    seen: list[float] = []
    for block in (*network.encoder, *network.middle, *network.decoder):
        block.register_forward_hook(lambda module, inputs, out: seen.append(rms(out)))
    out = network(torch.randn(8, 3, 16, 16), torch.zeros(8))
    # Means of 2 x 2 pixels and the zeros around the image take some away.
    assert len(seen) == 14
    assert all(0.6 < size < 1.2 for size in (*seen, rms(out))), seen


def test_the_null_label_is_no_label_and_labels_have_unit_variance():
    network = tiny(classes=50)
    t = torch.tensor([0.3], dtype=D)
    seen: list[Tensor] = []
    network.label.register_forward_hook(lambda module, inputs, out: seen.append(out))
    network(normal(1, 2, 8, 8), t, None, {"label": torch.tensor([50])})
    network(normal(50, 2, 8, 8), t.expand(50), None, {"label": torch.arange(50)})
    assert not seen[0].any()
    assert rms(seen[1]) == pytest.approx(1, abs=0.15)
    assert rms(network._embedded(t.expand(50), None, {"label": torch.arange(50)})) == pytest.approx(
        1, abs=0.25
    )


def test_a_channel_of_ones_stands_for_biases():
    network = tiny()
    nn.init.ones_(network.last_gain)
    assert rms(network(torch.zeros(1, 2, 8, 8, dtype=D), torch.zeros(1, dtype=D))) > 0.1


def test_skips_enter_every_block_of_the_decoder_that_keeps_the_resolution():
    network = tiny()
    widths = [(b.conv0.weight.shape[1], b.conv0.weight.shape[0]) for b in network.decoder]
    assert widths == [(16 + 16, 16), (16 + 8, 16), (16, 16), (16 + 8, 8), (8 + 8, 8)]
    assert [b.resample for b in network.decoder] == [1, 1, 2, 1, 1]
    assert [b.attend for b in network.decoder] == [True, True, False, False, False]
    assert [b.attend for b in network.encoder] == [False, False, True]
    assert [b.resample for b in network.encoder] == [1, 0.5, 1]
    assert [b.attend for b in network.middle] == [True, False]
    made: list[Tensor] = []
    taken: list[Tensor] = []
    for module in (network.first, *network.encoder, *network.middle, *network.decoder):
        module.register_forward_hook(lambda module, inputs, out: made.append(out))
    for block in network.decoder:
        block.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
    network(normal(1, 2, 8, 8), normal(1))
    skips, now = made[:4], made[5:]
    for i, x in enumerate(taken):
        wanted = now[i] if i == 2 else mp_cat(now[i], skips.pop(), 0.5)
        torch.testing.assert_close(x, wanted)


def test_dropout_is_for_training():
    network = tiny(dropout=0.5)
    nn.init.ones_(network.last_gain)
    x, t = normal(2, 2, 8, 8), normal(2)
    assert not network.train()(x, t).equal(network(x, t))
    assert network.eval()(x, t).equal(network(x, t))


def test_the_guidance_has_its_share_of_the_variance_beside_the_second_time():
    network = tiny(channels=64, two_time=True, guidance=True)
    with torch.no_grad():
        network.end_gain.fill_(0.7)
        network.guidance_gain.fill_(0.4)
    t, s, w = torch.tensor([[0.2], [-0.6], [2.5]], dtype=D)
    angles = 2.5 * 1e4 ** (-torch.arange(32, dtype=D) / 32)
    ladder = math.sqrt(2) * torch.cat([angles.cos(), angles.sin()])[None]
    assert rms(ladder) == pytest.approx(1, abs=1e-6)
    time, end = (
        network.fourier(v) @ spherical(layer).T
        for v, layer in ((t, network.time), (s, network.end))
    )
    guidance = ladder @ spherical(network.guidance).T
    wanted = silu((time + 0.7 * end + 0.4 * guidance) / math.sqrt(1 + 0.7**2 + 0.4**2))
    torch.testing.assert_close(
        network._embedded(t, s, {"guidance": w}), wanted, rtol=1e-5, atol=1e-5
    )


def test_positional_time_is_a_ladder_without_anything_random():
    network = tiny(positional=True)
    assert "fourier.frequencies" not in network.state_dict()
    t = torch.tensor([0.9], dtype=D)
    angles = 0.9 * 1e4 ** (-torch.arange(4, dtype=D) / 4)
    ladder = math.sqrt(2) * torch.cat([angles.cos(), angles.sin()])
    torch.testing.assert_close(network.fourier(t)[0], ladder, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("option", ["positional", "guidance"])
def test_a_ladder_takes_an_even_number_of_channels(option):
    tiny(channels=7)
    with pytest.raises(UsageError, match="even number of channels, got 7"):
        tiny(channels=7, **{option: True})


def test_the_second_time_has_its_share_of_the_variance():
    network = tiny(two_time=True)
    t, s = torch.tensor([0.3, 0.9], dtype=D), torch.tensor([-0.5, 0.1], dtype=D)
    alone = network._embedded(t, s, None)
    torch.testing.assert_close(alone, mp_silu(network.time(network.fourier(t))))
    nn.init.constant_(network.end_gain, 2.0)
    start, end = (layer(network.fourier(v)) for layer, v in ((network.time, t), (network.end, s)))
    torch.testing.assert_close(network._embedded(t, s, None), mp_silu((start + 2 * end) / 5**0.5))
    torch.testing.assert_close(network._embedded(t, None, None), network._embedded(t, t, None))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 8), {}, "divisible by 2"),
        ((2, 7, 8), {}, "divisible by 2"),
        ((2, 8, 0), {}, "divisible by 2"),
        ((2, 8, 8), {"multipliers": (1, 1, 1, 1, 1)}, "divisible by 16"),
        ((2, 8, 8), {"channels": 0}, "positive channels"),
        ((2, 8, 8), {"multipliers": ()}, "multipliers"),
        ((2, 8, 8), {"multipliers": (1, 0)}, "multipliers"),
        ((2, 8, 8), {"blocks": -1}, "blocks"),
    ],
)
def test_shapes_that_do_not_fit(shape, options, message):
    with pytest.raises(UsageError, match=message):
        EDM2(shape, **{**TINY, **options})


# Forced weight normalisation.


def trained(network: EDM2, head: Uncertainty, before: bool) -> list[Tensor]:
    """Losses of a few updates, with the weights normalised before each loss, or after."""
    nn.init.constant_(network.last_gain, 0.5)
    adam = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=0.02)
    losses = []
    for i in range(5):
        if before:
            network.normalise_weights()
            head.normalise_weights()
        x, t = normal(4, 2, 8, 8, seed=i), normal(4, seed=100 + i)
        u = head(t)
        error = (network(x, t) - x.flip(2)).square().flatten(1).mean(1)
        loss = (error / u.exp() + u).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.detach())
        if not before:
            network.normalise_weights()
            head.normalise_weights()
    return losses


def test_normalising_after_updates_is_the_official_order():
    found = []
    for before in (True, False):
        network = tiny()
        found.append((trained(network, Uncertainty(16).double(), before), network))
    # One division by the norm more or less changes 1e-8 of a weight.
    for a, b in zip(*(losses for losses, _ in found), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    x, t = normal(2, 2, 8, 8), normal(2)
    torch.testing.assert_close(found[0][1](x, t), found[1][1](x, t), rtol=1e-5, atol=1e-6)


def test_without_it_weights_leave_their_spheres_and_forward_leaves_them_alone():
    network = tiny()
    trained(network, Uncertainty(16).double(), before=True)
    weights = [m.weight for m in network.modules() if isinstance(m, MPConv)]
    assert max(rms(w) for w in weights) > 1.0005
    kept = [w.detach().clone() for w in weights]
    network.train()(normal(2, 2, 8, 8), normal(2))
    assert all(a.equal(b) for a, b in zip(kept, weights, strict=True))
    network.normalise_weights()
    assert all(rms(w) == pytest.approx(1, abs=2e-4) for w in weights)


def test_an_uncertainty_is_a_number_a_time():
    torch.manual_seed(0)
    found = Uncertainty()(torch.linspace(-2, 1, 500)).detach()
    assert found.shape == (500,)
    assert 0.2 < float(found.std()) < 3
    network = Uncertainty(16)
    with torch.no_grad():
        network.last.weight.mul_(3)
    network.normalise_weights()
    assert rms(network.last.weight) == pytest.approx(1, abs=2e-4)


def test_shares_of_sums_are_checked():
    for balance in ({"residual": 1.0}, {"limit": 0.0}, {"other": 0.5}):
        with pytest.raises(UsageError, match="balance takes shares"):
            EDM2((2, 8, 8), channels=8, multipliers=(1, 2), balance=balance)
