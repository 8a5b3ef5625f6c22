"""From the network's label map back to the picture's size."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Label = TypeVar("Label", bound="np.integer[Any]")


def labels_at(labels: npt.NDArray[Label], size: tuple[int, int]) -> npt.NDArray[Label]:
    """Label map (h, w) at another size: the nearest pixel's label."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * (old / new)).astype(np.int64), old - 1)
        for old, new in zip(labels.shape, size, strict=True)
    )
    nearest: npt.NDArray[Label] = labels[:, columns][rows]  # whole rows are copied
    return nearest
