"""Latent consistency models: closed forms, scalings, times, guidance, samples."""

import math

import pytest
import torch

import fewstep as library
from fewstep.contract import DataSpec, Guidance
from fewstep.core import Batch, Rng, UsageError
from fewstep.model import Model, SampleNoise
from fewstep.models import (
    EDM,
    AbstractDenoiser,
    AtScale,
    DataPrediction,
    Denoiser,
    Guided,
    LatentBoundary,
    NoisePrediction,
    grown,
)
from fewstep.models.nets import ResidualMLP
from fewstep.models.nets.blocks import latent_guidance_embedding
from fewstep.objectives.lcm import Draws, LatentConsistency
from fewstep.objectives.shared.discrete import SameNoise, TeacherStep
from fewstep.objectives.shared.distances import Huber, l1, l2
from fewstep.objectives.shared.drop import ConditionDrop
from fewstep.paths import DiscreteVariancePreserving, VarianceExploding, VariancePreserving
from fewstep.steps import ddim, dpmpp_2s
from fewstep.times import Phases, Uniform, strided, thinned
from oracles import D, Gaussian, GaussianDenoiser, Offset, Watched, full, normal, slope
from small_nets import shaken

PATH = DiscreteVariancePreserving()
GRID = strided(50)
STD = 0.7
MEANS = torch.tensor([-0.6, 0.5, 0.1], dtype=D)
"""Of the two classes, and of the null label 2; all have one standard deviation."""
NULL = {"label": 2}
DATA = DataSpec(shape=(2,), labels=2, range=None)


class Classes(AbstractDenoiser):
    """E[x0 | x_t, label] of Gaussians of one standard deviation."""

    cond_keys, two_time = ("label",), False

    def __init__(self, path=PATH):
        super().__init__()
        self.path = path

    def forward(self, x, t, s=None, cond=None):
        return denoised(self.path, x, t, MEANS[cond["label"]])


def denoised(path, x, t, mean):
    alpha, sigma, _, _ = path.coefficients(t)
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return mean[:, None] + gain[:, None] * (x - (alpha * mean)[:, None])


def moved(path, x, t, s, mean):
    """The flow of the Gaussian N(mean, STD^2), with a mean for each sample."""
    (a, b, _, _), (c, d, _, _) = path.coefficients(t), path.coefficients(s)
    scale = ((c**2 * STD**2 + d**2) / (a**2 * STD**2 + b**2)).sqrt()
    return (c * mean)[:, None] + scale[:, None] * (x - (a * mean)[:, None])


def guided_mean(cond, scale=None):
    """Of the guided denoiser, which is affine: guidance moves the mean and nothing else."""
    scale = cond["guidance"] if scale is None else scale
    return MEANS[2] + scale * (MEANS[cond["label"]] - MEANS[2])


class GuidedConsistency(AbstractDenoiser):
    """The flow map of the guided teacher to the first entry of the table."""

    cond_keys, two_time = ("label", "guidance"), False

    def __init__(self, path=PATH):
        super().__init__()
        self.path = path

    def forward(self, x, t, s=None, cond=None):
        return moved(self.path, x, t, torch.zeros_like(t), guided_mean(cond))


def exact_step(denoiser, x, t, s, cond):
    """The guided flow in the place of a solver."""
    return moved(denoiser.path, x, t, s, guided_mean(cond))


def taught(step=ddim, scale=1.0) -> TeacherStep:
    return TeacherStep(Guided(Classes(), NULL, scale), step)


def lcm(student, step, **options) -> LatentConsistency:
    given = {"grid": GRID, "guidance": Uniform(1.0, 16.0)}
    return LatentConsistency(student, step, **{**given, **options})


def batch(n: int, seed: int = 3) -> Batch:
    return Batch(normal(n, 2, seed=seed), {"label": torch.arange(n) % 2})


def draws(objective, n: int, **changed) -> Draws:
    """Every interval in turn, and scales from 1 to 16."""
    t, r = objective.interval(torch.arange(n) % (len(objective.grid) - 1))
    scales = torch.linspace(1, 16, n, dtype=D) if objective.guidance else None
    return Draws(t, r, normal(n, 2), None, scales)._replace(**changed)


def loss_of(objective, b, d):
    return objective.loss(b, d).total()


# Closed forms.


@pytest.mark.parametrize("rate", [0.0, 0.95])
@pytest.mark.parametrize("distance", [l2, Huber()])
def test_zero_at_the_exact_guided_consistency_function(rate, distance):
    objective = lcm(GuidedConsistency(), taught(exact_step), rate=rate, distance=distance)
    b, d = batch(100), draws(objective, 100)
    assert loss_of(objective, b, d).item() < 1e-20
    scaled = lcm(Offset(GuidedConsistency(), 0.0, 1.1), taught(exact_step), distance=distance)
    assert loss_of(scaled, b, d).item() > 1e-5


def test_the_guided_denoiser_is_a_gaussians():
    x, t = normal(6, 2), full(499.0, torch.zeros(6))
    cond = {"label": torch.arange(6) % 2, "guidance": torch.linspace(0, 8, 6, dtype=D)}
    torch.testing.assert_close(
        Guided(Classes(), NULL)(x, t, None, cond), denoised(PATH, x, t, guided_mean(cond))
    )


@pytest.mark.parametrize(("step", "order"), [(ddim, 2), (dpmpp_2s, 3)])
def test_steps_of_the_teacher_are_wrong_by_a_power_of_their_width(step, order):
    # In log-SNR, in which both steps are derived; the table is curved in its index.
    b = batch(100)
    objective = lcm(GuidedConsistency(), taught(step), distance=l1)
    t = full(700.0, b.x0)
    widths, errors = [0.4, 0.2, 0.1, 0.05], []
    for width in widths:
        r = PATH.time(PATH.ratio(t) * math.exp(-width))
        errors.append(loss_of(objective, b, draws(objective, 100, t=t, r=r)).item())
    assert slope(widths, errors) == pytest.approx(order, abs=0.2)


def test_a_scale_of_one_is_the_conditional_teacher():
    b, one = batch(60), torch.ones(60, dtype=D)
    student = Offset(GaussianDenoiser(PATH), 0.3, 0.9)
    guided = lcm(student, taught())
    alone = lcm(student, TeacherStep(Classes(), ddim), guidance=None)
    d = draws(guided, 60, guidance=one)
    torch.testing.assert_close(
        loss_of(guided, b, d), loss_of(alone, b, d._replace(guidance=None)), rtol=1e-12, atol=0
    )
    more = d._replace(guidance=2 * one)
    assert loss_of(guided, b, more).item() != loss_of(guided, b, d).item()


def test_the_lcm_form_of_guidance_has_the_scale_less_one():
    x, t, w = normal(6, 2), full(499.0, torch.zeros(6)), torch.linspace(0, 15, 6, dtype=D)
    label = torch.arange(6) % 2
    with_label = Classes()(x, t, None, {"label": label})
    without = Classes()(x, t, None, {"label": torch.full_like(label, 2)})
    found = Guided(Classes(), NULL)(x, t, None, {"label": label, "guidance": 1 + w})
    torch.testing.assert_close(found, with_label + w[:, None] * (with_label - without))


@pytest.mark.parametrize("wrong", [0.3, -0.3])
@pytest.mark.parametrize("distance", [l2, Huber()])
@pytest.mark.parametrize("rate", [0.0, 0.95])
def test_gradient_points_home(wrong, distance, rate):
    b = batch(500)
    # The target of the first interval has no offset, and pulls.
    student = Offset(GuidedConsistency(), wrong)
    objective = lcm(student, taught(exact_step), distance=distance, rate=rate)
    loss_of(objective, b, draws(objective, 500)).backward()
    assert student.offset.grad * wrong > 0
    assert objective.step.teacher.denoiser.path == PATH
    if rate:
        assert objective.target.offset.grad is None


def test_same_noise_is_fine_tuning_without_a_teacher():
    data = Gaussian(0.3, 0.0)

    class Point(GaussianDenoiser):
        """Data of one point: its consistency function keeps the noise of the first entry."""

        def forward(self, x, t, s=None, cond=None):
            return data.flow(PATH, x, t, torch.zeros_like(t))

    objective = lcm(Point(PATH), SameNoise(PATH), guidance=None, distance=l2)
    b = Batch(torch.full((50, 2), 0.3, dtype=D))
    assert loss_of(objective, b, draws(objective, 50)).item() < 1e-20


def test_pairs_are_those_of_one_phase():
    objective = lcm(GuidedConsistency(), taught())
    index = torch.arange(50)
    t, r, edge = Phases(GRID, 1).of(index)
    assert torch.stack(objective.interval(index)).equal(torch.stack([t, r]))
    assert edge.unique().tolist() == [0]
    assert t.tolist() == [*range(19, 1000, 20)]
    assert r.tolist() == [0, *range(19, 980, 20)]


# Scalings and embeddings.


def test_scalings_of_the_official_code():
    t = torch.tensor([0.0, 0.01, 1.0, 19.0, 999.0], dtype=D)
    path = PATH
    found = LatentBoundary(inner=DataPrediction(path=path), path=path).coefficients(t)
    # tau = 10 t, c_skip = 0.25 / (tau^2 + 0.25), c_out = tau / sqrt(tau^2 + 0.25).
    skip = [1.0, 0.25 / 0.26, 0.25 / 100.25, 0.25 / 36100.25, 0.25 / 99800100.25]
    out = [0.0, 0.1 / 0.26**0.5, 10 / 100.25**0.5, 190 / 36100.25**0.5, 9990 / 99800100.25**0.5]
    torch.testing.assert_close(found.c_skip, torch.tensor(skip, dtype=D))
    torch.testing.assert_close(found.c_out, torch.tensor(out, dtype=D))
    assert float(found.c_out[-1]) == pytest.approx(1)  # and not sigma_data


@pytest.mark.parametrize("own", ["noise", "edm"])
def test_the_boundary_is_the_identity_and_continuous(own):
    net = shaken(ResidualMLP((2,), width=8, blocks=2))
    inner = NoisePrediction(path=PATH) if own == "noise" else EDM(sigma_data=0.5).on(PATH)
    model = Denoiser(net, LatentBoundary(inner=inner, path=PATH))
    x = normal(4, 2)
    assert model(x, full(0.0, x)).equal(x)
    near = (model(x, full(1e-7, x)) - x).abs().max()
    assert 0 < near.item() < 1e-4
    # Away from the boundary it is the inner model, but for c_skip of 7e-6 and less.
    for t in (19.0, 500.0):
        far = Denoiser(net, inner)(x, full(t, x))
        torch.testing.assert_close(model(x, full(t, x)), far, rtol=2e-5, atol=2e-5)


def test_scalings_refuse_other_paths():
    with pytest.raises(UsageError, match="derived on DiscreteVariancePreserving"):
        LatentBoundary(inner=EDM(sigma_data=0.5), path=VariancePreserving())
    path = DiscreteVariancePreserving(t_min=1.0)
    with pytest.raises(UsageError, match="identity at t = 0"):
        LatentBoundary(inner=DataPrediction(path=path), path=path)
    with pytest.raises(UsageError, match="timestep_scaling"):
        LatentBoundary(inner=DataPrediction(path=PATH), timestep_scaling=0.0)


def test_embedding_of_scales():
    found = latent_guidance_embedding(torch.tensor([1.0, 1.5, 8.5], dtype=D), 9)
    assert found.shape == (3, 9)
    for row, w in zip(found.tolist(), [0.0, 0.5, 7.5], strict=True):
        angles = [1000 * w * 10 ** (-4 * i / 3) for i in range(4)]
        waves = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert row == pytest.approx([*waves, 0.0], abs=2e-3)  # frequencies are in float32


# Times.


# LCMScheduler.set_timesteps of diffusers 0.42.1 with original_inference_steps=50.
SCHEDULED = {
    1: [999],
    2: [999, 499],
    3: [999, 679, 339],
    4: [999, 759, 499, 259],
    8: [999, 879, 759, 639, 499, 379, 259, 139],
}


@pytest.mark.parametrize("n", SCHEDULED)
def test_times_of_the_scheduler(n):
    assert thinned(GRID[:-1], n).tolist() == SCHEDULED[n]
    sampling = lcm(GuidedConsistency(), taught()).contract(DATA).sampling
    assert list(sampling.times[n]) == SCHEDULED[n]


def test_times_that_cannot_be_thinned():
    assert thinned(GRID[:-1], 50).equal(GRID[:-1])
    for n in (0, 51):
        with pytest.raises(UsageError):
            thinned(GRID[:-1], n)


def test_a_short_grid_lists_as_many_steps_as_it_has():
    objective = lcm(GuidedConsistency(), taught(), grid=strided(5))
    times = objective.contract(DATA).sampling.times
    assert times == {
        1: (999.0,),
        2: (999.0, 599.0),
        3: (999.0, 799.0, 399.0),
        4: (999.0, 799.0, 599.0, 399.0),
        5: (999.0, 799.0, 599.0, 399.0, 199.0),
    }


# Draws and conditions.


def test_draws_are_intervals_and_scales():
    objective = lcm(GuidedConsistency(), taught(), guidance=Uniform(6, 16))
    b = Batch(normal(4000, 2).float(), {"label": torch.zeros(4000, dtype=torch.int64)})
    found = objective.draw(b, 0, Rng(0, 0, "student"))
    index = ((found.t + 1) / 20 - 1).long()
    assert torch.stack(objective.interval(index)).equal(torch.stack([found.t, found.r]))
    counts = index.bincount(minlength=50) / 4000
    assert float((counts - 0.02).abs().max()) < 0.01  # over four standard deviations
    low, high = float(found.guidance.min()), float(found.guidance.max())
    assert 6 <= low < 6.1
    assert 15.9 < high <= 16
    assert found.noise.dtype == torch.float32
    assert found.dropped is None
    same = objective.draw(b, 0, Rng(0, 0, "student"))
    other = objective.draw(b, 1, Rng(0, 1, "student"))
    for a, c, d in zip(found, same, other, strict=True):
        assert a is None or (a.equal(c) and not a.equal(d))


@pytest.mark.parametrize("embedded", [True, False])
def test_the_teacher_and_a_student_that_embeds_it_are_given_the_scale(embedded):
    student = Watched(GuidedConsistency() if embedded else Classes())
    teacher = Watched(Classes())
    step = TeacherStep(Guided(teacher, NULL), ddim)
    objective = lcm(student, step, rate=0.0, drop=ConditionDrop(0.5, NULL))
    assert objective.embedded == embedded
    b, scales = batch(3), torch.tensor([2.0, 5.0, 9.0], dtype=D)
    d = draws(objective, 3, guidance=scales, dropped=torch.tensor([True, False, False]))
    objective.loss(b, d)
    (_, at, _, cond), *_ = teacher.seen
    assert at.equal(torch.cat([d.t, d.t]))
    assert cond["label"].tolist() == [2, 1, 0, 2, 2, 2]
    (_, target_at, _, own), (_, online_at, _, also) = student.seen
    assert target_at.equal(d.r)
    assert online_at.equal(d.t)
    for each in (own, also):
        assert each["label"].tolist() == [2, 1, 0]
        assert each["guidance"].equal(scales) if embedded else "guidance" not in each


def test_a_network_without_a_scale_does_not_see_it():
    net = shaken(ResidualMLP((2,), width=8, blocks=2, classes=2))
    student = Denoiser(net, LatentBoundary(inner=EDM(sigma_data=0.5).on(PATH), path=PATH))
    objective = lcm(student, taught())
    assert not objective.embedded
    sampling = objective.contract(DATA).sampling
    assert sampling.guidance is None
    b = Batch(normal(3, 2).float(), {"label": torch.tensor([0, 1, 0])})
    assert loss_of(objective, b, draws(objective, 3)).isfinite()


def test_the_target_follows_at_its_rate():
    student = Offset(GuidedConsistency(), 0.0)
    objective = lcm(student, taught(), rate=0.95)
    with torch.no_grad():
        student.offset += 1.0
    objective.after_step(0)
    assert objective.target.offset.item() == pytest.approx(0.05)
    b = batch(50)
    d = draws(objective, 50)
    kept = loss_of(objective, b, d).item()
    with torch.no_grad():
        objective.target.offset += 3.0
    assert loss_of(objective, b, d).item() != kept
    assert lcm(student, taught()).target is None
    assert objective.frozen == ("step.teacher",)
    lcm(student, taught()).after_step(0)


# Contract and samples.


def small(embedded: bool) -> Denoiser:
    torch.manual_seed(0)
    net = shaken(ResidualMLP((2,), width=8, blocks=2, classes=2))
    start = Denoiser(net, EDM(sigma_data=0.5))
    own = grown(start, guidance=embedded)
    if embedded:
        shaken(own.net, 1)
    return Denoiser(own.net, LatentBoundary(inner=EDM(sigma_data=0.5).on(PATH), path=PATH))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_saved_model_samples_as_the_objective_says(steps, tmp_path):
    student = small(False)
    objective = lcm(student, taught(), drop=ConditionDrop(0.1, NULL))
    contract = objective.contract(DATA)
    assert (contract.method, contract.sampling.kind, contract.sampling.any_times) == (
        "lcm",
        "renoise",
        True,
    )
    assert contract.sampling.guidance == Guidance()
    Model(objective.deliver(student), contract).save(tmp_path / "model")
    model = library.load(tmp_path / "model", device="cpu")
    assert model.contract == contract
    assert model.denoiser.preconditioning == student.preconditioning
    found = model.sample(3, steps=steps, seed=5)
    noise = SampleNoise([(5, i) for i in range(3)], (2,))
    x = noise(0).double() * contract.sampling.start.std
    label = torch.arange(3) % 2
    with torch.no_grad():
        for i, time in enumerate(SCHEDULED[steps]):
            t = full(float(time), x)
            if i:
                # A sample at the first entry of the table is noised again, see the docstring.
                alpha, sigma, _, _ = PATH.coefficients(t)
                first, least, _, _ = PATH.coefficients(torch.zeros_like(t))
                std = (sigma**2 - (alpha / first * least) ** 2).sqrt()
                x = (alpha / first)[:, None] * x + std[:, None] * noise(i).double()
            x = student(x, t, None, {"label": label})
    torch.testing.assert_close(found, x.float(), rtol=1e-5, atol=1e-5)


def test_noise_again_is_nearly_that_of_lcms_scheduler():
    t = torch.tensor(SCHEDULED[8][1:], dtype=D)
    alpha, sigma, _, _ = PATH.coefficients(t)
    one, zero = torch.ones(len(t), 1, dtype=D), torch.zeros(len(t), 1, dtype=D)
    signal, noise = PATH.renoise(one, zero, t), PATH.renoise(zero, one, t)
    # LCMScheduler has alpha and sigma themselves.
    assert float((signal[:, 0] / alpha - 1).abs().max()) < 5e-4
    assert float((noise[:, 0] / sigma - 1).abs().max()) < 3e-3
    assert float((signal[:, 0] / alpha - 1).abs().min()) > 1e-4


def test_a_model_that_reads_the_scale_takes_it_from_the_caller():
    student = small(True)
    objective = lcm(student, taught(), guidance=Uniform(2, 6), drop=ConditionDrop(0.1, NULL))
    contract = objective.contract(DATA)
    assert contract.sampling.guidance == Guidance(kind="embedded", min=2.0, max=6.0)
    model = Model(student, contract)
    x = SampleNoise([(1, i) for i in range(4)], (2,))(0).double() * contract.sampling.start.std
    label, t = torch.arange(4) % 2, full(999.0, x)
    for asked, scale in ((None, 2.0), (2.0, 2.0), (5.5, 5.5)):
        cond = {"label": label, "guidance": torch.full((4,), scale, dtype=D)}
        with torch.no_grad():
            wanted = student(x, t, None, cond).float()
        torch.testing.assert_close(model.sample(4, seed=1, guidance=asked), wanted)
        assert model.calls(2, asked) == 2
    assert not model.sample(4, seed=1).equal(model.sample(4, seed=1, guidance=6.0))
    own = model.sample(4, seed=1, cond={"guidance": torch.full((4,), 5.5)})
    assert own.equal(model.sample(4, seed=1, guidance=5.5))
    for scale in (1.0, 1.9, 6.1, math.nan):
        with pytest.raises(UsageError, match=r"guidance must be in \[2.0, 6.0\]"):
            model.sample(1, guidance=scale)
    with pytest.raises(UsageError, match="reads no guidance scale"):
        AtScale(small(False), 2.0)


# Refusals.


def test_refusals():
    ve = VarianceExploding()
    two = GuidedConsistency()
    two.two_time = True
    for make, says in (
        (lambda: lcm(two, taught()), "one-time network"),
        (lambda: lcm(GuidedConsistency(), TeacherStep(Classes(ve), ddim)), "lives on"),
        (lambda: lcm(GuidedConsistency(), taught(), grid=strided(3)), "must descend from"),
        (lambda: lcm(GuidedConsistency(), taught(), grid=GRID.flip(0)), "must descend from"),
        (lambda: lcm(GuidedConsistency(), taught(), rate=1.0), "rate"),
        (lambda: lcm(GuidedConsistency(), taught(), guidance=None), "give the law"),
        (lambda: lcm(Classes(), TeacherStep(Classes(), ddim)), "needs a teacher Guided"),
        (lambda: lcm(Classes(), SameNoise(PATH)), "needs a teacher Guided"),
        (lambda: lcm(Classes(), taught(), guidance=Uniform(3, 2)), "ascend"),
        (lambda: lcm(Classes(), taught(), guidance=Uniform(-1, 2)), "0 or more"),
    ):
        with pytest.raises(UsageError, match=says):
            make()
