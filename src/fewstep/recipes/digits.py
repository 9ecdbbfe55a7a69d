"""Recipes on the bundled digits: teacher, distillation, training from scratch. Minutes on a CPU."""

from __future__ import annotations

from fewstep.training.config import Run, TrainConfig

SIGMA_DATA = 0.75
"""Standard deviation of the training digits (0.752)."""

TWO_STEPS = (80.0, 2.0)
"""Times of a two-step sample."""


def digits_edm(
    *,
    width: int = 256,
    blocks: int = 4,
    dropout: float = 0.15,
    fourier_scale: float = 0.1,
    train: TrainConfig = TrainConfig(  # noqa: B008
        steps=10_000, batch=256, lr=2e-3, schedule="linear", warmup=100, sample_every=2000
    ),
) -> Run:
    """An EDM diffusion model of the digits: the bundled teacher.

    Args:
        width: channels of the residual MLP.
        blocks: its residual blocks.
        dropout: against learning the 1,200 digits by heart.
        fourier_scale: spread of the time embedding's frequencies; methods that differentiate in
            time need a network that is smooth in it.
        train: the trainer's settings.
    """
    from fewstep.recipes import parts, reports

    return parts.diffusion(
        "digits-edm",
        {
            "width": width,
            "blocks": blocks,
            "dropout": dropout,
            "fourier_scale": fourier_scale,
        },
        parts.digits_data(),
        parts.mlp(
            parts.digits_data(),
            width,
            blocks,
            dropout,
            fourier_scale=fourier_scale,
            seed=train.seed,
        ),
        train,
        sigma_data=SIGMA_DATA,
        averages=parts.ema(0.999),
        finish=reports.judged_teacher,
        watch=reports.watched(reports.TEACHER_STEPS),
    )


def digits_cd(
    *,
    teacher: str = "digits-edm",
    points: int = 10,
    train: TrainConfig = TrainConfig(  # noqa: B008
        steps=3000, batch=128, lr=1e-3, schedule="linear", warmup=100, sample_every=1000
    ),
) -> Run:
    """Distil the teacher of the digits into a consistency model: the main example.

    Args:
        teacher: a model folder, a run folder or a bundled name.
        points: N of the Karras grid.
        train: the trainer's settings.
    """
    from fewstep.recipes import parts, reports

    return parts.distillation(
        "digits-cd",
        {"teacher": teacher, "points": points},
        parts.digits_data(),
        teacher,
        train,
        schedule=parts.fixed(points),
        two_steps=TWO_STEPS,
        averages=parts.ema(0.999),
        finish=reports.compared_with_teacher,
        watch=reports.watched(1),
    )


def digits_ct(
    *,
    width: int = 256,
    blocks: int = 4,
    start: int = 10,
    end: int = 40,
    train: TrainConfig = TrainConfig(  # noqa: B008
        steps=6000, batch=128, lr=2e-3, schedule="linear", warmup=100, sample_every=2000
    ),
) -> Run:
    """Train a consistency model of the digits without a teacher.

    Args:
        width: channels of the residual MLP.
        blocks: its residual blocks.
        start: N at the first step.
        end: N at the last.
        train: the trainer's settings.
    """
    from fewstep.recipes import parts, reports

    return parts.consistency_training(
        "digits-ct",
        {"width": width, "blocks": blocks, "start": start, "end": end},
        parts.digits_data(),
        parts.mlp(parts.digits_data(), width, blocks, 0.0, seed=train.seed),
        train,
        sigma_data=SIGMA_DATA,
        schedule=parts.growing(start, end, train.steps),
        two_steps=TWO_STEPS,
        averages=parts.ema(0.999),
        finish=reports.judged_student,
        watch=reports.watched(1),
    )
