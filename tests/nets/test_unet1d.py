import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.core import UsageError
from fewstep.derivatives import jvp
from fewstep.models.nets.unet1d import FiLMBlock, TimeMLP, UNet1d, masked_norm
from fewstep.models.spec import build_network, network_spec
from oracles import normal

TINY = {"widths": (8, 16, 32), "embedding": 8, "kernel": 3}


def tiny(shape=(2, 8), **options) -> UNet1d:
    torch.manual_seed(0)
    return UNet1d(shape, **{**TINY, **options}).double()


def test_parameters_of_the_published_network():
    """6.535322e7 on Push-T's two actions, given two observations of five numbers."""
    with torch.device("meta"):
        network = UNet1d((2, 16), observation=10)
    assert f"{sum(p.numel() for p in network.parameters()):e}" == "6.535322e+07"


def mish(x: Tensor) -> Tensor:
    return x * (1 + x.exp()).log().tanh()


def normed(x: Tensor, norm) -> Tensor:
    """In eight groups of neighbouring channels."""
    groups = x.reshape(len(x), 8, -1)
    centred = groups - groups.mean(2, keepdim=True)
    unit = centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()
    return unit.reshape(x.shape) * norm.weight[:, None] + norm.bias[:, None]


@pytest.mark.parametrize(("c_in", "kernel"), [(3, 5), (16, 3)])
def test_a_block_is_its_description(c_in, kernel):
    torch.manual_seed(0)
    block = FiLMBlock(c_in, 16, 7, kernel).double()
    with torch.no_grad():
        for p in block.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x, embedding = normal(2, c_in, 6), normal(2, 7, seed=1)

    def convolved(x: Tensor, part) -> Tensor:
        padded = F.pad(x, (kernel // 2, kernel // 2)).unfold(2, kernel, 1)
        out = torch.einsum("bclk,ock->bol", padded, part.conv.weight) + part.conv.bias[:, None]
        return mish(normed(out, part.norm))

    rows = mish(embedding) @ block.modulate.weight.T + block.modulate.bias
    h = convolved(x, block.before) * rows[:, :16, None] + rows[:, 16:, None]
    h = convolved(h, block.after)
    if c_in != 16:
        x = torch.einsum("bcl,oc->bol", x, block.skip.weight[..., 0]) + block.skip.bias[:, None]
    torch.testing.assert_close(block(normal(2, c_in, 6), embedding), h + x)


def test_the_time_s_sinusoid():
    time = TimeMLP(8)
    seen: list[Tensor] = []
    time.first.register_forward_hook(lambda module, inputs, out: seen.append(inputs[0]))
    time(torch.tensor([0.7]))
    angles = [0.7 * 1e4 ** (-i / 3) for i in range(4)]
    wanted = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    assert seen[0][0].tolist() == pytest.approx(wanted, abs=1e-6)


def test_resolutions_and_skips():
    network = tiny()
    blocks = [*network.encoder, network.middle, *network.decoder]
    ends = [(b.first.before.conv.in_channels, b.first.before.conv.out_channels) for b in blocks]
    assert ends == [(2, 8), (8, 16), (16, 32), (32, 32), (64, 16), (32, 8)]
    made: list[Tensor] = []
    taken: list[Tensor] = []
    for block in blocks:
        block.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0]))
        block.register_forward_hook(lambda module, inputs, out: made.append(out))
    assert network(normal(1, 2, 8), normal(1)).shape == (1, 2, 8)
    assert [x.shape[2] for x in made] == [8, 4, 2, 2, 2, 4]
    down, up = network.down, network.up
    wanted = [down[0](made[0]), down[1](made[1]), made[2], torch.cat([made[3], made[2]], 1)]
    wanted.append(torch.cat([up[0](made[4]), made[1]], 1))
    for found, x in zip(taken[1:], wanted, strict=True):
        torch.testing.assert_close(found, x)


def test_a_single_resolution():
    network = tiny((2, 7), widths=(8,))
    assert network(normal(3, 2, 7), normal(3)).shape == (3, 2, 7)


def test_conditions_enter_the_embedding():
    network = tiny(classes=3, observation=6, two_time=True)
    torch.nn.init.normal_(network.end.last.weight)
    assert network.cond_keys == ("label", "observation")
    assert tiny().cond_keys == ()
    seen: list[Tensor] = []
    network.middle.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    t, s, label, observed = normal(2), normal(2, seed=1), torch.tensor([3, 1]), normal(2, 2, 3)
    network(normal(2, 2, 8), t, s, {"label": label, "observation": observed})
    embedding = network.time(t) + network.end(s) + network.label.weight[label]
    torch.testing.assert_close(seen[0], torch.cat([embedding, observed.reshape(2, 6)], 1))


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (None, "got none"),
        ({}, "got none"),
        ({"observation": torch.zeros(2, 5)}, r"6 numbers a sample, got shape \(2, 5\)"),
        ({"observation": torch.zeros(2, 2, 4)}, r"got shape \(2, 2, 4\)"),
    ],
)
def test_observations_that_do_not_fit(cond, message):
    with pytest.raises(UsageError, match=message):
        tiny(observation=6)(normal(2, 2, 8), normal(2), None, cond)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 6), {}, r"3 resolutions.*divisible by 4, got \(2, 6\); pad"),
        ((2, 0), {}, "divisible by 4"),
        ((2, 8, 8), {}, r"got \(2, 8, 8\)"),
        ((2, 8), {"widths": (8, 12)}, r"multiples of 8, got \(8, 12\)"),
        ((2, 8), {"widths": ()}, "multiples of 8"),
        ((2, 8), {"widths": (0, 8)}, "multiples of 8"),
        ((2, 8), {"kernel": 4}, "odd kernel.*got 4"),
        ((2, 8), {"embedding": 7}, "even embedding"),
        ((2, 8), {"embedding": 2}, "at least 4"),
        ((2, 8), {"observation": -1}, "no negative observation"),
    ],
)
def test_shapes_that_do_not_fit(shape, options, message):
    with pytest.raises(UsageError, match=message):
        UNet1d(shape, **{**TINY, **options})


# Ragged data and free lengths.


def shaken(network: UNet1d) -> UNet1d:
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return network.eval()


LENGTHS = (1, 2, 5, 8, 11)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_padded_sample_s_answer_is_that_of_the_sample_alone(length):
    ragged = shaken(tiny((2, None), masked=True, images={"beside": 1}))
    x, beside, t = normal(2, 2, length), normal(2, 1, length, seed=1), normal(2)
    ones = torch.ones(2, 1, length)
    alone = ragged(x, t, None, {"mask": ones, "beside": beside})
    assert alone.shape == x.shape
    for more in (0, 3, 8):
        for junk in (0.0, 50.0, float("inf")):
            cond = {
                "mask": F.pad(ones, (0, more)),
                "beside": F.pad(beside, (0, more), value=junk),
            }
            found = ragged(F.pad(x, (0, more), value=junk), t, None, cond)
            torch.testing.assert_close(found[..., :length], alone, rtol=0, atol=1e-10)
            assert not found[..., length:].any()


@pytest.mark.parametrize("length", LENGTHS)
def test_a_free_length_is_a_ragged_one_without_a_mask(length):
    free, ragged = shaken(tiny((2, None))), tiny((2, None), masked=True)
    ragged.load_state_dict(free.state_dict())
    x, t = normal(2, 2, length), normal(2)
    found = free(x, t)
    cond = {"mask": torch.ones(2, 1, length, dtype=torch.bool)}
    torch.testing.assert_close(found, ragged(x, t, None, cond), rtol=0, atol=1e-10)
    assert free.cond_keys == ()
    assert ragged.cond_keys == ("mask",)
    assert (free.options["shape"], "masked" in free.options) == ([2, None], False)
    fixed = tiny((2, 8))
    assert fixed.load_state_dict(free.state_dict())
    if length == 8:
        assert fixed(x, t).equal(found)


def test_real_positions_read_nothing_of_padded_ones_wherever_those_are():
    ragged = shaken(tiny(masked=True))
    mask = torch.tensor([[1, 1, 0, 0, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0]])[:, None]
    x, t = normal(2, 2, 8), normal(2)
    other = x + 100 * (1 - mask)
    one = ragged(x, t, None, {"mask": mask})
    assert one.isfinite().all()
    assert one.equal(ragged(other, t, None, {"mask": mask.double()}))
    assert not one[1].any()
    assert not (one * (1 - mask)).any()
    # All of what is real matters.
    for i in (0, 1, 4, 6, 7):
        moved = x.clone()
        moved[0, 0, i] += 1
        changed = (ragged(moved, t, None, {"mask": mask}) - one)[0].abs().amax(0)
        assert (changed > 0).equal(mask[0, 0] > 0)


@pytest.mark.parametrize("length", [2, 3])
def test_coarse_positions_are_real_where_half_of_them_is(length):
    network = shaken(tiny((1, None)))
    network(normal(1, 1, length), normal(1)).square().sum().backward()
    assert network.middle.second.after.norm.bias.grad.any()


@pytest.mark.parametrize("build", [{"masked": True}, {}])
def test_derivatives_on_padded_samples(build):
    network, h = shaken(tiny((2, None), **build)), 1e-6
    x, v, t = normal(3, 2, 7), normal(3, 2, 7, seed=1), normal(3)
    mask = torch.ones(3, 1, 7)
    mask[0, :, 4:], mask[1] = 0, 0

    def answer(x: Tensor, t: Tensor) -> Tensor:
        return network(x, t, None, {"mask": mask} if build else None)

    one = torch.ones_like(t)
    value, tangent = jvp(answer, (x, t), (v, one))
    ends = [answer(x + s * h * v, t + s * h).detach() for s in (1, -1)]
    torch.testing.assert_close(tangent, (ends[0] - ends[1]) / (2 * h), rtol=1e-5, atol=1e-6)
    value.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    single = network.float()
    with torch.autocast("cpu", torch.bfloat16):
        value, tangent = jvp(
            lambda x, t: single(x, t, None, {"mask": mask}),
            (x.float(), t.float()),
            (v.float(), one.float()),
        )
    assert value.isfinite().all()
    assert tangent.isfinite().all()


def test_long_ragged_samples_are_counted_exactly_in_half_precision():
    norm, mask = torch.nn.GroupNorm(8, 8).bfloat16(), torch.ones(1, 1, 400)
    mask[..., 257:] = 0  # bfloat16 has 256 and 258, and between them nothing
    x = (30 + normal(1, 8, 400)).bfloat16()
    found = masked_norm(norm, x, mask.bfloat16())
    torch.testing.assert_close(found[..., :257], norm(x[..., :257]), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        (None, r"'mask': tensor \(b, 1, \*space\) of shape \(2, 1, 8\).*got none"),
        ({"mask": torch.ones(2, 8)}, r"got float32 of shape \(2, 8\)"),
        ({"mask": torch.ones(2, 2, 8)}, r"got float32 of shape \(2, 2, 8\)"),
        ({"mask": torch.ones(1, 1, 8)}, r"got float32 of shape \(1, 1, 8\)"),
    ],
)
def test_masks_that_do_not_fit(cond, message):
    with pytest.raises(UsageError, match=message):
        tiny(masked=True)(normal(2, 2, 8), normal(2), None, cond)


def test_a_free_length_survives_its_spec():
    network = tiny((2, None), masked=True)
    spec = json.loads(json.dumps(network_spec(network)))
    assert spec["shape"] == [2, None]
    assert network_spec(build_network(spec)) == spec
