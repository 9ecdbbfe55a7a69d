import math

import pytest
import torch
from torch import Tensor, nn

from fewstep.core import expand
from fewstep.data import Mixture
from fewstep.models import EDM, Denoiser
from fewstep.paths import (
    CosineVariancePreserving,
    DiscreteVariancePreserving,
    Linear,
    Trig,
    VarianceExploding,
    VariancePreserving,
)
from fewstep.solvers import (
    STEPS,
    Churn,
    ancestral_std,
    ddim,
    deterministic,
    dpm_midpoint,
    dpmpp_2m,
    euler,
    gamma_sampling,
    heun,
    multistep,
    ode,
    one_step,
    stochastic_ddim,
)
from fewstep.steps import dpmpp_2s
from fewstep.times import karras, to_zero, uniform
from oracles import (
    PATHS_AT_REST,
    D,
    Gaussian,
    GaussianConsistency,
    GaussianDenoiser,
    GaussianFlowMap,
    MixtureDenoiser,
    Watched,
    full,
    normal,
    path_id,
    slope,
)

# Where each path is smooth and the curvature of its velocity moderate.
SMOOTH = [
    (VarianceExploding(), 2.0, 0.2),
    (VariancePreserving(), 0.8, 0.15),
    (CosineVariancePreserving(), 0.8, 0.1),
    (Linear(), 0.9, 0.1),
    (Trig(), 1.3, 0.1),
]
on_smooth_paths = pytest.mark.parametrize(
    ("path", "t_max", "t_min"), SMOOTH, ids=[path_id(p) for p, *_ in SMOOTH]
)
each_path = pytest.mark.parametrize("path", PATHS_AT_REST, ids=path_id)


def sampler(step):
    return lambda denoiser, x, times: ode(denoiser, x, times, step=step)


SOLVERS = {
    "euler": (sampler(euler), 1),
    "ddim": (sampler(ddim), 1),
    "heun": (sampler(heun), 2),
    "dpm": (sampler(dpm_midpoint), 2),
    "dpm++2s": (sampler(dpmpp_2s), 2),
}


def measured_order(solve, grid, data: Gaussian, path, t_max: float, t_min: float) -> float:
    denoiser, x = GaussianDenoiser(path, data), normal(8, 2)
    exact = data.flow(path, x, full(t_max, x), full(t_min, x))
    counts = [32, 64, 128]
    errors = [float((solve(denoiser, x, grid(n)) - exact).abs().max()) for n in counts]
    assert errors[-1] < 0.03
    return -slope(counts, errors)


@on_smooth_paths
@pytest.mark.parametrize("name", SOLVERS)
def test_orders(name, path, t_max, t_min):
    solve, order = SOLVERS[name]
    found = measured_order(
        solve, lambda n: uniform(n + 1, t_min, t_max), Gaussian(0.3, 0.7), path, t_max, t_min
    )
    assert found == pytest.approx(order, abs=0.15)


@on_smooth_paths
def test_order_of_dpmpp_2m(path, t_max, t_min):
    # In its own variable and with this data: elsewhere the first step's error and the others'
    # happen to cancel, which hides the order until hundreds of steps.
    high, low = path.ratio(torch.tensor([t_max, t_min], dtype=D)).log().tolist()

    def grid(n: int) -> Tensor:
        return path.time(torch.linspace(high, low, n + 1, dtype=D).exp())

    found = measured_order(dpmpp_2m, grid, Gaussian(0.3, 0.5), path, t_max, t_min)
    assert found == pytest.approx(2, abs=0.15)


@each_path
def test_dpmpp_2m_extrapolates_to_the_middle_of_its_step(path):
    # Answers that are linear in the log ratio have their value at the middle of a step.
    levels = torch.tensor([6.0, 2.0, 0.3, 0.1], dtype=D)
    times, x = path.time(levels), normal(2, 3)

    class LinearInTheLogRatio(GaussianDenoiser):
        def forward(self, x, t, s=None, cond=None):
            return expand(self.path.ratio(t).log(), x) + torch.zeros_like(x)

    out, at = x, levels.log()
    for i in range(3):
        t, s = full(float(times[i]), x), full(float(times[i + 1]), x)
        # The first step has no answer before it.
        middle = at[0] if i == 0 else at[i] + (at[i + 1] - at[i]) / 2
        out = path.transport(out, torch.full_like(x, float(middle)), t, s)
    found = dpmpp_2m(LinearInTheLogRatio(path, DATA), x, times)
    torch.testing.assert_close(found, out, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("path", PATHS_AT_REST, ids=path_id)
def test_dpmpp_2s_asks_at_half_the_log_ratio(path):
    denoiser, x0, noise = Watched(GaussianDenoiser(path, DATA)), *normal(2, 2, 3)
    t, s = path.time(full(4.0, x0)), path.time(full(0.25, x0))
    x = path.perturb(x0, noise, t)
    found = dpmpp_2s(denoiser, x, t, s, None)
    (_, first, _, _), (middle, second, _, _) = denoiser.seen
    assert first.equal(t)
    torch.testing.assert_close(path.ratio(second), full(1.0, x0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(middle, ddim(GaussianDenoiser(path, DATA), x, t, second, None))
    wanted = path.transport(x, DATA.denoised(path, middle, second), t, s)
    torch.testing.assert_close(found, wanted)


def test_dpmpp_2s_is_ddim_where_the_log_ratio_is_infinite():
    path, x = Linear(), normal(2, 3)
    denoiser = GaussianDenoiser(path, DATA)
    for t, s in ((0.5, 0.0), (1.0, 0.5), (1.0, 0.0)):
        ends = full(t, x), full(s, x)
        wanted = ddim(denoiser, x, *ends, None)
        torch.testing.assert_close(dpmpp_2s(denoiser, x, *ends, None), wanted)


@each_path
def test_ddim_is_exact_where_the_answer_is_constant(path):
    data = Gaussian(0.4, 0.0)
    x = normal(1, 3)
    t, s = path.time(full(8.0, x)), path.time(full(0.1, x))
    exact = data.flow(path, x, t, s)
    torch.testing.assert_close(ddim(GaussianDenoiser(path, data), x, t, s, None), exact)


@pytest.mark.parametrize("path", [VarianceExploding(), Linear()], ids=path_id)
def test_euler_is_ddim_on_straight_paths(path):
    denoiser, x = GaussianDenoiser(path), normal(3, 2)
    t, s = torch.tensor([[0.9, 0.7, 0.5], [0.4, 0.3, 0.0]], dtype=D)
    straight = ddim(denoiser, x, t, s, None)
    torch.testing.assert_close(euler(denoiser, x, t, s, None), straight, rtol=1e-13, atol=1e-14)


@each_path
def test_a_ddim_step_is_the_same_on_every_path(path):
    ve, x0, noise = VarianceExploding(), *normal(2, 3, 2)
    t, s = torch.tensor([[4.0, 1.0, 0.5], [1.0, 0.2, 0.1]], dtype=D)
    steps = [
        ddim(GaussianDenoiser(p), p.perturb(x0, noise, p.time(t)), p.time(t), p.time(s), None)
        for p in (path, ve)
    ]
    alpha = path.coefficients(path.time(s)).alpha
    torch.testing.assert_close(steps[0] / expand(alpha, x0), steps[1], rtol=1e-9, atol=1e-9)


def test_steps_differentiate():
    denoiser, x = GaussianDenoiser(Linear()), normal(2, 2).requires_grad_()
    t, s = full(0.8, x), full(0.5, x)
    for step in (ddim, euler, heun, dpm_midpoint):
        (slope_of,) = torch.autograd.grad(step(denoiser, x, t, s, None).sum(), x)
        assert (slope_of > 0).all()


def test_the_midpoint_is_on_a_cube_root_grid():
    watched = Watched(GaussianDenoiser(VarianceExploding()))
    x = normal(2, 1)
    dpm_midpoint(watched, x, full(8.0, x), full(1.0, x), None)
    middle = ((8 ** (1 / 3) + 1) / 2) ** 3
    assert [seen[1].tolist() for seen in watched.seen] == [[8.0] * 2, pytest.approx([middle] * 2)]


# Ending on clean data.


@pytest.mark.parametrize("path", [VarianceExploding(), Linear(), Trig()], ids=path_id)
def test_calls_to_clean_data(path):
    times = to_zero(karras(6, 0.05, 0.9))
    x = normal(2, 3)
    for solve, calls in [
        (ode, 2 * 6 - 1),
        (sampler(ddim), 6),
        (sampler(euler), 6),
        (sampler(dpm_midpoint), 12),
        (dpmpp_2m, 6),
        (lambda d, x, t: stochastic_ddim(d, x, t, lambda i: x), 6),
    ]:
        watched = Watched(GaussianDenoiser(path))
        solve(watched, x, times)
        assert len(watched.seen) == calls
        assert (torch.stack([seen[1] for seen in watched.seen]) > 0).all()


@pytest.mark.parametrize("path", [VarianceExploding(), Linear()], ids=path_id)
@pytest.mark.parametrize("solve", [ode, sampler(ddim), dpmpp_2m], ids=["heun", "ddim", "2m"])
def test_the_last_step_answers_with_clean_data(path, solve):
    denoiser, x, times = GaussianDenoiser(path), normal(4, 2), karras(5, 0.05, 0.9)
    before = solve(denoiser, x, times)
    clean = denoiser(before, full(0.05, x))
    torch.testing.assert_close(solve(denoiser, x, to_zero(times)), clean, rtol=1e-12, atol=1e-13)


def test_heun_treats_each_sample_by_its_own_end():
    denoiser, x = GaussianDenoiser(VarianceExploding()), normal(3, 2)
    t, s = torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, 0.0]], dtype=D)
    together = heun(denoiser, x, t, s, None)
    alone = [heun(denoiser, x[i : i + 1], t[i : i + 1], s[i : i + 1], None) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    torch.testing.assert_close(together[0], denoiser(x, t)[0])
    assert together[1].ne(euler(denoiser, x, t, s, None)[1]).all()


@each_path
def test_mixture_trajectories_equal_an_accurate_integrator(path):
    mixture = Mixture(
        torch.tensor([0.3, 0.7]),
        torch.tensor([[-0.6, 0.2], [0.5, -0.1]], dtype=D),
        torch.tensor([0.25, 0.35], dtype=D),
    )
    denoiser = MixtureDenoiser(path, mixture)
    x0, noise = normal(2, 4, 2)
    ends = path.time(torch.tensor([6.0, 0.05], dtype=D))
    t, s = (torch.full((4,), float(v), dtype=D) for v in ends)
    x = path.perturb(x0, noise, t)
    exact = denoiser.flow(x, t, s)
    errors = []
    for n in (50, 100):
        times = path.time(karras(n + 1, 0.05, 6.0))
        errors.append(float((ode(denoiser, x, times) - exact).abs().max()))
    assert errors[1] < 1e-3
    # The discrete path's velocity jumps at every entry of the table: no order.
    if not isinstance(path, DiscreteVariancePreserving):
        assert errors[0] / errors[1] == pytest.approx(4, abs=0.6)


def test_the_integrator_equals_the_closed_form():
    path, data = VariancePreserving(), Gaussian(0.3, 0.7)
    one = Mixture(torch.ones(1), torch.full((1, 2), 0.3, dtype=D), torch.tensor([0.7], dtype=D))
    x = normal(5, 2)
    t, s = torch.linspace(0.5, 0.9, 5, dtype=D), torch.linspace(0.01, 0.4, 5, dtype=D)
    found = MixtureDenoiser(path, one).flow(x, t, s)
    torch.testing.assert_close(found, data.flow(path, x, t, s), rtol=1e-8, atol=1e-9)


# The laws of samples. With Gaussian data every sampler is affine in the start and the noises, so
# probing it with zeros and ones gives mean and variance of what it makes, without drawing.


def law(sample, mean: float, variance: float, noises: int) -> tuple[float, float]:
    """Mean and variance of ``sample(x, noise)`` for x of that mean and variance."""
    probes = torch.cat([torch.zeros(1, noises + 1, dtype=D), torch.eye(noises + 1, dtype=D)])
    out = sample(probes[:, :1], lambda i: probes[:, i + 1 : i + 2])[:, 0]
    gains = out[1:] - out[0]
    return float(out[0] + gains[0] * mean), float(gains[0] ** 2 * variance + (gains[1:] ** 2).sum())


DATA = Gaussian(0.3, 0.7)
NOISY_ENDS = [
    VarianceExploding(0.1, 80.0),
    VariancePreserving(0.1, 1.0),
    CosineVariancePreserving(0.1, 0.99),
    DiscreteVariancePreserving(100.0),
    Linear(0.1, 1.0),
    Trig(0.1),
]
with_noisy_ends = pytest.mark.parametrize("path", NOISY_ENDS, ids=path_id)


def marginal(path, t: float, data: Gaussian = DATA) -> tuple[float, float]:
    time = torch.tensor([t], dtype=D)
    alpha = float(path.coefficients(time).alpha)
    return alpha * data.mean, float(data.variance(path, time))


@with_noisy_ends
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_few_steps_of_the_exact_map_make_the_law(path, steps):
    times = uniform(steps + 1, path.t_min, path.t_max)[:-1]
    f = GaussianConsistency(path)
    found = law(
        lambda x, noise: multistep(f, x, times, noise), *marginal(path, path.t_max), steps - 1
    )
    assert found == pytest.approx(marginal(path, path.t_min), rel=1e-10)


def test_the_official_start_forgets_the_data():
    path = VarianceExploding(0.1, 80.0)
    f = GaussianConsistency(path)
    found = law(lambda x, _: one_step(f, x, torch.tensor([80.0])), 0.0, path.start_std() ** 2, 0)
    c = math.sqrt((0.7**2 + 0.1**2) / (0.7**2 + 80**2))
    assert found == pytest.approx((0.3 * (1 - c), 80**2 * c**2), rel=1e-12)


@with_noisy_ends
def test_deterministic_jumps_follow_the_flow(path):
    x = normal(3, 2)
    exact = DATA.flow(path, x, full(path.t_max, x), full(path.t_min, x))
    for n in (1, 2, 5):
        times = uniform(n + 1, path.t_min, path.t_max)[:-1]
        watched = Watched(GaussianFlowMap(path))
        out = deterministic(watched, x, times)
        torch.testing.assert_close(out, exact, rtol=1e-9, atol=1e-9)
        assert len(watched.seen) == n


@with_noisy_ends
@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_jumps_with_noise_between_make_the_law(path, gamma, steps):
    times = uniform(steps + 1, path.t_min, path.t_max)[:-1]
    watched = Watched(GaussianFlowMap(path))
    found = law(
        lambda x, noise: gamma_sampling(watched, x, times, noise, gamma=gamma),
        *marginal(path, path.t_max),
        steps - 1,
    )
    assert found == pytest.approx(marginal(path, path.t_min), rel=1e-9)
    ends = [float(seen[2][0]) for seen in watched.seen]
    share = math.sqrt(1 - gamma**2)
    wanted = [path.t_min + share * (t - path.t_min) for t in [*times.tolist()[1:], path.t_min]]
    assert ends == pytest.approx(wanted, rel=1e-12)


@with_noisy_ends
def test_the_ends_of_gamma_are_two_other_samplers(path):
    x, noises = normal(3, 2), normal(4, 3, 2, seed=1)
    times = uniform(5, path.t_min, path.t_max)[:-1]
    model = GaussianFlowMap(path)

    def noise(i: int) -> Tensor:
        return noises[i]

    no, all_ = (gamma_sampling(model, x, times, noise, gamma=g) for g in (0.0, 1.0))
    assert no.equal(deterministic(model, x, times))
    assert all_.equal(multistep(model, x, times, noise))


def test_gamma_on_noise_levels():
    # s = sqrt(1 - gamma^2) (t - eps) + eps, noise of std sqrt(t^2 - s^2).
    path = VarianceExploding(0.1, 80.0)
    x, z = normal(2, 3), normal(2, 3, seed=1)
    watched = Watched(GaussianFlowMap(path))
    times = torch.tensor([80.0, 2.0], dtype=D)
    gamma_sampling(watched, x, times, lambda i: z, gamma=0.6)
    s = 0.8 * (2.0 - 0.1) + 0.1
    (_, t, first, _), (second, again, end, _) = watched.seen
    wanted = DATA.flow(path, x, full(80.0, x), full(s, x)) + math.sqrt(4 - s**2) * z
    torch.testing.assert_close(second, wanted)
    assert [v.tolist() for v in (t, again, end)] == [[80.0] * 2, [2.0] * 2, [0.1] * 2]
    torch.testing.assert_close(first, full(s, x))


@each_path
def test_ddim_without_noise_is_ddim(path):
    denoiser, x = GaussianDenoiser(path), normal(3, 2)
    times = path.time(karras(6, 0.05, 5.0))
    quiet = stochastic_ddim(denoiser, x, times, lambda i: normal(3, 2, seed=i), eta=0.0)
    torch.testing.assert_close(quiet, ode(denoiser, x, times, step=ddim), rtol=1e-12, atol=1e-12)


@each_path
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_noise_in_ddim_keeps_the_law_of_a_point(path, eta):
    # One clean sample: the denoiser is exact along any trajectory, so no step size matters.
    point = Gaussian(0.4, 0.0)
    denoiser = GaussianDenoiser(path, point)
    times = path.time(karras(5, 0.05, 5.0))
    start, end = float(times[0]), float(times[-1])
    found = law(
        lambda x, noise: stochastic_ddim(denoiser, x, times, noise, eta=eta),
        *marginal(path, start, point),
        4,
    )
    assert found == pytest.approx(marginal(path, end, point), rel=1e-10)


@pytest.mark.parametrize("path", [VarianceExploding(), Linear(), Trig()], ids=path_id)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_noise_in_ddim_keeps_the_law_in_the_limit(path, eta):
    # Ancestral sampling puts the posterior's mean where a draw belongs: an error of first order.
    denoiser, counts, errors = GaussianDenoiser(path), [50, 100, 200], []
    for n in counts:
        times = path.time(karras(n + 1, 0.1, 5.0))
        found = law(
            lambda x, noise, n=n, times=times: stochastic_ddim(denoiser, x, times, noise, eta=eta),
            *marginal(path, float(times[0])),
            n,
        )
        mean, variance = marginal(path, float(times[-1]))
        assert found[0] == pytest.approx(mean, abs=2 / n)
        errors.append(abs(found[1] / variance - 1))
    assert errors[-1] < 0.03
    assert slope(counts, errors) == pytest.approx(-1, abs=0.15)


def test_ancestral_noise_on_ve():
    t, s = torch.tensor([[3.0], [1.2]], dtype=D)
    down, up = ancestral_std(VarianceExploding(), t, s)
    assert float(up) == pytest.approx(math.sqrt(1.2**2 * (3**2 - 1.2**2) / 3**2))
    assert float(down) == pytest.approx(math.sqrt(1.2**2 - float(up) ** 2))


@each_path
def test_ancestral_noise_is_the_posterior_s(path):
    # Bayes: x_s given x0 has the precision 1/sigma_s^2, and x_t is x_s times alpha, and noise.
    t, s = (path.time(torch.tensor(levels, dtype=D)) for levels in ([8.0, 1.2], [0.5, 0.9]))
    alpha_t, sigma_t, _, _ = path.coefficients(t)
    alpha_s, sigma_s, _, _ = path.coefficients(s)
    alpha = alpha_t / alpha_s
    variance = 1 / (1 / sigma_s**2 + alpha**2 / (sigma_t**2 - (alpha * sigma_s) ** 2))
    down, up = ancestral_std(path, t, s)
    torch.testing.assert_close(up, variance.sqrt())
    torch.testing.assert_close(down**2 + up**2, sigma_s**2)
    less, half = ancestral_std(path, t, s, 0.5)
    torch.testing.assert_close(half, up / 2)
    torch.testing.assert_close(less**2 + half**2, sigma_s**2)


def test_ancestral_noise_of_ddpm():
    # Ho et al. 2020, eq. 7: (1 - abar_{t-1}) / (1 - abar_t) beta_t, and the mean's two gains.
    path = DiscreteVariancePreserving(scaled_linear=False, beta_start=1e-4, beta_end=0.02)
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=D)
    abar = (1 - beta).cumprod(0)
    i = torch.tensor([1, 300, 999])
    down, up = ancestral_std(path, i.double(), i.double() - 1)
    variance = (1 - abar[i - 1]) / (1 - abar[i]) * beta[i]
    torch.testing.assert_close(up, variance.sqrt(), rtol=1e-9, atol=0)
    # The gain of x_t is down/sigma_t here, and sqrt(1 - beta)(1 - abar_{t-1})/(1 - abar_t) there.
    gain = (1 - beta[i]).sqrt() * (1 - abar[i - 1]) / (1 - abar[i])
    torch.testing.assert_close(down / (1 - abar[i]).sqrt(), gain, rtol=1e-9, atol=0)


# Churn.


def test_churn_raises_the_time():
    churn = Churn(40, 0.05, 50.0, 1.003)
    assert churn.raised(1.0, 256) == pytest.approx(1 + 40 / 256)
    assert churn.raised(2.0, 10) == pytest.approx(2 * math.sqrt(2))
    assert churn.raised(0.049, 256) == 0.049
    assert churn.raised(50.1, 256) == 50.1
    assert Churn().raised(1.0, 256) == 1.0


@pytest.mark.parametrize("excess", [1.0, 1.1])
def test_churn_keeps_the_law_of_a_point(excess):
    path, point = VarianceExploding(), Gaussian(0.4, 0.0)
    times = torch.tensor([4.0, 1.0, 0.25], dtype=D)
    churn = Churn(0.5, noise_std=excess)
    found = law(
        lambda x, noise: ode(GaussianDenoiser(path, point), x, times, churn=churn, noise=noise),
        *marginal(path, 4.0, point),
        2,
    )
    # From t, noise of variance t^2 (1.25^2 - 1) excess^2, then towards the point by s / (1.25 t).
    variance = 16.0
    for t, s in ((4.0, 1.0), (1.0, 0.25)):
        variance = (variance + t**2 * (1.25**2 - 1) * excess**2) * (s / (1.25 * t)) ** 2
    assert found == pytest.approx((0.4, variance), rel=1e-12)
    if excess == 1:
        assert variance == pytest.approx(0.25**2)


@pytest.mark.parametrize(
    "path", [p for p in PATHS_AT_REST if not isinstance(p, VarianceExploding)], ids=path_id
)
def test_churn_is_for_noise_levels_only(path):
    x = normal(2, 1)
    with pytest.raises(TypeError, match=path_id(path)):
        ode(GaussianDenoiser(path), x, path.time(karras(3, 0.1, 5.0)), churn=Churn(1.0))


# Precision and arguments.


class Narrow(nn.Module):
    """A float32 network that keeps what it sees."""

    cond_keys = ("label",)
    two_time = False

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.3))
        self.seen: list[Tensor] = []

    def forward(self, x, c_noise, s_noise=None, cond=None):
        self.seen += [x, c_noise]
        assert cond is not None
        return self.gain * x + cond["label"].reshape(-1, 1)


@pytest.mark.parametrize("path", [VarianceExploding(0.01, 5.0), Linear(0.01, 0.99)], ids=path_id)
def test_every_call_is_told_the_conditions(path):
    # Also those of second stages, and that of a last step to clean data.
    cond, x = {"label": torch.tensor([1.0, 2.0])}, normal(2, 3)
    times = to_zero(karras(4, 0.05, 0.9))
    few = times[:-1]
    samplers = [
        *(lambda d, step=step: ode(d, x, times, cond, step=step) for step in STEPS.values()),
        lambda d: dpmpp_2m(d, x, times, cond),
        lambda d: stochastic_ddim(d, x, times, lambda i: x, cond),
        lambda d: one_step(d, x, few, cond),
        lambda d: multistep(d, x, few, lambda i: x, cond),
        lambda d: deterministic(d, x, few, cond),
        lambda d: gamma_sampling(d, x, few, lambda i: x, cond, gamma=0.5),
    ]
    if isinstance(path, VarianceExploding):
        churn = Churn(0.5)
        samplers.append(lambda d: ode(d, x, times, cond, churn=churn, noise=lambda i: x))
    for sample in samplers:
        watched = Watched(GaussianDenoiser(path))
        sample(watched)
        assert len(watched.seen) >= 1
        assert all(seen[3] is cond for seen in watched.seen)
    for step in STEPS.values():
        watched = Watched(GaussianDenoiser(path))
        step(watched, x, full(0.9, x), full(0.0, x), cond)
        assert all(seen[3] is cond for seen in watched.seen)


@pytest.mark.parametrize("start", [torch.float32, D])
def test_the_state_is_wide_whatever_the_network(start):
    denoiser = Denoiser(Narrow(), EDM(sigma_data=0.5))
    watched = Watched(denoiser)
    x, times = normal(2, 3).to(start), karras(4, 0.1, 5.0)
    cond = {"label": torch.tensor([0.0, 1.0])}

    def noise(i: int) -> Tensor:
        return torch.ones(2, 3)

    outs = [
        ode(watched, x, times, cond),
        ode(watched, x, times, cond, step=ddim, churn=Churn(1.0), noise=noise),
        dpmpp_2m(watched, x, times, cond),
        stochastic_ddim(watched, x, times, noise, cond),
        multistep(watched, x, times, noise, cond),
        deterministic(watched, x, times, cond),
        gamma_sampling(watched, x, times, noise, cond, gamma=0.5),
    ]
    assert {out.dtype for out in outs} == {D}
    assert {v.dtype for seen in watched.seen for v in seen[:2]} == {D}
    assert {v.dtype for v in denoiser.net.seen} == {torch.float32}
    assert all(seen[3] is cond for seen in watched.seen)


def test_few_step_models_are_asked_for_the_end():
    path = VarianceExploding(0.1, 80.0)
    x, times = normal(2, 3), torch.tensor([80.0, 2.0], dtype=D)
    watched = Watched(GaussianConsistency(path))
    multistep(watched, x, times, lambda i: x)
    asked = [(seen[1].tolist(), seen[2].tolist()) for seen in watched.seen]
    assert asked == [([80.0] * 2, [0.1] * 2), ([2.0] * 2, [0.1] * 2)]
