"""Networks of diffusers as networks of the library: of SD 1.5, SD 2, SDXL, SD3, Flux and DiT.

Times come in the unit of the scheduler's steps: 0 to 999 on DDPM's betas, 1000 t of a flow. (Flux's
own class multiplies by 1000, so it is given a thousandth.) Weights and answers are those of stock
code; a folder of the pipeline differs from a model only in names.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core import Cond
from fewstep.errors import UsageError
from fewstep.frontends.stock import built, plain
from fewstep.models.nets.blocks import label_of, latent_guidance_embedding

UNET, SD3, FLUX = "UNet2DConditionModel", "SD3Transformer2DModel", "FluxTransformer2DModel"

DIT = "DiTTransformer2DModel"

READERS = (UNET, SD3, FLUX)
"""The classes of networks that read texts."""

CLASSES = (*READERS, DIT)
"""The classes of diffusers that are built; nothing else is, whatever a file says."""

POSITIONS = "pos_embed.pos_embed"
"""DiT's sinusoids of positions, which its class computes when it is made, of true numbers only."""

BLOCKS = {
    UNET: (("resnet", "ResnetBlock2D"), ("transformers.transformer_2d", "Transformer2DModel")),
    SD3: (("attention", "JointTransformerBlock"),),
    FLUX: (
        ("transformers.transformer_flux", "FluxTransformerBlock"),
        ("transformers.transformer_flux", "FluxSingleTransformerBlock"),
    ),
    DIT: (("attention", "BasicTransformerBlock"),),
}
"""Where the classes of each network's blocks are, below ``diffusers.models``."""

LCM_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
    "time_emb_proj",
)
"""The layers that LCM-LoRA adapts in a U-Net of diffusers (train_lcm_distill_lora_sd_wds.py)."""

TRANSFORMER_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
    *("proj_mlp", "proj_out"),
)
"""The layers of attention and of MLPs in SD3's and Flux's transformers."""

GUIDANCE_WIDTH = 256
"""Width of the embedding of a guidance scale, as latent consistency models have it."""

FLUX_GUIDANCE = 3.5
"""The guidance scale that FLUX.1-dev reads where nobody gives one; the pipeline's default."""


class StockNetwork(nn.Module):
    """A network of diffusers that reads texts or, of DiT, a class.

    DiT reads ``label``, ``(b,)``; a variance that it has learned is left out of its answers. The
    others read ``text``, tokens ``(b, length, width)``, and, except in SD 1.5 and SD 2, ``pooled``,
    ``(b, width)``. SDXL reads ``time_ids``, ``(b, 6)``, too: height and width of the original, top
    and left of the crop, height and width of the picture, in pixels. Where they are not given the
    picture is whole. ``guidance``, ``(b,)``, is the scale of classifier-free guidance (1 is none)
    that a network was distilled for: latent consistency models read 1000 (w - 1), Flux 1000 w.

    Args:
        architecture: the name of the class, one of ``CLASSES``.
        config: its arguments, as its ``config.json`` has them.
        factor: how many pixels a latent is along each side.
        guidance: the network must be given a guidance scale. A U-Net without an input for it has
            one that adds nothing at first.
        masked: a U-Net reads ``text_mask``, bool ``(b, length)``, and attends to the tokens that
            are there.

    Raises:
        UsageError: the class is another, diffusers is not installed or cannot build it, or the
            network reads conditions of other kinds.
    """

    two_time = False

    def __init__(
        self,
        architecture: str,
        config: Mapping[str, Any],
        factor: int = 8,
        guidance: bool = False,
        masked: bool = False,
    ) -> None:
        super().__init__()
        arguments = plain(config)
        if masked and architecture != UNET:
            raise UsageError(f"a {architecture} reads no mask of its tokens; U-Nets do")
        new = guidance and architecture == UNET and not arguments.get("time_cond_proj_dim")
        if new:
            arguments["time_cond_proj_dim"] = GUIDANCE_WIDTH
        stored = (POSITIONS,) if architecture == DIT else ()
        self.net: Any = built(architecture, CLASSES, arguments, stored)
        if new:
            nn.init.zeros_(self.net.time_embedding.cond_proj.weight)
        self.architecture, self.factor = architecture, factor
        self.options: dict[str, Any] = {
            "architecture": architecture,
            "config": arguments,
            "factor": factor,
            "guidance": guidance,
        }
        if masked:
            self.options["masked"] = True
        self._check()
        own = self.net.config
        sized = architecture == UNET and own.addition_embed_type == "text_time"
        reads = own.time_cond_proj_dim if architecture == UNET else own.get("guidance_embeds")
        if guidance and not reads:
            raise UsageError(
                f"this {architecture} has no input for a guidance scale; FLUX.1-dev and U-Nets can "
                "have one"
            )
        self.cond_keys = ("text", *(["pooled"] if sized or architecture != UNET else []))
        self.cond_keys += ("text_mask",) if masked else ()
        if architecture == DIT:
            self.cond_keys = ("label",)
            for block in self.net.transformer_blocks:  # labels are dropped by whoever trains
                block.norm1.emb.class_embedder.dropout_prob = 0.0
        self.cond_keys += ("guidance",) if guidance else ()
        optional = {"time_ids": sized, "guidance": bool(reads) and not guidance}
        self.optional_keys = tuple(key for key, is_read in optional.items() if is_read)
        self.units = tuple(
            getattr(importlib.import_module(f"diffusers.models.{place}"), name)
            for place, name in BLOCKS[architecture]
        )

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Ends of the names of the layers that adapters of such networks usually change."""
        return LCM_TARGETS if self.architecture == UNET else TRANSFORMER_TARGETS

    @property
    def channels(self) -> int:
        """Channels of a sample."""
        own = self.net.config
        return own.in_channels // 4 if self.architecture == FLUX else own.in_channels

    @property
    def last_weight(self) -> Tensor:
        """The weight of the last layer, where adaptive loss weights measure gradients."""
        names = {UNET: "conv_out", DIT: "proj_out_2"}
        return getattr(self.net, names.get(self.architecture, "proj_out")).weight

    @property
    def time_dtype(self) -> torch.dtype:
        """At least float32: half precision knows few of a thousand times."""
        dtype = next(self.parameters()).dtype
        return dtype if dtype == torch.float64 else torch.float32

    def forward(
        self, x: Tensor, c_noise: Tensor, s_noise: Tensor | None = None, cond: Cond | None = None
    ) -> Tensor:
        """The prediction ``(b, c, h, w)`` of the network at a time in steps of the scheduler."""
        if self.architecture == DIT:
            out = self.net(x, timestep=c_noise, class_labels=label_of(cond), return_dict=False)[0]
            return out[:, : self.channels]
        given = {key: value.to(x.dtype) for key, value in (cond or {}).items()}
        calls = {UNET: self._unet, SD3: self._sd3, FLUX: self._flux}
        return calls[self.architecture](x, c_noise, given)

    def _unet(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        scale, added = None, None
        if "guidance" in cond:
            width = int(self.net.config.time_cond_proj_dim)
            scale = latent_guidance_embedding(cond["guidance"].float(), width).to(x.dtype)
        if "pooled" in cond:
            ids = cond.get("time_ids", self._uncropped(x))
            added = {"text_embeds": cond["pooled"], "time_ids": ids}
        return self.net(
            x,
            time,
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond.get("text_mask"),
            timestep_cond=scale,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]

    def _sd3(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return self.net(
            hidden_states=x,
            timestep=time,
            encoder_hidden_states=cond["text"],
            pooled_projections=cond["pooled"],
            return_dict=False,
        )[0]

    def _flux(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> Tensor:
        b, c, h, w = x.shape
        if h % 2 or w % 2:
            raise UsageError(f"Flux sees latents as squares of 2 x 2, got {h} x {w} of them")
        # (b, c, h/2, 2, w/2, 2) to (b, tokens, c * 4)
        patches = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
        rows, columns = (torch.arange(n // 2, device=x.device, dtype=x.dtype) for n in (h, w))
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
        guidance = None
        if self.net.config.guidance_embeds:
            guidance = cond.get("guidance", torch.full_like(x[:, 0, 0, 0], FLUX_GUIDANCE))
        out = self.net(
            hidden_states=patches.reshape(b, -1, c * 4),
            timestep=time / 1000,
            guidance=guidance,
            encoder_hidden_states=cond["text"],
            pooled_projections=cond["pooled"],
            txt_ids=x.new_zeros(cond["text"].shape[1], 3),
            img_ids=torch.cat([torch.zeros_like(places[:, :1]), places], 1),
            return_dict=False,
        )[0]
        grid = out.reshape(b, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return grid.reshape(b, c, h, w)

    def _uncropped(self, x: Tensor) -> Tensor:
        """SDXL's sizes of a picture that was neither resized nor cropped."""
        height, width = (n * self.factor for n in x.shape[2:])
        return x.new_tensor([height, width, 0, 0, height, width]).expand(len(x), 6)

    def _check(self) -> None:
        own = self.net.config
        if self.architecture == UNET:
            other = [
                name
                for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
                if own.get(name) is not None
            ]
            if own.addition_embed_type not in (None, "text_time"):
                other.append("addition_embed_type")
            if other:
                raise UsageError(f"the U-Net has {', '.join(other)}, which cannot be read")
        if self.architecture == DIT and own.out_channels == 2 * own.in_channels:
            return
        if own.out_channels not in (None, own.in_channels):
            raise UsageError(
                f"the network reads {own.in_channels} channels and returns {own.out_channels}, as "
                "networks for inpainting do; it cannot be read"
            )
