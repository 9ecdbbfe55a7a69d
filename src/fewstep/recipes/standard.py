"""Recipes on Fashion-MNIST, CIFAR-10 and ImageNet-64: three factories, one recipe a preset."""

from __future__ import annotations

from collections.abc import Callable

from fewstep.recipes.presets import Preset
from fewstep.recipes.trajectories import DistanceName
from fewstep.training.config import Run, TrainConfig


def edm_of(preset: Preset) -> Callable[..., Run]:
    """The recipe of a teacher."""

    def build(
        *,
        labels: bool = preset.labels,
        dropout: float = preset.dropout,
        augment: float = preset.augment,
        sigma_data: float = preset.sigma_data,
        power: tuple[float, ...] = (),
        double_norm: bool = False,
        train: TrainConfig = preset.edm,
    ) -> Run:
        """An EDM diffusion model: a teacher.

        Args:
            labels: tell the model the class.
            dropout: probability.
            augment: probability of each of EDM's augmentations; 0 is none.
            sigma_data: standard deviation of the data.
            power: relative widths of further averages, e.g. 0.05 0.1, by power functions (EDM2);
                with --train.snapshot-every any other width can be made of them afterwards.
            double_norm: blocks normalise the time's scale and shift, as sCM's teachers do.
            train: the trainer's settings.
        """
        from fewstep.recipes import parts

        arguments = {
            "labels": labels,
            "dropout": dropout,
            "augment": augment,
            "sigma_data": sigma_data,
            "power": list(power),
            "double_norm": double_norm,
        }
        data = parts.standard_data(preset.data, labels)
        kind, options = preset.network
        network = parts.network(
            (kind, {**options, "double_norm": double_norm}),
            data,
            dropout=dropout,
            augment=augment > 0,
            seed=train.seed,
        )
        return parts.diffusion(
            preset.named("edm"),
            arguments,
            data,
            network,
            train,
            sigma_data=sigma_data,
            averages=parts.teachers_averages(train, preset.half_life, power),
            label_drop=preset.label_drop,
            augment=parts.edm_augment(augment),
        )

    return build


def cd_of(preset: Preset) -> Callable[..., Run]:
    """The recipe of consistency distillation."""

    def build(
        *,
        teacher: str = f"runs/{preset.named('edm')}",
        labels: bool = preset.labels,
        points: int = preset.points,
        target: float = preset.target,
        distance: DistanceName = preset.distances[0],
        guidance: float = 1.0,
        train: TrainConfig = preset.cd,
    ) -> Run:
        """Distil a teacher into a consistency model.

        Args:
            teacher: a model folder or a run folder of the edm recipe.
            labels: as the teacher's.
            points: N of the Karras grid.
            target: averaging rate of the target network; 0 is the student itself.
            distance: lpips needs the extra of that name; the published runs use it.
            guidance: scale of classifier-free guidance of the teacher; 1 is none.
            train: the trainer's settings.
        """
        from fewstep.recipes import parts

        return parts.distillation(
            preset.named("cd"),
            {
                "teacher": teacher,
                "labels": labels,
                "points": points,
                "target": target,
                "distance": distance,
                "guidance": guidance,
            },
            parts.standard_data(preset.data, labels),
            teacher,
            train,
            schedule=parts.fixed(points, target),
            distance=parts.distance(distance),
            equal=preset.equal,
            guidance=guidance,
            two_steps=preset.two_steps[0],
            averages=parts.ema(*preset.rates, published=preset.equal),
            augment=parts.flip(preset.flip),
        )

    return build


def ct_of(preset: Preset) -> Callable[..., Run]:
    """The recipe of consistency training."""

    def build(
        *,
        labels: bool = preset.labels,
        start: int = preset.scales[0],
        end: int = preset.scales[1],
        start_rate: float = preset.start_rate,
        distance: DistanceName = preset.distances[1],
        sigma_data: float = preset.sigma_data,
        train: TrainConfig = preset.ct,
    ) -> Run:
        """Train a consistency model without a teacher.

        Args:
            labels: tell the model the class.
            start: N at the first step.
            end: N at the last.
            start_rate: first averaging rate of the target network, which follows N; 0 is the
                student itself.
            distance: lpips needs the extra of that name; the published runs use it.
            sigma_data: standard deviation of the data.
            train: the trainer's settings.
        """
        from fewstep.recipes import parts

        data = parts.standard_data(preset.data, labels)
        return parts.consistency_training(
            preset.named("ct"),
            {
                "labels": labels,
                "start": start,
                "end": end,
                "start_rate": start_rate,
                "distance": distance,
                "sigma_data": sigma_data,
            },
            data,
            parts.network(preset.network, data, dropout=0.0, seed=train.seed),
            train,
            sigma_data=sigma_data,
            schedule=parts.growing(start, end, train.steps, start_rate),
            two_steps=preset.two_steps[1],
            averages=parts.ema(*preset.rates, published=preset.equal),
            distance=parts.distance(distance),
            equal=preset.equal,
            augment=parts.flip(preset.flip),
        )

    return build
