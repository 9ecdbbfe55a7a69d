"""Drifting: the official code's numbers, two points by hand, symmetries, and who meets whom."""

import math

import pytest
import torch
from torch import nn

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError
from fewstep.data import Mixture
from fewstep.model import Model
from fewstep.models import EDM, AbstractDenoiser, Denoiser
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.base import Loss
from fewstep.objectives.drifting import Drifting, drifted, pulls
from fewstep.objectives.shared.matching import FewSteps, Made
from fewstep.paths import Linear, Trig, VarianceExploding
from oracles import D, normal, path_id
from small_nets import shaken

VE = VarianceExploding()
PATHS = [VE, Linear(), Trig()]


class Answers(AbstractDenoiser):
    """Says what it is told to, moved by a parameter."""

    two_time = False

    def __init__(self, x, path=VE, labelled=False) -> None:
        super().__init__()
        self.path, self.cond_keys = path, ("label",) if labelled else ()
        self.x = nn.Parameter(x)

    def forward(self, x, t, s=None, cond=None):
        return self.x


def drifting(x, label=None, path=VE, **options) -> Drifting:
    options = {"group": len(x), **options}
    student = Answers(x, path, label is not None)
    return Drifting(student, generate=FewSteps((path.t_max,)), **options)


def loss_of(x, data, label=None, **options):
    """The loss, and where the student is to go: down its gradient."""
    objective = drifting(x.clone(), label, **options)
    cond = {} if label is None else {"label": label}
    draws = Made(normal(1, *x.shape), torch.tensor(0))
    loss = objective.loss(Batch(data, cond), draws)
    loss.total().backward()
    loss = Loss({k: v.detach() for k, v in loss.terms.items()}, loss.logs)
    return loss, -objective.student.x.grad


# The official code (lambertae/drifting at accd0cf, drift_loss.py), run in float32 on these.
X = torch.arange(24, dtype=D).mul(0.7).sin().reshape(2, 4, 3)
Y = torch.arange(24, dtype=D).mul(1.3).cos().mul(0.6).add(0.3).reshape(2, 4, 3)
OFFICIAL = {
    (0.02, 0.05, 0.2): (
        [8.088859558105469, 8.051758766174316],
        [
            *(0.4784174, 0.3516782, 0.6394292, -0.2747536, -0.1271835, 0.0813198),
            *(0.0161792, 0.0202761, -0.0097878, 0.2311204, 0.2193858, 0.5164129),
            *(0.3277921, 0.4985557, -0.3742874, 0.0062663, 0.0153682, 0.0017307),
            *(0.0061643, -0.1823677, -0.2063778, 0.3710589, 0.6174407, -0.3631669),
        ],
        [1.4625031326431781e-05, 0.00033405525027774274, 0.002959171310067177],
    ),
    (0.5,): (
        [0.9176410436630249, 1.0823590755462646],
        [
            *(-0.0671157, -0.0062192, 0.0983831, -0.2900633, -0.1236957, 0.0869058),
            *(0.0145909, 0.0376138, 0.0055912, -0.0778849, -0.0114563, 0.1015971),
            *(0.0833673, 0.0743946, -0.1633708, 0.0500632, 0.0524825, -0.0201681),
            *(0.0664083, -0.1109585, -0.2547669, 0.0837819, 0.0811832, -0.1559844),
        ],
        [0.02110062912106514],
    ),
}


def test_the_official_numbers_of_two_labels():
    label = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    for temperatures, (losses, grad, sizes) in OFFICIAL.items():
        for order in (torch.arange(8), torch.tensor([4, 0, 5, 1, 2, 7, 3, 6])):
            loss, home = loss_of(
                X.flatten(0, 1)[order],
                Y.flatten(0, 1)[order],
                label[order],
                temperatures=temperatures,
            )
            assert float(loss.total()) == pytest.approx(sum(losses) / 2, rel=1e-5)
            wanted = -torch.tensor(grad, dtype=D).reshape(8, 3)[order]
            torch.testing.assert_close(home, wanted, rtol=1e-4, atol=1e-6)
            found = [float(loss.logs[f"drift/{r:g}/0"]) for r in temperatures]
            assert found == pytest.approx(sizes, rel=1e-4)


# By hand.


def test_one_sample_and_one_datum():
    x, y = torch.tensor([[0.5]], dtype=D)[None, None], torch.tensor([[2.0]], dtype=D)[None, None]
    there, unit, (size,) = drifted(x, y, torch.zeros(1, 1), (0.5,))
    r = (1e-4 + 1.5) / 2  # itself at the least distance, and the datum
    assert float(unit) == pytest.approx(r)
    # The datum has all of the sample, itself almost nothing: the least, 1e-3.
    drift = 1e-3 * 1.0 * (2.0 - 0.5) / r
    assert float(size) == pytest.approx(drift**2)
    assert float(there) == pytest.approx(0.5 / r + 1.0)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_two_samples_and_two_data(temperature):
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=D)
    y = torch.tensor([[1.0, 0.0], [3.0, 1.0]], dtype=D)
    there, unit, (size,) = drifted(x[None, None], y[None, None], torch.zeros(1, 2), (temperature,))
    far = [[1e-4, 1, 1, math.sqrt(10)], [1, 1e-4, math.sqrt(2), 3]]
    r = sum(map(sum, far)) / 8
    assert float(unit) == pytest.approx(r / math.sqrt(2))
    for i in range(2):
        far[i][i] += 100 * r
    e = [[math.exp(-v / r / temperature) for v in row] for row in far]
    a = [
        [
            max(e[i][j] / sum(e[i]) * e[i][j] / (e[0][j] + e[1][j] + 1e-300), 1e-6) ** 0.5
            for j in range(4)
        ]
        for i in range(2)
    ]
    drift = torch.zeros(2, 2, dtype=D)
    for i in range(2):
        for j in range(2):
            for k in range(2):
                drift[i] += a[i][2 + j] * a[i][k] * (y[j] - x[k]) / unit
    if temperature < 1:  # a sample's column holds nothing but the other sample
        assert a[0][1] == pytest.approx((e[0][1] / sum(e[0])) ** 0.5)
    size_by_hand = drift.square().mean()
    torch.testing.assert_close(size, size_by_hand)
    torch.testing.assert_close(there[0, 0], x / unit + drift / size_by_hand.sqrt())


# Symmetries.


def far(n: int, k: int, seed: int = 0) -> torch.Tensor:
    x, targets = normal(n, 3, seed=seed), normal(k, 3, seed=seed + 1)
    return torch.cdist(x, targets)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_the_drift_swaps_sign_with_the_sets(temperature):
    distance, meets = far(5, 8), torch.ones(5, 8, dtype=torch.bool)
    targets = normal(8, 3, seed=1)
    found = pulls(distance, meets, temperature)
    swapped = pulls(distance.roll(4, 1), meets, temperature)
    torch.testing.assert_close(found.roll(4, 1), -swapped, rtol=1e-12, atol=0)
    assert (found[:, :4] < 0).all()
    assert (found[:, 4:] > 0).all()
    assert found.sum(1).abs().max() < 1e-15
    moved = swapped @ targets.roll(4, 0)
    torch.testing.assert_close(found @ targets, -moved)


def test_no_drift_between_equal_sets():
    distance, targets = far(5, 4), normal(4, 3, seed=1)
    order = torch.tensor([2, 0, 3, 1])
    distance = torch.cat([distance, distance[:, order]], 1)
    found = pulls(distance, torch.ones(5, 8, dtype=torch.bool), 0.4)
    drift = found @ torch.cat([targets, targets[order]])
    assert found.abs().min() > 1e-5
    assert drift.abs().max() < 1e-15


def test_equal_laws_drift_nowhere_on_average():
    means = []
    for shift in (0.0, 0.3):
        x, y = normal(2000, 1, 8, 2), normal(2000, 1, 8, 2, seed=1) + shift
        label = torch.zeros(2000, 8)
        there, unit, _ = drifted(x, y, label, (0.2,))
        means.append((there - x / unit).flatten(0, 2).mean(0))
    assert means[0].norm() < 0.03  # 16 000 samples of size 1: 0.008 each way
    assert (means[1] > 0.2).all()


def test_the_loss_is_no_measure_of_progress():
    for shift in (0.0, 5.0):
        loss, _ = loss_of(normal(64, 2), normal(64, 2, seed=1) + shift)
        assert 3 <= float(loss.total()) <= 9
        assert float(loss.logs["drift/0.2/0"]) < 1
    loss, home = loss_of(normal(64, 2), normal(64, 2, seed=1), temperatures=(0.2,))
    assert float(loss.total()) == pytest.approx(1)
    assert home.abs().max() > 0


@pytest.mark.parametrize("move", [7.0, -300.0])
def test_moving_both_sets_moves_nothing_else(move):
    x, y = normal(6, 2), normal(6, 2, seed=1)
    (a, home_a), (b, home_b) = loss_of(x, y), loss_of(x + move, y + move)
    torch.testing.assert_close(a.total(), b.total(), rtol=1e-9, atol=0)
    torch.testing.assert_close(home_a, home_b, rtol=1e-8, atol=1e-12)
    # In other units the loss is the same, and the gradient is that of the old ones.
    c, home_c = loss_of(4 * x, 4 * y)
    torch.testing.assert_close(a.total(), c.total(), rtol=1e-3, atol=0)
    torch.testing.assert_close(home_a, 4 * home_c, rtol=1e-2, atol=1e-4)


def test_order_does_not_matter():
    x, y = normal(6, 2), normal(6, 2, seed=1)
    order, other = torch.randperm(6), torch.randperm(6)
    (a, home), (b, turned) = loss_of(x, y), loss_of(x[order], y[other])
    torch.testing.assert_close(a.total(), b.total())
    torch.testing.assert_close(home[order], turned)


@pytest.mark.parametrize("offset", [0.5, -0.5])
@pytest.mark.parametrize("path", PATHS, ids=path_id)
def test_gradient_points_home(path, offset):
    _, home = loss_of(0.7 * normal(64, 2) + offset, 0.7 * normal(64, 2, seed=1), path=path)
    assert (home.mean(0) * offset < 0).all()


def test_no_gradient_reaches_the_goal():
    x, y = normal(6, 2), normal(6, 2, seed=1)
    there, unit, _ = drifted(x[None, None], y[None, None], torch.zeros(1, 6), (0.02, 0.05, 0.2))
    assert not there.requires_grad
    _, home = loss_of(x, y)
    drift = there[0, 0] - x / unit
    torch.testing.assert_close(home, 2 * drift / unit / x.numel())


# Who meets whom.


def test_labels_meet_their_own_only():
    x, y = normal(8, 2), normal(8, 2, seed=1)
    label = torch.tensor([0, 1, 0, 1, 1, 0, 0, 2])
    # One temperature and normaliser per call: compare drifts by their directions.
    _, home = loss_of(x, y, label, temperatures=(0.2,))
    moved_y, moved_x = y.clone(), x.clone()
    moved_y[label == 1] *= -1
    moved_x[label == 2] += 3.0
    kept = label == 0
    for changed in (
        loss_of(x, moved_y, label, temperatures=(0.2,))[1],
        loss_of(moved_x, y, label, temperatures=(0.2,))[1],
    ):
        turned = torch.cosine_similarity(home[kept], changed[kept])
        assert (turned > 0.99).all()
    unlabelled = loss_of(x, moved_y, temperatures=(0.2,))[1]
    assert (torch.cosine_similarity(home[kept], unlabelled[kept]) < 0.9).any()
    # Alone with its datum: straight to it.
    torch.testing.assert_close(
        home[7] / home[7].norm(), (y[7] - x[7]) / (y[7] - x[7]).norm(), rtol=1e-6, atol=0
    )


def test_half_precision_is_the_networks_alone():
    x, y = normal(6, 2).float(), normal(6, 2, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss, home = loss_of(x, y)
    plain, wanted = loss_of(x, y)
    assert loss.total().equal(plain.total())
    assert home.equal(wanted)


def test_labels_that_the_student_does_not_read_part_nobody():
    x, y = normal(6, 2), normal(6, 2, seed=1)
    draws = Made(normal(1, 6, 2), torch.tensor(0))
    cond = {"label": torch.arange(6)}
    found = drifting(x.clone()).loss(Batch(y, cond), draws).total()
    assert found.equal(drifting(x.clone()).loss(Batch(y), draws).total())


def test_groups_are_neighbours_as_labels_are():
    x, y = normal(8, 2), normal(8, 2, seed=1)
    label = torch.arange(2).repeat_interleave(4)
    (a, home), (b, other) = loss_of(x, y, group=4), loss_of(x, y, label)
    torch.testing.assert_close(a.total(), b.total())
    torch.testing.assert_close(home, other)


class Two(nn.Module):
    """Two features: all of it, and a map with a vector for each of four positions."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(normal(3, 5, seed=9))

    def forward(self, x):
        return [x.flatten(1).square(), x.movedim(1, -1) @ self.matrix]


def test_features_are_added_up_and_their_positions_are_separate():
    x, y = normal(6, 3, 2, 2), normal(6, 3, 2, 2, seed=1)
    features = Two()
    loss, _ = loss_of(x, y, features=features)
    (first, _), (whole, _) = (
        loss_of(f[0], f[1]) for f in zip(features(x), features(y), strict=True)
    )
    assert features.matrix.grad is None
    assert not features.matrix.requires_grad
    of_map = float(loss.total() - first.total())
    maps = [
        f.detach().reshape(6, 4, 5).movedim(1, 0)[None] for f in (features(x)[1], features(y)[1])
    ]
    there, unit, _ = drifted(*maps, torch.zeros(1, 6), (0.02, 0.05, 0.2))
    assert of_map == pytest.approx(float(((there - maps[0] / unit) ** 2).mean()))
    assert of_map != pytest.approx(float(whole.total()), rel=1e-3)
    # Moving one position's targets moves no other position's goal, but for the common units.
    assert {name for name in loss.logs if name.startswith("drift/")} == {
        f"drift/{r}/{i}" for r in (0.02, 0.05, 0.2) for i in (0, 1)
    }


# Learning, draws, contract, refusals.


def test_samples_leave_one_mode_for_two():
    data = Mixture(
        torch.tensor([0.3, 0.7]),
        torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=D),
        torch.tensor([0.1, 0.1], dtype=D),
    )
    rng = torch.Generator().manual_seed(0)
    objective = drifting(0.1 * normal(64, 2) + data.means[1], temperatures=(0.2, 0.5, 1.0))
    optimizer = torch.optim.SGD(objective.parameters())
    draws = Made(normal(1, 64, 2), torch.tensor(0))
    for step in range(100):
        optimizer.param_groups[0]["lr"] = 12 * (1 - step / 100)
        optimizer.zero_grad()
        objective.loss(Batch(data.sample(64, rng)), draws).total().backward()
        optimizer.step()
    x = objective.student.x.detach()
    right = x[:, 0] > 0
    assert float(right.double().mean()) == pytest.approx(0.7, abs=0.08)
    for side, mean in ((right, data.means[1]), (~right, data.means[0])):
        torch.testing.assert_close(x[side].mean(0), mean, rtol=0, atol=0.15)
        assert float(x[side].std(0).max()) < 0.4


def network(**options) -> Denoiser:
    return Denoiser(shaken(ResidualMLP((2,), width=8, blocks=1, **options)), EDM(sigma_data=0.5))


def test_draws_and_determinism():
    objective = Drifting(network(), generate=FewSteps((80.0,)), group=4)
    batch = Batch(normal(8, 2).float())
    a, b, c = (objective.draw(batch, 0, Rng(0, step, "student")) for step in (0, 0, 1))
    assert a.noise.equal(b.noise)
    assert not a.noise.equal(c.noise)
    assert objective.loss(batch, a).total().equal(objective.loss(batch, b).total())


def test_contract_and_samples():
    objective = Drifting(network(), generate=FewSteps((80.0,)))
    contract = objective.contract(DataSpec(shape=(2,), range=None))
    assert contract.method == "drifting"
    assert contract.sampling.times == {1: (80.0,)}
    assert not contract.sampling.any_times
    model = Model(objective.deliver(objective.student), contract)
    assert model.sample(3, seed=1).shape == (3, 2)
    (phase,) = objective.phases()
    assert phase.module is objective.student
    assert objective.frozen == ()
    features = Drifting(network(), generate=FewSteps((80.0,)), features=Two())
    assert features.frozen == ("features",)


def test_refusals():
    student = network()
    with pytest.raises(UsageError, match="one call"):
        Drifting(student, generate=FewSteps((80.0, 1.0)))
    for options in ({"group": 1}, {"temperatures": ()}, {"temperatures": (0.1, 0.0)}):
        with pytest.raises(UsageError, match="expected a group"):
            Drifting(student, generate=FewSteps((80.0,)), **options)
    objective = Drifting(student, generate=FewSteps((80.0,)), group=4)
    assert objective.capabilities.batch_multiple == 4
    with pytest.raises(UsageError, match="multiple of 4"):
        objective.draw(Batch(normal(6, 2)), 0, Rng(0, 0, "student"))
    x = normal(4, 2)
    with pytest.raises(UsageError, match="no masks"):
        drifting(x).loss(Batch(x, mask=torch.ones(4, 2)), Made(x[None], torch.tensor(0)))
