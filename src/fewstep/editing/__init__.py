"""Editing without training: what is known of a picture stays, a model draws the rest.

Masks are 1 where something is *missing*. Functions take and return batches of pictures in the range
of the data, and the arguments of :class:`Asked` as :meth:`fewstep.Model.sample` does.
"""

from __future__ import annotations

from fewstep.editing.asked import Asked, level, noise_level
from fewstep.editing.interpolating import interpolate, slerp
from fewstep.editing.latent import inpaint_latents
from fewstep.editing.loops import replacement
from fewstep.editing.operators import (
    Linear,
    Operator,
    Orthogonal,
    colourise,
    deblur,
    enlarged,
    inpaint,
    upscale,
)
from fewstep.editing.optimising import optimise
from fewstep.editing.renoising import denoise, estimated_noise, strokes, vary
from fewstep.editing.restoring import restore
from fewstep.editing.tiles import Tiled

__all__ = [
    "Asked",
    "Linear",
    "Operator",
    "Orthogonal",
    "Tiled",
    "colourise",
    "deblur",
    "denoise",
    "enlarged",
    "estimated_noise",
    "inpaint",
    "inpaint_latents",
    "interpolate",
    "level",
    "noise_level",
    "optimise",
    "replacement",
    "restore",
    "slerp",
    "strokes",
    "upscale",
    "vary",
]
