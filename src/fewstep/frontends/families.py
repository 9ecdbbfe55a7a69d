"""What the pipelines of diffusers make of a text, by the encoders that they have.

==========  ==================================  ==========================================
family      encoders                            conditions
==========  ==================================  ==========================================
``clip``    CLIP                                ``text``: the last hidden states (SD 1.5, SD 2)
``sdxl``    CLIP, CLIP with projection          ``text``: both penultimate hidden states side by
                                                side; ``pooled``: the second's projection
``sd3``     two CLIPs with projection, T5       ``text``: the CLIPs' as of sdxl, filled up with
                                                zeros, then T5's; ``pooled``: both projections
``flux``    CLIP, T5                            ``text``: T5's; ``pooled``: CLIP's
``t5``      T5                                  ``text``, with its mask
==========  ==================================  ==========================================

As in the pipelines, CLIP and T5 see the padding of their tokens as words, except T5 alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fewstep.frontends.towers import Tower

CLIP, PROJECTED, T5 = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel"

FAMILIES: dict[tuple[str, ...], str] = {
    (CLIP,): "clip",
    (CLIP, PROJECTED): "sdxl",
    (PROJECTED, PROJECTED): "sd3",
    (PROJECTED, PROJECTED, T5): "sd3",
    (CLIP, T5): "flux",
    (T5,): "t5",
}
"""What a list of encoders is."""

LENGTHS = {"sd3": 256, "flux": 512, "t5": 128}
"""Tokens of T5 where nobody asks for another number; the first two are those of the pipelines."""


@dataclass(frozen=True)
class Texts:
    """Settings of the encoders.

    Args:
        family: a value of ``FAMILIES``.
        length: the most tokens of T5; of families without it those of CLIP.
        width: of the tokens of T5, where SD3 goes without it; 0 otherwise.
        zeros: the null is zeros instead of the empty text.
    """

    family: str
    length: int
    width: int = 0
    zeros: bool = False


Towers = Sequence[Tower]


def _clip(towers: Towers, _: Texts, texts: list[str]) -> dict[str, Tensor]:
    return {"text": towers[0](texts).last_hidden_state}


def _penultimate(tower: Tower, texts: list[str]) -> tuple[Tensor, Tensor | None]:
    answer = tower(texts, output_hidden_states=True)
    return answer.hidden_states[-2], getattr(answer, "text_embeds", None)


def _sdxl(towers: Towers, _: Texts, texts: list[str]) -> dict[str, Tensor]:
    first, second = (_penultimate(tower, texts) for tower in towers)
    assert second[1] is not None
    return {"text": torch.cat([first[0], second[0]], -1), "pooled": second[1]}


def _sd3(towers: Towers, settings: Texts, texts: list[str]) -> dict[str, Tensor]:
    both = [_penultimate(tower, texts) for tower in towers[:2]]
    words = torch.cat([hidden for hidden, _ in both], -1)
    pooled = torch.cat([projected for _, projected in both if projected is not None], -1)
    if len(towers) == 3:
        long = towers[2](texts, length=settings.length).last_hidden_state
    else:
        long = words.new_zeros(len(texts), settings.length, settings.width)
    words = F.pad(words, (0, long.shape[-1] - words.shape[-1]))
    return {"text": torch.cat([words, long], 1), "pooled": pooled}


def _flux(towers: Towers, settings: Texts, texts: list[str]) -> dict[str, Tensor]:
    long = towers[1](texts, length=settings.length).last_hidden_state
    return {"text": long, "pooled": towers[0](texts).pooler_output}


def _t5(towers: Towers, settings: Texts, texts: list[str]) -> dict[str, Tensor]:
    tokens = towers[0].tokens(texts, settings.length)
    answer = towers[0](texts, length=settings.length, masked=True)
    return {"text": answer.last_hidden_state, "text_mask": tokens["attention_mask"]}


FORMULAS = {"clip": _clip, "sdxl": _sdxl, "sd3": _sd3, "flux": _flux, "t5": _t5}
"""By family, from the encoders, their settings and texts to the conditions."""
