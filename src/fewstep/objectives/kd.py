r"""Knowledge distillation from a teacher's trajectories (Luhman & Luhman 2021).

A deterministic sampler of the teacher maps noise to a sample, and the student regresses on that map
in one call. With stored states $x_{t_j}$ of the sampler's path from each noise to its sample $x$,
the student starts from any of them:

$$L = E_j[ d( f_\theta(x_{t_j}, t_j),\ x ) ], \qquad x_{t_0} = \sigma_{t_0} \epsilon.$$

FastGen has half the mean square; here the factor is d's. Pairs come with the batch, see
:class:`fewstep.data.Pairs`; the loss uses nothing else of it.

How users may generate with a student of several steps: at every $t_j$ the states are distributed
as noised data, and f takes each of them to the end of its path, so the exact f is a consistency
function. Fresh noise on its answer gives the distribution of the states at the next time, so
``renoise`` is exact. A DDIM step with its answer is not: it keeps the noise that the end of the
path implies, where the path itself bends. For N(0, c^2) on noise levels, with c = 1 that step from
t = 80 to t = 1 has a standard deviation of 1.99 instead of 1.41, and the exact f makes 1.41 of it,
not 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.contract import Contract, DataSpec
from fewstep.core import Batch, Rng, UsageError, expand, widest
from fewstep.models import AbstractDenoiser
from fewstep.objectives.base import Loss, Objective, Phase
from fewstep.objectives.shared.distances import Distance, l2
from fewstep.objectives.shared.matching import FewSteps, answered
from fewstep.paths import Event


class Draws(NamedTuple):
    """The index of one of the student's times for each sample, ``(b,)``."""

    call: Tensor


class KnowledgeDistillation(Objective):
    """A student that regresses on the teacher's samples, given their noise.

    Args:
        student: on the path of the pairs.
        states: the times of the pairs, ``Pairs.times``: that of the noise, then those of the path.
        times: the times of the student's calls, some of these and the first; by default the first
            alone.
        distance: d of answer and sample.

    Raises:
        UsageError: the pairs or the path do not have one of the times.
    """

    def __init__(
        self,
        student: AbstractDenoiser,
        *,
        states: Sequence[float],
        times: Sequence[float] | None = None,
        distance: Distance = l2,
    ) -> None:
        super().__init__()
        self.student = student
        self.states = tuple(states)
        calls = FewSteps(self.states[:1] if times is None else tuple(times))
        self.generate = calls.on(student.path)
        self.distance = distance
        self.frozen = ("distance",) if isinstance(distance, torch.nn.Module) else ()
        own = self.generate.times
        unknown = [t for t in own if t not in self.states]
        if unknown or own[0] != self.states[0]:
            raise UsageError(
                f"the student's times {own} must begin where the noise does, and be among those "
                f"of the pairs, {self.states}; choose of these, or make pairs with fewstep data "
                "pairs --paths"
            )
        self.columns = [self.states.index(t) for t in own]

    def draw(self, batch: Batch, step: int, rng: Rng) -> Draws:
        """Draw one of the student's times for each sample."""
        calls = len(self.generate.times)
        return Draws(torch.randint(calls, (len(batch),), generator=rng, device=rng.device))

    def loss(self, batch: Batch, draws: Draws) -> Loss:
        """Average the distance of answers and samples over the batch."""
        pairs = self._pairs(batch)
        named = {key.removeprefix("pair_"): value for key, value in pairs.items()}
        own = {k.removeprefix("cond_"): v for k, v in named.items() if k.startswith("cond_")}
        own |= {"label": named["label"]} if "label" in named else {}
        device = batch.x0.device
        times = torch.tensor(self.generate.times, dtype=widest(device), device=device)
        column = torch.tensor(self.columns, device=device)[draws.call]
        x, t = self._asked(pairs, column), times[draws.call]
        answer = answered(self.student, x, t, {**batch.cond, **own})
        return Loss({"kd": self.distance(answer, pairs["pair_x"], None).mean()})

    def _asked(self, pairs: dict[str, Tensor], column: Tensor) -> Event:
        """Return the noise at its time (column 0), or a state of the path (column 1 and more)."""
        noise = pairs["pair_noise"]
        first = torch.full_like(column, self.states[0], dtype=widest(column.device))
        start = expand(self.student.path.coefficients(first).sigma, noise) * noise
        if len(self.columns) == 1:
            return start
        rows = torch.arange(len(column), device=column.device)
        state = pairs["pair_path"][rows, (column - 1).clamp(min=0)]
        return torch.where(expand(column == 0, start), start, state)

    def _pairs(self, batch: Batch) -> dict[str, Tensor]:
        wanted = {"pair_noise": batch.x0.shape, "pair_x": batch.x0.shape}
        if len(self.columns) > 1:
            b, *event = batch.x0.shape
            wanted["pair_path"] = torch.Size([b, len(self.states) - 1, *event])
        for name, shape in wanted.items():
            if name not in batch.aux or batch.aux[name].shape != shape:
                given = tuple(batch.aux[name].shape) if name in batch.aux else "nothing"
                raise UsageError(
                    f"expected aux[{name!r}] of shape {tuple(shape)} in the batch, got {given}; "
                    "make pairs with fewstep data pairs and train on Pairs(folder), or on "
                    "Paired(data, Pairs(folder))"
                )
        return dict(batch.aux)

    def phases(self) -> Sequence[Phase]:
        """The student trains at every step."""
        return (Phase("student", self.student, self.draw, self.loss),)

    def contract(self, data: DataSpec) -> Contract:
        """Users may generate in all calls, or in the first few, with fresh noise between them."""
        return self.generate.contract("kd", self.student.path, data)
