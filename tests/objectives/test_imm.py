"""IMM: what a point's exact jump, the kernel's definition and the paper's formulas demand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.contract import DataSpec
from fewstep.core import Batch, Rng, UsageError, expand
from fewstep.model import Model
from fewstep.models import EDM, Denoiser, Flow, TrigFlow, VPrediction
from fewstep.objectives.imm import Draws, InductiveMomentMatching, laplace
from fewstep.objectives.shared.drop import ConditionDrop
from fewstep.paths import (
    CosineVariancePreserving,
    DiscreteVariancePreserving,
    Linear,
    Path,
    Trig,
    VarianceExploding,
    VariancePreserving,
)
from oracles import (
    D,
    Gaussian,
    GaussianDenoiser,
    GaussianFlowMap,
    Offset,
    full,
    normal,
    path_id,
    slope,
)

DATA = Gaussian(0.3, 0.7)
POINT = Gaussian(0.3, 0.0)
SD = 0.5
LINEAR, TRIG = Linear(0.006, 0.994), Trig(0.01, 1.55)
PATHS = [
    LINEAR,
    Linear(0.0, 0.9),
    TRIG,
    VarianceExploding(0.1, 10.0),
    VariancePreserving(0.1, 0.9),
    CosineVariancePreserving(0.1, 0.9),
    DiscreteVariancePreserving(50.0, 900.0),
]
each_path = pytest.mark.parametrize("path", PATHS, ids=path_id)


class Answers(nn.Module):
    """A network that makes its denoiser answer as another one does; its times are the path's."""

    cond_keys, two_time = (), True

    def __init__(self, oracle, preconditioning) -> None:
        super().__init__()
        self.oracle, self.preconditioning, self.seen = oracle, preconditioning, []

    def forward(self, x, c_noise, s_noise=None, cond=None):
        c_skip, c_out, c_in, _ = (expand(v, x) for v in self.preconditioning.coefficients(c_noise))
        x = x / c_in
        self.seen.append((x, c_noise, s_noise))
        # A jump to where it starts has no answer of its own.
        there = torch.where(s_noise == c_noise, c_noise * (1 - 1e-6), s_noise)
        return (self.oracle(x, c_noise, there, cond) - c_skip * x) / c_out


def student(oracle, preconditioning=None) -> Denoiser:
    preconditioning = preconditioning or VPrediction(path=oracle.path, time_scale=1.0)
    return Denoiser(Answers(oracle, preconditioning), preconditioning)


def imm(oracle, **options) -> InductiveMomentMatching:
    return InductiveMomentMatching(student(oracle), **{"sigma_data": SD, **options})


def grouped(
    path: Path, groups: int, m: int = 4, near: float = 0.7
) -> tuple[Tensor, Tensor, Tensor]:
    """Times all over the range; ``near`` is where r is between s and t."""
    t = torch.linspace(path.t_max, path.t_min, groups + 1, dtype=D)[:-1].repeat_interleave(m)
    s = path.t_min + 0.3 * (t - path.t_min)
    return t, s + near * (t - s), s


def drawn(data: Gaussian, b: int, *event: int) -> tuple[Tensor, Tensor]:
    x0, noise = normal(2, b, *event)
    return data.mean + data.std * x0, noise


# At the exact solution.


@pytest.mark.parametrize("event", [(2,), (1,), (3, 2, 4)], ids=str)
@each_path
def test_zero_where_the_jumps_of_both_points_meet(path, event):
    # Data that is one point: the DDIM line is the flow itself.
    x0, noise = drawn(POINT, 12, *event)
    for near in (0.9, 0.5, 0.0):
        loss = imm(GaussianFlowMap(path, POINT)).loss(
            Batch(x0), Draws(*grouped(path, 3, near=near), noise)
        )
        assert 0 <= float(loss.total()) + 1e-12 < 1e-10


@pytest.mark.parametrize("path", [LINEAR, TRIG], ids=path_id)
def test_the_exact_map_leaves_only_the_samples_own_distance(path):
    # Equal laws: what is left falls as 1 / M. Of a jump by the denoiser's answer the laws differ.
    sizes, found = [16, 64, 256], {}
    t, s = 0.9 * path.t_max, 0.2 * path.t_max
    for oracle in (GaussianFlowMap, GaussianDenoiser):
        found[oracle] = []
        for m in sizes:
            x0, noise = drawn(DATA, 1024, 1)
            times = (full(v, x0) for v in (t, 0.5 * (s + t), s))
            objective = imm(oracle(path, DATA), group=m)
            loss = objective.loss(Batch(x0), Draws(*times, noise))
            found[oracle].append(float(loss.logs["mmd"]))
    assert slope(sizes, found[GaussianFlowMap]) == pytest.approx(-1, abs=0.15)
    assert found[GaussianDenoiser][-1] > 5 * found[GaussianFlowMap][-1]


@pytest.mark.parametrize("data", [DATA, POINT], ids=["normal", "point"])
@pytest.mark.parametrize("near", [0.0, 0.6])
@each_path
def test_the_gradient_points_home(path, near, data):
    x0, noise = drawn(data, 512, 2)
    for offset in (0.3, -0.3):
        wrong = Offset(GaussianFlowMap(path, data), offset)
        draws = Draws(*grouped(path, 128, near=near), noise)
        imm(wrong).loss(Batch(x0), draws).total().backward()
        assert float(wrong.offset.grad) * offset > 0


# The kernel, and the sum over pairs.


def test_the_kernels_gradient_is_its_value_over_its_width():
    x = normal(2, 3, 5).requires_grad_()
    y, width = normal(2, 4, 5, seed=1), torch.tensor([0.5, 2.0], dtype=D)
    k = laplace(x, y, width)
    for g in range(2):
        for i in range(3):
            for j in range(4):
                far = float((x[g, i] - y[g, j]).detach().norm())
                assert float(k[g, i, j].detach()) == pytest.approx(math.exp(-far / width[g]))
                (grad,) = torch.autograd.grad(k[g, i, j], x, retain_graph=True)
                assert float(grad.norm()) == pytest.approx(float((k[g, i, j] / width[g]).detach()))
                assert float(grad[g, i] @ (x[g, i] - y[g, j]).detach()) < 0


def test_a_sample_has_no_distance_and_no_gradient_to_itself():
    x = normal(1, 3, 5).requires_grad_()
    width = torch.ones(1, dtype=D)
    k = laplace(x, x.detach(), width).diagonal(dim1=1, dim2=2)
    assert k.tolist() == [[math.exp(-1e-8)] * 3]
    k.sum().backward()
    assert x.grad.tolist() == torch.zeros(1, 3, 5).tolist()
    # Samples that differ in the last places only, far from zero.
    near = (1000 + 1e-4 * torch.arange(3.0)).reshape(1, 3, 1)
    wanted = (near[:, :, None] - near[:, None]).abs()[..., 0].clamp(min=1e-8)
    torch.testing.assert_close(laplace(near, near, torch.ones(1)), (-wanted).exp())


def by_hand(objective, x0, draws, m: int, c_out, weight) -> float:
    """The paper's double sum, group by group."""
    path, (t, r, s, noise, _) = objective.student.path, draws
    x_t = path.perturb(x0, noise, t)
    x_r = path.perturb(x0, noise, r)
    y_t, y_r = objective.student.jump(x_t, t, s), objective.student.jump(x_r, r, s)
    total, groups = 0.0, len(x0) // m
    for g in range(groups):
        first = g * m
        width = abs(c_out(float(t[first]), float(s[first]))) * x0[0].numel()

        def k(a, b, width=width):
            return math.exp(-max(float((a - b).norm()), 1e-8) / width)

        pairs = [(i, j) for i in range(first, first + m) for j in range(first, first + m)]
        mmd = sum(
            k(y_t[i], y_t[j]) + k(y_r[i], y_r[j]) - k(y_t[i], y_r[j]) - k(y_t[j], y_r[i])
            for i, j in pairs
        )
        total += weight(float(t[first])) * mmd / m**2 / groups
    return total


def paper_weight(alpha: float, sigma: float, slope: float, a: float, b: float) -> float:
    logsnr = 2 * math.log(alpha / sigma)
    return 0.5 / (1 + math.exp(logsnr - b)) * slope * alpha**a / (alpha**2 + sigma**2)


@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize(("a", "b"), [(1.0, 4.0), (2.0, 5.0)])
def test_the_loss_is_the_papers_sum_on_its_own_path(m, a, b):
    # OT-FM with unit data, Euler-FM.
    oracle = GaussianDenoiser(LINEAR, DATA)
    objective = InductiveMomentMatching(
        student(oracle, Flow(path=LINEAR)), sigma_data=1.0, group=m, a=a, b=b
    )
    x0, noise = drawn(DATA, 8, 2)
    draws = Draws(*grouped(LINEAR, 8 // m, m), noise)
    wanted = by_hand(
        objective,
        x0,
        draws,
        m,
        lambda t, s: t - s,
        lambda t: paper_weight(1 - t, t, 2 / (t * (1 - t)), a, b),
    )
    assert float(objective.loss(Batch(x0), draws).total()) == pytest.approx(wanted, rel=1e-9)


def test_the_loss_is_the_papers_sum_with_its_noise():
    # Cosine with noise of the data's standard deviation, Simple-EDM.
    oracle = GaussianDenoiser(TRIG, DATA)
    objective = InductiveMomentMatching(student(oracle, TrigFlow(path=TRIG)), sigma_data=SD)
    x0, noise = drawn(DATA, 8, 2, 3)
    draws = Draws(*grouped(TRIG, 2), noise)
    wanted = by_hand(
        objective,
        x0,
        draws,
        4,
        lambda t, s: SD * math.sin(t - s),
        lambda t: paper_weight(math.cos(t), math.sin(t), 4 / math.sin(2 * t), 1.0, 4.0),
    )
    found = objective.loss(Batch(x0), draws)
    assert float(found.total()) == pytest.approx(wanted, rel=1e-9)
    # Groups are neighbours and do not meet: another group's samples change nothing of the first.
    first = Draws(*(None if v is None else v[:4] for v in draws))
    both = [
        float(
            objective.loss(Batch(x0[i : i + 4]), Draws(*(v[i : i + 4] for v in draws[:4]))).total()
        )
        for i in (0, 4)
    ]
    assert float(objective.loss(Batch(x0[:4]), first).total()) == both[0]
    assert float(found.total()) == pytest.approx(sum(both) / 2, rel=1e-12)
    # Within a group, the order of the samples does not matter.
    order = torch.tensor([2, 0, 3, 1, 4, 5, 6, 7])
    shuffled = Draws(*(v[order] for v in draws[:4]))
    assert float(objective.loss(Batch(x0[order]), shuffled).total()) == pytest.approx(wanted)


def test_one_sample_a_group_is_a_consistency_model():
    # 2 w (1 - k): a distance between the two answers, so the gradient draws one to the other.
    wrong = Offset(GaussianFlowMap(LINEAR, DATA), 0.4)
    objective = imm(wrong, group=1)
    x0, noise = drawn(DATA, 6, 2)
    draws = Draws(*grouped(LINEAR, 6, 1), noise)
    loss = objective.loss(Batch(x0), draws).total()
    x_t, x_r = (LINEAR.perturb(x0, noise, v) for v in draws[:2])
    with torch.no_grad():
        y_r = objective.student.jump(x_r, draws.r, draws.s)
    y_t = objective.student.jump(x_t, draws.t, draws.s)
    far = (y_t - y_r).norm(dim=1) / (2 * objective.c_out(draws.t, draws.s).abs())
    wanted = (2 * objective.weight(draws.t) * (1 - (-far).exp())).mean()
    torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-9)
    grads = [torch.autograd.grad(v, wrong.offset)[0] for v in (loss, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-12)


# Parametrisations.


@pytest.mark.parametrize("path", [LINEAR, TRIG, CosineVariancePreserving(0.1, 0.9)], ids=path_id)
def test_edm_on_the_path_is_simple_edm(path):
    # In the paper's units: noise of the data's standard deviation.
    net = ResidualNet()
    # EDM's levels must reach as far as the path's.
    edm = EDM(sigma_data=SD, path=VarianceExploding(0.002, 200.0))
    denoiser = Denoiser(net, edm.on(path))
    t, _, s = grouped(path, 3)
    x = normal(12, 2)
    (a_t, s_t, _, _), (a_s, s_s, _, _) = map(path.coefficients, (t, s))
    s_t, s_s = s_t / SD, s_s / SD
    power = a_t**2 + s_t**2
    c_skip, c_out = (a_t * a_s + s_t * s_s) / power, -(a_s * s_t - a_t * s_s) * SD / power.sqrt()
    c_in = 1 / (SD * power.sqrt())
    network = denoiser.raw(x, t, s)
    # EDM's output has the other sign.
    wanted = expand(c_skip, x) * x - expand(c_out, x) * network
    torch.testing.assert_close(denoiser.jump(x, t, s), wanted)
    torch.testing.assert_close(net.seen, expand(c_in, x) * x)
    found = InductiveMomentMatching(denoiser, sigma_data=SD).c_out(t, s)
    torch.testing.assert_close(found, -c_out)


def test_trigflow_is_simple_edm_and_flow_is_euler():
    t, _, s = grouped(TRIG, 3)
    x, net = normal(12, 2), ResidualNet()
    trig = Denoiser(net, TrigFlow(path=TRIG))
    wanted = expand((t - s).cos(), x) * x - expand(SD * (t - s).sin(), x) * trig.raw(x, t, s)
    torch.testing.assert_close(trig.jump(x, t, s), wanted)
    t, _, s = grouped(LINEAR, 3)
    flow = Denoiser(net, Flow(path=LINEAR, time_scale=1000.0))
    wanted = x - expand(t - s, x) * flow.raw(x, t, s)
    torch.testing.assert_close(flow.jump(x, t, s), wanted)
    found = InductiveMomentMatching(flow, sigma_data=1.0).c_out(t, s)
    torch.testing.assert_close(found, s - t)


class ResidualNet(nn.Module):
    """Something smooth of everything it is given."""

    cond_keys, two_time = (), True

    def forward(self, x, c_noise, s_noise=None, cond=None):
        self.seen = x
        return (x + expand(c_noise, x)).sin() + expand(s_noise, x).cos()


# Where the networks are evaluated.


@each_path
def test_the_earlier_point_is_on_the_samples_own_line(path):
    net = Answers(GaussianDenoiser(path, DATA), VPrediction(path=path, time_scale=1.0))
    objective = InductiveMomentMatching(Denoiser(net, net.preconditioning), sigma_data=SD)
    x0, noise = drawn(DATA, 12, 2)
    draws = Draws(*grouped(path, 3), noise)
    objective.loss(Batch(x0), draws)
    for (x, at, to), wanted in zip(net.seen, (draws.r, draws.t), strict=True):
        torch.testing.assert_close(x, path.perturb(x0, noise, wanted))
        assert at.equal(wanted)
        assert to.equal(draws.s)
    x_t, x_r = net.seen[1][0], net.seen[0][0]
    (t, r, s) = draws[:3]
    both = path.transport(x_r, x0, r, s), path.transport(x_t, x0, t, s)
    torch.testing.assert_close(*both)


def test_the_target_is_a_constant_and_shares_the_dropout():
    class Masks(ResidualNet):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=D))
            self.masks = []

        def forward(self, x, c_noise, s_noise=None, cond=None):
            self.masks.append((F.dropout(torch.ones_like(x)), torch.is_grad_enabled()))
            return self.scale * self.masks[-1][0]

    net = Masks()
    objective = InductiveMomentMatching(Denoiser(net, Flow(path=LINEAR)), sigma_data=1.0)
    x0, noise = drawn(DATA, 8, 2)
    objective.loss(Batch(x0), Draws(*grouped(LINEAR, 2), noise)).total().backward()
    (first, grad_r), (second, grad_t) = net.masks
    assert first.equal(second)
    assert (grad_r, grad_t) == (False, True)
    assert net.scale.grad is not None


def test_dropped_labels_reach_both_answers():
    class Labelled(ResidualNet):
        cond_keys = ("label",)

        def forward(self, x, c_noise, s_noise=None, cond=None):
            labels.append(cond["label"].tolist())
            return x

    labels: list[list[int]] = []
    denoiser = Denoiser(Labelled(), Flow(path=LINEAR))
    drop = ConditionDrop(0.5, {"label": 10})
    objective = InductiveMomentMatching(denoiser, sigma_data=1.0, drop=drop)
    batch = Batch(normal(8, 2), {"label": torch.arange(8)})
    draws = objective.draw(batch, 0, Rng(0, 0, "student"))
    objective.loss(batch, draws)
    wanted = torch.where(draws.dropped, 10, torch.arange(8)).tolist()
    assert labels == [wanted, wanted]
    assert 0 < int(draws.dropped.sum()) < 8
    data = DataSpec(shape=(2,), labels=10)
    assert objective.contract(data).sampling.guidance is not None
    plain = InductiveMomentMatching(denoiser, sigma_data=1.0)
    assert plain.contract(data).sampling.guidance is None


# Draws.


@pytest.mark.parametrize("k", [0, 3, 12])
@each_path
def test_draws(path, k):
    objective = imm(GaussianDenoiser(path, DATA), k=k)
    batch = Batch(normal(4000, 1))
    draws = objective.draw(batch, 0, Rng(3, 5, "student"))
    again = objective.draw(batch, 7, Rng(3, 5, "student"))
    assert all(a.equal(b) for a, b in zip(draws[:4], again[:4], strict=True))
    assert not draws.t.equal(objective.draw(batch, 0, Rng(4, 5, "student")).t)
    t, r, s = (v.reshape(-1, 4) for v in draws[:3])
    assert draws.noise.shape == batch.x0.shape
    assert all(v.dtype == D and (v == v[:, :1]).all() for v in (t, r, s))
    t, r, s = (v[:, 0] for v in (t, r, s))
    assert ((path.t_min <= s) & (s <= r) & (r < t) & (t <= path.t_max)).all()
    # Both uniform: the share of the range is, and so is the part of it that s has.
    share, part = (t - path.t_min) / (path.t_max - path.t_min), (s - path.t_min) / (t - path.t_min)
    for v in (share, part):
        assert float((v.sort().values - torch.linspace(0, 1, 1000)).abs().max()) < 0.06
    # A constant step of the noise level, unless s is in the way.
    low, high = path.ratio(torch.tensor([path.t_min, path.t_max], dtype=D))
    free = r > s
    step = path.ratio(t) - path.ratio(r)
    torch.testing.assert_close(
        step[free], ((high - low) / 2**k).expand(int(free.sum())), rtol=1e-6, atol=1e-9
    )
    assert (path.ratio(t) - path.ratio(s) <= (high - low) / 2**k * (1 + 1e-6))[~free].all()
    assert free.any() == (k > 0)


@each_path
def test_the_weight_is_of_the_log_snr_in_units_of_the_data(path):
    objective = imm(GaussianDenoiser(path, DATA), a=2.0, b=5.0)
    t = grouped(path, 7, 1)[0][1:].requires_grad_()
    (alpha, sigma, _, _) = path.coefficients(t)
    logsnr = 2 * (alpha * SD / sigma).log()
    (rate,) = torch.autograd.grad(logsnr.sum(), t)
    wanted = 0.5 * (5 - logsnr).sigmoid() * -rate * alpha**2 / (alpha**2 + (sigma / SD) ** 2)
    torch.testing.assert_close(objective.weight(t.detach()), wanted.detach(), rtol=1e-5, atol=0)


# Sampling and refusals.


@pytest.mark.parametrize("path", [LINEAR, TRIG], ids=path_id)
def test_contract_and_samples_of_the_exact_map(path):
    exact = Offset(GaussianFlowMap(path, DATA))
    objective = imm(exact)
    contract = objective.contract(DataSpec(shape=(3,), range=None))
    sampling = contract.sampling
    assert contract.method == "imm"
    assert (sampling.kind, sampling.any_times, sampling.grid) == ("deterministic", True, "uniform")
    middle = sampling.times[2][1]
    assert float(path.ratio(torch.tensor([middle], dtype=D))) == pytest.approx(1.4 * SD)
    start = Gaussian(0.0, SD).variance(path, full(path.t_max, torch.ones(1)))
    assert sampling.start.t == path.t_max
    assert sampling.start.std == pytest.approx(float(start) ** 0.5)
    model = Model(objective.student, contract)
    for steps in (1, 2, 3, 4, 8):
        times = model.times(steps)
        if steps > 2:
            every = torch.linspace(path.t_max, path.t_min, steps + 1, dtype=D)[:-1]
            assert times == pytest.approx(every.tolist())
        x = model.sample(50, steps=steps)
        torch.testing.assert_close(x, model.sample(50, steps=1), rtol=1e-4, atol=1e-5)
    own = contract.with_times({2: (path.t_max, 0.5)})
    assert own.sampling.times == {1: (path.t_max,), 2: (path.t_max, 0.5)}


def test_otfm_middle_time_is_the_papers():
    objective = InductiveMomentMatching(student(GaussianDenoiser(LINEAR, DATA)), sigma_data=1.0)
    times = objective.contract(DataSpec(shape=(3,))).sampling.times
    assert times[2][1] == pytest.approx(0.5833, abs=5e-5)


def test_refusals():
    def one_time():
        net = Answers(GaussianDenoiser(LINEAR, DATA), Flow(path=LINEAR))
        net.two_time = False
        return Denoiser(net, net.preconditioning)

    with pytest.raises(UsageError, match="two-time"):
        InductiveMomentMatching(one_time(), sigma_data=SD)
    for path in (Linear(), Trig()):
        with pytest.raises(UsageError, match="before pure noise"):
            imm(GaussianDenoiser(path, DATA))
    good = student(GaussianDenoiser(LINEAR, DATA))
    for wrong in ({"group": 0}, {"sigma_data": 0.0}, {"k": -1}):
        with pytest.raises(UsageError, match="expected group"):
            InductiveMomentMatching(good, **{"sigma_data": SD, **wrong})
    objective = InductiveMomentMatching(good, sigma_data=SD, group=4)
    assert objective.capabilities.batch_multiple == 4
    with pytest.raises(UsageError, match="multiple of 4"):
        objective.draw(Batch(normal(6, 2)), 0, Rng(0, 0, "student"))
    batch = Batch(normal(4, 2), mask=torch.ones(4, 2, dtype=D))
    with pytest.raises(UsageError, match="masks"):
        objective.loss(batch, Draws(*grouped(LINEAR, 1), normal(4, 2)))
    (phase,) = objective.phases()
    assert (phase.name, phase.module) == ("student", good)
