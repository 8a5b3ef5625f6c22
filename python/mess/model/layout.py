"""Where the picture is in a tensor: (B, C, h, w), (B, h, w, C), or tokens (B, N, C) that stand for h x w places.

Nothing in a tensor's shape says which of its dimensions are spatial; running the model at two sizes does: what changes
is spatial. The stride follows from the sizes, and so does the number of tokens that stand for no place (class and
register tokens, queries).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import SymInt, Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

Order = Literal["BCHW", "BHWC", "BNC"]
Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """`prefix` tokens of a BNC tensor stand for no place; they come before those that do, row by row."""

    order: Order = "BCHW"
    prefix: int = 0

    def map_shape(self, shape: tuple[int, ...], input_size: Size) -> tuple[int, int, int]:
        """(channels, height, width) of the map in a tensor of this shape, for images of `input_size`.

        Raises:
            ValueError: as many tokens as there are cannot be a map of the image.
        """
        if self.order == "BCHW":
            return shape[1], shape[2], shape[3]
        if self.order == "BHWC":
            return shape[3], shape[1], shape[2]
        places = shape[1] - self.prefix
        grid = _free_grid(places, input_size) if _is_free(places) else _grid(places, input_size)
        if grid is None:
            raise ValueError(
                f"images: expected a size whose tokens form a grid, got {input_size} with {shape[1]} tokens, "
                f"{self.prefix} of them beside the picture"
            )
        return shape[2], *grid

    def to_map(self, feature: Tensor, input_size: Size) -> Tensor:
        """The map (B, C, h, w) in a tensor of this layout; a view where it can be one."""
        if self.order == "BCHW":
            return feature
        if self.order == "BHWC":
            return feature.permute(0, 3, 1, 2).contiguous()
        channels, height, width = self.map_shape(tuple(feature.shape), input_size)
        places = feature[:, self.prefix :]
        return places.transpose(1, 2).reshape(feature.shape[0], channels, height, width)


BCHW = Layout()
"""What convolutions give."""


def feature_tensor(output: Any) -> Tensor | None:
    """The tensor a module's output is about: itself, or the only one of three or four dimensions in a tuple or dict."""
    if isinstance(output, Tensor):
        return output if output.ndim in (3, 4) else None
    found = [value for value in _entries(output) if isinstance(value, Tensor) and value.ndim in (3, 4)]
    return found[0] if len(found) == 1 else None


def with_feature(output: Any, old: Tensor, new: Tensor) -> Any:
    """`output` with `new` in the place of `old`."""
    if output is old:
        return new
    if hasattr(output, "items"):
        changed = copy.copy(output)  # of whatever class, with whatever keys
        for key, value in output.items():
            if value is old:
                changed[key] = new
        return changed
    entries = (new if value is old else value for value in output)
    return type(output)(*entries) if hasattr(output, "_fields") else type(output)(entries)


def layout_from_sizes(first: tuple[int, ...], second: tuple[int, ...], sizes: tuple[Size, Size]) -> Layout | None:
    """Layout of a tensor whose shape is `first` for images of `sizes[0]`, `second` for `sizes[1]`; None if it has none.

    The two sizes must differ in both height and width.
    """
    if len(first) != len(second):
        return None
    changed = tuple(i for i in range(1, len(first)) if first[i] != second[i])
    if len(first) == 4 and changed in ((2, 3), (1, 2)):
        layout = Layout("BCHW" if changed == (2, 3) else "BHWC")
        return (
            layout
            if all(_is_cover(_map(layout, s, z), z) for s, z in ((first, sizes[0]), (second, sizes[1])))
            else None
        )
    if len(first) != 3 or changed != (1,):
        return None
    growth = math.prod(sizes[1]) / math.prod(sizes[0]) - 1
    places = round((second[1] - first[1]) / growth)
    prefix = first[1] - places
    grids = _grid(places, sizes[0]), _grid(second[1] - prefix, sizes[1])
    return Layout("BNC", prefix) if prefix >= 0 and None not in grids else None


def layout_from_size(shape: tuple[int, ...], size: Size) -> Layout | None:
    """The same from one size, for models that take no other: (B, C, h, w) before (B, h, w, C), few tokens beside."""
    if len(shape) == 4:
        fits = [x for x in (BCHW, Layout("BHWC")) if _is_cover(_map(x, shape, size), size)]
        return min(fits, key=lambda layout: _skew(_map(layout, shape, size), size), default=None)
    if len(shape) != 3:
        return None
    strides = (stride for stride in range(1, 65) if size[0] % stride == size[1] % stride == 0)
    places = [size[0] // stride * (size[1] // stride) for stride in strides]
    return next((Layout("BNC", shape[1] - count) for count in places if count <= shape[1]), None)


def _map(layout: Layout, shape: tuple[int, ...], size: Size) -> tuple[int, int]:
    return layout.map_shape(shape, size)[1:]


def _is_cover(feature: Size, size: Size) -> bool:
    strides = [whole / part for whole, part in zip(size, feature, strict=True)]
    return min(strides) >= 0.9 and max(strides) <= 64.5 and _skew(feature, size) < 1.5


def _skew(feature: Size, size: Size) -> float:
    """How much larger the stride is in one direction than in the other."""
    strides = [whole / part for whole, part in zip(size, feature, strict=True)]
    return max(strides) / min(strides)


def _grid(places: int, size: Size) -> tuple[int, int] | None:
    """(height, width) of `places` tokens in the shape of the picture, within a rounded row or column."""
    if places < 1:
        return None
    ideal = math.sqrt(places * size[0] / size[1])
    for height in sorted({math.floor(ideal), math.ceil(ideal)}, key=lambda h: abs(h - ideal)):
        if height > 0 and places % height == 0 and _is_cover((height, places // height), size):
            return height, places // height
    return None


def _free_grid(places: Any, size: tuple[Any, Any]) -> tuple[Any, Any] | None:
    """The same while `torch.export` records a model for any size: a formula of the size, rounded up or down."""
    now = _hint(size[0]), _hint(size[1])
    grid = _grid(_hint(places), now)
    if grid is None:
        return None
    (tall, wide), strides = size, [round(whole / part) for whole, part in zip(now, grid, strict=True)]
    rounded_up = (tall - 1) // strides[0] + 1, (wide - 1) // strides[1] + 1
    rounded_down = tall // strides[0], wide // strides[1]
    return next((x for x in (rounded_up, rounded_down) if statically_known_true(x[0] * x[1] == places)), None)


def _is_free(size: Any) -> bool:
    return isinstance(size, SymInt)


def _hint(size: Any) -> int:
    """The size that a free one has in the example."""
    return int(size.node.hint if _is_free(size) else size)


def _entries(output: Any) -> list[Any]:
    if isinstance(output, list | tuple):
        return list(output)
    return list(output.values()) if hasattr(output, "values") else []
