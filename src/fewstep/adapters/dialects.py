"""Names and scales of adapters in the dialects of peft, of diffusers and of kohya.

In all of them the weight W becomes W + (alpha / rank) B A, where A is ``down`` and B is ``up``.

- **peft**: ``base_model.model.LAYER.lora_A.weight``; alpha stands in ``adapter_config.json`` alone.
- **diffusers**: ``unet.LAYER.lora_A.weight``, or ``transformer.LAYER...``; alpha stands in the
  file's header (``lora_adapter_metadata``), and without one it is taken for the rank. So the scale
  is multiplied into B, and the header says that alpha is the rank.
- **kohya**: ``lora_unet_LAYER.lora_down.weight`` with underscores for dots, and ``.alpha``.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from fewstep.adapters.adapter import Adapter, Factors, some
from fewstep.errors import UsageError

N = TypeVar("N", int, float)

Dialect = Literal["peft", "diffusers", "kohya"]
DIALECTS: tuple[str, ...] = get_args(Dialect)
Component = Literal["unet", "transformer"]
COMPONENTS: tuple[str, ...] = get_args(Component)
"""What diffusers calls the network of a pipeline."""

METADATA = "lora_adapter_metadata"
"""diffusers' entry in the header of a file."""
PEFT, KOHYA = "base_model.model.", "lora_unet_"

_KEYS = re.compile(r"(.+)\.(?:lora_([AB])(?:\.default)?\.weight|(alpha))")
_KOHYA_KEYS = re.compile(r"lora_unet_(.+)\.(?:lora_(down|up)\.weight|(alpha))")
LARGEST = 1e6
"""Ranks and alphas are smaller."""
_SDXL = {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}
"""Layers whose names diffusers does not find again in kohya's, and the older names that it does."""
_PLAIN = re.compile(r"[\w.]+")


def flattened(name: str) -> str:
    """A layer's name in kohya's dialect, without the prefix."""
    return _SDXL.get(name, name).replace(".", "_")


def to_peft(adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, and the content of ``adapter_config.json``."""
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_dropout": 0.0,
        "use_dora": False,
        "use_rslora": False,
        **_config(adapter.layers),
    }
    return _letters(adapter.layers, PEFT), config


def to_diffusers(adapter: Adapter, component: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, and the file's header."""
    baked = {name: factors.with_alpha(factors.rank) for name, factors in adapter.layers.items()}
    config = {f"{component}.{key}": value for key, value in _config(baked).items()}
    header = json.dumps(config, indent=2, sort_keys=True)
    return _letters(baked, f"{component}."), {METADATA: header}


def to_kohya(adapter: Adapter) -> dict[str, Tensor]:
    """Tensors, with one alpha for all layers.

    Where the layers have several, the most frequent one is written, and the others' scales are made
    up for in ``up``: diffusers 0.42 reads several, but forgets those of attention.

    Raises:
        UsageError: two layers have the same name without dots.
    """
    names = {name: flattened(name) for name in adapter.layers}
    several = [n for n, one in names.items() if Counter(names.values())[one] > 1]
    if several:
        raise UsageError(
            "kohya's names have underscores for dots, and then these layers have the names of "
            f"others: {some(several)}; choose another dialect"
        )
    alpha = _most(factors.alpha for factors in adapter.layers.values())
    tensors: dict[str, Tensor] = {}
    for name, layer in adapter.layers.items():
        stem, factors = KOHYA + names[name], layer.with_alpha(alpha)
        tensors[f"{stem}.lora_down.weight"] = factors.down
        tensors[f"{stem}.lora_up.weight"] = factors.up
        tensors[f"{stem}.alpha"] = torch.tensor(float(factors.alpha))
    return tensors


def from_peft(tensors: Mapping[str, Tensor], config: Any, source: str) -> Adapter:
    """Read peft's dialect; ``config`` is the content of ``adapter_config.json``."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise UsageError(f"{source}: adapter_config.json does not describe a LoRA adapter")
    return _from_letters(tensors, PEFT, config, source)


def from_diffusers(
    tensors: Mapping[str, Tensor], header: Mapping[str, str], component: str, source: str
) -> Adapter:
    """Read diffusers' dialect."""
    prefix, config = f"{component}.", None
    if METADATA in header:
        try:
            entries = json.loads(header[METADATA])
            config = {k.removeprefix(prefix): v for k, v in entries.items() if k.startswith(prefix)}
        except (ValueError, AttributeError, RecursionError) as error:
            raise UsageError(f"{source}: the header's {METADATA} is damaged: {error}") from error
    return _from_letters(tensors, prefix, config or None, source)


def from_kohya(tensors: Mapping[str, Tensor], source: str) -> Adapter:
    """Read kohya's dialect; where a layer has no alpha, it is the rank."""
    parts = _grouped(tensors, _KOHYA_KEYS, source)
    aliases = {name.replace(".", "_"): flattened(name) for name in _SDXL}
    layers: dict[str, Factors] = {}
    for name, part in parts.items():
        where = f"{source}: {name}"
        own = aliases.get(name, name)
        layers[own] = _factors(where, part, "down", "up", _alpha(part, where))
    return Adapter(layers, source, flat=True)


def _letters(layers: Mapping[str, Factors], prefix: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, factors in layers.items():
        tensors[f"{prefix}{name}.lora_A.weight"] = factors.down
        tensors[f"{prefix}{name}.lora_B.weight"] = factors.up
    return tensors


def _config(layers: Mapping[str, Factors]) -> dict[str, Any]:
    """Ranks and scales as ``peft.LoraConfig`` has them: one for most layers, and the exceptions."""
    ranks = {name: factors.rank for name, factors in layers.items()}
    alphas = {name: _number(factors.alpha) for name, factors in layers.items()}
    rank, alpha = _most(ranks.values()), _most(alphas.values())
    # peft takes these names for regular expressions.
    names = {name: f"^{re.escape(name)}" for name in layers}
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {names[name]: r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {names[name]: a for name, a in alphas.items() if a != alpha},
        "target_modules": sorted(layers),
    }


def _most(values: Iterable[N]) -> N:
    """The most frequent one."""
    return Counter(values).most_common(1)[0][0]


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def _from_letters(tensors: Mapping[str, Tensor], prefix: str, config: Any, source: str) -> Adapter:
    strange = [key for key in tensors if not key.startswith(prefix)]
    if strange:
        raise UsageError(
            f"{source}: {len(strange)} of {len(tensors)} keys do not begin with {prefix}: "
            + some(strange)
        )
    own = {key.removeprefix(prefix): value for key, value in tensors.items()}
    layers: dict[str, Factors] = {}
    for name, part in _grouped(own, _KEYS, source).items():
        where = f"{source}: {name}"
        alpha = _alpha(part, where) if config is None else _configured(config, name, part, source)
        layers[name] = _factors(where, part, "A", "B", alpha)
    return Adapter(layers, source)


def _configured(config: Mapping[str, Any], name: str, part: Any, source: str) -> float:
    """Alpha by a configuration of peft; its ranks must be those of the tensors."""
    for option in ("use_dora", "fan_in_fan_out", "lora_bias"):
        if config.get(option):
            raise UsageError(f"{source}: adapters with {option} cannot be added to weights here")
    rank = len(part["A"]) if "A" in part and part["A"].ndim else 0
    said = _pattern(config.get("rank_pattern"), name, config.get("r"), source)
    alpha = _pattern(config.get("alpha_pattern"), name, config.get("lora_alpha"), source)
    if said != rank:
        raise UsageError(
            f"{source}: {name} has rank {rank}, and the configuration says {said}; they do not "
            "belong together"
        )
    return alpha * rank**0.5 if config.get("use_rslora") else alpha


def _pattern(patterns: Any, name: str, usual: Any, source: str) -> float:
    """The entry of a layer as peft finds it: the first whose name is the end of the layer's."""
    if not isinstance(patterns or {}, dict):
        raise UsageError(f"{source}: the patterns {patterns!r:.60} are no dictionary")
    for key, value in (patterns or {}).items():
        whole, plain = key.startswith("^"), key.lstrip("^").replace("\\.", ".")
        if not _PLAIN.fullmatch(plain):
            raise UsageError(f"{source}: the pattern {key!r} is not the name of a layer")
        if name == plain or (not whole and name.endswith(f".{plain}")):
            usual = value
            break
    if isinstance(usual, bool) or not isinstance(usual, int | float) or not abs(usual) < LARGEST:
        raise UsageError(f"{source}: the configuration has no rank or alpha for {name}")
    return float(usual)


def _grouped(
    tensors: Mapping[str, Tensor], keys: re.Pattern[str], source: str
) -> dict[str, dict[str, Tensor]]:
    """The tensors of each layer by what they are."""
    found: dict[str, dict[str, Tensor]] = {}
    strange: list[str] = []
    for key, value in tensors.items():
        match = keys.fullmatch(key)
        if match is None:
            strange.append(key)
            continue
        name, kind, alpha = match.groups()
        found.setdefault(name, {})[alpha or kind] = value
    if strange:
        raise UsageError(
            f"{source}: {len(strange)} of {len(tensors)} keys are no low-rank changes of a "
            f"network's layers: {some(strange)}"
        )
    return found


def _alpha(part: Mapping[str, Tensor], where: str) -> float | None:
    if "alpha" not in part:
        return None
    alpha = part["alpha"]
    if alpha.numel() != 1 or alpha.is_complex():
        raise UsageError(f"{where}: its alpha is no number, but of shape {tuple(alpha.shape)}")
    return float(alpha)


def _factors(
    where: str, part: Mapping[str, Tensor], down: str, up: str, alpha: float | None
) -> Factors:
    if down not in part or up not in part:
        raise UsageError(f"{where} has no {down if down not in part else up} beside {[*part]}")
    try:
        rank = len(part[down]) if part[down].ndim else 0
        return Factors(part[down], part[up], float(rank) if alpha is None else float(alpha))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
