"""A frozen denoiser in half the memory."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewstep.models.denoiser import AbstractDenoiser, Denoiser
from fewstep.models.nets.blocks import FourierEmbedding, PositionalEmbedding
from fewstep.models.nets.magnitude import MPFourier

D = TypeVar("D", bound=AbstractDenoiser)


def halved(denoiser: D) -> D:
    """A frozen copy with weights in bfloat16: a teacher, or what adapters are to share.

    Buffers stay as they are, and so do times up to the cosines of them: with 8 bits of a time, a
    network of many frequencies answers another one. A network of your own is handed its times in
    bfloat16 unless it has an attribute ``time_dtype``.
    """
    half = copy.deepcopy(denoiser).eval().requires_grad_(False)
    for parameter in half.parameters():
        parameter.data = parameter.data.bfloat16()
    for each in half.modules():
        if isinstance(each, Denoiser):
            net: Any = each.net
            ladders = (FourierEmbedding, PositionalEmbedding, MPFourier)
            embeddings = [m for m in net.modules() if isinstance(m, ladders)]
            for ladder in embeddings:
                ladder.register_forward_hook(_narrowed)
            if embeddings:
                net.time_dtype = torch.float32
    return half


def _narrowed(module: nn.Module, args: Any, answer: Tensor) -> Tensor:
    return answer.bfloat16()
