"""Text-to-image models in one file, as ComfyUI has them: recognised in order to be refused.

A file of this kind has the network by the names of its authors' code, alone or beside an
autoencoder and text encoders, and no configuration. The door for these models is the folder of
their pipeline.
"""

from __future__ import annotations

from fewstep.errors import UsageError
from fewstep.importing.archives import Archive

NETWORK = "model.diffusion_model."
"""Before the names of a network that has other parts beside it."""

MARKS = {
    "Flux": ("double_blocks.0.img_attn.qkv.weight",),
    "SD3": ("joint_blocks.0.context_block.attn.qkv.weight",),
    "SDXL": ("label_emb.0.0.weight", "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"),
    "Stable Diffusion": ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",),
}
"""Names of tensors that only these networks have together; the first that fits is meant."""

STOCK = {
    "Flux": ("single_transformer_blocks.0.proj_mlp.weight",),
    "SD3": ("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight"),
    "SDXL": ("add_embedding.linear_1.weight",),
    "Stable Diffusion": ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",),
}
"""The same for a network by the names of diffusers' code."""


def refuse_single_file(archive: Archive) -> None:
    """Say where a text-to-image model comes in, if a file is one.

    Raises:
        UsageError: it is one.
    """
    if archive.kind == "folder" or not isinstance(archive.content, dict):
        return
    content = archive.content
    state = content.get("state_dict")
    names = {str(name).removeprefix(NETWORK) for name in (*content, *(state or ()))}
    for marks, what in ((MARKS, "one file, as ComfyUI reads it"), (STOCK, "the network alone")):
        for model, own in marks.items():
            if names.issuperset(own):
                raise UsageError(
                    f"{archive.source} holds a {model} model as {what}, without the configurations "
                    "that a pipeline needs; give the folder of its pipeline in the form of "
                    "diffusers (with model_index.json, scheduler/, vae/ and text encoders), or "
                    "hub:OWNER/NAME of such a repository"
                )
