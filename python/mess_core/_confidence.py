"""The exit policy: logits -> confidence map -> boundary mask -> refined confidence -> image confidence.

Source of all of it: Kouris, Venieris, Laskaridis, Lane, "Multi-Exit Semantic Segmentation Networks", ECCV 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple, get_args, overload

import numpy as np
import numpy.typing as npt

from mess_core import _mess_core as native
from mess_core._arrays import (
    as_array,
    as_count,
    as_float32,
    as_labels,
    as_logits,
    as_mask,
    as_output,
    as_size,
    as_threads,
    as_word,
    as_workspace,
)
from mess_core._mess_core import Workspace

ConfidenceKind = Literal["top1", "margin", "entropy"]
EdgeKind = Literal["canny", "labels"]
LabelMap = npt.NDArray[np.uint8] | npt.NDArray[np.int32]


@overload
def image_confidence(
    logits: Any,
    *,
    pixel_threshold: float,
    output_stride: int = 8,
    refine: bool = True,
    edges: EdgeKind = "canny",
    confidence: ConfidenceKind = "top1",
    size: tuple[int, int] | None = None,
    align_corners: bool = False,
    workspace: Workspace | None = None,
    threads: int | None = None,
) -> float | npt.NDArray[np.float64]: ...
@overload
def image_confidence(
    logits: Any,
    *,
    pixel_threshold: Sequence[float] | npt.NDArray[np.floating],
    output_stride: int = 8,
    refine: bool = True,
    edges: EdgeKind = "canny",
    confidence: ConfidenceKind = "top1",
    size: tuple[int, int] | None = None,
    align_corners: bool = False,
    workspace: Workspace | None = None,
    threads: int | None = None,
) -> npt.NDArray[np.float64]: ...
def image_confidence(
    logits: Any,
    *,
    pixel_threshold: float | Sequence[float] | npt.NDArray[np.floating],
    output_stride: int = 8,
    refine: bool = True,
    edges: EdgeKind = "canny",
    confidence: ConfidenceKind = "top1",
    size: tuple[int, int] | None = None,
    align_corners: bool = False,
    workspace: Workspace | None = None,
    threads: int | None = None,
) -> float | npt.NDArray[np.float64]:
    """Share of pixels whose refined confidence is at least `pixel_threshold`: stop when it is high enough.

    Equals `(refine_confidence(c, boundary_mask(l, output_stride=s), window=4 * s + 1) >= pixel_threshold).mean()` with
    `c, l = confidence_map(logits)`, exactly, but without computing a median.

    Parameters
    ----------
    logits : (C, H, W) or (B, C, H, W), any real dtype
        One image or a batch: a NumPy array, a DLPack producer on the CPU (a torch tensor), or anything that
        `numpy.asarray` takes. float32, float64, float16 and bfloat16 of any strides, channels last among them, are read
        where they lie; other dtypes are converted. All computing is in float32, to which each number is rounded first,
        so wider ones that differ by less are equal, and beyond 3.4e38 infinite. -inf marks a class that cannot be. A
        pixel with a NaN or +inf has no confidence: it is below every threshold.
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
        Upsample the logits to this size first, bilinearly. It is fused into the rest: no full-size logits are made, so
        give an exit head's output as it is. Equal to `torch.nn.functional.interpolate(mode="bilinear")` within 1e-6 of
        the largest logit around, of float32 logits; -inf counts as -1e37 here, so that a pixel of nothing but -inf has
        the confidence 1 / C.
    align_corners : bool
        As in PyTorch; only matters with `size`.
    workspace : Workspace, optional
        Buffers to reuse from call to call.
    threads : int, optional
        Threads to use: images of a batch, else rows of an image are shared among them. By default the calling thread
        alone below 4 million numbers (about a millisecond), where a second thread costs more than it saves, and above
        as many as MESS_CORE_THREADS says or there are cores. The result does not depend on it.

    Returns
    -------
    float, (B,), (T,) or (B, T) float64
        Image confidence in [0, 1].

    Raises
    ------
    ValueError
        Wrong shape, no image, pixel or class, a threshold outside [0, 1], an output stride outside 1..256; the message
        names the argument, what was expected and what came.
    TypeError
        Logits that are no numbers, or not in CPU memory.

    Notes
    -----
    Memory of one image on one thread, beside the logits: 4 bytes a pixel (7 with more than 256 classes), 4 more with
    several thresholds or another confidence than "top1"; with `size`, 4 bytes for each number of the logits given, and
    12 x W x (C + 20) bytes; 384 KB. With a `workspace` it is kept, and a second image of the size allocates nothing.

    Examples
    --------
    >>> import numpy as np
    >>> logits = np.zeros((2, 1, 4), np.float32)
    >>> logits[0, 0] = [9, 9, 9, 0]
    >>> image_confidence(logits, pixel_threshold=0.9, refine=False)
    0.75
    """
    array, is_bfloat16 = as_logits("logits", logits)
    if array.ndim != 3:
        _check_batch(array)
    thresholds, is_single = _thresholds(pixel_threshold)
    values: float | npt.NDArray[np.float64] = native.image_confidence(
        array,
        is_bfloat16,
        thresholds,
        is_single,
        as_count("output_stride", output_stride),
        bool(refine),
        as_word("edges", edges),
        as_word("confidence", confidence),
        as_size("size", size),
        bool(align_corners),
        as_workspace(workspace),
        as_threads(threads),
    )
    return values


def should_exit(
    logits: Any,
    *,
    pixel_threshold: float,
    image_threshold: float,
    output_stride: int = 8,
    refine: bool = True,
    edges: EdgeKind = "canny",
    confidence: ConfidenceKind = "top1",
    size: tuple[int, int] | None = None,
    align_corners: bool = False,
    workspace: Workspace | None = None,
    threads: int | None = None,
) -> bool | npt.NDArray[np.bool_]:
    """Whether the image confidence is at least `image_threshold`; stops looking once that is certain.

    Equals `image_confidence(logits, pixel_threshold=..., ...) >= image_threshold` on every input.

    Parameters
    ----------
    logits, pixel_threshold, output_stride, refine, edges, confidence, size, align_corners, workspace, threads
        As in `image_confidence`, with one pixel threshold.
    image_threshold : float
        Least share of confident pixels, compared inclusively. Above 1 no image leaves.

    Returns
    -------
    bool, or (B,) bool for a batch

    Raises
    ------
    ValueError, TypeError
        As in `image_confidence`, and for a NaN image threshold.

    Examples
    --------
    >>> import numpy as np
    >>> logits = np.zeros((2, 1, 4), np.float32)
    >>> logits[0, 0] = [9, 9, 9, 0]
    >>> should_exit(logits, pixel_threshold=0.9, image_threshold=0.75, refine=False)
    True
    """
    array, is_bfloat16 = as_logits("logits", logits)
    if array.ndim != 3:
        _check_batch(array)
    thresholds, is_single = _thresholds(pixel_threshold)
    if not is_single:
        raise ValueError(f"pixel_threshold: expected one number, got {pixel_threshold!r}")
    leaves: bool | npt.NDArray[np.bool_] = native.should_exit(
        array,
        is_bfloat16,
        thresholds[0],
        _image_threshold(image_threshold),
        as_count("output_stride", output_stride),
        bool(refine),
        as_word("edges", edges),
        as_word("confidence", confidence),
        as_size("size", size),
        bool(align_corners),
        as_workspace(workspace),
        as_threads(threads),
    )
    return leaves


def image_confidence_from_map(
    confidence: Any,
    labels: Any,
    *,
    pixel_threshold: float | Sequence[float] | npt.NDArray[np.floating],
    output_stride: int = 8,
    refine: bool = True,
    edges: EdgeKind = "canny",
    workspace: Workspace | None = None,
    threads: int | None = None,
) -> float | npt.NDArray[np.float64]:
    """`image_confidence` for pipelines that have a confidence map and a label map already.

    Parameters
    ----------
    confidence : (H, W) or (B, H, W), any real dtype
        Used in place when float32. NaN is below every threshold.
    labels : (H, W) or (B, H, W), integers 0..65535 of any width
        Used in place.
    pixel_threshold, output_stride, refine, edges, workspace, threads
        As in `image_confidence`.

    Returns
    -------
    float, (B,), (T,) or (B, T) float64
        Image confidence in [0, 1].

    Raises
    ------
    ValueError, TypeError
        As in `image_confidence`, and for shapes that differ or labels outside 0..65535.
    """
    maps = as_float32("confidence", confidence, ndims=(2, 3), axes="(H, W) or (B, H, W)")
    given_labels = as_array("labels", labels)
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
                as_word("edges", edges),
                as_workspace(workspace),
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
    logits: Any,
    *,
    kind: ConfidenceKind = "top1",
    size: tuple[int, int] | None = None,
    align_corners: bool = False,
    out: tuple[npt.NDArray[np.float32], LabelMap] | None = None,
    workspace: Workspace | None = None,
    threads: int | None = None,
) -> tuple[npt.NDArray[np.float32], LabelMap]:
    """Confidence and label of every pixel.

    Parameters
    ----------
    logits : (C, H, W), any real dtype
        As in `image_confidence`.
    kind : {"top1", "margin", "entropy"}
        Largest softmax probability; largest minus second largest; 1 - entropy / ln C. All in [0, 1].
    size, align_corners, workspace, threads
        As in `image_confidence`.
    out : (confidence, labels), optional
        C-contiguous arrays to write into and return: (H, W) float32, and (H, W) uint8 (up to 256 classes) or int32.

    Returns
    -------
    confidence : (H, W) float32
        NaN where softmax is undefined: a NaN, a +inf or nothing but -inf among the pixel's logits. (With `size`, where
        -inf counts as -1e37, nothing but -inf is 1 / C: classes that are all as unlikely.)
    labels : (H, W) uint8, or int32 when C > 256
        Class of the largest logit, the lowest one of equals; a NaN is never the largest.

    Raises
    ------
    ValueError, TypeError
        As in `image_confidence`; an empty picture is not an error here.
    """
    array, is_bfloat16 = _one_image(logits)
    if kind not in ("top1", "margin", "entropy"):
        raise ValueError(f"kind: expected 'top1', 'margin' or 'entropy', got {kind!r}")
    size = as_size("size", size)
    shape = array.shape[1:] if size is None else size
    if out is not None and not (isinstance(out, tuple) and len(out) == 2):
        raise TypeError(f"out: expected (confidence, labels), two arrays, got {type(out).__name__}")
    given = (None, None) if out is None else out
    confidence = _fresh("out[0]", given[0], shape, array, np.float32)
    labels = _fresh("out[1]", given[1], shape, array, *_label_types(array))
    if np.may_share_memory(confidence, labels):
        raise ValueError("out[1]: expected memory of its own, got an array that overlaps out[0]")
    native.confidence_map(
        array,
        is_bfloat16,
        kind,
        size,
        bool(align_corners),
        confidence,
        labels,
        as_workspace(workspace),
        as_threads(threads),
    )
    return confidence, labels


def label_map(
    logits: Any,
    *,
    size: tuple[int, int] | None = None,
    align_corners: bool = False,
    out: LabelMap | None = None,
    workspace: Workspace | None = None,
    threads: int | None = None,
) -> LabelMap:
    """Label of every pixel: the labels of `confidence_map`, sooner.

    Parameters
    ----------
    logits : (C, H, W), any real dtype
        As in `image_confidence`, like `size`, `align_corners`, `workspace` and `threads`. With `size` no full-size
        logits are made, and where the logits around a pixel leave it one class, it is not computed.
    out : (H, W), optional
        C-contiguous array to write into and return: uint8 (up to 256 classes) or int32.

    Returns
    -------
    (H, W) uint8, or int32 when C > 256
        Class of the largest logit, the lowest one of equals; a NaN is never the largest.

    Raises
    ------
    ValueError, TypeError
        As in `confidence_map`.
    """
    array, is_bfloat16 = _one_image(logits)
    size = as_size("size", size)
    labels = _fresh("out", out, array.shape[1:] if size is None else size, array, *_label_types(array))
    native.label_map(
        array, is_bfloat16, size, bool(align_corners), labels, as_workspace(workspace), as_threads(threads)
    )
    return labels


class PolicyMaps(NamedTuple):
    """Every step of the exit policy as a map, all (H, W).

    confidence: float32. labels: uint8, or int32 when C > 256. mask: bool, True where confidences are refined.
    refined: float32.
    """

    confidence: npt.NDArray[np.float32]
    labels: LabelMap
    mask: npt.NDArray[np.bool_]
    refined: npt.NDArray[np.float32]


def policy_maps(
    logits: Any,
    *,
    output_stride: int = 8,
    edges: EdgeKind = "canny",
    confidence: ConfidenceKind = "top1",
    size: tuple[int, int] | None = None,
    align_corners: bool = False,
    out: PolicyMaps | None = None,
    workspace: Workspace | None = None,
    threads: int | None = None,
) -> PolicyMaps:
    """All maps of the exit policy at once: `confidence_map`, `boundary_mask`, `refine_confidence`.

    Parameters
    ----------
    logits : (C, H, W)
        As in `image_confidence`, like `output_stride`, `edges`, `confidence`, `size`, `align_corners`, `workspace` and
        `threads`.
    out : PolicyMaps, optional
        C-contiguous arrays to write into and return.

    Returns
    -------
    PolicyMaps
        `(maps.refined >= pixel_threshold).mean()` is the image confidence.

    Raises
    ------
    ValueError, TypeError
        As in `confidence_map` and `boundary_mask`.
    """
    if out is not None and not isinstance(out, PolicyMaps):
        raise TypeError(f"out: expected PolicyMaps, got {type(out).__name__}")
    output_stride = as_count("output_stride", output_stride)
    for name, value, known in (("confidence", confidence, ConfidenceKind), ("edges", edges, EdgeKind)):
        if as_word(name, value) not in get_args(known):  # before anything is written
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, get_args(known)))}, got {value!r}")
    if out is not None:  # each is written while others are still read
        named = [
            ("logits", as_array("logits", logits)),
            *((f"out.{name}", map_) for name, map_ in out._asdict().items()),
        ]
        for (one, a), (other, b) in combinations(named, 2):
            if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.may_share_memory(a, b):
                raise ValueError(f"{other}: expected memory of its own, got an array that overlaps {one}")
    pair = None if out is None else (out.confidence, out.labels)
    values, labels = confidence_map(
        logits,
        kind=confidence,
        size=size,
        align_corners=align_corners,
        out=pair,
        workspace=workspace,
        threads=threads,
    )
    mask = boundary_mask(labels, output_stride=output_stride, edges=edges, out=None if out is None else out.mask)
    refined = refine_confidence(
        values, mask, window=4 * output_stride + 1, out=None if out is None else out.refined, threads=threads
    )
    return PolicyMaps(values, labels, mask, refined)


def canny(
    image: Any,
    low: float,
    high: float,
    *,
    aperture: Literal[3, 5, 7] = 3,
    l2: bool = False,
    out: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.bool_]:
    """Canny edges of a grey picture, bit-exact with `cv2.Canny(image, low, high, ...) > 0`.

    Parameters
    ----------
    image : (H, W) uint8
        Used in place.
    low, high : float
        Hysteresis thresholds on the gradient magnitude; swapped if reversed, then floored. Both strict. OpenCV's
        overflow from 2^31 on.
    aperture : {3, 5, 7}
        Side of the Sobel kernel.
    l2 : bool
        Euclidean gradient magnitude instead of |dx| + |dy|.
    out : (H, W) bool, optional
        C-contiguous array to write into and return.

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
    array = as_array("image", image)
    if array.dtype != np.uint8:
        raise TypeError(f"image: expected uint8, got dtype {array.dtype}")
    if array.ndim != 2:
        raise ValueError(f"image: expected shape (H, W), got {array.shape}")
    edges = _fresh("out", out, array.shape, array, np.bool_)
    native.canny(array, float(low), float(high), as_count("aperture", aperture), bool(l2), edges.view(np.uint8))
    return edges


def label_edges(
    labels: Any, *, edges: EdgeKind = "canny", out: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.bool_]:
    """Boundaries of a label map.

    Parameters
    ----------
    labels : (H, W) integers 0..65535 of any width
        Used in place.
    edges : {"canny", "labels"}
        "canny": `canny(labels, 0, 0)`, where every change of label that Sobel sees is an edge. "labels": pixels with a
        4-neighbour of another label, which does not depend on how classes are numbered.
    out : (H, W) bool, optional
        C-contiguous array to write into and return.

    Returns
    -------
    (H, W) bool

    Raises
    ------
    ValueError, TypeError
        Another shape or dtype, a label outside 0..65535, an unknown `edges`.
    """
    array = as_labels("labels", labels)
    found = _fresh("out", out, array.shape, array, np.bool_)
    native.label_edges(array, as_word("edges", edges), found.view(np.uint8))
    return found


def erode(mask: Any, size: int, *, out: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_]:
    """True where every pixel under a `size` x `size` square is true; equals `cv2.erode(mask, np.ones((size, size)))`.

    The square covers -(size // 2) .. size - 1 - size // 2 around a pixel (OpenCV's anchor; SciPy mirrors it for even
    sizes). Pixels outside the picture take no part, so `erode(m, s) == ~dilate(~m, s)`.

    Parameters
    ----------
    mask : (H, W) bool, or uint8 with nonzero meaning true
        Used in place.
    size : int, pixels
        1..32768.
    out : (H, W) bool, optional
        C-contiguous array to write into and return.

    Returns
    -------
    (H, W) bool

    Raises
    ------
    ValueError, TypeError
        Another shape or dtype, a size outside 1..32768.
    """
    array = as_mask("mask", mask)
    result = _fresh("out", out, array.shape, array, np.bool_)
    native.erode(array, as_count("size", size), result.view(np.uint8))
    return result


def dilate(mask: Any, size: int, *, out: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_]:
    """True where any pixel under a `size` x `size` square is true; equals `cv2.dilate(mask, np.ones((size, size)))`.

    Parameters and anchor as in `erode`.
    """
    array = as_mask("mask", mask)
    result = _fresh("out", out, array.shape, array, np.bool_)
    native.dilate(array, as_count("size", size), result.view(np.uint8))
    return result


def boundary_mask(
    labels: Any, *, output_stride: int, edges: EdgeKind = "canny", out: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.bool_]:
    """Pixels near a label boundary: `dilate(label_edges(labels, edges=edges), output_stride)`.

    The paper writes erode(cannyEdge(labels), s). A literal erosion erases one-pixel-wide edges; meant is the erosion of
    the area without edges, which equals this dilation exactly.

    Parameters
    ----------
    labels : (H, W) integers 0..65535 of any width
        Used in place.
    output_stride : int, pixels
        Side of the square, 1..256.
    edges : {"canny", "labels"}
        See `label_edges`.
    out : (H, W) bool, optional
        C-contiguous array to write into and return.

    Returns
    -------
    (H, W) bool

    Raises
    ------
    ValueError, TypeError
        As in `label_edges`, and for an output stride outside 1..256.
    """
    array = as_labels("labels", labels)
    mask = _fresh("out", out, array.shape, array, np.bool_)
    native.boundary_mask(array, as_count("output_stride", output_stride), as_word("edges", edges), mask.view(np.uint8))
    return mask


def refine_confidence(
    confidence: Any,
    mask: Any,
    *,
    window: int,
    out: npt.NDArray[np.float32] | None = None,
    threads: int | None = None,
) -> npt.NDArray[np.float32]:
    """Confidence with masked pixels replaced by the median of the `window` x `window` values around them.

    Equals `scipy.ndimage.median_filter(confidence, window, mode="nearest")` where the mask is true. NaN is ordered
    below every number.

    Parameters
    ----------
    confidence : (H, W), any real dtype
        Used in place when float32.
    mask : (H, W) bool, or uint8 with nonzero meaning true
        Used in place.
    window : int, pixels
        Odd, 1..1025; 4 * output_stride + 1 in the exit policy.
    out : (H, W) float32, optional
        C-contiguous array to write into and return.
    threads : int, optional
        As in `image_confidence`.

    Returns
    -------
    (H, W) float32

    Raises
    ------
    ValueError, TypeError
        Another shape or dtype, shapes that differ, an even or too large window.
    """
    values = as_float32("confidence", confidence, ndims=(2,), axes="(H, W)")
    where = as_mask("mask", mask)
    refined = _fresh("out", out, values.shape, values, np.float32)
    if np.may_share_memory(refined, where):
        raise ValueError("out: expected memory of its own, got an array that overlaps mask")
    native.refine_confidence(values, where, as_count("window", window), refined, as_threads(threads))
    return refined


def _check_batch(array: npt.NDArray[Any]) -> None:
    if array.ndim != 4:
        raise ValueError(f"logits: expected shape (C, H, W) or (B, C, H, W), got {array.shape}")
    if len(array) == 0:
        raise ValueError(f"logits: expected at least one image, got shape {array.shape}")


def _fresh(
    argument: str, out: Any, shape: tuple[int, ...], source: npt.NDArray[Any], *dtypes: type[np.generic]
) -> npt.NDArray[Any]:
    """The array to write into, which must not overlap the one that is read."""
    array = as_output(argument, out, shape, *dtypes)
    if out is not None and np.may_share_memory(array, source):
        raise ValueError(f"{argument}: expected memory of its own, got an array that overlaps the input")
    return array


def _one_image(logits: Any) -> tuple[npt.NDArray[Any], bool]:
    """Logits (C, H, W), and whether they are the bits of bfloat16."""
    array, is_bfloat16 = as_logits("logits", logits)
    if array.ndim != 3:
        raise ValueError(f"logits: expected shape (C, H, W), got {array.shape}")
    return array, is_bfloat16


def _label_types(logits: npt.NDArray[Any]) -> tuple[type[np.generic], ...]:
    """What labels may be written as, the default first."""
    return (np.uint8, np.int32) if len(logits) <= 256 else (np.int32,)


def _thresholds(value: float | Sequence[float] | npt.NDArray[np.floating]) -> tuple[list[float], bool]:
    """The thresholds as a list, and whether it was a single number."""
    if type(value) is float and 0 <= value <= 1:
        return [value], True
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


def _image_threshold(value: float) -> float:
    if isinstance(value, bool | str):
        raise TypeError(f"image_threshold: expected a number, got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"image_threshold: expected a number, got {value!r}") from None


def _shaped(
    values: npt.NDArray[np.float64], *, is_single_image: bool, is_single_threshold: bool
) -> float | npt.NDArray[np.float64]:
    """(B, T) without the axes that the caller did not give."""
    if is_single_threshold:
        values = values[:, 0]
    if is_single_image:
        values = values[0]
    return float(values) if np.ndim(values) == 0 else values
