"""Complete training states as safetensors and JSON: whole or absent, and checked when read."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from fewstep.core import UsageError
from fewstep.files import sha256, whole_folder

State = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors by dotted name, and JSON values."""


def save(folder: Path, step: int, state: State, keep: int) -> Path:
    """Write the state of ``step``; then drop all but the ``keep`` newest."""
    tensors, values = state
    data = dump_tensors({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    target = folder / f"{step:09d}"
    with whole_folder(target) as fresh:
        (fresh / "state.safetensors").write_bytes(data)
        manifest = {**values, "step": step}
        manifest["sha256"] = _digest(manifest, data)
        (fresh / "state.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    for old in _complete(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint, if there is one."""
    found = _complete(folder)
    return found[-1] if found else None


def read(checkpoint: Path) -> State:
    """The state in a checkpoint.

    Raises:
        UsageError: it is damaged; the message names the folder to delete.
    """
    try:
        values = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        data = (checkpoint / "state.safetensors").read_bytes()
        if values.pop("sha256") != _digest(values, data):
            raise ValueError("it does not match its sha256")
        return load_tensors(data), values
    except Exception as error:
        raise UsageError(
            f"the checkpoint {checkpoint} is damaged ({error}); delete it to go on from the one "
            "before, or start anew with --fresh"
        ) from error


def load_into(module: nn.Module, tensors: dict[str, Tensor], prefix: str, source: Path) -> None:
    """Copy the tensors named ``prefix.*`` into ``module``, strictly."""
    found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    wanted = module.state_dict()
    odd = sorted({*found} ^ {*wanted}) + [
        k for k in wanted if k in found and found[k].shape != wanted[k].shape
    ]
    if odd:
        raise UsageError(f"{source} is of another network: {prefix}{{{', '.join(odd[:8])}}} differ")
    module.load_state_dict(found)


def fingerprint(module: nn.Module) -> str:
    """sha256 of all weights and buffers by name: what is kept of a frozen module."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        data = value.detach().cpu().contiguous().reshape(-1)
        digest.update(data.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _digest(values: dict[str, Any], data: bytes) -> str:
    """Of the tensors and of the values beside them."""
    return sha256(json.dumps(values, sort_keys=True).encode() + data)


def _complete(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("[0-9]*") if (p / "state.json").is_file())
