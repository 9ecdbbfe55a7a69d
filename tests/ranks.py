"""What the tests of several processes run in each of them: a few steps, written down.

``torchrun --nproc-per-node 2 tests/ranks.py OUT``; in one process, call :func:`trained`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import Batch, Rng
from fewstep.data import Arrays, toy
from fewstep.models import (
    EDM,
    AbstractDenoiser,
    ConsistencyBoundary,
    Denoiser,
    FeatureDiscriminator,
    Judge,
)
from fewstep.models.low_rank import learn_adapters
from fewstep.models.nets import DDPMpp, ResidualMLP
from fewstep.objectives.base import Loss, Objective, Phase
from fewstep.objectives.consistency import Consistency, Fixed, SameNoise
from fewstep.objectives.dmd2 import DMD2
from fewstep.objectives.f_distill import FDistill
from fewstep.objectives.ladd import LADD
from fewstep.objectives.progressive import Halving, ProgressiveDistillation
from fewstep.objectives.shared.matching import FewSteps
from fewstep.objectives.shared.weights import karras_weight
from fewstep.objectives.sid import SiD
from fewstep.system.processes import ALONE, World, joined
from fewstep.times import LogNormal
from fewstep.training import checkpoints
from fewstep.training.averages import constant, warmed
from fewstep.training.config import TrainConfig
from fewstep.training.distribution import full
from fewstep.training.trainer import Trainer

STEPS = 4


class Critic(Objective):
    """A generator that climbs a critic, and a critic that scores data above samples.

    ``split`` gives the critic two losses, one at a time, and the generator half the rate.
    """

    def __init__(
        self, student: AbstractDenoiser, critic: AbstractDenoiser, split: bool = False
    ) -> None:
        super().__init__()
        self.student, self.critic, self.split = student, critic, split

    def draw(self, batch: Batch, step: int, rng: Rng) -> Tensor:
        return torch.randn(batch.x0.shape, generator=rng)

    def _sample(self, batch: Batch, noise: Tensor) -> Tensor:
        return self.student(noise * 2, torch.full((len(batch),), 2.0, dtype=torch.float64))

    def _score(self, x: Tensor) -> Tensor:
        return self.critic(x, torch.full((len(x),), 0.5, dtype=torch.float64)).tanh().mean()

    def climb(self, batch: Batch, noise: Tensor) -> Loss:
        return Loss({"climb": -self._score(self._sample(batch, noise))})

    def judge(self, batch: Batch, noise: Tensor) -> Loss:
        fake = self._sample(batch, noise).detach()
        return Loss({"judge": self._score(fake) - self._score(batch.x0)})

    def judge_fake(self, batch: Batch, noise: Tensor) -> Loss:
        return Loss({"fake": self._score(self._sample(batch, noise).detach())})

    def judge_real(self, batch: Batch, noise: Tensor) -> Loss:
        return Loss({"real": -self._score(batch.x0)})

    def phases(self) -> Sequence[Phase]:
        if self.split:
            more = (self.judge_real,)
            return (
                Phase("critic", self.critic, self.draw, self.judge_fake, more=more),
                Phase("student", self.student, self.draw, self.climb, rate=0.5),
            )
        return (
            Phase("critic", self.critic, self.draw, self.judge),
            Phase("student", self.student, self.draw, self.climb),
        )

    def contract(self, data: DataSpec) -> Contract:
        sampling = Sampling(start=Start(t=80.0, std=80.0), kind="renoise", times={1: (80.0,)})
        return Contract(method="critic", data=data, sampling=sampling)


def mlp(seed: int) -> Denoiser:
    torch.manual_seed(seed)
    net = ResidualMLP((2,), 9, 2, dropout=0.1)
    with torch.no_grad():
        net.last.weight.normal_(std=0.3)
    return Denoiser(net, EDM(sigma_data=0.5))


def unet(seed: int) -> Denoiser:
    """As of an augmented teacher: it could read augmentation labels, and is given none."""
    torch.manual_seed(seed)
    net = DDPMpp((1, 8, 8), 8, (1, 1), 1, (4,), dropout=0.1, classes=3, augment=2)
    return Denoiser(net, ConsistencyBoundary(sigma_data=0.5))


def pictures() -> Arrays:
    pixels = torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    return Arrays(pixels.to(torch.uint8).numpy(), torch.arange(40).numpy() % 3)


def judged(name: str) -> Objective:
    """Methods with a judge that looks at one block, or at all of them; on pictures with labels."""
    example, generate = pictures().batch([0, 1]), FewSteps((80.0, 1.0))
    student, teacher, fake = unet(0), unet(1), unet(2)
    if name == "ladd":
        judge = FeatureDiscriminator(teacher, example, width=4, classes=3)
        return LADD(student, judge, generate=generate, times=LogNormal(), penalty=1e-2)
    judge = Judge(fake, example, width=4, at=(2,) if name == "dmd2" else ())
    if name == "sida":
        return SiD(student, teacher, fake, a=1.0, judge=judge, adversarial=0.1)
    weights = {"adversarial": 0.1, "adversarial_critic": 0.1, "penalty": 1.0}
    given = {"generate": generate, "weight": karras_weight(0.5), "critic_updates": 2, **weights}
    return DMD2(student, teacher, fake, judge=judge, **given)


def objective(name: str) -> tuple[Objective, Arrays]:
    if name in {"critic", "split"}:
        return Critic(mlp(0), mlp(1), name == "split"), toy("two-modes", 64)
    if name == "f-distill":  # whose running means are over both ranks
        fake = mlp(1)
        judge = Judge(fake, Batch(torch.zeros(2, 2)), width=4)
        generate, weight = FewSteps((80.0, 1.0)), karras_weight(0.5)
        given = {"generate": generate, "weight": weight, "critic_updates": 1, "rate": 0.5}
        return FDistill(mlp(0), mlp(2), fake, judge, **given), toy("two-modes", 64)
    if name == "progressive":  # a stage ends half the way
        distilled = ProgressiveDistillation(mlp(0), mlp(1), schedule=Halving(2, STEPS // 2))
        return distilled, toy("two-modes", 64)
    if name in JUDGED:
        return judged(name), pictures()
    student = unet(2)
    if name == "adapters":  # which copies of the student share nothing of, where there are shards
        learn_adapters(student.net, 2)
    return Consistency(student, SameNoise(student.path), schedule=Fixed(6, 0.9)), pictures()


NAMES = ("critic", "split", "consistency", "progressive", "f-distill", "adapters")
JUDGED = ("dmd2", "ladd", "sida")


def settings(name: str, parallel: str, **given: object) -> TrainConfig:
    optimizer = "adam" if name in {"critic", "split"} else "radam"
    common = {"steps": STEPS, "batch": 6, "accumulation": 2, "lr": 1e-2, "clip": 0.5}
    common |= {"optimizer": optimizer, "parallel": parallel, "checkpointing": name == "dmd2"}
    return TrainConfig(**(common | given))  # pyright: ignore


def trainer(name: str, parallel: str, world: World, **given: object) -> Trainer:
    learnt, data = objective(name)
    rules = {"slow": warmed(0.99), "fast": constant(0.5)}
    config = settings(name, parallel, **given)
    return Trainer(learnt, data, config, rules, torch.device("cpu"), world)


def found(made: Trainer, losses: Sequence[Tensor]) -> dict[str, Tensor]:
    """Losses, weights of everything, averages, whole."""
    modules = {"objective": made.objective, **made.averages.copies}
    weights = {
        f"{name}.{k}": full(v.detach()).clone()
        for name, module in modules.items()
        for k, v in module.state_dict().items()
    }
    # Phases that are not due say nothing; the rest of their rows is zeros.
    return {"losses": pad_sequence([*losses], batch_first=True), **weights}


def trained(
    name: str, parallel: str = "ddp", world: World = ALONE, steps: int = STEPS, **given: object
) -> tuple[Trainer, dict[str, Tensor]]:
    made = trainer(name, parallel, world, **given)
    losses = []
    while made.step < steps:
        row = world.mean(made.advance())
        losses.append(torch.tensor([row[k] for k in sorted(row)], dtype=torch.float64))
    return made, found(made, losses)


def main(out: Path) -> None:
    with joined() as world:
        for name in (*NAMES, *JUDGED):
            for parallel in ("ddp", "fsdp"):
                _, result = trained(name, parallel, world)
                if world.first:
                    save_file(result, out / f"{name}-{parallel}.safetensors")
        for name in NAMES:
            # Half the way on two ranks, saved in pieces.
            made, _ = trained(name, "fsdp", world, steps=2)
            folder = out / f"{name}-half"
            checkpoints.save(folder, made.step, made.state(), 2, world)
            # A checkpoint of one process, continued on two.
            for parallel in ("ddp", "fsdp"):
                made = trainer(name, parallel, world)
                source = out / f"{name}-one" / "000000002"
                made.load(checkpoints.read(source), source)
                losses = []
                while made.step < STEPS:
                    row = world.mean(made.advance())
                    values = [row[k] for k in sorted(row)]
                    losses.append(torch.tensor(values, dtype=torch.float64))
                result = found(made, losses)
                if world.first:
                    save_file(result, out / f"{name}-{parallel}-on.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
