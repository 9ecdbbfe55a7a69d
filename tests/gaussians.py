"""Gaussian data in the plane whose consistency function is a closed form, as a model."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.model import Model
from fewstep.models import AbstractDenoiser
from fewstep.paths import Path, VarianceExploding


class CorrelatedConsistency(AbstractDenoiser):
    """The flow map to ``t_min`` of N(0, cov), on any path."""

    cond_keys = ()
    two_time = False

    def __init__(self, cov: Tensor, path: Path) -> None:
        super().__init__()
        self.path = path
        self.values, self.vectors = torch.linalg.eigh(cov.double())

    def forward(self, x, t, s=None, cond=None):
        def std(time):
            alpha, sigma, _, _ = self.path.coefficients(time)
            return (alpha[:, None] ** 2 * self.values + sigma[:, None] ** 2).sqrt()

        gain = std(torch.full_like(t, self.path.t_min)) / std(t)
        wide = x.flatten(1).double()
        return (wide @ self.vectors * gain @ self.vectors.T).reshape(x.shape).to(x.dtype)


class CorrelatedDenoiser(CorrelatedConsistency):
    """E[x0 | x_t] of N(0, cov)."""

    def forward(self, x, t, s=None, cond=None):
        alpha, sigma, _, _ = (c[:, None] for c in self.path.coefficients(t))
        gain = alpha * self.values / (alpha**2 * self.values + sigma**2)
        wide = x.flatten(1).double()
        return (wide @ self.vectors * gain @ self.vectors.T).reshape(x.shape).to(x.dtype)


def correlated(std: float = 0.5, rho: float = 0.9) -> Tensor:
    """The covariance of two coordinates."""
    return std**2 * torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)


def gaussian_model(
    cov: Tensor,
    shape: tuple[int, ...],
    path: Path | None = None,
    kind: str = "renoise",
    **data,
) -> Model:
    """A model of N(0, cov) of that shape, unbounded unless a range is given."""
    path = path or VarianceExploding()
    spec = DataSpec(shape=shape, **{"range": None, **data})
    start = Start(t=path.t_max, std=path.start_std())
    sampling = Sampling(start=start, kind=kind, any_times=True)
    denoiser = (CorrelatedDenoiser if kind == "ode" else CorrelatedConsistency)(cov, path)
    return Model(denoiser, Contract(method="exact", data=spec, sampling=sampling))
