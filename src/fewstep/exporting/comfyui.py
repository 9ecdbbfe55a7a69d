"""What a card says of ComfyUI: only what its loader and samplers were read to do (October 2025)."""

from __future__ import annotations

from collections.abc import Mapping

from fewstep.contract import Contract
from fewstep.models.nets.stock import FLUX, SD3, UNET

READS: Mapping[str, tuple[str, ...]] = {
    UNET: ("kohya",),
    SD3: ("diffusers", "peft"),
    FLUX: ("diffusers",),
}
"""The dialects of adapters that ComfyUI's loader reads whole, by the class of the network."""

SKIPPED = (
    "ComfyUI does not read this file whole: of a U-Net in this dialect it skips all layers of "
    "attention, with a line in its log for each. Export with `--dialect kohya` for ComfyUI."
)
LCM = (
    "Then put the node `ModelSamplingDiscrete` with `lcm` behind the loader, and choose the "
    "sampler `lcm`, the scheduler `sgm_uniform` or `simple`, {steps} steps and cfg 1 (up to 2; 1 "
    "is no guidance)."
)
FLOW = (
    "ComfyUI shifts the times of flows by its nodes `ModelSamplingSD3` and `ModelSamplingFlux`; "
    "the shift of this model is {shift:g}. Choose the sampler `{sampler}`, {steps} steps and cfg 1."
)
OWN = (
    "ComfyUI's samplers have times of their own, and those of this model are in its card; we do "
    "not know a sampler of ComfyUI that has them."
)


def section(architecture: str, dialect: str, file: str, contract: Contract) -> str:
    """The section of a card, in Markdown; empty where ComfyUI has no such network.

    Args:
        architecture: the class of the network in diffusers.
        dialect: of the adapter's file.
        file: its name.
        contract: says how the model is sampled.
    """
    if architecture not in READS:
        return ""
    head = "\n## In ComfyUI\n\n"
    if dialect not in READS[architecture]:
        return f"{head}{SKIPPED}\n" if (architecture, dialect) == (UNET, "diffusers") else ""
    sampling = contract.sampling
    steps = " or ".join(map(str, sorted(sampling.times))) or "4"
    if contract.method == "lcm" and architecture == UNET:
        how = LCM.format(steps=steps)
    elif architecture != UNET and sampling.kind in {"renoise", "deterministic"}:
        sampler = "lcm" if sampling.kind == "renoise" else "euler"
        how = FLOW.format(steps=steps, shift=sampling.shift, sampler=sampler)
    else:
        how = OWN
    return (
        f"{head}Copy `{file}` to `models/loras` and load it by the node `LoraLoaderModelOnly` with "
        f"the strength 1, on the checkpoint that it was trained on. {how}\n"
    )
