"""Who runs an ONNX file: ONNX Runtime or OpenVINO, behind one call: arrays by name in, arrays by name out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

BackendName = Literal["onnxruntime", "openvino"]
Arrays = dict[str, npt.NDArray[Any]]


class Session(Protocol):
    """One loaded ONNX file."""

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """All outputs by name."""


def load(backend: BackendName, path: Path, outputs: Sequence[str], threads: int | None) -> Session:
    """Load `path`; weights are inside, no other file is read.

    Raises:
        RuntimeError: the backend is not installed.
        ValueError: no such backend.
    """
    if backend not in get_args(BackendName):
        raise ValueError(f"backend: expected one of {get_args(BackendName)}, got {backend!r}")
    try:
        return (_OnnxRuntime if backend == "onnxruntime" else _OpenVino)(path, outputs, threads)
    except ImportError as error:
        raise RuntimeError(f"backend: expected {backend} to be installed: {error}; pip install {backend}") from None


class _OnnxRuntime:
    def __init__(self, path: Path, outputs: Sequence[str], threads: int | None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.inter_op_num_threads = 1
        if threads is not None:
            options.intra_op_num_threads = threads
        # each session has a pool of its own; those that wait must not spin while another works
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._outputs = list(outputs)
        self._session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))


class _OpenVino:
    def __init__(self, path: Path, outputs: Sequence[str], threads: int | None) -> None:
        import openvino

        core = openvino.Core()
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        self._outputs = list(outputs)
        self._model = core.compile_model(core.read_model(path.read_bytes()), "CPU", settings)
        # an input that is asked for its batch size alone is optimised away
        self._inputs = {name for given in self._model.inputs for name in given.get_names()}

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        given = {name: np.ascontiguousarray(value) for name, value in inputs.items() if name in self._inputs}
        found = self._model(given)
        return {name: found[name].copy() for name in self._outputs}  # the next run writes over them
