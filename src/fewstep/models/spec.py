"""Denoisers as nested dictionaries of kinds and numbers, for ``config.json``.

A kind is a key of a dict literal of this package; nothing is imported by a name from a file.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from pydantic import ConfigDict, ValidationError, create_model
from torch import nn

from fewstep.errors import UsageError, nearest
from fewstep.models.denoiser import AbstractDenoiser, Denoiser, Switched
from fewstep.models.nets import NETWORKS
from fewstep.models.preconditioning import PRECONDITIONINGS, Preconditioning
from fewstep.paths import PATHS, Path

_LARGEST = 2**20
_SWITCHED = {"kind", "low", "high", "at"}
_FAMILIES: dict[str, Mapping[str, type]] = {"path": PATHS, "preconditioning": PRECONDITIONINGS}
_FAMILIES["inner"] = PRECONDITIONINGS


def denoiser_spec(denoiser: AbstractDenoiser) -> dict[str, Any]:
    """The description from which :func:`build_denoiser` builds a denoiser, without weights."""
    if isinstance(denoiser, Switched):
        parts = {part: denoiser_spec(getattr(denoiser, part)) for part in ("low", "high")}
        return {"kind": "switched", **parts, "at": denoiser.at}
    if not isinstance(denoiser, Denoiser):
        raise UsageError(
            f"only a Denoiser can be saved, got {type(denoiser).__name__}; save the one it wraps"
        )
    return {
        "kind": "denoiser",
        "network": network_spec(denoiser.net),
        "preconditioning": _spec(denoiser.preconditioning),
    }


def build_denoiser(spec: Any, network: nn.Module | None = None) -> AbstractDenoiser:
    """The denoiser that a spec describes, with fresh weights.

    Args:
        spec: a result of :func:`denoiser_spec`.
        network: the user's own network, where the network of the spec is of kind ``custom``.
    """
    kind = spec.get("kind") if isinstance(spec, Mapping) else None
    if isinstance(spec, Mapping) and kind == "switched" and set(spec) == _SWITCHED:
        low = _build_plain(spec["low"], copy.deepcopy(network))
        high = _build_plain(spec["high"], network)
        at = spec["at"]
        if isinstance(at, bool) or not isinstance(at, int | float):
            raise UsageError(f"denoiser 'switched': at must be a number, got {at!r}")
        return Switched(low, high, at)
    return _build_plain(spec, network)


def custom_network(denoiser: AbstractDenoiser) -> str | None:
    """The name of the user's own network in a denoiser; None where it is the library's."""
    if isinstance(denoiser, Switched):
        return custom_network(denoiser.high)
    net = denoiser.net if isinstance(denoiser, Denoiser) else None
    spec = {} if net is None else network_spec(net)
    return str(spec["name"]) if spec.get("kind") == "custom" else None


def _build_plain(spec: Any, network: nn.Module | None) -> Denoiser:
    names = {"kind", "network", "preconditioning"}
    if not isinstance(spec, Mapping) or set(spec) != names or spec["kind"] != "denoiser":
        given = sorted(map(str, spec)) if isinstance(spec, Mapping) else spec
        kind = spec.get("kind") if isinstance(spec, Mapping) else None
        raise UsageError(
            "expected a denoiser with network and preconditioning, or a switched one with low, "
            f"high and at, got kind {kind!r} of {given!r}"
        )
    preconditioning = build_preconditioning(spec["preconditioning"])
    return Denoiser(build_network(spec["network"], network), preconditioning)


def build_preconditioning(spec: Any) -> Preconditioning:
    """The preconditioning that the ``preconditioning`` of a :func:`denoiser_spec` describes."""
    built = _build("preconditioning", spec)
    assert isinstance(built, Preconditioning)
    return built


def _spec(value: Path | Preconditioning) -> dict[str, Any]:
    table = PATHS if isinstance(value, Path) else PRECONDITIONINGS
    kind = next((k for k, cls in table.items() if cls is type(value)), None)
    if kind is None:
        raise UsageError(f"{type(value).__name__} is not one of the library's own: {[*table]}")
    out: dict[str, Any] = {"kind": kind}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        out[field.name] = _spec(item) if isinstance(item, Path | Preconditioning) else item
    return out


def _build(family: str, spec: Any) -> Path | Preconditioning:
    table = _FAMILIES[family]
    kind = spec.get("kind") if isinstance(spec, Mapping) else spec
    if not isinstance(spec, Mapping) or not isinstance(kind, str) or kind not in table:
        raise UsageError(f"unknown {family} {kind!r}; {nearest(str(kind), table)}")
    cls = table[kind]
    kinds = {field.name: field.type for field in dataclasses.fields(cls)}
    names = set(kinds)
    given = {key: value for key, value in spec.items() if key != "kind"}
    if set(given) != names:
        raise UsageError(f"{family} {kind!r} takes {sorted(names)}, got {sorted(given)}")
    for key, value in given.items():
        if key in _FAMILIES:
            given[key] = _build(key, value)
        elif not isinstance(value, int | float) or not math.isfinite(value):
            raise UsageError(f"{family} {kind!r}: {key} must be a number, got {value!r}")
        elif kinds[key] in {"int", "bool"} and type(value).__name__ != kinds[key]:
            raise UsageError(
                f"{family} {kind!r}: {key} must be of type {kinds[key]}, got {value!r}"
            )
        elif abs(value) > _LARGEST:
            raise UsageError(f"{family} {kind!r}: {key}={value!r} is out of range")
    return cls(**given)


def network_spec(net: nn.Module) -> dict[str, Any]:
    """The kind and options of a network of the library; any other is ``custom``."""
    kind = next((k for k, cls in NETWORKS.items() if cls is type(net)), None)
    if kind is None:
        return {"kind": "custom", "name": type(net).__name__}
    options: Any = net.options
    return {"kind": kind, **options}


def build_network(spec: Any, network: nn.Module | None = None) -> nn.Module:
    """The network that a spec describes, with fresh weights, or the user's own network."""
    kind = spec.get("kind") if isinstance(spec, Mapping) else spec
    if kind == "custom":
        if network is None:
            raise UsageError(
                f"this model's network is the user's own class {spec.get('name')!r}; pass an "
                "instance: fewstep.load(path, network=MyNetwork(...))"
            )
        return network
    if network is not None:
        raise UsageError(f"this model's network is the library's {kind!r}; pass no network")
    if not isinstance(kind, str) or kind not in NETWORKS:
        raise UsageError(f"unknown network {kind!r}; {nearest(str(kind), NETWORKS)}")
    cls = NETWORKS[kind]
    return cls(**_checked(kind, cls, {k: v for k, v in spec.items() if k != "kind"}))


def _checked(kind: str, cls: type[nn.Module], options: dict[str, Any]) -> dict[str, Any]:
    """A network's arguments, which have the annotated types and numbers of a sensible size."""
    hints = get_type_hints(cls.__init__)
    parameters = list(inspect.signature(cls).parameters.values())
    fields: dict[str, Any] = {
        p.name: (hints[p.name], ... if p.default is p.empty else p.default) for p in parameters
    }
    model = create_model("options", __config__=ConfigDict(extra="forbid"), **fields)
    try:
        checked = {name: getattr(model(**options), name) for name in fields}
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"network {kind!r}: {where}: {first['msg']}") from error
    for name, value in checked.items():
        if not all(-_LARGEST <= number <= _LARGEST for number in _numbers(value)):
            raise UsageError(f"network {kind!r}: {name}={value!r} is out of range")
    return checked


def _numbers(option: Any) -> Iterator[float]:
    """All numbers in an option; None, which stands for no value, and text have none."""
    if isinstance(option, Mapping):
        option = tuple(option.values())
    if isinstance(option, tuple | list):
        for part in option:
            yield from _numbers(part)
    elif option is not None and not isinstance(option, str):
        yield option
