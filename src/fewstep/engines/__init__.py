"""Other programs that run a model's network: ONNX Runtime and OpenVINO, and torch's compiler.

A :class:`~fewstep.model.Model` keeps its contract, its seeds and its methods whatever runs it; only
its denoiser is replaced by one that asks an engine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from fewstep.contract import Contract
from fewstep.engines.cache import cached
from fewstep.engines.denoiser import CompiledDenoiser, EngineDenoiser
from fewstep.engines.graph import DenoiserGraph, examples
from fewstep.engines.sessions import Session, open_onnx, open_openvino
from fewstep.errors import UsageError, nearest
from fewstep.models import AbstractDenoiser

__all__ = [
    "ENGINES",
    "CompiledDenoiser",
    "DenoiserGraph",
    "Engine",
    "EngineDenoiser",
    "Session",
    "examples",
    "run_by",
]

Engine = Literal["eager", "compile", "onnx", "openvino"]
ENGINES: tuple[str, ...] = get_args(Engine)


def run_by(
    engine: str, denoiser: AbstractDenoiser, contract: Contract, folder: Path
) -> AbstractDenoiser:
    """The denoiser, run by an engine.

    Args:
        engine: ``eager`` is torch itself; ``compile`` is torch's compiler, which needs a minute at
            the first call; ``onnx`` is ONNX Runtime; ``openvino`` is OpenVINO. The last two run in
            float32 on the CPU.
        denoiser: on the CPU for the last two.
        contract: its data gives the inputs that the graph is exported and checked with.
        folder: the model folder, beside whose files the exported graph is kept.

    Raises:
        UsageError: there is no such engine, its extra is not installed, or its answers differ from
            torch's by more than ``LARGEST_ERROR``.
    """
    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}; {nearest(engine, ENGINES)}")
    if engine == "eager":
        return denoiser
    if engine == "compile":
        return CompiledDenoiser(denoiser)
    opened = {"onnx": open_onnx, "openvino": open_openvino}[engine]
    return EngineDenoiser(denoiser, opened(cached(denoiser, contract, folder)))
