"""Whether an exported graph answers as torch does."""

from __future__ import annotations

from itertools import product

import torch
from torch import nn

from fewstep.contract import Contract
from fewstep.engines.graph import examples, lengths_of
from fewstep.engines.sessions import Session
from fewstep.errors import UsageError
from fewstep.models import AbstractDenoiser

LARGEST_ERROR = 1e-4
"""Largest difference of an answer, relative to the largest one where that exceeds 1; float32 makes
about a hundredth of it."""
BATCHES = (1, 2, 7)
"""Sizes of batches that are compared: an exporter may fix the one that it was shown."""


@torch.no_grad()
def largest_error(denoiser: AbstractDenoiser, contract: Contract, session: Session) -> float:
    """The largest difference between a session's answers and torch's in float32.

    Raises:
        UsageError: it exceeds ``LARGEST_ERROR``, or an answer is not finite where torch's is.
    """
    largest = 0.0
    for n, length in product(BATCHES, lengths_of(contract)):
        inputs = examples(denoiser, contract, n, length)
        cond = {key: inputs[key] for key in denoiser.cond_keys}
        right = denoiser(inputs["x"], inputs["t"], inputs.get("s"), cond)
        out = torch.from_numpy(session({key: value.numpy() for key, value in inputs.items()}))
        largest = max(largest, difference(out, right))
    return largest


def difference(out: torch.Tensor, right: torch.Tensor) -> float:
    """The largest difference of two answers, relative to the largest one where that exceeds 1.

    Raises:
        UsageError: it exceeds ``LARGEST_ERROR``, shapes differ, or only one is finite.
    """
    if out.shape != right.shape:
        raise UsageError(
            f"the exported graph answers {tuple(out.shape)} where torch answers "
            f"{tuple(right.shape)}; use the engine eager or compile"
        )
    if bool((out.isfinite() != right.isfinite()).any()):
        raise UsageError(
            "the exported graph has answers that are not finite where torch's are, or the "
            "converse; use the engine eager or compile"
        )
    scale = max(1.0, float(right.abs().nan_to_num(posinf=0.0).max()))
    error = float((out - right).abs().nan_to_num().max()) / scale
    if error > LARGEST_ERROR:
        raise UsageError(
            f"the exported graph differs from torch by {error:.2g}, more than {LARGEST_ERROR:g}; "
            "use the engine eager or compile"
        )
    return error


def evaluated(graph: nn.Module) -> nn.Module:
    """A graph in evaluation mode: a module in training is exported with dropout that is alive."""
    return graph.eval().requires_grad_(False)
