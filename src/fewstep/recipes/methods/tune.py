"""Recipes that add new data to a few-step model (Luo et al. 2023, algorithm 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewstep.errors import UsageError
from fewstep.recipes.method import Method, MethodOptions, Objective, Setting, Start
from fewstep.recipes.options import DistanceName
from fewstep.recipes.shared import at_least, distance, pair_weight, per_root_dimension, share

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.paths import Path


@dataclass(frozen=True, kw_only=True)
class Tuning(MethodOptions):
    """Fine-tuning of a few-step model: it learns new data and keeps the number of its steps."""

    points: int = 51
    """Number of times of the grid whose neighbours must agree, at least 2."""
    target: float = 0.95
    """Averaging rate of the target network, in [0, 1); 0 makes the student its own target."""
    distance: DistanceName = "pseudo-huber"
    """Distance of the two answers; lpips needs the extra of that name."""
    c: float = 0.00054
    """Constant of the pseudo-Huber distance of whole samples, over the root of their dimension."""
    edm_weight: bool = False
    """Weigh by 1/t^2 + 1/sigma_data^2 instead of 1/(t - r)."""

    def objective(self, start: Start) -> Objective:
        from fewstep.models import Denoiser
        from fewstep.objectives.tune import Tuning as Objective
        from fewstep.times import DiscreteLogNormal, UniformIndex

        at_least("points", self.points, 2)
        share("target", self.target)
        model = start.model
        if model is None or not isinstance(model.denoiser, Denoiser):
            raise UsageError("this goes on with a model: give a --teacher")
        scalings = model.denoiser.preconditioning
        path, uniform = scalings.path, model.contract.sampling.grid == "uniform"
        return Objective(
            Denoiser(start.student(start.source.path).net, scalings),
            model.contract,
            grid=self._grid(start, path, uniform),
            index=UniformIndex() if uniform else DiscreteLogNormal(),
            rate=self.target,
            weight=pair_weight(start, path, self.edm_weight),
            distance=distance(self.distance, per_root_dimension(self.c, start)),
            drop=start.drop,
        )

    def own_times(self) -> bool:
        """The model keeps the times at which it is sampled."""
        return True

    def _grid(self, start: Start, path: Path, uniform: bool) -> Tensor:
        """Uniform times, such as those of latent consistency models, or Karras' noise levels."""
        import torch

        from fewstep.paths import DiscreteVariancePreserving
        from fewstep.times import karras

        ends = path.t_max, path.t_min
        if uniform:
            grid = torch.linspace(*ends, self.points, dtype=torch.float64)
            if isinstance(path, DiscreteVariancePreserving):
                grid = grid.round()
        else:
            low, high = path.ratio(torch.tensor(ends[::-1], dtype=torch.float64)).tolist()
            levels = start.levels
            noise = karras(self.points, max(low, levels.t_min), min(high, levels.t_max))
            grid = path.time(noise)
        grid[0], grid[-1] = ends
        return grid


SETTINGS = {
    "digits": Setting(train={"lr": 3e-4}),
    "plane": Setting({"c": 0.02}, {"lr": 5e-4}),
    "images": Setting(train={"lr": 1e-4}),
    "small": Setting(train={"lr": 3e-4}),
}

METHODS = (Method("tune", "tuning", 2023, Tuning, SETTINGS, after="ect", tunes=True),)
