"""The adapter of a model as files of other programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.adapters import Adapter, matched, read_adapter, write_adapter
from fewstep.errors import UsageError
from fewstep.exporting.card import write_notes
from fewstep.model import Model
from fewstep.models import Denoiser
from fewstep.models.nets import DiT
from fewstep.system.files import whole_folder

LOADED_BY: Mapping[str, str] = {
    "peft": "`peft.PeftModel.from_pretrained(network, FOLDER)`, where the network has layers of "
    "these names",
    "diffusers": "`pipe.load_lora_weights(FOLDER)`, where the pipeline's network has layers of "
    "these names",
    "kohya": "programs that read kohya's keys, where their network has layers of these names",
}


def export_adapter(model: Model, out: Path, dialect: str = "peft") -> float:
    """Write the adapter that made a model, read it again and compare the changes of the weights.

    Args:
        model: of a run that trained with adapters.
        out: the folder, which is written whole or not at all.
        dialect: see :func:`fewstep.adapters.write_adapter`.

    Returns:
        The largest difference between the changes of a weight that were read and those that the
        training made.

    Raises:
        UsageError: the model has no adapter.
    """
    adapter = model.adapter
    if adapter is None or not isinstance(model.denoiser, Denoiser):
        raise UsageError(
            "this model has no adapter beside its weights: its run trained without --lora, or "
            "trained new layers as a whole beside the adapters, as methods of two times do"
        )
    network = model.denoiser.net
    component = "transformer" if isinstance(network, DiT) else "unet"
    with whole_folder(out) as folder:
        file = write_adapter(adapter, folder, dialect, component)
        error = _difference(matched(network, read_adapter(folder)), matched(network, adapter))
        said = {"to": "lora", "dialect": dialect, "rank": adapter.rank, "largest_error": error}
        write_notes(folder, said)
        (folder / "README.md").write_text(_card(model, adapter, dialect, file), encoding="utf-8")
    return error


def _difference(read: Mapping[str, Any], own: Mapping[str, Any]) -> float:
    return max(float((read[name].delta() - own[name].delta()).abs().max()) for name in own)


def _card(model: Model, adapter: Adapter, dialect: str, file: Path) -> str:
    network = type(model.denoiser.net).__name__
    return (
        f"# A {model.contract.method} adapter\n\n"
        f"`{file.name}` changes {len(adapter.layers)} layers of a network of the class {network} "
        f"by low-rank products (LoRA) of rank {adapter.rank}, in the dialect of {dialect}. With "
        "the model that it was trained on it makes a model of its own:\n\n"
        "```\nfewstep merge TEACHER FOLDER --out MODEL\n```\n\n"
        f"It is also loaded by {LOADED_BY[dialect]}.\n"
    )
