"""Your own network in your own loop, sampled and saved: `python examples/own_network.py`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import fewstep
from fewstep.contract import data_spec
from fewstep.core import Rng
from fewstep.data import toy
from fewstep.data.order import positions
from fewstep.models import ConsistencyBoundary, Denoiser
from fewstep.objectives.consistency import Consistency, Progressive, SameNoise
from fewstep.objectives.shared.distances import PseudoHuber


class MyNetwork(nn.Module):
    """All that a denoiser asks: the two attributes, and this signature of forward."""

    cond_keys = ()
    two_time = False

    def __init__(self, d: int, width: int = 128) -> None:
        super().__init__()
        layers = [nn.Linear(d + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, d))

    def forward(self, x: Tensor, c_noise: Tensor, s_noise=None, cond=None) -> Tensor:
        return self.net(torch.cat([x, c_noise[:, None]], dim=1))


def main(steps: int = 3000, out: Path = Path("runs/own-network")) -> Tensor:
    torch.manual_seed(0)
    data = toy("two-modes")
    student = Denoiser(MyNetwork(2), ConsistencyBoundary(sigma_data=0.5))
    schedule = Progressive(10, 80, steps, rate=0.0, adaptive=False)
    step = SameNoise(student.path)
    objective = Consistency(student, step, schedule=schedule, distance=PseudoHuber())
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    for k in range(steps):
        batch = data.batch(positions(seed=0, step=k, batch=256, n=len(data)))
        for phase in objective.phases():
            loss = phase.loss(batch, phase.draw(batch, k, Rng(0, k, phase.name)))
            optimizer.zero_grad()
            loss.total().backward()
            optimizer.step()
        objective.after_step(k)

    contract = objective.contract(data_spec(data.shape, data.labels, data.image))
    fewstep.Model(student, contract).save(out)
    return fewstep.load(out, network=MyNetwork(2)).sample(1000)


if __name__ == "__main__":
    samples = main()
    print("mean", samples.mean(0).tolist(), "std", samples.std(0).tolist(), "for 0 and 0.5")
