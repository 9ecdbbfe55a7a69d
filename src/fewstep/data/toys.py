r"""One- and two-dimensional toys, with exact denoisers and scores where those exist.

For data $\sum_k w_k N(\mu_k, S_k^2 I)$ and $x_t = \alpha x_0 + \sigma \epsilon$, component k of
$x_t$ has variance $V_k = \alpha^2 S_k^2 + \sigma^2$ and posterior weight

$\gamma_k = \mathrm{softmax}_k(\log w_k - (d/2) \log V_k - |x_t - \alpha \mu_k|^2 / (2 V_k))$,

so that $E[x_0 | x_t] = \sum_k \gamma_k (\mu_k + (\alpha S_k^2 / V_k)(x_t - \alpha \mu_k))$ and the
score is $-\sum_k \gamma_k (x_t - \alpha \mu_k) / V_k$. Every toy has a standard deviation of
about 0.5 per coordinate.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core import UsageError, entropy, widest
from fewstep.data.arrays import Arrays


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of isotropic Gaussians; all of its quantities are exact.

    Args:
        weights: positive ``(k,)``; kept normalised to sum 1.
        means: ``(k, d)``.
        stds: ``(k,)``, at least 0. With zeros and equal weights this is an empirical data set,
            and every ``sigma`` must be positive.

    Raises:
        UsageError: the shapes do not fit, or a value is out of its range.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def __post_init__(self) -> None:
        for name in ("weights", "means", "stds"):
            value = torch.as_tensor(getattr(self, name), dtype=torch.float64)
            object.__setattr__(self, name, value)
        k = len(self.weights)
        shapes = tuple(self.weights.shape), tuple(self.means.shape), tuple(self.stds.shape)
        if self.means.ndim != 2 or shapes[0] != (k,) or shapes[2] != (k,) or shapes[1][0] != k:
            raise UsageError(
                f"got weights, means, stds of shapes {shapes}; expected (k,), (k, d), (k,)"
            )
        values = torch.cat([self.weights, self.means.flatten(), self.stds])
        if not (values.isfinite().all() and (self.weights > 0).all() and (self.stds >= 0).all()):
            raise UsageError(
                f"got weights {self.weights.tolist()} and stds {self.stds.tolist()}; "
                "expected finite numbers, weights above 0 and stds of at least 0"
            )
        object.__setattr__(self, "weights", self.weights / self.weights.sum())

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """``(n, d)`` draws on the CPU, in torch's default precision."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return (self.means[k] + self.stds[k, None] * noise).to(torch.get_default_dtype())

    def denoiser(
        self,
        x_t: Float[Tensor, " b d"],
        alpha: Float[Tensor, " b"],
        sigma: Float[Tensor, " b"],
    ) -> Float[Tensor, " b d"]:
        """The posterior mean E[x0 | x_t] in ``x_t``'s precision, computed in the widest one."""
        a, variance, offset, gamma = self._posterior(x_t, alpha, sigma)
        gain = a * self.stds.to(a) ** 2 / variance
        x0 = self.means.to(a) + gain[..., None] * offset
        return (gamma[..., None] * x0).sum(1).to(x_t.dtype)

    def score(
        self,
        x_t: Float[Tensor, " b d"],
        alpha: Float[Tensor, " b"],
        sigma: Float[Tensor, " b"],
    ) -> Float[Tensor, " b d"]:
        """The gradient of the log density of ``x_t``, in ``x_t``'s precision."""
        _, variance, offset, gamma = self._posterior(x_t, alpha, sigma)
        return -((gamma / variance)[..., None] * offset).sum(1).to(x_t.dtype)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``(d,)`` and covariance ``(d, d)`` of the data, float64."""
        mean = self.weights @ self.means
        centred = self.means - mean
        within = (self.weights * self.stds**2).sum() * torch.eye(len(mean), dtype=mean.dtype)
        return mean, within + (self.weights[:, None] * centred).T @ centred

    def _posterior(
        self, x_t: Tensor, alpha: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = widest(x_t.device)
        x, a, s = x_t.to(wide), alpha.to(wide)[:, None], sigma.to(wide)[:, None]
        variance = a**2 * self.stds.to(x) ** 2 + s**2
        offset = x[:, None] - a[..., None] * self.means.to(x)
        logits = (
            self.weights.to(x).log()
            - 0.5 * x.shape[1] * variance.log()
            - offset.square().sum(2) / (2 * variance)
        )
        return a, variance, offset, logits.softmax(1)


def gaussian(mean: Sequence[float] | Tensor, std: float) -> Mixture:
    """The Gaussian N(mean, std^2 I) as a mixture of one; ``mean`` is ``(d,)``."""
    means = torch.as_tensor(mean, dtype=torch.float64)[None]
    return Mixture(torch.ones(1), means, torch.tensor([std], dtype=torch.float64))


def two_modes(d: int = 2) -> Mixture:
    """Two well separated Gaussians on the diagonal of ``d`` dimensions; std 0.5 per coordinate."""
    means = torch.tensor([[-0.48], [0.48]], dtype=torch.float64).expand(2, d)
    return Mixture(torch.ones(2), means, torch.tensor([0.14, 0.14], dtype=torch.float64))


def eight_gaussians() -> Mixture:
    """Eight narrow Gaussians on a circle; std 0.5 per coordinate."""
    std = 0.05
    angle = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    radius = math.sqrt(2 * (0.5**2 - std**2))
    means = radius * torch.stack([angle.cos(), angle.sin()], 1)
    return Mixture(torch.ones(8), means, torch.full((8,), std, dtype=torch.float64))


def checkerboard(n: int, generator: torch.Generator) -> Tensor:
    """``(n, 2)`` uniform draws from every other square of a 4 x 4 board, default precision."""
    column = torch.randint(4, (n,), generator=generator)
    row = 2 * torch.randint(2, (n,), generator=generator) + column % 2
    corner = torch.stack([column, row], 1)
    half_width = 0.5 * math.sqrt(3)  # a uniform law on [-h, h] has standard deviation h / sqrt(3)
    x = (corner + _uniform(n, 2, generator=generator)) / 2 - 1
    return (half_width * x).to(torch.get_default_dtype())


def moons(n: int, generator: torch.Generator) -> Tensor:
    """``(n, 2)`` draws from two interleaved, noisy half circles, default precision."""
    angle = math.pi * _uniform(n, generator=generator)
    sign = 1 - 2 * torch.randint(2, (n,), generator=generator)
    x = torch.stack([sign * (angle.cos() - 0.5), sign * (angle.sin() - 0.25)], 1)
    return _blurred(x / 1.4, 0.03, generator)


def swiss_roll(n: int, generator: torch.Generator) -> Tensor:
    """``(n, 2)`` draws from a noisy spiral of one and a half turns, default precision."""
    angle = 1.5 * math.pi * (1 + 2 * _uniform(n, generator=generator))
    x = angle[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return _blurred(x / 14, 0.02, generator)


def _uniform(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def _blurred(x: Tensor, std: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    return (x + std * noise).to(torch.get_default_dtype())


SAMPLERS: Mapping[str, Callable[[int, torch.Generator], Tensor]] = {
    "gaussian": gaussian((0.0, 0.0), 0.5).sample,
    "gaussian-1d": gaussian((0.0,), 0.5).sample,
    "two-modes": two_modes().sample,
    "two-modes-1d": two_modes(1).sample,
    "eight-gaussians": eight_gaussians().sample,
    "checkerboard": checkerboard,
    "moons": moons,
    "swiss-roll": swiss_roll,
}


def toy(name: str, n: int = 20_000, seed: int = 0) -> Arrays:
    """``n`` samples of a named toy, events ``(2,)`` or, where the name says so, ``(1,)``.

    Args:
        name: a key of ``SAMPLERS``; underscores count as hyphens.
        n: at least 1.
        seed: at least 0; the same seed gives the same samples.

    Raises:
        UsageError: no such toy, or ``n`` below 1.
    """
    name = name.replace("_", "-")
    if name not in SAMPLERS:
        near = difflib.get_close_matches(name, SAMPLERS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"there is no toy {name!r}; {hint}there are {', '.join(SAMPLERS)}")
    if n < 1:
        raise UsageError(f"cannot draw {n} samples of {name}; n must be at least 1")
    generator = torch.Generator().manual_seed(entropy(seed, "toy", name))
    return Arrays(SAMPLERS[name](n, generator).numpy(), image=False)
