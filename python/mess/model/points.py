"""Candidate exit points: places in the backbone at block granularity, equidistant in cumulative workload.

Paper, "Multi-Exit Semantic Segmentation Networks" (Kouris et al., ECCV 2022), section on exit placement: profile the
workload of every layer, then place N points as close as possible to i/N of the total. The N-th is the final exit.

A *block* is the outermost module that gives one 4-D feature and costs at most half of the model; what is inside it is
not a place to exit from (half a residual block is no feature). A plain container (Sequential, ModuleList, ModuleDict)
is a block only when nothing but leaves is in it and it costs at most 1/N. The walk descends into whatever is no
block. Of several modules that complete at the same workload the outermost, then the last one, is kept: it has seen the
activation that follows a convolution. Outputs that are modified in place later are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mess.model.cost import LayerCost, WorkloadProfile


@dataclass(frozen=True, kw_only=True, slots=True)
class ExitPoint:
    """A place where an exit head can be attached.

    `module` and `call` name the module call whose output is the feature; `channels` and `feature_size` (height, width)
    are its shape; `output_stride` is input pixels per feature pixel; `workload` is the cumulative cost there in the
    profile's unit and `share` the same divided by the total.
    """

    module: str
    call: int
    channels: int
    feature_size: tuple[int, int]
    output_stride: int
    workload: float
    share: float


def exit_points(workload: WorkloadProfile, *, num_exits: int = 6) -> tuple[ExitPoint, ...]:
    """Up to `num_exits - 1` early exit points; the final exit is the model's own output and not among them.

    Args:
        workload: from `mess.profile`.
        num_exits: exits wanted, the final one included; at least 2.

    Returns:
        Points in order of execution. Fewer than asked when several targets fall on the same block.

    Raises:
        ValueError: `num_exits` is below 2, or the model offers no point at all.
    """
    if num_exits < 2:
        raise ValueError(f"num_exits: expected at least 2 (one early exit and the final one), got {num_exits}")
    candidates = block_candidates(workload, num_exits=num_exits)
    if not candidates:
        raise ValueError("model: expected a block with one (B, C, H, W) output before the end, found none to exit from")
    chosen: list[LayerCost] = []
    for i in range(1, num_exits):
        target = workload.total * i / num_exits
        nearest = min(candidates, key=lambda layer: abs(layer.end - target))
        if nearest not in chosen:
            chosen.append(nearest)
    return tuple(_point(layer, workload) for layer in chosen)


def block_candidates(workload: WorkloadProfile, *, num_exits: int) -> list[LayerCost]:
    """Every block end before the last 1/(2 N) of the workload, in order of execution, one per distinct workload."""
    blocks = {layer.name for layer in workload.layers if _is_block(layer, workload.total, num_exits)}
    outermost = [
        layer
        for layer in workload.layers
        if layer.name in blocks and not any(a in blocks for a in _ancestors(layer.name))
    ]
    limit = workload.total * (1 - 0.5 / num_exits)
    best: dict[float, LayerCost] = {}
    for layer in outermost:
        if layer.feature is None or layer.is_overwritten or not 0 < layer.end <= limit or not _is_map(layer, workload):
            continue
        rival = best.get(layer.end)
        if rival is None or layer.name.count(".") <= rival.name.count("."):
            best[layer.end] = layer
    return list(best.values())


def _is_block(layer: LayerCost, total: float, num_exits: int) -> bool:
    if layer.feature is None:
        return False
    share = (layer.end - layer.start) / total if total else 0.0
    return (layer.is_stack and share <= 1 / num_exits) if layer.is_container else share <= 0.5


def _is_map(layer: LayerCost, workload: WorkloadProfile) -> bool:
    """The feature is a map that covers the picture: one stride in both directions, at most 64, not a pooled vector."""
    assert layer.feature is not None
    _, height, width = layer.feature
    strides = workload.input_size[0] / height, workload.input_size[1] / width
    return max(strides) <= 64.5 and max(strides) / min(strides) < 1.5


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _point(layer: LayerCost, workload: WorkloadProfile) -> ExitPoint:
    assert layer.feature is not None
    channels, height, width = layer.feature
    return ExitPoint(
        module=layer.name,
        call=layer.call,
        channels=channels,
        feature_size=(height, width),
        output_stride=_output_stride(workload.input_size, (height, width)),
        workload=layer.end,
        share=layer.end / workload.total,
    )


def _output_stride(input_size: tuple[int, int], feature_size: tuple[int, int]) -> int:
    """Input pixels per feature pixel: a power of two within 20 %, as 120 pixels at stride 16 give 8 rows, not 7.5."""
    ratio = min(size / feature for size, feature in zip(input_size, feature_size, strict=True))
    power = 2 ** round(math.log2(max(1.0, ratio)))
    return power if 0.8 <= ratio / power <= 1.25 else max(1, round(ratio))
