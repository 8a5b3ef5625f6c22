"""Seeded batches: epoch `e` of seed `s` is the same sequence of tensors, however often the run was interrupted."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision.transforms import v2

from mess.data.dataset import SegmentationDataset
from mess.data.transforms import apply_transform, eval_transform, train_transform


class SeededLoader:
    """Batches `(images (B, 3, H, W) float32, labels (B, H, W) int64)` of a dataset.

    The order and every augmentation depend on (seed, epoch, index) alone: no state to save, so a resumed run sees what
    the uninterrupted one would have seen.

    Args:
        dataset: where pairs come from.
        batch_size: images a batch; the last, smaller batch is dropped when training (batch-norm wants full ones).
        size: (height, width) in pixels that images are brought to.
        train: shuffle and augment.
        seed: any integer.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        *,
        batch_size: int = 8,
        size: tuple[int, int] | None = None,
        train: bool = False,
        seed: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if train and size is None:
            raise ValueError("size: expected (height, width) for training, got None")
        if train and len(dataset) < batch_size:
            raise ValueError(f"batch_size: expected at most the {len(dataset)} images of the split, got {batch_size}")
        self.dataset, self.batch_size, self.train, self.seed = dataset, batch_size, train, seed
        self._epoch = 0
        self._transform: v2.Transform = train_transform(size) if train and size else eval_transform(size)

    def set_epoch(self, epoch: int) -> None:
        """Choose which epoch the next iteration is."""
        self._epoch = epoch

    def __len__(self) -> int:
        count = len(self.dataset)
        return count // self.batch_size if self.train else -(-count // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = list(range(len(self.dataset)))
        if self.train:
            generator = torch.Generator().manual_seed(_mix(self.seed, self._epoch, 0))
            order = torch.randperm(len(order), generator=generator).tolist()
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            examples = [self.example(index) for index in order[start : start + self.batch_size]]
            yield torch.stack([image for image, _ in examples]), torch.stack([labels for _, labels in examples])

    def example(self, index: int) -> tuple[Tensor, Tensor]:
        """Image (3, H, W) float32 and labels (H, W) int64 of one pair, as the current epoch sees it."""
        image, labels = self.dataset.pair(index)
        if not self.train:
            return apply_transform(self._transform, image, labels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mix(self.seed, self._epoch, index + 1))
            return apply_transform(self._transform, image, labels)


def _mix(*numbers: int) -> int:
    """A 63-bit seed from several integers (splitmix64 steps), so that neighbouring seeds give unrelated streams."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ (number & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF
