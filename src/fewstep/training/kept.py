"""The models beside a run's checkpoints: whole, or the adapter and the name of the teacher."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import torch

from fewstep.adapters import Adapter, add
from fewstep.core import UsageError
from fewstep.model import Model, find
from fewstep.model_files import write_adapted
from fewstep.models import Denoiser
from fewstep.training.config import Run
from fewstep.training.folder import RunFolder


class Kept:
    """Writes the models of checkpoints.

    A model that is the run's teacher and an adapter is kept as the adapter alone, with the place
    and the sha256 of the teacher, from which it is read. Codecs and readers of texts are links to
    the files of the run's own model.

    Args:
        run: what is trained.
        folder: of the run.
    """

    def __init__(self, run: Run, folder: RunFolder) -> None:
        self.run, self.folder = run, folder
        self.teacher: Path | None = None
        self.digest = ""
        self.sure: bool | None = None

    def save(self, model: Model, target: Path) -> None:
        """Write the model into a checkpoint's folder that is not there yet."""
        adapter = model.adapter
        if self.sure is None:
            self.sure = adapter is not None and self._teachers(model, adapter)
        if not self.sure or adapter is None or self.teacher is None:
            model.save(target, samples=0, like=self.folder.model)
            return
        target.mkdir()
        base = {"place": self._place(self.teacher), "sha256": self.digest}
        write_adapted(
            *(target, model.denoiser, model.contract, model.card, model.frontend, adapter, base)
        )

    def _place(self, teacher: Path) -> str:
        """As a checkpoint's model names it: a run that has its teacher inside may be moved."""
        name = str(self.run.arguments["teacher"])
        if not Path(name).exists():
            return name  # bundled, or on the Hub
        own = self.folder.path.resolve()
        if own in teacher.parents:
            return os.path.relpath(teacher, own / "checkpoints" / "step" / "model")
        return str(teacher)

    def _teachers(self, model: Model, adapter: Adapter) -> bool:
        """Whether the teacher and the adapter make the model, as whoever reads them will do it."""
        teacher, name = self.run.teacher, self.run.arguments.get("teacher")
        if teacher is None or not isinstance(name, str):
            return False
        if not isinstance(teacher.denoiser, Denoiser) or not isinstance(model.denoiser, Denoiser):
            return False
        if model.frontend.digests != teacher.frontend.digests:
            return False
        with suppress(UsageError, OSError, ValueError, KeyError):
            folder = find(name).resolve()
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            made = add(teacher.denoiser.net, [adapter]).state_dict()
            own = model.denoiser.net.state_dict()
            self.teacher, self.digest = folder, config["sha256"]
            return made.keys() == own.keys() and all(
                torch.allclose(value.cpu(), own[key].cpu(), rtol=1e-5, atol=1e-6)
                for key, value in made.items()
            )
        return False
