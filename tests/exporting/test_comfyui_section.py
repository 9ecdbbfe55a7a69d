"""The section on ComfyUI of an adapter's card says what its loader reads, and no more."""

from __future__ import annotations

import pytest

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.exporting.comfyui import section
from fewstep.models.nets.stock import DIT, FLUX, SD3, UNET

TIMES = {1: (999.0,), 4: (999.0, 759.0, 499.0, 259.0)}


def contract(method: str, kind: str = "renoise", times=TIMES, shift: float = 1.0) -> Contract:
    start = Start(t=max(grid[0] for grid in times.values()), std=1.0)
    sampling = Sampling(start=start, kind=kind, times=times, any_times=True, shift=shift)
    return Contract(method=method, data=DataSpec(shape=(4, 8, 8), range=None), sampling=sampling)


def test_an_lcm_lora_of_a_unet():
    text = section(UNET, "kohya", "lora.safetensors", contract("lcm"))
    assert text.startswith("\n## In ComfyUI\n")
    for word in ("`lora.safetensors`", "`LoraLoaderModelOnly`", "`ModelSamplingDiscrete`", "`lcm`"):
        assert word in text
    assert "1 or 4 steps and cfg 1" in text


def test_a_unet_in_diffusers_dialect_loses_its_attention():
    text = section(UNET, "diffusers", "pytorch_lora_weights.safetensors", contract("lcm"))
    assert "--dialect kohya" in text
    assert "LoraLoaderModelOnly" not in text
    assert section(UNET, "peft", "adapter_model.safetensors", contract("lcm")) == ""


@pytest.mark.parametrize("architecture", [SD3, FLUX])
def test_flows(architecture):
    given = contract("dmd2", times={4: (1.0, 0.9, 0.75, 0.5)}, shift=3.0)
    text = section(architecture, "diffusers", "pytorch_lora_weights.safetensors", given)
    assert "the shift of this model is 3. Choose the sampler `lcm`, 4 steps and cfg 1." in text
    given = contract("meanflow", "deterministic", times={4: (1.0, 0.9, 0.75, 0.5)})
    assert "`euler`" in section(architecture, "diffusers", "lora.safetensors", given)
    assert section(architecture, "kohya", "lora.safetensors", given) == ""


def test_other_methods_promise_nothing():
    text = section(UNET, "kohya", "lora.safetensors", contract("pcm", kind="deterministic"))
    assert "we do not know a sampler of ComfyUI that has them" in text
    assert "`ModelSamplingDiscrete`" not in text
    assert section(DIT, "kohya", "lora.safetensors", contract("lcm")) == ""
    assert section("UNet2DModel", "kohya", "lora.safetensors", contract("lcm")) == ""
