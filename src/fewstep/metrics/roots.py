r"""$\mathrm{tr}((S_a S_b)^{1/2})$, the term of the Frechet distance that is not a plain sum.

It is the sum of the roots of the eigenvalues of $S_a S_b$. With $S_a = L L^T$ these are the
eigenvalues of the symmetric $L^T S_b L$, and with $S_a = A^T A$ and $S_b = B^T B$ the roots are the
singular values of $A B^T$.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.metrics.products import congruence

ERROR = 1e-8
"""The largest relative error of a sum of roots that is trusted, by an estimate on the high side."""


def trace_of_root(a: Float[Tensor, " d d"], b: Float[Tensor, " d d"]) -> Tensor:
    """The term for two covariances.

    By Cholesky's factor of ``a`` where both have full rank and are well enough conditioned, else by
    the eigenvalues of the unsymmetric product, at about three times the cost.
    """
    factor, failed = torch.linalg.cholesky_ex(a)
    total = None if failed else _sum_of_roots(congruence(b, factor))
    if total is not None:
        return total
    # Product of two positive semidefinite matrices: eigenvalues are real and >= 0 but for rounding.
    return torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()


def trace_of_root_between(a: Float[Tensor, " n d"], b: Float[Tensor, " m d"]) -> Tensor:
    """The term for the unbiased covariances of two sets of samples.

    The matrices have as many rows and columns as there are samples, whatever ``d`` is.
    """
    between = _centred(a) @ _centred(b).T
    if len(between) > between.shape[1]:
        between = between.T
    total = _sum_of_roots(between @ between.T)
    if total is None:
        total = torch.linalg.svdvals(between).sum()
    return total


def _sum_of_roots(gram: Float[Tensor, " d d"]) -> Tensor | None:
    """Sum of the roots of a symmetric matrix's eigenvalues; None where rounding may spoil it.

    Every eigenvalue is off by some rounding of the largest, in either direction. So is the root of
    one below that, whose errors all go up; an error ``e`` of a value ``v`` above it is one of
    ``e / (2 sqrt(v))`` in the root.
    """
    values = torch.linalg.eigvalsh(gram)
    rounding = values[-1].clamp(min=0) * torch.finfo(values.dtype).eps
    roots = values[values > rounding].sqrt()
    below = len(values) - len(roots)
    error = (rounding / (2 * roots)).norm() + below * rounding.sqrt()
    return values.clamp(min=0).sqrt().sum() if error <= ERROR * roots.sum() else None


def _centred(x: Float[Tensor, " n d"]) -> Float[Tensor, " k d"]:
    """Rows (n - 1 for n samples) whose products are the unbiased covariance.

    A reflection turns the direction of the mean over samples, in which centred samples are zero,
    into the first row. To leave that row out removes a singular value that is 0 but for rounding.
    """
    n = len(x)
    x = x - x.mean(0)
    normal = torch.full((n, 1), n**-0.5, dtype=x.dtype, device=x.device)
    normal[0] += 1
    reflected = x - normal * (2 / normal.square().sum()) * (normal.T @ x)
    return reflected[1:] / (n - 1) ** 0.5
