"""Images on their way from noise: a row of states and a row of answers for each sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep.errors import UsageError
from fewstep.evaluation.pictures import MARK, picture
from fewstep.plotting.walks import Walk


def strip(
    walks: Sequence[Walk],
    out: Path,
    *,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> int:
    """Write a picture whose columns are the steps of sampling, from noise to the sample.

    The rows of a sample are its states, for each model in turn, and below them the answers of the
    model, where it makes any: its estimates of the clean image. A model of fewer steps has empty
    columns before its sample.

    Args:
        walks: of models of images of one shape, which begin at the same noise.
        out: a .png file.
        decode: makes images of latents.

    Returns:
        The number of columns.

    Raises:
        UsageError: samples are no images, or those of two models differ in shape.
    """
    shapes = {tuple(walk.states.shape[2:]) for walk in walks}
    if len(shapes) > 1:
        raise UsageError(f"the models make samples of different shapes: {sorted(shapes)}")
    columns = max(len(walk.levels) for walk in walks)
    rows: list[Tensor] = []
    for i in range(walks[0].states.shape[1]):
        for walk in walks:
            rows += _row(walk.states[:, i], columns, decode)
            if walk.answers is not None and len(walk.answers) > 1:
                answers = torch.cat([walk.states[:1, i], walk.answers[:, i]])
                rows += _row(answers, columns, decode)
    picture(torch.cat(rows), out, columns, MARK)
    return columns


EMPTY = 72 / 127.5 - 1
"""The value of the frame between images, for places without one."""


def _row(states: Tensor, columns: int, decode: Callable[[Tensor], Tensor] | None) -> list[Tensor]:
    """Noise on the left, the sample on the right, and empty images in columns without a step."""
    images = states if decode is None else decode(states).cpu()
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UsageError(
            f"samples of shape {tuple(images.shape[1:])} are no images of 1 or 3 channels"
        )
    empty = torch.full((columns - len(images), *images.shape[1:]), EMPTY)
    return [images[:1].clamp(-1, 1), empty, images[1:].clamp(-1, 1)]
