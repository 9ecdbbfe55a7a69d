import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError
from fewstep.model import Model, load
from fewstep.models import EDM, AbstractDenoiser, Denoiser, Guided, Switched
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.shared.copies import frozen_copy
from fewstep.objectives.shared.distances import PseudoHuber, l2
from fewstep.objectives.shared.drop import ConditionDrop
from fewstep.objectives.tcm import (
    Curriculum,
    Draws,
    SameNoise,
    TeacherStep,
    TruncatedConsistency,
)
from fewstep.paths import Linear, Trig, VarianceExploding
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
)
from small_nets import shaken

DATA = Gaussian(0.3, 0.7)
POINT = Gaussian(0.3, 0.0)
VE = VarianceExploding(0.0, 80.0)
PATHS = [(VE, 1.0), (Linear(0.0, 0.9), 0.4), (Trig(0.0, 1.4), 0.7)]
CURRICULUM = Curriculum(10, limit=0.999, least=1e-6, start=20)
each_path = pytest.mark.parametrize(("path", "at"), PATHS, ids=lambda p: path_id(p)[:6])


def follow_the_flow(denoiser, x, t, s, cond):
    """A solver without error."""
    return DATA.flow(denoiser.path, x, t, s)


def tcm(student: AbstractDenoiser, first=None, step=None, **kwargs) -> TruncatedConsistency:
    first = frozen_copy(student) if first is None else first
    given = {"curriculum": CURRICULUM, **kwargs}
    return TruncatedConsistency(student, first, step or SameNoise(student.path), **given)


def draws_at(t: torch.Tensor, noise: torch.Tensor, at: float, step: int = 0) -> Draws:
    return Draws(t, CURRICULUM(t, step), noise, t == at)


def spread(path, at: float, b: int) -> torch.Tensor:
    """Times from t' on; the first quarter sits on it."""
    t = torch.linspace(at, path.t_max, b, dtype=D)
    t[: b // 4] = at
    return t


def mlp(seed: int = 0, dropout: float = 0.0) -> Denoiser:
    net = shaken(ResidualMLP((2,), width=16, blocks=1, dropout=dropout), seed)
    return Denoiser(net, EDM(sigma_data=0.5, path=VE))


# At the exact solution, and from a wrong one.


@each_path
def test_zero_at_the_exact_function(path, at):
    t = spread(path, at, 8)
    for step in (0, 10, 70):
        x0, noise = normal(2, 8, 3)
        teacher = TeacherStep(GaussianDenoiser(path, DATA), follow_the_flow)
        objective = tcm(GaussianConsistency(path, DATA), step=teacher, at=at)
        terms = objective.loss(Batch(x0), draws_at(t, noise, at, step)).terms
        assert {k: float(v) < 1e-10 for k, v in terms.items()} == {
            "consistency": True,
            "boundary": True,
        }
        # Without a teacher: on a single point every noisy sample stays on its trajectory.
        x0 = torch.full_like(x0, POINT.mean)
        objective = tcm(GaussianConsistency(path, POINT), at=at)
        assert float(objective.loss(Batch(x0), draws_at(t, noise, at, step)).total()) < 1e-10


@each_path
@pytest.mark.parametrize(
    "distance", [PseudoHuber(1e-8), PseudoHuber(0.06), l2], ids=["norm", "huber", "l2"]
)
def test_the_gradient_points_home(path, at, distance):
    x0, noise = DATA.mean + DATA.std * normal(256, 2, seed=1), normal(256, 2)
    first = GaussianConsistency(path, DATA)
    for offset in (0.5, -0.5):
        for step in (0, 70):
            student = Offset(GaussianConsistency(path, DATA), offset, ramp=lambda t: t / path.t_max)
            objective = tcm(student, first, at=at, distance=distance)
            draws = draws_at(spread(path, at, 256), noise, at, step)
            objective.loss(Batch(x0), draws).total().backward()
            assert float(student.offset.grad) * offset > 0


def test_a_constant_error_is_seen_at_the_boundary_only():
    # Where both points are the student's, an error that is the same at all times cancels.
    student = Offset(GaussianConsistency(VE, POINT), 0.5)
    objective = tcm(student, GaussianConsistency(VE, POINT), distance=l2, boundary_weight=0.2)
    x0, noise = torch.full((4, 2), POINT.mean, dtype=D), normal(4, 2)
    t = torch.tensor([1.0, 1.0, 70.0, 80.0], dtype=D)
    draws = draws_at(t, noise, 1.0, 70)
    loss = objective.loss(Batch(x0), draws)
    terms = {k: float(v.detach()) for k, v in loss.terms.items()}
    gap = float(1 - draws.r[0])
    assert terms == pytest.approx({"consistency": 0, "boundary": 0.2 * 0.25 / gap}, abs=1e-12)
    loss.total().backward()
    assert float(student.offset.grad) == pytest.approx(0.2 * 2 * 0.5 / gap)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_each_term_is_the_mean_over_its_own_samples(count):
    objective = tcm(mlp(0), mlp(1), distance=l2, boundary_weight=0.2)
    x0, noise = normal(2, 8, 2)
    t = torch.linspace(2.0, 70.0, 8, dtype=D)
    t[:count] = 1.0
    draws = draws_at(t, noise, 1.0, 70)
    rows = [
        objective.loss(Batch(x0[i : i + 1]), Draws(*(d[i : i + 1] for d in draws[:4]))).terms
        for i in range(8)
    ]
    whole = objective.loss(Batch(x0), draws).terms
    for name, own in (("boundary", rows[:count]), ("consistency", rows[count:])):
        wanted = torch.stack([terms[name].detach() for terms in own])
        assert len(own) == 1 or wanted.std() > 0
        torch.testing.assert_close(whole[name].detach(), wanted.mean())


# Which of the two is asked.


def test_the_first_stage_answers_below_the_boundary():
    first = Watched(Offset(GaussianConsistency(VE, DATA), 0.5))
    student = Offset(GaussianConsistency(VE, DATA), 0.0)
    objective = tcm(student, first, distance=l2)
    x0, noise = torch.full((1, 2), 0.3, dtype=D), normal(1, 2)
    for t, frozen in ((1.0, True), (1.0 + 1e-8, True), (60.0, False)):
        first.seen.clear()
        draws = draws_at(torch.tensor([t], dtype=D), noise, 1.0)
        assert bool(draws.r < 1) == frozen
        loss = objective.loss(Batch(x0), draws).total()
        f = (first if frozen else student)(x0 + draws.r * noise, draws.r)
        answer = student(x0 + draws.t * noise, draws.t)
        wanted = (answer - f).square().mean() / (draws.t - draws.r)
        weight = 0.1 if t == 1.0 else 1.0
        torch.testing.assert_close(loss.detach(), weight * wanted.detach()[0])


def test_nothing_is_learnt_below_the_boundary():
    student = Offset(GaussianConsistency(VE, DATA), 0.5)
    objective = tcm(student, Offset(GaussianConsistency(VE, DATA), 0.0))
    x0, noise = normal(2, 4, 2)
    t = torch.tensor([0.1, 0.5, 0.999, 5.0], dtype=D)
    loss = objective.loss(Batch(x0), draws_at(t, noise, 1.0, 70)).total()
    (gradient,) = torch.autograd.grad(loss, student.offset, retain_graph=True)
    assert float(gradient) != 0
    assert not any(p.requires_grad for p in objective.first.parameters())
    low = objective.loss(Batch(x0[:3]), draws_at(t[:3], noise[:3], 1.0, 70)).total()
    low.backward()
    assert float(student.offset.grad) == 0
    assert objective.first.offset.grad is None


def test_the_gradient_reaches_the_student_only():
    student, first = mlp(0), mlp(1)
    objective = tcm(student, first, TeacherStep(mlp(2)))
    x0, noise = normal(2, 4, 2)
    objective.loss(Batch(x0), draws_at(spread(VE, 1.0, 4), noise, 1.0)).total().backward()
    reached = {n.split(".")[0] for n, p in objective.named_parameters() if p.grad is not None}
    assert reached == {"student"}
    assert objective.frozen == ("first", "step.teacher")
    assert {n.split(".")[0] for n, _ in objective.named_parameters()} == {
        "student",
        "first",
        "step",
    }
    (phase,) = objective.phases()
    assert phase.module is student


class Masks(AbstractDenoiser):
    """Answers with its dropout mask."""

    cond_keys = ()
    two_time = False

    def __init__(self, path) -> None:
        super().__init__()
        self.path = path

    def forward(self, x, t, s=None, cond=None):
        return F.dropout(torch.ones_like(x), 0.5, self.training)


def test_all_three_answers_share_their_dropout():
    objective = tcm(Masks(VE), Masks(VE).eval())
    torch.manual_seed(0)
    x0, noise = normal(2, 8, 5)
    draws = draws_at(spread(VE, 1.0, 8), noise, 1.0)
    for _ in range(2):
        assert float(objective.loss(Batch(x0), draws).total()) == 0
    objective.student.eval()
    assert float(objective.loss(Batch(x0), draws).total()) == 0


# Draws.


def test_draws():
    objective = tcm(mlp(), drop=ConditionDrop(0.5, {"label": 7}))
    batch = Batch(normal(4003, 2).float())
    for step in (0, 9, 10):
        found = objective.draw(batch, step, Rng(0, step, "student"))
        again = objective.draw(batch, step, Rng(0, step, "student"))
        assert all(a.equal(b) for a, b in zip(found, again, strict=True))
        other = objective.draw(batch, step, Rng(1, step, "student"))
        assert not other.boundary.equal(found.boundary)
        assert int(found.boundary.sum()) == 1000
        assert (found.t == 1.0).equal(found.boundary)
        assert ((found.t >= 1) & (found.t <= 80)).all()
        assert found.r.equal(CURRICULUM(found.t, step))
        assert (found.r[found.boundary] < 1).all()
        assert objective.stage(step) == 0
        law, scale = stats.t(0.01), 0.2
        log_t = found.t[~found.boundary].log().numpy() / scale
        ends = law.cdf(0.0), law.cdf(torch.tensor(80.0).log().item() / scale)
        pvalue = stats.kstest((law.cdf(log_t) - ends[0]) / (ends[1] - ends[0]), "uniform").pvalue
        assert pvalue > 0.01
    assert objective.loss(batch, found).total().dtype == torch.float32


def test_a_batch_needs_a_sample_on_the_boundary():
    objective = tcm(mlp())
    assert int(objective.draw(Batch(normal(4, 2)), 0, Rng(0, 0, "s")).boundary.sum()) == 1
    with pytest.raises(UsageError, match="at least 4"):
        objective.draw(Batch(normal(3, 2)), 0, Rng(0, 0, "s"))


def test_means_without_a_row_are_zero():
    objective = tcm(mlp(), mlp(1))
    x0, noise = normal(2, 2, 2)
    t = full(1.0, x0)
    for boundary in (True, False):
        draws = Draws(t, CURRICULUM(t, 0), noise, torch.full((2,), boundary))
        terms = objective.loss(Batch(x0), draws).terms
        assert (float(terms["boundary"].detach()) > 0) == boundary
        assert (float(terms["consistency"].detach()) > 0) == (not boundary)


# What is delivered.


def test_delivery_is_both_networks(tmp_path):
    student, first = mlp(0), mlp(1, dropout=0.5)
    objective = tcm(student, first)
    delivered = objective.deliver(student)
    contract = objective.contract(DataSpec(shape=(2,))).with_times({2: (80.0, 0.821)})
    model = Model(delivered, contract)
    x = normal(2, 2).float()
    objective.train()
    x0, noise = normal(2, 8, 2)
    objective.loss(Batch(x0), draws_at(spread(VE, 1.0, 8), noise, 1.0))
    # The objective's own copy is in training; what is delivered is not.
    assert objective.first.training
    assert not any(module.training for module in delivered.low.modules())
    first.eval()
    for t, net in ((0.999, first), (1.0, student), (80.0, student)):
        assert delivered(x, full(t, x)).equal(net(x, full(t, x)))
    mixed = delivered(x, torch.tensor([0.5, 2.0], dtype=D))
    torch.testing.assert_close(
        mixed, torch.stack([first(x, full(0.5, x))[0], student(x, full(2.0, x))[1]])
    )
    sampling = model.contract.sampling
    assert (model.contract.method, sampling.kind) == ("tcm", "renoise")
    assert sampling.times == {1: (80.0,), 2: (80.0, 0.821)}
    assert model.calls(2) == 2
    model.save(tmp_path / "m")
    again = load(tmp_path / "m", device="cpu")
    assert isinstance(again.denoiser, Switched)
    for steps in (1, 2):
        assert again.sample(3, steps=steps).equal(model.sample(3, steps=steps))


def test_the_second_step_is_the_first_stage_s():
    student, first = mlp(0), mlp(1)
    objective = tcm(student, first)
    contract = objective.contract(DataSpec(shape=(2,), range=None))
    contract = contract.with_times({2: (80.0, 0.821)})
    x = Model(objective.deliver(student), contract).sample(4, steps=2)
    with torch.no_grad():
        for p in first.parameters():
            p.zero_()
    other = Model(tcm(student, first).deliver(student), contract).sample(4, steps=2)
    assert not other.equal(x)
    one = [Model(d, contract).sample(4) for d in (student, objective.deliver(student))]
    assert one[0].equal(one[1])


def test_samples_of_the_exact_function_have_the_law_of_the_data():
    student = Offset(GaussianConsistency(VE, DATA))  # with weights, which a model has
    objective = tcm(student, Offset(GaussianConsistency(VE, DATA)))
    contract = objective.contract(DataSpec(shape=(1,), range=None)).with_times({2: (80.0, 0.8)})
    for steps in (1, 2):
        x = Model(objective.deliver(student), contract).sample(4000, steps=steps)
        assert float(x.mean()) == pytest.approx(DATA.mean, abs=0.04)
        assert float(x.std()) == pytest.approx(DATA.std, rel=0.05)


SAME = GaussianConsistency(VE)


@pytest.mark.parametrize(
    ("student", "first", "kwargs", "message"),
    [
        (GaussianFlowMap(VE), SAME, {}, "one-time"),
        (SAME, GaussianFlowMap(VE), {}, "one-time"),
        (SAME, SAME, {}, "copy"),
        (SAME, GaussianConsistency(VarianceExploding()), {}, "one path"),
        (SAME, GaussianConsistency(VE), {"step": SameNoise(Linear())}, "path"),
        (SAME, GaussianConsistency(VE), {"at": 0.0}, "at=0"),
        (SAME, GaussianConsistency(VE), {"at": 80.0}, "at=80"),
        (SAME, GaussianConsistency(VE), {"share": 0.0}, "share"),
        (SAME, GaussianConsistency(VE), {"share": 1.0}, "share"),
        (SAME, GaussianConsistency(VE), {"boundary_weight": 0.0}, "boundary_weight"),
    ],
)
def test_what_does_not_fit_is_refused(student, first, kwargs, message):
    with pytest.raises(UsageError, match=message):
        tcm(student, first, **kwargs)


def test_switched_counts_the_calls_of_one_answer():
    assert Switched(mlp(), Guided(mlp(), {}, 2.0), 1.0).calls == 2
