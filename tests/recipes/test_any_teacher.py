"""One exact teacher in five parametrisations gives every method the same first loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fewstep as library
from fewstep.contract import data_spec
from fewstep.core import Batch, Rng, expand
from fewstep.data import toy, two_modes
from fewstep.errors import UsageError
from fewstep.model import Model
from fewstep.models import (
    EDM,
    Bounded,
    ConsistencyBoundary,
    DataPrediction,
    Denoiser,
    Flow,
    NoisePrediction,
    Preconditioning,
    Switched,
    VPrediction,
)
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.shared.weights import unweighted
from fewstep.paths import (
    CosineVariancePreserving,
    DiscreteVariancePreserving,
    Linear,
    Path,
    Trig,
    VarianceExploding,
    VariancePreserving,
)
from fewstep.recipes import METHODS, recipe
from fewstep.recipes.start import Start
from fewstep.teachers import read
from fewstep.times import LogNormal
from fewstep.training.train import train
from oracles import normal
from tiny import settings

D = torch.float64
MIXTURE = two_modes()


@dataclass(frozen=True)
class Reading:
    """A parametrisation, and how its network finds the time in what it sees."""

    scalings: Preconditioning
    time: Any


def levels(path: Path) -> Path:
    """The path between EDM's lowest and highest noise levels."""
    low, high = path.time(torch.tensor([0.002, 80.0], dtype=D)).tolist()
    return replace(path, t_min=low, t_max=high)


READINGS = {
    "edm": Reading(EDM(sigma_data=0.5), lambda c: (4 * c).exp()),
    "noise": Reading(NoisePrediction(path=levels(VariancePreserving())), lambda c: c / 999),
    "v": Reading(VPrediction(path=levels(Trig(sigma_data=1.0))), lambda c: c / 999),
    "velocity": Reading(Flow(path=levels(Linear())), lambda c: c),
    "data": Reading(DataPrediction(path=levels(CosineVariancePreserving())), lambda c: c / 999),
}


class Exact(nn.Module):
    """The network whose answer under a reading is the mixture's exact denoiser."""

    cond_keys = ()

    def __init__(self, reading: Reading, two_time: bool) -> None:
        super().__init__()
        self.reading, self.two_time = reading, two_time
        self.last_weight = nn.Parameter(torch.ones((), dtype=D))

    def forward(self, x: Tensor, c_noise: Tensor, s_noise=None, cond=None) -> Tensor:
        t = self.reading.time(c_noise.double())
        scalings = self.reading.scalings
        c_skip, c_out, c_in, _ = scalings.coefficients(t)
        alpha, sigma, _, _ = scalings.path.coefficients(t)
        x = x / expand(c_in, x)
        answer = MIXTURE.denoiser(x, alpha, sigma)
        return (answer - expand(c_skip, x) * x) / expand(c_out, x) * self.last_weight


TWO_TIME = {"ctm", "meanflow", "imm", "shortcut", "flowmap"}
OPTIONS: dict[str, dict[str, Any]] = {
    "dmd": {"regression": 0.0},
    "dmd2": {"adversarial": 0.0},
    "sida": {"adversarial": 0.0},
    "imm": {"group": 4},
    "drifting": {"group": 4},
    "shortcut": {"every": 4},
}
OTHERS = {"ladd", "f-distill", "imm", "kd", "tune"}
"""Judges read features of the network, IMM's kernel its c_out; KD learns from pairs of the teacher,
and tuning goes on with a student.

None of these is a function of the teacher's answers alone.
"""

LEARNING = [n for n in METHODS if n not in OTHERS]


def start(kind: str, name: str) -> Start:
    reading = READINGS[kind]
    denoiser = Denoiser(Exact(reading, name in TWO_TIME), reading.scalings)
    objective = Denoising(denoiser, times=LogNormal(), weight=unweighted)
    model = Model(denoiser, objective.contract(data_spec((2,), 0, False)))
    source = read(model, kind)
    own = {"train": {"steps": 100}, "sigma_data": 0.5}
    return Start(
        recipe=recipe(f"toy-{name}", **OPTIONS.get(name, {}), **own),
        data=toy("two-modes", 64),
        source=source,
        model=model,
        teacher=source if METHODS[name].distils else None,
        drop=None,
    )


def first_losses(kind: str, name: str) -> dict[str, float]:
    begun = start(kind, name)
    objective = begun.recipe.options.objective(begun).double()
    rng = torch.Generator().manual_seed(5)
    batch = Batch(MIXTURE.sample(8, rng).double())
    found = {}
    for phase in objective.phases():
        draws = phase.draw(batch, 50, Rng(0, 50, phase.name))
        draws = draws._replace(
            **{k: v.double() for k, v in draws._asdict().items() if _is_float(v)}
        )
        for i, loss in enumerate(phase.losses):
            torch.manual_seed(0)
            total = loss(batch, phase.prepared(batch, draws))
            for term, value in total.terms.items():
                if (name, term) != ("ctm", "denoising"):  # weighed by gradients of the network
                    found[f"{phase.name} {i} {term}"] = float(value.detach())
    return found


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, float]]:
    return {name: first_losses("edm", name) for name in LEARNING}


@pytest.mark.parametrize("kind", [k for k in READINGS if k != "edm"])
@pytest.mark.parametrize("name", LEARNING)
def test_the_first_loss_is_the_edm_teachers(name, kind, expected):
    own = first_losses(kind, name)
    assert own == pytest.approx(expected[name], rel=1e-9, abs=1e-12)
    assert any(abs(value) > 1e-9 for value in own.values())


@pytest.mark.parametrize("kind", READINGS)
def test_a_bounded_reading_is_the_boundary_of_edm(kind):
    """It is the identity at t_min, and everywhere the consistency function that EDM's would be."""
    path = VarianceExploding()
    x, t = normal(6, 2), torch.tensor([0.002, 0.01, 0.3, 1.0, 9.0, 80.0], dtype=D)
    reading = READINGS[kind]
    bounded = Bounded(path=path, inner=reading.scalings, sigma_data=0.5)
    answer = Denoiser(Exact(reading, False), bounded)(x, t)
    edm = READINGS["edm"]
    plain = Denoiser(Exact(edm, False), ConsistencyBoundary(sigma_data=0.5))(x, t)
    torch.testing.assert_close(answer[0], x[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(answer, plain, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("path", [DiscreteVariancePreserving(), CosineVariancePreserving(0.0, 1.0)])
def test_noise_says_nothing_where_no_signal_is_left(path):
    scalings = NoisePrediction(path=path)
    denoiser = Denoiser(Exact(Reading(scalings, lambda c: c / 999), False), scalings)
    objective = Denoising(denoiser, times=LogNormal(), weight=unweighted)
    model = Model(denoiser, objective.contract(data_spec((2,), 0, False)))
    source = read(model, "x")
    end = torch.tensor([source.path.t_max], dtype=D)
    assert float(source.path.ratio(end)) <= 160
    assert source.preconditioning.coefficients(end).c_out.isfinite()


def test_two_networks_are_no_source():
    edm = READINGS["edm"]
    low, high = (Denoiser(Exact(edm, False), edm.scalings) for _ in range(2))
    objective = Denoising(low, times=LogNormal(), weight=unweighted)
    model = Model(Switched(low, high, 1.0), objective.contract(data_spec((2,), 0, False)))
    with pytest.raises(UsageError, match="x is a Switched of several networks"):
        read(model, "x")


@pytest.mark.parametrize("name", ["cd", "ect", "scd", "ctm", "meanflow", "dmd2", "ladd"])
def test_a_flow_model_is_a_teacher(name, tmp_path_factory, tmp_path):
    teacher = tmp_path_factory.getbasetemp() / "flow"
    few = settings(steps=3, batch=8)
    if not teacher.exists():
        train(recipe("toy-flow", width=8, blocks=1, train=few), teacher)
    run = recipe(f"toy-{name}", teacher=teacher, train=few).build()
    model = train(run, tmp_path / "run")
    assert model.sample(3, seed=1).isfinite().all()
    loaded = library.load(tmp_path / "run", device="cpu")
    assert loaded.sample(3, seed=1).equal(model.sample(3, seed=1))
