"""A model and adapters as one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fewstep.adapters import Adapter, add, read_adapter
from fewstep.contract import Contract
from fewstep.errors import UsageError
from fewstep.importing.architectures.unet2d_adapters import from_unet2d
from fewstep.model import Model
from fewstep.models import Denoiser
from fewstep.models.nets import ADM
from fewstep.models.spec import build_preconditioning


def merge(
    model: Model,
    adapters: Sequence[Adapter | str | Path],
    scales: Sequence[float] | None = None,
) -> Model:
    """Make a model of another one and of adapters, whose changes are added to its weights.

    Several adapters are added exactly: the change is the sum of their changes.

    Args:
        model: the one that the adapters were trained on.
        adapters: of any dialect, as :func:`fewstep.adapters.read_adapter` reads them. Those of
            adm networks may have the names that ``UNet2DModel`` of diffusers has for the layers.
        scales: what each of them is multiplied by; by default 1.

    Returns:
        A model with weights of its own. Where an adapter was trained with this library, its file
        says how its model is sampled, and the result is sampled so; otherwise as ``model``.

    Raises:
        UsageError: an adapter is of another model, or two of them are sampled in different ways.
    """
    if not isinstance(model.denoiser, Denoiser):
        raise UsageError(
            f"adapters are added to a model of one network, got a {type(model.denoiser).__name__}"
        )
    if not adapters:
        raise UsageError("give one or more adapters to add to the model")
    read = [each if isinstance(each, Adapter) else read_adapter(each) for each in adapters]
    network = model.denoiser.net
    if isinstance(network, ADM):
        read = [from_unet2d(network, each) for each in read]
    network = add(network, read, scales)
    scalings, contract = model.denoiser.preconditioning, model.contract
    named = [each for each in read if each.model]
    if named:
        first = named[0]
        for other in named[1:]:
            if _sampling(other) != _sampling(first):
                raise UsageError(
                    f"{first.source} and {other.source} make models that are sampled in different "
                    "ways; add one of them alone"
                )
        scalings, contract = _described(first)
        if contract.data.shape != model.contract.data.shape:
            raise UsageError(
                f"{first.source} is an adapter of another model: of samples of shape "
                f"{tuple(contract.data.shape)}, not {tuple(model.contract.data.shape)}"
            )
    names = ", ".join(f"`{Path(each.source).name}`" for each in read)
    text = f"{model.card.text} The adapters {names} are added to its weights."
    card = replace(model.card, text=text.strip())
    return Model(Denoiser(network, scalings), contract, card, model.frontend)


def _described(adapter: Adapter) -> tuple[Any, Contract]:
    """The preconditioning and the contract that an adapter's file gives."""
    try:
        scalings = build_preconditioning(adapter.model["denoiser"]["preconditioning"])
        fields = {name: adapter.model.get(name) for name in Contract.model_fields}
        return scalings, Contract.model_validate(fields)
    except (KeyError, TypeError, ValidationError) as error:
        raise UsageError(
            f"{adapter.source}: the description of its model is damaged: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _sampling(adapter: Adapter) -> Mapping[str, Any]:
    """What must be the same in adapters that make one model."""
    scalings, contract = _described(adapter)
    return {"preconditioning": scalings, "sampling": contract.sampling}
