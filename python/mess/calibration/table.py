"""The calibration table: what one pass over a labelled split measured. The search runs on it and on nothing else.

File format, version 2: one safetensors file. Tensors, with E exits (the final one last), n images, C classes, T pixel
thresholds: `intersection` and `predicted` (E, n, C) int64, `ground_truth` (n, C) int64, `disagreement` (E, n) int64,
`image_confidence` (E, T, n) float64, `points` (E,) int64, and for every cost column `<column>.backbone`,
`<column>.head`, `<column>.policy` (E,) float64. The header's `mess` entry is JSON: version, names and settings.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mess.exit_names import FINAL_EXIT
from mess.files import check_version, entries, entry, height_and_width, map_safetensors, write_safetensors
from mess.policy import PolicySettings
from mess_core import SearchTable

if TYPE_CHECKING:
    from mess.model.network import MultiExitNetwork

VERSION = 2
COST_PARTS = ("backbone", "head", "policy")

Costs = dict[str, npt.NDArray[np.float64]]
"""`backbone`, `head` and `policy` cost of every exit, each (E,)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationTable:
    """Exact per-image counts, image confidences and costs of every candidate exit.

    Attributes:
        exits: names, `<point>:<head>` and last `final`, the original model.
        points: (E,) index of the exit point; the final exit's is the number of points.
        images: names of the n images.
        class_names: of the C classes.
        pixel_thresholds: the T of them.
        intersection, predicted: (E, n, C) int64.
        ground_truth: (n, C) int64.
        image_confidence: (E, T, n) float64.
        disagreement: (E, n) int64, of all pixels of an image those that an exit labels otherwise than the final exit
            does.
        costs: for one image `macs` (multiply-accumulates), `latency_ms` (in torch), `onnxruntime_ms`, `openvino_ms`;
            `size_mb` (ONNX files, 1e6 bytes); those that were measured, see `Costs`.
        policy: how image confidence was computed.
        input_size: (height, width) in pixels.
        model: names of the exit points' modules, in order.
        facts: where and how it was measured (split, device, threads, plain model's latency, ...).
    """

    exits: tuple[str, ...]
    points: npt.NDArray[np.int64]
    images: tuple[str, ...]
    class_names: tuple[str, ...]
    pixel_thresholds: tuple[float, ...]
    intersection: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    ground_truth: npt.NDArray[np.int64]
    disagreement: npt.NDArray[np.int64]
    image_confidence: npt.NDArray[np.float64]
    costs: dict[str, Costs]
    policy: PolicySettings
    input_size: tuple[int, int]
    model: tuple[str, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check shapes against each other, and types. `mess_core` checks numbers when they are searched.

        Raises:
            ValueError: names the entry, what was expected and what came.
        """
        e, n, c, t = len(self.exits), len(self.images), len(self.class_names), len(self.pixel_thresholds)
        expected = {
            "points": (e,),
            "intersection": (e, n, c),
            "predicted": (e, n, c),
            "ground_truth": (n, c),
            "disagreement": (e, n),
            "image_confidence": (e, t, n),
        }
        shapes = {name: getattr(self, name).shape for name in expected}
        for column, costs in self.costs.items():
            for part in COST_PARTS:
                expected[f"{column}.{part}"] = (e,)
                shapes[f"{column}.{part}"] = costs[part].shape if part in costs else None
        for name, shape in expected.items():
            if shapes[name] != shape:
                raise ValueError(f"table: {name}: expected shape {shape}, got {shapes[name]}")
        for name in expected:
            column, _, part = name.rpartition(".")
            array = self.costs[column][part] if column else getattr(self, name)
            wanted = np.float64 if column or name == "image_confidence" else np.int64
            if array.dtype != wanted:
                raise ValueError(f"table: {name}: expected {np.dtype(wanted)}, got {array.dtype}")
        if not all(0 <= threshold <= 1 for threshold in self.pixel_thresholds):
            raise ValueError(f"table: pixel_thresholds: expected numbers in 0..1, got {self.pixel_thresholds}")
        if not self.exits or self.exits[-1] != FINAL_EXIT:
            raise ValueError(f"table: exits: expected the last one to be {FINAL_EXIT!r}, got {self.exits[-1:]}")

    def search_table(self, *costs: str) -> SearchTable:
        """The arrays that `mess_core.search` takes, with these cost columns, in their order."""
        for cost in costs:
            if cost not in self.costs:
                raise ValueError(
                    f"cost: expected one of {sorted(self.costs)}, which were calibrated, got {cost!r} "
                    "(latency_ms needs latency_rounds above 0, onnxruntime_ms, openvino_ms and size_mb a back end)"
                )
        columns = {part: np.stack([self.costs[cost][part] for cost in costs]) for part in COST_PARTS}
        return SearchTable(
            intersection=self.intersection,
            predicted=self.predicted,
            ground_truth=self.ground_truth,
            image_confidence=self.image_confidence,
            points=self.points,
            backbone_cost=columns["backbone"],
            head_cost=columns["head"],
            policy_cost=columns["policy"],
        )

    def select(self, images: npt.NDArray[np.int64]) -> CalibrationTable:
        """The table of some of the images, by index."""
        return replace(
            self,
            images=tuple(self.images[i] for i in images),
            intersection=self.intersection[:, images],
            predicted=self.predicted[:, images],
            ground_truth=self.ground_truth[images],
            disagreement=self.disagreement[:, images],
            image_confidence=self.image_confidence[:, :, images],
        )

    def iou(self, exit_index: int) -> npt.NDArray[np.float64]:
        """(C,) dataset IoU of one exit: sum over images, then divide; NaN for classes without ground truth."""
        intersection = self.intersection[exit_index].sum(axis=0)
        truth = self.ground_truth.sum(axis=0)
        union = truth + self.predicted[exit_index].sum(axis=0) - intersection
        return np.where(truth > 0, intersection / np.maximum(union, 1), np.nan)

    def mean_iou(self, exit_index: int) -> float:
        """Mean of `iou` over classes with ground truth."""
        return float(np.nanmean(self.iou(exit_index)))

    def total_cost(self, exit_index: int, cost: str) -> float:
        """Backbone and head of one exit, as if it were the only one."""
        return float(self.costs[cost]["backbone"][exit_index] + self.costs[cost]["head"][exit_index])

    def check_fits(self, network: MultiExitNetwork) -> None:
        """ValueError unless the table was made by a network with these exit points and heads."""
        points = tuple(point.name for point in network.points)
        exits = (*(exit_id.name for exit_id in network.exits), FINAL_EXIT)
        if points != self.model or exits != self.exits:
            raise ValueError(
                f"table: made by a network with exit points {self.model} and {len(self.exits)} exits; "
                f"this one has {points} and {len(exits)}"
            )

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all."""
        tensors = {
            "points": self.points,
            "intersection": self.intersection,
            "predicted": self.predicted,
            "ground_truth": self.ground_truth,
            "disagreement": self.disagreement,
            "image_confidence": self.image_confidence,
        }
        for column, costs in self.costs.items():
            tensors |= {f"{column}.{part}": costs[part] for part in COST_PARTS}
        header = {
            "version": VERSION,
            "exits": self.exits,
            "images": self.images,
            "class_names": self.class_names,
            "pixel_thresholds": self.pixel_thresholds,
            "cost_columns": list(self.costs),
            "policy": asdict(self.policy),
            "input_size": self.input_size,
            "model": self.model,
            "facts": self.facts,
        }
        contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
        write_safetensors(Path(path), contiguous, header)

    @classmethod
    def load(cls, path: str | Path) -> CalibrationTable:
        """Map and validate a file: its arrays are read-only views of the file, not copies.

        Raises:
            FileNotFoundError: no such file.
            ValueError: truncated or foreign file, another version, entries that contradict each other.
        """
        tensors, found = map_safetensors(Path(path), "table")
        header = check_version(found, VERSION, "table", Path(path))
        try:
            columns = entries(header, "cost_columns", str, "names of cost columns")
            return cls(
                exits=entries(header, "exits", str, "names of exits"),
                images=entries(header, "images", str, "names of images"),
                class_names=entries(header, "class_names", str, "names of classes"),
                pixel_thresholds=entries(header, "pixel_thresholds", (int, float), "numbers"),
                costs={column: {part: tensors.pop(f"{column}.{part}") for part in COST_PARTS} for column in columns},
                policy=PolicySettings(**entry(header, "policy", dict, "a policy")),
                input_size=height_and_width(header, "input_size"),
                model=entries(header, "model", str, "names of modules"),
                facts=entry(header, "facts", dict, "an object"),
                **tensors,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"table: {path}: an entry is missing, unknown or off: {error}") from None
