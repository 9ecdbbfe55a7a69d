r"""Drifting (arXiv 2602.04770): a generator without a teacher, moved by attraction and repulsion.

One call turns noise into samples $x_i$. Data $y_j$ of the same label attract each of them, and the
other samples repel it; the sum is the drift

$$V_i = \sum_{j, k} a_{ij}\, a_{ik}\, (y_j - x_k),$$

which changes sign when the two sets are swapped and vanishes where they are the same. The student
regresses on itself, moved: $L = \mathrm{mean}\, (x - \mathrm{sg}[x + V])^2$. As in the official
code (``lambertae/drifting``, ``drift_loss.py``, our source for the following):

- lengths are in units of the mean distance r of samples to the samples (themselves included) and
  data of their label, and coordinates in units of $r / \sqrt d$, so that both are of order 1;
- $a$ is the geometric mean of two softmaxes of $-|x_i - y_j| / R$: over what a sample meets, and
  over the samples that a target meets; at least $10^{-3}$. A sample is 100 units away from itself;
- for each temperature R the drift is divided by its root mean square (at least $10^{-4}$), and
  these are added up. Both means are over the whole microbatch, all labels and positions, though the
  code's comments say otherwise.

So the loss is about as large wherever the student is, at most the square of the number of
temperatures, and says nothing of its progress; the logs ``drift/R``, mean squares before that
division, do. Neither is 0 for samples of the right law, only their expected drift is: the learning
rate alone sets the size of the steps.

On features, each position is a problem of its own, and several features are added up. The official
code's guidance (data of all labels that repel) and its bank of samples are not here: a sample meets
the data of its own batch, and of its own ``group`` there, which are neighbours; a label needs
several samples in it (64 in the official runs). Two processes equal two accumulated microbatches,
but neither is one microbatch of twice the size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fewstep.contract import Contract, DataSpec
from fewstep.core import Batch, Rng, UsageError
from fewstep.models import AbstractDenoiser
from fewstep.objectives.base import Capabilities, Loss, Objective, Phase
from fewstep.objectives.shared.collapse import statistics
from fewstep.objectives.shared.matching import FewSteps, Made
from fewstep.paths import Event


class Drifting(Objective):
    """A generator of one call, which trains on data alone.

    Args:
        student: the generator, with any weights.
        generate: the time of its only call, e.g. ``FewSteps((80.0,))``.
        group: number of samples that meet, 2 or more: all of them, if the student reads no labels.
        temperatures: R, in mean distances; the default is the paper's, for features. On data in the
            plane a student whose samples all begin in one place stays there with these, and trains
            with (0.2, 0.5, 1).
        features: a frozen network from samples to one tensor or several, ``(b, *positions,
            channels)``. None takes the samples themselves, which suits few dimensions.
    """

    def __init__(
        self,
        student: AbstractDenoiser,
        *,
        generate: FewSteps,
        group: int = 64,
        temperatures: Sequence[float] = (0.02, 0.05, 0.2),
        features: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if len(generate.times) != 1:
            raise UsageError(f"drifting's generator makes one call, got times {generate.times}")
        if group < 2 or not temperatures or min(temperatures) <= 0:
            raise UsageError(
                "expected a group of 2 or more and temperatures above 0, got "
                f"{group} and {tuple(temperatures)}"
            )
        self.student = student
        self.generate = generate.on(student.path)
        self.group = group
        self.capabilities = Capabilities(batch_multiple=group)
        self.temperatures = tuple(temperatures)
        self.features = None if features is None else features.eval().requires_grad_(False)
        self.frozen = () if features is None else ("features",)

    def draw(self, batch: Batch, step: int, rng: Rng) -> Made:
        """Draw the noise of the samples."""
        if len(batch) % self.group:
            raise UsageError(
                f"drifting needs batches of a multiple of {self.group}, got {len(batch)}"
            )
        return self.generate.draw(batch, rng)

    def loss(self, batch: Batch, draws: Made) -> Loss:
        """Compute the mean square between samples and where they drift to."""
        if batch.mask is not None:
            raise UsageError("drifting compares every sample with every other and takes no masks")
        x = self.generate(self.student, batch, draws, batch.cond)
        with torch.no_grad():
            data = self._features(batch.x0)
        label = torch.zeros(len(batch), dtype=torch.int64, device=x.device)
        if "label" in self.student.cond_keys:
            label = batch.cond["label"]
        label = label.reshape(-1, self.group)
        losses, logs = [], statistics(x, batch)
        for i, (own, other) in enumerate(zip(self._features(x), data, strict=True)):
            there, unit, sizes = drifted(own.detach(), other, label, self.temperatures)
            losses.append(((own / unit - there) ** 2).mean())
            logs |= {f"drift/{r:g}/{i}": s for r, s in zip(self.temperatures, sizes, strict=True)}
        return Loss({"drifting": torch.stack(losses).sum()}, logs)

    def _features(self, x: Event) -> list[Tensor]:
        """Compute the features, each ``(groups, positions, group, channels)``."""
        features = x.flatten(1) if self.features is None else self.features(x)
        several = [features] if isinstance(features, Tensor) else features
        features = [f.to(x.dtype) for f in several]
        shapes = [(-1, self.group, f[0, ..., 0].numel(), f.shape[-1]) for f in features]
        return [f.reshape(shape).transpose(1, 2) for f, shape in zip(features, shapes, strict=True)]

    def phases(self) -> Sequence[Phase]:
        """The student trains at every step."""
        return (Phase("student", self.student, self.draw, self.loss),)

    def contract(self, data: DataSpec) -> Contract:
        """Users generate in one call."""
        return self.generate.contract("drifting", self.student.path, data)


@torch.no_grad()
def drifted(
    x: Tensor, data: Tensor, label: Tensor, temperatures: Sequence[float]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Move samples by their drift, in units of ``unit``.

    Args:
        x: samples at p positions, ``(g, p, n, d)``.
        data: of the same shape.
        label: ``(g, n)``, of both.
        temperatures: R, above 0.

    Returns:
        The moved samples, ``unit``, and the mean square drift at each temperature.
    """
    targets = torch.cat([x, data], 2)
    # Without matrix products, whose rounding would drown the distances of near samples.
    distance = torch.cdist(x, targets, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=1e-4)
    kin = label[:, None, :, None] == label[:, None, None]
    meets = torch.cat([kin, kin], 3).expand_as(distance)
    scale = (distance * meets).sum() / meets.sum()
    unit = (scale / x.shape[-1] ** 0.5).clamp(min=1e-3)
    distance = distance / scale.clamp(min=1e-3)
    distance.diagonal(dim1=2, dim2=3).add_(100)
    there, sizes = x / unit, []
    for temperature in temperatures:
        with torch.autocast(x.device.type, enabled=False):  # large weights that sum to 0
            drift = pulls(distance, meets, temperature) @ targets / unit
        sizes.append(drift.square().mean())
        there = there + drift / sizes[-1].clamp(min=1e-8).sqrt()
    return there, unit, sizes


def pulls(distance: Tensor, meets: Tensor, temperature: float) -> Tensor:
    """Compute the weights of the targets in the drift; they repel in the first half, and sum to 0.

    Args:
        distance: from samples to targets, ``(..., n, 2 n)``.
        meets: which targets a sample meets, of the same shape.
        temperature: R, above 0.
    """
    logits = (-distance / temperature).masked_fill(~meets, -torch.inf)
    near = (logits.softmax(-1) * logits.softmax(-2)).clamp(min=1e-6).sqrt() * meets
    away, towards = near.chunk(2, -1)
    return torch.cat([-away * towards.sum(-1, True), towards * away.sum(-1, True)], -1)
