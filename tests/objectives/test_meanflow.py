import pytest
import torch

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError
from fewstep.derivatives import jvp
from fewstep.model import Model
from fewstep.models import Denoiser, Flow, Guided
from fewstep.objectives.flow_matching import Draws as FlowDraws
from fewstep.objectives.flow_matching import FlowMatching
from fewstep.objectives.meanflow import AdaptiveWeight, Draws, MeanFlow, TrainedGuidance
from fewstep.objectives.shared.drop import ConditionDrop
from fewstep.paths import Linear, Trig, VarianceExploding
from fewstep.times import LogitNormal, TwoTimes, Uniform
from golden_sets import StandIn
from mean_velocity import DATA, STRAIGHT, MeanVelocity
from oracles import (
    D,
    Gaussian,
    GaussianDenoiser,
    Offset,
    Watched,
    four_points,
    full,
    normal,
    path_id,
)

NULL = 2
DROP = ConditionDrop(0.5, {"label": NULL})
each_path = pytest.mark.parametrize("path", STRAIGHT, ids=path_id)


def meanflow(student, teacher=None, **kwargs) -> MeanFlow:
    return MeanFlow(student, teacher, **{"times": TwoTimes(), "weight": torch.ones_like, **kwargs})


def drawn(t, r, noise, dropped=None, ramp=1.0) -> Draws:
    return Draws(t, r, noise, torch.full_like(t, ramp), dropped)


def pairs(b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Times (t, r), of which the last are the same."""
    t = torch.linspace(0.05, 1.0, b, dtype=D)
    r = t * torch.linspace(0.0, 0.9, b, dtype=D)
    r[-1] = t[-1]
    return t, r


# The exact solution.


@each_path
@pytest.mark.parametrize("event", [(2,), (3, 4, 4)], ids=str)
def test_the_exact_average_of_the_teacher_s_velocity_has_no_loss(path, event):
    objective = meanflow(MeanVelocity(path), GaussianDenoiser(path, DATA))
    x0, noise = normal(2, 6, *event)
    found = objective.loss(Batch(x0), drawn(*pairs(6), noise))
    assert float(found.total()) < 1e-20
    assert float(found.logs["error"]) < 1e-20


def expected_gradient(path, t: float, r: float, offset: float, scale: float, **kwargs):
    """Of the expected loss of training from scratch, with respect to (offset, scale)."""
    student = Offset(MeanVelocity(path), offset, scale, ramp=lambda t: t)
    x0, noise = four_points(DATA, 2)
    draws = drawn(full(t, x0), full(r, x0), noise)
    loss = meanflow(student, **kwargs).loss(Batch(x0), draws).total()
    return torch.stack(torch.autograd.grad(loss, (student.offset, student.scale)))


@each_path
@pytest.mark.parametrize(("t", "r"), [(0.6, 0.6), (0.6, 0.1), (0.9, 0.3)])
def test_from_scratch_the_exact_average_is_the_solution(path, t, r):
    assert expected_gradient(path, t, r, 0.0, 1.0).abs().max() < 1e-12
    for offset in (0.2, -0.2):
        # The answer is wrong by offset * t, so the velocity by -offset at all times.
        found = expected_gradient(path, t, r, offset, 1.0)[0]
        assert float(found) == pytest.approx(2 * 2 * offset, abs=1e-12)
    for wrong in (0.3, -0.3):
        assert expected_gradient(path, t, r, 0.0, 1 + wrong)[1] * wrong > 0.01
        taught = expected_gradient(path, t, r, wrong, 1.0, teacher=GaussianDenoiser(path, DATA))
        assert taught[0] * wrong > 0.01


# What the loss is.


@each_path
def test_at_equal_times_it_is_flow_matching(path):
    student = Offset(MeanVelocity(path), 0.3)
    x0, noise = normal(2, 5, 2, 3)
    t = torch.linspace(0.1, 0.9, 5, dtype=D)
    flow = FlowMatching(student, times=Uniform(0.1, 0.9))
    found = meanflow(student).loss(Batch(x0), drawn(t, t, noise)).total()
    # A sum over the event, not a mean.
    torch.testing.assert_close(found, 6 * flow.loss(Batch(x0), FlowDraws(t, noise)).total())


def network(path=None, **kwargs) -> Denoiser:
    of = {"a": 0.8, "b": 0.3, "c": 0.05, "h": 0.1, "g": 0.7, "k": 0.15} | kwargs
    return Denoiser(StandIn(**of), Flow(path=path or Linear()))


@pytest.mark.parametrize("ramp", [1.0, 0.25])
def test_the_target_by_finite_differences(ramp):
    student, teacher = network(), GaussianDenoiser(Linear(), DATA)
    x0, noise = normal(2, 4, 2)
    t, r = torch.tensor([[0.9, 0.5, 0.4, 0.7], [0.1, 0.2, 0.4, 0.0]], dtype=D)
    x_t = (1 - t)[:, None] * x0 + t[:, None] * noise
    weight = AdaptiveWeight(0.75, 1e-3)
    for of, v in ((None, noise - x0), (teacher, (x_t - teacher(x_t, t)) / t[:, None])):
        found = meanflow(student, of, weight=weight).loss(Batch(x0), drawn(t, r, noise, ramp=ramp))

        def u(by: float, v=v) -> torch.Tensor:
            x, at = x_t + by * v, t + by
            return (x - student(x, at, r)) / at[:, None]

        change = (u(1e-5) - u(-1e-5)) / 2e-5
        error = ((u(0.0) - (v - ramp * (t - r)[:, None] * change)) ** 2).sum(1)
        torch.testing.assert_close(found.logs["error"], error.detach().mean())
        torch.testing.assert_close(found.total(), (error / (error + 1e-3) ** 0.75).mean())


def test_the_weight_has_no_gradient():
    student = network()
    x0, noise = normal(2, 1, 2)
    draws = drawn(full(0.8, x0), full(0.3, x0), noise)
    grads = []
    for weight in (torch.ones_like, AdaptiveWeight(0.5, 0.1)):
        loss = meanflow(student, weight=weight).loss(Batch(x0), draws)
        grads.append(torch.stack(torch.autograd.grad(loss.total(), [*student.parameters()])))
    factor = (loss.logs["error"] + 0.1) ** -0.5
    torch.testing.assert_close(grads[1], factor * grads[0])


def test_the_derivative_is_along_the_velocity_and_not_of_the_end():
    seen = []

    def watched(fn, primals, tangents):
        seen.append((primals, tangents))
        return jvp(fn, primals, tangents)

    x0, noise = normal(2, 3, 2)
    t, r = pairs(3)
    meanflow(network(), derivative=watched).loss(Batch(x0), drawn(t, r, noise))
    ((x_t, *times), (v, dt, dr)) = seen[0]
    torch.testing.assert_close(x_t, (1 - t)[:, None] * x0 + t[:, None] * noise)
    torch.testing.assert_close(v, noise - x0)
    assert times[0].equal(t)
    assert times[1].equal(r)
    assert (dt.tolist(), dr.tolist()) == ([1.0] * 3, [0.0] * 3)


def test_masked_data_does_not_count():
    x0, noise = normal(2, 3, 2, 4)
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=D)
    kept = mask.bool()
    objective = meanflow(MeanVelocity(Linear(), Gaussian(0.1, 0.5)))
    t, r = pairs(3)
    spoiled = Batch(x0 + 9 * (1 - mask), mask=mask)
    found = objective.loss(spoiled, drawn(t, r, noise)).total()
    few = objective.loss(Batch(x0[..., kept]), drawn(t, r, noise[..., kept])).total()
    torch.testing.assert_close(found, few)


# Guidance.


@pytest.mark.parametrize(("omega", "kappa"), [(1.0, 0.5), (1.5, 0.0), (0.8, 0.6)])
def test_trained_guidance_has_scale_omega_over_one_less_kappa(omega, kappa):
    path, null = Linear(), -0.1
    scale = omega / (1 - kappa)
    # Gaussians of one variance: guidance moves the mean, and nothing else.
    for shift, solved in ((0.5, True), (0.5 * 1.3, False)):
        guided = null + scale * (shift - null)
        oracle = MeanVelocity(path, DATA, shifts=(guided if solved else shift, 0.0, null))
        student = Offset(oracle, ramp=lambda t: t)
        objective = meanflow(student, drop=DROP, guidance=TrainedGuidance(omega, kappa))
        data = Gaussian(DATA.mean + shift, DATA.std)
        x0, noise = four_points(data, 2)
        batch = Batch(x0, {"label": torch.zeros(4, dtype=torch.long)})
        kept = torch.zeros(4, dtype=torch.bool)
        for t, r in ((0.7, 0.7), (0.9, 0.2)):
            draws = drawn(full(t, x0), full(r, x0), noise, kept)
            loss = objective.loss(batch, draws).total()
            (grad,) = torch.autograd.grad(loss, student.offset)
            assert (abs(float(grad)) < 1e-12) == solved


def test_guidance_is_for_kept_labels_between_its_times():
    path = Linear()
    student = Watched(MeanVelocity(path, DATA, shifts=(0.5, -0.5, 0.1)))
    tangents = []

    def watched(fn, primals, tangent):
        tangents.append(tangent[0])
        return jvp(fn, primals, tangent)

    objective = meanflow(
        student,
        drop=DROP,
        guidance=TrainedGuidance(2.0, 0.25, 0.3, 0.7),
        derivative=watched,
    )
    x0, noise = normal(2, 5, 2)
    t = torch.tensor([0.2, 0.3, 0.5, 0.7, 0.8], dtype=D)
    label = torch.tensor([0, 1, 0, 1, 0])
    dropped = torch.tensor([False, False, True, False, False])
    batch = Batch(x0, {"label": label})
    objective.loss(batch, drawn(t, t / 2, noise, dropped))
    null = torch.full_like(label, NULL)
    assert [seen[3]["label"].tolist() for seen in student.seen] == [
        null.tolist(),
        label.tolist(),
        [0, 1, NULL, 1, 0],
    ]
    assert [seen[2] is None for seen in student.seen] == [True, True, False]
    x_t = path.perturb(x0, noise, t)
    u = [student.denoiser.mean_velocity(x_t, t, t, {"label": y}) for y in (null, label)]
    v = noise - x0
    inside = torch.tensor([False, True, False, True, False])[:, None]
    wanted = torch.where(inside, 2 * v - 1.25 * u[0] + 0.25 * u[1], v)
    torch.testing.assert_close(tangents[0], wanted)


def test_a_guided_teacher_s_velocity_is_averaged():
    path = Linear()
    shifts = (0.5, -0.5, 0.1)
    teacher = Guided(MeanVelocity(path, DATA, shifts=shifts), {"label": NULL}, 2.5)
    x0, noise = normal(2, 4, 2)
    batch = Batch(x0, {"label": torch.tensor([0, 1, 0, 1])})
    dropped = torch.tensor([False, False, True, True])
    for scale, solved in ((2.5, True), (1.0, False)):
        moved = [0.1 + scale * (shift - 0.1) for shift in shifts]
        student = MeanVelocity(path, DATA, shifts=moved)
        objective = meanflow(student, teacher, drop=DROP)
        loss = objective.loss(batch, drawn(*pairs(4), noise, dropped)).total()
        assert (float(loss) < 1e-20) == solved


# Draws.


@pytest.mark.parametrize(
    ("law", "equal"),
    [
        (TwoTimes(), 0.75),
        (TwoTimes(LogitNormal(-2, 2), LogitNormal(-2, 2), equal=0.25), 0.25),
        (TwoTimes(Uniform(), Uniform(0, 0.5), equal=0.0, swap=False), 0.25),
    ],
)
def test_two_times(law, equal):
    n = 20_000
    t, r = law(n, Rng(0, 0, "student"))
    assert t.dtype == r.dtype == D
    assert bool(((r > 0) & (r <= t) & (t < 1)).all())
    # Cutting r off at t makes more of them equal: P(U(0, 1) < U(0, 1/2)) = 1/4.
    assert float((r == t).double().mean()) == pytest.approx(equal, abs=4 * 0.5 / n**0.5)


def test_swapped_times_are_the_extremes_of_two_draws():
    t, r = TwoTimes(Uniform(), Uniform(), equal=0.0)(20_000, Rng(0, 0, "student"))
    assert float(t.mean()) == pytest.approx(2 / 3, abs=0.01)
    assert float(r.mean()) == pytest.approx(1 / 3, abs=0.01)
    t, r = TwoTimes(Uniform(), Uniform(), equal=0.0, swap=False)(20_000, Rng(0, 0, "student"))
    assert float(t.mean()) == pytest.approx(1 / 2, abs=0.01)


def test_draws_are_a_function_of_seed_and_step():
    objective = meanflow(MeanVelocity(Linear()), drop=DROP)
    batch = Batch(normal(6, 2, 3))

    def draw(*key) -> Draws:
        return objective.draw(batch, key[1], Rng(*key))

    first = draw(0, 5, "student")
    assert all(a.equal(b) for a, b in zip(first, draw(0, 5, "student"), strict=True))
    assert first.ramp.tolist() == [1.0] * 6
    for other in ((0, 6, "student"), (1, 5, "student"), (0, 5, "critic"), (0, 5, "student", 1)):
        assert not draw(*other).noise.equal(first.noise)
        assert not draw(*other).t.equal(first.t)
    assert meanflow(MeanVelocity(Linear())).draw(batch, 0, Rng(0, 0, "a")).dropped is None


def test_the_derivative_comes_in_slowly_where_asked():
    objective = meanflow(MeanVelocity(Linear()), warmup=100)
    batch = Batch(normal(2, 2))
    ramps = [objective.draw(batch, step, Rng(0, step, "a")).ramp for step in (0, 25, 100, 900)]
    assert torch.stack(ramps).tolist() == [[0, 0], [0.25, 0.25], [1, 1], [1, 1]]


# What is delivered.


@each_path
@pytest.mark.parametrize("steps", [1, 3])
def test_samples_are_the_flow_map_of_the_noise(path, steps):
    student = Offset(MeanVelocity(path))
    objective = meanflow(student)
    contract = objective.contract(DataSpec(shape=(2,), range=None))
    contract = contract.with_times({3: (path.t_max, path.t_max / 2, 0.1)})
    assert (contract.method, contract.sampling.kind) == ("meanflow", "deterministic")
    assert (contract.sampling.any_times, contract.sampling.guidance) == (True, None)
    assert contract.sampling.start.std == path.t_max
    model = Model(objective.deliver(student), contract)
    noise = model.sample(5, times=[path.t_max], seed=3)
    found = model.sample(5, steps=steps, seed=3)
    torch.testing.assert_close(found, noise, rtol=1e-5, atol=1e-5)
    end = Gaussian(DATA.mean, DATA.std)
    many = model.sample(2000, steps=steps)
    assert float(many.mean()) == pytest.approx(end.mean, abs=0.05)
    assert float(many.std()) == pytest.approx(end.std, abs=0.05)


def test_a_network_of_two_times_is_trained():
    student = network().float()
    objective = meanflow(student, weight=AdaptiveWeight())
    batch = Batch(normal(8, 3, 4).float())
    loss = objective.loss(batch, objective.draw(batch, 0, Rng(0, 0, "student"))).total()
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and bool(p.grad.isfinite()) for p in student.parameters())
    assert objective.capabilities.forward_mode
    assert [(p.name, p.module) for p in objective.phases()] == [("student", student)]


def test_the_teacher_is_frozen():
    teacher = network(k=None)
    objective = meanflow(network(), teacher)
    assert objective.frozen == ("teacher",)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert meanflow(network()).frozen == ()


def test_refusals():
    one_time = GaussianDenoiser(Linear(), DATA)
    two_time = MeanVelocity(Linear())
    for make, message in [
        (lambda: meanflow(one_time), "two-time"),
        (lambda: meanflow(network(Trig())), "Trig"),
        (lambda: meanflow(two_time, GaussianDenoiser(VarianceExploding(), DATA)), "path"),
        (lambda: meanflow(two_time, guidance=TrainedGuidance()), "drop"),
        (lambda: meanflow(two_time, one_time, guidance=TrainedGuidance(), drop=DROP), "teacher"),
        (lambda: TrainedGuidance(kappa=1.0), "kappa"),
        (lambda: TwoTimes(equal=1.5), "equal"),
    ]:
        with pytest.raises(UsageError, match=message):
            make()
