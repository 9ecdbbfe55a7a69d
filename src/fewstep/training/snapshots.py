"""Copies of a run's power-function averages, and any other width made of them afterwards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.core import UsageError
from fewstep.importing.snapshots import Snapshot, average_of, edm2_snapshots
from fewstep.model import load
from fewstep.models import AbstractDenoiser, adapted_layers, merged
from fewstep.system.files import whole_folder
from fewstep.training.folder import RunFolder
from fewstep.training.posthoc import PowerFunction, posthoc_coefficients
from fewstep.training.trainer import Trainer
from fewstep.weights import copy_into


def snapshot(trainer: Trainer, folder: RunFolder) -> None:
    """Store the averages by power functions; under FSDP2 all processes must call this."""
    target = folder.snapshots / f"{trainer.step:09d}"
    weights = {
        name: ({k: v.clone() for k, v in _whole(trainer.student(name)).items()}, rule.std)
        for name, rule in trainer.averages.rules.items()
        if isinstance(rule, PowerFunction)
    }
    if weights and trainer.world.first:
        with whole_folder(target) as fresh:
            for name, (tensors, std) in weights.items():
                about = {"updates": str(trainer.averages.updates), "std": repr(std)}
                save_file(tensors, fresh / f"{name}.safetensors", about)


def _whole(student: AbstractDenoiser) -> dict[str, Tensor]:
    """The weights of a student, which contain its adapters where it has some."""
    return (merged(student) if adapted_layers(student) else student).state_dict()


def reconstruct(run: str | Path, std: float, out: str | Path, step: int | None = None) -> int:
    """Write the model whose weights are the average of relative width ``std``.

    Args:
        run: the run folder, or a folder with the snapshots of a training of EDM2.
        std: relative width of the average.
        out: the model folder to write.
        step: of the last snapshot to be used; by default the last there is. Of EDM2 it is the
            thousands of images in a file's name.

    Returns:
        How many stored averages it is made of.

    Raises:
        UsageError: the run has no model, no snapshots, or none at that step; a width that no
            power function has.
    """
    run = Path(run)
    if snapshots := edm2_snapshots(run):
        return _reconstruct_edm2(snapshots, std, out, step)
    files = sorted((run / "snapshots").glob("[0-9]*/*.safetensors"))
    steps = sorted({int(file.parent.name) for file in files})
    if not files or (step is not None and step not in steps):
        there = f" at step {step}, but at {', '.join(map(str, steps))}" if steps else ""
        raise UsageError(
            f"{run} has no snapshots{there}; a run stores them with --average-widths and "
            "--train.snapshot-every"
        )
    last = steps[-1] if step is None else step
    files = [file for file in files if int(file.parent.name) <= last]
    made = [safe_open(file, framework="pt").metadata() for file in files]
    offsets = [float(about["updates"]) for about in made]
    end = max(offsets)
    weights = posthoc_coefficients(offsets, [float(about["std"]) for about in made], end, std)
    total: dict[str, Tensor] = {}
    for file, weight in zip(files, weights[:, 0].tolist(), strict=True):
        handle = safe_open(file, framework="pt")
        for key in handle.keys():  # noqa: SIM118 - the handle is no mapping
            part = handle.get_tensor(key).double() * weight
            total[key] = total[key] + part if key in total else part
    model = load(run, device="cpu")
    model.adapter = None  # which is that of another average
    with torch.no_grad():
        copy_into(model.denoiser.state_dict(), total)
    text = f"{model.card.text} Its weights are the power-function average of width {std:g}."
    model.save(out, card=replace(model.card, text=text.strip()), samples=0)
    return len(files)


def _reconstruct_edm2(
    snapshots: list[Snapshot], std: float, out: str | Path, step: int | None
) -> int:
    times = sorted({each.kimg for each in snapshots})
    if step is not None and step not in times:
        raise UsageError(
            f"{snapshots[0].path.parent} has no snapshots of {step} thousand images, but of "
            f"{', '.join(map(str, times))}"
        )
    used = [each for each in snapshots if step is None or each.kimg <= step]
    offsets = [each.images for each in used]
    weights = posthoc_coefficients(offsets, [each.std for each in used], max(offsets), std)
    imported = average_of(used, weights[:, 0].tolist())
    imported.model.save(out, card=imported.readme(Path(out)))
    return len(used)
