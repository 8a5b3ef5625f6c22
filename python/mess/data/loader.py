"""Seeded batches: epoch `e` of seed `s` is the same sequence of tensors, however often the run was interrupted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, MutableMapping, Sequence, Sized
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from mess.data.dataset import IMAGENET_MEAN, IMAGENET_STD, SegmentationDataset
from mess.data.transforms import apply_transform, eval_transform, train_transform
from mess.runtime.manifest import check_normalisation


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
        workers: processes that read and augment ahead; 0 does it in this one. The batches are the same.
        mean, std: three numbers each that pixels, as values in 0..1, are normalised with; ImageNet's by default.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        *,
        batch_size: int = 8,
        size: tuple[int, int] | None = None,
        train: bool = False,
        seed: int = 0,
        workers: int = 0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        check_normalisation(mean, std)
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if workers < 0:
            raise ValueError(f"workers: expected at least 0, got {workers}")
        if train and size is None:
            raise ValueError("size: expected (height, width) for training, got None")
        if train and len(dataset) < batch_size:
            raise ValueError(f"batch_size: expected at most the {len(dataset)} images of the split, got {batch_size}")
        self.dataset, self.batch_size, self.train, self.seed = dataset, batch_size, train, seed
        self.size, self.workers = size, workers
        self._epoch, self._rank, self._count = 0, 0, 1
        self._order: tuple[int, list[int]] = (-1, [])
        self.mean, self.std = tuple(mean), tuple(std)
        self._transform: v2.Transform = (
            train_transform(size, mean, std) if train and size else eval_transform(size, mean, std)
        )

    @property
    def identity(self) -> str:
        """What the batches depend on, in words."""
        names = [self.dataset.identity(index) for index in range(len(self.dataset))]
        split = f" {self.dataset.split}" if hasattr(self.dataset, "split") else ""
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
        images = f"{self.dataset.name}{split}, {len(names)} images from {names[0]} (names {digest})"
        kind = "augmented" if self.train else "plain"
        is_usual = (self.mean, self.std) == (IMAGENET_MEAN, IMAGENET_STD)
        normalised = "" if is_usual else f", normalised with {self.mean} and {self.std}"
        return f"{images}, {kind}, {self.size}, batches of {self.batch_size}, seed {self.seed}{normalised}"

    def set_epoch(self, epoch: int) -> None:
        """Choose which epoch the next iteration is."""
        self._epoch = epoch

    def begin(self, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of `epoch` from number `first` on; what lies before is not read."""
        self._epoch = epoch
        batches = [self.indices(batch) for batch in range(first, len(self))]
        own = torch.Generator("cpu")  # its workers' seeds, which nothing here uses, would come from the global stream
        with torch.device("cpu"):  # where they are drawn, whatever the default device is
            return iter(DataLoader(_Examples(self), batch_sampler=batches, num_workers=self.workers, generator=own))

    def shard(self, rank: int, count: int) -> None:
        """Be process `rank` of `count`: `count` batches in a row make one large batch, of which this is one part."""
        if not 0 <= rank < count:
            raise ValueError(f"rank: expected 0..{count - 1}, got {rank}")
        if self.train and len(self.dataset) < self.batch_size * count:
            raise ValueError(
                f"batch_size: expected at most {len(self.dataset) // count}, as {count} processes share "
                f"{len(self.dataset)} images, got {self.batch_size}"
            )
        self._rank, self._count = rank, count

    def __len__(self) -> int:
        images, together = len(self.dataset), self.batch_size * self._count
        return images // together if self.train else -(-images // together)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.begin(self._epoch, 0)

    def names(self, batch: int) -> tuple[str, ...]:
        """The images of a batch of the current epoch, as `dataset.identity` has them."""
        return tuple(self.dataset.identity(index) for index in self.indices(batch))

    def indices(self, batch: int) -> list[int]:
        """Which pairs of the dataset a batch of the current epoch has."""
        if self._order[0] != self._epoch:
            order = list(range(len(self.dataset)))
            if self.train:
                generator = torch.Generator("cpu").manual_seed(mixed_seed(self.seed, self._epoch, 0))
                order = torch.randperm(len(order), generator=generator, device="cpu").tolist()
            self._order = (self._epoch, order)
        start = (batch * self._count + self._rank) * self.batch_size
        return self._order[1][start : start + self.batch_size]

    def example(self, index: int) -> tuple[Tensor, Tensor]:
        """Image (3, H, W) float32 and labels (H, W) int64 of one pair, as the current epoch sees it."""
        image, labels = self.dataset.pair(index)
        if not self.train:
            return apply_transform(self._transform, image, labels)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the generators of GPUs too
            torch.default_generator.manual_seed(mixed_seed(self.seed, self._epoch, index + 1))
            return apply_transform(self._transform, image, labels)


def batches_from(batches: Any, epoch: int, first: int) -> Iterator[Any]:
    """The batches of `epoch` from number `first` on, of any iterable; one without `begin` is run through to there."""
    if hasattr(batches, "begin"):
        return iter(batches.begin(epoch, first))
    if hasattr(batches, "set_epoch"):
        batches.set_epoch(epoch)
    if hasattr(batches, "_num_iter_calls"):  # Fabric's: it takes the epoch for the number of its own iterations
        batches._num_iter_calls = epoch
    sampler = getattr(batches, "sampler", None)
    inner = getattr(getattr(batches, "batch_sampler", None), "sampler", None)
    generators = [getattr(drawing, "generator", None) for drawing in (batches, sampler, inner)]
    for generator in {id(one): one for one in generators if isinstance(one, torch.Generator)}.values():
        # the user's own, which would go on from where it stands
        seed = _FIRST_SEEDS.setdefault(generator, generator.initial_seed())
        generator.manual_seed(mixed_seed(seed, epoch))
    return islice(batches, first, None)


_FIRST_SEEDS: MutableMapping[torch.Generator, int] = WeakKeyDictionary()
"""What generators of the user's were seeded with before they were seeded here."""


def identity_of(batches: Any) -> str:
    """What batches depend on, as far as they can tell: another answer is other data."""
    if isinstance(getattr(batches, "identity", None), str):
        return str(batches.identity)
    if isinstance(batches, DataLoader):
        dataset = batches.dataset
        count = f" of {len(dataset)}" if isinstance(dataset, Sized) else ""
        return f"{type(dataset).__name__}{count}, batches of {batches.batch_size}"
    told = "batches of the caller's own"
    if not isinstance(batches, list | tuple) or not batches:
        return told
    parts = (*batches[0], *batches[-1])
    if not all(isinstance(part, Tensor) for part in parts):
        return told
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"{told}, {len(batches)} from {tuple(batches[0][0].shape)} (first and last {digest.hexdigest()[:12]})"


class _Examples(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, loader: SeededLoader) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._loader.example(index)


def mixed_seed(*numbers: int) -> int:
    """A 63-bit seed from several integers (splitmix64 steps): neighbouring integers give unrelated streams."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ (number & 0xFFFFFFFFFFFFFFFF)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF
