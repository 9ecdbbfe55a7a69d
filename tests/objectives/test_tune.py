"""Fine-tuning of few-step models: the loss of its paper, what is kept, and what is learned."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fewstep as library
from fewstep.contract import Contract, DataSpec, Guidance, Sampling, Start
from fewstep.core import Batch, Rng
from fewstep.data import toy
from fewstep.errors import UsageError
from fewstep.models import ConsistencyBoundary, Denoiser
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.lcm import Draws as LatentDraws
from fewstep.objectives.lcm import LatentConsistency
from fewstep.objectives.shared.discrete import SameNoise
from fewstep.objectives.shared.distances import l2
from fewstep.objectives.shared.weights import karras_weight
from fewstep.objectives.tune import Draws, Tuning
from fewstep.paths import DiscreteVariancePreserving
from fewstep.recipes import METHODS, STUDENTS, recipe
from fewstep.times import LogNormal, strided
from fewstep.training.averages import warmed
from fewstep.training.config import Run, TrainConfig
from fewstep.training.train import train
from oracles import D, Gaussian, GaussianConsistency, Offset, four_points
from small_nets import shaken
from tiny import fewstep, trained

GRID = strided(50)
PATH = replace(DiscreteVariancePreserving(), t_min=0.0, t_max=999.0)
DATA = DataSpec(shape=(2,), labels=0, range=None)
SAMPLING = Sampling(
    start=Start(t=999.0, std=PATH.start_std()),
    kind="renoise",
    times={1: (999.0,), 2: (999.0, 499.0)},
    any_times=True,
    grid="uniform",
)
MADE = Contract(method="lcm", data=DATA, sampling=SAMPLING)
OLD, NEW = Gaussian(0.3, 0.7), Gaussian(0.8, 0.7)


def tuning(student, made: Contract = MADE, **given) -> Tuning:
    return Tuning(student, made, **{"grid": GRID, "rate": 0.0, "distance": l2, **given})


def every_pair(x0, noise) -> tuple[Batch, Draws]:
    """All intervals of the grid, each with all the points."""
    n, m = len(GRID) - 1, len(x0)
    t, r = GRID[:-1].repeat_interleave(m), GRID[1:].repeat_interleave(m)
    return Batch(x0.repeat(n, 1)), Draws(t, r, noise.repeat(n, 1))


def test_the_loss_is_that_of_latent_consistency_fine_tuning():
    batch, draws = every_pair(*four_points(NEW, 2))
    student = GaussianConsistency(PATH, OLD)
    other = LatentConsistency(student, SameNoise(PATH), grid=GRID, distance=l2)
    ours = tuning(student).loss(batch, draws).total()
    assert ours.item() > 1e-6
    theirs = other.loss(batch, LatentDraws(*draws)).total()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_one_sample_has_one_answer():
    class Point(GaussianConsistency):
        def forward(self, x, t, s=None, cond=None):
            data = Gaussian(0.3, 1e-12)
            return data.flow(PATH, x, t, torch.full_like(t, PATH.t_min))

    x0 = torch.full((4, 2), 0.3, dtype=D)
    batch, draws = every_pair(x0, four_points(NEW, 2)[1])
    assert tuning(Point(PATH)).loss(batch, draws).total().item() < 1e-15


def gradient(student_of: Gaussian) -> float:
    """Of an offset to the consistency function of some data, on the new data."""
    student = Offset(GaussianConsistency(PATH, student_of), ramp=lambda t: t / PATH.t_max)
    batch, draws = every_pair(*four_points(NEW, 2))
    tuning(student).loss(batch, draws).total().backward()
    assert student.offset.grad is not None
    return float(student.offset.grad)


def test_the_gradient_points_to_the_new_data():
    assert gradient(OLD) < -1e-4
    assert gradient(Gaussian(1.3, 0.7)) > 1e-4
    assert abs(gradient(NEW)) < 1e-2 * abs(gradient(OLD))


def net(**options) -> Denoiser:
    made = shaken(ResidualMLP((2,), width=8, blocks=1, **options))
    return Denoiser(made, ConsistencyBoundary(sigma_data=0.5))  # pyright: ignore


def test_pairs_are_neighbours_of_the_grid_and_the_target_follows():
    student = net().double()
    grid = torch.tensor([80.0, 5.0, 1.0, 0.002], dtype=D)
    made = replace_sampling(t=80.0)
    objective = tuning(student, made, grid=grid, rate=0.75)
    draws = objective.draw(Batch(torch.zeros(64, 2)), 0, Rng(0, 0, "student", 0))
    pairs = {*zip(draws.t.tolist(), draws.r.tolist(), strict=True)}
    assert pairs == {(80.0, 5.0), (5.0, 1.0), (1.0, 0.002)}
    assert objective.target is not None
    before = copy.deepcopy(objective.target.state_dict())
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    objective.after_step(0)
    for name, value in objective.target.named_parameters():
        torch.testing.assert_close(value, before[name] + 0.25)


def test_the_earlier_answer_is_the_targets():
    student, t, r = net().double(), torch.tensor([80.0], dtype=D), torch.tensor([5.0], dtype=D)
    grid = torch.tensor([80.0, 5.0, 0.002], dtype=D)
    objective = tuning(student, replace_sampling(t=80.0), grid=grid, rate=0.75)
    x0, noise = torch.full((1, 2), 0.3, dtype=D), torch.full((1, 2), -0.7, dtype=D)
    target = objective.target
    assert target is not None
    with torch.no_grad():
        for p in target.parameters():
            p.mul_(2.0)
        earlier = target(x0 + 5.0 * noise, r)
    later = student(x0 + 80.0 * noise, t)
    loss = objective.loss(Batch(x0), Draws(t, r, noise)).total()
    torch.testing.assert_close(loss, l2(later, earlier).mean())
    assert (student(x0 + 5.0 * noise, r) - earlier).abs().max() > 1e-3


def replace_sampling(t: float, **given) -> Contract:
    sampling = Sampling(
        start=Start(t=t, std=t), kind="renoise", times={1: (t,)}, any_times=True, **given
    )
    return MADE.model_copy(update={"sampling": sampling, "method": "ect"})


def test_the_model_is_sampled_as_it_was():
    found = tuning(GaussianConsistency(PATH, OLD)).contract(DATA)
    assert found.sampling == SAMPLING
    assert found.method == "tune"


def test_a_student_that_reads_a_scale_is_given_scales_of_its_range():
    guidance = Guidance(kind="embedded", min=3.0, max=7.0)
    made = replace_sampling(80.0, guidance=guidance)
    grid = torch.tensor([80.0, 1.0, 0.002], dtype=D)

    class Reads(GaussianConsistency):
        cond_keys = ("guidance",)
        seen: tuple = ()

        def forward(self, x, t, s=None, cond=None):
            assert cond is not None
            self.seen = (*self.seen, cond["guidance"])
            return super().forward(x, t, s)

    student = Reads(net().path, OLD)
    objective = tuning(student, made, grid=grid)
    batch = Batch(torch.zeros(64, 2, dtype=D))
    draws = objective.draw(batch, 0, Rng(0, 0, "student", 0))
    objective.loss(batch, draws)
    target, online = student.seen
    assert target.equal(online)
    assert 3 <= online.min() < 4 < 6 < online.max() <= 7


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"rate": 1.0}, "rate must lie in"),
        ({"grid": GRID.flip(0)}, "the grid must descend from 999.0 to 0.0"),
        ({"grid": GRID[:-1]}, "the grid must descend"),
    ],
)
def test_what_cannot_be(given, says):
    with pytest.raises(UsageError, match=says):
        tuning(GaussianConsistency(PATH, OLD), **given)


def test_it_is_no_entrant_of_comparisons():
    assert "tune" not in STUDENTS
    assert "ect" in STUDENTS
    assert METHODS["tune"].tunes


def test_one_command_goes_on_with_a_students_model(capsys, tmp_path):
    """Any consistency model will do, by --model or by --teacher, whole or with adapters."""
    teacher = trained(tmp_path / "edm", "toy-edm", steps=2)
    student = trained(tmp_path / "cd", "toy-cd", teacher=str(teacher), steps=2)
    words = (
        *("--data", "moons", "--train.steps", 2, "--train.batch", 8),
        "--train.sample-every",
        0,
    )
    for more in ((), ("--lora", 1)):
        out = tmp_path / f"tune{len(more)}"
        done = fewstep(capsys, "train", "toy-tune", "--model", student, *words, "--out", out, *more)
        assert done.code == 0, done.err
        made, before = (library.load(place, device="cpu") for place in (out, student))
        assert made.contract.sampling == before.contract.sampling
        assert made.contract.method == "tune"
        assert (made.adapter is not None) == bool(more)
        assert made.sample(2, steps=1).isfinite().all()
        again = tmp_path / f"again{len(more)}"
        done = fewstep(capsys, "train", "toy-tune", "--teacher", out, *words, "--out", again)
        assert done.code == 0, done.err
    done = fewstep(capsys, "train", "toy-tune", "--model", teacher, *words, "--out", tmp_path / "x")
    assert done.code == 2
    assert "is a edm model; tuning goes on with a consistency model" in done.err
    given = ("--captions", "x.jsonl", "--out", tmp_path / "x")
    done = fewstep(capsys, "train", "toy-tune", "--model", student, *words, *given)
    assert done.code == 2
    assert "reads no captions" in done.err


# What is learned.


def energy_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of two sets of samples (Szekely & Rizzo 2013)."""
    across, within = torch.cdist(a, b).mean(), torch.cdist(a, a).mean() + torch.cdist(b, b).mean()
    return float((2 * across - within).clamp(min=0).sqrt())


@pytest.mark.slow
def test_tuning_keeps_the_steps_and_denoising_loses_them(tmp_path: Path):
    """A student of two modes learns moons: at one call, and at four."""
    steps = {"steps": 1000, "batch": 128, "lr": 1e-3, "schedule": "linear", "sample_every": 0}

    def taught(name: str, out: str, **given) -> library.Model:
        return train(replace(recipe(name, **given).build(), finish=None), tmp_path / out)

    taught("toy-edm", "edm", train=steps)
    taught("toy-ect", "ect", teacher=str(tmp_path / "edm"), train={**steps, "clip": 10.0})
    before = library.load(tmp_path / "ect", device="cpu")
    few = {**steps, "lr": 5e-4}
    tuned = taught("toy-tune", "tune", teacher=str(tmp_path / "ect"), data="moons", train=few)

    student = copy.deepcopy(before.denoiser).train().requires_grad_(True)
    assert isinstance(student, Denoiser)
    plain = Denoising(student, times=LogNormal(-1.2, 1.2), weight=karras_weight(0.5))
    run = Run(
        recipe="plain",
        arguments={},
        objective=plain,
        data=toy("moons"),
        config=TrainConfig(**few),
        averages={"ema": warmed(0.999)},
    )
    train(run, tmp_path / "plain")
    weights = library.load(tmp_path / "plain", device="cpu").denoiser.state_dict()
    blurred = library.Model(copy.deepcopy(before.denoiser), before.contract)
    blurred.denoiser.load_state_dict(weights)

    fresh = toy("moons", 2000, seed=1).batch(range(2000)).x0
    found = {
        name: [energy_distance(model.sample(2000, steps=n, seed=2), fresh) for n in (1, 4)]
        for name, model in (("before", before), ("tuned", tuned), ("plain", blurred))
    }
    rows = [f"{name}: {one:.3f} at 1 call, {four:.3f} at 4" for name, (one, four) in found.items()]
    print("\n" + "\n".join(rows))
    for calls in (0, 1):
        assert found["tuned"][calls] < found["before"][calls] / 2
        assert found["tuned"][calls] < found["plain"][calls] / 1.5
