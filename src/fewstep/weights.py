"""Weights into a module and out of it: strictly, each stored once, and what is frozen stays so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from fewstep.errors import UsageError
from fewstep.system.files import sha256

M = TypeVar("M", bound=nn.Module)

_HELD = "_held"
"""Attribute of a module: names of its own parameters that had no gradient when it was frozen."""


def load_weights(
    module: nn.Module,
    weights: bytes,
    source: Path,
    digest: str | None,
    ties: Mapping[str, str] | None = None,
) -> None:
    """``assign_weights`` of a safetensors file's bytes, if they have that sha256.

    Args:
        module: where the weights go.
        weights: the file's bytes.
        source: named in messages.
        digest: the expected sha256.
        ties: names that the file leaves out, and the names that hold the same tensor.
    """
    if digest != sha256(weights):
        raise UsageError(f"{source}: the weights do not match their sha256; the file is damaged")
    try:
        tensors = load_tensors(weights)
    except Exception as error:
        raise UsageError(f"{source}: not a safetensors file: {error}") from error
    tensors |= {name: tensors[first] for name, first in (ties or {}).items() if first in tensors}
    assign_weights(module, tensors, source)


def assign_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Strictly: every tensor there, none extra, each of its shape; cast to the module's dtype.

    Tensors that the module holds under several names must be equal in the file too.
    """
    wanted = module.state_dict()
    lines = [f"missing {k} {tuple(wanted[k].shape)}" for k in wanted if k not in tensors]
    lines += [f"extra {k} {tuple(tensors[k].shape)}" for k in tensors if k not in wanted]
    lines += [
        f"{k}: expected {tuple(wanted[k].shape)}, found {tuple(tensors[k].shape)}"
        for k in wanted
        if k in tensors and wanted[k].shape != tensors[k].shape
    ]
    if lines:
        raise UsageError(f"{source} holds another network's weights:\n  " + "\n  ".join(lines))
    ties = tied(wanted)
    for name, first in ties.items():
        if not torch.equal(tensors[name], tensors[first]):
            raise UsageError(
                f"{source} holds other values for {name} than for {first}, which this network "
                "shares; give a network that does not share them"
            )
    if not any(value.is_meta for value in wanted.values()):
        # In place: views and shared weights stay what they are.
        copy_into(wanted, tensors)
        return
    cast = {k: tensors[k].to(wanted[k].dtype) for k in wanted}
    module.load_state_dict(cast, assign=True)
    shared = dict(module.named_parameters(remove_duplicate=False))
    for name in ties.keys() & shared.keys():
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, shared[ties[name]])


@torch.no_grad()
def copy_into(state: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write the values of ``state``'s names into its tensors."""
    for name, tensor in state.items():
        write(tensor, values[name])


def write(tensor: Tensor, value: Tensor) -> None:
    """Copy a value of the same shape into a tensor; of an expanded dimension, its one entry."""
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor, value = tensor.narrow(dim, 0, 1), value.narrow(dim, 0, 1)
    tensor.copy_(value)


def averageable(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers that can be learned and averaged, not integers."""
    return tensor.is_floating_point() or tensor.is_complex()


def tied(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of tensors that an earlier name holds too, and that earlier name.

    Args:
        state: of a module; with ``keep_vars`` where tensors are sharded.
    """
    firsts: dict[object, str] = {}
    ties: dict[str, str] = {}
    for name, value in state.items():
        first = firsts.setdefault(_place(value), name)
        if first != name:
            ties[name] = first
    return ties


def separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, each with memory of its own, as files hold them."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, value in state.items():
        own = value.detach().cpu().contiguous()
        storage = own.untyped_storage()
        if storage.nbytes() != own.nbytes or storage.data_ptr() in seen:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        apart[name] = own
    return apart


def _place(value: Tensor) -> object:
    """Equal for tensors that are the same piece of memory, read in the same way."""
    if hasattr(value, "to_local") or not value.numel():
        return id(value)
    storage = value.untyped_storage()._cdata
    return storage, value.storage_offset(), value.shape, value.stride(), value.dtype


def freeze(module: M) -> M:
    """Turn all gradients off, and remember which parameters had none before.

    A copy of a frozen module that is to learn leaves those as they are: see :func:`learnable`.
    """
    if any(p.requires_grad for p in module.parameters()):
        for part in module.modules():
            own = part.named_parameters(recurse=False)
            part.__dict__[_HELD] = frozenset(name for name, p in own if not p.requires_grad)
    return module.requires_grad_(False)


def learnable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a network that a training may change.

    Where some have gradients, it is these. Of a network that :func:`freeze` froze as a whole, as of
    a loaded model, it is all that were not frozen before that; and of one that its user froze as a
    whole, none. Integers are never among them.
    """
    chosen = [p for p in module.parameters() if p.requires_grad]
    if chosen or not any(_HELD in part.__dict__ for part in module.modules()):
        return chosen
    held = {
        id(p)
        for part in module.modules()
        for name, p in part.named_parameters(recurse=False)
        if name in part.__dict__.get(_HELD, ())
    }
    return [p for p in module.parameters() if id(p) not in held and averageable(p)]
