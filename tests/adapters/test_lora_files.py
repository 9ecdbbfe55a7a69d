"""Adapters as values and files: three dialects, exact sums, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from every_net import BUILDS, built, conditions
from fewstep.adapters import (
    DIALECTS,
    Adapter,
    Factors,
    adapter_of,
    add,
    matched,
    read_adapter,
    write_adapter,
)
from fewstep.errors import UsageError
from fewstep.models import EDM, Denoiser, adapt, adapted_layers, merged
from fewstep.models.low_rank import learn_adapters
from oracles import D, normal

T = torch.tensor([0.3, 1.0, 5.0], dtype=D)
FILES = {
    "peft": "adapter_model.safetensors",
    "diffusers": "pytorch_lora_weights.safetensors",
    "kohya": "lora.safetensors",
}
dialects = pytest.mark.parametrize("dialect", DIALECTS)


def student(name: str = "ddpmpp", rank: int = 2, alpha: float | None = 5.0) -> nn.Module:
    """A network with adapters that say something."""
    network = built(name)
    for layer in adapt(network, rank, alpha).values():
        nn.init.normal_(layer.adapter.up.weight, std=0.3)
    return network


def learned(name: str = "ddpmpp", **given: Any) -> Adapter:
    adapter = adapter_of(student(name, **given))
    assert adapter is not None
    return adapter


def answer(network: nn.Module, name: str) -> torch.Tensor:
    x = normal(3, *BUILDS[name]().options["shape"])
    return Denoiser(network, EDM(sigma_data=0.5))(x, T, None, conditions(network))


@pytest.mark.parametrize("name", BUILDS)
def test_merged_weights_answer_as_the_adapters_do(name):
    network, whole = student(name), merged(student(name))
    assert not adapted_layers(whole)
    assert whole.state_dict().keys() == built(name).state_dict().keys()
    torch.testing.assert_close(answer(whole, name), answer(network, name), atol=1e-9, rtol=1e-9)
    added = add(built(name), [learned(name)])
    torch.testing.assert_close(answer(added, name), answer(whole, name), atol=1e-9, rtol=1e-9)
    assert not answer(whole, name).allclose(answer(built(name), name))


@pytest.mark.parametrize("name", ["edm2", "mlp", "unet1d"])
def test_students_learn_adapters_alone(name):
    network = built(name)
    before = copy.deepcopy(network.state_dict())
    learn_adapters(network, 2, 4.0)
    free = {n for n, p in network.named_parameters() if p.requires_grad}
    assert free == {n for n, _ in network.named_parameters() if ".adapter." in n}
    for layer in adapted_layers(network).values():
        nn.init.normal_(layer.adapter.up.weight, std=0.3)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    answer(network, name).square().mean().backward()
    optimizer.step()
    if hasattr(network, "normalise_weights"):
        network.normalise_weights()
    after = {k.replace(".layer.", "."): v for k, v in network.state_dict().items()}
    assert all(after[k].equal(v) for k, v in before.items())


@dialects
@pytest.mark.parametrize("alpha", [None, 5.0, 0.3])
def test_a_file_changes_weights_as_the_adapter_does(dialect, alpha, tmp_path):
    adapter = learned(alpha=alpha)
    file = write_adapter(adapter, tmp_path, dialect)
    assert file == tmp_path / FILES[dialect]
    found = matched(built("ddpmpp"), read_adapter(tmp_path))
    assert found.keys() == adapter.layers.keys()
    for name, factors in adapter.layers.items():
        torch.testing.assert_close(found[name].delta(), factors.delta(), atol=1e-7, rtol=1e-6)
    assert read_adapter(file).layers.keys() == read_adapter(tmp_path).layers.keys()


def test_the_keys_and_scales_of_each_dialect(tmp_path):
    adapter = Adapter({"a_b.0.c": Factors(torch.ones(2, 3), torch.ones(4, 2), 8.0)})
    for dialect in DIALECTS:
        write_adapter(adapter, tmp_path / dialect, dialect)
    peft = load_file(tmp_path / "peft" / FILES["peft"])
    assert {*peft} == {f"base_model.model.a_b.0.c.lora_{x}.weight" for x in "AB"}
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 8, ["a_b.0.c"])
    file = write_adapter(adapter, tmp_path / "sd3", "diffusers", "transformer")
    assert {*load_file(file)} == {f"transformer.a_b.0.c.lora_{x}.weight" for x in "AB"}
    diffusers = load_file(tmp_path / "diffusers" / FILES["diffusers"])
    assert {*diffusers} == {f"unet.a_b.0.c.lora_{x}.weight" for x in "AB"}
    assert diffusers["unet.a_b.0.c.lora_B.weight"].equal(torch.full((4, 2), 4.0))
    with safe_open(tmp_path / "diffusers" / FILES["diffusers"], "pt") as handle:
        header = json.loads(handle.metadata()["lora_adapter_metadata"])
    assert (header["unet.r"], header["unet.lora_alpha"]) == (2, 2)
    kohya = load_file(tmp_path / "kohya" / FILES["kohya"])
    stem = "lora_unet_a_b_0_c"
    assert {*kohya} == {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"}
    assert kohya[f"{stem}.alpha"] == 8
    assert kohya[f"{stem}.lora_up.weight"].equal(torch.ones(4, 2))


def test_kohyas_name_of_sdxls_embedding(tmp_path):
    factors = Factors(torch.ones(1, 3), torch.ones(4, 1), 1.0)
    adapter = Adapter({"add_embedding.linear_1": factors, "add_embedding.linear_2": factors})
    file = write_adapter(adapter, tmp_path, "kohya")
    assert {key.split(".")[0] for key in load_file(file)} == {
        "lora_unet_label_emb_0_0",
        "lora_unet_label_emb_0_2",
    }

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_embedding = nn.ModuleDict(
                {"linear_1": nn.Linear(3, 4), "linear_2": nn.Linear(3, 4)}
            )

    plain = {
        key.replace("label_emb_0_0", "add_embedding_linear_1"): value
        for key, value in load_file(file).items()
        if "label_emb_0_0" in key
    }
    save_file(plain, tmp_path / "plain.safetensors")
    assert {*matched(Network(), read_adapter(file))} == {*adapter.layers}
    found = matched(Network(), read_adapter(tmp_path / "plain.safetensors"))
    assert {*found} == {"add_embedding.linear_1"}


def test_several_adapters_are_summed_exactly():
    network = built("adm")
    first, second = learned("adm", rank=2), learned("adm", rank=3, alpha=0.5)
    both = add(network, [first, second], [0.5, -2.0])
    for name, factors in first.layers.items():
        change = 0.5 * factors.delta() - 2.0 * second.layers[name].delta()
        weight = network.get_submodule(name).weight + change
        torch.testing.assert_close(both.get_submodule(name).weight, weight, atol=1e-12, rtol=1e-12)
    nothing = add(network, [first, first], [1.0, -1.0])
    for name, value in network.state_dict().items():
        assert nothing.state_dict()[name].equal(value)


def test_a_linear_map_is_a_convolution_of_one_pixel():
    network = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Conv2d(3, 4, 1)})
    down, up = torch.randn(2, 3), torch.randn(4, 2)
    wide = Factors(down[:, :, None, None], up[:, :, None, None], 2.0)
    made = add(network, [Adapter({"a": wide, "b": Factors(down, up, 2.0)})])
    for name in "ab":
        change = made[name].weight.flatten(1) - network[name].weight.flatten(1)
        torch.testing.assert_close(change, up @ down, atol=1e-6, rtol=1e-6)


def test_layers_that_share_weights_or_are_not_called_get_no_adapter():
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv1d(4, 4, 1, groups=2))
    network.append(nn.MultiheadAttention(4, 2))
    network.append(nn.Linear(4, 4))
    network.append(network[0])
    network[4].weight = network[1].weight
    with pytest.raises(UsageError, match="no linear map"):
        adapt(network, 2)
    network[4].weight = nn.Parameter(torch.ones(4, 4))
    assert {*adapt(network, 2)} == {"1", "4"}


def test_layers_are_chosen_by_the_ends_of_their_names():
    network = nn.ModuleDict({"to_q": nn.Linear(2, 2), "not_to_q": nn.Linear(2, 2)})
    network["block"] = nn.ModuleDict({"to_q": nn.Linear(2, 2), "ff": nn.Linear(2, 2)})
    assert {*adapt(copy.deepcopy(network), 1, targets=["to_q"])} == {"to_q", "block.to_q"}
    assert {*adapt(copy.deepcopy(network), 1, targets=["block.to_q"])} == {"block.to_q"}
    assert {*adapt(copy.deepcopy(network), 1, but=["to_q", "not_to_q"])} == {
        "block.to_q",
        "block.ff",
    }
    with pytest.raises(UsageError, match="no linear map and no convolution that ends in nothing"):
        adapt(network, 1, targets=["nothing"])


# What is refused.


def test_an_adapter_of_another_network_is_refused():
    adapter = learned("adm")
    with pytest.raises(UsageError, match=r"another model: \d+ of the \d+ layers .* and \d+ more"):
        add(built("mlp"), [adapter])
    name = "middle.0.conv0"
    factors, rest = adapter.layers[name], {k: v for k, v in adapter.layers.items() if k != name}
    wrong = Adapter({name: Factors(factors.down.repeat(1, 2, 1, 1), factors.up, 1.0), **rest})
    with pytest.raises(
        UsageError, match=rf"another model: 1 of .* other shapes .*{name} \(the mod"
    ):
        add(built("adm"), [wrong])
    with pytest.raises(UsageError, match="one finite scale for each of the 1 adapters"):
        add(built("adm"), [adapter], [float("nan")])


def test_names_that_are_one_without_dots_are_refused(tmp_path):
    factors = Factors(torch.ones(1, 2), torch.ones(2, 1), 1.0)
    adapter = Adapter({"a.b": factors, "a_b": factors})
    with pytest.raises(UsageError, match=r"underscores for dots.*a\.b, a_b"):
        write_adapter(adapter, tmp_path, "kohya")
    assert not [*tmp_path.iterdir()]
    file = write_adapter(Adapter({"a.b": factors}), tmp_path, "kohya")
    network = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(2, 2)}), "a_b": nn.Linear(2, 2)})
    with pytest.raises(UsageError, match="several layers of ModuleDict have the names a_b"):
        add(network, [read_adapter(file)])
    with pytest.raises(UsageError, match="underscores for dots, which peft does not"):
        write_adapter(read_adapter(file), tmp_path)


DOWN, UP = torch.ones(2, 3), torch.ones(4, 2)
STEM, LETTERS = "lora_unet_a", "unet.a.lora_"
BAD: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "another kind": ({"a.weight": DOWN}, "none of base_model.model.*: a.weight"),
    "half": ({f"{LETTERS}A.weight": DOWN}, "a has no B"),
    "other keys": (
        {f"{LETTERS}A.weight": DOWN, f"{LETTERS}B.weight": UP, "unet.b.bias": UP},
        "1 of 3 keys are no low-rank changes.*b.bias",
    ),
    "a text encoder": (
        {f"{LETTERS}A.weight": DOWN, f"{LETTERS}B.weight": UP, "text_encoder.b": UP},
        "1 of 3 keys do not begin with unet.: text_encoder.b",
    ),
    "kohya's text encoder": (
        {f"{STEM}.lora_down.weight": DOWN, f"{STEM}.lora_up.weight": UP, "lora_te_b.alpha": UP},
        "1 of 3 keys are no low-rank changes.*lora_te_b.alpha",
    ),
    "dora": (
        {f"{STEM}.lora_down.weight": DOWN, f"{STEM}.lora_up.weight": UP, f"{STEM}.dora_scale": UP},
        "keys are no low-rank changes.*dora_scale",
    ),
    "shapes": ({f"{LETTERS}A.weight": DOWN, f"{LETTERS}B.weight": DOWN}, r"a: expected up to be"),
    "a vector": ({f"{LETTERS}A.weight": DOWN[0], f"{LETTERS}B.weight": UP}, "a: expected two matr"),
    "no rank": ({f"{LETTERS}A.weight": DOWN[:0], f"{LETTERS}B.weight": UP[:, :0]}, "two matrices"),
    "nan": (
        {f"{LETTERS}A.weight": DOWN * float("nan"), f"{LETTERS}B.weight": UP},
        "a: some of its num",
    ),
    "integers": ({f"{LETTERS}A.weight": DOWN.int(), f"{LETTERS}B.weight": UP}, "some of its num"),
    "an infinite alpha": (
        {
            f"{STEM}.lora_down.weight": DOWN,
            f"{STEM}.lora_up.weight": UP,
            f"{STEM}.alpha": torch.tensor(float("inf")),
        },
        "a: its alpha is inf",
    ),
    "empty": ({}, "it is empty"),
    "peft alone": ({"base_model.model.a.lora_A.weight": DOWN}, "adapter_config.json is missing"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused(kind, tmp_path):
    tensors, says = BAD[kind]
    apart = {name: value.clone() for name, value in tensors.items()}
    save_file(apart, tmp_path / "some.safetensors")
    with pytest.raises(UsageError, match=says) as caught:
        read_adapter(tmp_path / "some.safetensors")
    assert str(tmp_path) in str(caught.value)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "LOHA"}, "does not describe a LoRA"),
    "dora": ({"use_dora": True}, "use_dora cannot be added"),
    "a transposed weight": ({"fan_in_fan_out": True}, "fan_in_fan_out cannot"),
    "another rank": ({"r": 3}, "a has rank 2, and the configuration says 3"),
    "no alpha": ({"lora_alpha": None}, "no rank or alpha for a"),
    "a pattern": ({"alpha_pattern": {"(a+)+$": 3}}, "not the name of a layer"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_bad_configurations_are_refused(kind, tmp_path):
    changed, says = CONFIGS[kind]
    write_adapter(Adapter({"a": Factors(DOWN, UP, 4.0)}), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    with pytest.raises(UsageError, match=says):
        read_adapter(tmp_path)


def test_patterns_of_pefts_configuration(tmp_path):
    layers = {name: Factors(DOWN, UP, 4.0) for name in ("x.a", "a", "b", "y.b")}
    write_adapter(Adapter(layers), tmp_path)
    file = tmp_path / "adapter_config.json"
    more = {"alpha_pattern": {"^a": 1, "b": 3, "y.b": 9}}
    file.write_text(json.dumps({**json.loads(file.read_text()), **more}))
    found = {name: factors.alpha for name, factors in read_adapter(tmp_path).layers.items()}
    assert found == {"x.a": 4, "a": 1, "b": 3, "y.b": 3}


def test_places_without_an_adapter_are_refused(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        read_adapter(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="holds no adapter: it has none of adapter_model"):
        read_adapter(tmp_path)
    (tmp_path / "some.safetensors").write_bytes(b"no")
    with pytest.raises(UsageError, match="no safetensors file that can be read"):
        read_adapter(tmp_path / "some.safetensors")
    (tmp_path / FILES["peft"]).write_bytes(
        Path(write_adapter(Adapter({"a": Factors(DOWN, UP, 4.0)}), tmp_path / "other")).read_bytes()
    )
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        read_adapter(tmp_path)
    with pytest.raises(UsageError, match="holds no adapter: it changes no layer"):
        Adapter({})
    with pytest.raises(UsageError, match="unknown dialect 'kohja'"):
        write_adapter(Adapter({"a": Factors(DOWN, UP, 4.0)}), tmp_path, "kohja")
    with pytest.raises(UsageError, match="keys are those of a U-Net"):
        write_adapter(Adapter({"a": Factors(DOWN, UP, 4.0)}), tmp_path, "kohya", "transformer")
