"""The one seam between tensors and `mess_core`: logits on any device -> confidences on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import mess_core
from mess import device_confidence
from mess.policy import PolicySettings

Size = tuple[int, int]
"""(height, width) in pixels."""


def image_confidence(
    logits: Tensor, *, size: Size, pixel_threshold: float, output_stride: int, policy: PolicySettings
) -> npt.NDArray[np.float64]:
    """Image confidence (B,) at `size` of a head's own logits (B, C, h, w), on the host.

    CPU float32 logits are read in place, and the upsampling is part of the kernel: no full-size map is made. On other
    devices torch does the same there (`mess.device_confidence`), and the B numbers are all that is copied.
    """
    if logits.device.type not in ("cpu", "meta"):
        counts = device_confidence.confident_pixels(
            logits, size=size, pixel_threshold=pixel_threshold, output_stride=output_stride, policy=policy
        )
        return np.asarray(counts.cpu().numpy() / (size[0] * size[1]), dtype=np.float64)
    values = mess_core.image_confidence(
        host_array(logits),
        pixel_threshold=pixel_threshold,
        output_stride=output_stride,
        refine=policy.refine,
        edges=policy.edges,
        confidence=policy.confidence,
        size=_upsampling(logits, size),
    )
    assert isinstance(values, np.ndarray)
    return values


def label_map(logits: Tensor, *, size: Size) -> npt.NDArray[np.integer]:
    """Label map (H, W) of one image's own logits (C, h, w), upsampled to `size` on the way."""
    return mess_core.label_map(host_array(logits), size=_upsampling(logits, size))


def labels_and_confidences(
    logits: Tensor, *, size: Size, pixel_thresholds: Sequence[float], output_stride: int, policy: PolicySettings
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.float64]]:
    """Label map (H, W) of one image's own logits (C, h, w), and its image confidence (T,) at each threshold.

    Both as `label_map` and `image_confidence` have them, exactly.

    Raises:
        ValueError: logits whose softmax is undefined somewhere: a network that gives NaN cannot be calibrated.
    """
    confidence, labels = mess_core.confidence_map(
        host_array(logits), kind=policy.confidence, size=_upsampling(logits, size)
    )
    if np.isnan(confidence).any():
        row, column = np.argwhere(np.isnan(confidence))[0]
        raise ValueError(f"logits: expected numbers, got NaN or +inf at row {row}, column {column}")
    values = mess_core.image_confidence_from_map(
        confidence,
        labels,
        pixel_threshold=np.asarray(pixel_thresholds, dtype=np.float64),
        output_stride=output_stride,
        refine=policy.refine,
        edges=policy.edges,
    )
    assert isinstance(values, np.ndarray)
    return labels, values


def _upsampling(logits: Tensor, size: Size) -> Size | None:
    """What `mess_core` is asked for: nothing where the logits have the size already."""
    return None if tuple(logits.shape[-2:]) == tuple(size) else (int(size[0]), int(size[1]))


def host_array(logits: Tensor) -> npt.NDArray[np.float32]:
    """`logits` as a float32 array on the host; no copy for CPU float32."""
    array: npt.NDArray[np.float32] = logits.detach().to(device="cpu", dtype=torch.float32).numpy()
    return array
