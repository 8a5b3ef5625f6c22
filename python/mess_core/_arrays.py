"""Conversion of whatever the user brings to the few dtypes the native module takes; the only place that copies."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_LABELS = 1 << 16


def as_float32(argument: str, value: npt.ArrayLike, *, ndims: tuple[int, ...], axes: str) -> npt.NDArray[np.float32]:
    """`value` as aligned float32 of one of `ndims` dimensions; no copy when it is that, whatever its strides."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(f"{argument}: expected numbers (float32 is used without a copy), got dtype {array.dtype}")
    if array.ndim not in ndims:
        raise ValueError(f"{argument}: expected shape {axes}, got {array.shape}")
    return np.require(array, np.float32, ["ALIGNED"])


def as_mask(argument: str, value: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """`value` as bool (H, W); uint8 is accepted, nonzero meaning true (OpenCV's masks), and copied."""
    array = np.asarray(value)
    if array.dtype.kind != "b" and array.dtype != np.uint8:
        raise TypeError(f"{argument}: expected bool, or uint8 with nonzero meaning true, got dtype {array.dtype}")
    if array.ndim != 2:
        raise ValueError(f"{argument}: expected shape (H, W), got {array.shape}")
    return np.require(array, np.bool_, ["ALIGNED"])


def as_labels(argument: str, value: npt.ArrayLike) -> npt.NDArray[Any]:
    """`value` as uint8 or int32 (H, W); those two are not copied. Values must be 0..65535."""
    array = np.asarray(value)
    if array.dtype.kind not in "iub":
        raise TypeError(f"{argument}: expected integer class indices, got dtype {array.dtype}")
    if array.ndim != 2:
        raise ValueError(f"{argument}: expected shape (H, W), got {array.shape}")
    if array.dtype.kind == "b" or array.dtype == np.uint8:
        return np.require(array, np.uint8, ["ALIGNED"])
    if array.size and array.dtype != np.int32:
        low, high = array.min(), array.max()
        if low < 0 or high >= MAX_LABELS:  # before the cast, which would wrap
            raise ValueError(f"{argument}: expected class indices 0..{MAX_LABELS - 1}, got {low}..{high}")
    return np.require(array, np.int32, ["ALIGNED"])


def as_size(argument: str, value: tuple[int, int] | None) -> tuple[int, int] | None:
    """(H, W), both at least 1, or None."""
    if value is None:
        return None
    try:
        height, width = (operator.index(v) for v in value)
    except (TypeError, ValueError):
        raise TypeError(f"{argument}: expected (height, width), integers, got {value!r}") from None
    if height < 1 or width < 1:
        raise ValueError(f"{argument}: expected at least one pixel, got ({height}, {width})")
    return height, width


def as_count(argument: str, value: int, *, least: int = 1) -> int:
    """An integer >= `least`; floats are refused rather than cut off."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{argument}: expected an integer, got {type(value).__name__} {value!r}")
    if not least <= int(value) < 1 << 31:
        raise ValueError(f"{argument}: expected at least {least}, got {value}")
    return int(value)


def as_threads(value: int | None) -> int | None:
    """A thread count, or None for the default."""
    return None if value is None else as_count("threads", value)
