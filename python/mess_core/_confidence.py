"""The exit policy: logits -> confidence map -> boundary mask -> refined confidence -> image confidence.

Source of all of it: Kouris, Venieris, Laskaridis, Lane, "Multi-Exit Semantic Segmentation Networks", ECCV 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import numpy as np
import numpy.typing as npt

from mess_core import _mess_core as native
from mess_core._arrays import as_count, as_float32, as_labels, as_mask, as_size, as_threads

ConfidenceKind = Literal["top1", "margin", "entropy"]
EdgeKind = Literal["canny", "labels"]


@overload
def image_confidence(
    logits: npt.ArrayLike,
    *,
    pixel_threshold: float,
    output_stride: int = 8,
    refine: bool = True,
    edges: EdgeKind = "canny",
    confidence: ConfidenceKind = "top1",
    size: tuple[int, int] | None = None,
    align_corners: bool = False,
    threads: int | None = None,
) -> float | npt.NDArray[np.float64]: ...
@overload
def image_confidence(
    logits: npt.ArrayLike,
    *,
    pixel_threshold: Sequence[float] | npt.NDArray[np.floating],
    output_stride: int = 8,
    refine: bool = True,
    edges: EdgeKind = "canny",
    confidence: ConfidenceKind = "top1",
    size: tuple[int, int] | None = None,
    align_corners: bool = False,
    threads: int | None = None,
) -> npt.NDArray[np.float64]: ...
def image_confidence(
    logits: npt.ArrayLike,
    *,
    pixel_threshold: float | Sequence[float] | npt.NDArray[np.floating],
    output_stride: int = 8,
    refine: bool = True,
    edges: EdgeKind = "canny",
    confidence: ConfidenceKind = "top1",
    size: tuple[int, int] | None = None,
    align_corners: bool = False,
    threads: int | None = None,
) -> float | npt.NDArray[np.float64]:
    """Share of pixels whose refined confidence is at least `pixel_threshold`: stop when it is high enough.

    Equals `(refine_confidence(c, boundary_mask(l, output_stride=s), window=4 * s + 1) >= pixel_threshold).mean()` with
    `c, l = confidence_map(logits)`, exactly, but without computing a median.

    Parameters
    ----------
    logits : (C, H, W) or (B, C, H, W), any real dtype
        One image or a batch. float32 of any strides is used in place; other dtypes are converted, which copies. -inf
        marks a class that cannot be.
    pixel_threshold : float in [0, 1], or several
        Compared inclusively, in float32. With several (T of them) the result has a last axis of length T, and the work
        that does not depend on the threshold is done once.
    output_stride : int, pixels
        Input pixels per feature pixel at the exit, s: the boundary mask grows by s x s, the median's window is 4 s + 1.
    refine : bool
        False leaves confidences near boundaries as they are.
    edges : {"canny", "labels"}
        See `boundary_mask`.
    confidence : {"top1", "margin", "entropy"}
        See `confidence_map`.
    size : (H, W), optional
        Upsample the logits to this size first, bilinearly.
    align_corners : bool
        As in PyTorch; only matters with `size`.
    threads : int, optional
        Threads to use. By default all cores for large inputs, the calling thread alone below 2 million numbers, where a
        second one costs more than it saves. The result does not depend on it.

    Returns
    -------
    float, (B,), (T,) or (B, T) float64
        Image confidence in [0, 1].

    Raises
    ------
    ValueError
        Wrong shape, no image, pixel or class, NaN or +inf logits, a threshold outside [0, 1], an output stride outside
        1..256; the message names the argument, what was expected and what came.
    TypeError
        Logits that are no numbers.

    Examples
    --------
    >>> import numpy as np
    >>> logits = np.zeros((2, 1, 4), np.float32)
    >>> logits[0, 0] = [9, 9, 9, 0]
    >>> image_confidence(logits, pixel_threshold=0.9, refine=False)
    0.75
    """
    array = as_float32("logits", logits, ndims=(3, 4), axes="(C, H, W) or (B, C, H, W)")
    if array.ndim == 4 and len(array) == 0:
        raise ValueError(f"logits: expected at least one image, got shape {array.shape}")
    thresholds, is_single = _thresholds(pixel_threshold)
    values = native.image_confidence(
        array if array.ndim == 4 else array[np.newaxis],
        thresholds,
        as_count("output_stride", output_stride),
        bool(refine),
        edges,
        confidence,
        as_size("size", size),
        bool(align_corners),
        as_threads(threads),
    )
    return _shaped(values, is_single_image=array.ndim == 3, is_single_threshold=is_single)


def image_confidence_from_map(
    confidence: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    pixel_threshold: float | Sequence[float] | npt.NDArray[np.floating],
    output_stride: int = 8,
    refine: bool = True,
    edges: EdgeKind = "canny",
    threads: int | None = None,
) -> float | npt.NDArray[np.float64]:
    """`image_confidence` for pipelines that have a confidence map and a label map already.

    Parameters
    ----------
    confidence : (H, W) or (B, H, W), any real dtype
        Used in place when float32. No NaN.
    labels : (H, W) or (B, H, W), integers 0..65535
        Used in place when uint8 or int32.
    pixel_threshold, output_stride, refine, edges, threads
        As in `image_confidence`.

    Returns
    -------
    float, (B,), (T,) or (B, T) float64
        Image confidence in [0, 1].

    Raises
    ------
    ValueError, TypeError
        As in `image_confidence`, and for shapes that differ or NaN confidences.
    """
    maps = as_float32("confidence", confidence, ndims=(2, 3), axes="(H, W) or (B, H, W)")
    given_labels = np.asarray(labels)
    if given_labels.shape != maps.shape:
        raise ValueError(f"labels: expected shape {maps.shape}, got {given_labels.shape}")
    if maps.ndim == 3 and len(maps) == 0:
        raise ValueError(f"confidence: expected at least one image, got shape {maps.shape}")
    thresholds, is_single = _thresholds(pixel_threshold)
    is_single_image = maps.ndim == 2
    values = np.stack(
        [
            native.image_confidence_from_map(
                image,
                as_labels("labels", image_labels),
                thresholds,
                as_count("output_stride", output_stride),
                bool(refine),
                edges,
                as_threads(threads),
            )
            for image, image_labels in zip(
                maps[np.newaxis] if is_single_image else maps,
                given_labels[np.newaxis] if is_single_image else given_labels,
                strict=True,
            )
        ]
    )
    return _shaped(values, is_single_image=is_single_image, is_single_threshold=is_single)


def confidence_map(
    logits: npt.ArrayLike,
    *,
    kind: ConfidenceKind = "top1",
    size: tuple[int, int] | None = None,
    align_corners: bool = False,
    threads: int | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8] | npt.NDArray[np.int32]]:
    """Confidence and label of every pixel.

    Parameters
    ----------
    logits : (C, H, W), any real dtype
        float32 of any strides is used in place; other dtypes are converted, which copies.
    kind : {"top1", "margin", "entropy"}
        Largest softmax probability; largest minus second largest; 1 - entropy / ln C. All in [0, 1].
    size, align_corners, threads
        As in `image_confidence`.

    Returns
    -------
    confidence : (H, W) float32
    labels : (H, W) uint8, or int32 when C > 256
        Class of the largest logit, the lowest one of equals.

    Raises
    ------
    ValueError, TypeError
        As in `image_confidence`; an empty picture is not an error here.
    """
    array = as_float32("logits", logits, ndims=(3,), axes="(C, H, W)")
    if kind not in ("top1", "margin", "entropy"):
        raise ValueError(f"kind: expected 'top1', 'margin' or 'entropy', got {kind!r}")
    confidence, labels = native.confidence_map(
        array, kind, as_size("size", size), bool(align_corners), as_threads(threads)
    )
    return confidence, labels.astype(np.uint8) if array.shape[0] <= 256 else labels


def canny(
    image: npt.ArrayLike, low: float, high: float, *, aperture: Literal[3, 5, 7] = 3, l2: bool = False
) -> npt.NDArray[np.bool_]:
    """Canny edges of a grey picture, bit-exact with `cv2.Canny(image, low, high, ...) > 0`.

    Parameters
    ----------
    image : (H, W) uint8
        Used in place.
    low, high : float
        Hysteresis thresholds on the gradient magnitude; swapped if reversed, then floored. Both strict.
    aperture : {3, 5, 7}
        Side of the Sobel kernel.
    l2 : bool
        Euclidean gradient magnitude instead of |dx| + |dy|.

    Returns
    -------
    (H, W) bool

    Raises
    ------
    ValueError, TypeError
        Not a (H, W) uint8 array, another aperture, thresholds that are not finite.

    References
    ----------
    .. [1] J. Canny, "A Computational Approach to Edge Detection", IEEE TPAMI 8(6), 1986. doi:10.1109/TPAMI.1986.4767851
    """
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise TypeError(f"image: expected uint8, got dtype {array.dtype}")
    if array.ndim != 2:
        raise ValueError(f"image: expected shape (H, W), got {array.shape}")
    return native.canny(array, float(low), float(high), as_count("aperture", aperture), bool(l2))


def label_edges(labels: npt.ArrayLike, *, edges: EdgeKind = "canny") -> npt.NDArray[np.bool_]:
    """Boundaries of a label map.

    Parameters
    ----------
    labels : (H, W) integers 0..65535
        Used in place when uint8 or int32.
    edges : {"canny", "labels"}
        "canny": `canny(labels, 0, 0)`, where every change of label that Sobel sees is an edge. "labels": pixels with a
        4-neighbour of another label, which does not depend on how classes are numbered.

    Returns
    -------
    (H, W) bool
    """
    return native.label_edges(as_labels("labels", labels), edges)


def erode(mask: npt.ArrayLike, size: int) -> npt.NDArray[np.bool_]:
    """True where every pixel under a `size` x `size` square is true; equals `cv2.erode(mask, np.ones((size, size)))`.

    The square covers -(size // 2) .. size - 1 - size // 2 around a pixel (OpenCV's anchor; SciPy mirrors it for even
    sizes). Pixels outside the picture take no part, so `erode(m, s) == ~dilate(~m, s)`.

    Parameters
    ----------
    mask : (H, W) bool, or uint8 with nonzero meaning true
        bool is used in place.
    size : int, pixels
        1..32768.

    Returns
    -------
    (H, W) bool
    """
    return native.erode(as_mask("mask", mask), as_count("size", size))


def dilate(mask: npt.ArrayLike, size: int) -> npt.NDArray[np.bool_]:
    """True where any pixel under a `size` x `size` square is true; equals `cv2.dilate(mask, np.ones((size, size)))`.

    Parameters and anchor as in `erode`.
    """
    return native.dilate(as_mask("mask", mask), as_count("size", size))


def boundary_mask(labels: npt.ArrayLike, *, output_stride: int, edges: EdgeKind = "canny") -> npt.NDArray[np.bool_]:
    """Pixels near a label boundary: `dilate(label_edges(labels, edges=edges), output_stride)`.

    The paper writes erode(cannyEdge(labels), s). A literal erosion erases one-pixel-wide edges; meant is the erosion of
    the area without edges, which equals this dilation exactly.

    Parameters
    ----------
    labels : (H, W) integers 0..65535
        Used in place when uint8 or int32.
    output_stride : int, pixels
        Side of the square, 1..256.
    edges : {"canny", "labels"}
        See `label_edges`.

    Returns
    -------
    (H, W) bool
    """
    return native.boundary_mask(as_labels("labels", labels), as_count("output_stride", output_stride), edges)


def refine_confidence(
    confidence: npt.ArrayLike, mask: npt.ArrayLike, *, window: int, threads: int | None = None
) -> npt.NDArray[np.float32]:
    """Confidence with masked pixels replaced by the median of the `window` x `window` values around them.

    Equals `scipy.ndimage.median_filter(confidence, window, mode="nearest")` where the mask is true.

    Parameters
    ----------
    confidence : (H, W), any real dtype
        Used in place when float32. No NaN.
    mask : (H, W) bool, or uint8 with nonzero meaning true
    window : int, pixels
        Odd, 1..1025; 4 * output_stride + 1 in the exit policy.
    threads : int, optional
        As in `image_confidence`.

    Returns
    -------
    (H, W) float32
    """
    return native.refine_confidence(
        as_float32("confidence", confidence, ndims=(2,), axes="(H, W)"),
        as_mask("mask", mask),
        as_count("window", window),
        as_threads(threads),
    )


def _thresholds(value: float | Sequence[float] | npt.NDArray[np.floating]) -> tuple[list[float], bool]:
    """The thresholds as a list, and whether it was a single number."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"pixel_threshold: expected a number or a sequence of numbers, got {value!r}")
    if array.ndim > 1 or array.size == 0:
        raise ValueError(f"pixel_threshold: expected a number or a non-empty sequence, got shape {array.shape}")
    wrong = array[~((array >= 0) & (array <= 1))] if array.ndim else array[()]
    if array.ndim == 0 and not 0 <= array <= 1:
        raise ValueError(f"pixel_threshold: expected a number in [0, 1], got {wrong}")
    if array.ndim == 1 and np.size(wrong):
        raise ValueError(f"pixel_threshold: expected numbers in [0, 1], got {wrong.tolist()}")
    return array.reshape(-1).tolist(), array.ndim == 0


def _shaped(
    values: npt.NDArray[np.float64], *, is_single_image: bool, is_single_threshold: bool
) -> float | npt.NDArray[np.float64]:
    """(B, T) without the axes that the caller did not give."""
    if is_single_threshold:
        values = values[:, 0]
    if is_single_image:
        values = values[0]
    return float(values) if np.ndim(values) == 0 else values
