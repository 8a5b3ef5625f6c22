"""A folder of images and label maps: `images/<split>/`, `labels/<split>/`, `dataset.json`.

`dataset.json` names the classes: `{"classes": ["sky", ...], "ignore_index": 11, "palette_rgb": [[r, g, b], ...]}`;
the last two are optional, `ignore_index` being 255 when left out.
`splits/<split>.txt`, when there, gives the order and the subset.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mess.data.dataset import IGNORE_INDEX, default_palette
from mess.data.pairs import IMAGE_SUFFIXES, Matched, PairDataset, files_by_stem, lookup_of, matched, split_folders
from mess.files import colours, entries, entry, read_json


class FolderDataset(PairDataset):
    """Images and label maps of one split of a folder.

    What can be seen without decoding (missing folder, missing partner files, no classes) is reported in the
    constructor; `check()` decodes everything. Where partners are missing, both happen, so that all is said at once.

    Raises:
        FileNotFoundError: the folder, the split or `dataset.json` is missing; says which.
        ValueError: pairs are incomplete or `dataset.json` does not name classes.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"data: expected a folder with images/, labels/ and dataset.json, got {self.root} (no such folder)"
            )
        info = _read_info(self.root / "dataset.json")
        classes = tuple(str(name) for name in info["classes"])
        palette = np.asarray(info.get("palette_rgb", []), dtype=np.uint8).reshape(-1, 3)[: len(classes)]
        super().__init__(
            str(info.get("name", self.root.name)),
            split,
            _pairs(self.root, split),
            classes,
            lookup_of({i: i for i in range(len(classes))}, [int(info.get("ignore_index", IGNORE_INDEX))]),
            palette if len(palette) else default_palette(len(classes)),
            upright=True,
        )


def _read_info(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"data: expected {path} naming the classes, got no such file")
    info = read_json(path, "data")
    try:
        classes = entries(info, "classes", str, "names")
        colours({"palette_rgb": [], **info}, "palette_rgb")
        entry({"ignore_index": IGNORE_INDEX, **info}, "ignore_index", int, "a label")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    ignored = info.get("ignore_index", IGNORE_INDEX)
    if not -1 <= ignored <= 255:  # -1: as torch has it for none
        raise ValueError(f"{path}: ignore_index: expected a label in 0..255, or -1 for none, got {ignored}")
    colour_count = len(info.get("palette_rgb", []))
    if 0 < colour_count < len(classes):
        raise ValueError(
            f"{path}: palette_rgb: expected a colour for each of {len(classes)} classes, got {colour_count}"
        )
    twice = sorted({name for name in classes if classes.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: classes: expected different names, got {twice} more than once")
    if not 1 <= len(classes) <= 255:
        raise ValueError(f"{path}: classes: expected 1 to 255 names, since labels are 8-bit, got {len(classes)}")
    return info


def _pairs(root: Path, split: str) -> Matched:
    image_dir, label_dir = split_folders(root, "images", "labels", split)
    images, labels = files_by_stem(image_dir, IMAGE_SUFFIXES), files_by_stem(label_dir, (".png",))
    listing = root / "splits" / f"{split}.txt"
    everything = [*images, *(name for name in labels if name not in images)]
    lines = listing.read_text(encoding="utf-8-sig").splitlines() if listing.is_file() else everything
    return matched(root, split, [line.strip() for line in lines if line.strip()], images, labels)
