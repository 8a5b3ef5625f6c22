"""What the frozen backbone of stage 2 says of every batch, kept on disk: later epochs run the heads alone.

A cache holds a number of augmented views of the split; epoch e trains on view e modulo that number. One safetensors
file a batch (`final`, `labels`, `feature.<point>`), written whole, so a killed run leaves a valid part; `cache.json`
says which backbone and which batches it belongs to.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mess.data.loader import batches_from, identity_of
from mess.files import differences, read_json, read_safetensors, write_json, write_safetensors
from mess.model.weights import state_sha256
from mess.progress import say

VERSION = 2


@dataclass(frozen=True, slots=True)
class Frozen:
    """What a frozen backbone says of a batch: final logits (B, C, h, w), features (B, channels, h_i, w_i) by point."""

    final: Tensor
    features: dict[int, Tensor]

    def to(self, device: torch.device) -> Frozen:
        """On another device."""
        return Frozen(self.final.to(device), {point: value.to(device) for point, value in self.features.items()})


class FeatureCache:
    """Batches `(Frozen, labels)` in place of `(images, labels)`: computed when they are first asked for, then read.

    Args:
        folder: where the files go; what an earlier run left there is used.
        batches: of images and labels; the order of an epoch must be its own, as that of `mess.data.SeededLoader` is.
        run: the frozen backbone.
        net: the backbone, to tell whether its weights are those that the cache was made with.
        views: epochs of `batches` that are kept; with as many as are trained, training is what it is without a cache.
        part: names the process, where several share the folder.
        about: what else the features depend on, by name.

    Raises:
        ValueError: the folder belongs to another backbone or other batches, or its disk has too little room.
    """

    def __init__(
        self,
        folder: Path,
        batches: Any,
        run: Callable[[Tensor], Frozen],
        net: nn.Module,
        *,
        views: int,
        part: str = "",
        about: Mapping[str, str] | None = None,
    ) -> None:
        if views < 1:
            raise ValueError(f"views: expected at least 1, got {views}")
        self.folder, self.views, self.part = folder, views, part
        self._batches, self._run = batches, run
        path = folder / f"cache{part}.json"
        identity = {
            "version": VERSION,
            "backbone": state_sha256(net),
            "batches": len(batches),
            "data": self.identity,
            **(about or {}),
        }
        if path.is_file() and read_json(path, "cache") != identity:
            changed = differences(read_json(path, "cache"), identity)
            raise ValueError(f"cache: {folder} belongs to another training: {changed}; choose another folder")
        need = self._check_room()
        write_json(path, identity)
        say(f"feature cache: {_gigabytes(need)} in {folder} ({views} views of {len(batches)} batches)")

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def identity(self) -> str:
        """That of the batches: training goes on with a cache or without."""
        return identity_of(self._batches)

    def names(self, batch: int) -> tuple[str, ...]:
        """The images of a batch, where the batches can tell."""
        return tuple(self._batches.names(batch)) if hasattr(self._batches, "names") else ()

    def begin(self, epoch: int, first: int) -> Iterator[tuple[Frozen, Tensor]]:
        """The batches of `epoch` from number `first` on."""
        view = epoch % self.views
        if hasattr(self._batches, "set_epoch"):
            self._batches.set_epoch(view)  # for `names`
        missing = [batch for batch in range(first, len(self)) if not self._path(view, batch).is_file()]
        source: Iterator[tuple[Tensor, Tensor]] | None = None
        if missing and not hasattr(self._batches, "begin"):
            source = batches_from(self._batches, view, first)
            for _ in range(missing[0] - first):  # its order is drawn now, and comes from its beginning alone
                next(source, None)
        for batch in range(first, len(self)):
            path = self._path(view, batch)
            if missing and missing[0] <= batch <= missing[-1]:
                source = source or batches_from(self._batches, view, batch)
                given = next(source, None)
                if given is None:
                    return  # fewer than they said
                if batch in missing:
                    self._save(path, self._run(given[0]), given[1])
            yield _load(path)

    def _path(self, view: int, batch: int) -> Path:
        return self.folder / f"view{view}{self.part}-{batch:06d}.safetensors"

    def _save(self, path: Path, frozen: Frozen, labels: Tensor) -> None:
        tensors = {"final": frozen.final, "labels": labels.to(torch.int16)}
        tensors |= {f"feature.{point}": value for point, value in frozen.features.items()}
        # channels last again when read: safetensors keeps no strides, and kernels may round differently by layout
        last = [name for name, value in tensors.items() if _is_last(value)]
        whole = {n: (v.permute(0, 2, 3, 1) if n in last else v).cpu().contiguous() for n, v in tensors.items()}
        write_safetensors(path, whole, last)

    def _check_room(self) -> int:
        """Bytes of the whole cache, by the size of one batch; ValueError where the disk has no room for what lacks."""
        images, labels = next(batches_from(self._batches, 0, 0))
        frozen = self._run(images)
        values = [frozen.final, *frozen.features.values()]
        one: int = sum(value.numel() * value.element_size() for value in values) + 2 * labels.numel()
        missing = sum(not self._path(view, batch).is_file() for view in range(self.views) for batch in range(len(self)))
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if one * missing > free:
            raise ValueError(
                f"cache: expected {_gigabytes(one * missing)} free in {self.folder} for {self.views} views, "
                f"got {_gigabytes(free)}; take fewer views or another disk"
            )
        return one * len(self) * self.views


def _load(path: Path) -> tuple[Frozen, Tensor]:
    tensors, last = read_safetensors(path, "cache", framework="pt")
    # copied to memory of torch's own alignment, by which some kernels choose how they round
    read = {n: (v.permute(0, 3, 1, 2) if n in last else v).clone() for n, v in tensors.items()}
    features = {int(n.removeprefix("feature.")): value for n, value in read.items() if n.startswith("feature.")}
    return Frozen(read["final"], features), read["labels"].long()


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def _is_last(value: Tensor) -> bool:
    return value.ndim == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)
