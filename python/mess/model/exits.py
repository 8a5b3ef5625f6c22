"""Exit heads: four independent options (method, section 2), and the grid of them that is searched.

Reading order: `HeadSpec` (the options) -> `head_grid` (which combinations) -> `ExitHead` (the layers). A `CustomHead`
is whatever the user builds instead.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product
from typing import Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.models.segmentation.fcn import FCNHead

SegmentationHead = Literal["fcn", "deeplabv3"]
GridName = Literal["full", "small", "tiny"]
BlockKind = Literal["residual", "bottleneck", "inverted_residual", "plain"]
HeadBuilder = Callable[[int, int], nn.Module]
"""(channels of the feature, number of classes) -> module from (B, channels, h, w) to logits (B, classes, h', w')."""

_NAME = re.compile(r"(fcn|deeplabv3)-r(\d+)-b(\d+)(-d)?")


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class HeadSpec:
    """Architecture of one exit head.

    Attributes:
        channel_reduction: 1x1 convolution to channels / reduction, rounded down, but not to fewer than 4, a quarter of
            which is what the `fcn` head goes on with; 1 leaves it out.
        num_blocks: extra trainable blocks of the backbone's kind, 0..8 (0..3 in the named grids).
        rapid_dilation: dilation doubled at every extra block (2, 4, 8) instead of 1.
        segmentation_head: `fcn` (3x3 convolution, then 1x1) or `deeplabv3` (ASPP).
    """

    channel_reduction: int = 1
    num_blocks: int = 0
    rapid_dilation: bool = False
    segmentation_head: SegmentationHead = "fcn"

    def __post_init__(self) -> None:
        if self.channel_reduction < 1:
            raise ValueError(f"channel_reduction: expected 1 (none), 2, 4, 8 ..., got {self.channel_reduction}")
        if not 0 <= self.num_blocks <= 8:
            raise ValueError(f"num_blocks: expected 0..8, got {self.num_blocks}")
        if self.rapid_dilation and self.num_blocks == 0:
            raise ValueError(
                "rapid_dilation: expected False where num_blocks is 0 (there is nothing to dilate), got True"
            )
        if self.segmentation_head not in ("fcn", "deeplabv3"):
            raise ValueError(f"segmentation_head: expected 'fcn' or 'deeplabv3', got {self.segmentation_head!r}")

    @property
    def name(self) -> str:
        """For example `fcn-r2-b1-d`: FCN head, reduction 2, one extra block, dilated. `from_name` reads it back."""
        dilation = "-d" if self.rapid_dilation else ""
        return f"{self.segmentation_head}-r{self.channel_reduction}-b{self.num_blocks}{dilation}"

    @classmethod
    def from_name(cls, name: str) -> HeadSpec:
        """The spec that has this `name`."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"heads: expected a name like 'fcn-r2-b1-d', got {name!r}")
        head, reduction, blocks, dilated = match.groups()
        return cls(
            channel_reduction=int(reduction),
            num_blocks=int(blocks),
            rapid_dilation=dilated is not None,
            segmentation_head="fcn" if head == "fcn" else "deeplabv3",
        )


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class CustomHead:
    """A head of the user's: a name of letters, digits, `_` and `-`, and what builds it; equal by name."""

    name: str
    build: HeadBuilder = field(compare=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w-]+", self.name) or _NAME.fullmatch(self.name):
            raise ValueError(
                f"heads: expected a name of letters, digits, _ and - that is no grid head's, got {self.name!r}"
            )


AnyHead = HeadSpec | CustomHead


def head_from(given: object) -> AnyHead:
    """A head from a spec, its name, or a function `build(channels, num_classes)` that makes one, named after it."""
    if isinstance(given, HeadSpec | CustomHead):
        return given
    if isinstance(given, str):
        return HeadSpec.from_name(given)
    if callable(given):
        name = getattr(given, "__name__", type(given).__name__)
        return CustomHead(name=re.sub(r"[^\w-]+", "_", name), build=given)
    raise TypeError(f"heads: expected HeadSpec, names of heads or functions, got {type(given).__name__}")


def head_grid(size: GridName = "full") -> tuple[HeadSpec, ...]:
    """Candidate heads of every point; the first is always the plain one that stage 1 trains.

    `full` is the grid of the method, 4 x 4 x 2 x 2 = 64 less the 8 duplicates without blocks to dilate = 56;
    `small` has 8 and `tiny` 3. Any tuple of `HeadSpec` may be used instead.
    """
    if size == "full":
        options = product(("fcn", "deeplabv3"), (1, 2, 4, 8), (0, 1, 2, 3), (False, True))
    elif size == "small":
        options = product(("fcn", "deeplabv3"), (1, 4), (0, 1), (False,))
    elif size == "tiny":
        return (HeadSpec(), HeadSpec(channel_reduction=4), HeadSpec(channel_reduction=2, num_blocks=1))
    else:
        raise ValueError(f"heads: expected 'full', 'small', 'tiny' or a sequence of HeadSpec, got {size!r}")
    return tuple(
        HeadSpec(
            channel_reduction=r, num_blocks=b, rapid_dilation=d, segmentation_head="fcn" if h == "fcn" else "deeplabv3"
        )
        for h, r, b, d in options
        if b > 0 or not d
    )


class ExitHead(nn.Module):
    """Feature (B, channels, h, w) -> logits (B, num_classes, h, w), by the modules that `spec` asks for."""

    def __init__(self, spec: HeadSpec, *, channels: int, num_classes: int, block_kind: BlockKind) -> None:
        super().__init__()
        width = max(4, channels // spec.channel_reduction)
        self.spec = spec
        self.reduction = _reduction(channels, width) if spec.channel_reduction > 1 else nn.Identity()
        self.blocks = nn.Sequential(
            *(
                _block(
                    width if spec.channel_reduction > 1 else channels,
                    block_kind,
                    2 ** (j + 1) if spec.rapid_dilation else 1,
                )
                for j in range(spec.num_blocks)
            )
        )
        inside = width if spec.channel_reduction > 1 else channels
        self.segmentation = (
            FCNHead(inside, num_classes) if spec.segmentation_head == "fcn" else _deeplab_head(inside, num_classes)
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (B, num_classes, h, w) at the feature's own resolution."""
        logits: Tensor = self.segmentation(self.blocks(self.reduction(feature)))
        return logits


def block_kind_of(model: nn.Module) -> BlockKind:
    """The kind of block that a model is made of.

    `inverted_residual` with depthwise 3 x 3 convolutions (MobileNets); `bottleneck` or `residual` with modules named
    like such a block (ResNet-50 and larger; smaller ones) or layers of attention, which have a residual too; else
    `plain`.
    """
    modules = list(model.modules())
    if any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 and m.kernel_size == (3, 3) for m in modules):
        return "inverted_residual"
    names = " ".join({type(m).__name__ for m in modules})
    if re.search(r"bottleneck", names, re.IGNORECASE):
        return "bottleneck"
    return "residual" if re.search(r"BasicBlock|Resid|ResNet|ConvNeXt|ConvNext|Attention", names) else "plain"


def _reduction(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _block(channels: int, kind: BlockKind, dilation: int) -> nn.Module:
    """One block that keeps the shape; every 3x3 convolution in it has `dilation`."""
    if kind == "plain":
        convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        block: nn.Module = nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
    elif kind == "bottleneck" and channels % 4 == 0:
        block = Bottleneck(channels, channels // 4)
    elif kind in ("bottleneck", "residual"):
        block = BasicBlock(channels, channels)
    else:
        block = InvertedResidual(channels, channels, stride=1, expand_ratio=2)
    for part in block.modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3):
            part.dilation = part.padding = (dilation, dilation)
    return block


class _PooledNorm(nn.BatchNorm2d):
    """Batch norm of maps of one pixel: of a single image there is nothing to normalise by but what is known already."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.shape[0] == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


def _deeplab_head(channels: int, num_classes: int) -> nn.Sequential:
    """torchvision's DeepLabHead with a width that follows the feature (at most its 256) instead of always 256."""
    width = min(256, max(32, channels))
    aspp = ASPP(channels, [12, 24, 36], width)
    pooling = cast("nn.Sequential", aspp.convs[-1])
    pooling[2] = _PooledNorm(width)
    return nn.Sequential(
        aspp,
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, num_classes, 1),
    )
