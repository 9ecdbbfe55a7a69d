import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad

from fewstep.core import UsageError
from fewstep.paths import (
    DiscreteVariancePreserving,
    Linear,
    Trig,
    VarianceExploding,
    VariancePreserving,
)
from fewstep.times import (
    DiscreteLogNormal,
    FromFunction,
    HalfHigh,
    KarrasIndex,
    KarrasUniform,
    LogitNormal,
    LogNormal,
    LogUniform,
    NoiseLevels,
    ShiftedFlow,
    TruncatedLogStudent,
    TwoTimes,
    Uniform,
    UniformIndex,
    karras,
    law_on,
    log_snr,
    shift,
    shifted_flow,
    strided,
    to_zero,
    uniform,
)
from oracles import PATHS_AT_REST, D, path_id


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Step grids.


def test_karras_grid_of_edm():
    grid = karras(18, 0.002, 80.0)
    assert grid.dtype == D
    assert grid.shape == (18,)
    assert (grid.diff() < 0).all()
    first, last = [80.0, 57.586, 40.786], [0.022935, 0.007528, 0.002]
    torch.testing.assert_close(grid[:3], torch.tensor(first, dtype=D), rtol=0, atol=5.1e-4)
    torch.testing.assert_close(grid[-3:], torch.tensor(last, dtype=D), rtol=0, atol=5.1e-7)


# Song et al.'s two-step samplers: index of the middle time, last index, its noise level.
@pytest.mark.parametrize(
    ("index", "last", "sigma"),
    [
        (11, 17, 0.585),
        (22, 39, 1.382),
        (106, 200, 1.913),
        (17, 39, 4.366),
        (18, 39, 3.520),
        (67, 150, 3.991),
        (62, 150, 5.249),
    ],
)
def test_middle_times_of_official_samplers(index, last, sigma):
    assert float(karras(last + 1, 0.002, 80.0)[index]) == pytest.approx(sigma, abs=5.1e-4)


def test_rho_3_is_uniform_in_the_cube_root():
    grid = karras(5, 0.008, 1.0, rho=3)
    wanted = torch.tensor([1, 0.8, 0.6, 0.4, 0.2], dtype=D) ** 3
    torch.testing.assert_close(grid, wanted, rtol=1e-12, atol=0)


def test_uniform_grid_and_final_zero():
    grid = uniform(5, 0.2, 1.0)
    wanted = torch.tensor([1, 0.8, 0.6, 0.4, 0.2], dtype=D)
    torch.testing.assert_close(grid, wanted, rtol=1e-12, atol=0)
    assert to_zero(grid)[:-1].equal(grid)
    assert float(to_zero(grid)[-1]) == 0


@pytest.mark.parametrize("path", PATHS_AT_REST, ids=path_id)
@pytest.mark.parametrize("rule", [karras, uniform])
def test_grids_end_exactly_on_their_range(rule, path):
    # A last bit too much is pi/2 with a negative cosine, and the logarithm of a negative ratio;
    # a last bit above t_min is no longer the boundary, where f is the identity.
    for n in (2, 3, 18, 40, 201):
        grid = rule(n, path.t_min, path.t_max)
        assert (float(grid[0]), float(grid[-1])) == (path.t_max, path.t_min)


@pytest.mark.parametrize(
    "path", [p for p in PATHS_AT_REST if not isinstance(p, Linear | Trig)], ids=path_id
)
def test_log_snr_grid_is_equally_spaced(path):
    grid = log_snr(9, path)
    steps = path.logsnr(grid).diff()
    # Rounding of times of about 1 moves a log ratio by 1e-13; float32 would by 1e-6.
    torch.testing.assert_close(steps, steps.mean().expand(8), rtol=1e-9, atol=0)
    ends = torch.tensor([path.t_max, path.t_min], dtype=D)
    torch.testing.assert_close(grid[[0, -1]], ends, rtol=1e-9, atol=1e-9)
    assert grid.dtype == D


@pytest.mark.parametrize("path", [Linear(), Linear(0.0, 0.9), Trig()], ids=str)
def test_log_snr_grid_needs_finite_ends(path):
    with pytest.raises(UsageError, match="t_min and t_max"):
        log_snr(5, path)


@pytest.mark.parametrize("n", [0, -3])
def test_a_grid_has_points(n):
    for make in (
        lambda: karras(n, 0.002, 80.0),
        lambda: uniform(n, 0.0, 1.0),
        lambda: log_snr(n, VarianceExploding()),
        lambda: shifted_flow(n, 3.0),
    ):
        with pytest.raises(UsageError, match=str(n)):
            make()


def test_a_grid_of_one_point_is_the_start():
    assert karras(1, 0.002, 80.0).tolist() == [80.0]
    assert uniform(1, 0.0, 1.0).tolist() == [1.0]
    assert log_snr(1, VarianceExploding()).tolist() == pytest.approx([80.0])


# Shifts of flow times.


@pytest.mark.parametrize(
    ("by", "wanted"),
    [(5.0, [1, 0.9375, 0.8333, 0.625]), (8.0, [1, 0.96, 0.8889, 0.7273])],
)
def test_shifted_lists_of_wan(by, wanted):
    grid = shifted_flow(5, by)[:4]
    torch.testing.assert_close(grid, torch.tensor(wanted, dtype=D), rtol=0, atol=5.1e-5)


def test_a_shifted_grid_keeps_its_range():
    grid = shifted_flow(4, 3.0, 0.1, 0.7)
    # 3 t / (1 + 2 t) of 0.7, 0.5, 0.3 and 0.1.
    wanted = [2.1 / 2.4, 1.5 / 2, 0.9 / 1.6, 0.3 / 1.2]
    assert grid.tolist() == pytest.approx(wanted, rel=1e-12)


def test_strided_times_of_other_tables():
    assert strided(4, 100).tolist() == [99, 74, 49, 24, 0]
    assert strided(3, 50).tolist() == [47, 31, 15, 0]
    assert strided(50, 100).tolist() == [*range(99, 0, -2), 0]
    with pytest.raises(UsageError, match="100 entries has at most 50 steps, got 51"):
        strided(51, 100)


def test_shifts_multiply_and_invert():
    t = torch.linspace(0, 1, 11, dtype=D)
    torch.testing.assert_close(shift(shift(t, 2.0), 3.0), shift(t, 6.0), rtol=1e-14, atol=0)
    torch.testing.assert_close(shift(shift(t, 3.0), 1 / 3), t, rtol=1e-14, atol=0)
    assert shift(t, 1.0).equal(t)
    path, inner = Linear(), t[1:-1]
    torch.testing.assert_close(path.ratio(shift(inner, 3.0)), 3 * path.ratio(inner))


# Laws of training times.

N = 20_000
VE = VarianceExploding(0.01, 10.0)


def cdf_of_karras(rho: float, low: float, high: float):
    a, b = low ** (1 / rho), high ** (1 / rho)
    return lambda t: np.clip((t ** (1 / rho) - a) / (b - a), 0, 1)


def cdf_of_student(law: TruncatedLogStudent):
    t = stats.t(law.df, law.mean, law.scale)
    low, high = (t.cdf(math.log(end)) for end in (law.low, law.high))
    return lambda x: (t.cdf(np.log(x)) - low) / (high - low)


STUDENTS = [
    TruncatedLogStudent(),
    TruncatedLogStudent(0.3, 40.0, 0.5, 0.7, 2.0),
    TruncatedLogStudent(1e-3, 1e3, -1.0, 1.2, 300.0),
]
LAWS = [
    *((law, cdf_of_student(law)) for law in STUDENTS),
    (Uniform(0.2, 3.0), stats.uniform(0.2, 2.8).cdf),
    (LogUniform(0.02, 100.0), stats.loguniform(0.02, 100).cdf),
    (LogNormal(), stats.lognorm(1.2, scale=math.exp(-1.2)).cdf),
    (LogNormal(-0.8, 1.6), stats.lognorm(1.6, scale=math.exp(-0.8)).cdf),
    (LogitNormal(), lambda t: stats.norm.cdf(np.log(t / (1 - t)))),
    (
        LogitNormal(-0.4, 0.7, 3.0),
        lambda t: stats.norm(-0.4 + math.log(3), 0.7).cdf(np.log(t / (1 - t))),
    ),
    (KarrasUniform(), cdf_of_karras(7, 0.002, 80)),
    (KarrasUniform(0.1, 2.0, 3.0), cdf_of_karras(3, 0.1, 2.0)),
    (ShiftedFlow(3.0), lambda level: level / (3 + level)),
]


@pytest.mark.parametrize(("law", "cdf"), LAWS, ids=[str(law) for law, _ in LAWS])
def test_laws_of_times(law, cdf):
    drawn = law.levels if isinstance(law, NoiseLevels) else law
    t = drawn(N, rng())
    assert t.shape == (N,)
    assert t.dtype == D
    # One draw for good, so the level only says how unlucky this seed may be.
    assert stats.kstest(t.numpy(), cdf).pvalue > 0.01
    assert drawn(N, rng()).equal(t)
    assert not drawn(N, rng(1)).equal(t)
    if (ends := law.ends()) is not None:
        assert ends[0] <= float(t.min()) <= float(t.max()) <= ends[1]


LEVELS = [
    LogUniform(),
    LogNormal(),
    TruncatedLogStudent(),
    KarrasUniform(),
    KarrasIndex(),
    ShiftedFlow(),
]


@pytest.mark.parametrize("law", LEVELS, ids=lambda law: type(law).__name__)
def test_a_path_converts_noise_levels(law):
    levels = law.levels(50, rng())
    assert law_on(path := VarianceExploding(0.0, 100.0), law) is law
    assert law.draw(path, 50, rng()).equal(levels)
    for path in (Linear(), Trig(sigma_data=0.5), VariancePreserving(0.0, 1.5)):
        assert law_on(path, law) is law
        t = law.draw(path, 50, rng())
        assert t.equal(path.time(levels))
        torch.testing.assert_close(path.ratio(t), levels, rtol=1e-6, atol=0)
    # In the wrong unit it cannot be drawn at all.
    assert not callable(law)


def test_times_of_a_path_are_taken_as_they_are():
    for law in (Uniform(0.2, 0.9), LogitNormal()):
        t = law(50, rng())
        for path in (Linear(), VarianceExploding()):
            assert law_on(path, law).draw(path, 50, rng()).equal(t)
    path, own = Linear(), lambda b, rng: torch.full((b,), 7.0)
    law = law_on(path, own)
    assert law == FromFunction(own)
    assert law.draw(path, 3, rng()).tolist() == [7.0] * 3


@pytest.mark.parametrize(
    ("path", "law", "says"),
    [
        (VE, LogUniform(), r"LogUniform.* from 0.02 to 100, and VarianceExploding.* 0.01 to 10;"),
        (VE, Uniform(0.0, 1.0), "from 0 to 1,"),
        (VarianceExploding(0.01, 20.0), KarrasIndex(), "from 0.003232 to 72.05"),
        (VarianceExploding(0.01, 100.0), KarrasUniform(), "from 0.002 to 80"),
        (VarianceExploding(0.01, 70.0), TruncatedLogStudent(), "from 1 to 80"),
        (Linear(), Uniform(0.5, 1.5), "from 0.5 to 1.5"),
        (Linear(0.0, 0.9), KarrasIndex(), "to 0.986"),
        (DiscreteVariancePreserving(), KarrasUniform(), "from -"),
        (Linear(), TwoTimes(), "draws two times"),
    ],
)
def test_a_law_beyond_the_path_is_refused(path, law, says):
    with pytest.raises(UsageError, match=says):
        law_on(path, law)


def test_the_ends_of_a_path_are_its_own():
    path = Trig(t_max=float(torch.tensor(160.0).double().atan()))
    law_on(path, KarrasIndex(0, 999))
    law_on(VarianceExploding(0.002, 80.0), KarrasUniform())
    law_on(Linear(), HalfHigh())


def test_two_times_are_of_the_path():
    TwoTimes(Uniform(), LogitNormal()).check(Linear())
    TwoTimes(lambda b, rng: torch.ones(b)).check(VE)
    for laws in ((Uniform(0, 2), Uniform()), (Uniform(), Uniform(0, 2))):
        with pytest.raises(UsageError, match="from 0 to 2"):
            TwoTimes(*laws).check(Linear())
    with pytest.raises(UsageError, match=r"own unit, and LogNormal.* draws noise levels"):
        TwoTimes(LogitNormal(), LogNormal())


@pytest.mark.parametrize("law", STUDENTS, ids=str)
def test_student_times_invert_the_integral(law, monkeypatch):
    part = torch.linspace(0, 1, 1001, dtype=D)
    monkeypatch.setattr("fewstep.times.levels.unit_uniform", lambda b, rng: part)
    t = law.levels(1001, rng())
    assert (float(t[0]), float(t[-1])) == pytest.approx((law.low, law.high), rel=1e-14)
    np.testing.assert_allclose(cdf_of_student(law)(t.numpy()), part.numpy(), atol=1e-5)


def test_every_point_of_a_range_of_indices_is_as_likely():
    law = KarrasIndex(2, 6, points=9)
    grid = law.grid()
    assert (float(grid[0]), float(grid[-1])) == (0.002, 80.0)
    index = torch.searchsorted(grid, law.levels(N, rng(1)))
    counts = index.bincount(minlength=9).numpy()
    assert counts[[0, 1, 7, 8]].sum() == 0
    assert stats.chisquare(counts[2:7]).pvalue > 0.01


@pytest.mark.parametrize("b", [1, 6, 7])
def test_half_of_a_batch_is_high(b):
    path = VarianceExploding(0.01, 50.0)
    t = HalfHigh().draw(path, b, rng())
    assert t.shape == (b,)
    # The least of the upper 70 % in t^(1/7).
    ends = [end ** (1 / 7) for end in (0.01, 50.0)]
    least = (ends[0] + 0.3 * (ends[1] - ends[0])) ** 7
    draws = torch.cat([HalfHigh().draw(path, b, rng(seed))[None] for seed in range(200)])
    high = draws[:, b // 2 :]
    assert bool((high >= least).all())
    assert float(high.max()) > 40
    assert b == 1 or bool((draws[:, : b // 2] < least).any())


def test_quantiles_of_edm_times():
    low, middle, high = (
        LogNormal().levels(N, rng()).quantile(torch.tensor([0.1587, 0.5, 0.8413]).double())
    )
    # exp(-1.2 -+ 1.2 k), k = 1, 0, -1; the median of 20000 has 1.1 % of error.
    assert float(middle) == pytest.approx(math.exp(-1.2), rel=0.05)
    assert float(low) == pytest.approx(math.exp(-2.4), rel=0.06)
    assert float(high) == pytest.approx(1.0, rel=0.06)


def test_every_interval_is_as_likely():
    index = UniformIndex()(N, karras(6, 0.002, 80.0), rng(1))
    counts = index.bincount().numpy()
    assert len(counts) == 5
    assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("grid", [karras(11, 0.002, 80.0), uniform(6, 0.0, 4.0)], ids=len)
def test_discrete_log_normal_mass_is_an_integral(grid):
    law = DiscreteLogNormal()
    density = stats.lognorm(2.0, scale=math.exp(-1.1)).pdf

    def integral(high: float, low: float) -> float:
        # In log t, so that the integrand is a bell wherever the interval lies.
        ends = math.log(max(low, 1e-30)), math.log(high)
        return quad(lambda y: density(math.exp(y)) * math.exp(y), *ends, limit=200)[0]

    each = [integral(a, b) for a, b in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True)]
    wanted = torch.tensor(each, dtype=D) / sum(each)
    torch.testing.assert_close(law.mass(grid), wanted, rtol=1e-6, atol=1e-12)
    index = law(N, grid, rng())
    counts = index.bincount(minlength=len(grid) - 1)
    assert len(counts) == len(grid) - 1
    # Four standard deviations of a count.
    assert ((counts - N * wanted).abs() <= 4 * (N * wanted * (1 - wanted)).sqrt() + 1).all()
