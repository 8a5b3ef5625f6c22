"""One HTML file that opens offline: where the work is, accuracy against cost, thresholds to play with, sample images.

Charts are plotly's; the page (`report.html`, `report.css`, `report.js`) computes with the calibration tables, which are
embedded as far as the configurations need them.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from PIL import Image

import mess_core
from mess.calibration.table import CalibrationTable
from mess.deployment.configuration import Configuration
from mess.exit_names import FINAL_EXIT
from mess.files import write_whole
from mess.model.network import MultiExitNetwork
from mess.policy import PolicySettings
from mess.reporting.figures import label_picture
from mess.reporting.samples import Sample


def write_report(
    path: Path,
    *,
    title: str,
    network: MultiExitNetwork,
    tables: Mapping[str, CalibrationTable],
    named: Mapping[str, Configuration],
    front: Sequence[Configuration],
    cost: str,
    samples: Sequence[Sample],
    palette: npt.NDArray[np.uint8],
    policy: PolicySettings,
) -> None:
    """Write the page, whole or not at all.

    Args:
        tables: by split, the one that was searched first.
        named, front: input-dependent and budgeted configurations on those tables.
        cost: column of the tables.

    Raises:
        RuntimeError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise RuntimeError(f"report: expected plotly to be installed: {error}; pip install 'mess[report]'") from None
    configurations = [
        *({"name": n, **_plain(c)} for n, c in named.items()),
        *({"name": "", **_plain(c)} for c in front),
    ]
    used = {entry["exit"] for configuration in configurations for entry in configuration["exits"]}
    searched = next(iter(tables.values()))
    exits = [name for name in searched.exits if name in used or name == FINAL_EXIT]
    data = {
        "title": title,
        "cost": cost,
        "classes": searched.class_names,
        "palette": palette.tolist(),
        "pixelThresholds": searched.pixel_thresholds,
        "exits": exits,
        "workload": _workload(network),
        "tables": {split: _table(table, exits, cost) for split, table in tables.items()},
        "configurations": configurations,
        "samples": [_sample(sample, palette, policy) for sample in samples],
        "isRefined": policy.refine,
        "facts": {key: value for key, value in searched.facts.items() if isinstance(value, str | int | float)},
        "version": mess_core.build_info()["version"],
    }
    parts = {
        "STYLE": _asset("report.css"),
        "PLOTLY": get_plotlyjs(),
        "DATA": json.dumps(data).replace("<", "\\u003c"),  # so that no text in it ends the script element
        "SCRIPT": _asset("report.js"),
    }
    page = re.sub(r"/\*([A-Z]+)\*/", lambda place: parts[place[1]], _asset("report.html"))
    write_whole(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def _asset(name: str) -> str:
    return resources.files("mess.reporting").joinpath(name).read_text(encoding="utf-8")


def _plain(configuration: Configuration) -> dict[str, Any]:
    return {"setting": configuration.setting, "exits": [asdict(chosen) for chosen in configuration.exits]}


def _workload(network: MultiExitNetwork) -> dict[str, Any]:
    workload = network.workload
    at = {(layer.name, layer.call): i for i, layer in enumerate(workload.layers)}
    return {
        "unit": workload.unit,
        "total": workload.total,
        "layers": [layer.name for layer in workload.layers],
        "shares": [layer.end / workload.total for layer in workload.layers],
        "points": [
            {"name": point.name, "at": at[point.module, point.call], "share": point.share} for point in network.points
        ],
    }


def _table(table: CalibrationTable, exits: Sequence[str], cost: str) -> dict[str, Any]:
    rows = [table.exits.index(name) for name in exits]
    return {
        "images": len(table.images),
        "costs": {part: table.costs[cost][part][rows].tolist() for part in ("backbone", "head", "policy")},
        "truth": _packed(table.ground_truth, np.int32),
        "intersection": [_packed(table.intersection[row], np.int32) for row in rows],
        "predicted": [_packed(table.predicted[row], np.int32) for row in rows],
        "confidence": [_packed(table.image_confidence[row], np.float64) for row in rows],
        "singles": [
            {"exit": name, "accuracy": table.mean_iou(i), "cost": table.total_cost(i, cost)}
            for i, name in enumerate(table.exits)
        ],
    }


def _packed(values: npt.NDArray[Any], dtype: type) -> str:
    """Base64 of the numbers, little-endian and in C order: what a typed array of JavaScript takes."""
    return base64.b64encode(np.ascontiguousarray(values, dtype=np.dtype(dtype).newbyteorder("<")).tobytes()).decode()


def _sample(sample: Sample, palette: npt.NDArray[np.uint8], policy: PolicySettings) -> dict[str, Any]:
    gates = []
    for gate in sample.gates:
        told: dict[str, Any] = {"exit": gate.exit, "labels": _png(label_picture(gate.maps.labels, palette))}
        if gate.pixel_threshold is not None:
            refined = gate.maps.refined if policy.refine else gate.maps.confidence
            value = float((refined >= np.float32(gate.pixel_threshold)).mean())
            told |= {
                "confidence": _png(_heat(gate.maps.confidence)),
                "mask": _png(np.where(gate.maps.mask, np.uint8(255), np.uint8(0))),
                "refined": _png(_heat(refined)),
                "pixelThreshold": gate.pixel_threshold,
                "imageThreshold": gate.image_threshold,
                "value": value,
            }
        gates.append(told)
    return {
        "kind": sample.kind,
        "name": sample.name,
        "picture": _png(sample.picture),
        "truth": _png(label_picture(sample.truth, palette)),
        "gates": gates,
    }


def _heat(confidence: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """A confidence map (H, W) in 0..1 as RGB (H, W, 3), dark to bright (viridis)."""
    colours: npt.NDArray[np.uint8] = mpl.colormaps["viridis"](np.nan_to_num(confidence), bytes=True)[..., :3]
    return colours


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
