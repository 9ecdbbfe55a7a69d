"""Exported graphs, opened by the programs that run them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from fewstep.errors import UsageError

Arrays = Mapping[str, np.ndarray]


class Session(Protocol):
    """A graph that is ready to run."""

    def __call__(self, inputs: Arrays) -> np.ndarray:
        """The first output for inputs by name."""
        ...


class OnnxSession:
    """ONNX Runtime on the CPU, with as many threads as torch has.

    Args:
        file: the graph.
    """

    def __init__(self, file: Path) -> None:
        runtime = extra("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        self._names = {one.name for one in self._session.get_inputs()}

    def __call__(self, inputs: Arrays) -> np.ndarray:
        """The first output."""
        read = {name: value for name, value in inputs.items() if name in self._names}
        return self._session.run(None, read)[0]


class OpenVinoSession:
    """OpenVINO on the CPU, in float32 also where the processor has bfloat16.

    A graph with free sizes runs slower, so one of fixed sizes is compiled for each batch and length
    that is asked for, of which the last ``KEPT`` are kept.

    Args:
        file: the graph, as OpenVINO's or as ONNX.
    """

    KEPT = 4

    def __init__(self, file: Path) -> None:
        self._vino = extra("openvino", "openvino")
        self._core = self._vino.Core()
        self._model = self._core.read_model(str(file))
        self._names = {one.get_any_name() for one in self._model.inputs}
        self._requests: dict[tuple[tuple[int, ...], ...], Any] = {}

    def __call__(self, inputs: Arrays) -> np.ndarray:
        """The first output."""
        read = {name: value for name, value in inputs.items() if name in self._names}
        size = tuple(value.shape for value in read.values())
        if size not in self._requests:
            while len(self._requests) >= self.KEPT:
                self._requests.pop(next(iter(self._requests)))
            self._requests[size] = self._compiled(read)
        (out, *_) = self._requests[size](read).values()
        return np.array(out)

    def _compiled(self, read: Arrays) -> Any:
        model = self._model.clone()
        model.reshape({name: list(value.shape) for name, value in read.items()})
        precise = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            return self._core.compile_model(model, "CPU", precise)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UsageError(
                f"OpenVINO cannot compile this network ({lines[-1]}); use the engine onnx or eager"
            ) from error


def open_onnx(file: Path) -> OnnxSession:
    """A session of ONNX Runtime.

    Raises:
        UsageError: the extra is not installed.
    """
    return OnnxSession(file)


def open_openvino(file: Path) -> OpenVinoSession:
    """A session of OpenVINO.

    Raises:
        UsageError: the extra is not installed.
    """
    return OpenVinoSession(file)


def extra(module: str, name: str) -> Any:
    """A module of an extra.

    Raises:
        UsageError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(
            f"this needs {module}, which is not installed: pip install 'fewstep[{name}]'"
        ) from error
