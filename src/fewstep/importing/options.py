"""What a user says of a checkpoint that its file does not say."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from fewstep.errors import UsageError

Reading = Literal[
    "edm", "consistency", "consistency-plain", "ddpm-linear", "ddpm-cosine", "flow-reversed"
]
"""What a network's output means, and how the model is sampled."""

READINGS = get_args(Reading)


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of an import; None is what the file says.

    Args:
        reading: ``edm`` (a diffusion model with EDM's scalings), ``consistency`` (a consistency
            model with the boundary scalings), ``consistency-plain`` (a consistency model with EDM's
            scalings), ``ddpm-linear`` or ``ddpm-cosine`` (noise prediction on DDPM's 1000 steps),
            or ``flow-reversed`` (a velocity on the linear path, with the data at time 1).
        weights: which network of the file, such as ``ema`` or ``net``.
        resolution: height and width of a picture.
        heads: attention heads of every attention.
        head_channels: channels of an attention head, in place of ``heads``.
        new_attention_order: whether a guided-diffusion network was trained with this flag.
        sigma_data: standard deviation of the data in the scalings.
        sigma_min: the lowest noise level, at which a consistency model's boundary is.
        sigma_max: the highest noise level, at which sampling starts.
        class_names: names of the classes, in the order of their numbers.
        latent: whether samples are latents, which have no range.
    """

    reading: Reading | None = None
    weights: str | None = None
    resolution: int | None = None
    heads: int | None = None
    head_channels: int | None = None
    new_attention_order: bool = False
    sigma_data: float | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    class_names: tuple[str, ...] | None = None
    latent: bool = False

    def __post_init__(self) -> None:
        if self.reading is not None and self.reading not in READINGS:
            raise UsageError(f"--as must be one of {', '.join(READINGS)}, got {self.reading!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                option = field.name.replace("_", "-")
                if not (math.isfinite(value) and value > 0):
                    raise UsageError(f"--{option} must be finite and above 0, got {value}")
        if self.heads is not None and self.head_channels is not None:
            raise UsageError("--heads and --head-channels say the same; give one of them")
        if self.sigma_min and self.sigma_max and self.sigma_min >= self.sigma_max:
            raise UsageError(
                f"--sigma-min must be below --sigma-max, got {self.sigma_min} and {self.sigma_max}"
            )
