"""Models that users bring: every family of the table in benches/record/models.md, built with random weights.

`CASES` lists them; nothing here knows anything of exits. The libraries are imported when a model is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model: how to build it, and two sizes (height, width) that it takes, or one and None."""

    name: str
    family: str
    build: Callable[[], nn.Module]
    size: tuple[int, int] = (64, 96)
    other_size: tuple[int, int] | None = (96, 64)
    expected_backend: str = "graph"


def torchvision_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision.models import get_model

        return get_model(name, weights=None, weights_backbone=None, num_classes=21, **options)

    return build


def smp_model(architecture: str, encoder: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import segmentation_models_pytorch as smp

        return smp.create_model(architecture, encoder_name=encoder, encoder_weights=None, classes=21)

    return build


def segformer() -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=21))


def upernet_convnext() -> nn.Module:
    from transformers import ConvNextConfig, UperNetConfig, UperNetForSemanticSegmentation

    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ConvNextConfig(hidden_sizes=[96, 192, 384, 768], depths=[3, 3, 9, 3], out_features=stages)
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, hidden_size=64, num_labels=21))


def mobilevit_v2() -> nn.Module:
    from transformers import MobileViTV2Config, MobileViTV2ForSemanticSegmentation

    return MobileViTV2ForSemanticSegmentation(MobileViTV2Config(num_labels=21))


def dpt() -> nn.Module:
    from transformers import DPTConfig, DPTForSemanticSegmentation

    config = DPTConfig(hidden_size=192, intermediate_size=768, num_attention_heads=3, num_labels=21, image_size=96)
    return DPTForSemanticSegmentation(config)


def eomt() -> nn.Module:
    from transformers import EomtConfig, EomtForUniversalSegmentation

    config = EomtConfig(
        hidden_size=96, num_hidden_layers=8, num_attention_heads=3, num_queries=20, image_size=96, num_labels=21
    )
    return EomtForUniversalSegmentation(config)


def _conv(a: int, b: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True))


class ENetLike(nn.Module):
    """Max-unpooling: the indices of the encoder's pooling are carried to the decoder (Paszke et al., ENet, 2016)."""

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        self.initial = _conv(3, 16, 2)
        self.encoder1 = nn.Sequential(*(_conv(16, 16) for _ in range(3)))
        self.encoder2 = nn.Sequential(*(_conv(16, 16) for _ in range(4)))
        self.decoder2 = nn.Sequential(*(_conv(16, 16) for _ in range(2)))
        self.decoder1 = nn.Sequential(*(_conv(16, 16) for _ in range(2)))
        self.classifier = nn.Conv2d(16, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.encoder1(self.initial(images))
        size1 = x.shape[-2:]
        x, indices1 = F.max_pool2d(x, 2, return_indices=True)
        x = self.encoder2(x)
        size2 = x.shape[-2:]
        x, indices2 = F.max_pool2d(x, 2, return_indices=True)
        x = self.decoder2(F.max_unpool2d(x, indices2, 2, output_size=list(size2)))
        x = self.decoder1(F.max_unpool2d(x, indices1, 2, output_size=list(size1)))
        return F.interpolate(self.classifier(x), size=images.shape[-2:], mode="bilinear", align_corners=False)


class BiSeNetLike(nn.Module):
    """Two branches, a detailed and a deep one, fused at the end (Yu et al., BiSeNet, 2018); two further outputs."""

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        self.detail = nn.Sequential(_conv(3, 16, 2), _conv(16, 32, 2), _conv(32, 48, 2))
        self.semantic = nn.Sequential(
            _conv(3, 16, 2), _conv(16, 24, 2), _conv(24, 32, 2), _conv(32, 48, 2), _conv(48, 48)
        )
        self.fuse = _conv(96, 48)
        self.out = nn.Conv2d(48, classes, 1)
        self.aux = nn.Conv2d(48, classes, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        detail, semantic = self.detail(images), self.semantic(images)
        size = detail.shape[-2:]
        context = semantic * semantic.mean((2, 3), keepdim=True).sigmoid()
        both = self.fuse(torch.cat([detail, F.interpolate(context, size=size, mode="bilinear")], dim=1))
        main = F.interpolate(self.out(both), size=images.shape[-2:], mode="bilinear")
        return main, self.aux(semantic)


class UNet(nn.Module):
    """Ronneberger et al., 2015, with the skips carried across."""

    def __init__(self, classes: int = 21, width: int = 16) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.down = nn.ModuleList(
            nn.Sequential(_conv(a, b), _conv(b, b)) for a, b in zip([3, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            nn.Sequential(_conv(a + b, b), _conv(b, b)) for a, b in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.out = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        skips = []
        x = images
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([F.interpolate(x, size=skip.shape[-2:]), skip], dim=1))
        return self.out(x)


class DataDependent(nn.Module):
    """Python decides by a value of the image how often a block is run."""

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        self.stem = _conv(3, 16, 2)
        self.blocks = nn.ModuleList(_conv(16, 16) for _ in range(4))
        self.extra = _conv(16, 16)
        self.out = nn.Conv2d(16, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        if float(x.mean()) > 0.3:
            x = self.extra(x)
        return self.out(x)


@dataclass
class Answer:
    """What `InDataclass` returns."""

    features: Tensor
    logits: Tensor


class InDataclass(nn.Module):
    """Returns a dataclass; one of its blocks is called twice, and an inplace activation overwrites a block's output."""

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        self.stem = _conv(3, 16, 2)
        self.shared = _conv(16, 16)
        self.bare = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Sequential(_conv(16, 16), _conv(16, 16))
        self.out = nn.Conv2d(16, classes, 1)

    def forward(self, images: Tensor) -> Answer:
        x = self.shared(self.shared(self.stem(images)))
        x = F.relu_(self.bare(x))
        x = self.last(x)
        return Answer(features=x, logits=self.out(x))


class InDict(nn.Module):
    """Returns a dict."""

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        self.body = nn.Sequential(*(_conv(3 if i == 0 else 16, 16, 2 if i == 0 else 1) for i in range(6)))
        self.out = nn.Conv2d(16, classes, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.out(self.body(images))}


CASES = (
    Case(name="fcn_resnet50", family="torchvision", build=torchvision_model("fcn_resnet50")),
    Case(name="fcn_resnet50 + aux", family="torchvision", build=torchvision_model("fcn_resnet50", aux_loss=True)),
    Case(name="deeplabv3_resnet50", family="torchvision", build=torchvision_model("deeplabv3_resnet50")),
    Case(
        name="deeplabv3_resnet50 + aux",
        family="torchvision",
        build=torchvision_model("deeplabv3_resnet50", aux_loss=True),
    ),
    Case(name="lraspp_mobilenet_v3_large", family="torchvision", build=torchvision_model("lraspp_mobilenet_v3_large")),
    Case(name="Unet mobilenet_v2", family="smp", build=smp_model("Unet", "mobilenet_v2")),
    Case(name="Unet resnet34", family="smp", build=smp_model("Unet", "resnet34")),
    Case(name="DeepLabV3Plus resnet34", family="smp", build=smp_model("DeepLabV3Plus", "resnet34")),
    Case(name="DeepLabV3Plus mobilenet_v2", family="smp", build=smp_model("DeepLabV3Plus", "mobilenet_v2")),
    Case(name="FPN mit_b0", family="smp", build=smp_model("FPN", "mit_b0")),
    Case(name="FPN resnet34", family="smp", build=smp_model("FPN", "resnet34")),
    Case(name="PSPNet resnet34", family="smp", build=smp_model("PSPNet", "resnet34")),
    Case(name="Segformer mit_b0", family="smp", build=smp_model("Segformer", "mit_b0")),
    Case(name="UPerNet convnext_tiny", family="smp", build=smp_model("UPerNet", "tu-convnext_tiny")),
    Case(name="UPerNet mobilenet_v2", family="smp", build=smp_model("UPerNet", "mobilenet_v2")),
    Case(name="SegFormer-B0", family="transformers", build=segformer),
    Case(name="UPerNet-ConvNeXt", family="transformers", build=upernet_convnext),
    Case(name="MobileViTV2", family="transformers", build=mobilevit_v2),
    Case(name="DPT", family="transformers", build=dpt, size=(96, 96), other_size=(64, 64)),
    Case(name="EoMT", family="transformers", build=eomt, size=(96, 96), other_size=None, expected_backend="eager"),
    Case(name="ENet-like", family="hand-written", build=ENetLike),
    Case(name="BiSeNet-like", family="hand-written", build=BiSeNetLike),
    Case(name="U-Net", family="hand-written", build=UNet),
    Case(name="data-dependent", family="hand-written", build=DataDependent, expected_backend="eager"),
    Case(name="returns a dataclass", family="hand-written", build=InDataclass),
    Case(name="returns a dict", family="hand-written", build=InDict),
)
"""BiSeNet-like returns a tuple."""
