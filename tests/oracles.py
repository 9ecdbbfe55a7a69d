"""Exact solutions on any path, for tests.

Data N(mean, std^2) in every coordinate gives x_t ~ N(alpha mean, V_t), V = alpha^2 std^2 + sigma^2,
the denoiser mean + (alpha std^2 / V)(x - alpha mean) and the flow map
alpha_s mean + sqrt(V_s / V_t) (x - alpha_t mean). A mixture's flow map is integrated by scipy in
log(sigma/alpha), whose equation dy = (y - D) of y = x/alpha no path's time or derivative enters.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from fewstep.core import expand
from fewstep.data import Mixture
from fewstep.models import AbstractDenoiser
from fewstep.paths import PATHS, Path

D = torch.float64
PATHS_AT_REST = [cls() for cls in PATHS.values()]


def path_id(path: Path) -> str:
    return type(path).__name__


def full(value: float, like: Tensor) -> Tensor:
    """The same time for every sample."""
    return torch.full((len(like),), value, dtype=D)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


class Gaussian(NamedTuple):
    """Data N(mean, std^2) in every coordinate."""

    mean: float = 0.3
    std: float = 0.7

    def variance(self, path: Path, t: Tensor) -> Tensor:
        alpha, sigma, _, _ = path.coefficients(t)
        return alpha**2 * self.std**2 + sigma**2

    def denoised(self, path: Path, x: Tensor, t: Tensor) -> Tensor:
        alpha = path.coefficients(t).alpha
        gain = alpha * self.std**2 / self.variance(path, t)
        return self.mean + expand(gain, x) * (x - expand(alpha, x) * self.mean)

    def flow(self, path: Path, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        alpha_t, alpha_s = path.coefficients(t).alpha, path.coefficients(s).alpha
        scale = (self.variance(path, s) / self.variance(path, t)).sqrt()
        return expand(alpha_s, x) * self.mean + expand(scale, x) * (
            x - expand(alpha_t, x) * self.mean
        )


class Oracle(AbstractDenoiser):
    """A denoiser without a network."""

    cond_keys = ()
    two_time = False

    def __init__(self, path: Path, data: Gaussian = Gaussian()) -> None:  # noqa: B008 (immutable)
        super().__init__()
        self.path, self.data = path, data


class GaussianDenoiser(Oracle):
    """E[x0 | x_t]."""

    def forward(self, x, t, s=None, cond=None):
        return self.data.denoised(self.path, x, t)


class GaussianConsistency(Oracle):
    """The flow map to t_min."""

    def forward(self, x, t, s=None, cond=None):
        return self.data.flow(self.path, x, t, torch.full_like(t, self.path.t_min))


class GaussianFlowMap(Oracle):
    """The answer whose transport to s is the flow map to s; the denoiser where s = t."""

    two_time = True

    def forward(self, x, t, s=None, cond=None):
        if s is None:
            return self.data.denoised(self.path, x, t)
        (alpha_t, sigma_t, _, _), (alpha_s, sigma_s, _, _) = map(self.path.coefficients, (t, s))
        keep = sigma_s / sigma_t
        there = self.data.flow(self.path, x, t, s) - expand(keep, x) * x
        return there / expand(alpha_s - keep * alpha_t, x)


class MixtureDenoiser(AbstractDenoiser):
    """E[x0 | x_t] of a mixture."""

    cond_keys = ()
    two_time = False

    def __init__(self, path: Path, mixture: Mixture) -> None:
        super().__init__()
        self.path, self.mixture = path, mixture

    def forward(self, x, t, s=None, cond=None):
        alpha, sigma, _, _ = self.path.coefficients(t)
        return self.mixture.denoiser(x, alpha, sigma)

    def flow(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The flow map from t to s."""
        ends = self.path.ratio(t).log(), self.path.ratio(s).log()

        def slope(part: float, flat: np.ndarray) -> np.ndarray:
            y = torch.from_numpy(flat).reshape(x.shape)
            ratio = torch.lerp(*ends, part).exp()
            answer = self.mixture.denoiser(y, torch.ones_like(ratio), ratio)
            return (expand(ends[1] - ends[0], y) * (y - answer)).flatten().numpy()

        start = (x / expand(self.path.coefficients(t).alpha, x)).flatten().numpy()
        found = solve_ivp(slope, (0, 1), start, method="DOP853", rtol=1e-10, atol=1e-12)
        end = torch.from_numpy(found.y[:, -1]).reshape(x.shape)
        return expand(self.path.coefficients(s).alpha, x) * end


class Offset(AbstractDenoiser):
    """A denoiser made wrong: scale * answer + offset * ramp(t), with two parameters to learn."""

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        offset: float = 0.0,
        scale: float = 1.0,
        ramp: Callable[[Tensor], Tensor] = torch.ones_like,
    ) -> None:
        super().__init__()
        self.denoiser, self.ramp = denoiser, ramp
        self.path, self.cond_keys = denoiser.path, denoiser.cond_keys
        self.two_time = denoiser.two_time
        self.offset = nn.Parameter(torch.tensor(offset, dtype=D))
        self.scale = nn.Parameter(torch.tensor(scale, dtype=D))

    def forward(self, x, t, s=None, cond=None):
        return self.scale * self.denoiser(x, t, s, cond) + self.offset * expand(self.ramp(t), x)


class Watched(AbstractDenoiser):
    """Keeps what it is called with: ``seen`` holds (x, t, s, cond)."""

    def __init__(self, denoiser: AbstractDenoiser) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.path, self.cond_keys = denoiser.path, denoiser.cond_keys
        self.two_time = denoiser.two_time
        self.seen: list[tuple] = []

    def forward(self, x, t, s=None, cond=None):
        self.seen.append((x, t, s, cond))
        return self.denoiser(x, t, s, cond)


def four_points(data: Gaussian, *event: int) -> tuple[Tensor, Tensor]:
    """Clean samples and noise whose equal-weight mean is the exact one of any quadratic."""
    x0 = data.mean + data.std * torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=D)
    noise = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=D)
    shape = (4, *event)
    return tuple(v.reshape(-1, *[1] * len(event)).expand(shape).clone() for v in (x0, noise))


MIXTURE = Mixture(
    torch.tensor([0.3, 0.7]),
    torch.tensor([[-0.6], [0.5]], dtype=D),
    torch.tensor([0.25, 0.35], dtype=D),
)


def quadrature(mixture: Mixture = MIXTURE, nodes: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    """Clean samples, noise and weights of mean 1: a Gauss-Hermite rule of one-dimensional data."""
    z, w = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(nodes))
    w = w / w.sum()
    x0 = mixture.means + mixture.stds[:, None] * z
    chance = mixture.weights[:, None] * w
    noise, both = z.expand(x0.numel(), -1), chance.flatten()[:, None] * w
    clean = x0.flatten()[:, None].expand_as(noise)
    return clean.reshape(-1, 1), noise.reshape(-1, 1), both.flatten() * both.numel()


def slope(steps, errors) -> float:
    """The power of ``steps`` by which ``errors`` grow."""
    return float(np.polyfit(np.log(np.asarray(steps)), np.log(np.asarray(errors)), 1)[0])
