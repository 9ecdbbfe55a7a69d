"""Small checkpoints in the layouts of other repositories, with random numbers for weights."""

from __future__ import annotations

import torch
from torch import Tensor


def openai_state(channels: int = 32, classes: int = 0) -> dict[str, Tensor]:
    """A U-Net of OpenAI's: two resolutions of one block each, attention in the middle only."""
    rng = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def layer(name: str, *shape: int) -> None:
        state[f"{name}.weight"] = torch.randn(shape, generator=rng) * 0.1
        state[f"{name}.bias"] = torch.randn(shape[:1], generator=rng) * 0.1

    def residual(name: str, c_in: int, c_out: int) -> None:
        layer(f"{name}.in_layers.0", c_in)
        layer(f"{name}.in_layers.2", c_out, c_in, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * c_out, 4 * channels)
        layer(f"{name}.out_layers.0", c_out)
        layer(f"{name}.out_layers.3", c_out, c_out, 3, 3)
        if c_in != c_out:
            layer(f"{name}.skip_connection", c_out, c_in, 1, 1)

    layer("time_embed.0", 4 * channels, channels)
    layer("time_embed.2", 4 * channels, 4 * channels)
    if classes:
        state["label_emb.weight"] = torch.randn(classes, 4 * channels, generator=rng)
    layer("input_blocks.0.0", channels, 3, 3, 3)
    for i in (1, 2, 3):
        residual(f"input_blocks.{i}.0", channels, channels)
    residual("middle_block.0", channels, channels)
    layer("middle_block.1.norm", channels)
    layer("middle_block.1.qkv", 3 * channels, channels, 1, 1)
    layer("middle_block.1.proj_out", channels, channels, 1, 1)
    residual("middle_block.2", channels, channels)
    for i in range(4):
        residual(f"output_blocks.{i}.0", 2 * channels, channels)
    residual("output_blocks.1.1", channels, channels)
    layer("out.0", channels)
    layer("out.2", 3, channels, 3, 3)
    return state
