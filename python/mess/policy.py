"""The settings of the exit policy, as tables, configurations and manifests keep them."""

from __future__ import annotations

from dataclasses import dataclass

from mess_core import ConfidenceKind, EdgeKind


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicySettings:
    """How image confidence is computed at every exit (`mess_core.image_confidence`).

    Attributes:
        refine: median-refine confidences near label boundaries.
        edges: `canny` or `labels`.
        confidence: `top1`, `margin` or `entropy`.
    """

    refine: bool = True
    edges: EdgeKind = "canny"
    confidence: ConfidenceKind = "top1"

    def __post_init__(self) -> None:
        if not isinstance(self.refine, bool):
            raise ValueError(f"refine: expected true or false, got {self.refine!r}")
        if self.edges not in ("canny", "labels"):
            raise ValueError(f"edges: expected 'canny' or 'labels', got {self.edges!r}")
        if self.confidence not in ("top1", "margin", "entropy"):
            raise ValueError(f"confidence: expected 'top1', 'margin' or 'entropy', got {self.confidence!r}")
