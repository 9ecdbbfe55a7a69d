"""What conditions the blocks of U-Nets: time, label, augmentation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.model import Model, load
from fewstep.models import EDM, Denoiser
from fewstep.models.nets import NCSNpp
from fewstep.models.spec import build_denoiser, denoiser_spec
from oracles import D, normal
from small_nets import NETWORKS, ask, shaken

SONG = [name for name in NETWORKS if name.startswith(("ddpmpp", "ncsnpp"))]


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


@pytest.mark.parametrize("name", ["ddpmpp", "adm"])
def test_second_time_and_guidance_are_mapped_together_with_the_time(name):
    network = shaken(NETWORKS[name](two_time=True, guidance=True, classes=0)).eval()
    channels = network.options["channels"]
    shape = (
        {"rungs": 3, "sin_first": True} if name == "ddpmpp" else {"rungs": 32, "sin_first": False}
    )
    time, end = sines(0.7, channels, **shape), sines(0.2, channels, **shape)
    # The scale's ladder is OpenAI's in both.
    guidance = sines(2.5, channels, rungs=channels // 2, sin_first=False)
    wanted = time + end @ network.map_end.weight.T + guidance @ network.map_guidance.linear.weight.T
    seen: list[Tensor] = []
    network.encoder[0].register_forward_pre_hook(lambda m, args: seen.append(args[1]))
    x = normal(1, 2, 8, 8).float()
    times = torch.tensor([0.7]), torch.tensor([0.2])
    network(x, *times, {"guidance": torch.tensor([2.5], dtype=D)})
    torch.testing.assert_close(seen[0][0], F.silu(mapped(network, wanted)))


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
