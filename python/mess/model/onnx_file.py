"""Stages and heads as ONNX files, each compared with what its part of the network gives for the same input."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mess.model.graph import GraphStages, reason_of
from mess.model.stages import State
from mess.runtime.backends import BATCH, free_name, load

TOLERANCE = 1e-4
"""Largest difference between ONNX Runtime and torch, as a share of the largest number (or of 1)."""


@dataclass(frozen=True, slots=True)
class StageFile:
    """One stage that was written.

    Attributes:
        path: the file.
        inputs, outputs: names of its values.
        feature: name of the feature that its exit reads; of the last stage, the logits.
        carried: names of what it hands to the next one, and whether each has the batch in front.
        features: that feature, (B, channels, h, w), of every probe.
    """

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    feature: str
    carried: tuple[tuple[str, bool], ...]
    features: tuple[Tensor, ...]


def write_stages(stages: GraphStages, count: int, probes: Sequence[Tensor], folder: Path) -> Iterator[StageFile]:
    """`stage-<i>.onnx` of the first `count` stages, one by one, each compared with torch on every batch of `probes`.

    Raises:
        RuntimeError: as of `write_head`.
    """
    states: list[State] = [stages.start(images) for images in probes]
    names: tuple[str, ...] = ("images",)
    batched: tuple[bool, ...] = (True,)
    for position in range(count):
        given_states = [_copied(state) for state in states]
        versions = [value._version for value in given_states[0]]
        after = [stages.run_stage(position, state) for state in given_states]
        feature, carried = after[0]
        every = (feature, *carried)
        # what a stage only hands through, and the feature when it is carried too, are one tensor under one name; what
        # it changes in place is another one from then on
        changed = {at for at, value in enumerate(given_states[0]) if value._version != versions[at]}
        _expect_no_view(given_states[0], changed, f"stage-{position}")
        known = {
            _place(value): name
            for at, (name, value) in enumerate(zip(names, given_states[0], strict=True))
            if at not in changed
        }
        kept: list[int] = []
        for i, value in enumerate(every):
            if _place(value) not in known:
                known[_place(value)] = f"value_{position}_{len(kept)}"
                kept.append(i)
        given = tuple(known[_place(value)] for value in every)
        outputs = tuple(given[i] for i in kept)
        path = folder / f"stage-{position}.onnx"
        order = tuple(dict.fromkeys(names))
        inputs = [names.index(name) for name in order]
        _write(
            _Stage(stages, position, [order.index(name) for name in names], kept),
            [[_alone(state[i]) for i in inputs] for state in states],
            order,
            [batched[i] for i in inputs],
            outputs,
            path,
        )
        next_batched = stages.batched[position] if position < len(stages.batched) else ()
        carry = tuple(dict(zip(given[1:], next_batched, strict=True)).items())
        yield StageFile(path, order, outputs, given[0], carry, tuple(feature for feature, _ in after))
        states, names, batched = [carried for _, carried in after], given[1:], next_batched


def write_head(head: nn.Module, features: Sequence[Tensor], path: Path) -> None:
    """The ONNX file of a head, `feature` to `logits`, compared with torch on every batch of `features`.

    Raises:
        RuntimeError: it cannot be exported, `onnx`, `onnxscript` or `onnxruntime` is missing, or
            the file gives other numbers (more than 1e-4 of the largest, or of 1, apart).
    """
    graph = getattr(head, "graph", None)  # none where the head itself could not be exported
    module = _Stage(graph, 0, [0], [0]) if isinstance(graph, GraphStages) else head
    _write(module, [[feature] for feature in features], ("feature",), [True], ("logits",), path)


class _Stage(nn.Module):
    """One stage as ONNX sees it: tensors in, (feature, carried tensors ...) out, none of them twice.

    given: for each value of the stage's state, which of the inputs it is.
    kept: which outputs are new, neither handed through nor there already.
    """

    def __init__(self, stages: GraphStages, index: int, given: Sequence[int], kept: Sequence[int]) -> None:
        super().__init__()
        self.stages, self.index, self.given, self.kept = stages, index, tuple(given), tuple(kept)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        feature, carried = self.stages.run_stage(self.index, tuple(inputs[i] for i in self.given))
        every = (feature, *carried)
        return tuple(every[i] for i in self.kept)


def _place(value: Tensor) -> tuple[object, ...]:
    return value.data_ptr(), value.dtype, value.shape, value.stride()


def _alone(value: Tensor) -> Tensor:
    """In memory of its own: torch.export follows no change in place of a part of an input."""
    return value if value.untyped_storage().nbytes() == value.nbytes else value.clone()


def _copied(state: State) -> State:
    """A state for a stage that may write into it. What shares memory shares that of the copy, what is the same tensor
    is the same tensor there."""
    memories: dict[int, Any] = {}
    copies: dict[tuple[object, ...], Tensor] = {}
    for value in state:
        memory = value.untyped_storage()
        at = memory.data_ptr()
        if at not in memories:
            memories[at] = memory.clone()
        if _place(value) not in copies:
            view = value.new_empty(0).set_(memories[at], value.storage_offset(), value.shape, value.stride())
            copies[_place(value)] = view
    return tuple(copies[_place(value)] for value in state)


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether a number of one is in the memory of a number of the other."""
    memory = one.untyped_storage()
    if memory.data_ptr() != other.untyped_storage().data_ptr() or not (one.numel() and other.numel()):
        return False
    if one.dtype != other.dtype:
        return True
    marks = torch.zeros(memory.nbytes() // one.element_size(), dtype=torch.bool, device=one.device)
    marks.as_strided(one.shape, one.stride(), one.storage_offset()).fill_(True)
    return bool(marks.as_strided(other.shape, other.stride(), other.storage_offset()).any())


def _expect_no_view(state: State, changed: Collection[int], stage: str) -> None:
    """Files hand on values, not memory: what is changed in place has to be all that sees the change."""
    for at in changed:
        for other in state:
            if _place(other) != _place(state[at]) and _overlap(other, state[at]):
                raise RuntimeError(
                    f"export: {stage} changes a tensor in place of which another one that it gets is a view, which a "
                    "file cannot; write it without the change in place"
                )


def _write(
    module: nn.Module,
    probes: Sequence[Sequence[Tensor]],
    names: Sequence[str],
    batched: Sequence[bool],
    outputs: Sequence[str],
    path: Path,
) -> None:
    """Export, and compare ONNX Runtime's outputs with torch's; what differs among the inputs of `probes` is free."""
    inputs = probes[0]
    batch = torch.export.Dim(BATCH)
    dynamic: list[dict[int, Any]] = [{0: batch} if is_batched else {} for is_batched in batched]
    for i, values in enumerate(zip(*probes, strict=True)):
        for axis, sides in enumerate(zip(*(value.shape for value in values), strict=True)):
            if len(set(sides)) > 1:
                dynamic[i][axis] = torch.export.Dim.AUTO
    try:
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs),
            dynamo=True,
            dynamic_shapes=(tuple(dynamic),) if isinstance(module, _Stage) else tuple(dynamic),
            input_names=list(names),
            output_names=list(outputs),
            verbose=False,
        )
        assert program is not None
        _name_sizes(program, names, dynamic)
        _forget_origin(program)
        program.save(str(path), external_data=False)
    except ImportError as error:
        raise RuntimeError(f"export: expected onnx and onnxscript: {error}; pip install 'mess[onnx]'") from None
    except Exception as error:  # the exporter raises many types; the reason is what the user needs
        raise RuntimeError(f"export: torch.onnx.export failed on {path.stem}: {reason_of(error)}") from error
    for probe in probes:
        _compare(module, probe, names, batched, outputs, path)


def _compare(
    module: nn.Module,
    inputs: Sequence[Tensor],
    names: Sequence[str],
    batched: Sequence[bool],
    outputs: Sequence[str],
    path: Path,
) -> None:
    given = {name: value.cpu().numpy() for name, value in zip(names, inputs, strict=True)}
    session = load("onnxruntime", path, names, outputs, None, shapes={name: v.shape for name, v in given.items()})
    found = session.run(given, batch=max(len(v) for v, is_batched in zip(inputs, batched, strict=True) if is_batched))
    expected = module(*_copied(tuple(inputs)))
    for name, value in zip(outputs, expected if isinstance(expected, tuple) else (expected,), strict=True):
        wanted = value.cpu().numpy()
        if wanted.dtype.kind in "fc":
            apart = float(np.abs(found[name] - wanted).max())
            is_off = not apart <= TOLERANCE * max(1.0, float(np.abs(wanted).max()))
        else:  # masks and indices are the same or not
            apart, is_off = float((found[name] != wanted).mean()), not np.array_equal(found[name], wanted)
        if is_off:
            raise RuntimeError(f"export: {path.stem}: {name} is {apart:.3g} off torch's in ONNX Runtime; not exported")


def _name_sizes(program: torch.onnx.ONNXProgram, names: Sequence[str], dynamic: Sequence[Mapping[int, Any]]) -> None:
    """Free heights and widths are named for where they are, as `mess.runtime.backends` fixes them."""
    for value, name, free in zip(program.model.graph.inputs, names, dynamic, strict=True):
        assert value.name == name
        assert value.shape is not None
        for axis in free:
            if free[axis] is torch.export.Dim.AUTO:
                value.shape[axis] = free_name(name, axis)


def _forget_origin(program: torch.onnx.ONNXProgram) -> None:
    """Leave out what the exporter notes of each node: where in whose code it came from, and numbers that are others in
    each export. Whoever gets the folder needs neither."""
    graphs = [program.model.graph, *(function.graph for function in program.model.functions.values())]
    program.model.metadata_props.clear()
    for graph in graphs:
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()


@contextmanager
def exporting() -> Iterator[None]:
    """Without gradients, and without the exporter's own messages."""
    with torch.inference_mode(False), torch.no_grad(), _quiet():
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs and warns of its own affairs."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
