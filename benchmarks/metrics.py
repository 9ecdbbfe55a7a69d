"""Times of the metrics beside what others need for the same numbers, or the plain form of them.

python benchmarks/metrics.py [--repeats 5] [--only NAME,...]

Prints JSON. Both sides of a row are timed in turn; a ratio is of the medians, by the clock and by
the processor time of this process, which says more where other work shares the cores. `load` is the
system's load average before and after.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import prdc
import torch
from torch import Tensor

import fewstep
from fewstep.metrics import (
    Moments,
    StreamingMoments,
    density_coverage,
    frechet_distance,
    frechet_distance_of_samples,
    kid_subsets,
    moments_of,
    precision_recall,
)
from fewstep.metrics.features import flatten
from fewstep.models import Clamped

DIM = 2048
Work = Callable[[], object]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(a: Moments, b: Moments) -> float:
    """The Frechet distance by the eigenvalues of the product of the covariances."""
    root = torch.linalg.eigvals(a.cov @ b.cov).real.clamp(min=0).sqrt().sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * root)


def frechet_moments() -> tuple[Work, Work]:
    scale = torch.linspace(1, 0.1, DIM, dtype=torch.float64)
    a, b = (moments_of([randn(4 * DIM, DIM, seed=i) * scale], flatten) for i in (1, 2))
    return lambda: frechet_distance(a, b), lambda: dense(a, b)


def frechet_samples() -> tuple[Work, Work]:
    a, b = (randn(597, 3072, seed=i) for i in (1, 2))
    return lambda: frechet_distance_of_samples(a, b), lambda: dense(
        *(moments_of([x], flatten) for x in (a, b))
    )


def coverage() -> tuple[Work, Work]:
    real, fake = randn(2000, DIM), 0.99 * randn(2000, DIM, seed=1)

    def theirs() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            prdc.compute_prdc(real.numpy(), fake.numpy(), 5)

    return lambda: (precision_recall(real, fake, 5), density_coverage(real, fake, 5)), theirs


def kernel() -> tuple[Work, Work]:
    a, b = randn(10_000, DIM), 1.01 * randn(10_000, DIM, seed=1)

    def kernel_sum(x: Tensor, y: Tensor) -> Tensor:
        return ((x @ y.T / DIM + 1) ** 3).sum()

    def plain(subsets: int = 100, size: int = 1000) -> None:
        rng = np.random.default_rng(0)
        for _ in range(subsets):
            x, y = (z[rng.choice(len(z), size, replace=False)] for z in (a, b))
            kernel_sum(x, x) + kernel_sum(y, y) - 2 * kernel_sum(x, y)

    return lambda: kid_subsets(a, b), plain


def moments() -> tuple[Work, Work]:
    x = randn(10_000, DIM)

    def ours() -> Moments:
        stream = StreamingMoments(DIM)
        stream.update(x)
        return stream.moments()

    return ours, lambda: np.cov(x.numpy(), rowvar=False)


def sampling(steps: int, n: int = 10_000, batch: int = 512) -> tuple[Work, Work]:
    model = fewstep.load("digits-cd", device="cpu")
    denoiser, start = Clamped(model.denoiser, -1.0, 1.0), model.contract.sampling.start

    @torch.no_grad()
    def bare() -> Tensor:
        parts = []
        for begin in range(0, n, batch):
            label = torch.arange(begin, min(begin + batch, n)) % 10
            x = torch.randn(len(label), *model.contract.data.shape).double() * start.std
            for i, t in enumerate(model.times(steps)):
                at = torch.full((len(x),), t, dtype=torch.float64)
                x = x if i == 0 else x + torch.randn(x.shape) * t
                x = denoiser(x, at, None, {"label": label})
            parts.append(x.float())
        return torch.cat(parts)

    return lambda: model.sample(n, steps=steps, batch=batch), bare


ROWS: dict[str, Callable[[], tuple[Work, Work]]] = {
    "frechet_moments": frechet_moments,
    "frechet_samples": frechet_samples,
    "coverage": coverage,
    "kid": kernel,
    "moments": moments,
    "sampling_1": lambda: sampling(1),
    "sampling_2": lambda: sampling(2),
}
"""By name: ours, and what it is compared with."""


def timed(work: Work) -> tuple[float, float]:
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cpu


def row(name: str, repeats: int) -> dict[str, object]:
    ours, other = ROWS[name]()
    before = os.getloadavg()[0]
    times = [(timed(ours), timed(other)) for _ in range(repeats)]
    result: dict[str, object] = {"load": [round(before, 1), round(os.getloadavg()[0], 1)]}
    for kind, i in (("clock", 0), ("cpu", 1)):
        mine, theirs = (statistics.median(pair[k][i] for pair in times) for k in (0, 1))
        result[kind] = {
            "ours": round(mine, 3),
            "other": round(theirs, 3),
            "ratio": round(mine / theirs, 2),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default=",".join(ROWS))
    options = parser.parse_args()
    for name in options.only.split(","):
        print(json.dumps({name: row(name, options.repeats)}), flush=True)


if __name__ == "__main__":
    main()
