"""One pass of every candidate exit over a labelled split."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence, Sized
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mess.calibration.latency import measure_latency
from mess.calibration.table import CalibrationTable, Costs
from mess.confidence import PolicySettings, label_map, labels_and_confidences
from mess.data.dataset import IGNORE_INDEX, check_labels
from mess.model.adapter import evaluating
from mess.model.cost import count_macs, profile
from mess.model.network import FINAL_EXIT, MultiExitNetwork
from mess.progress import progress

PIXEL_THRESHOLDS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)


def calibrate(
    network: MultiExitNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    class_names: Sequence[str] | None = None,
    image_names: Sequence[str] | None = None,
    pixel_thresholds: Sequence[float] = PIXEL_THRESHOLDS,
    policy: PolicySettings | None = None,
    latency_rounds: int = 15,
    facts: dict[str, Any] | None = None,
) -> CalibrationTable:
    """Run every exit on every image and keep what the search needs.

    Args:
        network: a trained multi-exit network; it is run in eval mode and left in the mode it was in.
        batches: (images (B, 3, H, W) float, labels (B, H, W) int64 with 255 ignored), in a fixed order, one size.
        class_names: C of them; numbers by default.
        image_names: one an image; numbers by default.
        pixel_thresholds: in [0, 1]; image confidence is computed at each.
        policy: how image confidence is computed.
        latency_rounds: rounds of the latency measurement; 0 leaves the `latency_ms` column out.
        facts: anything worth keeping with the table.

    Returns:
        The table, with costs `macs` and `latency_ms`.

    Raises:
        ValueError: no batch, sizes that differ, labels outside the classes, thresholds outside [0, 1].
    """
    if not pixel_thresholds or not all(0 <= t <= 1 for t in pixel_thresholds):
        raise ValueError(f"pixel_thresholds: expected numbers in [0, 1], got {list(pixel_thresholds)}")
    settings = policy or PolicySettings()
    device = next(network.parameters()).device
    strides = [network.points[e.point].output_stride for e in network.exits]
    rows: list[_Row] = []
    input_size: tuple[int, int] | None = None
    total = len(batches) if isinstance(batches, Sized) else 0
    costs: dict[str, Costs] = {}
    known: dict[str, Any] = {"device": str(device), "machine": platform.machine(), "torch": torch.__version__}
    with evaluating(network), progress("calibrate", total) as advance:
        for images, labels in batches:
            size = (images.shape[2], images.shape[3])
            if input_size not in (None, size) or tuple(labels.shape) != (images.shape[0], *size):
                raise ValueError(
                    f"batches: expected images and labels of size {input_size or size}, got {size} and "
                    f"{tuple(labels.shape[1:])}"
                )
            if input_size is None:  # costs first: what cannot be measured is said before the long part
                input_size = size
                costs["macs"] = mac_costs(network, size)
                if latency_rounds:
                    costs["latency_ms"], plain = measure_latency(
                        network, input_size=size, policy=settings, rounds=latency_rounds
                    )
                    known |= {"plain_latency_ms": plain, "latency_rounds": latency_rounds}
                    known |= {"threads": torch.get_num_threads()}
            final, features = network.features(images.to(device))
            every = [*network.exit_logits(features, network.exits).values(), final]
            final_labels = [label_map(image, size=size) for image in final]
            truth = labels.cpu().numpy()
            rows += [_Row(network.num_classes, truth[i]) for i in range(len(truth))]
            for stride, logits in zip([*strides, 1], every, strict=True):
                for i, row in enumerate(rows[-len(truth) :]):
                    predicted, confidences = labels_and_confidences(
                        logits[i],
                        size=size,
                        pixel_thresholds=pixel_thresholds,
                        output_stride=stride,
                        policy=settings,
                    )
                    row.add(predicted, confidences, differs=int((predicted != final_labels[i]).sum()))
            advance()
    if input_size is None:
        raise ValueError("batches: expected at least one batch, got none")
    return CalibrationTable(
        exits=(*(e.name for e in network.exits), FINAL_EXIT),
        points=np.array([*(e.point for e in network.exits), len(network.points)], dtype=np.int64),
        images=tuple(image_names or (str(i) for i in range(len(rows)))),
        class_names=tuple(class_names or (str(i) for i in range(network.num_classes))),
        pixel_thresholds=tuple(float(t) for t in pixel_thresholds),
        intersection=np.stack([row.intersection for row in rows], axis=1),
        predicted=np.stack([row.predicted for row in rows], axis=1),
        ground_truth=np.stack([row.ground_truth for row in rows]),
        disagreement=np.stack([row.disagreement for row in rows], axis=1),
        image_confidence=np.stack([row.confidence for row in rows], axis=2),
        costs=costs,
        policy=settings,
        input_size=input_size,
        model=tuple(point.name for point in network.points),
        facts=known | (facts or {}),
    )


def mac_costs(network: MultiExitNetwork, input_size: tuple[int, int]) -> Costs:
    """Multiply-accumulates of every exit for one image; the policy has none (no convolution, no matrix product)."""
    example = network.example(input_size)
    workload = profile(network.net, example)
    at = {(layer.name, layer.call): layer for layer in workload.layers}
    reached = [at[point.module, point.call] for point in network.points]
    heads = []
    for exit_id in network.exits:
        shape = reached[exit_id.point].feature
        assert shape is not None
        heads.append(float(count_macs(network.head(exit_id), example.new_zeros(1, *shape))))
    return {
        "backbone": np.array([*(reached[e.point].end for e in network.exits), workload.total]),
        "head": np.array([*heads, 0.0]),
        "policy": np.zeros(len(heads) + 1),
    }


class _Row:
    """What is kept of one image: (E, C) counts, (E,) disagreement and (E, T) confidences, filled exit by exit."""

    def __init__(self, num_classes: int, truth: npt.NDArray[np.int64]) -> None:
        self._num_classes = num_classes
        self._truth = truth
        self._valid = truth != IGNORE_INDEX
        check_labels(truth[self._valid], num_classes)
        self.ground_truth = self._count(truth[self._valid])
        self._parts: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []
        self._differs: list[int] = []

    def add(self, predicted: npt.NDArray[np.integer], confidence: npt.NDArray[np.float64], *, differs: int) -> None:
        agreed = predicted[self._valid & (predicted == self._truth)]
        self._parts.append((self._count(agreed), self._count(predicted[self._valid]), confidence))
        self._differs.append(differs)

    @property
    def disagreement(self) -> npt.NDArray[np.int64]:
        return np.array(self._differs, dtype=np.int64)

    @property
    def intersection(self) -> npt.NDArray[np.int64]:
        return np.stack([part[0] for part in self._parts])

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        return np.stack([part[1] for part in self._parts])

    @property
    def confidence(self) -> npt.NDArray[np.float64]:
        return np.stack([part[2] for part in self._parts])

    def _count(self, labels: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        return np.bincount(labels.astype(np.int64), minlength=self._num_classes)
