"""What metrics are measured on: feature callables, and the float64 rows every metric works with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import resources

import torch
from jaxtyping import Float
from safetensors.torch import load
from torch import Tensor, nn

from fewstep.core import UsageError
from fewstep.metrics.products import finite, scatter

Features = Callable[[Tensor], Tensor]
"""Maps data ``(b, *event)`` to features ``(b, f)``."""

BLOCK = 2**24
"""Entries of a pairwise matrix held at once: 128 MiB of float64."""


def rows(x: Float[Tensor, " n *event"], name: str, minimum: int = 2) -> Float[Tensor, " n d"]:
    """``x`` flattened, detached and in float64, on its device (from mps, which has none: the CPU).

    Raises:
        UsageError: no event axis, fewer than ``minimum`` samples, or a value that is not finite.
    """
    if x.ndim < 2:
        raise UsageError(f"{name} has shape {tuple(x.shape)}; expected (n, *event)")
    if len(x) < minimum:
        raise UsageError(f"{name} has {len(x)} samples; at least {minimum} are needed")
    x = x.detach().flatten(1)
    x = x.to("cpu" if x.device.type == "mps" else x.device).double()
    if not finite(x):
        bad = int((~x.isfinite()).any(1).sum())
        raise UsageError(f"{name} has {bad} of {len(x)} samples with values that are not finite")
    return x


def row_pair(
    a: Tensor, b: Tensor, names: tuple[str, str] = ("a", "b"), minimum: int = 2
) -> tuple[Tensor, Tensor]:
    """``rows`` of both, on the device of ``a``.

    Raises:
        UsageError: as ``rows``, or the two differ in their number of dimensions.
    """
    a, b = rows(a, names[0], minimum), rows(b, names[1], minimum)
    if a.shape[1] != b.shape[1]:
        raise UsageError(
            f"{names[0]} has {a.shape[1]} dimensions and {names[1]} has {b.shape[1]}; "
            "both must come from the same features"
        )
    return a, b.to(a.device)


def blocks(x: Float[Tensor, " n d"], columns: int) -> Iterator[Float[Tensor, " m d"]]:
    """Consecutive parts of ``x`` whose ``(m, columns)`` matrices have at most ``BLOCK`` entries."""
    yield from x.split(max(1, BLOCK // columns))


def own_products(x: Float[Tensor, " n d"]) -> Iterator[tuple[slice, Float[Tensor, " m n"]]]:
    """Consecutive rows of ``x @ x.T``, of at most ``BLOCK`` entries, and which they are.

    One triangle of the product is enough where all of it may be held at once.
    """
    whole, end = scatter(x.T) if len(x) ** 2 <= BLOCK else None, 0
    for part in blocks(x, len(x)):
        rows = slice(end, end := end + len(part))
        yield rows, part @ x.T if whole is None else whole[rows]


def flatten(x: Float[Tensor, " b *event"]) -> Float[Tensor, " b f"]:
    """The data itself as features: ``(b, *event)`` to ``(b, f)``."""
    return x.flatten(1)


class TanhFeatures(nn.Module):
    """A small digit classifier; its hidden layer is the feature, bounded so that no outlier rules.

    One hidden layer, not two: a deeper one keeps the class and forgets how samples of a class
    differ, and then hardly tells a blurred mean of a class from a sample.

    It is a judge and nothing else: no loss may use it or anything distilled from it, or its
    distances stop measuring quality.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Float[Tensor, " b *event"]) -> Float[Tensor, " b 64"]:
        """Features in (-1, 1) of digits ``(b, 1, 8, 8)`` in [-1, 1].

        Raises:
            UsageError: the event has not 64 values.
        """
        if x.ndim < 2 or x[0].numel() != 64:
            raise UsageError(f"digit features take (b, 1, 8, 8), got {tuple(x.shape)}")
        return self.hidden(x.flatten(1)).tanh()

    def logits(self, x: Float[Tensor, " b *event"]) -> Float[Tensor, " b 10"]:
        """Unnormalised log-probabilities of the ten classes; same input as ``forward``."""
        return self.head(self(x))


def digits_features() -> TanhFeatures:
    """The bundled ``TanhFeatures``, trained by ``benchmarks/digits_features.py``; frozen, float32.

    Raises:
        UsageError: the weights are not there.
    """
    asset = resources.files("fewstep") / "assets" / "digits-features.safetensors"
    if not asset.is_file():
        raise UsageError(f"no weights at {asset}; write them with benchmarks/digits_features.py")
    with torch.device("meta"):
        model = TanhFeatures()
    model.load_state_dict(load(asset.read_bytes()), strict=True, assign=True)
    return model.eval().requires_grad_(False)
