"""Candidate exit points: places in the backbone at block granularity, equidistant in cumulative workload.

Paper, "Multi-Exit Semantic Segmentation Networks" (Kouris et al., ECCV 2022), section on exit placement: profile the
workload of every layer, then place N points as close as possible to i/N of the total. The N-th is the final exit.

A *block* is the outermost module whose output is one map of the picture, in whatever layout, and that costs at most
half of the model; what is inside it is not a place to exit from (half a residual block is no feature). A plain
container (Sequential, ModuleList, ModuleDict) is a block only when nothing but leaves is in it and it costs at most
1/N; one that returns a tuple or a dict, which may be a whole encoder, when it costs at most 1/N. The walk descends into
whatever is no block. Of several modules that complete at the same workload the outermost, then the last one, is kept:
it has seen the activation that follows a convolution. Outputs that are modified in place later are left out, and those
into which little of the work so far went.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mess.model.cost import LayerCost, WorkloadProfile
from mess.model.layout import BCHW, Layout

LEAST_USE = 0.3
"""Of the work so far, the share that has to have gone into a feature: a lateral layer of a decoder often sees only the
first stage of the encoder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExitPoint:
    """A place where an exit head can be attached.

    `module` and `call` name the module call whose output is the feature; `channels` and `feature_size` (height, width)
    are its shape, `layout` how they lie in the tensor; `output_stride` is input pixels per feature pixel; `workload` is
    the cumulative cost there in the profile's unit and `share` the same divided by the total.
    """

    module: str
    call: int
    channels: int
    feature_size: tuple[int, int]
    output_stride: int
    workload: float
    share: float
    layout: Layout = BCHW

    @property
    def name(self) -> str:
        """`module`, or `module#call` from the second call on."""
        return f"{self.module}#{self.call}" if self.call else self.module


def exit_points(
    workload: WorkloadProfile, *, num_exits: int = 6, among: Sequence[str] | None = None
) -> tuple[ExitPoint, ...]:
    """Up to `num_exits - 1` early exit points; the final exit is the model's own output and not among them.

    Args:
        workload: from `mess.profile`.
        num_exits: exits wanted, the final one included; at least 2.
        among: names of the modules to choose from; blocks by default.

    Returns:
        Points in order of execution. Fewer than asked when several targets fall on the same block, or on two that are
        less than 1/(4 N) of the workload apart.

    Raises:
        ValueError: `num_exits` is below 2, or the model offers no point at all.
    """
    if num_exits < 2:
        raise ValueError(f"num_exits: expected at least 2 (one early exit and the final one), got {num_exits}")
    if among is None:
        candidates = block_candidates(workload, num_exits=num_exits)
    else:
        candidates = [layer for layer in workload.layers if layer.name in among and _is_place(layer)]
        candidates = [layer for layer in candidates if layer.end < workload.total]
    if not candidates:
        raise ValueError(
            "model: expected a block whose output is a map of the picture before the end, found none to exit from"
        )
    chosen: list[LayerCost] = []
    apart = workload.total / (4 * num_exits)
    for i in range(1, num_exits):
        target = workload.total * i / num_exits
        nearest = min(candidates, key=lambda layer: abs(layer.end - target))
        if not any(abs(nearest.end - other.end) < apart for other in chosen):
            chosen.append(nearest)
    return tuple(_point(layer, workload) for layer in chosen)


def named_points(workload: WorkloadProfile, names: Sequence[str]) -> tuple[ExitPoint, ...]:
    """Exit points at the modules with these names, in order of execution; `name#1` is the second call of a module.

    Raises:
        ValueError: a name that the model does not have, with the nearest ones; a name given twice; a module whose
            output is no map of the picture, or is overwritten in place further on.
    """
    layers = {layer.call_name: layer for layer in workload.layers}
    if not names or len(set(names)) != len(names):
        raise ValueError(f"exit_points: expected at least one name and none twice, got {list(names)}")
    for name in names:
        if name not in layers:
            near = difflib.get_close_matches(name, layers, n=3, cutoff=0.4)
            raise ValueError(f"exit_points: expected modules that the model calls, got {name!r}; nearest: {near}")
        if layers[name].feature is None:
            raise ValueError(f"exit_points: expected modules whose output is a map of the picture, got {name!r}")
        if layers[name].is_overwritten:
            raise ValueError(
                f"exit_points: {name!r}: its output is overwritten in place further down the model; name the module "
                "that does so"
            )
    chosen = [layer for name, layer in layers.items() if name in names]
    return tuple(_point(layer, workload) for layer in chosen)


def block_candidates(workload: WorkloadProfile, *, num_exits: int) -> list[LayerCost]:
    """Every block end before the last 1/(2 N) of the workload, in order of execution, one per distinct number of MACs.

    Behind that an early exit saves next to nothing; but a block that ends there may be half of the model, a decoder
    say, so blocks inside it count too, as far as they are modules with parts of their own.
    """
    limit = workload.total * (1 - 0.5 / num_exits)
    parents = {name for layer in workload.layers for name in _ancestors(layer.name)}
    found = [layer for layer in workload.layers if _is_block(layer, workload.total, num_exits)]
    early = {layer.name for layer in found if layer.end <= limit}
    late = {layer.name for layer in found if layer.end > limit}
    best: dict[float, LayerCost] = {}
    for layer in found:
        above = _ancestors(layer.name)
        is_inner = any(name in late for name in above) and (layer.is_container or layer.name not in parents)
        if any(name in early for name in above) or is_inner or not _is_place(layer) or not 0 < layer.end <= limit:
            continue
        if layer.uses < LEAST_USE:
            continue
        rival = best.get(layer.macs)
        if rival is None or layer.name.count(".") <= rival.name.count("."):
            best[layer.macs] = layer
    return list(best.values())


def _is_place(layer: LayerCost) -> bool:
    return layer.feature is not None and not layer.is_overwritten


def _is_block(layer: LayerCost, total: float, num_exits: int) -> bool:
    if layer.feature is None:
        return False
    share = (layer.end - layer.start) / total if total else 0.0
    if layer.is_container:
        return layer.is_stack and share <= 1 / num_exits
    return share <= (1 / num_exits if layer.is_bundle else 0.5)


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
        share=layer.end / workload.total if workload.total else 0.0,
        layout=layer.layout or BCHW,
    )


def _output_stride(input_size: tuple[int, int], feature_size: tuple[int, int]) -> int:
    """Input pixels per feature pixel: a power of two within 20 %, as 120 pixels at stride 16 give 8 rows, not 7.5."""
    ratio = min(size / feature for size, feature in zip(input_size, feature_size, strict=True))
    power = 2 ** round(math.log2(max(1.0, ratio)))
    return power if 0.8 <= ratio / power <= 1.25 else max(1, round(ratio))
