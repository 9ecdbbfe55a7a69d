"""Knowledge distillation: the flow map is its solution, from noise and from path states."""

from __future__ import annotations

import pytest
import torch

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError
from fewstep.model import Model
from fewstep.objectives.kd import Draws, KnowledgeDistillation
from fewstep.objectives.shared.distances import PseudoHuber
from fewstep.paths import VarianceExploding
from fewstep.solvers import deterministic
from oracles import (
    PATHS_AT_REST,
    D,
    Gaussian,
    GaussianConsistency,
    GaussianDenoiser,
    GaussianFlowMap,
    Offset,
    Watched,
    full,
    normal,
    path_id,
)

DATA = Gaussian()
paths = pytest.mark.parametrize("path", PATHS_AT_REST, ids=path_id)


def times_of(path, count: int) -> tuple[float, ...]:
    return tuple(path.t_max * (count - i) / count for i in range(count))


def pairs_of(path, times, *event: int) -> Batch:
    """Six exact trajectories, and data that has nothing to do with them."""
    noise = normal(6, *event)
    start = full(times[0], noise)
    x = noise * path.coefficients(start).sigma.reshape(-1, *[1] * len(event))
    ends = [DATA.flow(path, x, start, full(t, noise)) for t in (*times[1:], path.t_min)]
    aux = {"pair_noise": noise, "pair_x": ends[-1]}
    if len(times) > 1:
        aux["pair_path"] = torch.stack(ends[:-1], 1)
    return Batch(normal(6, *event, seed=7), aux=aux)


@paths
@pytest.mark.parametrize("exact", [GaussianConsistency, GaussianFlowMap])
@pytest.mark.parametrize("event", [(2,), (1, 3, 4)])
def test_the_flow_map_has_no_loss(path, exact, event):
    times = times_of(path, 3)
    batch = pairs_of(path, times, *event)
    learnt = KnowledgeDistillation(exact(path), states=times, times=times)
    for call in range(3):
        loss = learnt.loss(batch, Draws(torch.full((6,), call)))
        assert float(loss.total()) < 1e-20
    one = KnowledgeDistillation(exact(path), states=times)
    assert float(one.loss(batch, Draws(torch.zeros(6, dtype=torch.long))).total()) < 1e-20


@paths
@pytest.mark.parametrize("wrong", [{"offset": 0.1}, {"offset": -0.1}, {"scale": 1.2}])
def test_the_gradient_points_home(path, wrong):
    times = times_of(path, 3)
    student = Offset(GaussianConsistency(path), **wrong)
    learnt = KnowledgeDistillation(student, states=times, times=times)
    learnt.loss(pairs_of(path, times, 2), Draws(torch.arange(6) % 3)).total().backward()
    ((name, value),) = wrong.items()
    found = getattr(student, name)
    away = value - (name == "scale")
    assert float(found.grad) * away > 0
    if name == "offset":  # the mean square of a constant
        assert float(found.grad) == pytest.approx(2 * value, rel=1e-9)


def test_a_diffusion_model_is_no_solution():
    path = VarianceExploding()
    times = times_of(path, 2)
    learnt = KnowledgeDistillation(GaussianDenoiser(path), states=times, times=times)
    assert float(learnt.loss(pairs_of(path, times, 2), Draws(torch.arange(6) % 2)).total()) > 1e-3


def test_each_sample_is_asked_its_own_state():
    path, known = VarianceExploding(), (80.0, 10.0, 4.0, 1.0)
    batch = pairs_of(path, known, 2)
    student = Watched(GaussianConsistency(path))
    learnt = KnowledgeDistillation(student, states=known, times=(80.0, 4.0))
    learnt.loss(batch, Draws(torch.tensor([0, 1, 0, 1, 1, 0])))
    ((x, t, s, _),) = student.seen
    assert t.dtype == D
    assert t.tolist() == [80.0, 4.0, 80.0, 4.0, 4.0, 80.0]
    states = batch.aux["pair_path"]
    for i in range(6):
        at_noise = 80 * batch.aux["pair_noise"][i]
        assert torch.equal(x[i], at_noise if t[i] == 80 else states[i, 1])
    assert s.tolist() == [path.t_min] * 6


def test_labels_are_the_pairs_own():
    path = VarianceExploding()
    batch = pairs_of(path, (80.0,), 2)
    mine, theirs = torch.arange(6), torch.arange(6) + 3
    cond = {"label": mine, "view": mine}
    batch = Batch(batch.x0, cond, aux={**batch.aux, "pair_label": theirs})
    student = Watched(GaussianConsistency(path))
    learnt = KnowledgeDistillation(student, states=(80.0,))
    learnt.loss(batch, learnt.draw(batch, 0, Rng(0, 0, "student")))
    told = student.seen[0][3]
    assert torch.equal(told["label"], theirs)
    assert torch.equal(told["view"], mine)


def test_the_distance_is_the_callers():
    path = VarianceExploding()
    batch = pairs_of(path, (80.0,), 2)
    student = Offset(GaussianConsistency(path), offset=0.3)
    learnt = KnowledgeDistillation(student, states=(80.0,), distance=PseudoHuber(0.0))
    loss = learnt.loss(batch, Draws(torch.zeros(6, dtype=torch.long))).terms["kd"]
    assert float(loss.detach()) == pytest.approx(0.3 * 2**0.5)


def test_draws():
    path, times = VarianceExploding(), (80.0, 10.0, 1.0)
    learnt = KnowledgeDistillation(GaussianConsistency(path), states=times, times=times)
    batch = Batch(torch.zeros(6000, 2))
    first, again, other = (learnt.draw(batch, k, Rng(0, k, "student")).call for k in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    share = torch.bincount(first, minlength=3) / 6000
    assert float((share - 1 / 3).abs().max()) < 0.03


def spread_of(x) -> float:
    return float(x.double().std())


def test_only_noise_again_is_exact_in_several_steps():
    """What the contract says; DDIM steps with the same exact answers are 41 % too wide."""
    path, times, data = VarianceExploding(), (80.0, 1.0), Gaussian(0.0, 1.0)
    exact = GaussianConsistency(path, data)
    exact.register_parameter("unused", torch.nn.Parameter(torch.zeros(())))
    learnt = KnowledgeDistillation(exact, states=times, times=times)
    spec = learnt.contract(DataSpec(shape=(2,), range=None))
    sampling = spec.sampling
    assert (spec.method, sampling.kind, sampling.any_times) == ("kd", "renoise", False)
    assert sampling.times == {1: (80.0,), 2: times}
    assert (sampling.start.t, sampling.start.std) == (80.0, 80.0)
    n = 4000
    model = Model(exact, spec)
    assert spread_of(model.sample(n, steps=1)) == pytest.approx(1, abs=0.03)
    assert spread_of(model.sample(n, steps=2)) == pytest.approx(1, abs=0.03)
    wide = deterministic(exact, 80 * normal(n, 2), torch.tensor(times, dtype=D))
    assert spread_of(wide) == pytest.approx(1.405, abs=0.04)
    with pytest.raises(UsageError, match="made for"):
        model.sample(1, steps=3)


@pytest.mark.parametrize("times", [(80.0, 5.0), (10.0,), (1.0, 80.0), ()])
def test_times_that_the_pairs_do_not_know(times):
    with pytest.raises(UsageError, match="times"):
        KnowledgeDistillation(
            GaussianConsistency(VarianceExploding()), states=(80.0, 10.0), times=times
        )


@pytest.mark.parametrize("key", ["pair_noise", "pair_x", "pair_path"])
@pytest.mark.parametrize("cut", [False, True])
def test_a_batch_without_pairs(key, cut):
    times = (80.0, 10.0, 1.0)
    path = VarianceExploding()
    learnt = KnowledgeDistillation(GaussianConsistency(path), states=times, times=times)
    batch = pairs_of(path, times, 2)
    aux = {k: v for k, v in batch.aux.items() if k != key}
    if cut:
        aux[key] = batch.aux[key][:, :1]
    with pytest.raises(UsageError, match=rf"{key}.*fewstep data pairs"):
        learnt.loss(Batch(batch.x0, aux=aux), Draws(torch.arange(6) % 3))
