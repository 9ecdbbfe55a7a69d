"""From stock diffusers to few steps and back: `python examples/diffusers_round_trip.py`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import ConsistencyModelPipeline, UNet2DModel
from torch import Tensor

import fewstep
from fewstep.core import expand
from fewstep.data.catalogue import training_data
from fewstep.exporting import export
from fewstep.models import EDM, Denoiser


def teacher(steps: int, folder: Path) -> None:
    """Train a diffusion model of 8 x 8 digits with EDM's loss, in stock code."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ["AttnDownBlock2D"] * 2, "up_block_types": ["AttnUpBlock2D"] * 2}
    sizes = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": [32, 64]}
    unet = UNet2DModel(**sizes, **blocks, layers_per_block=1, num_class_embeds=10)
    optimizer = torch.optim.Adam(unet.parameters(), lr=1e-3)
    data, scalings = training_data("digits"), EDM(sigma_data=0.75, time_scale=250.0)
    for _ in range(steps):
        batch = data.batch(torch.randint(len(data), (64,)).tolist())
        x0, sigma = batch.x0, (torch.randn(64) * 1.2 - 1.2).exp()
        c_skip, c_out, c_in, _ = (expand(c, x0) for c in scalings.coefficients(sigma))
        x = x0 + expand(sigma, x0) * torch.randn_like(x0)
        raw = unet(c_in * x, 250 * sigma.log(), class_labels=batch.cond["label"]).sample
        optimizer.zero_grad()
        ((raw - (x0 - c_skip * x) / c_out) ** 2).mean().backward()
        optimizer.step()
    unet.save_pretrained(folder)


def main(steps: int = 1000, out: Path = Path("runs/diffusers")) -> Tensor:
    teacher(steps, out / "stock")
    options = fewstep.ImportOptions(reading="edm", sigma_data=0.75)
    imported = fewstep.import_checkpoint(out / "stock", options).model
    # The stock scheduler of consistency models gives the network 250 ln(sigma), EDM's 0.25.
    scalings = replace(imported.denoiser.preconditioning, time_scale=250.0)
    model = fewstep.Model(Denoiser(imported.denoiser.net, scalings), imported.contract)
    model.save(out / "teacher", samples=0)
    recipe = fewstep.recipe("digits-cd", teacher=str(out / "teacher"), train={"steps": steps})
    export(fewstep.train(recipe, out=out / "student"), "diffusers", out / "folder")

    call = json.loads((out / "folder" / "fewstep.json").read_text())["calls"]["2"]
    pipeline = ConsistencyModelPipeline.from_pretrained(out / "folder")
    labels, rng = torch.arange(100) % 10, torch.Generator().manual_seed(0)
    choices = {"num_inference_steps": None, "timesteps": call["timesteps"], "output_type": "pt"}
    return pipeline(batch_size=100, class_labels=labels, generator=rng, **choices).images


if __name__ == "__main__":
    print(main().mean((1, 2, 3)))
