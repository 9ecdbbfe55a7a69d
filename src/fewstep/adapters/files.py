"""Files of adapters: written in a dialect, and read in whichever they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.adapters import dialects
from fewstep.adapters.adapter import Adapter, some
from fewstep.errors import UsageError, nearest
from fewstep.weights import separate

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS, KOHYA = "pytorch_lora_weights.safetensors", "lora.safetensors"
NAMES = frozenset({WEIGHTS, CONFIG, DIFFUSERS, KOHYA})
"""The files that are written, in any dialect."""
INSIDE = ("adapter", "model/adapter")
"""Where a model folder and a run folder hold one."""
MODEL = "fewstep"
"""The entry in the header of a file that says what model the adapter makes."""


def write_adapter(
    adapter: Adapter, folder: str | Path, dialect: str = "peft", component: str = "unet"
) -> Path:
    """Write an adapter into a folder.

    Args:
        adapter: with the names of layers as the network has them.
        folder: is made where it does not exist.
        dialect: ``peft`` writes ``adapter_model.safetensors`` and ``adapter_config.json``,
            ``diffusers`` writes ``pytorch_lora_weights.safetensors``, ``kohya`` writes
            ``lora.safetensors``.
        component: ``unet`` or ``transformer``, which diffusers' dialect has in its keys. kohya's
            has names for U-Nets only.

    Returns:
        The file of the weights.

    Raises:
        UsageError: there is no such dialect or component, or the dialect cannot hold the names.
    """
    if dialect not in dialects.DIALECTS:
        raise UsageError(f"unknown dialect {dialect!r}; {nearest(dialect, dialects.DIALECTS)}")
    if component not in dialects.COMPONENTS:
        known = nearest(component, dialects.COMPONENTS)
        raise UsageError(f"unknown component {component!r}; {known}")
    if adapter.flat and dialect != "kohya":
        raise UsageError(
            f"{adapter.source} names layers with underscores for dots, which {dialect} does not; "
            "match it with its network first (fewstep.adapters.matched)"
        )
    if dialect == "kohya" and component != "unet":
        raise UsageError("kohya's keys are those of a U-Net; choose peft or diffusers")
    header = {"format": "pt"}
    if adapter.model:
        header[MODEL] = json.dumps(adapter.model)
    config: dict[str, Any] | None = None
    if dialect == "peft":
        name, (tensors, config) = WEIGHTS, dialects.to_peft(adapter)
    elif dialect == "diffusers":
        name, (tensors, more) = DIFFUSERS, dialects.to_diffusers(adapter, component)
        header |= more
    else:
        name, tensors = KOHYA, dialects.to_kohya(adapter)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    save_file(separate(tensors), place / name, header)
    if config is not None:
        (place / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return place / name


def read_adapter(source: str | Path) -> Adapter:
    """Read an adapter; its dialect is recognised by what is in the file.

    Args:
        source: a safetensors file, a folder with one, or the folder of a model or of a run that has
            an adapter.

    Raises:
        UsageError: nothing is there, or it is no adapter, or it is damaged, or it holds weights
            that are no low-rank changes of a network's layers; the message lists their keys.
    """
    file = _file(Path(source))
    said = str(source)
    tensors, header = _content(file)
    kinds = {
        "peft": [key for key in tensors if key.startswith(dialects.PEFT)],
        "kohya": [key for key in tensors if key.startswith("lora_")],
        "unet": [key for key in tensors if key.startswith("unet.")],
        "transformer": [key for key in tensors if key.startswith("transformer.")],
    }
    kind = max(kinds, key=lambda name: len(kinds[name]))
    if not kinds[kind]:
        raise UsageError(
            f"{said} is no adapter of a dialect that is known: its {len(tensors)} keys begin with "
            f"none of {dialects.PEFT}, unet., transformer. and {dialects.KOHYA}: {some(tensors)}"
        )
    if kind == "peft":
        adapter = dialects.from_peft(tensors, _config(file.parent / CONFIG), said)
    elif kind == "kohya":
        adapter = dialects.from_kohya(tensors, said)
    else:
        adapter = dialects.from_diffusers(tensors, header, kind, said)
    return replace(adapter, model=_model(header, said))


def adapter_in(folder: Path) -> Path | None:
    """The adapter that a model folder has; None where it has none."""
    place = folder / INSIDE[0]
    return place if (place / WEIGHTS).is_file() else None


def _file(source: Path) -> Path:
    if not source.is_dir():
        if not source.is_file():
            raise UsageError(f"{source} does not exist; give the file or the folder of an adapter")
        return source
    for folder in (source, *(source / inside for inside in INSIDE)):
        for name in (WEIGHTS, DIFFUSERS, KOHYA):
            if (folder / name).is_file():
                return folder / name
    files = sorted(source.glob("*.safetensors"))
    if len(files) == 1 and not (source / "config.json").exists():
        return files[0]
    raise UsageError(
        f"{source} holds no adapter: it has none of {', '.join(sorted(NAMES - {CONFIG}))}; give "
        "the file itself if it has another name"
    )


def _content(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as handle:
            header = handle.metadata() or {}
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} is no safetensors file that can be read: {error}") from error
    if not tensors:
        raise UsageError(f"{file} holds no adapter: it is empty")
    return tensors, header


def _config(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{file} is missing, and nothing else says the scale of an adapter in peft's dialect"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is damaged: {error}") from error


def _model(header: Mapping[str, str], said: str) -> dict[str, Any]:
    try:
        model = json.loads(header.get(MODEL, "{}"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{said}: the header's {MODEL} is damaged: {error}") from error
    if not isinstance(model, dict):
        raise UsageError(f"{said}: the header's {MODEL} is damaged: it is no dictionary")
    return model
