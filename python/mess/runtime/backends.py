"""Who runs an ONNX file: ONNX Runtime or OpenVINO, behind one call: arrays by name in, arrays by name out."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

BackendName = Literal["onnxruntime", "openvino"]
Arrays = dict[str, npt.NDArray[Any]]


BATCH = "batch"
"""Name of the dimension that is free in an exported file."""


def free_name(value: str, axis: int) -> str:
    """Name of another dimension that is free in an exported file: this one of an input's."""
    return f"{value}.{axis}"


Shape = tuple[int | None, ...]
"""Of an input; None where it is free."""


class Session(Protocol):
    """One loaded ONNX file. One image is what it is made for; another batch is loaded when it first comes.

    Where batch and size are fixed, sizes are known when the graph is optimised: SegFormer-B0 takes two thirds of the
    time in OpenVINO, other networks up to 4 % less in either.
    """

    inputs: Mapping[str, Shape]
    """Of the file."""
    gives: frozenset[str]
    """Names of the file's outputs."""

    def load_for_batches(self) -> None:
        """Load now what several images need, rather than when they first come."""

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], *, batch: int) -> Arrays:
        """All outputs by name; `batch` images are in the inputs."""


def load(
    backend: BackendName,
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    threads: int | None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    model: bytes | None = None,
) -> Session:
    """Load `path`, which reads `inputs` (or some of them) and gives `outputs` (and more); weights are inside, no other
    file is read. `shapes` of the inputs, but for the batch, are what a file with free sizes is loaded for; `model` is
    what is in the file, where it was read before.

    Raises:
        RuntimeError: the backend is not installed.
        ValueError: no such backend; a file that it cannot load, or of other inputs and outputs.
    """
    if backend not in get_args(BackendName):
        raise ValueError(f"backend: expected one of {get_args(BackendName)}, got {backend!r}")
    try:
        content = path.read_bytes() if model is None else model
        session = (_OnnxRuntime if backend == "onnxruntime" else _OpenVino)(content, outputs, threads, shapes or {})
    except ImportError as error:
        raise RuntimeError(f"backend: expected {backend} to be installed: {error}; pip install {backend}") from None
    except Exception as error:  # the backends' own kinds have no base in common
        raise ValueError(f"deployment: {path}: {backend} cannot load it: {error}") from None
    if not (set(session.inputs) <= set(inputs) and set(outputs) <= session.gives):
        raise ValueError(
            f"deployment: {path}: expected inputs {list(inputs)} and outputs {list(outputs)}, as in the manifest, got "
            f"{list(session.inputs)} and {sorted(session.gives)}"
        )
    return session


class _OnnxRuntime:
    def __init__(
        self, model: bytes, outputs: Sequence[str], threads: int | None, shapes: Mapping[str, Sequence[int]]
    ) -> None:
        self._model, self._outputs, self._threads = model, list(outputs), threads
        self._sizes = {free_name(name, axis): n for name, shape in shapes.items() for axis, n in enumerate(shape)}
        self._alone = self._loaded(one_image=True)
        self._any: Any = None
        self.inputs: Mapping[str, Shape] = {given.name: _shape(given.shape) for given in self._alone.get_inputs()}
        self.gives = frozenset(output.name for output in self._alone.get_outputs())

    def load_for_batches(self) -> None:
        if self._any is None:
            self._any = self._loaded(one_image=False)

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], *, batch: int) -> Arrays:
        if batch > 1:
            self.load_for_batches()
        session = self._alone if batch == 1 else self._any
        return dict(zip(self._outputs, session.run(self._outputs, dict(inputs)), strict=True))

    def _loaded(self, *, one_image: bool) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.inter_op_num_threads = 1
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        if one_image:
            options.add_free_dimension_override_by_name(BATCH, 1)
        for name, size in self._sizes.items():
            options.add_free_dimension_override_by_name(name, size)
        # each session has a pool of its own; those that wait must not spin while another works
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])


class _SignalStack(ctypes.Structure):
    """`stack_t` of sigaltstack(2) in Linux."""

    _fields_ = (("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _signal_stack_kept() -> Iterator[None]:
    """After the block, signals that come to this thread are handled on the stack that they were before.

    The first model that an `openvino.Core` compiles gives the thread another one, which ends with the Core. That puts
    the one before it back if it can: not when it ends in another thread, and of several that end in the order in which
    they were made, the last puts back one that is gone. The next signal with a handler in Python, such as Ctrl-C, then
    ends the process (SIGSEGV; seen with OpenVINO 2026.4).
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


class _OpenVino:
    def __init__(
        self, model: bytes, outputs: Sequence[str], threads: int | None, shapes: Mapping[str, Sequence[int]]
    ) -> None:
        import openvino

        self._sizes = {name: tuple(shape) for name, shape in shapes.items()}
        self._core = openvino.Core()
        self._model = self._core.read_model(model)
        self._outputs = list(outputs)
        self._settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = str(threads)
        self._alone = self._compiled(one_image=True)
        self._any: Any = None
        self.inputs: Mapping[str, Shape] = {
            given.get_any_name(): _shape([None if n.is_dynamic else n.get_length() for n in given.get_partial_shape()])
            for given in self._model.inputs
        }
        self.gives = frozenset(name for output in self._model.outputs for name in output.get_names())

    def load_for_batches(self) -> None:
        if self._any is None:
            self._any = self._compiled(one_image=False)

    def run(self, inputs: Mapping[str, npt.NDArray[Any]], *, batch: int) -> Arrays:
        if batch > 1:
            self.load_for_batches()
        model, names, idle = self._alone if batch == 1 else self._any
        try:
            request = idle.pop()
        except IndexError:  # all are at work, in other threads
            request = model.create_infer_request()
        # not ascontiguousarray, which makes a scalar that is carried past an exit an array of one
        given = {name: np.require(value, requirements="C") for name, value in inputs.items() if name in names}
        found = request.infer(given, share_inputs=True)
        outputs = {name: found[name].copy() for name in self._outputs}  # the next run writes over them
        idle.append(request)
        return outputs

    def _compiled(self, *, one_image: bool) -> tuple[Any, set[str], list[Any]]:
        """The model; its inputs, as one that is asked for its batch size alone is optimised away; and requests that no
        thread uses: the model's own serves one thread at a time, and gives what the last one asked for."""
        model = self._model.clone()
        shapes = {given.get_any_name(): given.get_partial_shape() for given in model.inputs}
        for name, shape in shapes.items():
            for axis in range(1, len(shape)):
                if shape[axis].is_dynamic and name in self._sizes:
                    shape[axis] = self._sizes[name][axis]
            if one_image and len(shape) > 0 and shape[0].is_dynamic:
                shape[0] = self._sizes[name][0] if name in self._sizes else 1  # not every value has a batch
        model.reshape(shapes)
        with _signal_stack_kept():
            compiled = self._core.compile_model(model, "CPU", self._settings)
        return compiled, {name for given in compiled.inputs for name in given.get_names()}, []


def _shape(given: Sequence[Any]) -> Shape:
    return tuple(n if isinstance(n, int) else None for n in given)
