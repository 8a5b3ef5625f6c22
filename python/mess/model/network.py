"""The multi-exit network: the user's model, exit points along it, candidate heads at every point.

`convert` assembles it: profile -> points -> heads. The user's model stays the object it was, under `net`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mess.model.adapter import LogitsModel, check_example, evaluating
from mess.model.cost import CostKind, WorkloadProfile, profile
from mess.model.exits import ExitHead, GridName, HeadSpec, block_kind_of, head_grid
from mess.model.points import ExitPoint, exit_points
from mess.model.split import captured_features

FINAL_EXIT = "final"
"""Name of the original model's own exit, beside `ExitId.name` of the early ones."""


@dataclass(frozen=True, slots=True, order=True)
class ExitId:
    """An early exit: index of its exit point, and the head attached there."""

    point: int
    head: HeadSpec

    @property
    def name(self) -> str:
        """For example `2:fcn-r4-b0`: point 2, head `fcn-r4-b0`."""
        return f"{self.point}:{self.head.name}"


class MultiExitNetwork(LogitsModel):
    """A user's segmentation model with candidate exit heads.

    Called like the model it wraps, it gives the final exit's logits, bit for bit those of the user's model. `features`
    and `exit_logits` give the early exits. `state_dict()` keeps the user's names under `net.`; heads are under
    `heads.`.

    Attributes:
        net: the user's model itself.
        points: exit points in order of execution.
        heads: `heads[str(point)][head name]`.
        num_classes: C of the logits.
        workload: the profile that placed the points.
        in_channels: channels of the images.
    """

    def __init__(
        self,
        net: nn.Module,
        points: Sequence[ExitPoint],
        heads: Sequence[HeadSpec],
        num_classes: int,
        workload: WorkloadProfile,
        in_channels: int = 3,
    ) -> None:
        super().__init__(net)
        self.points = tuple(points)
        self.num_classes = num_classes
        self.workload = workload
        self.in_channels = in_channels
        self.block_kind = block_kind_of(net)
        self.heads = nn.ModuleDict(
            {
                str(i): nn.ModuleDict({spec.name: self._new_head(p, spec) for spec in heads})
                for i, p in enumerate(points)
            }
        )

    def example(self, size: tuple[int, int] | None = None) -> Tensor:
        """A batch (1, 3, H, W) of zeros, on the network's device and of its dtype; by default of the converted size."""
        parameter = next(self.parameters())
        shape = (1, self.in_channels, *(size or self.workload.input_size))
        return torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)

    @property
    def exits(self) -> tuple[ExitId, ...]:
        """Every candidate early exit, by point, then in the grid's order."""
        return tuple(ExitId(i, HeadSpec.from_name(name)) for i in range(len(self.points)) for name in self._heads_at(i))

    @property
    def plain_exits(self) -> tuple[ExitId, ...]:
        """The first head of every point: what stage 1 trains."""
        return tuple(ExitId(i, HeadSpec.from_name(next(iter(self._heads_at(i))))) for i in range(len(self.points)))

    def head(self, exit_id: ExitId) -> ExitHead:
        """The head module of an exit."""
        module = self._heads_at(exit_id.point)[exit_id.head.name]
        assert isinstance(module, ExitHead)
        return module

    def features(self, images: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """One pass: final logits (B, C, h, w), and the feature (B, channels, h_i, w_i) at every exit point."""
        with captured_features(self.net, self.points) as found:
            logits = self(images)
        return logits, found

    def exit_logits(self, features: Mapping[int, Tensor], exits: Iterable[ExitId]) -> dict[ExitId, Tensor]:
        """Logits (B, C, h_i, w_i) of `exits`, at the resolution of their features."""
        return {exit_id: self.head(exit_id)(features[exit_id.point]) for exit_id in exits}

    def _heads_at(self, point: int) -> nn.ModuleDict:
        at = self.heads[str(point)]
        assert isinstance(at, nn.ModuleDict)
        return at

    def _new_head(self, point: ExitPoint, spec: HeadSpec) -> ExitHead:
        return ExitHead(spec, channels=point.channels, num_classes=self.num_classes, block_kind=self.block_kind)


def convert(
    model: nn.Module,
    example_input: Tensor,
    *,
    num_exits: int = 6,
    heads: Sequence[HeadSpec | str] | GridName = "full",
    by: CostKind = "macs",
    seed: int = 0,
) -> MultiExitNetwork:
    """Turn a segmentation model into a multi-exit network; no line of the model changes, no parameter is copied.

    Args:
        model: takes (B, channels, H, W) and returns logits (B, C, h, w), alone or in a dict, object or tuple.
        example_input: a batch of the size the network will see; only shapes matter.
        num_exits: exits wanted, the final one included.
        heads: candidate heads of every point: a named grid, or any sequence of `HeadSpec` or of their names.
        by: what "equidistant" is measured in, `macs` or `latency`.
        seed: initialises the heads; the model's own weights are not touched.

    Returns:
        The network. A warning says so when the model offers fewer points than asked.

    Raises:
        TypeError: the model's output holds no logits (B, C, H, W).
        ValueError: an argument is off, or the model has no block to exit from.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    images = check_example(example_input)
    given = head_grid(cast("GridName", heads)) if isinstance(heads, str) else heads
    specs = tuple(HeadSpec.from_name(spec) if isinstance(spec, str) else spec for spec in given)
    if not specs or len({spec.name for spec in specs}) != len(specs):
        raise ValueError(f"heads: expected at least one HeadSpec and no duplicates, got {[s.name for s in specs]}")
    with evaluating(model):
        num_classes = LogitsModel(model)(images[:1]).shape[1]
    if num_classes < 2:
        raise ValueError(
            f"model: expected logits of at least 2 classes, got {num_classes}: confidence is a softmax; give a model "
            "with one sigmoid output two (0 and the logit)"
        )
    workload = profile(model, images, by=by)
    points = exit_points(workload, num_exits=num_exits)
    if len(points) < num_exits - 1:
        warnings.warn(
            f"num_exits: asked {num_exits}, got {len(points) + 1}: several targets fall on the same block "
            f"({', '.join(p.module for p in points)})",
            stacklevel=2,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = MultiExitNetwork(model, points, specs, num_classes, workload, images.shape[1])
    return network.to(device=images.device, dtype=images.dtype)


def upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear to `size` (height, width), align_corners=False; itself when it has that size already."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
