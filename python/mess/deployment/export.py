"""A deployment as files: one ONNX file a stage and a head, and a manifest (`mess.runtime.manifest`).

Nothing is trusted: before the folder gets its name each file is loaded again by ONNX Runtime, and what it gives is
compared with what its part of the network gives for the same input.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mess.deployment.network import DeployedNetwork
from mess.files import expect_replaceable, file_sha256, whole_folder, write_json
from mess.model.graph import GraphStages, reason_of
from mess.model.split import probe_sizes
from mess.model.stages import State
from mess.runtime.backends import BATCH, free_name, load
from mess.runtime.manifest import FILE, FORMAT, Manifest, StageFiles, check_normalisation

TOLERANCE = 1e-4
"""Largest difference between ONNX Runtime and torch, as a share of the largest number (or of 1)."""


def export(
    deployed: DeployedNetwork,
    out: str | Path,
    *,
    class_names: Sequence[str],
    palette: Sequence[Sequence[int]] = (),
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write `deployed` to the folder `out`, whole or not at all; `mess.runtime.Runtime` runs it without torch.

    Only what its exits need is in it. Files take any batch size, and the sizes of image that `deployed` takes: the one
    it was deployed for, or with `any_size` others too.

    Args:
        deployed: from `mess.deploy`, with stages that are graphs, on the CPU or another device.
        out: a new folder, an empty one, or an earlier export, which is replaced.
        class_names: of the C classes, in order.
        palette: C colours (r, g, b), 0..255.
        mean, std: what images are normalised with, of values in 0..1; those of `deployed` by default.
        facts: what calibration measured, kept in the manifest.

    Raises:
        ValueError: `out` holds something else; `class_names` or `palette` is of another length than the logits;
            `mean` or `std` is no three numbers in range.
        RuntimeError: the model cannot be exported, `onnx`, `onnxscript` or `onnxruntime` is missing, or the files give
            other numbers than the network (more than 1e-4 of the largest, or of 1, apart).
    """
    folder = Path(out)
    expect_replaceable(folder, FILE, FORMAT, lambda manifest: manifest.get("files") or ())
    stages = deployed.stages
    if not isinstance(stages, GraphStages):
        raise RuntimeError(
            f"model: expected stages that are graphs, got {stages.backend}: what torch.export cannot follow has no "
            "ONNX file; deploy says why (backend='graph')"
        )
    if deployed.in_channels != 3:
        raise ValueError(
            f"deployed: expected a network of RGB images, which the runtime reads, got {deployed.in_channels} channels"
        )
    parameter = next(deployed.parameters())
    if parameter.dtype != torch.float32:
        raise ValueError(f"deployed: expected a float32 network, got {parameter.dtype}")
    if len(palette) not in (0, len(class_names)):
        raise ValueError(f"palette: expected a colour for each of {len(class_names)} classes, got {len(palette)}")
    mean = tuple(map(float, deployed.mean if mean is None else mean))
    std = tuple(map(float, deployed.std if std is None else std))
    check_normalisation(mean, std)
    with whole_folder(folder) as temporary:
        generator = torch.Generator().manual_seed(0)
        probes = [torch.randn(2, 3, *size, generator=generator).to(parameter.device) for size in probe_sizes(stages)]
        with torch.inference_mode(False), torch.no_grad(), _quiet():
            entries = _write_exits(deployed, stages, probes, temporary, num_classes=len(class_names))
        files = {p.name: {"sha256": file_sha256(p), "bytes": p.stat().st_size} for p in sorted(temporary.iterdir())}
        manifest = Manifest(
            setting=deployed.configuration.setting,
            classes=tuple(class_names),
            palette=tuple((int(r), int(g), int(b)) for r, g, b in palette),
            size=stages.input_size,
            size_step=stages.size_step,
            mean=mean,
            std=std,
            policy=asdict(deployed.configuration.policy),
            exits=tuple(entries),
            promise=dict(deployed.configuration.promise),
            facts=dict(facts or {}),
            files=files,
        )
        write_json(temporary / FILE, manifest.to_json())
        Manifest.load(temporary)
    return manifest


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


def _write_exits(
    deployed: DeployedNetwork, stages: GraphStages, probes: Sequence[Tensor], folder: Path, *, num_classes: int
) -> list[StageFiles]:
    """ONNX files of every stage and head, each compared with torch on every batch of `probes`."""
    entries = []
    states: list[State] = [stages.start(images) for images in probes]
    names: tuple[str, ...] = ("images",)
    batched: tuple[bool, ...] = (True,)
    for position, chosen in enumerate(deployed.configuration.exits):
        after = [stages.run_stage(position, state) for state in states]
        feature, carried = after[0]
        every = (feature, *carried)
        # what a stage only hands through, and the feature when it is carried too, are one tensor under one name
        known = {_place(value): name for name, value in zip(names, states[0], strict=True)}
        kept: list[int] = []
        for i, value in enumerate(every):
            if _place(value) not in known:
                known[_place(value)] = f"value_{position}_{len(kept)}"
                kept.append(i)
        given = tuple(known[_place(value)] for value in every)
        outputs = [given[i] for i in kept]
        file = f"stage-{position}.onnx"
        order = list(dict.fromkeys(names))
        inputs = [names.index(name) for name in order]
        _write(
            _Stage(stages, position, [order.index(name) for name in names], kept),
            [[state[i] for i in inputs] for state in states],
            order,
            [batched[i] for i in inputs],
            outputs,
            folder / file,
        )
        head, stride = None, 1
        if position < len(deployed.strides):
            head, stride = f"head-{position}.onnx", deployed.strides[position]
            module = deployed.heads[position]
            graph = getattr(module, "graph", None)  # none where the head itself could not be exported
            module = _Stage(graph, 0, [0], [0]) if isinstance(graph, GraphStages) else module
            _write(module, [[feature] for feature, _ in after], ["feature"], [True], ["logits"], folder / head)
        logits = deployed.heads[position](feature)
        if logits.shape[1] != num_classes:
            raise ValueError(f"class_names: expected {logits.shape[1]}, one a class, got {num_classes}")
        next_batched = stages.batched[position] if position < len(stages.batched) else ()
        entries.append(
            StageFiles(
                name=chosen.exit,
                stage=file,
                inputs=tuple(order),
                outputs=tuple(outputs),
                feature=given[0],
                carried=tuple(dict(zip(given[1:], next_batched, strict=True)).items()),
                head=head,
                output_stride=stride,
                pixel_threshold=chosen.pixel_threshold,
                image_threshold=chosen.image_threshold,
            )
        )
        states, names, batched = [carried for _, carried in after], given[1:], next_batched
    return entries


def _place(value: Tensor) -> tuple[object, ...]:
    return value.data_ptr(), value.shape, value.stride()


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
    expected = module(*inputs)
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
