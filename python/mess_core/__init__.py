"""The CPU-bound core of multi-exit semantic segmentation. Needs NumPy only.

*Is this prediction good enough to stop?*  `image_confidence(logits, pixel_threshold=0.9)` and the steps it is made of:
`confidence_map` -> `label_edges` / `canny` -> `boundary_mask` (`dilate`, `erode`) -> `refine_confidence`.

*Which exits, heads and thresholds?*  `search(table, ...)` and `evaluate(table, ...)` on a `SearchTable`.

Arrays in are NumPy arrays or anything `numpy.asarray` takes; arrays out are fresh. The GIL is released while the core
works; do not change an input from another thread meanwhile.
"""

from mess_core._confidence import (
    ConfidenceKind,
    EdgeKind,
    boundary_mask,
    canny,
    confidence_map,
    dilate,
    erode,
    image_confidence,
    image_confidence_from_map,
    label_edges,
    refine_confidence,
)
from mess_core._mess_core import __version__
from mess_core._search import (
    Configuration,
    Evaluation,
    Found,
    Gate,
    Outcome,
    SearchTable,
    Setting,
    Status,
    evaluate,
    search,
)

__all__ = [
    "ConfidenceKind",
    "Configuration",
    "EdgeKind",
    "Evaluation",
    "Found",
    "Gate",
    "Outcome",
    "SearchTable",
    "Setting",
    "Status",
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
