import pytest
import torch

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, expand
from fewstep.objectives.denoising import Denoising
from fewstep.objectives.denoising import Draws as DenoisingDraws
from fewstep.objectives.flow_matching import Draws, FlowMatching
from fewstep.objectives.shared.drop import ConditionDrop
from fewstep.paths import Linear, Trig
from fewstep.times import LogitNormal, Uniform
from oracles import (
    MIXTURE,
    PATHS_AT_REST,
    D,
    GaussianDenoiser,
    MixtureDenoiser,
    Offset,
    Watched,
    full,
    normal,
    path_id,
    quadrature,
)

each_path = pytest.mark.parametrize("path", PATHS_AT_REST, ids=path_id)


def matching(student, **kwargs) -> FlowMatching:
    return FlowMatching(student, times=LogitNormal(), **kwargs)


def expected_gradient(path, ratio: float, offset: float, scale: float) -> torch.Tensor:
    """Of the expected loss with respect to (offset, scale), by quadrature, per unit of D."""
    x0, noise, weights = quadrature()
    student = Offset(MixtureDenoiser(path, MIXTURE), offset, scale)
    t = path.time(full(ratio, x0))
    c = path.coefficients(t)
    gain = c.d_alpha - c.d_sigma * c.alpha / c.sigma
    objective = matching(student, weight=lambda t: weights / gain**2)
    loss = objective.loss(Batch(x0), Draws(t, noise)).total()
    return torch.stack(torch.autograd.grad(loss, (student.offset, student.scale)))


@each_path
@pytest.mark.parametrize("ratio", [0.6, 2.0])
def test_the_posterior_mean_is_the_minimiser(path, ratio):
    assert expected_gradient(path, ratio, 0.0, 1.0).abs().max() < 1e-8
    for offset, scale in ((0.2, 1.0), (-0.2, 1.0), (0.0, 1.3), (0.0, 0.7), (0.1, 0.8)):
        wrong_by = torch.tensor([offset, scale - 1], dtype=D)
        found = expected_gradient(path, ratio, offset, scale)
        assert found @ wrong_by > 0.1 * (wrong_by @ wrong_by)
    # In units of the denoiser the loss is the mean squared error.
    assert float(expected_gradient(path, ratio, 0.2, 1.0)[0]) == pytest.approx(0.4, abs=1e-8)


def test_the_target_is_noise_minus_data():
    student = GaussianDenoiser(Linear())
    x0, noise = normal(2, 4, 2, 3)
    t = torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=D)
    x_t = (1 - expand(t, x0)) * x0 + expand(t, x0) * noise
    velocity = (x_t - student(x_t, t)) / expand(t, x0)
    wanted = ((velocity - (noise - x0)) ** 2).mean()
    found = matching(student).loss(Batch(x0), Draws(t, noise)).terms["flow"]
    torch.testing.assert_close(found, wanted)
    weighted = matching(student, weight=lambda t: 1 + t).loss(Batch(x0), Draws(t, noise)).total()
    each = ((velocity - (noise - x0)) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(weighted, ((1 + t) * each).mean())


def test_the_target_on_the_trigonometric_path():
    path = Trig(sigma_data=0.4)
    student = Offset(GaussianDenoiser(path), 100.0, 0.0)  # a known answer
    x0, noise = normal(2, 3, 1)
    t = torch.tensor([0.3, 0.8, 1.2], dtype=D)
    x_t = t.cos()[:, None] * x0 + 0.4 * t.sin()[:, None] * noise
    answer = (x_t / t.tan()[:, None] - 100 / t.sin()[:, None]) + t.sin()[:, None] * x0
    wanted = ((answer - 0.4 * t.cos()[:, None] * noise) ** 2).mean()
    found = matching(student).loss(Batch(x0), Draws(t, noise)).total()
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)


def test_on_the_linear_path_it_is_weighted_denoising():
    student = Offset(GaussianDenoiser(Linear()), 0.3)
    x0, noise = normal(2, 5, 2, 3)
    t = torch.linspace(0.05, 0.95, 5, dtype=D)
    # 1/t^2 = (1 + alpha/sigma)^2.
    denoising = Denoising(student, times=Uniform(), weight=lambda snr: (1 + snr.sqrt()) ** 2)
    torch.testing.assert_close(
        matching(student).loss(Batch(x0), Draws(t, noise)).total(),
        denoising.loss(Batch(x0), DenoisingDraws(t, noise)).total(),
    )


def test_masked_data_does_not_count():
    student = GaussianDenoiser(Linear())
    x0, noise = normal(2, 2, 2, 3)
    mask = torch.tensor([[1.0, 0.0, 1.0]], dtype=D)
    draws, objective = Draws(full(0.4, x0), noise), matching(student)
    found = objective.loss(Batch(x0 + 100 * (1 - mask), mask=mask), draws).total()
    kept = [0, 2]
    wanted = objective.loss(Batch(x0[..., kept]), Draws(draws.t, noise[..., kept])).total()
    torch.testing.assert_close(found, wanted)


def test_dropped_labels_reach_the_network():
    student = Watched(GaussianDenoiser(Linear()))
    x0, noise = normal(2, 3, 2)
    objective = matching(student, drop=ConditionDrop(0.5, {"label": 7}))
    dropped = torch.tensor([True, False, True])
    batch = Batch(x0, {"label": torch.tensor([0, 1, 2])})
    objective.loss(batch, Draws(full(0.5, x0), noise, dropped))
    assert student.seen[0][3]["label"].tolist() == [7, 1, 7]


def test_draws_are_a_function_of_seed_and_step():
    objective = matching(GaussianDenoiser(Linear()), drop=ConditionDrop(0.5, {"label": 7}))
    batch = Batch(normal(6, 2, 3))

    def draw(*key) -> Draws:
        return objective.draw(batch, key[1], Rng(*key))

    first = draw(0, 5, "student")
    assert all(a.equal(b) for a, b in zip(first, draw(0, 5, "student"), strict=True))
    for other in ((0, 6, "student"), (1, 5, "student"), (0, 5, "critic"), (0, 5, "student", 1)):
        assert not draw(*other).noise.equal(first.noise)
        assert not draw(*other).t.equal(first.t)
    assert ((first.t > 0) & (first.t < 1)).all()
    assert matching(GaussianDenoiser(Linear())).draw(batch, 0, Rng(0, 0, "student")).dropped is None


def test_contract():
    data = DataSpec(shape=(2,), labels=3)
    plain = matching(GaussianDenoiser(Linear())).contract(data)
    assert (plain.method, plain.sampling.kind, plain.sampling.grid) == (
        "flow_matching",
        "ode",
        "uniform",
    )
    assert (plain.sampling.start.t, plain.sampling.start.std) == (1.0, 1.0)
    assert plain.sampling.guidance is None
    guided = matching(GaussianDenoiser(Linear()), drop=ConditionDrop(0.1, {"label": 3}))
    assert guided.contract(data).sampling.guidance is not None
