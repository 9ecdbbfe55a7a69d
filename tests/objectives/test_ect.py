import math

import pytest
import torch
from scipy import stats
from torch import nn

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError, expand
from fewstep.model import Model, load
from fewstep.models import EDM, AbstractDenoiser, ConsistencyBoundary, Denoiser
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.ect import Curriculum, Draws, EasyConsistency, SameNoise, TeacherStep
from fewstep.objectives.shared.distances import PseudoHuber, l2
from fewstep.objectives.shared.drop import ConditionDrop
from fewstep.paths import (
    CosineVariancePreserving,
    DiscreteVariancePreserving,
    Linear,
    Trig,
    VarianceExploding,
    VariancePreserving,
)
from fewstep.solvers import euler
from oracles import (
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
    slope,
)
from small_nets import shaken

DATA = Gaussian(0.3, 0.7)
POINT = Gaussian(0.3, 0.0)
VE = VarianceExploding(0.0, 10.0)
PATHS = [
    VE,
    VariancePreserving(0.0, 1.0),
    CosineVariancePreserving(0.0, 0.9),
    Linear(0.0, 0.9),
    Trig(0.0, 1.4),
]
CURRICULUM = Curriculum(every=10)
each_path = pytest.mark.parametrize("path", PATHS, ids=path_id)
each_event = pytest.mark.parametrize("event", [(2,), (1, 8, 8)], ids=str)


def follow_the_flow(denoiser, x, t, s, cond):
    """A solver without error."""
    return DATA.flow(denoiser.path, x, t, s)


def ect(student: AbstractDenoiser, step=None, **kwargs) -> EasyConsistency:
    given = {"curriculum": CURRICULUM, "boundary": 0.0, **kwargs}
    return EasyConsistency(student, step or SameNoise(student.path), **given)


def distilled(student: AbstractDenoiser, solver=follow_the_flow, **kwargs) -> EasyConsistency:
    return ect(student, TeacherStep(GaussianDenoiser(student.path, DATA), solver), **kwargs)


def pairs(path, b: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    t = torch.linspace(0.05, 1.0, b, dtype=D) * path.t_max
    return t, CURRICULUM(t, step)


def loss_of(objective, x0, t, r, noise):
    return objective.loss(Batch(x0), Draws(t, r, noise)).total()


def mlp(dropout: float = 0.0, **kwargs) -> Denoiser:
    net = shaken(ResidualMLP((2,), width=16, blocks=1, dropout=dropout))
    given = {"sigma_data": 0.5, "path": VarianceExploding(0.0, 80.0), **kwargs}
    return Denoiser(net, EDM(**given))


# At the exact solution, and from a wrong one.


@each_event
@each_path
def test_distillation_is_zero_at_the_exact_function(path, event):
    x0, noise = normal(2, 6, *event)
    for step in (0, 10, 70):
        t, r = pairs(path, 6, step)
        assert bool((r == 0).any()) or step > 0
        for distance in (PseudoHuber(0.0), PseudoHuber(0.06), l2):
            objective = distilled(GaussianConsistency(path, DATA), distance=distance)
            assert float(loss_of(objective, x0, t, r, noise)) < 1e-10


@each_path
def test_training_is_zero_on_a_single_point(path):
    # There every noisy sample stays on its trajectory.
    x0, noise = torch.full((6, 2), POINT.mean, dtype=D), normal(6, 2)
    for step in (0, 20, 70):
        t, r = pairs(path, 6, step)
        found = loss_of(ect(GaussianConsistency(path, POINT)), x0, t, r, noise)
        assert float(found) < 1e-10


def test_training_is_biased_by_the_first_order_of_the_gap():
    x0, noise = normal(2, 64, 2)
    gaps = [0.1, 0.05, 0.025]
    objective = ect(GaussianConsistency(VE, DATA), weight=lambda t, r: torch.ones_like(t))
    losses = [float(loss_of(objective, x0, full(2, x0), full(2 - d, x0), noise)) for d in gaps]
    assert slope(gaps, losses) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    "distance", [PseudoHuber(0.0), PseudoHuber(0.06), l2], ids=["norm", "huber", "l2"]
)
@pytest.mark.parametrize("make", [distilled, lambda s, **k: distilled(s, euler, **k), ect])
def test_the_gradient_points_home(make, distance):
    for path in (VE, Linear(0.0, 0.9), Trig(0.0, 1.4)):
        x0, noise = DATA.mean + DATA.std * normal(512, 2, seed=1), normal(512, 2)
        for step in (0, 70):
            t, r = pairs(path, 512, step)
            for offset in (0.5, -0.5):
                f = GaussianConsistency(path, DATA)
                student = Offset(f, offset, ramp=lambda t, path=path: t / path.t_max)
                loss_of(make(student, distance=distance), x0, t, r, noise).backward()
                assert float(student.offset.grad) * offset > 0


def test_descent_arrives():
    x0, noise = POINT.mean + 0 * normal(32, 2), normal(32, 2)
    student = Offset(GaussianConsistency(VE, POINT), 0.5, ramp=lambda t: t / 10)
    objective = ect(student, distance=l2)
    for step in range(60):
        student.offset.grad = None
        loss_of(objective, x0, *pairs(VE, 32, step), noise).backward()
        with torch.no_grad():
            student.offset -= 2 * student.offset.grad
    assert abs(float(student.offset.detach())) < 1e-3


# Clean targets.


def test_the_first_stage_is_denoising_near_the_data():
    # n(t) >= 2 where sigmoid(-t) >= 1/8, so r = 0 there: the target is the clean sample itself.
    t = torch.tensor([1e-3, 0.5, 1.9, math.log(7)], dtype=D)
    r = CURRICULUM(t, 0)
    assert r[:3].tolist() == [0, 0, 0]
    assert float(r[3]) == pytest.approx(0, abs=1e-12)
    assert float(CURRICULUM(torch.tensor([1.96], dtype=D), 0)) > 0
    student = mlp()
    x0, noise = normal(2, 3, 2)
    objective = ect(student, distance=PseudoHuber(0.1))
    found = loss_of(objective, x0, t[:3], r[:3], noise)  # EDM's scalings are not finite at 0
    error = student(x0 + expand(t[:3], x0) * noise, t[:3]) - x0
    wanted = ((error.square().sum(1) + 0.01).sqrt() - 0.1) / t[:3]
    torch.testing.assert_close(found, wanted.mean())
    found.backward()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


class Constant(AbstractDenoiser):
    cond_keys = ()
    two_time = False

    def __init__(self, path) -> None:
        super().__init__()
        self.path, self.value = path, nn.Parameter(torch.tensor(0.3, dtype=D))

    def forward(self, x, t, s=None, cond=None):
        return self.value.expand_as(x)


@each_event
def test_the_norm_has_a_gradient_where_nothing_differs(event):
    student = Constant(VE)
    x0, noise = normal(2, 4, *event)
    t, r = pairs(VE, 4, 70)
    loss = loss_of(ect(student), x0, t, r, noise)
    loss.backward()
    assert (float(loss.detach()), float(student.value.grad)) == (0, 0)
    a, b = normal(2, 3, *event)
    mask = (normal(*a.shape, seed=1) > 0).double()
    norm = PseudoHuber(0.0)
    torch.testing.assert_close(norm(a, b), (a - b).flatten(1).norm(dim=1))
    torch.testing.assert_close(norm(a, b, mask), norm(a * mask, b * mask))


# The curriculum.

TIMES = torch.logspace(-4, 2, 400, dtype=D)


@pytest.mark.parametrize("k", [0.0, 8.0])
@pytest.mark.parametrize("q", [2.0, 4.0, 256.0])
def test_the_earlier_time(q, k):
    found = Curriculum(every=5, q=q, k=k)
    before = torch.zeros_like(TIMES)
    for stage in range(5):
        assert found.stage(5 * stage) == found.stage(5 * stage + 4) == stage
        assert found.ratio(5 * stage) == 1 - q ** -(stage + 1)
        r = found(TIMES, 5 * stage)
        assert ((r >= 0) & (r < TIMES)).all()
        assert (r.diff() >= 0).all()
        assert (r >= before).all()  # nearer from stage to stage
        assert float(r[-1] / TIMES[-1]) == pytest.approx(1 - q ** -(stage + 1), abs=1e-12)
        if k == 0:
            torch.testing.assert_close(r / TIMES, torch.full_like(r, found.ratio(5 * stage)))
        # Pairs near the data are 1 + k / 2 times as wide, up to the whole.
        assert float(r[0] / TIMES[0]) == pytest.approx(
            max(0, 1 - (1 + k / 2) * q ** -(stage + 1)), abs=1e-4
        )
        before = r


def test_from_the_third_stage_on_no_target_is_clean():
    assert (Curriculum(1)(TIMES, 1) == 0).any()
    assert all((Curriculum(1)(TIMES, stage) > 0).all() for stage in range(2, 12))


def test_limits_and_a_later_start():
    found = Curriculum(100, limit=0.999, least=1e-3, start=250)
    assert (found.stage(0), found.stage(49), found.stage(50)) == (2, 2, 3)
    assert found.ratio(10**6) == 0.999
    assert float(found(TIMES, 0).min()) == 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        {"every": 0},
        {"q": 1.0},
        {"k": -1.0},
        {"b": 0.0},
        {"limit": 1.1},
        {"least": -1.0},
        {"start": -1},
    ],
)
def test_impossible_curricula_are_refused(wrong):
    with pytest.raises(UsageError, match="Curriculum"):
        Curriculum(**{"every": 1, **wrong})


# Draws.


def test_draws():
    objective = ect(GaussianConsistency(VE, DATA), drop=ConditionDrop(0.5, {"label": 7}))
    batch = Batch(normal(2000, 2).float())
    for step in (0, 9, 10, 35):
        found = objective.draw(batch, step, Rng(0, step, "student"))
        again = objective.draw(batch, step, Rng(0, step, "student"))
        assert all(a.equal(b) for a, b in zip(found, again, strict=True))
        assert found.r.equal(CURRICULUM(found.t, step))
        law = stats.lognorm(2.0, scale=math.exp(-1.1))
        assert stats.kstest(found.t.numpy(), law.cdf).pvalue > 0.01
        assert (found.t.dtype, found.noise.dtype) == (D, torch.float32)
        assert objective.stage(step) == 0  # nothing starts anew
        other = objective.draw(batch, step, Rng(1, step, "student"))
        assert not other.noise.equal(found.noise)
        assert not other.t.equal(found.t)
    assert objective.loss(batch, found).total().dtype == torch.float32


def test_dropped_labels_reach_both():
    student = Watched(GaussianConsistency(VE, DATA))
    objective = ect(student, drop=ConditionDrop(0.5, {"label": 7}))
    x0, noise = normal(2, 3, 2)
    batch = Batch(x0, {"label": torch.tensor([0, 1, 2])})
    dropped = torch.tensor([True, False, True])
    objective.loss(batch, Draws(*pairs(VE, 3, 70), noise, dropped))
    assert [seen[3]["label"].tolist() for seen in student.seen] == [[7, 1, 7]] * 2


def test_the_earlier_time_by_every_constant():
    # t (1 - (1 + k sigmoid(-b t)) / q^(stage + 1)), at constants that are none of the defaults.
    t = torch.tensor([0.1, 0.5, 2.0], dtype=D)
    r = Curriculum(every=5, q=4.0, k=3.0, b=0.5, start=3)(t, 8)
    wanted = [v * (1 - (1 + 3 / (1 + math.exp(0.5 * v))) / 64) for v in t.tolist()]
    assert r.tolist() == pytest.approx(wanted, rel=1e-12)
    limited = Curriculum(every=5, q=4.0, k=3.0, b=0.5, limit=0.9, least=0.09)(t, 10**6)
    wanted = [max(0.09, v * (1 - 0.1 * (1 + 3 / (1 + math.exp(0.5 * v))))) for v in t.tolist()]
    assert limited.tolist() == pytest.approx(wanted, rel=1e-12)


# What is delivered.


def test_delivery_moves_the_boundary(tmp_path):
    student = mlp(time_scale=250.0, sigma_data=0.8)
    path = student.path
    objective = EasyConsistency(student, SameNoise(path), curriculum=CURRICULUM)
    delivered = objective.deliver(student)
    scalings = ConsistencyBoundary(
        sigma_data=0.8, time_scale=250.0, path=VarianceExploding(0.003, 80.0)
    )
    assert delivered.preconditioning == scalings
    assert delivered.net is student.net
    x = normal(3, 2).float()
    assert delivered(x, torch.full((3,), 0.003)).equal(x)
    torch.testing.assert_close(
        delivered(x, torch.full((3,), 5.0)), student(x, torch.full((3,), 5.0)), rtol=0.01, atol=0.01
    )
    contract = objective.contract(DataSpec(shape=(2,))).with_times({2: (80.0, 0.821)})
    assert (contract.method, contract.sampling.kind, contract.sampling.any_times) == (
        "ect",
        "renoise",
        True,
    )
    assert contract.sampling.times == {1: (80.0,), 2: (80.0, 0.821)}
    assert (contract.sampling.start.t, contract.sampling.start.std) == (80.0, 80.0)
    model = Model(delivered, contract)
    model.save(tmp_path / "m")
    again = load(tmp_path / "m", device="cpu")
    assert again.sample(3, steps=2).equal(model.sample(3, steps=2))


def test_samples_of_the_exact_function_have_the_law_of_the_data():
    path = VarianceExploding(0.0, 80.0)
    student = Offset(GaussianConsistency(path, DATA))  # with weights, which a model has
    contract = ect(student).contract(DataSpec(shape=(1,), range=None))
    contract = contract.with_times({2: (80.0, 0.821)})
    for steps in (1, 2):
        x = Model(student, contract).sample(4000, steps=steps)
        assert float(x.mean()) == pytest.approx(DATA.mean, abs=0.04)
        assert float(x.std()) == pytest.approx(DATA.std, rel=0.05)


def test_without_a_boundary_the_student_is_delivered():
    student = mlp()
    assert ect(student).deliver(student) is student


@pytest.mark.parametrize(
    ("student", "kwargs", "message"),
    [
        (GaussianFlowMap(VE), {}, "one-time"),
        (GaussianConsistency(VarianceExploding()), {}, "t_min is 0"),
        (GaussianConsistency(DiscreteVariancePreserving()), {}, "t_min is 0"),
        (GaussianConsistency(VE), {"step": SameNoise(Linear())}, "path"),
        (GaussianConsistency(VE), {"boundary": 0.003}, "boundary=0 "),
        (mlp(), {"boundary": -0.1}, "boundary"),
        (mlp(), {"boundary": 80.0}, "boundary"),
    ],
)
def test_what_does_not_fit_is_refused(student, kwargs, message):
    with pytest.raises(UsageError, match=message):
        ect(student, **kwargs)
