"""Adapter files in the programs that they are for: diffusers' pipelines and peft itself."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from every_net import built, conditions
from fewstep.adapters import Adapter, Factors, adapter_of, add, read_adapter, write_adapter
from fewstep.models import LCM_TARGETS, Denoiser, adapt, merged
from oracles import D, normal

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

BLOCKS: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
    "sample_size": 8,
}
SDXL: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 32,
    "use_linear_projection": True,
}
JOINT = {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "ff.net.0.proj", "ff.net.2", "proj_out"}


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("diffusers").setLevel(logging.ERROR)


def unet(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(**BLOCKS, **more).eval().requires_grad_(False)


def asked(network: nn.Module) -> Tensor:
    """The network's answer to a fixed question."""
    name = type(
        network.get_base_model() if hasattr(network, "get_base_model") else network
    ).__name__
    x, t, text = normal(2, 4, 8, 8).float(), torch.tensor([3.0, 700.0]), normal(2, 5, 8).float()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "SD3Transformer2DModel":
            return network(
                x, encoder_hidden_states=text, pooled_projections=text[:, 0], timestep=t
            )[0]
        if name == "FluxTransformer2DModel":
            tokens = x.flatten(2).transpose(1, 2)
            places = torch.zeros(tokens.shape[1], 3)
            more = {"img_ids": places, "txt_ids": torch.zeros(5, 3), "timestep": t / 1000}
            return network(
                tokens, encoder_hidden_states=text, pooled_projections=text[:, 0], **more
            )[0]
        added = {"text_embeds": normal(2, 8).float(), "time_ids": torch.ones(2, 6)}
        xl = network.config["addition_embed_type"] == "text_time"
        return network(x, t, text, added_cond_kwargs=added if xl else None)[0]


def learned(
    network: nn.Module, rank: int, alpha: float, targets: Any = LCM_TARGETS
) -> tuple[Adapter, nn.Module]:
    """An adapter that says something, and the network with it merged."""
    student = copy.deepcopy(network)
    torch.manual_seed(1)
    for layer in adapt(
        student, rank, alpha, targets=None if targets is None else [*targets]
    ).values():
        nn.init.normal_(layer.adapter.up.weight, std=0.3)
    adapter = adapter_of(student)
    assert adapter is not None
    whole = merged(student)
    assert (asked(whole) - asked(network)).abs().max() > 0.01
    torch.testing.assert_close(asked(whole), asked(student), atol=1e-5, rtol=1e-5)
    return adapter, whole


def stable_diffusion(network: nn.Module) -> Any:
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, sample_size=8)
    parts = {"vae": vae, "text_encoder": None, "tokenizer": None, "safety_checker": None}
    parts |= {"unet": network, "scheduler": diffusers.LCMScheduler(), "feature_extractor": None}
    pipe = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sdxl(network: nn.Module) -> Any:
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, sample_size=8)
    parts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    scheduler = diffusers.LCMScheduler()
    return diffusers.StableDiffusionXLPipeline(
        vae=vae, unet=network, scheduler=scheduler, **dict.fromkeys(parts), add_watermarker=False
    )


def sd3(network: nn.Module) -> Any:
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, sample_size=8)
    parts = [f"{part}{i}" for part in ("text_encoder", "tokenizer") for i in ("", "_2", "_3")]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.StableDiffusion3Pipeline(
        transformer=network, vae=vae, scheduler=scheduler, **dict.fromkeys(parts)
    )


def flux(network: nn.Module) -> Any:
    vae = diffusers.AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, sample_size=8)
    parts = [f"{part}{i}" for part in ("text_encoder", "tokenizer") for i in ("", "_2")]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.FluxPipeline(
        transformer=network, vae=vae, scheduler=scheduler, **dict.fromkeys(parts)
    )


def sd3_network() -> nn.Module:
    torch.manual_seed(0)
    network = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=8,
        pooled_projection_dim=8,
        out_channels=4,
    )
    return network.eval().requires_grad_(False)


def flux_network() -> nn.Module:
    torch.manual_seed(0)
    network = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4),
    )
    return network.eval().requires_grad_(False)


PIPELINES: Mapping[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Any], str, Any]] = {
    "SD 1.5": (unet, stable_diffusion, "unet", LCM_TARGETS),
    "SDXL": (lambda: unet(**SDXL), sdxl, "unet", LCM_TARGETS),
    "SD3": (sd3_network, sd3, "transformer", JOINT),
    "Flux": (flux_network, flux, "transformer", JOINT),
}
SCALES = pytest.mark.parametrize(("rank", "alpha"), [(4, 4.0), (4, 0.5), (2, 3.0)])


def loaded(make: Any, network: nn.Module, component: str, file: Path) -> nn.Module:
    """The network of a pipeline that has loaded a file, which must have had an effect."""
    pipe = make(copy.deepcopy(network))
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    found = getattr(pipe, component)
    assert any(hasattr(module, "lora_A") for module in found.modules())
    return found


@pytest.mark.parametrize("kind", PIPELINES)
@SCALES
def test_a_pipeline_of_diffusers_loads_what_was_learned(kind, rank, alpha, tmp_path):
    build, make, component, targets = PIPELINES[kind]
    network = build()
    adapter, whole = learned(network, rank, alpha, targets)
    file = write_adapter(adapter, tmp_path, "diffusers", component)
    expected = asked(whole)
    answer = asked(loaded(make, network, component, file))
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)
    # A copy of the file without its header, as other tools make it.
    save_file(load_file(file), tmp_path / "bare.safetensors")
    answer = asked(loaded(make, network, component, tmp_path / "bare.safetensors"))
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(asked(add(network, [read_adapter(file)])), expected)


@pytest.mark.parametrize("kind", ["SD 1.5", "SDXL"])
@SCALES
def test_a_pipeline_of_diffusers_loads_kohyas_keys(kind, rank, alpha, tmp_path):
    build, make, component, _ = PIPELINES[kind]
    network = build()
    # All layers, so that conv_in, time_embedding and SDXL's add_embedding are among them.
    adapter, whole = learned(network, rank, alpha, targets=None)
    if kind == "SDXL":
        assert "add_embedding.linear_1" in adapter.layers
    file = write_adapter(adapter, tmp_path, "kohya")
    answer = asked(loaded(make, network, component, file))
    torch.testing.assert_close(answer, asked(whole), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(asked(add(network, [read_adapter(file)])), asked(whole))


@pytest.mark.parametrize("kind", PIPELINES)
@SCALES
def test_peft_loads_its_folder(kind, rank, alpha, tmp_path):
    build, _, _, targets = PIPELINES[kind]
    network = build()
    adapter, whole = learned(network, rank, alpha, targets)
    write_adapter(adapter, tmp_path)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(network), str(tmp_path))
    torch.testing.assert_close(asked(model), asked(whole), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(asked(add(network, [read_adapter(tmp_path)])), asked(whole))


def mixed(network: nn.Module) -> Adapter:
    """An adapter of several ranks and scales, one of which another layer's name ends with."""
    adapter, _ = learned(network, 4, 4.0)
    layers = dict(adapter.layers)
    for i, (name, factors) in enumerate(adapter.layers.items()):
        if i % 3 == 0:
            layers[name] = Factors(factors.down[:2], factors.up[:, :2], 0.25 + i)
        elif i % 3 == 1:
            layers[name] = replace(factors, alpha=8.0)
    return Adapter(layers)


@pytest.mark.parametrize("dialect", ["peft", "diffusers", "kohya"])
def test_every_layer_may_have_its_own_rank_and_scale(dialect, tmp_path):
    network = unet()
    adapter = mixed(network)
    expected = asked(add(network, [adapter]))
    file = write_adapter(adapter, tmp_path, dialect)
    if dialect == "peft":
        answer = asked(peft.PeftModel.from_pretrained(copy.deepcopy(network), str(tmp_path)))
    else:
        answer = asked(loaded(stable_diffusion, network, "unet", file))
    torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(asked(add(network, [read_adapter(file)])), expected)


def test_pictures_of_the_pipeline_are_those_of_the_merged_network(tmp_path):
    network = unet()
    adapter, whole = learned(network, 4, 2.0)
    write_adapter(adapter, tmp_path, "diffusers")
    pictures = []
    for net, folder in ((network, tmp_path), (whole, None)):
        pipe = stable_diffusion(copy.deepcopy(net))
        if folder is not None:
            pipe.load_lora_weights(str(folder))
        given = {
            "prompt_embeds": normal(1, 5, 8).float(),
            "guidance_scale": 1.0,
            "output_type": "latent",
        }
        noise = normal(1, 4, 8, 8).float()
        rng = torch.Generator().manual_seed(0)
        pictures.append(pipe(num_inference_steps=2, latents=noise, generator=rng, **given).images)
    torch.testing.assert_close(pictures[0], pictures[1], atol=1e-5, rtol=1e-5)


# What the programs write themselves.


def injected(network: nn.Module, **config: Any) -> Any:
    torch.manual_seed(2)
    given = {"target_modules": [*LCM_TARGETS], "init_lora_weights": False, **config}
    return peft.LoraConfig(**given)


@pytest.mark.parametrize(
    "config", [{"r": 4, "lora_alpha": 16}, {"r": 4, "lora_alpha": 3, "use_rslora": True}]
)
def test_pefts_own_folder_is_read(config, tmp_path):
    network = unet()
    model = peft.get_peft_model(copy.deepcopy(network), injected(network, **config))
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(
        asked(add(network, [read_adapter(tmp_path)])), asked(model.eval()), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("told", [True, False])
def test_diffusers_own_file_is_read(told, tmp_path):
    network = unet()
    student = copy.deepcopy(network)
    config = injected(
        network, r=4, lora_alpha=16, rank_pattern={"conv1": 2}, alpha_pattern={"to_q": 1}
    )
    student.add_adapter(config)
    layers = peft.get_peft_model_state_dict(student)
    about = student.peft_config["default"].to_dict() if told else None
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=layers, unet_lora_adapter_metadata=about
    )
    file = tmp_path / "pytorch_lora_weights.safetensors"
    there = asked(loaded(stable_diffusion, network, "unet", file))
    torch.testing.assert_close(
        asked(add(network, [read_adapter(tmp_path)])), there, atol=1e-5, rtol=1e-5
    )
    # Without metadata the file says another scale than the one of the training.
    same = torch.allclose(there, asked(student), atol=1e-4)
    assert same == told


def test_kohyas_keys_by_diffusers_are_read(tmp_path):
    network = unet(**SDXL)
    adapter, whole = learned(network, 4, 4.0, targets=None)
    file = write_adapter(adapter, tmp_path, "diffusers")
    theirs = diffusers.utils.convert_state_dict_to_kohya(load_file(file))
    save_file(theirs, tmp_path / "theirs.safetensors")
    made = add(network, [read_adapter(tmp_path / "theirs.safetensors")])
    torch.testing.assert_close(asked(made), asked(whole), atol=1e-5, rtol=1e-5)


def test_a_sum_of_adapters_is_pefts_exact_one(tmp_path):
    network = unet()
    adapters = []
    for name, alpha in (("a", 4.0), ("b", 1.0)):
        adapter, _ = learned(network, 2 if name == "a" else 3, alpha)
        write_adapter(adapter, tmp_path / name)
        adapters.append(adapter)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(network), str(tmp_path / "a"), "a")
    model.load_adapter(str(tmp_path / "b"), "b")
    model.add_weighted_adapter(["a", "b"], [0.5, 2.0], "both", combination_type="cat")
    model.set_adapter("both")
    torch.testing.assert_close(
        asked(add(network, adapters, [0.5, 2.0])), asked(model), atol=1e-5, rtol=1e-5
    )


# The library's own networks.


@pytest.mark.parametrize("name", ["ddpmpp", "adm", "dit", "mlp", "unet1d"])
def test_peft_loads_adapters_of_the_librarys_networks(name, tmp_path):
    from fewstep.models import EDM

    network = built(name)
    student = copy.deepcopy(network)
    for layer in adapt(student, 2, 5.0).values():
        nn.init.normal_(layer.adapter.up.weight, std=0.3)
    adapter = adapter_of(student)
    assert adapter is not None
    write_adapter(adapter, tmp_path)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(network), str(tmp_path))
    given = normal(3, *network.options["shape"]), torch.tensor([0.3, 1.0, 5.0], dtype=D)
    answers = [
        Denoiser(net, EDM(sigma_data=0.5))(*given, None, conditions(network))
        for net in (model.get_base_model(), merged(student), student)
    ]
    torch.testing.assert_close(answers[0], answers[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(answers[1], answers[2], atol=1e-9, rtol=1e-9)


def test_the_header_says_a_scale_of_one(tmp_path):
    adapter = mixed(unet())
    file = write_adapter(adapter, tmp_path, "diffusers")
    with safe_open(file, framework="pt") as handle:
        config = json.loads(handle.metadata()["lora_adapter_metadata"])
    assert config["unet.lora_alpha"] == config["unet.r"]
    assert config["unet.alpha_pattern"] == config["unet.rank_pattern"]
    assert {f.scale for f in read_adapter(file).layers.values()} == {1.0}


@pytest.mark.parametrize("dialect", ["peft", "kohya"])
def test_an_adapter_of_an_adm_network_is_one_of_unet2d(dialect, tmp_path):
    from fewstep.contract import Contract, DataSpec, Sampling, Start
    from fewstep.exporting import export
    from fewstep.exporting.unet2d import unet2d
    from fewstep.merging import merge
    from fewstep.model import Model
    from fewstep.models import EDM
    from fewstep.models.nets import ADM

    torch.manual_seed(0)
    shape = (3, 8, 8)
    sizes: dict[str, Any] = {"channels": 32, "multipliers": (1, 2), "blocks": 2, "groups": 8}
    network = ADM(shape, **sizes, attention=(4,), head_channels=16)
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    student = copy.deepcopy(network)
    for layer in adapt(student, 2, 5.0).values():
        nn.init.normal_(layer.adapter.up.weight, std=0.3)
    contract = Contract(
        method="edm",
        data=DataSpec(shape=shape),
        sampling=Sampling(kind="ode", start=Start(t=80.0, std=80.0), times={}),
    )
    scalings = EDM(sigma_data=0.5)
    model = Model(Denoiser(merged(student), scalings), contract, adapter=adapter_of(student))
    assert export(model, "lora", tmp_path / "out", dialect=dialect) < 1e-6
    assert "UNet2DModel" in (tmp_path / "out" / "README.md").read_text()
    start = Model(Denoiser(network, scalings), contract)
    made = merge(start, [tmp_path / "out"])
    for name, value in made.denoiser.state_dict().items():
        expected = model.denoiser.state_dict()[name]
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)
    if dialect == "kohya":
        return
    config, tensors = unet2d(network)
    theirs = diffusers.UNet2DModel.from_config(config).eval()
    theirs.load_state_dict(tensors)
    config, tensors = unet2d(model.denoiser.net)
    whole = diffusers.UNet2DModel.from_config(config).eval()
    whole.load_state_dict(tensors)
    adapted = peft.PeftModel.from_pretrained(theirs, str(tmp_path / "out"))
    x, t = normal(2, *shape).float(), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        torch.testing.assert_close(adapted(x, t)[0], whole(x, t)[0], atol=1e-5, rtol=1e-5)
