"""U-Nets: published sizes, what conditions blocks, wiring, starts, derivatives."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import UsageError, jvp
from fewstep.model import Model, load
from fewstep.models import EDM, Denoiser
from fewstep.models.nets import ADM, DDPMpp, NCSNpp
from fewstep.models.nets.adm import ADMBlock
from fewstep.models.nets.blocks import resize_box, resize_fir
from fewstep.models.spec import build_denoiser, denoiser_spec
from oracles import D, normal
from small_nets import NETWORKS, ask, shaken

UNETS = [name for name in NETWORKS if not name.startswith("mlp")]
SONG = [name for name in UNETS if not name.startswith("adm")]
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


# What conditions the blocks.


def embedding_of(network: nn.Module, time: float, **cond: Tensor) -> Tensor:
    """What the first block is given."""
    seen: list[Tensor] = []
    hook = network.encoder[0].register_forward_pre_hook(lambda m, args: seen.append(args[1]))
    ask(network, time=time, **cond)
    hook.remove()
    return seen[0]


def sines(time: float, channels: int, rungs: int, sin_first: bool) -> Tensor:
    angles = [time * 10_000 ** (-i / rungs) for i in range(channels // 2)]
    parts = [[math.cos(a) for a in angles], [math.sin(a) for a in angles]]
    first, second = parts[::-1] if sin_first else parts
    return torch.tensor([*first, *second])


def mapped(network: nn.Module, embedding: Tensor) -> Tensor:
    hidden = F.silu(F.linear(embedding, network.map_layer0.weight, network.map_layer0.bias))
    return F.linear(hidden, network.map_layer1.weight, network.map_layer1.bias)


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp"])
def test_song_s_embedding_is_that_of_time_label_and_augmentation(name):
    network = shaken(NETWORKS[name](augment=5)).eval()
    labels, augment = torch.tensor([0, 1, 2]), normal(3, 5).float()
    if name == "ddpmpp":
        time = sines(0.7, 8, rungs=3, sin_first=True)
    else:
        angles = 2 * math.pi * 0.7 * network.map_noise.frequencies
        time = torch.cat([angles.sin(), angles.cos()])
    label = network.map_label.linear
    wanted = time + math.sqrt(3) * label.weight.T[labels] + label.bias
    wanted = wanted + augment @ network.map_augment.weight.T
    found = embedding_of(network, 0.7, augment=augment)
    torch.testing.assert_close(found, F.silu(mapped(network, wanted)))


def test_ncsnpp_s_frequencies_are_wide_and_saved():
    torch.manual_seed(0)
    network = NCSNpp((1, 4, 4), channels=512, multipliers=(1,), blocks=0)
    assert network.map_noise.frequencies.shape == (512,)
    assert network.map_noise.frequencies.std().item() == pytest.approx(16, rel=0.1)
    assert "map_noise.frequencies" in network.state_dict()


def test_adm_s_label_is_added_after_the_map_of_time():
    network = shaken(NETWORKS["adm"]()).eval()
    rows = torch.cat([network.map_label.weight, torch.zeros(1, 256)])
    time = mapped(network, sines(0.7, 64, rungs=32, sin_first=False).expand(3, -1))
    found = embedding_of(network, 0.7)
    torch.testing.assert_close(found, F.silu(time + rows[:3]))
    seen: list[Tensor] = []
    network.encoder[0].register_forward_pre_hook(lambda m, args: seen.append(args[1]))
    answer = ask(network, labels=(3, 3, 3), time=0.7)
    torch.testing.assert_close(seen[0], F.silu(time))
    with torch.no_grad():
        network.map_label.weight.zero_()
    assert ask(network, labels=(0, 1, 2), time=0.7).equal(answer)


@pytest.mark.parametrize("name", SONG)
def test_augmentation_labels_are_optional_and_zero_means_none(name):
    network = shaken(NETWORKS[name](augment=5)).eval()
    assert network.optional_keys == ("augment",)
    assert network.map_augment.bias is None
    plain = ask(network)
    assert ask(network, augment=torch.zeros(3, 5)).equal(plain)
    one = torch.eye(3, 5, dtype=D)
    moved = (ask(network, augment=one) - plain).abs().flatten(1).amax(1)
    assert moved.min() > 1e-4
    only = (ask(network, augment=one[:, :1] * one) - plain).abs().flatten(1).amax(1)
    assert (only > 0).tolist() == [True, False, False]
    denoiser = Denoiser(network, EDM(sigma_data=0.5))
    x, t = normal(3, *network.options["shape"]).float(), torch.full((3,), 2.0)
    cond = {"label": torch.arange(3), "augment": one}
    assert not denoiser(x, t, None, cond).equal(denoiser(x, t, None, {"label": cond["label"]}))


@pytest.mark.parametrize("name", ["ddpmpp", "ncsnpp"])
def test_a_saved_model_samples_without_augmentation_labels(name, tmp_path):
    network = shaken(NETWORKS[name](augment=9, classes=0)).eval()
    sampling = Sampling(start=Start(t=80.0, std=80.0), kind="renoise", times={1: (80.0,)})
    contract = Contract(method="cd", data=DataSpec(shape=(2, 8, 8)), sampling=sampling)
    Model(Denoiser(network, EDM(sigma_data=0.5)), contract).save(tmp_path / "m")
    model = load(tmp_path / "m", device="cpu")
    assert model.denoiser.net.options == network.options
    plain = model.sample(3)
    assert model.sample(3, cond={"augment": torch.zeros(3, 9)}).equal(plain)
    assert not model.sample(3, cond={"augment": torch.ones(3, 9)}).equal(plain)


def test_a_spec_from_before_augmentation_still_builds():
    denoiser = Denoiser(NETWORKS["ddpmpp"](), EDM(sigma_data=0.5))
    spec = denoiser_spec(denoiser)
    del spec["network"]["augment"]
    assert build_denoiser(spec).net.options == denoiser.net.options


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
