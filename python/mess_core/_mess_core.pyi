from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__version__: str
__all__ = [
    "__version__",
    "boundary_mask",
    "canny",
    "confidence_map",
    "dilate",
    "erode",
    "evaluate",
    "image_confidence",
    "image_confidence_from_map",
    "label_edges",
    "refine_confidence",
    "search",
]

def confidence_map(
    logits: npt.NDArray[np.float32],
    kind: str,
    size: tuple[int, int] | None,
    align_corners: bool,
    threads: int | None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]: ...
def image_confidence(
    logits: npt.NDArray[np.float32],
    pixel_thresholds: list[float],
    output_stride: int,
    refine: bool,
    edges: str,
    confidence: str,
    size: tuple[int, int] | None,
    align_corners: bool,
    threads: int | None,
) -> npt.NDArray[np.float64]: ...
def image_confidence_from_map(
    confidence: npt.NDArray[np.float32],
    labels: npt.NDArray[Any],
    pixel_thresholds: list[float],
    output_stride: int,
    refine: bool,
    edges: str,
    threads: int | None,
) -> npt.NDArray[np.float64]: ...
def canny(image: npt.NDArray[np.uint8], low: float, high: float, aperture: int, l2: bool) -> npt.NDArray[np.bool_]: ...
def label_edges(labels: npt.NDArray[Any], edges: str) -> npt.NDArray[np.bool_]: ...
def erode(mask: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]: ...
def dilate(mask: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.bool_]: ...
def boundary_mask(labels: npt.NDArray[Any], output_stride: int, edges: str) -> npt.NDArray[np.bool_]: ...
def refine_confidence(
    confidence: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], window: int, threads: int | None
) -> npt.NDArray[np.float32]: ...
def search(
    arrays: tuple[Any, ...],
    setting_name: str,
    horizon: float,
    min_final_accuracy: float,
    min_accuracy: float | None,
    max_cost: float | None,
    max_exits: int,
    image_thresholds: int | None,
    time_limit: float | None,
    threads: int | None,
    progress: Callable[[int, int], object] | None,
) -> tuple[
    Literal["optimal", "infeasible", "stopped"],
    list[tuple[list[int], list[tuple[int, float]], float, float, list[int]]],
    int,
]: ...
def evaluate(
    arrays: tuple[Any, ...], setting_name: str, horizon: float, exits: list[int], gates: list[tuple[int, float]]
) -> tuple[float, float, list[int], list[int]]: ...
