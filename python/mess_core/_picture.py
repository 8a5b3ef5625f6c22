"""What a network is fed: resized, scaled to 0..1, normalised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mess_core import _mess_core as native
from mess_core._arrays import as_array, as_output, as_size


def network_input(
    image: Any,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    size: tuple[int, int] | None = None,
    out: npt.NDArray[np.float32] | None = None,
) -> npt.NDArray[np.float32]:
    """(values / 255 - mean) / std of an image at `size`, channels first.

    Resizing is bilinear with antialiasing in the integers of PyTorch's uint8 kernel, so its values are those of
    `torchvision.transforms.v2.functional.resize(..., antialias=True)` on a uint8 tensor, bit for bit where torchvision
    has AVX2; elsewhere it is off by one grey level here and there.

    Parameters
    ----------
    image : (H, W, 3) uint8
        An array, or a DLPack producer such as a torch tensor; RGB, where `mean` and `std` are; any strides
        (`image[..., ::-1]` of OpenCV's BGR is read where it lies).
    mean, std : three numbers
        Of the channels' values in 0..1.
    size : (h, w), optional
        Its own by default.
    out : (3, h, w) float32, optional
        C-contiguous array to write into and return.

    Returns
    -------
    (3, h, w) float32

    Raises
    ------
    TypeError
        No array; a size of other than two integers; numbers that are none.
    ValueError
        Another shape or dtype; an empty image or size; a `mean` outside -1e6..1e6, a `std` outside
        1e-6..1e6; an `out` that does not fit.
    """
    if not isinstance(image, np.ndarray) and not hasattr(image, "__dlpack__"):
        raise TypeError(f"image: expected a NumPy array (H, W, 3) uint8 RGB, got {type(image).__name__}")
    image = as_array("image", image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"image: expected (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    height, width = as_size("size", size) or image.shape[:2]
    result = as_output("out", out, (3, height, width), np.float32)
    native.network_input(image, _three("mean", mean), _three("std", std), result)
    return result


def _three(argument: str, value: Sequence[float]) -> tuple[float, float, float]:
    try:
        first, second, third = (float(number) for number in np.asarray(value, dtype=np.float64).tolist())
    except (TypeError, ValueError):
        raise TypeError(f"{argument}: expected three numbers, got {value!r}") from None
    return first, second, third
