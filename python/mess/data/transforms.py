"""From uint8 pairs to the tensors a network sees: torchvision transforms v2, image and mask together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from mess.data.dataset import IGNORE_INDEX, IMAGENET_MEAN, IMAGENET_STD
from mess.runtime.pixels import labels_at


def train_transform(
    size: tuple[int, int], mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> v2.Transform:
    """Random scale, crop to `size` (height, width), flip and colour jitter; then normalisation."""
    aspect = size[1] / size[0]
    return v2.Compose(
        [
            _RandomResizedCrop(size, scale=(0.4, 1.0), ratio=(aspect * 0.8, aspect * 1.25), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.02),
            *_to_network(mean, std),
        ]
    )


def eval_transform(
    size: tuple[int, int] | None, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> v2.Transform:
    """Resize to `size` (height, width; None keeps it: image bilinear, labels nearest), then normalisation."""
    resize = [_Resize(size, antialias=True)] if size is not None else []
    return v2.Compose([*resize, *_to_network(mean, std)])


class _Resize(v2.Resize):  # type: ignore[misc]  # torchvision has no types
    """Each label is that of the pixel whose middle is nearest: torchvision takes the corner, which shifts a label map
    by up to half a pixel against its image."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """As `v2.Transform` says."""
        return _labels_at(inpt, self.size) if isinstance(inpt, tv_tensors.Mask) else super().transform(inpt, params)


class _RandomResizedCrop(v2.RandomResizedCrop):  # type: ignore[misc]
    """The same of a part of the picture."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """As `v2.Transform` says."""
        if not isinstance(inpt, tv_tensors.Mask):
            return super().transform(inpt, params)
        top, left = params["top"], params["left"]
        return _labels_at(inpt[top : top + params["height"], left : left + params["width"]], self.size)


def _labels_at(mask: Tensor, size: Sequence[int]) -> tv_tensors.Mask:
    height, width = size
    return tv_tensors.Mask(torch.from_numpy(labels_at(mask.as_subclass(Tensor).numpy(), (height, width))))


def _to_network(mean: Sequence[float], std: Sequence[float]) -> list[v2.Transform]:
    to_float = v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)
    return [to_float, v2.Normalize(mean, std)]


def apply_transform(transform: v2.Transform, image: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    """(H, W, 3) uint8 and (H, W) uint8 -> (3, h, w) float32 normalised and (h, w) int64, `IGNORE_INDEX` kept."""
    picture = tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    mask = tv_tensors.Mask(torch.from_numpy(np.array(labels)))
    picture, mask = transform(picture, mask)
    return picture.as_subclass(Tensor), mask.as_subclass(Tensor).long()


def image_tensor(
    image: np.ndarray,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Tensor:
    """One RGB picture (H, W, 3) uint8 -> (1, 3, h, w) float32, normalised as in training.

    Raises:
        TypeError, ValueError: `image` is not that, or empty.
    """
    if not isinstance(image, np.ndarray):
        raise TypeError(f"image: expected an array (H, W, 3) uint8 RGB, got {type(image).__name__}")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image: expected (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    if image.size == 0:
        raise ValueError(f"image: expected at least one pixel, got {image.shape}")
    blank = np.full(image.shape[:2], IGNORE_INDEX, dtype=np.uint8)
    return apply_transform(eval_transform(size, mean, std), image, blank)[0].unsqueeze(0)
