"""EDM2's parts in the trainer: learned uncertainty, weights on spheres, power-function average."""

import torch

import fewstep
from fewstep.contract import data_spec
from fewstep.data.digits import digits
from fewstep.model import Model
from fewstep.models import EDM, Denoiser
from fewstep.models.nets.edm2 import EDM2, Uncertainty
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.shared.weights import karras_weight
from fewstep.times import LogNormal
from fewstep.training.checkpoints import read, save
from fewstep.training.config import TrainConfig
from fewstep.training.posthoc import PowerFunction
from fewstep.training.trainer import Trainer

DATA = digits("train")


def trainer() -> Trainer:
    torch.manual_seed(0)
    net = EDM2((1, 8, 8), channels=8, multipliers=(1, 2), blocks=1, attention=(4,), classes=10)
    objective = Denoising(
        Denoiser(net, EDM(sigma_data=0.75)),
        times=LogNormal(-0.4, 1.0),
        weight=karras_weight(0.75),
        uncertainty=Uncertainty(16),
    )
    config = TrainConfig(steps=6, batch=8, lr=0.01, betas=(0.9, 0.99))
    return Trainer(objective, DATA, config, {"ema": PowerFunction(0.1)}, torch.device("cpu"))


def advanced(run: Trainer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        losses.append(float(run.advance()["loss"]))
        run.objective.student.net.normalise_weights()
        run.objective.uncertainty.normalise_weights()
    return losses


def test_it_trains_and_resumes_and_is_saved(tmp_path):
    whole, first, second = trainer(), trainer(), trainer()
    start = first.objective.uncertainty.last.weight.detach().clone()
    losses = advanced(whole, 6)
    advanced(first, 3)
    assert not first.objective.uncertainty.last.weight.equal(start)
    file = save(tmp_path, 3, first.state(), keep=1)
    second.load(read(file), file)
    assert advanced(second, 3) == losses[3:]
    averages = [run.averages.copies["ema"] for run in (whole, second)]
    states = [average.state_dict() for average in averages]
    assert all(states[0][key].equal(states[1][key]) for key in states[0])
    contract = whole.objective.contract(data_spec(DATA.shape, DATA.labels, DATA.image))
    model = Model(averages[0], contract)
    model.save(tmp_path / "model")
    again = fewstep.load(tmp_path / "model").sample(2, steps=2, seed=0, label=3)
    assert again.equal(model.sample(2, steps=2, seed=0, label=3))


def test_the_first_update_is_the_average_s_start():
    run = trainer()
    run.advance()
    pairs = zip(
        run.averages.copies["ema"].parameters(), run.objective.student.parameters(), strict=True
    )
    assert all(a.equal(b) for a, b in pairs)
