"""Pictures for benchmarks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import mess_core


def resized(picture: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A picture (H, W, 3) at the size (h, w) of a network, as its input has it."""
    values = mess_core.network_input(picture, mean=(0, 0, 0), std=(1 / 255,) * 3, size=size)
    return np.ascontiguousarray(values.transpose(1, 2, 0), dtype=np.uint8)
