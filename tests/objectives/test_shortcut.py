import pytest
import torch

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError
from fewstep.model import Model
from fewstep.objectives.shared.drop import ConditionDrop
from fewstep.objectives.shortcut import Draws, Shortcut
from fewstep.paths import Linear, VarianceExploding
from mean_velocity import DATA, MeanVelocity
from oracles import D, GaussianDenoiser, Offset, Watched, four_points, full, normal

NULL = 2
DROP = ConditionDrop(0.5, {"label": NULL})


def shortcut(student, **kwargs) -> Shortcut:
    return Shortcut(student, **{"clip": None, **kwargs})


def wrong(offset: float, scale: float = 1.0) -> Offset:
    """The velocity is wrong by -offset at all times."""
    return Offset(MeanVelocity(Linear()), offset, scale, ramp=lambda t: t)


def jumping(x0, noise, t: float, size: float, every: int = 2) -> tuple[Batch, Draws]:
    """Each sample twice: as a jump from ``t`` of that size, and as a velocity at ``t``."""
    b = len(x0)
    start = full(t, x0).repeat(every)
    end = torch.where(torch.arange(len(start)) < b, start - size, start)
    repeated = [1] * (x0.ndim - 1)
    return Batch(x0.repeat(every, *repeated)), Draws(start, end, noise.repeat(every, *repeated))


# The exact solution.


@pytest.mark.parametrize("event", [(2,), (3, 4, 4)], ids=str)
@pytest.mark.parametrize(("t", "size"), [(1.0, 1.0), (0.5, 0.5), (0.75, 0.25)])
def test_the_exact_flow_map_teaches_itself(t, size, event):
    x0, noise = normal(2, 3, *event)
    objective = shortcut(MeanVelocity(Linear()), every=2)
    found = objective.loss(*jumping(x0, noise, t, size))
    assert float(found.terms["bootstrap"]) < 1e-25


def test_the_smallest_jump_is_two_steps_of_euler():
    x0, noise = normal(2, 3, 2)
    student = MeanVelocity(Linear())
    for sections in (8, 128):
        batch, draws = jumping(x0, noise, 0.5, 2 / sections)
        t, h = draws.t[:3], 1 / sections
        x_t = Linear().perturb(x0, noise, t)
        first = student.mean_velocity(x_t, t, t)
        second = student.mean_velocity(x_t - h * first, t - h, t - h)
        wanted = (student.mean_velocity(x_t, t, t - 2 * h) - (first + second) / 2).square().mean()
        found = shortcut(student, every=2, sections=sections).loss(batch, draws).terms
        torch.testing.assert_close(found["bootstrap"], wanted / 2, rtol=1e-8, atol=0)


def expected(offset: float, scale: float, size: float, term: str) -> torch.Tensor:
    """Gradient of the expected term with respect to (offset, scale)."""
    student = wrong(offset, scale)
    batch, draws = jumping(*four_points(DATA, 2), 0.75, size)
    objective = shortcut(student, every=2)
    objective.target.load_state_dict(wrong(0.0).state_dict())
    loss = objective.loss(batch, draws).terms[term]
    return torch.stack(torch.autograd.grad(loss, (student.offset, student.scale)))


@pytest.mark.parametrize("term", ["flow", "bootstrap"])
def test_gradients_point_home(term):
    for size in (0.25, 0.5):
        assert expected(0.0, 1.0, size, term).abs().max() < 1e-12
        for by in (0.2, -0.2):
            # Half of the samples; the mean over the event.
            found = float(expected(by, 1.0, size, term)[0])
            assert found == pytest.approx(2 * by / 2, abs=1e-12)
            assert expected(0.0, 1 + by, size, term)[1] * by > 0.001


def test_the_flow_term_is_of_noise_minus_data():
    student = MeanVelocity(Linear())
    x0, noise = normal(2, 6, 2)
    batch, draws = jumping(x0, noise, 0.625, 0.125, every=3)
    x_t = Linear().perturb(x0, noise, draws.t[:6])
    gap = student.mean_velocity(x_t, draws.t[:6], draws.t[:6]) - (noise - x0)
    found = shortcut(student, every=3).loss(batch, draws).terms["flow"]
    torch.testing.assert_close(found, gap.square().mean() * 2 / 3)


# The teaching.


def test_the_target_is_asked_twice_and_the_student_once():
    student = MeanVelocity(Linear())
    objective = shortcut(student, every=2)
    objective.student, objective.target = Watched(student), Watched(student)
    x0, noise = normal(2, 2, 2)
    batch, draws = jumping(x0, noise, 0.75, 0.5)
    draws = draws._replace(s=draws.s.where(torch.tensor([True, False, True, True]), 0.75 - 2 / 128))
    objective.loss(batch, draws)
    (first, second), (asked,) = objective.target.seen, objective.student.seen
    assert asked[2].equal(draws.s)
    # The second is the smallest jump: two velocities.
    assert (first[1].tolist(), first[2].tolist()) == ([0.75] * 2, [0.5, 0.75])
    assert (second[1].tolist(), second[2].tolist()) == (
        [0.5, 0.75 - 1 / 128],
        [0.25, 0.75 - 1 / 128],
    )
    torch.testing.assert_close(second[0][:1], student.jump(first[0], *first[1:3])[:1])


def test_no_gradient_reaches_the_target():
    objective = shortcut(wrong(0.3), every=2)
    batch, draws = jumping(*normal(2, 2, 2), 0.75, 0.5)
    objective.target.requires_grad_(True)
    objective.loss(batch, draws).total().backward()
    assert all(p.grad is None for p in objective.target.parameters())


def test_what_is_between_and_the_average_are_clipped():
    x0, noise = 4 * normal(2, 50, 2)
    batch, draws = jumping(x0, noise, 0.75, 0.5)
    student, t, s = MeanVelocity(Linear()), draws.t[:50], draws.s[:50]
    x_t = Linear().perturb(x0, noise, t)
    first = student.mean_velocity(x_t, t, t - 0.25)
    between = (x_t - 0.25 * first).clamp(-1, 1)
    target = ((first + student.mean_velocity(between, t - 0.25, s)) / 2).clamp(-1, 1)
    assert bool((target.abs() == 1).any())
    wanted = (student.mean_velocity(x_t, t, s) - target).square().mean() / 2
    found = shortcut(student, every=2, clip=1.0).loss(batch, draws).terms["bootstrap"]
    torch.testing.assert_close(found, wanted)


def test_the_target_follows():
    student = wrong(1.0)
    objective = shortcut(student, rate=0.9)
    with torch.no_grad():
        student.offset += 1.0
    objective.after_step(0)
    assert float(objective.target.offset) == pytest.approx(1.1, abs=1e-14)


def test_masked_data_does_not_count():
    x0, noise = normal(2, 4, 2, 3)
    mask = torch.tensor([1.0, 0.0, 1.0], dtype=D)
    objective = shortcut(wrong(0.3), every=2)
    batch, draws = jumping(x0, noise, 0.75, 0.5)
    found = objective.loss(Batch(batch.x0 + 9 * (1 - mask), mask=mask), draws).total()
    few = draws._replace(noise=draws.noise[..., [0, 2]])
    torch.testing.assert_close(found, objective.loss(Batch(batch.x0[..., [0, 2]]), few).total())


# Labels.


def labelled(guidance: float, size: float):
    student = MeanVelocity(Linear(), DATA, shifts=(0.5, -0.5, 0.1))
    objective = shortcut(student, every=2, drop=DROP, guidance=guidance, sections=8)
    objective.student, objective.target = Watched(student), Watched(student)
    x0, noise = normal(2, 3, 2)
    batch, draws = jumping(x0, noise, 0.75, size)
    batch = Batch(batch.x0, {"label": torch.tensor([0, 1, 0, 1, 0, 1])})
    dropped = torch.tensor([False] * 4 + [True] * 2)
    loss = objective.loss(batch, draws._replace(dropped=dropped))
    return objective, batch, draws, loss


def test_labels_are_dropped_for_velocities_only():
    objective, *_ = labelled(1.0, 0.5)
    assert objective.student.seen[0][3]["label"].tolist() == [0, 1, 0, 1, NULL, NULL]
    assert [seen[3]["label"].tolist() for seen in objective.target.seen] == [[0, 1, 0]] * 2


def test_the_smallest_jumps_are_guided():
    student = MeanVelocity(Linear(), DATA, shifts=(0.5, -0.5, 0.1))
    for guidance, size, scale in ((1.5, 0.25, 1.5), (1.5, 0.5, 1.0), (1.0, 0.25, 1.0)):
        _, batch, draws, loss = labelled(guidance, size)
        t, h = draws.t[:3], size / 2
        step = 0.0 if size == 0.25 else h

        def guided(x, t, scale=scale, step=step, batch=batch):
            own, null = (
                student.mean_velocity(x, t, t - step, {"label": y})
                for y in (batch.cond["label"][:3], full(NULL, x).long())
            )
            return null + scale * (own - null)

        x_t = Linear().perturb(batch.x0[:3], draws.noise[:3], t)
        first = guided(x_t, t)
        target = (first + guided(x_t - h * first, t - h)) / 2
        cond = {"label": batch.cond["label"][:3]}
        answer = student.mean_velocity(x_t, t, draws.s[:3], cond)
        wanted = (answer - target).square().mean() / 2
        torch.testing.assert_close(loss.terms["bootstrap"], wanted)


# Draws.


def test_jumps_come_in_equal_numbers_on_the_grid_of_their_size():
    objective = shortcut(MeanVelocity(Linear()), drop=DROP)
    batch = Batch(normal(7 * 8 * 20, 1))
    t, s, noise, dropped = objective.draw(batch, 0, Rng(0, 0, "student"))
    jumps = 7 * 20
    size = (t - s)[:jumps]
    assert size.unique(return_counts=True)[0].tolist() == [2.0**-j for j in range(6, -1, -1)]
    assert size.unique(return_counts=True)[1].tolist() == [20] * 7
    assert s[jumps:].equal(t[jumps:])
    for times, unit in ((t[:jumps], size), (t[jumps:], torch.tensor(1 / 128))):
        assert bool(((times / unit) % 1 == 0).all())
        assert bool(((times >= unit) & (times <= 1)).all())
    assert set((t[jumps:] * 128).tolist()) == set(range(1, 129))
    assert {float(v) for v in t[:jumps][size == 0.25]} == {0.25, 0.5, 0.75, 1.0}
    assert not dropped[:jumps].any()
    assert float(dropped[jumps:].double().mean()) == pytest.approx(0.5, abs=0.07)
    assert (t.dtype, noise.dtype, noise.shape) == (D, D, (1120, 1))


def test_small_batches_learn_all_sizes_in_turn():
    objective = shortcut(MeanVelocity(Linear()))
    batch = Batch(normal(8, 1))
    sizes = []
    for step in range(400):
        t, s, *_ = objective.draw(batch, step, Rng(0, step, "student"))
        assert s[1:].equal(t[1:])
        sizes.append(float(t[0] - s[0]))
    counts = torch.tensor(sizes).unique(return_counts=True)[1]
    assert len(counts) == 7
    assert bool((counts > 30).all())  # 57 are expected


def test_draws_are_a_function_of_seed_and_step():
    objective = shortcut(MeanVelocity(Linear()), drop=DROP)
    batch = Batch(normal(16, 2))

    def draw(*key) -> Draws:
        return objective.draw(batch, key[1], Rng(*key))

    first = draw(0, 5, "student")
    assert all(a.equal(b) for a, b in zip(first, draw(0, 5, "student"), strict=True))
    for other in ((0, 6, "student"), (1, 5, "student"), (0, 5, "student", 1)):
        assert not draw(*other).noise.equal(first.noise)
        assert not draw(*other).t.equal(first.t)
    assert shortcut(MeanVelocity(Linear())).draw(batch, 0, Rng(0, 0, "a")).dropped is None


# What is delivered.


def test_samples_take_a_power_of_two_of_steps():
    objective = shortcut(wrong(0.0))
    contract = objective.contract(DataSpec(shape=(2,), range=None))
    sampling = contract.sampling
    assert (contract.method, sampling.kind, sampling.guidance) == (
        "shortcut",
        "deterministic",
        None,
    )
    assert [*sampling.times] == [1, 2, 4, 8, 16, 32, 64]
    assert sampling.times[4] == (1.0, 0.75, 0.5, 0.25)
    model = Model(objective.student, contract)
    one = model.sample(2000, steps=1)
    assert float(one.mean()) == pytest.approx(DATA.mean, abs=0.05)
    assert float(one.std()) == pytest.approx(DATA.std, abs=0.05)
    for steps in (2, 64):
        torch.testing.assert_close(model.sample(9, steps=steps), one[:9], rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="step"):
        model.sample(1, steps=3)


def test_every_jump_that_is_sampled_was_taught():
    objective = shortcut(MeanVelocity(Linear()), sections=8)
    batch = Batch(normal(1600, 1))
    t, s, *_ = objective.draw(batch, 0, Rng(0, 0, "student"))
    taught = {(float(a), float(b)) for a, b in zip(t[:200], s[:200], strict=True)}
    times = objective.contract(DataSpec(shape=(1,))).sampling.times
    sampled = {pair for grid in times.values() for pair in zip(grid, (*grid[1:], 0.0), strict=True)}
    assert sampled == taught


def test_microbatches_hold_whole_shares():
    assert shortcut(MeanVelocity(Linear())).capabilities.batch_multiple == 8
    assert shortcut(MeanVelocity(Linear()), every=4).capabilities.batch_multiple == 4


def test_refusals():
    student = MeanVelocity(Linear())
    for make, message in [
        (lambda: shortcut(GaussianDenoiser(Linear(), DATA)), "two-time"),
        (lambda: shortcut(MeanVelocity(VarianceExploding())), "linear"),
        (lambda: shortcut(MeanVelocity(Linear(0.0, 0.9))), "linear"),
        (lambda: shortcut(student, sections=100), "sections"),
        (lambda: shortcut(student, every=1), "every"),
        (lambda: shortcut(student, rate=1.0), "rate"),
        (lambda: shortcut(student, guidance=1.5), "drop"),
    ]:
        with pytest.raises(UsageError, match=message):
            make()
