"""Recipes for the user's own pictures: a folder or a zip, at any resolution, without any Python."""

from __future__ import annotations

from fewstep.training.config import Run, TrainConfig

SIGMA_DATA = 0.5
"""EDM's value for natural images in [-1, 1]."""

TWO_STEPS = (80.0, 0.821)
"""Times of a two-step sample; the middle one is what CIFAR-10 models use since iCT."""


def edm(
    *,
    data: str,
    resolution: int,
    channels: int = 64,
    multipliers: tuple[int, ...] = (1, 2, 2),
    blocks: int = 2,
    attention: tuple[int, ...] = (16,),
    dropout: float = 0.1,
    labels: bool = True,
    sigma_data: float = SIGMA_DATA,
    train: TrainConfig = TrainConfig(  # noqa: B008
        steps=20_000, batch=64, lr=5e-4, schedule="linear", warmup=500, threads=0
    ),
) -> Run:
    """An EDM diffusion model of a folder of images: a teacher.

    Args:
        data: a folder or zip of images; sub-folders, or dataset.json, are the labels.
        resolution: images are cropped to squares of this side.
        channels: width of the DDPM++ network.
        multipliers: of the width, one a resolution.
        blocks: residual blocks of each resolution.
        attention: heights at which blocks attend.
        dropout: probability.
        labels: use the labels that the data has.
        sigma_data: standard deviation of the data.
        train: the trainer's settings.
    """
    from fewstep.recipes import parts

    arguments = {
        "data": data,
        "resolution": resolution,
        "channels": channels,
        "multipliers": list(multipliers),
        "blocks": blocks,
        "attention": list(attention),
        "dropout": dropout,
        "labels": labels,
        "sigma_data": sigma_data,
    }
    images = parts.image_data(data, resolution, labels)
    network = parts.ddpmpp(
        images, channels, multipliers, blocks, attention, dropout, seed=train.seed
    )
    return parts.diffusion(
        "edm", arguments, images, network, train, sigma_data=sigma_data, averages=parts.ema(0.999)
    )


def cd(
    *,
    data: str,
    resolution: int,
    teacher: str,
    points: int = 18,
    guidance: float = 1.0,
    labels: bool = True,
    train: TrainConfig = TrainConfig(  # noqa: B008
        steps=10_000, batch=64, lr=3e-4, schedule="linear", warmup=100, threads=0
    ),
) -> Run:
    """Distil a teacher of a folder of images into a consistency model.

    Args:
        data: a folder or zip of images, as the teacher's.
        resolution: as the teacher's.
        teacher: a model folder or a run folder, e.g. of the recipe edm.
        points: N of the Karras grid.
        guidance: scale of classifier-free guidance of the teacher, which the student learns; 1 is
            none.
        labels: use the labels that the data has.
        train: the trainer's settings.
    """
    from fewstep.recipes import parts

    return parts.distillation(
        "cd",
        {
            "data": data,
            "resolution": resolution,
            "teacher": teacher,
            "points": points,
            "guidance": guidance,
            "labels": labels,
        },
        parts.image_data(data, resolution, labels),
        teacher,
        train,
        schedule=parts.fixed(points),
        guidance=guidance,
        two_steps=TWO_STEPS,
        averages=parts.ema(0.999),
    )


def ct(
    *,
    data: str,
    resolution: int,
    channels: int = 64,
    multipliers: tuple[int, ...] = (1, 2, 2),
    blocks: int = 2,
    attention: tuple[int, ...] = (16,),
    dropout: float = 0.0,
    labels: bool = True,
    sigma_data: float = SIGMA_DATA,
    start: int = 10,
    end: int = 80,
    train: TrainConfig = TrainConfig(  # noqa: B008
        steps=20_000, batch=64, lr=3e-4, schedule="linear", warmup=100, threads=0
    ),
) -> Run:
    """Train a consistency model of a folder of images without a teacher.

    Args:
        data: a folder or zip of images; sub-folders, or dataset.json, are the labels.
        resolution: images are cropped to squares of this side.
        channels: width of the DDPM++ network.
        multipliers: of the width, one a resolution.
        blocks: residual blocks of each resolution.
        attention: heights at which blocks attend.
        dropout: probability; one mask serves online and target.
        labels: use the labels that the data has.
        sigma_data: standard deviation of the data.
        start: N at the first step.
        end: N at the last.
        train: the trainer's settings.
    """
    from fewstep.recipes import parts

    arguments = {
        "data": data,
        "resolution": resolution,
        "channels": channels,
        "multipliers": list(multipliers),
        "blocks": blocks,
        "attention": list(attention),
        "dropout": dropout,
        "labels": labels,
        "sigma_data": sigma_data,
        "start": start,
        "end": end,
    }
    images = parts.image_data(data, resolution, labels)
    network = parts.ddpmpp(
        images, channels, multipliers, blocks, attention, dropout, seed=train.seed
    )
    return parts.consistency_training(
        "ct",
        arguments,
        images,
        network,
        train,
        sigma_data=sigma_data,
        schedule=parts.growing(start, end, train.steps),
        two_steps=TWO_STEPS,
        averages=parts.ema(0.999),
    )
