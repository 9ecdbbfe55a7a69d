"""Modules of diffusers and transformers: of a closed list, by their configuration, loaded strictly.

Their own loaders leave a missing weight without memory and say so in a log line only, and the
module then computes with whatever is there. Here every tensor has its place or is refused.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.errors import MANY, UsageError
from fewstep.weights import assign_weights

EXTRAS = {"diffusers": "diffusers", "huggingface_hub": "diffusers", "transformers": "text"}
"""The extra of this package that installs another one."""


def package(name: str, what: str) -> Any:
    """An optional package.

    Args:
        name: a key of ``EXTRAS``.
        what: needs it, for the message.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"{what} needs the package {name}; install it with: pip install "
            f"'fewstep[{EXTRAS[name]}]'"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder.

    Raises:
        UsageError: it is missing or holds no mapping.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} must hold a mapping in JSON, got {type(config).__name__}")
    return config


def plain(config: Mapping[str, Any], unused: Iterable[str] = ()) -> dict[str, Any]:
    """The arguments in a configuration of diffusers, as JSON values.

    Args:
        config: as its file holds it.
        unused: arguments that are left out too.
    """
    own = {k: v for k, v in config.items() if not k.startswith("_") and k not in unused}
    try:
        return json.loads(json.dumps(own))
    except (TypeError, ValueError) as error:
        raise UsageError(f"a configuration must hold values of JSON: {error}") from error


def built(
    architecture: str, known: Iterable[str], config: Mapping[str, Any], stored: Iterable[str] = ()
) -> nn.Module:
    """A module of diffusers, with new weights.

    Args:
        architecture: the name of its class.
        known: the names that are allowed.
        config: its arguments.
        stored: buffers that the class computes, and that are stored with the weights here.

    Raises:
        UsageError: the class is not allowed, or does not take these arguments.
    """
    names = [*known]
    if architecture not in names:
        raise UsageError(
            f"{architecture!r:.100} is no class of diffusers that is read here; "
            f"{', '.join(names)} are"
        )
    cls = getattr(package("diffusers", f"a {architecture}"), architecture)
    takes = inspect.signature(cls.__init__).parameters
    strange = [name for name, value in config.items() if name not in takes and value is not None]
    if strange:
        raise UsageError(
            f"the installed {architecture} of diffusers has no {', '.join(strange[:MANY])}; "
            "update diffusers"
        )
    try:
        module: nn.Module = cls(**{name: config[name] for name in config if name in takes})
    except Exception as error:  # its constructors raise all kinds
        raise UsageError(
            f"diffusers cannot build a {architecture} of this configuration: {error}"
        ) from error
    for name in stored:
        place, _, own = name.rpartition(".")
        owner = module.get_submodule(place)
        owner.register_buffer(own, owner.get_buffer(own), persistent=True)
    kept = {*module.state_dict()}
    lost = [name for name, _ in module.named_buffers() if name not in kept]
    if lost:
        raise UsageError(
            f"this {architecture} computes {', '.join(lost)} when it is made and stores it "
            "nowhere, which cannot be read"
        )
    return module.eval()


def tensors_of(folder: Path, stem: str) -> dict[str, Tensor]:
    """The tensors of a folder of diffusers or transformers; nothing in a file is executed.

    Args:
        folder: that holds them.
        stem: of the file's name: ``model`` or ``diffusion_pytorch_model``.

    Raises:
        UsageError: there are none, or a file is damaged or missing.
    """
    for suffix in ("", ".fp16"):
        single = folder / f"{stem}{suffix}.safetensors"
        if single.is_file():
            return _safe(single)
        for index in (f"{stem}.safetensors.index{suffix}.json", f"{stem}.safetensors.index.json"):
            if (folder / index).is_file():
                return _sharded(folder, index)
    older = folder / ("pytorch_model.bin" if stem == "model" else f"{stem}.bin")
    if older.is_file():
        try:
            state = torch.load(older, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged files raise all kinds
            raise UsageError(f"{older} cannot be read as tensors: {error}") from error
        if isinstance(state, dict) and all(isinstance(v, Tensor) for v in state.values()):
            return state
        raise UsageError(f"{older} holds no tensors by name")
    raise UsageError(f"{folder} holds no weights; expected {stem}.safetensors")


def filled(module: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Put weights into a module as float32, strictly, and refuse numbers that are not finite."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise UsageError(f"{source} holds numbers that are not finite, in {name}")
    assign_weights(module, tensors, source)
    module.float().eval().requires_grad_(False)


def _safe(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # damaged files raise all kinds
        raise UsageError(f"{path} cannot be read as tensors: {error}") from error


def _sharded(folder: Path, index: str) -> dict[str, Tensor]:
    try:
        places = json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"]
        files = sorted({str(name) for name in places.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{folder / index} has no weight_map of files ({error!r})") from error
    tensors: dict[str, Tensor] = {}
    for name in files:
        if name != Path(name).name or "\\" in name or name in {"", ".", ".."}:
            raise UsageError(f"{folder / index} names {name[:200]!r}, which is not in this folder")
        tensors |= _safe(folder / name)
    absent = [name for name in places if name not in tensors]
    if absent:
        raise UsageError(f"{folder / index} names {absent[0]!r:.200}, which its file does not hold")
    return tensors
