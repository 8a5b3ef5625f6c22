"""A folder of images and label maps: `images/<split>/`, `labels/<split>/`, `dataset.json`.

`dataset.json` names the classes: `{"classes": ["sky", ...], "ignore_index": 11, "palette_rgb": [[r, g, b], ...]}`;
the last two are optional, `ignore_index` being 255 when left out.
`splits/<split>.txt`, when there, gives the order and the subset. CamVid in the
SegNet layout reads as it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mess.data.dataset import IGNORE_INDEX, SegmentationDataset, default_palette

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class FolderDataset(SegmentationDataset):
    """Images and label maps of one split of a folder.

    Every problem that can be seen without decoding (missing folder, missing partner files, no classes) is
    reported at once, in the constructor; `check()` decodes everything and reports the rest.

    Raises:
        FileNotFoundError: the folder, the split or `dataset.json` is missing; says which.
        ValueError: pairs are incomplete or `dataset.json` does not name classes.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root = Path(root)
        self.split = split
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"data: expected a folder with images/, labels/ and dataset.json, got {self.root} (no such folder)"
            )
        info = _read_info(self.root / "dataset.json")
        self.name = str(info.get("name", self.root.name))
        self.class_names = tuple(str(name) for name in info["classes"])
        self._ignored_value = int(info.get("ignore_index", IGNORE_INDEX))
        palette = np.asarray(info.get("palette_rgb", []), dtype=np.uint8).reshape(-1, 3)[: self.num_classes]
        self.palette = palette if len(palette) == self.num_classes else default_palette(self.num_classes)
        self._pairs = _pairs(self.root, split)

    def __len__(self) -> int:
        return len(self._pairs)

    def identity(self, index: int) -> str:
        return self._pairs[index][0].stem

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image_path, label_path = self._pairs[index]
        image = _decode(image_path, "RGB")
        labels = _decode(label_path, None)
        if labels.ndim != 2:
            raise ValueError(f"{label_path}: expected a single-channel label map, got shape {labels.shape}")
        if labels.shape != image.shape[:2]:
            raise ValueError(f"{label_path}: expected the image's size {image.shape[:2]}, got {labels.shape}")
        out_of_range = (labels >= self.num_classes) & (labels != self._ignored_value)
        if out_of_range.any():
            found = np.unique(labels[out_of_range]).tolist()
            raise ValueError(
                f"{label_path}: expected labels 0..{self.num_classes - 1} or {self._ignored_value} (ignored), "
                f"got {found}"
            )
        labels = np.where(labels == self._ignored_value, IGNORE_INDEX, labels).astype(np.uint8)
        return image, labels

    def check(self) -> list[str]:
        problems = []
        labelled = np.zeros(256, dtype=np.int64)
        for index in range(len(self)):
            try:
                _, labels = self.pair(index)
            except (OSError, ValueError) as error:
                problems.append(str(error))
            else:
                labelled += np.bincount(labels.ravel(), minlength=256)
        never = [name for name, count in zip(self.class_names, labelled, strict=False) if count == 0]
        if never and not problems:
            hint = ""
            if labelled[IGNORE_INDEX]:
                hint = f"; {labelled[IGNORE_INDEX]} pixels are ignored (value {self._ignored_value})"
            problems.append(f"{self.root}, split {self.split!r}: no pixel is labelled {', '.join(never)}{hint}")
        return problems


def _read_info(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"data: expected {path} naming the classes, got no such file")
    try:
        info = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    classes = info.get("classes") if isinstance(info, dict) else None
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError(f'{path}: expected an object with "classes", a non-empty list of names, got {classes!r}')
    if len(classes) > 255:
        raise ValueError(f'{path}: "classes": expected at most 255, since labels are 8-bit, got {len(classes)}')
    palette = info.get("palette_rgb", [])
    if np.asarray(palette, dtype=object).size and np.shape(palette)[1:] != (3,):
        raise ValueError(f'{path}: "palette_rgb": expected [red, green, blue] for each class, got {palette!r:.80}')
    checked: dict[str, Any] = info
    return checked


def _pairs(root: Path, split: str) -> list[tuple[Path, Path]]:
    image_dir, label_dir = root / "images" / split, root / "labels" / split
    for folder in (image_dir, label_dir):
        if not folder.is_dir():
            known = sorted(p.name for p in folder.parent.iterdir() if p.is_dir()) if folder.parent.is_dir() else []
            raise FileNotFoundError(f"data: split {split!r} expects the folder {folder}; splits there: {known}")
    images = {p.stem: p for p in sorted(image_dir.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES}
    labels = {p.stem: p for p in sorted(label_dir.iterdir()) if p.suffix.lower() == ".png"}
    listing = root / "splits" / f"{split}.txt"
    lines = listing.read_text().splitlines() if listing.is_file() else list(images)
    names = [line.strip() for line in lines if line.strip()]
    problems = [f"no image for {n}" for n in names if n not in images]
    problems += [f"no label map for {n}" for n in names if n not in labels]
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise ValueError(f"data: {root}, split {split!r}: {len(problems)} incomplete pairs: {shown}")
    if not names:
        raise ValueError(f"data: {root}, split {split!r}: expected at least one image, got none")
    return [(images[n], labels[n]) for n in names]


def _decode(path: Path, mode: str | None) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert(mode) if mode else image)
    except OSError as error:
        raise ValueError(f"{path}: cannot be decoded as an image ({error})") from None
