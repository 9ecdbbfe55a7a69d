"""What stands for the objects and calls of a pickle: inert values, of known names only."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fewstep.importing.storages import DTYPES, Lazy, Storage, lazy_tensor


class Broken(Exception):
    """A pickle, or a file around one, is not well formed or asks for something that is refused."""


@dataclass(eq=False)
class Inert:
    """An object of a class or a call of a function that this module does not know or need.

    Args:
        name: of the class or the function.
        args: its arguments.
        state: what the pickle sets on it.
    """

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None


@dataclass(eq=False)
class Persistent(Inert):
    """An object of NVIDIA's ``torch_utils.persistence``; its source text is not kept.

    ``name`` is its class, ``state`` its attributes.
    """


@dataclass(eq=False)
class Module(Inert):
    """A container of ``torch.nn``; ``state`` holds its attributes."""


@dataclass(frozen=True)
class Name:
    """A mentioned class or function, by its full name."""

    full: str


def _persistent(name: str, args: tuple[Any, ...]) -> Any:
    meta = args[0] if len(args) == 1 else None
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise Broken("a persistent object has no description")
    return Persistent(str(meta.get("class_name")), (), meta.get("state"))


def _scalar(name: str, args: tuple[Any, ...]) -> Any:
    kinds = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i"}
    if len(args) == 2 and isinstance(args[0], Inert) and args[0].args:
        code = kinds.get(str(args[0].args[0]))
        if (
            code
            and isinstance(args[1], bytes | memoryview)
            and len(args[1]) == struct.calcsize(code)
        ):
            return struct.unpack(code, args[1])[0]
    return Inert(name, args)


def _encoded(name: str, args: tuple[Any, ...]) -> Any:
    if len(args) != 2 or not isinstance(args[0], str) or args[1] != "latin1":
        raise Broken("bytes are written in an unknown way")
    return args[0].encode("latin1")


def _mapping(name: str, args: tuple[Any, ...]) -> Any:
    pairs = args[0] if args else ()
    return {key: value for key, value in pairs if isinstance(key, str | int)}


def _tensor(name: str, args: tuple[Any, ...]) -> Any:
    if len(args) < 4 or not isinstance(args[0], Storage):
        raise Broken("a tensor has no storage")
    return lazy_tensor(*args[:4])


def _parameter(name: str, args: tuple[Any, ...]) -> Any:
    if not args or not isinstance(args[0], Lazy):
        raise Broken("a parameter has no tensor")
    return args[0]


def _storage(name: str, args: tuple[Any, ...]) -> Any:
    from fewstep.importing.legacy import nested_storage

    if len(args) != 1 or not isinstance(args[0], bytes | memoryview):
        raise Broken("a storage has no bytes")
    return nested_storage(memoryview(args[0]))


def _module(name: str, args: tuple[Any, ...]) -> Any:
    return Module(name)


def _unique(name: str, args: tuple[Any, ...]) -> Any:
    return Inert(name, args)


GLOBALS: dict[str, Callable[[str, tuple[Any, ...]], Any]] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "dnnlib.util.EasyDict": _mapping,
    "collections.OrderedDict": _mapping,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.storage._load_from_bytes": _storage,
    "torch.nn.modules.container.ModuleDict": _module,
    "torch.Size": _unique,
    "torch.device": _unique,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": _unique,
    "numpy._core.multiarray._reconstruct": _unique,
    "numpy.ndarray": _unique,
    "numpy.dtype": _unique,
    "_codecs.encode": _encoded,
    # The settings of a run, as OmegaConf stores them (files of diffusion policies, made by dill).
    **{
        f"omegaconf.{name}": _unique
        for name in (
            *("dictconfig.DictConfig", "listconfig.ListConfig", "nodes.AnyNode"),
            *("base.ContainerMetadata", "base.Metadata"),
        )
    },
    "dill._dill._load_type": _unique,
    "collections.defaultdict": lambda name, args: {},
    "typing.Any": _unique,
    # A set is a list of its members; a bound method is what it was asked of, and its name.
    "builtins.set": _unique,
    "__builtin__.set": _unique,
    "builtins.getattr": _unique,
    "__builtin__.getattr": _unique,
    **{f"torch.{name}": _unique for name in DTYPES},
}
"""Full names that a pickle may mention, and the inert value that each makes of its arguments."""
