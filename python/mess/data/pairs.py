"""A split of images and label maps in files: what all datasets on disk have in common.

A label map is an 8-bit picture of one channel (a palette does not matter); `lookup` says what each of its values means.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from mess.data.dataset import IGNORE_INDEX, SegmentationDataset, default_palette

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
UNKNOWN = -1
"""In a lookup: a value that a label map must not have."""


def lookup_of(classes: Mapping[int, int], ignored: Iterable[int] = (IGNORE_INDEX,)) -> npt.NDArray[np.int16]:
    """(256,) from values of a label map to class indices; `IGNORE_INDEX` for `ignored`, also where that is the value
    of a class; `UNKNOWN` elsewhere."""
    lookup = np.full(256, UNKNOWN, np.int16)
    for value, index in classes.items():
        lookup[value] = index
    for value in ignored:
        if 0 <= value < 256:
            lookup[value] = IGNORE_INDEX
    return lookup


@dataclass(frozen=True, slots=True)
class Matched:
    """complete: (image file, label map file) each. incomplete: what is missing of the others, a line each. root: for
    people."""

    root: Path
    complete: tuple[tuple[Path, Path], ...]
    incomplete: tuple[str, ...]


class PairDataset(SegmentationDataset):
    """Images and label maps of one split.

    `check()` decodes every pair and reports everything that is wrong with them at once.

    Args:
        name: of the dataset, for people.
        split: of the dataset.
        pairs: from `matched`.
        class_names: of the classes, by index.
        lookup: see `lookup_of`.
        palette: (C, 3) uint8 RGB.
        upright: images are turned as their EXIF orientation says, as programs show them.

    Raises:
        ValueError: there are incomplete pairs: lists all of them, and what `check()` finds in the others.
    """

    def __init__(
        self,
        name: str,
        split: str,
        pairs: Matched,
        class_names: Sequence[str],
        lookup: npt.NDArray[np.int16],
        palette: npt.NDArray[np.uint8] | None = None,
        *,
        upright: bool = False,
    ) -> None:
        self.name = name
        self.split = split
        self.class_names = tuple(class_names)
        self.palette = default_palette(len(self.class_names)) if palette is None else palette
        self._pairs = list(pairs.complete)
        self._lookup = lookup
        self._upright = upright
        if pairs.incomplete:
            text = f"data: {pairs.root}, split {split!r}: {len(pairs.incomplete)} incomplete pairs: "
            others = self.check()
            more = f"; {len(others)} problems with the others: {_listed(others)}" if others else ""
            raise ValueError(f"{text}{_listed(pairs.incomplete)}{more}")

    def __len__(self) -> int:
        return len(self._pairs)

    def identity(self, index: int) -> str:
        return self._pairs[index][0].stem

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image_path, label_path = self._pairs[index]
        image = decode(image_path, "RGB", upright=self._upright)
        values = decode(label_path, None)
        if values.ndim != 2 or values.dtype != np.uint8:
            raise ValueError(
                f"{label_path}: expected a single-channel 8-bit label map, got shape {values.shape}, {values.dtype}"
            )
        if values.shape != image.shape[:2]:
            turned = (
                ", turned as its EXIF orientation says" if self._upright and values.T.shape == image.shape[:2] else ""
            )
            raise ValueError(f"{label_path}: expected the image's size {image.shape[:2]}{turned}, got {values.shape}")
        labels = self._lookup[values]
        if (labels == UNKNOWN).any():
            raise ValueError(f"{label_path}: expected {self._expected()}, {_found(values[labels == UNKNOWN])}")
        return image, labels.astype(np.uint8)

    def check(self) -> list[str]:
        problems: list[str] = []
        labelled = np.zeros(256, dtype=np.int64)
        for index in range(len(self)):
            try:
                _, labels = self.pair(index)
            except (OSError, ValueError) as error:
                problems.append(str(error))
            else:
                labelled += np.bincount(labels.ravel(), minlength=256)
        if problems:
            return problems
        names = np.array(self.class_names)
        absent = labelled[: self.num_classes] == 0
        told = f"{self.name}, split {self.split!r}: no pixel is labelled "
        if labelled[IGNORE_INDEX] and self.num_classes > 1 and np.count_nonzero(~absent) < 2:
            # masks of 0 and 255, say: nothing but one class and what is ignored, or not even that
            ignored = f"{labelled[IGNORE_INDEX]} pixels are ignored (value {self._values(IGNORE_INDEX)})"
            return [f"{told}{', '.join(names[absent])}; {ignored}"]
        never = names[absent & np.isin(np.arange(self.num_classes), self._lookup)]  # a class may be what is ignored
        if len(never):
            warnings.warn(
                f"{told}{', '.join(never)}: its IoU there is undefined and left out of the mean", stacklevel=2
            )
        return []

    def _values(self, meaning: int) -> str:
        return ", ".join(str(value) for value in np.flatnonzero(self._lookup == meaning))

    def _expected(self) -> str:
        known = np.flatnonzero((self._lookup != UNKNOWN) & (self._lookup != IGNORE_INDEX))
        first, last = int(known.min()), int(known.max())
        ignored = self._values(IGNORE_INDEX)
        return f"labels {first}..{last}" + (f" or {ignored} (ignored)" if ignored else "")


def _found(unknown: npt.NDArray[np.uint8]) -> str:
    """What came; a single value that surrounds objects or fills much of a map is likely one to ignore."""
    values = np.unique(unknown).tolist()
    hint = f": if {values[0]} stands for 'ignore', say so" if len(values) == 1 else ""
    return f"got {values}{hint}"


def decode(path: Path, mode: str | None, *, upright: bool = False) -> np.ndarray:
    """Pixels of an image file, in PIL's `mode` or as they are stored, `upright` as its EXIF orientation says.

    Raises:
        ValueError: it is none, or a bomb; it has more than 8 bits a channel, which Pillow would clip; it is to be read
            as stored and has fewer bits of grey, which Pillow would scale.
    """
    try:
        with Image.open(path) as image:
            if mode and image.mode[0] in "IF":
                raise ValueError(f"expected 8 bits a channel, got mode {image.mode}; scale it to 0..255 first")
            stored = str(image.tile[0][3]) if image.tile else ""  # how Pillow unpacks it: "L;2"
            if mode is None and stored.startswith("L;"):
                raise ValueError(f"expected 8 bits a pixel, got {stored[2:]}")
            turned = ImageOps.exif_transpose(image) if upright else image
            return np.asarray(turned.convert(mode) if mode else turned)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: cannot be decoded as an image ({error})") from None


def matched(
    root: Path, split: str, names: Sequence[str], images: Mapping[str, Path], labels: Mapping[str, Path]
) -> Matched:
    """The pairs of `names`, in their order, and which are incomplete.

    Raises:
        ValueError: no name at all.
    """
    if not names:
        raise ValueError(f"data: {root}, split {split!r}: expected at least one image, got none")
    problems = [f"{n} is listed {count} times" for n, count in Counter(names).items() if count > 1]
    problems += [f"no image for {n}" for n in names if n not in images]
    problems += [f"no label map for {n}" for n in names if n not in labels]
    complete = [(images[n], labels[n]) for n in names if n in images and n in labels]
    return Matched(root, tuple(complete), tuple(problems))


def _listed(problems: Sequence[str]) -> str:
    return "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")


def files_by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files of a folder by their name without suffix; empty when there is no such folder.

    Raises:
        ValueError: two files differ in the suffix alone.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() in suffixes:
            other = found.setdefault(path.stem, path)
            if other is not path:
                raise ValueError(
                    f"data: {folder}: expected one file named {path.stem}, got {other.name} and {path.name}"
                )
    return found


def split_folders(root: Path, images: str, labels: str, split: str) -> tuple[Path, Path]:
    """The folders of images and of label maps of a split.

    Raises:
        FileNotFoundError: one is not there; says which splits are.
    """
    folders = root / images / split, root / labels / split
    for folder in folders:
        if not folder.is_dir():
            known = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
            raise FileNotFoundError(f"data: split {split!r} expects the folder {folder}; splits there: {known}")
    return folders
