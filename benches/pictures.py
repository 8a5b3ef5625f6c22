"""Pictures for benchmarks."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

import mess_core
from mess.runtime.pixels import labels_at

Labels = npt.NDArray[np.integer]


def resized(picture: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A picture (H, W, 3) at the size (h, w) of a network, as its input has it."""
    values = mess_core.network_input(picture, mean=(0, 0, 0), std=(1 / 255,) * 3, size=size)
    return np.ascontiguousarray(values.transpose(1, 2, 0), dtype=np.uint8)


def mean_iou(pairs: Iterable[tuple[Labels, Labels]], num_classes: int) -> float:
    """Mean IoU of (label map, ground truth) pairs, sum then divide; other values of the ground truth are ignored."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    for predicted, truth in pairs:
        predicted = labels_at(predicted, truth.shape) if predicted.shape != truth.shape else predicted
        valid = truth < num_classes
        cells = num_classes * truth[valid].astype(np.int64) + predicted[valid]
        counts += np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)
    right, there = np.diag(counts), counts.sum(axis=1)
    return float((right[there > 0] / (there + counts.sum(axis=0) - right)[there > 0]).mean())
