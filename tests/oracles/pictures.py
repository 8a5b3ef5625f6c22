"""What a network is fed, in floating point: the triangle filter as its definition says it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Size = tuple[int, int]
"""(height, width) in pixels."""


def network_input(
    image: npt.NDArray[np.uint8], size: Size, mean: tuple[float, ...], std: tuple[float, ...]
) -> npt.NDArray[np.float32]:
    """RGB image (H, W, 3) uint8 -> (3, h, w) float32, resized, scaled to 0..1 and normalised."""
    scale = np.asarray([255 * s for s in std], dtype=np.float32)
    shift = np.asarray([m / s for m, s in zip(mean, std, strict=True)], dtype=np.float32)
    return np.ascontiguousarray((resized(image, size) / scale - shift).transpose(2, 0, 1), dtype=np.float32)


def resized(image: npt.NDArray[np.uint8], size: Size) -> npt.NDArray[np.uint8]:
    """Bilinear with antialiasing, as Pillow and torchvision do it: the triangle filter widens when shrinking.

    Within one grey level of torchvision's, which works in integers.
    """
    result = image
    for axis, length in ((1, size[1]), (0, size[0])):  # each is rounded, and this is their order
        if result.shape[axis] != length:
            weights = _triangle_weights(result.shape[axis], length)
            lines = np.tensordot(weights, result.astype(np.float32), axes=(1, axis))
            halves_up = np.floor(np.moveaxis(lines, 0, axis) + np.float32(0.5 + 1e-4))  # ties are common: 1/4 + 3/4
            result = np.clip(halves_up, 0, 255).astype(np.uint8)
    return result


def _triangle_weights(old: int, new: int) -> npt.NDArray[np.float32]:
    """(new, old): the share that every old pixel has in a new one."""
    scale = old / new
    reach = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    distance = np.abs(np.arange(old)[None, :] + 0.5 - centres[:, None]) / reach
    weights = np.maximum(0.0, 1.0 - distance)
    normal: npt.NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normal
