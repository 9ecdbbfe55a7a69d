"""Folders of diffusers; the comparisons need diffusers, the refusals do not."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fewstep import ImportOptions, UsageError, import_checkpoint, load
from fewstep.models import EDM, ConsistencyBoundary, NearestStep, NoisePrediction, VPrediction

SMALL: dict[str, Any] = {"sample_size": 8, "in_channels": 3, "out_channels": 3}
DDPM = {
    **SMALL,
    "layers_per_block": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
CONSISTENCY = {
    **SMALL,
    "layers_per_block": 2,
    "block_out_channels": (32, 64),
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "attention_head_dim": 16,
    "num_class_embeds": 5,
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 32,
    "upsample_type": "resnet",
    "downsample_type": "resnet",
}


@pytest.fixture
def diffusers(monkeypatch):
    module = pytest.importorskip("diffusers")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    return module


def network(diffusers, **config: Any):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(**config).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.15)
    return unet


X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("head", [None, 8])
def test_ddpm(diffusers, tmp_path, safe, head):
    unet = network(diffusers, **{**DDPM, "attention_head_dim": head})
    scheduler = diffusers.DDPMScheduler(clip_sample=False)
    pipeline = diffusers.DDPMPipeline(unet, scheduler)
    pipeline.save_pretrained(tmp_path / "m", safe_serialization=safe)
    model = import_checkpoint(tmp_path / "m").model
    assert isinstance(model.denoiser.preconditioning, NoisePrediction)
    assert model.contract.sampling.kind == "ode"
    for step in (0, 500, 999):
        times = torch.full((3,), float(step), dtype=torch.float64)
        with torch.no_grad():
            noise = unet(X, torch.full((3,), step)).sample
            want = scheduler.step(noise, step, X, generator=torch.Generator()).pred_original_sample
            got = model.denoiser(X, times)
        assert torch.allclose(got, want, atol=1e-5 * float(want.abs().max()))
    assert load(model.save(tmp_path / "o"), device="cpu").sample(1, steps=2).isfinite().all()


def test_a_consistency_model(diffusers, tmp_path):
    unet = network(diffusers, **CONSISTENCY)
    scheduler = diffusers.CMStochasticIterativeScheduler(
        sigma_max=40.0, sigma_min=0.01, clip_denoised=False
    )
    diffusers.ConsistencyModelPipeline(unet, scheduler).save_pretrained(tmp_path / "m")
    imported = import_checkpoint(tmp_path / "m")
    denoiser, label = imported.model.denoiser, torch.tensor([0, 2, 4])
    assert isinstance(denoiser.preconditioning, ConsistencyBoundary)
    assert imported.model.contract.data.labels == 5
    assert imported.model.contract.sampling.start.std == 40.0
    scheduler.set_timesteps(1)
    with torch.no_grad():
        scaled = scheduler.scale_model_input(X * 40, scheduler.timesteps[0])
        raw = unet(scaled, scheduler.timesteps[0], label).sample
        want = scheduler.step(raw, scheduler.timesteps[0], X * 40).prev_sample
        got = denoiser(X * 40, torch.full((3,), 40.0, dtype=torch.float64), None, {"label": label})
    assert torch.allclose(got, want, atol=3e-5)
    assert torch.equal(denoiser(X, torch.full((3,), 0.01), None, {"label": label}), X)


def test_the_names_that_attention_had_before(diffusers, tmp_path):
    unet = network(diffusers, **DDPM)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "m")
    want = import_checkpoint(tmp_path / "m").model.denoiser.net.state_dict()
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, value in unet.state_dict().items():
        for now, then in older.items():
            name = name.replace(f".{now}.", f".{then}.")
        state[name] = value
    save_file(state, tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors")
    found = import_checkpoint(tmp_path / "m").model.denoiser.net.state_dict()
    assert all(torch.equal(found[name], want[name]) for name in want)


def test_weights_in_several_files(diffusers, tmp_path):
    unet = network(diffusers, **DDPM)
    unet.save_pretrained(tmp_path / "m", max_shard_size="500KB")
    shards = [*(tmp_path / "m").glob("*-of-*.safetensors")]
    assert len(shards) > 1
    options = ImportOptions(reading="ddpm-linear")
    model = import_checkpoint(tmp_path / "m", options).model
    with torch.no_grad():
        want = unet(X, torch.tensor([7, 7, 7])).sample
        assert torch.allclose(model.denoiser.net(X, torch.full((3,), 7.0)), want, atol=1e-5)
    shards[0].unlink()
    with pytest.raises(UsageError, match="no such file"):
        import_checkpoint(tmp_path / "m", options)


SCHEDULERS = [
    ({"_class_name": "CMStochasticIterativeScheduler"}, ConsistencyBoundary),
    ({"_class_name": "EDMEulerScheduler", "sigma_data": 1.0}, EDM),
    ({"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"}, NoisePrediction),
    ({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}, VPrediction),
    ({"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"}, NearestStep),
]


@pytest.mark.parametrize(("scheduler", "kind"), SCHEDULERS)
def test_the_scheduler_says_what_the_output_means(scheduler, kind):
    from fewstep.importing.formats.diffusers import scheduled

    _, scalings = scheduled(scheduler, ImportOptions())
    assert type(scalings) is kind


def test_ddpm_s_cosine_schedule_is_the_nearest_step_s(diffusers):
    from fewstep.models.preconditioning import cosine_levels

    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    power = scheduler.alphas_cumprod.double()
    levels = cosine_levels(1000, 0.001, 0.008)[:-1].flip(0)
    assert torch.allclose(levels, (1 / power - 1).sqrt(), rtol=1e-3)


def folder(root: Path, scheduler: Any = None, **config: Any) -> Path:
    """A folder without weights."""
    root.mkdir(exist_ok=True)
    whole = {"_class_name": "UNet2DModel", **DDPM, **config}
    (root / "config.json").write_text(json.dumps(whole))
    if scheduler is not None:
        (root / "scheduler").mkdir()
        (root / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return root


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "UNet1DModel"}, "expected 'UNet2DModel'"),
        ({"_class_name": "UNet2DConditionModel"}, "give the folder of the whole pipeline"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'"),
        ({"center_input_sample": True}, "center_input_sample is True"),
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "are not those of DDPM"),
        ({"down_block_types": ["DownBlock2D"]}, "not as long as"),
        ({"block_out_channels": [32, 48]}, "multiples of the first"),
        ({"block_out_channels": "many"}, "expected a list of numbers"),
        ({"layers_per_block": -1}, "layers_per_block is -1"),
        ({"num_class_embeds": "ten"}, "num_class_embeds is 'ten'"),
        ({"sample_size": None}, "sample_size is None"),
        ({"sample_size": [2**40, 2**40]}, "out of range"),
        ({"attention_head_dim": 7}, "do not split into heads"),
        ({"time_embedding_dim": 100}, "embeds time in 100 channels"),
        ({"out_channels": 6}, "another number of output channels"),
        ({"norm_eps": "small"}, "eps"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(config, message, tmp_path):
    root = folder(tmp_path / "m", **config)
    save_file({"a": torch.zeros(1)}, root / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UsageError, match=message):
        import_checkpoint(root, ImportOptions(reading="ddpm-linear"))


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "'FlowMatchEulerDiscreteScheduler'"),
        ({"_class_name": "DDPMScheduler", "trained_betas": [0.1]}, "special betas"),
        ({"_class_name": "DDPMScheduler", "prediction_type": ["epsilon"]}, "prediction_type"),
        ({"_class_name": "DDPMScheduler", "num_train_timesteps": 1e9}, "expected a number"),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": "half"}, "sigma_data is 'half'"),
        ({}, "the scheduler is a None"),
    ],
)
def test_a_scheduler_that_cannot_be_is_refused(scheduler, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        import_checkpoint(folder(tmp_path / "m", scheduler))


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "a/b", "..", "", "a\\b"])
def test_an_index_that_names_files_elsewhere_is_refused(name, tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    root = folder(tmp_path / "m")
    index = {"weight_map": {"conv_in.weight": name}}
    (root / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="which is not in this folder"):
        import_checkpoint(root, ImportOptions(reading="ddpm-linear"))


def test_a_folder_that_lacks_something(tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(UsageError, match="the files nothing"):
        import_checkpoint(tmp_path / "m")
    root = folder(tmp_path / "m")
    with pytest.raises(UsageError, match="has no scheduler"):
        import_checkpoint(root)
    with pytest.raises(UsageError, match="holds no weights"):
        import_checkpoint(root, ImportOptions(reading="ddpm-linear"))
    (root / "model_index.json").write_text("{}")
    with pytest.raises(UsageError, match="cannot be read"):
        import_checkpoint(root, ImportOptions(reading="ddpm-linear"))
    (root / "model_index.json").unlink()
    (root / "config.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match=r"config\.json cannot be read"):
        import_checkpoint(root, ImportOptions(reading="ddpm-linear"))
