"""A deployment as files: one ONNX file a stage and a head, and a manifest (`mess.runtime.manifest`).

Nothing is trusted: before the folder gets its name each file is loaded again by ONNX Runtime and compared with its part
of the network (`mess.model.onnx_file`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mess.deployment.network import DeployedNetwork
from mess.files import expect_replaceable, file_sha256, json_text, palette_of, whole_folder, write_json
from mess.model.graph import GraphStages
from mess.model.onnx_file import exporting, write_head, write_stages
from mess.model.split import probe_sizes
from mess.runtime.manifest import FILE, FORMAT, Manifest, StageFiles, check_normalisation


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
        deployed: from `mess.deploy`, with stages that are graphs; on another device than the CPU, a copy is written.
        out: a new folder, an empty one, or an earlier export, which is replaced.
        class_names: of the C classes, in order.
        palette: C colours (r, g, b), 0..255.
        mean, std: what images are normalised with, of values in 0..1; those of `deployed` by default.
        facts: what calibration measured, kept in the manifest.

    Raises:
        ValueError: `out` holds something else; `class_names` or `palette` is of another length than the logits or of
            another kind; `mean` or `std` is no three numbers in range; `facts` holds what JSON cannot say.
        RuntimeError: the model cannot be exported, `onnx`, `onnxscript` or `onnxruntime` is missing, or the files give
            other numbers than the network (more than 1e-4 of the largest, or of 1, apart).
    """
    folder = Path(out)
    expect_replaceable(folder, FILE, FORMAT, lambda manifest: manifest.get("files") or ())
    stages = deployed.stages
    if not isinstance(stages, GraphStages):
        raise RuntimeError(
            f"model: expected stages that are graphs, got {stages.backend}, which have no ONNX file; "
            "mess.deploy(..., backend='graph') makes graphs, or says what torch.export cannot follow"
        )
    if deployed.in_channels != 3:
        raise ValueError(
            f"deployed: expected a network of RGB images, which the runtime reads, got {deployed.in_channels} channels"
        )
    parameter = next(deployed.parameters())
    if parameter.dtype != torch.float32:
        raise ValueError(f"deployed: expected a float32 network, got {parameter.dtype}")
    if parameter.device.type != "cpu":  # where products may be rounded (TF32), and the comparison would fail
        deployed = copy.deepcopy(deployed).cpu()
        stages = deployed.stages
        assert isinstance(stages, GraphStages)
    names, colours = tuple(class_names), palette_of(palette)
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names: expected a name for each class, got {list(names)}")
    facts = dict(facts or {})
    try:
        json_text(facts)
    except (TypeError, ValueError) as error:
        raise ValueError(f"facts: expected what JSON can say: {error}") from None
    if len(colours) not in (0, len(names)):
        raise ValueError(f"palette: expected a colour for each of {len(names)} classes, got {len(colours)}")
    mean = tuple(map(float, deployed.mean if mean is None else mean))
    std = tuple(map(float, deployed.std if std is None else std))
    check_normalisation(mean, std)
    with whole_folder(folder, last=FILE) as temporary:
        generator = torch.Generator("cpu").manual_seed(0)
        probes = [torch.randn(2, 3, *size, generator=generator, device="cpu") for size in probe_sizes(stages)]
        with exporting():
            entries = _write_exits(deployed, stages, probes, temporary, num_classes=len(names))
        files = {p.name: {"sha256": file_sha256(p), "bytes": p.stat().st_size} for p in sorted(temporary.iterdir())}
        manifest = Manifest(
            setting=deployed.configuration.setting,
            classes=names,
            palette=colours,
            size=stages.input_size,
            size_step=stages.size_step,
            mean=mean,
            std=std,
            policy=asdict(deployed.configuration.policy),
            exits=tuple(entries),
            promise=dict(deployed.configuration.promise),
            facts=facts,
            files=files,
        )
        write_json(temporary / FILE, manifest.to_json())
        Manifest.load(temporary)
    return manifest


def _write_exits(
    deployed: DeployedNetwork, stages: GraphStages, probes: Sequence[Tensor], folder: Path, *, num_classes: int
) -> list[StageFiles]:
    """ONNX files of every stage and head."""
    entries = []
    configuration = deployed.configuration
    written = write_stages(stages, len(configuration.exits), probes, folder)
    for position, (chosen, stage) in enumerate(zip(configuration.exits, written, strict=True)):
        head, stride = None, 1
        if position < len(deployed.strides):
            head, stride = f"head-{position}.onnx", deployed.strides[position]
            write_head(deployed.heads[position], stage.features, folder / head)
        logits = deployed.heads[position](stage.features[0])
        if logits.shape[1] != num_classes:
            raise ValueError(f"class_names: expected {logits.shape[1]}, one a class, got {num_classes}")
        entries.append(
            StageFiles(
                name=chosen.exit,
                stage=stage.path.name,
                inputs=stage.inputs,
                outputs=stage.outputs,
                feature=stage.feature,
                carried=stage.carried,
                head=head,
                output_stride=stride,
                pixel_threshold=chosen.pixel_threshold,
                image_threshold=chosen.image_threshold,
            )
        )
    return entries
