from collections.abc import Callable
from typing import Any, Literal, final

import numpy as np
import numpy.typing as npt

__version__: str
commit: str | None
target: str
is_debug: bool
__all__ = [
    "SearchJournal",
    "SearchPieces",
    "Workspace",
    "__version__",
    "bfloat16_bits",
    "boundary_mask",
    "canny",
    "commit",
    "confidence_map",
    "default_threads",
    "dilate",
    "erode",
    "evaluate",
    "image_confidence",
    "image_confidence_from_map",
    "instruction_set",
    "instruction_sets",
    "is_debug",
    "label_edges",
    "label_map",
    "network_input",
    "refine_confidence",
    "search",
    "set_instruction_set",
    "should_exit",
    "target",
]

@final
class Workspace:
    def __new__(cls) -> Workspace: ...

def default_threads() -> int: ...
def instruction_set() -> str: ...
def instruction_sets() -> list[str]: ...
def set_instruction_set(name: str) -> None: ...
def bfloat16_bits(capsule: object) -> npt.NDArray[np.uint16]: ...
def confidence_map(
    logits: npt.NDArray[Any],
    is_bfloat16: bool,
    kind: str,
    size: tuple[int, int] | None,
    align_corners: bool,
    confidence: npt.NDArray[np.float32],
    labels: npt.NDArray[Any],
    workspace: Workspace | None,
    threads: int | None,
) -> None: ...
def network_input(
    image: npt.NDArray[np.uint8],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    out: npt.NDArray[np.float32],
) -> None: ...
def label_map(
    logits: npt.NDArray[Any],
    is_bfloat16: bool,
    size: tuple[int, int] | None,
    align_corners: bool,
    labels: npt.NDArray[Any],
    workspace: Workspace | None,
    threads: int | None,
) -> None: ...
def image_confidence(
    logits: npt.NDArray[Any],
    is_bfloat16: bool,
    pixel_thresholds: list[float],
    is_single: bool,
    output_stride: int,
    refine: bool,
    edges: str,
    confidence: str,
    size: tuple[int, int] | None,
    align_corners: bool,
    workspace: Workspace | None,
    threads: int | None,
) -> Any: ...
def should_exit(
    logits: npt.NDArray[Any],
    is_bfloat16: bool,
    pixel_threshold: float,
    image_threshold: float,
    output_stride: int,
    refine: bool,
    edges: str,
    confidence: str,
    size: tuple[int, int] | None,
    align_corners: bool,
    workspace: Workspace | None,
    threads: int | None,
) -> Any: ...
def image_confidence_from_map(
    confidence: npt.NDArray[np.float32],
    labels: npt.NDArray[Any],
    pixel_thresholds: list[float],
    output_stride: int,
    refine: bool,
    edges: str,
    workspace: Workspace | None,
    threads: int | None,
) -> list[float]: ...
def canny(
    image: npt.NDArray[np.uint8], low: float, high: float, aperture: int, l2: bool, out: npt.NDArray[np.uint8]
) -> None: ...
def label_edges(labels: npt.NDArray[Any], edges: str, out: npt.NDArray[np.uint8]) -> None: ...
def erode(mask: npt.NDArray[np.uint8], size: int, out: npt.NDArray[np.uint8]) -> None: ...
def dilate(mask: npt.NDArray[np.uint8], size: int, out: npt.NDArray[np.uint8]) -> None: ...
def boundary_mask(labels: npt.NDArray[Any], output_stride: int, edges: str, out: npt.NDArray[np.uint8]) -> None: ...
def refine_confidence(
    confidence: npt.NDArray[np.float32],
    mask: npt.NDArray[np.uint8],
    window: int,
    out: npt.NDArray[np.float32],
    threads: int | None,
) -> None: ...

_Found = tuple[list[int], list[tuple[int, float]], float, float, list[int]]

_Scoring = tuple[str, float, float, str, int]
_Objective = tuple[str, float]
_Space = tuple[int, int | None, list[int], list[int], float]
_Limits = tuple[list[tuple[int, float]], list[tuple[int, str, float, float]]]
_Parts = tuple[list[int], list[tuple[int, float]]]
_Outcome = tuple[
    Literal["optimal", "infeasible", "stopped"], list[_Found], _Found | None, float, float, int, int, float, float
]

def search(
    arrays: tuple[Any, ...],
    scoring: _Scoring,
    objective: _Objective,
    space: _Space,
    limits: _Limits,
    known: list[_Parts],
    part: tuple[int, int],
    journal: str | None,
    time_limit: float | None,
    threads: int | None,
    progress: Callable[..., object] | None,
) -> tuple[_Outcome, BaseException | None]: ...

@final
class SearchPieces:
    def __new__(
        cls,
        arrays: tuple[Any, ...],
        scoring: _Scoring,
        objective: _Objective,
        space: _Space,
        limits: _Limits,
        known: list[_Parts],
        time_limit: float | None,
        threads: int | None,
    ) -> SearchPieces: ...
    def gaps(self, arrays: tuple[Any, ...]) -> list[float]: ...
    def tasks(self) -> list[str]: ...
    def run(
        self,
        arrays: tuple[Any, ...],
        gap: float,
        tasks: list[str],
        known: list[_Parts],
        time_limit: float | None,
        threads: int | None,
    ) -> tuple[list[_Found], list[str], int, int]: ...
    def outcome(self, arrays: tuple[Any, ...], gap: float, known: list[_Parts]) -> _Outcome: ...

@final
class SearchJournal:
    def __new__(
        cls,
        path: str,
        arrays: tuple[Any, ...],
        scoring: _Scoring,
        objective: _Objective,
        space: _Space,
        limits: _Limits,
    ) -> SearchJournal: ...
    def known(self) -> list[_Parts]: ...
    def is_done(self, gap: float, task: str) -> bool: ...
    def finish(self, gap: float, tasks: list[str], found: list[_Parts]) -> None: ...

def evaluate(
    arrays: tuple[Any, ...],
    scoring_arguments: _Scoring,
    parts: _Parts,
) -> tuple[float, float, list[int], list[int]]: ...
