"""Whatever the user brings, as the arrays that the native module reads: where they lie if possible, else converted."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import numpy.typing as npt

from mess_core import _mess_core as native

#: of a size or a count, in a native integer
LARGEST = (1 << 31) - 1

#: dtype characters of the floats that are read where they lie
_FLOATS = frozenset("fd")


def as_logits(argument: str, value: Any) -> tuple[npt.NDArray[Any], bool]:
    """Logits as float32, float64 or the bits of a 16-bit float, and whether those bits are bfloat16.

    No copy for these four types, whatever their strides; integers and wider floats are converted to float32.
    ValueError for a single class, whose softmax says nothing.
    """
    array = as_array(argument, value)
    if array.ndim >= 3 and array.shape[-3] == 1:
        raise ValueError(
            f"{argument}: expected at least 2 classes, got shape {array.shape}: the softmax of one is 1 everywhere; "
            "a sigmoid's logit z is the pair (0, z)"
        )
    dtype = array.dtype
    if dtype.char in _FLOATS and dtype.isnative:
        return (array if array.flags.aligned else array.copy()), False
    if dtype.name == "bfloat16":  # an extension type of ml_dtypes, also what `as_array` calls the bits of one
        return np.require(array, None, ["ALIGNED"]).view(np.uint16), True
    if dtype == _BFLOAT16_BITS:
        return array.view(np.uint16), True
    if dtype == np.float16 and dtype.isnative:
        return np.require(array, None, ["ALIGNED"]).view(np.uint16), False
    if dtype.kind not in "fiu":
        raise TypeError(f"{argument}: expected numbers (floats are used without a copy), got dtype {dtype}")
    return np.require(array, np.float32, ["ALIGNED"]), False


#: how bits of bfloat16 travel through NumPy, which has no such type
_BFLOAT16_BITS = np.dtype([("bfloat16", np.uint16)])


def as_array(argument: str, value: Any) -> npt.NDArray[Any]:
    """An array over the memory of a DLPack producer (a tensor of torch, jax, ...), or `numpy.asarray`."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{argument}: expected an array without a mask, got a numpy.ma.MaskedArray; fill it first")
    if not hasattr(value, "__dlpack__") or isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    try:
        device, _ = value.__dlpack_device__()
    except (BufferError, RuntimeError, ValueError) as error:
        raise TypeError(f"{argument}: cannot be read through DLPack: {error}") from error
    if int(device) not in _CPU:
        raise TypeError(f"{argument}: expected data in CPU memory, got DLPack device type {int(device)}; copy it first")
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError) as error:
        try:
            bits = native.bfloat16_bits(value.__dlpack__())
        except (BufferError, RuntimeError, TypeError):
            raise TypeError(f"{argument}: cannot be read through DLPack: {error}") from error
        return bits.view(_BFLOAT16_BITS)


#: DLPack's kDLCPU, and what is pinned for CUDA or ROCm, which lies in the same memory
_CPU = frozenset((1, 3, 11))


def as_float32(argument: str, value: Any, *, ndims: tuple[int, ...], axes: str) -> npt.NDArray[np.float32]:
    """`value` as aligned float32 of one of `ndims` dimensions; no copy when it is that, whatever its strides."""
    array = as_array(argument, value)
    if array.dtype == _BFLOAT16_BITS:
        array = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise TypeError(f"{argument}: expected numbers (float32 is used without a copy), got dtype {array.dtype}")
    if array.ndim not in ndims:
        raise ValueError(f"{argument}: expected shape {axes}, got {array.shape}")
    return np.require(array, np.float32, ["ALIGNED"])


def as_mask(argument: str, value: Any) -> npt.NDArray[np.uint8]:
    """`value`, bool or uint8 with nonzero meaning true (OpenCV's masks), as uint8 (H, W) over the same memory."""
    array = as_array(argument, value)
    if array.dtype.kind != "b" and array.dtype != np.uint8:
        raise TypeError(f"{argument}: expected bool, or uint8 with nonzero meaning true, got dtype {array.dtype}")
    if array.ndim != 2:
        raise ValueError(f"{argument}: expected shape (H, W), got {array.shape}")
    return array.view(np.uint8)


def as_labels(argument: str, value: Any) -> npt.NDArray[Any]:
    """`value` as (H, W) integers of any width, over the same memory. The native module checks their range."""
    array = as_array(argument, value)
    if array.dtype.kind not in "iub":
        raise TypeError(f"{argument}: expected integer class indices, got dtype {array.dtype}")
    if array.ndim != 2:
        raise ValueError(f"{argument}: expected shape (H, W), got {array.shape}")
    if array.dtype.kind == "b":
        return array.view(np.uint8)
    return np.require(array, array.dtype.newbyteorder("="), ["ALIGNED"])


def as_output(argument: str, value: Any, shape: tuple[int, ...], *dtypes: type[np.generic]) -> npt.NDArray[Any]:
    """A fresh array of the first of `dtypes`, or the caller's own, which must be writable, C-contiguous and fit."""
    if value is None:
        return np.empty(shape, dtypes[0])
    names = " or ".join(np.dtype(dtype).name for dtype in dtypes)
    if not isinstance(value, np.ndarray) or value.dtype not in dtypes:
        got = f"dtype {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"{argument}: expected a NumPy array of {names}, got {got}")
    if value.shape != shape:
        raise ValueError(f"{argument}: expected shape {shape}, got {value.shape}")
    if not (value.flags.c_contiguous and value.flags.writeable and value.flags.aligned):
        raise ValueError(f"{argument}: expected a writable, aligned, C-contiguous array, got {_flaw(value)}")
    return value


def _flaw(array: npt.NDArray[Any]) -> str:
    flags = array.flags
    return "a read-only one" if not flags.writeable else f"strides {array.strides}, aligned: {flags.aligned}"


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
    if height > LARGEST or width > LARGEST:
        raise ValueError(f"{argument}: expected at most {LARGEST} pixels a side, got ({height}, {width})")
    return height, width


def as_count(argument: str, value: int, *, least: int = 1) -> int:
    """An integer >= `least`; floats are refused rather than cut off."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{argument}: expected an integer, got {type(value).__name__} {value!r}")
    if int(value) < least:
        raise ValueError(f"{argument}: expected at least {least}, got {value}")
    if int(value) > LARGEST:
        raise ValueError(f"{argument}: expected at most {LARGEST}, got {value}")
    return int(value)


def as_number(argument: str, value: float) -> float:
    """A number as Python's float."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{argument}: expected a number, got {type(value).__name__} {str(value)[:60]!r}") from None


def as_threads(value: int | None) -> int | None:
    """A thread count, or None for the default."""
    return None if value is None else as_count("threads", value)


def as_word(argument: str, value: str) -> str:
    """The name of one of some ways, which the native module knows."""
    if not isinstance(value, str):
        raise TypeError(f"{argument}: expected a string, got {type(value).__name__} {value!r}")
    return value


def as_workspace(value: native.Workspace | None) -> native.Workspace | None:
    """Buffers, or None."""
    if value is not None and not isinstance(value, native.Workspace):
        raise TypeError(f"workspace: expected a Workspace, got {type(value).__name__}")
    return value
