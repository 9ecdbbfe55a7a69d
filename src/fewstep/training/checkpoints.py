"""Complete training states as safetensors and JSON: whole or absent, and checked when read.

Every process writes the rows it holds into a file of its own, so a run may go on with another
number of processes: a tensor is the concatenation of its rows in the order of the files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.core import UsageError, local
from fewstep.errors import in_words
from fewstep.models.low_rank import base_names
from fewstep.system.files import drop, tidy, whole_folder
from fewstep.system.processes import ALONE, World
from fewstep.training.config import FRESH
from fewstep.training.distribution import rows
from fewstep.weights import separate, tied, write

State = tuple[Mapping[str, Tensor], dict[str, Any]]
"""Tensors by dotted name, and JSON values."""


def save(
    folder: Path,
    step: int,
    state: State,
    keep: int,
    world: World = ALONE,
    keep_every: int = 0,
    beside: Callable[[Path], object] = lambda fresh: None,
) -> Path:
    """Write the state of ``step``; then drop all but the ``keep`` newest.

    Args:
        folder: of all checkpoints; on several machines, one that they share.
        step: names it.
        state: from the trainer.
        keep: at least 1.
        world: all of it must call this.
        keep_every: also keep multiples of it; 0 for none.
        beside: the first process calls it with the new folder, to write more into it.

    Raises:
        OSError: one of the processes could not write, e.g. because the disk is full.
    """
    tensors, values = state
    target = folder / f"{step:09d}"
    if world.size == 1:
        with whole_folder(target) as fresh:
            _write(fresh, _name(0), tensors, world)
            beside(fresh)
            _write_manifest(fresh, values, step, world)
    else:
        _save_together(target, tensors, values, step, world, beside)
    if world.first:
        tidy(folder)
        for old in _complete(folder)[:-keep]:
            if not keep_every or int(old.name) % keep_every:
                drop(old)
    return target


def _save_together(
    target: Path,
    tensors: Mapping[str, Tensor],
    values: dict[str, Any],
    step: int,
    world: World,
    beside: Callable[[Path], object],
) -> None:
    """The first process makes the folder and names it; all learn of the failure of one."""
    made: list[Path] = []

    def together(act: Callable[[], None]) -> None:
        failed = None
        try:
            act()
        except OSError as error:
            failed = error
        number = world.largest(0 if failed is None else failed.errno or errno.EIO)
        if number:
            raise failed or OSError(number, os.strerror(number), str(target))

    with ExitStack() as stack:

        def begin() -> None:
            if world.first:
                made.append(stack.enter_context(whole_folder(target)))

        def finish() -> None:
            if world.first:
                beside(fresh)
                _write_manifest(fresh, values, step, world)
                stack.close()

        together(begin)
        fresh = Path(world.agreed(str(*made)))
        together(lambda: _write(fresh, _name(world.rank), tensors, world))
        together(finish)


def _write(folder: Path, name: str, tensors: Mapping[str, Tensor], world: World) -> None:
    own = separate(
        {
            key: local(value.detach())
            for key, value in tensors.items()
            if world.first or local(value) is not value
        }
    )
    try:
        save_file(own, folder / name)
    except SafetensorError as error:
        # It tells of the system's error in words only; the number says what to do.
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number), str(folder / name)) from error


def _write_manifest(folder: Path, values: dict[str, Any], step: int, world: World) -> None:
    files = {_name(rank): _digest_of(folder / _name(rank)) for rank in range(world.size)}
    manifest = {**values, "step": step, "files": files}
    manifest["sha256"] = _digest(manifest)
    (folder / "state.json").write_text(_text(manifest), encoding="utf-8")


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint, if there is one."""
    complete = _complete(folder)
    return complete[-1] if complete else None


def read(checkpoint: Path) -> State:
    """The state in a checkpoint; tensors are read when they are asked for.

    Raises:
        UsageError: it is damaged; the message names the folder to delete.
    """
    try:
        # As bytes: reading text would take one end of line for another.
        text = (checkpoint / "state.json").read_bytes().decode("utf-8")
        values = json.loads(text)
        if text != _text(values) or values.pop("sha256") != _digest(values):
            raise ValueError("its manifest does not match its sha256")
        files = values.pop("files")
        for name, digest in files.items():
            if digest != _digest_of(checkpoint / name):
                raise ValueError(f"{name} does not match its sha256")
        return _Stored([checkpoint / _name(rank) for rank in range(len(files))]), values
    except Exception as error:
        raise UsageError(
            f"the checkpoint {checkpoint} is damaged ({in_words(error)}); delete it to go on from "
            f"the one before, or start anew with {FRESH}"
        ) from error


class _Stored(Mapping[str, Tensor]):
    """Tensors in files, whole."""

    def __init__(self, files: list[Path]) -> None:
        self.pieces: dict[str, list[Any]] = {}
        for file in files:
            handle: Any = safe_open(file, framework="pt")
            for key in handle.keys():  # noqa: SIM118 - the handle is no mapping
                self.pieces.setdefault(key, []).append(handle)

    def __getitem__(self, key: str) -> Tensor:
        parts = [handle.get_tensor(key) for handle in self.pieces[key]]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces)

    def __len__(self) -> int:
        return len(self.pieces)


def once(module: nn.Module, but: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors of a module by name, each under the first of its names.

    Args:
        module: it may be sharded.
        but: beginnings of names to leave out.
    """
    state: dict[str, Tensor] = module.state_dict(keep_vars=True)
    state = {k: v for k, v in state.items() if not (but and k.startswith(but))}
    ties = tied(state)
    return {name: value for name, value in state.items() if name not in ties}


def learned_in(student: nn.Module) -> dict[str, Tensor]:
    """Of :func:`once`, what is not frozen under adapters."""
    base = base_names(student)
    return {name: value for name, value in once(student).items() if name not in base}


@torch.no_grad()
def load_into(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    prefix: str,
    source: Path,
    but: tuple[str, ...] = (),
    base: Collection[str] = (),
) -> None:
    """Copy the tensors named ``prefix*`` into ``module``, strictly; of a shard, its rows.

    Names of ``module`` that begin with one of ``but`` are left as they are, and so are those of
    tensors that have another name too. Those in ``base`` need not be there; where they are, as in
    checkpoints of older versions, they must have the values that the module has.
    """
    names = {k.removeprefix(prefix): k for k in tensors if k.startswith(prefix)}
    own = dict(module.named_parameters(remove_duplicate=False))
    for name in sorted(names.keys() & {*base} & own.keys()):
        value = rows(tensors[names[name]], own[name])
        if value.shape != local(own[name]).shape or not value.equal(local(own[name]).cpu()):
            raise UsageError(f"{source} has other frozen weights under its adapters: {name}")
    names = {name: key for name, key in names.items() if name not in base}
    wanted = {name: value for name, value in once(module, but).items() if name not in base}
    odd = sorted({*names} ^ {*wanted})
    for name in wanted.keys() & names.keys():
        value = tensors[names[name]]
        if value.shape != wanted[name].shape:
            odd.append(name)
        elif not odd:
            write(local(wanted[name]), rows(value, wanted[name]))
    if odd:
        raise UsageError(f"{source} is of another network: {prefix}{{{', '.join(odd[:8])}}} differ")


def fingerprint(module: nn.Module) -> str:
    """sha256 of all weights and buffers by name: what is kept of a frozen module."""
    return digest_of(module.state_dict())


def digest_of(state: Mapping[str, Tensor]) -> str:
    """sha256 of tensors by name."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        data = value.detach().cpu().contiguous().reshape(-1)
        digest.update(data.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _name(rank: int) -> str:
    return f"state-{rank:03d}.safetensors" if rank else "state.safetensors"


def _text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=2) + "\n"


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _complete(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("[0-9]*") if (p / "state.json").is_file())
