"""Models by name, for the command line: the project's own two, those of the well-known libraries, or a user's factory.

A factory is any callable that returns a module, named `package.module:factory` or `path/to/module.py:factory`; it is
given `num_classes=` if it takes that.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import MobileNetV2, get_model, list_models, segmentation
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock
from torchvision.models.segmentation.fcn import FCNHead

from mess.model.weights import load_weights

OWN_MODELS = ("mobilenet_v2_fcn", "small_resnet_fcn")


class SegmentationNet(nn.Module):
    """Backbone feature -> FCN head -> logits upsampled to the input's size: the plain shape of a segmentation model."""

    def __init__(self, backbone: nn.Sequential, channels: int, num_classes: int) -> None:
        super().__init__()
        self.features = backbone
        self.classifier = FCNHead(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, num_classes, H, W)."""
        logits = self.classifier(self.features(images))
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def mobilenet_v2_fcn(*, num_classes: int, output_stride: int = 8, weights: str | Path | None = None) -> SegmentationNet:
    """MobileNetV2-FCN: torchvision's `mobilenet_v2().features` up to the 320-channel block, dilated, and an FCN head.

    The last 1x1 convolution to 1280 channels serves classification and is left out.

    Args:
        num_classes: C of the logits.
        output_stride: 8, 16 or 32; strides beyond it become dilation, so pretrained weights fit.
        weights: a safetensors file with torchvision's names `features.*` (ImageNet weights), no pickle.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride: expected 8, 16 or 32, got {output_stride}")
    backbone = MobileNetV2().features[:-1]
    stride, dilation = 2, 1
    for block in list(backbone)[1:]:
        if not isinstance(block, InvertedResidual):
            continue
        depthwise = next(m for m in block.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
        entering = dilation
        if depthwise.stride == (2, 2):
            if stride >= output_stride:
                depthwise.stride, dilation = (1, 1), dilation * 2
            else:
                stride *= 2
        # the strided convolution itself still sees the old spacing; what follows sees the new one (DeepLab, 2017)
        depthwise.dilation = depthwise.padding = (entering, entering)
    net = SegmentationNet(backbone, 320, num_classes)
    if weights is not None:
        load_weights(net, weights, prefix="features.", ignored="features.18.")
    return net


def small_resnet_fcn(*, num_classes: int, width: int = 16) -> SegmentationNet:
    """A small residual network, output stride 8, 12 blocks, for the demo and tests: trains on a CPU in minutes."""
    stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    blocks: list[nn.Module] = [stem]
    channels = width
    for stage, (out, stride) in enumerate([(width, 1), (2 * width, 2), (4 * width, 2), (6 * width, 1)]):
        for i in range(3):
            shortcut = None
            step = stride if i == 0 else 1
            if step != 1 or channels != out:
                shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride=step, bias=False), nn.BatchNorm2d(out))
            block = BasicBlock(channels, out, stride=step, downsample=shortcut)
            if stage == 3:
                for part in block.modules():
                    if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3):
                        part.dilation = part.padding = (2, 2)
            blocks.append(block)
            channels = out
    return SegmentationNet(nn.Sequential(*blocks), channels, num_classes)


def model_from_spec(spec: str, *, num_classes: int, weights: str | Path | None = None) -> nn.Module:
    """The model that `spec` names, in train mode, randomly initialised unless `weights` is given.

    Args:
        spec: one of

            - `mobilenet_v2_fcn`, `mobilenet_v2_fcn:OS` with an output stride, `small_resnet_fcn`;
            - `torchvision:NAME`, a segmentation model of torchvision (its name alone will do);
            - `smp:ARCHITECTURE/ENCODER` of segmentation_models_pytorch, such as `smp:Unet/resnet34`;
            - `hf:TYPE`, a model type of transformers with its default configuration, such as `hf:segformer`, or
              `hf:PATH-OR-HUB-ID` with the weights found there (safetensors only);
            - `package.module:factory` or `path/module.py:factory`.
        num_classes: C of the logits.
        weights: a safetensors file. ImageNet backbone weights for `mobilenet_v2_fcn`; else a whole state dict.

    Raises:
        ValueError: no such model, its library is not there, the factory did not return a module, or fewer than 1 class.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
    name, _, rest = spec.partition(":")
    if name == "mobilenet_v2_fcn" and (not rest or rest.isdigit()):
        return mobilenet_v2_fcn(num_classes=num_classes, output_stride=int(rest or 8), weights=weights)
    torchvision_models = list_models(module=segmentation)
    if spec == "small_resnet_fcn":
        net: nn.Module = small_resnet_fcn(num_classes=num_classes)
    elif spec.removeprefix("torchvision:") in torchvision_models:
        options = {"weights": None, "weights_backbone": None, "num_classes": num_classes}
        net = get_model(spec.removeprefix("torchvision:"), **options)
    elif name in ("smp", "hf") and rest:
        net = (_from_smp if name == "smp" else _from_transformers)(rest, num_classes)
    elif rest and name != "torchvision":
        net = _from_factory(name, rest, num_classes)
    else:
        known = ", ".join((*OWN_MODELS, *torchvision_models))
        raise ValueError(
            f"model: expected one of {known}, 'smp:ARCHITECTURE/ENCODER', 'hf:TYPE', 'package.module:factory' or "
            f"'module.py:factory', got {spec!r}"
        )
    if weights is not None:
        load_weights(net, weights)
    return net


def comes_from_a_library(spec: str) -> bool:
    """Whether `model_from_spec(spec)` runs no code and reads no file but those of installed libraries."""
    name, _, rest = spec.partition(":")
    if name == "hf":
        return rest in _library("transformers", "transformers").CONFIG_MAPPING
    own = spec == "small_resnet_fcn" or (name == "mobilenet_v2_fcn" and (not rest or rest.isdigit()))
    is_smp = (
        name == "smp" and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", rest) is not None
    )  # timm's local-dir:, hf-hub: are not
    return own or is_smp or spec.removeprefix("torchvision:") in list_models(module=segmentation)


def _from_smp(rest: str, num_classes: int) -> nn.Module:
    library = _library("segmentation_models_pytorch", "segmentation-models-pytorch")
    architecture, _, encoder = rest.partition("/")
    try:
        options = {"encoder_name": encoder} if encoder else {}
        net: nn.Module = library.create_model(architecture, encoder_weights=None, classes=num_classes, **options)
    except KeyError as error:
        raise ValueError(f"model: smp has no such model {rest!r}: {error}") from None
    return net


def _from_transformers(rest: str, num_classes: int) -> nn.Module:
    library = _library("transformers", "transformers")
    tries: list[Callable[[], nn.Module]]
    kinds = [library.AutoModelForSemanticSegmentation, library.AutoModelForUniversalSegmentation]
    if rest in library.CONFIG_MAPPING:
        config = library.AutoConfig.for_model(rest, num_labels=num_classes)
        tries = [lambda kind=kind: kind.from_config(config) for kind in kinds]  # type: ignore[misc]
    else:
        options: dict[str, Any] = {"num_labels": num_classes, "ignore_mismatched_sizes": True, "use_safetensors": True}
        options["dtype"] = "float32"  # whatever the weights were stored in
        tries = [lambda kind=kind: kind.from_pretrained(rest, **options) for kind in kinds]  # type: ignore[misc]
    reasons = []
    for build in tries:
        try:
            return build()
        except (ValueError, OSError) as error:
            reasons.append(str(error).strip().splitlines()[0])
    raise ValueError(f"model: transformers cannot make a segmentation model of {rest!r}: {reasons[0]}")


def _library(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"model: needs the library {package}: pip install {package} ({error})") from None


def _from_factory(module_name: str, attribute: str, num_classes: int) -> nn.Module:
    try:
        module = _module_of_file(Path(module_name)) if module_name.endswith(".py") else None
        factory = getattr(module or importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, OSError) as error:
        raise ValueError(f"model: cannot import {module_name}:{attribute}: {error}") from None
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"model: {module_name} cannot be run: {type(error).__name__}: {error}") from error
    takes = inspect.signature(factory).parameters.values()
    is_told = any(p.name == "num_classes" or p.kind is inspect.Parameter.VAR_KEYWORD for p in takes)
    try:
        net = factory(num_classes=num_classes) if is_told else factory()
    except Exception as error:  # whatever the user's code raises
        raise ValueError(
            f"model: {module_name}:{attribute} cannot be called: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(net, nn.Module):
        raise ValueError(f"model: expected {module_name}:{attribute} to return an nn.Module, got {type(net).__name__}")
    return net


def _module_of_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"mess_model_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise OSError("no such file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
