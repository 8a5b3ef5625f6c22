"""What every dataset offers: uint8 images, uint8 label maps, class names, a palette."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

IGNORE_INDEX = 255
"""Label value left out of every loss and every metric."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""What pixels, as values in 0..1, are normalised with: less the mean, divided by the deviation, channel by channel."""


class SegmentationDataset(ABC):
    """A finite, indexable set of (image, label map) pairs.

    `class_names` has one entry a class; `palette` is (num_classes, 3) uint8 RGB. Label maps hold
    `0 .. num_classes - 1`, or `IGNORE_INDEX` where a pixel counts for nothing.
    """

    name: str
    class_names: tuple[str, ...]
    palette: np.ndarray

    @property
    def num_classes(self) -> int:
        """Number of classes, the ignore label not counted."""
        return len(self.class_names)

    @abstractmethod
    def __len__(self) -> int:
        """Number of pairs."""

    @abstractmethod
    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 RGB and label map (H, W) uint8 of one example."""

    def check(self) -> list[str]:
        """Look at every pair; one line a problem, empty when all is well."""
        return []

    @abstractmethod
    def identity(self, index: int) -> str:
        """A stable, readable name of one example, used in reports and error messages."""


def default_palette(num_classes: int) -> np.ndarray:
    """(num_classes, 3) uint8 colours: matplotlib's tab10 order, repeated when there are more."""
    tab10 = [
        (31, 119, 180),
        (255, 127, 14),
        (44, 160, 44),
        (214, 39, 40),
        (148, 103, 189),
        (140, 86, 75),
        (227, 119, 194),
        (127, 127, 127),
        (188, 189, 34),
        (23, 190, 207),
    ]
    return np.array([tab10[i % len(tab10)] for i in range(num_classes)], dtype=np.uint8)


def check_labels(labels: Any, num_classes: int) -> None:
    """ValueError unless `labels`, a 1-D array or tensor without ignored ones, are all 0..num_classes - 1; and for more
    classes than there are labels."""
    if num_classes > IGNORE_INDEX:
        raise ValueError(
            f"labels: expected at most {IGNORE_INDEX} classes, since {IGNORE_INDEX} is ignored, got {num_classes}"
        )
    if len(labels):
        low, high = int(labels.min()), int(labels.max())
        if not 0 <= low <= high < num_classes:
            raise ValueError(f"labels: expected 0..{num_classes - 1} or {IGNORE_INDEX}, got {low}..{high}")
