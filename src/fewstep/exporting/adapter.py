"""The adapter of a model as files of other programs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.adapters import Adapter, matched, read_adapter, write_adapter
from fewstep.errors import UsageError
from fewstep.exporting.card import write_notes
from fewstep.exporting.comfyui import section
from fewstep.exporting.unet2d import unet2d
from fewstep.importing.architectures.unet2d_adapters import from_unet2d, to_unet2d
from fewstep.model import Model
from fewstep.models import Denoiser
from fewstep.models.nets import ADM, DiT
from fewstep.models.nets.stock import StockNetwork
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

    Layers of an adm network have the names of diffusers' ``UNet2DModel``, where that can hold it.
    Layers of other networks have the library's names.

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
    stock = network.architecture if isinstance(network, StockNetwork) else ""
    component = "transformer" if isinstance(network, DiT) or "Transformer" in stock else "unet"
    theirs = _by_their_names(network, adapter)
    with whole_folder(out) as folder:
        file = write_adapter(theirs, folder, dialect, component)
        read = read_adapter(folder)
        if isinstance(network, ADM):
            read = from_unet2d(network, read)
        error = _difference(matched(network, read), matched(network, adapter))
        said = {"to": "lora", "dialect": dialect, "rank": adapter.rank, "largest_error": error}
        write_notes(folder, said)
        (folder / "README.md").write_text(_card(model, theirs, dialect, file), encoding="utf-8")
    return error


def _by_their_names(network: nn.Module, adapter: Adapter) -> Adapter:
    if not isinstance(network, ADM):
        return adapter
    try:
        unet2d(network)
    except UsageError:  # no program has this network by other names
        return adapter
    return to_unet2d(network, adapter) or adapter


def _difference(read: Mapping[str, Any], own: Mapping[str, Any]) -> float:
    changes = {name: (read[name].delta().flatten(1), own[name].delta().flatten(1)) for name in own}
    return max(float((a - b).abs().max()) for a, b in changes.values())


def _card(model: Model, adapter: Adapter, dialect: str, file: Path) -> str:
    denoiser = model.denoiser
    assert isinstance(denoiser, Denoiser)
    net = denoiser.net
    own = {name for name, _ in net.named_modules()}
    network = type(net).__name__ if {*adapter.layers} <= own else "UNet2DModel"
    if isinstance(net, StockNetwork):
        network = net.architecture
    return (
        f"# A {model.contract.method} adapter\n\n"
        f"`{file.name}` changes {len(adapter.layers)} layers of a network of the class {network} "
        f"by low-rank products (LoRA) of rank {adapter.rank}, in the dialect of {dialect}. With "
        "the model that it was trained on it makes a model of its own:\n\n"
        "```\nfewstep merge TEACHER FOLDER --out MODEL\n```\n\n"
        f"It is also loaded by {LOADED_BY[dialect]}.\n"
        + section(network, dialect, file.name, model.contract)
    )
