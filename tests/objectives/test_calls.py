"""A generator's calls in training: from which noise, at which level, and with whose randomness."""

from __future__ import annotations

import pytest
import torch

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng
from fewstep.models import AbstractDenoiser
from fewstep.objectives.shared.matching import FewSteps, Made
from fewstep.paths import Linear, Trig, VarianceExploding, VariancePreserving
from oracles import GaussianDenoiser, GaussianFlowMap, Watched, full, normal

# No path's noise level at a time is the time, but for one.
PATHS = [
    (VarianceExploding(0.002, 80.0), (80.0, 5.0, 0.4)),
    (VariancePreserving(1e-3, 1.0), (1.0, 0.6, 0.2)),
    (Linear(0.01, 0.9), (0.9, 0.5, 0.3)),
    (Trig(0.01, 1.5, sigma_data=0.5), (1.5, 0.9, 0.3)),
]
each_path = pytest.mark.parametrize(("path", "times"), PATHS, ids=lambda v: getattr(v, "t_max", ""))


def sigma(path, t: float) -> float:
    return float(path.coefficients(torch.tensor([t], dtype=torch.float64)).sigma)


@each_path
@pytest.mark.parametrize("call", [0, 1, 2])
@pytest.mark.parametrize("oracle", [GaussianDenoiser, GaussianFlowMap])
def test_what_a_call_is_asked_is_what_sampling_would_ask(path, times, call, oracle):
    student, noise = Watched(oracle(path)), normal(3, 4, 2)
    made = Made(noise, torch.tensor(call))
    batch = Batch(normal(4, 2, seed=1))
    cond = {"label": torch.arange(4)}
    out = FewSteps(times)(student, batch, made, cond)
    assert [seen[1].tolist() for seen in student.seen] == [[t] * 4 for t in times[: call + 1]]
    assert all(seen[3] is cond for seen in student.seen)

    def answer(x: torch.Tensor, t: float) -> torch.Tensor:
        model: AbstractDenoiser = oracle(path)
        at, end = full(t, x), full(path.t_min, x)
        return model.jump(x, at, end) if model.two_time else model(x, at, end)

    x = sigma(path, times[0]) * noise[0]
    for i in range(call):
        x = path.renoise(answer(x, times[i]), noise[i + 1], full(times[i + 1], x))
    torch.testing.assert_close(student.seen[-1][0], x)
    torch.testing.assert_close(out, answer(x, times[call]))


@each_path
@pytest.mark.parametrize("call", [0, 1, 2])
def test_noised_inputs_are_data_with_the_noise_of_their_call(path, times, call):
    student, noise, x0 = Watched(GaussianDenoiser(path)), normal(3, 4, 2), normal(4, 2, seed=1)
    FewSteps(times, inputs="noised")(student, Batch(x0), Made(noise, torch.tensor(call)), {})
    t = full(times[call], x0)
    wanted = path.perturb(x0, noise[call], t) if call else sigma(path, times[0]) * noise[0]
    ((x, at, *_),) = student.seen
    torch.testing.assert_close(x, wanted)
    assert at.equal(t)


def test_all_shards_make_the_same_call_from_noise_of_their_own():
    calls, batch = FewSteps((80.0, 5.0, 0.4)), Batch(torch.zeros(4, 2))
    drawn = [
        [calls.draw(batch, Rng(0, step, "student", shard)) for shard in range(4)]
        for step in range(12)
    ]
    for made in drawn:
        assert len({int(m.call) for m in made}) == 1
        assert len({m.noise.numpy().tobytes() for m in made}) == 4
    assert {int(made[0].call) for made in drawn} == {0, 1, 2}


@each_path
def test_sampling_starts_where_training_does(path, times):
    sampling = FewSteps(times).contract("made", path, DataSpec(shape=(2,))).sampling
    assert sampling.start.t == times[0]
    assert sampling.start.std == pytest.approx(sigma(path, times[0]), rel=1e-12)
    assert sampling.times == {n: times[:n] for n in (1, 2, 3)}
