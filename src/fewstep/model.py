"""A model that can be shipped: a denoiser and its contract; load, save, sample."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep import cards, hub, model_files, schedule
from fewstep import sampling_options as options
from fewstep.adapters import Adapter
from fewstep.bundled import BUNDLED
from fewstep.card_text import SHOWN, Card, Numbers
from fewstep.contract import Contract
from fewstep.core import Cond
from fewstep.engines import run_by
from fewstep.errors import UsageError, UsageWarning
from fewstep.frontends import Frontend
from fewstep.model_files import FORMAT, READABLE, find
from fewstep.models import AbstractDenoiser
from fewstep.noise import SampleNoise
from fewstep.sampling import generate
from fewstep.states import Callback
from fewstep.system.devices import usable_device
from fewstep.system.files import check_replaceable, whole_folder
from fewstep.weights import freeze

__all__ = ["BUNDLED", "FORMAT", "READABLE", "Model", "SampleNoise", "find", "load"]


class Model:
    """A denoiser with its contract, on a device.

    Args:
        denoiser: in evaluation mode afterwards.
        contract: how it may be sampled.
        card: what its model card says beside the contract; by default nothing.
        frontend: its codec and its reader of texts, if it has any.
        adapter: the low-rank changes that made the denoiser of another model, where the weights
            contain such. It is stored beside them and changes nothing.
    """

    def __init__(
        self,
        denoiser: AbstractDenoiser,
        contract: Contract,
        card: Card | None = None,
        frontend: Frontend | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        self.denoiser = freeze(denoiser.eval())
        self.contract = contract
        self.card = card or Card()
        self.frontend = frontend or Frontend()
        self.adapter = adapter

    def __repr__(self) -> str:
        data, sampling = self.contract.data, self.contract.sampling
        count = sum(p.numel() for p in self.denoiser.parameters())
        return (
            f"Model({self.contract.method}, {sampling.kind}, {data.summary()}, "
            f"{count:,} parameters, {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.denoiser.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str) -> Model:
        """Move the weights."""
        self.denoiser.to(device)
        if self.frontend.codec is not None:
            self.frontend.codec.to(device)
        return self

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The shape of a sample, decoded where the model learned latents."""
        return self.frontend.shape_of(self.contract.data.shape)

    def times(self, steps: int | None = None) -> list[float]:
        """The times of ``steps`` steps; an ODE ends on the model's answer at the last of them.

        ``None`` is the contract's fewest steps, or 18 for an ODE.
        """
        return schedule.times(self.contract, self.denoiser.path, steps)

    def serves(self, steps: int) -> bool:
        """Whether the model can be sampled in so many steps."""
        return self.contract.sampling.any_times or steps in self.contract.sampling.times

    def calls(
        self, steps: int | None = None, guidance: float | None = None, solver: str | None = None
    ) -> int:
        """Network calls of one sample, with arguments of :meth:`sample`; guided calls are two."""
        steps = len(self.times(steps))
        if self.contract.sampling.kind == "ode":
            steps = options.Solver(solver or "heun").calls(steps)
        allowed = self.contract.sampling.guidance
        embedded = allowed is not None and allowed.embedded
        return steps * (2 if guidance not in (None, 1.0) and not embedded else 1)

    def sample(
        self,
        n: int = 1,
        *,
        steps: int | None = None,
        times: Sequence[float] | None = None,
        seed: int = 0,
        first: int = 0,
        seeds: Sequence[int] | None = None,
        label: int | str | Sequence[int | str] | Tensor | None = None,
        prompts: str | Sequence[str] | None = None,
        lengths: int | Sequence[int] | Tensor | None = None,
        guidance: float | None = None,
        gamma: float | None = None,
        solver: str | None = None,
        eta: float | None = None,
        churn: float | None = None,
        cond: Mapping[str, Any] | None = None,
        batch: int = 512,
        callback: Callback | None = None,
        latents: bool = False,
    ) -> Tensor:
        """Generate.

        Args:
            n: number of samples; sample i is a function of (seed, first + i).
            steps: see :meth:`times`. Each step of a consistency model after the first adds noise to
                its answer and calls it again; a warning says so where there are more than 8.
            times: the times themselves, descending, where the contract allows any.
            seed: of all samples.
            first: the first sample's number, so that several processes can share the work.
            seeds: one a sample instead; sample i is then a function of (seeds[i], 0).
            label: one for all or one each, a class's name or a number in [0, k], where k is "no
                label"; by default the index, or the sample's own seed, modulo k.
            prompts: one for all or one each, of a model that reads texts; by default empty ones.
            lengths: one for all or one each, of a model whose samples differ in length.
            guidance: scale of classifier-free guidance; 1 is none. A model whose network reads the
                scale has its contract's lowest by default, and costs no second call.
            gamma: share of noise of models of kind gamma, in [0, 1]; by default the contract's.
            solver: of the ODE of a diffusion model: heun (by default), euler, ddim, dpm (midpoint)
                or dpm++2m.
            eta: share of noise in each step of ddim, from 0 (none) to 1 (ancestral sampling).
            churn: EDM's amount of noise added before the steps of heun or euler, 0 (none) or more.
            cond: conditions by name, as :meth:`~fewstep.contract.DataSpec.convert` reads them; the
                others have their defaults.
            batch: samples at a time; changes nothing but memory and speed.
            callback: is called with each batch's :class:`~fewstep.states.State` after each step.
            latents: return what the network makes; by default a model with a codec decodes it.

        Returns:
            ``(n, *shape)`` float32 on the model's device, within the data's range; of a model with
            a codec images in [-1, 1]. Samples of
            different lengths are as long as the longest, and 0 behind their own ends.

        Raises:
            UsageError: what is asked contradicts the contract.
        """
        if callback is not None and not callable(callback):
            raise UsageError(f"callback is a function of a State, got {callback!r}")
        pairs = options.pairs(n, seed, first, seeds)
        contract = self.contract
        request = options.Request(
            self.times(steps) if times is None else schedule.given_times(contract, times),
            options.gamma(contract, gamma),
            options.solver(contract, self.denoiser.path, solver, eta, churn),
        )
        own = [i if seeds is None else s for s, i in pairs]
        conditions = self.conditions(own, cond, label=label, lengths=lengths, prompts=prompts)
        denoiser = self.guided(guidance, conditions)
        remark = schedule.remark(contract, steps or 1, request.gamma)
        if remark is not None:
            warnings.warn(remark, UsageWarning, stacklevel=2)
        with torch.no_grad():
            x = generate(
                denoiser, contract, request, pairs, conditions, self.device, batch, callback
            )
        codec = self.frontend.codec
        return x if codec is None or latents else codec.decode(x)

    def noise(
        self,
        pairs: Sequence[tuple[int, int]],
        mask: Tensor | None = None,
        *,
        calls: int | None = None,
    ) -> SampleNoise:
        """The noise of samples: see :func:`fewstep.sampling_options.noise`."""
        return options.noise(self.contract.data, pairs, mask, calls)

    def conditions(
        self,
        own: Sequence[int],
        cond: Mapping[str, Any] | None = None,
        *,
        label: Any = None,
        lengths: Any = None,
        prompts: str | Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """All conditions of samples, on the CPU: what is given, else the defaults.

        Args:
            own: the samples' own numbers, by which the classes take turns.
            cond: by name.
            label: another way to give ``cond["label"]``.
            lengths: another way to give ``cond["mask"]``.
            prompts: another way to give ``cond["text"]``: one text for all samples, or one each.

        Raises:
            UsageError: a condition that the model does not have, or a value that does not fit.
        """
        given = options.read_prompts(self.frontend.text, prompts, cond, len(own))
        return options.conditions(
            self.denoiser, self.contract.data, own, given, label=label, lengths=lengths
        )

    def guided(self, guidance: float | None, cond: Cond) -> AbstractDenoiser:
        """The denoiser, guided at that scale; 1 and None are no guidance.

        Raises:
            UsageError: the model cannot be guided so.
        """
        return options.guided(self.denoiser, self.contract, guidance, cond)

    def config(self, weights: bytes) -> dict[str, Any]:
        """``config.json`` for these weights."""
        return model_files.config_of(self.denoiser, self.contract, weights)

    def save(
        self,
        path: str | Path,
        *,
        card: Card | str | None = None,
        dtype: torch.dtype | None = None,
        samples: int = SHOWN,
        like: Path | None = None,
    ) -> Path:
        """Write ``model.safetensors``, ``config.json`` and a card; whole or not at all.

        Args:
            path: the model folder.
            card: what the card says beside the contract, by default ``self.card``; or the whole
                text of the README.
            dtype: of the stored weights, e.g. ``torch.float16``; buffers keep theirs.
            samples: number of samples in the card's picture, where samples are images; 0 draws
                none.
            like: a folder of a model with the same codec and texts: their files are then shared
                with it by hard links, where the file system has such.

        Raises:
            UsageError: the folder holds something else than an earlier model.
        """
        facts = card if isinstance(card, Card) else self.card
        check_replaceable(Path(path), model_files.NAMES, model_files.CONFIG)
        with whole_folder(Path(path)) as folder:
            parts = self.frontend, self.adapter, like
            model_files.write(folder, self.denoiser, self.contract, facts, dtype, *parts)
            if isinstance(card, str):
                (folder / cards.README).write_text(card, encoding="utf-8")
            else:
                cards.write(self, folder, card=facts, place=str(path), samples=samples)
        return Path(path)

    def push_to_hub(
        self,
        repository: str,
        *,
        token: str | None = None,
        private: bool = False,
        message: str = "Upload a model",
        numbers: Numbers | None = None,
        note: str = "",
    ) -> str:
        """Upload the files of :meth:`save` to the Hugging Face Hub, in one commit.

        The card begins with licence, library and tags as the Hub reads them.

        Args:
            repository: ``OWNER/NAME``; it is made where there is none.
            token: that may write there; by default the one of HF_TOKEN or of ``hf auth login``.
            private: whether a repository that is made is private.
            message: of the commit.
            numbers: an evaluation of the model for the card: measurements by name, of samples by
                caption.
            note: how the numbers were measured.

        Returns:
            The address of the commit.

        Raises:
            UsageError: the extra ``hub`` or a token is missing, or the Hub refuses.
        """
        name = str(hub.parse(f"{hub.PREFIX}{repository}"))
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            parts = self.frontend, self.adapter
            model_files.write(folder, self.denoiser, self.contract, self.card, None, *parts)
            cards.write(self, folder, place=name, numbers=numbers, note=note)
            return hub.upload(folder, repository, token, private, message)


def load(
    model: str | Path,
    *,
    network: nn.Module | None = None,
    device: str | torch.device | None = None,
    average: str | None = None,
    step: int | None = None,
    engine: str = "eager",
) -> Model:
    """A model from a model folder, a run folder (its newest model), a bundled name or the Hub.

    Args:
        model: the folder or name; an existing path wins over a name. ``hub:OWNER/NAME`` or
            ``hub:OWNER/NAME@REVISION`` is a model on the Hugging Face Hub, which is downloaded into
            the Hub's cache.
        network: the user's own network, for a model that was saved with one.
        device: where to put it; an accelerator if there is one.
        average: another of the run's averages than its first.
        step: the run's model as it was at this step, of which a checkpoint is kept.
        engine: what runs the network: ``eager`` (torch), ``compile``, ``onnx`` or ``openvino``; the
            last two run in float32 on the CPU and keep their graph beside the model.

    Raises:
        UsageError: nothing is there, or what is there does not fit; the message says which keys.
    """
    folder = find(model, average, step)
    denoiser, contract, card = model_files.read(folder, network)
    exported = engine in {"onnx", "openvino"}
    if exported and device not in {None, "cpu"}:
        raise UsageError(f"the engine {engine} runs on the CPU, got device {device}; leave it out")
    if engine != "eager":
        denoiser = run_by(engine, denoiser, contract, folder)
    parts = model_files.frontend_of(folder), model_files.adapter_of(folder)
    return Model(denoiser, contract, card, *parts).to(usable_device("cpu" if exported else device))
