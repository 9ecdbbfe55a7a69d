import math

import pytest
import torch
from torch import nn

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, expand
from fewstep.objectives.denoising import Denoising, Draws
from fewstep.objectives.shared.drop import ConditionDrop
from fewstep.objectives.shared.weights import (
    karras_weight,
    min_snr,
    snr_plus_one,
    snr_weight,
    truncated_snr,
    unweighted,
)
from fewstep.paths import CosineVariancePreserving, Trig, VarianceExploding, VariancePreserving
from fewstep.times import LogNormal, Uniform
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


def denoising(student, weight=unweighted, **kwargs) -> Denoising:
    return Denoising(student, times=LogNormal(), weight=weight, **kwargs)


def expected_gradient(path, ratio: float, offset: float, scale: float) -> torch.Tensor:
    """Of the expected loss with respect to (offset, scale), by quadrature."""
    x0, noise, weights = quadrature()
    student = Offset(MixtureDenoiser(path, MIXTURE), offset, scale)
    # The loss weighs samples by a function of their time: here, by their quadrature weight.
    objective = denoising(student, weight=lambda snr: weights)
    t = path.time(full(ratio, x0))
    loss = objective.loss(Batch(x0), Draws(t, noise)).total()
    return torch.stack(torch.autograd.grad(loss, (student.offset, student.scale)))


@each_path
@pytest.mark.parametrize("ratio", [0.6, 2.0])
def test_the_posterior_mean_is_the_minimiser(path, ratio):
    # 40 nodes integrate this to 1e-9.
    assert expected_gradient(path, ratio, 0.0, 1.0).abs().max() < 1e-8
    for offset, scale in ((0.2, 1.0), (-0.2, 1.0), (0.0, 1.3), (0.0, 0.7), (0.1, 0.8)):
        wrong_by = torch.tensor([offset, scale - 1], dtype=D)
        found = expected_gradient(path, ratio, offset, scale)
        assert found @ wrong_by > 0.1 * (wrong_by @ wrong_by)
    # Half the second derivative with respect to an offset is 1: a mean, not a sum or a half.
    assert float(expected_gradient(path, ratio, 0.2, 1.0)[0]) == pytest.approx(0.4, abs=1e-8)


# Weights at signal-to-noise ratios 1/4 and 9, from the table of the module's docstring.
@pytest.mark.parametrize(
    ("weight", "wanted"),
    [
        (unweighted, [1, 1]),
        (snr_weight, [0.25, 9]),
        (snr_plus_one, [1.25, 10]),
        (truncated_snr, [1, 9]),
        (karras_weight(0.5), [4.25, 13]),
        (min_snr(), [0.25, 5]),
        (min_snr(2.0), [0.25, 2]),
    ],
)
def test_weights(weight, wanted):
    student = GaussianDenoiser(VarianceExploding())
    x0, noise = normal(2, 2, 3)
    t = torch.tensor([2.0, 1 / 3], dtype=D)
    error = ((student(x0 + t[:, None] * noise, t) - x0) ** 2).mean(1)
    found = denoising(student, weight).loss(Batch(x0), Draws(t, noise)).terms["denoising"]
    torch.testing.assert_close(found, (torch.tensor(wanted, dtype=D) * error).mean())


def test_weights_of_edm_are_one_over_its_scale_squared():
    t = torch.tensor([0.002, 0.5, 80.0], dtype=D)
    wanted = (t**2 + 0.49) / (t * 0.7) ** 2
    torch.testing.assert_close(karras_weight(0.7)(VarianceExploding().snr(t)), wanted)


@pytest.mark.parametrize(
    "path", [VariancePreserving(), CosineVariancePreserving(), Trig(sigma_data=1.0)], ids=path_id
)
@pytest.mark.parametrize(("weight", "word"), [(snr_weight, "noise"), (snr_plus_one, "v")])
def test_losses_of_other_parametrisations_are_weights(path, weight, word):
    student = Offset(GaussianDenoiser(path), 0.3)
    x0, noise = normal(2, 5, 2, 3)
    t = torch.linspace(0.1, 0.9, 5, dtype=D)
    x_t = path.perturb(x0, noise, t)
    answer, truth = (getattr(path, word)(x_t, x, t) for x in (student(x_t, t), x0))
    found = denoising(student, weight).loss(Batch(x0), Draws(t, noise)).total()
    torch.testing.assert_close(found, ((answer - truth) ** 2).mean(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("event", [(2,), (1, 8, 8), (3, 2, 4, 4)])
def test_masked_data_does_not_count(event):
    student = GaussianDenoiser(VarianceExploding())
    x0, noise = normal(2, 3, *event)
    t = torch.tensor([0.1, 1.0, 5.0], dtype=D)
    mask = (normal(1, *event, seed=1) > 0).double()
    mask.flatten()[0], mask.flatten()[1] = 1, 0
    spoiled = x0 + 100 * (1 - mask)
    draws = Draws(t, noise)
    objective = denoising(student)
    found = objective.loss(Batch(spoiled, mask=mask), draws).total()
    assert found == objective.loss(Batch(x0, mask=mask), draws).total()
    error = (student(x0 + expand(t, x0) * noise, t) - x0) ** 2 * mask
    torch.testing.assert_close(found, (error.flatten(1).sum(1) / mask.sum()).mean())


def test_dropped_labels_reach_the_network():
    student = Watched(GaussianDenoiser(VarianceExploding()))
    x0, noise = normal(2, 3, 2)
    cond = {"label": torch.tensor([0, 1, 2]), "text": normal(3, 4)}
    objective = denoising(student, drop=ConditionDrop(0.5, {"label": 7}))
    dropped = torch.tensor([True, False, True])
    objective.loss(Batch(x0, cond), Draws(full(1.0, x0), noise, dropped))
    seen = student.seen[0][3]
    assert seen["label"].tolist() == [7, 1, 7]
    assert seen["text"] is cond["text"]


def test_labels_are_dropped_with_their_probability():
    rng = Rng(0, 0, "student")
    share = ConditionDrop(0.2, {"label": 7}).draw(20_000, rng).double().mean()
    assert float(share) == pytest.approx(0.2, abs=0.012)  # four standard deviations
    assert not ConditionDrop(0.0, {}).draw(100, rng).any()
    assert ConditionDrop(1.0, {}).draw(100, rng).all()


class Level(nn.Module):
    """u = level + slope * time, with what it was asked."""

    def __init__(self, level: float, slope: float = 0.0) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level, dtype=D))
        self.slope = nn.Parameter(torch.tensor(slope, dtype=D))

    def forward(self, c_noise: torch.Tensor) -> torch.Tensor:
        self.seen = c_noise
        return self.level + self.slope * c_noise


def test_an_uncertainty_divides_the_error_and_pays_for_it():
    student = Offset(GaussianDenoiser(VarianceExploding()), 0.3)
    x0, noise = normal(2, 3, 2)
    t = torch.tensor([0.1, 1.0, 5.0], dtype=D)
    head = Level(0.4, 2.0)
    found = denoising(student, karras_weight(0.5), uncertainty=head).loss(
        Batch(x0), Draws(t, noise)
    )
    u = 0.4 + 2 * t.log() / 4
    error = ((student(x0 + t[:, None] * noise, t) - x0) ** 2).mean(1) * (t**-2 + 4)
    torch.testing.assert_close(found.terms["denoising"], (error * (-u).exp() + u).mean())
    torch.testing.assert_close(found.logs["weighted_error"], error.mean().detach())
    torch.testing.assert_close(head.seen, t.log() / 4)


@pytest.mark.parametrize("path", PATHS_AT_REST, ids=path_id)
def test_an_uncertainty_reads_the_ratio_of_noise_to_signal(path):
    head = Level(0.0)
    x0, noise = normal(2, 1, 2)
    objective = denoising(GaussianDenoiser(path), uncertainty=head)
    objective.loss(Batch(x0), Draws(path.time(full(0.6, x0)), noise))
    torch.testing.assert_close(head.seen, full(0.25, x0) * torch.tensor(0.6, dtype=D).log())


def test_the_best_uncertainty_is_the_logarithm_of_the_error():
    student = GaussianDenoiser(VarianceExploding())
    x0, noise = normal(2, 6, 2)
    draws = Draws(torch.linspace(0.2, 2, 6, dtype=D), noise)
    error = float(denoising(student, snr_weight).loss(Batch(x0), draws).total())
    for wrong_by in (0.0, 0.5, -0.5):
        head = Level(math.log(error) + wrong_by)
        denoising(student, snr_weight, uncertainty=head).loss(Batch(x0), draws).total().backward()
        assert float(head.level.grad) == pytest.approx(1 - math.exp(-wrong_by), abs=1e-12)


def test_an_uncertainty_is_trained_with_the_student():
    student, head = Offset(GaussianDenoiser(VarianceExploding()), 0.3), Level(0.4)
    objective = denoising(student, uncertainty=head)
    (phase,) = objective.phases()
    assert {*phase.module.parameters()} == {*student.parameters(), *head.parameters()}
    assert any(module is student for module in phase.module.modules())
    assert {*objective.state_dict()} >= {"uncertainty.level", "uncertainty.slope"}
    assert objective.deliver(student) is student


def test_draws_are_a_function_of_seed_and_step():
    objective = Denoising(
        GaussianDenoiser(VarianceExploding()),
        times=Uniform(2.0, 3.0),
        weight=unweighted,
        drop=ConditionDrop(0.5, {"label": 7}),
    )
    batch = Batch(normal(6, 2, 3))

    def draw(*key) -> Draws:
        return objective.draw(batch, key[1], Rng(*key))

    first, again = draw(0, 5, "student"), draw(0, 5, "student")
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    for other in ((0, 6, "student"), (1, 5, "student"), (0, 5, "critic"), (0, 5, "student", 1)):
        assert not draw(*other).noise.equal(first.noise)
        assert not draw(*other).t.equal(first.t)
    assert first.t.shape == first.dropped.shape == (6,)
    assert ((first.t >= 2) & (first.t <= 3)).all()
    assert first.noise.shape == batch.x0.shape
    (phase,) = objective.phases()
    assert phase.module is objective.student
    assert phase.loss(batch, phase.draw(batch, 5, Rng(0, 5, "student"))).total().isfinite()


def test_contract():
    path, data = VarianceExploding(0.01, 50.0), DataSpec(shape=(2,), labels=3)
    plain = denoising(GaussianDenoiser(path)).contract(data)
    assert (plain.method, plain.data, plain.sampling.kind) == ("edm", data, "ode")
    assert (plain.sampling.start.t, plain.sampling.start.std) == (50.0, 50.0)
    assert plain.sampling.any_times
    assert plain.sampling.guidance is None
    guided = denoising(
        GaussianDenoiser(path), drop=ConditionDrop(0.1, {"label": 3}), grid="uniform"
    )
    assert guided.contract(data).sampling.guidance is not None
    assert guided.contract(data).sampling.grid == "uniform"
    undropped = denoising(GaussianDenoiser(path), drop=ConditionDrop(0.0, {"label": 3}))
    assert undropped.contract(data).sampling.guidance is None
