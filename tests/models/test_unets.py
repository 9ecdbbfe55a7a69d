"""U-Nets: published sizes, wiring, starts, derivatives."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import UsageError
from fewstep.derivatives import jvp
from fewstep.models.nets import ADM, DDPMpp, NCSNpp
from fewstep.models.nets.adm_blocks import ADMBlock
from fewstep.models.nets.blocks import resize_box, resize_fir
from oracles import D, normal
from small_nets import NETWORKS, ask, shaken

UNETS = [name for name in NETWORKS if not name.startswith("mlp")]
SIZES = [
    (partial(DDPMpp, (3, 32, 32)), 55_732_739),
    # Ten classes add a map from 10 to 128 and its bias; nine augmentation labels one without.
    (partial(DDPMpp, (3, 32, 32), classes=10), 55_734_147),
    (partial(DDPMpp, (3, 32, 32), augment=9), 55_733_891),
    (partial(DDPMpp, (3, 32, 32), classes=10, augment=9), 55_735_299),
    (partial(NCSNpp, (3, 32, 32), augment=9), 56_397_827),
    (partial(ADM, (3, 64, 64), classes=1000), 295_899_267),
    (
        partial(
            ADM,
            (3, 256, 256),
            channels=256,
            multipliers=(1, 1, 2, 2, 4, 4),
            blocks=2,
            scale_shift=False,
        ),
        526_304_771,
    ),
]


@pytest.mark.parametrize(("build", "count"), SIZES)
def test_parameters_of_published_networks(build, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == count


@pytest.mark.parametrize("name", NETWORKS)
def test_units_are_the_blocks_that_hold_most_weights(name):
    network = NETWORKS[name]()
    units = [m for m in network.modules() if isinstance(m, network.units)]
    assert len(units) >= 2
    inside = sum(p.numel() for unit in units for p in unit.parameters())
    assert inside > 0.7 * sum(p.numel() for p in network.parameters())


# Where blocks attend: in the encoder all of a resolution; in Song's decoder the last one.


@pytest.mark.parametrize("build", [DDPMpp, NCSNpp])
def test_where_song_s_networks_attend(build):
    network = build((1, 16, 8), channels=8, multipliers=(1, 2, 2), blocks=2, attention=(8,))
    heads = [[b.heads for b in part] for part in (network.encoder, network.decoder)]
    assert heads == [[0, 0, 0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]]
    assert [b.heads for b in network.middle] == [1, 0]


def test_where_adm_attends():
    options = {"channels": 64, "multipliers": (1, 2, 3), "blocks": 1, "attention": (8, 4)}
    network = ADM((1, 16, 16), **options)
    heads = [[b.heads for b in part] for part in (network.encoder, network.decoder)]
    assert heads == [[0, 0, 2, 0, 3], [3, 3, 0, 2, 2, 0, 0, 0]]
    assert [b.heads for b in network.middle] == [3, 0]


@pytest.mark.parametrize(("build", "resize"), [(DDPMpp, resize_box), (NCSNpp, resize_fir)])
def test_what_song_s_networks_resample_with(build, resize):
    network = build((1, 8, 8), channels=8, multipliers=(1, 2), blocks=1)
    resampling = [[b.resample for b in part] for part in (network.encoder, network.decoder)]
    assert resampling == [[1, 0.5, 1], [1, 1, 2, 1, 1]]
    assert {b.resize for b in [*network.encoder, *network.decoder]} == {resize}


# Wiring.


@pytest.mark.parametrize("name", UNETS)
def test_the_decoder_is_handed_the_encoder_s_states_last_first(name):
    network = shaken(NETWORKS[name](blocks=2)).eval()
    made, taken = [], []
    network.first.register_forward_hook(lambda m, args, out: made.append(out))
    for block in network.encoder:
        block.register_forward_hook(lambda m, args, out: made.append(out))
    for block in network.decoder:
        if block.resample != 2:
            block.register_forward_pre_hook(lambda m, args: taken.append(args[0]))
    ask(network)
    assert len(taken) == len(made)
    for skip, block, given in zip(made[::-1], [None, *network.encoder][::-1], taken, strict=True):
        if name.startswith("ncsnpp") and block is not None and block.resample == 0.5:
            continue  # the pyramid has been added: see below
        assert given[:, -skip.shape[1] :].equal(skip)


def test_the_pyramid_is_added_after_each_halving():
    network = shaken(NETWORKS["ncsnpp"]()).eval()
    states, fed, answers, taken = [], [], [], []
    for block in network.encoder:
        block.register_forward_pre_hook(lambda m, args: taken.append(args[0]))
        if block.resample == 0.5:
            block.register_forward_hook(lambda m, args, out: states.append(out))
    for step in network.pyramid:
        step.register_forward_pre_hook(lambda m, args: fed.append(args[0]))
        step.register_forward_hook(lambda m, args, out: answers.append(out))
    ask(network)
    sums = [(h + a) / math.sqrt(2) for h, a in zip(states, answers, strict=True)]
    assert len(sums) == 2
    assert fed[0].shape[1] == 2  # the image
    torch.testing.assert_close(fed[1], sums[0])
    # Encoder: block, halving, block, halving, block.
    torch.testing.assert_close(taken[2], sums[0])
    torch.testing.assert_close(taken[4], sums[1])
    skips = []
    for block in network.decoder:
        if block.resample != 2:
            block.register_forward_pre_hook(lambda m, args: skips.append(args[0]))
    ask(network)
    torch.testing.assert_close(skips[1][:, -16:], sums[1])
    torch.testing.assert_close(skips[3][:, -8:], sums[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_every_weight(name):
    network = shaken(NETWORKS[name]())
    optional = {"augment": torch.ones(3, 5)} if getattr(network, "optional_keys", ()) else {}
    ask(network, **optional).square().sum().backward()
    for key, p in network.named_parameters():
        assert p.grad is not None, key
        assert p.grad.isfinite().all(), key
        assert p.grad.abs().max() > 1e-7, key


# Starts.


@pytest.mark.parametrize("name", UNETS)
def test_fresh_networks_answer_next_to_nothing(name):
    torch.manual_seed(0)
    answer = ask(NETWORKS[name]().eval()).abs().max()
    assert answer < 1e-4
    assert (answer == 0) == name.startswith("adm")


def limits(weight: Tensor) -> tuple[float, float]:
    """The bounds that torch's default and Xavier's start draw within."""
    fan_in = weight[0].numel()
    fan_out = weight.shape[0] * weight[0, 0].numel()
    return fan_in**-0.5, math.sqrt(6 / (fan_in + fan_out))


def test_starts_of_adm():
    torch.manual_seed(0)
    network = ADM((3, 8, 8), channels=64, multipliers=(1, 2), blocks=1, attention=(8,), classes=50)
    weights = dict(network.named_parameters())
    for key, p in weights.items():
        if ".conv1." in key or ".proj." in key or key.startswith("last."):
            assert p.eq(0).all(), key
        elif p.ndim > 1 and key != "map_label.weight":
            bound = limits(p)[0]
            assert 0.95 * bound < p.abs().max() <= bound, key
            assert 0 < weights[key.replace("weight", "bias")].abs().max() <= bound, key
    assert weights["map_label.weight"].std().item() == pytest.approx(1, rel=0.05)
    assert {m.eps for m in network.modules() if isinstance(m, nn.GroupNorm)} == {1e-5}


@pytest.mark.parametrize("build", [DDPMpp, NCSNpp])
def test_starts_of_song_s_networks(build):
    torch.manual_seed(0)
    network = build((3, 8, 8), channels=32, multipliers=(1, 2), blocks=1, attention=(8,), augment=9)
    gains = {".conv1.": 1e-5, ".proj.": 1e-5, "last.": 1e-5, ".qkv.": math.sqrt(0.2)}
    for key, p in network.named_parameters():
        if p.ndim > 1:
            bound = limits(p)[1] * next((g for part, g in gains.items() if part in key), 1)
            assert 0.95 * bound < p.abs().max() <= bound * 1.0001, key
        elif key.endswith("bias"):
            assert p.eq(0).all(), key
    assert {m.eps for m in network.modules() if isinstance(m, nn.GroupNorm)} == {1e-6}


def test_a_fresh_block_of_adm_is_the_identity():
    options = {"attend": True, "scale_shift": True, "dropout": 0.0}
    x = normal(2, 64, 4, 6).float()
    embedding = normal(2, 8).float()
    assert ADMBlock(64, 64, 8, resample=1, **options)(x, embedding).equal(x)
    halved = ADMBlock(64, 64, 8, resample=0.5, **options)
    assert halved(x, embedding).equal(F.avg_pool2d(x, 2))
    assert isinstance(halved.skip, nn.Identity)


# Derivatives.


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_derivatives_are_those_of_differences(name):
    network = shaken(NETWORKS[name]()).double().eval()
    shape = network.options["shape"]
    cond = {"label": torch.tensor([0, 3])} if network.cond_keys else {}
    x, v = normal(2, 2, *shape)
    t, dt = torch.tensor([0.3, -0.4], dtype=D), torch.tensor([1.0, -0.5], dtype=D)
    value, slope = jvp(lambda x, t: network(x, t, None, cond), (x, t), (v, dt))
    step = 1e-6
    after, before = (network(x + h * v, t + h * dt, None, cond) for h in (step, -step))
    torch.testing.assert_close(value, network(x, t, None, cond))
    torch.testing.assert_close(slope, (after - before).detach() / (2 * step), rtol=1e-5, atol=1e-6)
    assert slope.abs().max() > 1e-2


# Bad options.


@pytest.mark.parametrize("shape", [(3,), (3, 8), (1, 6, 8), (1, 8, 6)])
@pytest.mark.parametrize("build", [DDPMpp, NCSNpp, ADM])
def test_images_must_halve(build, shape):
    with pytest.raises(UsageError, match=f"{build.__name__}: .*divisible by 4"):
        build(shape, channels=64, multipliers=(1, 1, 1))


@pytest.mark.parametrize(("channels", "multipliers"), [(7, (1, 1)), (64, ()), (64, (1, 0))])
@pytest.mark.parametrize("build", [DDPMpp, NCSNpp, ADM])
def test_widths_must_be_buildable(build, channels, multipliers):
    with pytest.raises(UsageError, match=f"{build.__name__}: expected an even number"):
        build((1, 8, 8), channels=channels, multipliers=multipliers)


def test_adm_s_heads_have_64_channels():
    with pytest.raises(UsageError, match=r"divisible by 64.*got \[96, 96\]"):
        ADM((1, 8, 8), channels=32, multipliers=(1, 3), blocks=1, attention=(4,))
    ADM((1, 8, 8), channels=32, multipliers=(1, 2), blocks=1, attention=(4,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_channels": 0}, "expected positive head_channels"),
        ({"heads": 5}, "divisible by 5, the heads"),
        ({"groups": 48}, "cannot split 64 channels into 48 groups"),
        ({"end": "separate"}, "needs two_time=True"),
    ],
)
def test_options_of_imported_networks_are_checked(options, message):
    with pytest.raises(UsageError, match=message):
        NETWORKS["adm"](**options)


def test_a_joined_or_separate_second_time_needs_one():
    for end in ("joined", "separate"):
        with pytest.raises(UsageError, match="needs two_time=True"):
            NETWORKS["ddpmpp"](end=end)
