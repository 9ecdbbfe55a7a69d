"""Weights into a module: strictly, with a report key by key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from fewstep.errors import UsageError
from fewstep.files import sha256


def load_weights(module: nn.Module, weights: bytes, source: Path, digest: str | None) -> None:
    """``assign_weights`` of a safetensors file's bytes, if they have that sha256."""
    if digest != sha256(weights):
        raise UsageError(f"{source}: the weights do not match their sha256; the file is damaged")
    try:
        found = load_tensors(weights)
    except Exception as error:
        raise UsageError(f"{source}: not a safetensors file: {error}") from error
    assign_weights(module, found, source)


def assign_weights(module: nn.Module, found: Mapping[str, Tensor], source: Path) -> None:
    """Strictly: every tensor there, none extra, each of its shape; cast to the module's dtype."""
    wanted = module.state_dict()
    lines = [f"missing {k} {tuple(wanted[k].shape)}" for k in wanted if k not in found]
    lines += [f"extra {k} {tuple(found[k].shape)}" for k in found if k not in wanted]
    lines += [
        f"{k}: expected {tuple(wanted[k].shape)}, found {tuple(found[k].shape)}"
        for k in wanted
        if k in found and wanted[k].shape != found[k].shape
    ]
    if lines:
        raise UsageError(f"{source} holds another network's weights:\n  " + "\n  ".join(lines))
    cast = {k: found[k].to(wanted[k].dtype) for k in wanted}
    module.load_state_dict(cast, assign=True)
