"""Pipelines of diffusers with random tiny weights, of the true classes, as folders."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

SIZE, WORDS = 8, 12
"""Height of latents; tokens that the tiny CLIPs read."""

LETTERS = [chr(n) for n in range(97, 123)]
MERGES = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]


def library() -> Any:
    module = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    module.utils.logging.disable_progress_bar()
    return module


def shaken(module: torch.nn.Module, scale: float = 0.1, seed: int = 0) -> Any:
    """No zero among the weights: fresh networks answer little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * scale)
    return module.eval()


def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), *(a + b for a, b in MERGES)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=[*MERGES],
        model_max_length=WORDS,
    )


def clip(width: int = 8, projection: int | None = None, seed: int = 0) -> Any:
    import transformers

    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        vocab_size=len(clip_tokenizer()),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=WORDS,
        projection_dim=projection or 8,
        eos_token_id=clip_tokenizer().eos_token_id,
        bos_token_id=clip_tokenizer().bos_token_id,
        pad_token_id=clip_tokenizer().pad_token_id,
    )
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return shaken(kind(config), seed=seed)


def t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(vocab=[*vocab, *((c, -3.0) for c in LETTERS)], extra_ids=0)


def t5(width: int = 16) -> Any:
    import transformers

    torch.manual_seed(5)
    config = transformers.T5Config(
        vocab_size=32, d_model=width, d_kv=4, d_ff=16, num_layers=2, num_heads=2
    )
    return shaken(transformers.T5EncoderModel(config), seed=5)


def vae(**options: Any) -> Any:
    torch.manual_seed(1)
    settings = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    return shaken(library().AutoencoderKL(**{**settings, **options}), 0.05)


UNET = {
    "sample_size": SIZE,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 8,
}
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def unet(**options: Any) -> Any:
    torch.manual_seed(2)
    return shaken(library().UNet2DConditionModel(**{**UNET, **options}))


def sd(scheduler: Any = None, **options: Any) -> Any:
    """As Stable Diffusion 1.5 is; with prediction_type="v_prediction" as 2 is."""
    module = library()
    kind = options.pop("prediction_type", "epsilon")
    return module.StableDiffusionPipeline(
        vae=options.pop("vae", None) or vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=unet(**options),
        scheduler=scheduler or module.PNDMScheduler(prediction_type=kind, **SCHEDULE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(**options: Any) -> Any:
    module = library()
    return module.StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025),
        text_encoder=clip(8),
        text_encoder_2=clip(12, 10, seed=3),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            cross_attention_dim=20,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=10 + 6 * 4,
        ),
        scheduler=module.EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        **options,
    )


def sd3(whole: bool = True, **options: Any) -> Any:
    module = library()
    torch.manual_seed(3)
    transformer = module.SD3Transformer2DModel(
        sample_size=SIZE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=24,
        caption_projection_dim=16,
        pooled_projection_dim=20,
        pos_embed_max_size=SIZE,
    )
    return module.StableDiffusion3Pipeline(
        vae=vae(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip(8, 8),
        text_encoder_2=clip(12, 12, seed=3),
        text_encoder_3=t5(24) if whole else None,
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer() if whole else None,
        transformer=shaken(transformer),
        scheduler=module.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux(guided: bool = True, **scheduler: Any) -> Any:
    module = library()
    torch.manual_seed(4)
    transformer = module.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        guidance_embeds=guided,
        axes_dims_rope=(2, 2, 4),
    )
    settings = {"use_dynamic_shifting": True, "shift": 3.0, **scheduler}
    return module.FluxPipeline(
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip(8),
        text_encoder_2=t5(16),
        tokenizer=clip_tokenizer(),
        tokenizer_2=t5_tokenizer(),
        transformer=shaken(transformer),
        scheduler=module.FlowMatchEulerDiscreteScheduler(**settings),
    )


def dit(**options: Any) -> Any:
    """As DiT is, with its thousand classes and a learned variance."""
    module = library()
    torch.manual_seed(6)
    network = module.DiTTransformer2DModel(
        **{
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "sample_size": SIZE,
            **options,
        }
    )
    return module.DiTPipeline(
        transformer=shaken(network),
        vae=vae(scaling_factor=0.18215),
        scheduler=module.DDIMScheduler(beta_schedule="linear"),
    )


def saved(pipeline: Any, folder: Path, **options: Any) -> Path:
    pipeline.save_pretrained(folder, **options)
    return folder
