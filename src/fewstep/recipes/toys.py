"""Recipes on points in the plane, where the truth is known. Seconds to a minute on a CPU."""

from __future__ import annotations

from fewstep.training.config import Run, TrainConfig

SIGMA_DATA = 0.5
"""The toys are scaled to it."""

TWO_STEPS = (80.0, 0.5)
"""Times of a two-step sample."""


def toy_edm(
    *,
    data: str = "two-modes",
    width: int = 128,
    blocks: int = 3,
    fourier_scale: float = 0.1,
    train: TrainConfig = TrainConfig(  # noqa: B008
        steps=3000, batch=512, lr=2e-3, schedule="linear", warmup=100, sample_every=1000
    ),
) -> Run:
    """An EDM diffusion model of points in the plane: a teacher.

    Args:
        data: two-modes, eight-gaussians, gaussian, checkerboard, moons or swiss-roll.
        width: channels of the residual MLP.
        blocks: its residual blocks.
        fourier_scale: spread of the time embedding's frequencies; methods that differentiate in
            time need a network that is smooth in it.
        train: the trainer's settings.
    """
    from fewstep.recipes import parts

    points = parts.toy_data(data)
    return parts.diffusion(
        "toy-edm",
        {"data": data, "width": width, "blocks": blocks, "fourier_scale": fourier_scale},
        points,
        parts.mlp(points, width, blocks, 0.0, fourier_scale=fourier_scale, seed=train.seed),
        train,
        sigma_data=SIGMA_DATA,
        averages=parts.ema(0.999),
    )


def toy_cd(
    *,
    teacher: str,
    data: str = "two-modes",
    points: int = 18,
    train: TrainConfig = TrainConfig(  # noqa: B008
        steps=3000, batch=256, lr=1e-3, schedule="linear", warmup=100, sample_every=1000
    ),
) -> Run:
    """Distil a teacher of points in the plane into a consistency model.

    Args:
        teacher: a run of toy-edm on the same data.
        data: as the teacher's.
        points: N of the Karras grid.
        train: the trainer's settings.
    """
    from fewstep.recipes import parts

    return parts.distillation(
        "toy-cd",
        {"teacher": teacher, "data": data, "points": points},
        parts.toy_data(data),
        teacher,
        train,
        schedule=parts.fixed(points),
        two_steps=TWO_STEPS,
        averages=parts.ema(0.999),
    )


def toy_ct(
    *,
    data: str = "two-modes",
    width: int = 128,
    blocks: int = 3,
    fourier_scale: float = 0.1,
    start: int = 10,
    end: int = 640,
    c: float = 0.01,
    train: TrainConfig = TrainConfig(  # noqa: B008
        steps=5000, batch=256, lr=1e-3, schedule="linear", warmup=100, sample_every=2000
    ),
) -> Run:
    """Train a consistency model of points in the plane without a teacher.

    Args:
        data: two-modes, eight-gaussians, gaussian, checkerboard, moons or swiss-roll.
        width: channels of the residual MLP.
        blocks: its residual blocks.
        fourier_scale: spread of the time embedding's frequencies.
        start: N at the first step.
        end: N at the last.
        c: of the pseudo-Huber distance, over the root of the dimension; with little of it the
            distance is the norm, whose best answer is a median.
        train: the trainer's settings.
    """
    from fewstep.objectives.distances import PseudoHuber
    from fewstep.recipes import parts

    points = parts.toy_data(data)
    return parts.consistency_training(
        "toy-ct",
        {
            "data": data,
            "width": width,
            "blocks": blocks,
            "fourier_scale": fourier_scale,
            "start": start,
            "end": end,
            "c": c,
        },
        points,
        parts.mlp(points, width, blocks, 0.0, fourier_scale=fourier_scale, seed=train.seed),
        train,
        sigma_data=SIGMA_DATA,
        schedule=parts.growing(start, end, train.steps),
        two_steps=TWO_STEPS,
        averages=parts.ema(0.999),
        distance=PseudoHuber(c * 2**0.5),
    )
