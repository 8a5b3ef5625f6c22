"""The CPU-bound core of multi-exit semantic segmentation. Needs NumPy only.

*Is this prediction good enough to stop?*  `should_exit(logits, pixel_threshold=0.9, image_threshold=0.95)`,
`image_confidence(logits, pixel_threshold=0.9)`, and the steps they are made of: `confidence_map` -> `label_edges` /
`canny` -> `boundary_mask` (`dilate`, `erode`) -> `refine_confidence`; `policy_maps` is all of them. `label_map` is the
prediction alone.

*Which exits, heads and thresholds?*  `search(table, ...)` and `evaluate(table, ...)` on a `SearchTable`; with
`SearchPieces`, many processes share one search.

*What is a network fed?*  `network_input(picture, ...)`: resized and normalised as in training, without torch.

Arrays in are NumPy arrays, DLPack producers (torch tensors on the CPU) or anything `numpy.asarray` takes but masked
arrays; arrays out are fresh, or the caller's (`out=`). The GIL is released while the core works; do not change an input
from another thread meanwhile. Kernels exist for several instruction sets, with the same bits; MESS_CORE_ISA (portable,
avx2, avx512) forces one. MESS_CORE_THREADS sets the threads of calls that do not say. `build_info()` tells both, and
what was built.
"""

from mess_core._build import BuildInfo, build_info
from mess_core._confidence import (
    ConfidenceKind,
    EdgeKind,
    PolicyMaps,
    boundary_mask,
    canny,
    confidence_map,
    dilate,
    erode,
    image_confidence,
    image_confidence_from_map,
    label_edges,
    label_map,
    policy_maps,
    refine_confidence,
    should_exit,
)
from mess_core._mess_core import Workspace, __version__
from mess_core._picture import network_input
from mess_core._pieces import Piece, SearchJournal, SearchPieces
from mess_core._search import (
    Configuration,
    CostLimit,
    Evaluation,
    Found,
    Gate,
    Metric,
    Outcome,
    Progress,
    SearchInterrupted,
    SearchProblem,
    SearchTable,
    Setting,
    Status,
    evaluate,
    search,
)

__all__ = [
    "BuildInfo",
    "ConfidenceKind",
    "Configuration",
    "CostLimit",
    "EdgeKind",
    "Evaluation",
    "Found",
    "Gate",
    "Metric",
    "Outcome",
    "Piece",
    "PolicyMaps",
    "Progress",
    "SearchInterrupted",
    "SearchJournal",
    "SearchPieces",
    "SearchProblem",
    "SearchTable",
    "Setting",
    "Status",
    "Workspace",
    "__version__",
    "boundary_mask",
    "build_info",
    "canny",
    "confidence_map",
    "dilate",
    "erode",
    "evaluate",
    "image_confidence",
    "image_confidence_from_map",
    "label_edges",
    "label_map",
    "network_input",
    "policy_maps",
    "refine_confidence",
    "search",
    "should_exit",
]
