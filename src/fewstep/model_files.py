"""Model folders: which one a name means, what is read from it, and what is written into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save as dump_tensors
from torch import nn

from fewstep import hub
from fewstep.adapters import Adapter, add, read_adapter, write_adapter
from fewstep.adapters.files import WEIGHTS, adapter_in
from fewstep.bundled import BUNDLED
from fewstep.card_text import Card, read_card
from fewstep.contract import Contract
from fewstep.errors import UsageError, in_words, nearest
from fewstep.frontends import Frontend, read_frontend
from fewstep.models import AbstractDenoiser, Denoiser
from fewstep.models.spec import build_denoiser, denoiser_spec
from fewstep.system.files import sha256
from fewstep.weights import assign_weights, load_weights, separate, tied

FORMAT = 2
"""Format of the config.json that is written; format 1 can be read too."""
READABLE = (1, 2)
CONFIG = "config.json"
NAMES = frozenset(
    {CONFIG, "model.safetensors", "README.md", "samples.png", "engines"}
    | {"adapter", "codec", "text"}
)
"""What a model folder may hold."""
_OF_A_FILE = ("format", "sha256", "tied", "card", "frontend")
"""Entries of ``config.json`` that say nothing about the model itself."""


def config_of(denoiser: AbstractDenoiser, contract: Contract, weights: bytes) -> dict[str, Any]:
    """``config.json`` of a model with these weights."""
    return {
        "format": FORMAT,
        "denoiser": denoiser_spec(denoiser),
        **contract.model_dump(mode="json"),
        "sha256": sha256(weights),
    }


def write(
    folder: Path,
    denoiser: AbstractDenoiser,
    contract: Contract,
    card: Card,
    dtype: torch.dtype | None = None,
    frontend: Frontend | None = None,
    adapter: Adapter | None = None,
    like: Path | None = None,
) -> None:
    """Write ``model.safetensors``, ``config.json``, and what else there is in folders of its own.

    Args:
        folder: of the model, which is there.
        denoiser: of the model.
        contract: likewise.
        card: what is kept for later cards of the model.
        dtype: of the stored weights; buffers keep theirs.
        frontend: the model's codec and reader of texts, if it has any.
        adapter: what was learned, where the weights contain it.
        like: a model folder whose files of ``codec/`` and ``text/`` become hard links here, where
            they are the same and the file system has such links.
    """
    whole = denoiser.state_dict()
    ties = tied(whole)
    state = separate({name: value for name, value in whole.items() if name not in ties})
    if dtype is not None:
        names = {name for name, p in denoiser.named_parameters() if p.is_floating_point()}
        state = {k: v.to(dtype) if k in names else v for k, v in state.items()}
    weights = dump_tensors(state, {"format": "pt"})
    (folder / "model.safetensors").write_bytes(weights)
    further: dict[str, Any] = {"tied": ties, "card": card.as_json()}
    if frontend:
        for name, content in frontend.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if like is None or not _linked(like / name, folder / name, content):
                (folder / name).write_bytes(content)
        further["frontend"] = frontend.digests
    config = config_of(denoiser, contract, weights)
    config |= {name: value for name, value in further.items() if value}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if adapter is not None:
        about = {name: value for name, value in config.items() if name not in _OF_A_FILE}
        write_adapter(replace(adapter, model=about), folder / "adapter")


def _linked(there: Path, here: Path, content: bytes) -> bool:
    """Whether ``here`` has become a link to the file ``there``, which holds this content."""
    with suppress(OSError):
        if there.stat().st_size == len(content) and there.read_bytes() == content:
            here.hardlink_to(there)
            return True
    return False


def write_adapted(
    folder: Path,
    denoiser: AbstractDenoiser,
    contract: Contract,
    card: Card,
    frontend: Frontend,
    adapter: Adapter,
    base: Mapping[str, str],
) -> None:
    """Write ``config.json`` and ``adapter/`` alone, of a model that is another one and an adapter.

    Args:
        folder: of the model, which is there.
        denoiser: of the model, whose weights are not written.
        contract: of the model.
        card: what is kept for later cards.
        frontend: the other model's, which is not written.
        adapter: what is added to the other model's weights.
        base: the other model: ``place``, its path (a relative one begins at ``folder``) or name,
            and ``sha256``, that of its weights.
    """
    about = {"denoiser": denoiser_spec(denoiser), **contract.model_dump(mode="json")}
    weights = write_adapter(replace(adapter, model=about), folder / "adapter").read_bytes()
    config = config_of(denoiser, contract, weights) | {"base": {**base}, "card": card.as_json()}
    config |= {"frontend": frontend.digests} if frontend else {}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _base(folder: Path, config: Mapping[str, Any]) -> Path | None:
    """The folder of the model to which a folder's adapter belongs; None where there is none.

    Raises:
        UsageError: it is not there, or is another one by now.
    """
    if "base" not in config:
        return None
    try:
        place, digest = str(config["base"]["place"]), config["base"]["sha256"]
        beside = folder / place
        base = find(beside if beside.exists() else place)
        same = json.loads((base / CONFIG).read_text(encoding="utf-8"))["sha256"] == digest
    except (OSError, ValueError, KeyError, TypeError, UsageError) as error:
        raise UsageError(
            f"{folder} holds adapters to another model, which is not there: {in_words(error)}"
        ) from error
    if not same:
        raise UsageError(
            f"{folder} holds adapters to the model {place}, which has other weights by now"
        )
    return base


def _adapted(
    folder: Path, config: Mapping[str, Any], base: Path, network: nn.Module | None
) -> AbstractDenoiser:
    """The denoiser of a folder that :func:`write_adapted` wrote."""
    other, adapter = read(base, network)[0], adapter_of(folder)
    if adapter is None or not isinstance(other, Denoiser):
        raise UsageError(f"{folder} holds no adapter to the model {base}")
    if sha256((folder / "adapter" / WEIGHTS).read_bytes()) != config.get("sha256"):
        raise UsageError(f"{folder}: the adapter does not match its sha256; the file is damaged")
    weights = Denoiser(add(other.net, [adapter]), other.preconditioning).state_dict()
    with torch.device("meta" if network is None else "cpu"):
        denoiser = build_denoiser(config.get("denoiser"), network)
    assign_weights(denoiser, weights, folder)
    return denoiser


def adapter_of(folder: Path) -> Adapter | None:
    """The adapter beside a model's weights; None where there is none."""
    place = adapter_in(folder)
    return None if place is None else read_adapter(place)


def read(folder: Path, network: nn.Module | None = None) -> tuple[AbstractDenoiser, Contract, Card]:
    """The denoiser, contract and card of a model folder.

    Args:
        folder: of the model.
        network: the user's own network, for a model that was saved with one.

    Raises:
        UsageError: what is there cannot be read, or does not fit.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        adapted = isinstance(config, dict) and "base" in config
        weights = b"" if adapted else (folder / "model.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} holds no readable model: {in_words(error)}") from error
    if not isinstance(config, dict) or config.get("format") not in READABLE:
        raise UsageError(
            f"{folder}/config.json is of none of the formats {READABLE}, which this version reads"
        )
    try:
        contract = Contract.model_validate({key: config.get(key) for key in Contract.model_fields})
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UsageError(f"{folder}/config.json: " + "; ".join(lines)) from error
    card = read_card(config.get("card"), folder / "config.json")
    base = _base(folder, config)
    if base is not None:
        return _adapted(folder, config, base, network), contract, card
    # Custom networks come built; the library's own are built without memory until shapes agree.
    with torch.device("meta" if network is None else "cpu"):
        denoiser = build_denoiser(config.get("denoiser"), network)
    load_weights(denoiser, weights, folder, config.get("sha256"), _ties(config, folder))
    return denoiser, contract, card


def frontend_of(folder: Path) -> Frontend | None:
    """The codec and the reader of texts of a model folder; None where it has neither.

    Raises:
        UsageError: they are damaged, missing, or not those of the model.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    frontend = read_frontend(_base(folder, config) or folder)
    if (frontend.digests if frontend is not None else {}) != config.get("frontend", {}):
        raise UsageError(
            f"{folder} holds another codec or reader of texts than its model was trained with"
        )
    return frontend


def _ties(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    ties = config.get("tied", {})
    if not isinstance(ties, dict) or not all(isinstance(name, str) for name in ties.values()):
        raise UsageError(f"{folder}/config.json: tied must hold names by name, got {ties!r}")
    return ties


def find(model: str | Path, average: str | None = None, step: int | None = None) -> Path:
    """The model folder that a MODEL argument means."""
    if hub.names(model):
        if average is not None or step is not None:
            raise UsageError(f"{model} is one model; leave --average and --step out")
        return hub.model_folder(str(model))
    path = Path(model)
    if step is not None:
        return _at_step(path, average, step)
    if path.exists():
        if average is not None:
            return _average(path, average)
        for folder in (path, path / "model"):
            if (folder / "config.json").is_file():
                return folder
        raise UsageError(f"{path} is neither a model folder nor a run that has saved a model")
    if str(model) in BUNDLED:
        if average is not None:
            raise UsageError(f"the bundled {model} has one average only; leave --average out")
        return Path(str(resources.files("fewstep") / "assets" / str(model)))
    raise UsageError(
        f"no model {str(model)!r}: not a folder, and not bundled; {nearest(str(model), BUNDLED)}; "
        "a model on the Hugging Face Hub is named hub:OWNER/NAME"
    )


def _at_step(run: Path, average: str | None, step: int) -> Path:
    if average is not None:
        raise UsageError("checkpoints keep the run's first average only; give --step or --average")
    known = sorted(int(p.parts[-3]) for p in run.glob("checkpoints/[0-9]*/model/config.json"))
    if step not in known:
        raise UsageError(
            f"{run} keeps no model of training step {step}; it has {known or 'none'} (training "
            "keeps those that --train.keep and --train.keep-every say; --steps is the number of "
            "sampling steps)"
        )
    return run / "checkpoints" / f"{step:09d}" / "model"


def _average(run: Path, name: str) -> Path:
    known = sorted(p.parent.name for p in run.glob("averages/*/config.json"))
    if name not in known:
        raise UsageError(f"{run} has no average {name!r} besides its model; it has {known}")
    return run / "averages" / name
