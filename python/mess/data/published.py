"""The published datasets, in the folders that their archives unpack to. Nothing is downloaded.

`camvid`      <split>/, <split>annot/ (SegNet's split); or a folder with dataset.json, as `mess.data.folder` reads it
`voc`         JPEGImages/, SegmentationClass/, ImageSets/Segmentation/<split>.txt (VOC2012, or the VOCdevkit around it);
              train is train_aug where SegmentationClassAug/ and its list are (Hariharan et al., SBD, 2011)
`cityscapes`  leftImg8bit/<split>/<city>/, gtFine/<split>/<city>/*_gtFine_labelIds.png
`ade20k`      images/{training,validation}/, annotations/{training,validation}/, objectInfo150.txt
`coco`        train2017/, val2017/, annotations/instances_*.json: the 20 classes of VOC (needs pycocotools)
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mess.data.dataset import IGNORE_INDEX, SegmentationDataset
from mess.data.folder import FolderDataset
from mess.data.pairs import PairDataset, decode, files_by_stem, lookup_of, matched, split_folders

CAMVID_CLASSES = {
    "sky": (128, 128, 128), "building": (128, 0, 0), "pole": (192, 192, 128), "road": (128, 64, 128),
    "pavement": (60, 40, 222), "tree": (128, 128, 0), "sign": (192, 128, 128), "fence": (64, 64, 128),
    "car": (64, 0, 128), "pedestrian": (64, 64, 0), "bicyclist": (0, 128, 192),
}  # fmt: skip
"""With their colours, of SegNet."""

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

COCO_OF_VOC = (0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
"""COCO's category of each class of VOC; 0 for the background. As in torchvision's segmentation reference."""

LEAST_COCO_PIXELS = 1000
"""Labelled pixels below which an image of COCO is not trained on (the same reference)."""


def camvid(root: str | Path, split: str) -> PairDataset:
    """CamVid as SegNet divides it: 11 classes, the label 11 is ignored.

    Raises:
        FileNotFoundError: a folder of the split is missing; says which.
        ValueError: pairs are incomplete, all of them listed.
    """
    root = Path(root)
    if (root / "dataset.json").is_file() or (root / "images").is_dir() or not root.is_dir():
        return FolderDataset(root, split)
    for folder in (root / split, root / f"{split}annot"):
        if not folder.is_dir():
            known = sorted(p.name for p in root.iterdir() if (root / f"{p.name}annot").is_dir())
            raise FileNotFoundError(f"data: split {split!r} expects the folder {folder}; splits there: {known}")
    images, labels = (_without(f"{name}_", files_by_stem(root / name, (".png",))) for name in (split, f"{split}annot"))
    lookup = lookup_of({i: i for i in range(len(CAMVID_CLASSES))}, [len(CAMVID_CLASSES)])
    palette = np.array(list(CAMVID_CLASSES.values()), dtype=np.uint8)
    pairs = matched(root, split, list(images), images, labels)
    return PairDataset("camvid", split, pairs, list(CAMVID_CLASSES), lookup, palette)


def voc(root: str | Path, split: str) -> PairDataset:
    """Pascal VOC 2012 segmentation: 20 classes and the background; 255 is the border of objects.

    Raises:
        FileNotFoundError: a folder or the split's list is missing; says which.
        ValueError: pairs are incomplete, all of them listed.
    """
    found = next((p for p in (Path(root), *Path(root).glob("**/VOC2012")) if (p / "JPEGImages").is_dir()), None)
    if found is None:
        raise FileNotFoundError(f"data: expected VOC2012 with JPEGImages/ at {root}, got none")
    lists = {path.stem: path for path in sorted(found.glob("ImageSets/Segmentation*/*.txt"))}
    augmented = lists.get("train_aug", lists.get("trainaug"))
    labels_dir = found / "SegmentationClass"
    listing = lists.get(split)
    if split == "train" and augmented is not None and (found / "SegmentationClassAug").is_dir():
        listing, labels_dir = augmented, found / "SegmentationClassAug"
    if listing is None:
        raise FileNotFoundError(f"data: expected a list of split {split!r} in {found}/ImageSets, got {sorted(lists)}")
    # lines are names, or pairs of paths in some lists of train_aug
    names = [
        Path(line.split()[0]).stem for line in listing.read_text(encoding="utf-8-sig").splitlines() if line.strip()
    ]
    images, labels = files_by_stem(found / "JPEGImages", (".jpg",)), files_by_stem(labels_dir, (".png",))
    pairs = matched(found, split, names, images, labels)
    lookup = lookup_of({i: i for i in range(len(VOC_CLASSES))})
    return PairDataset(f"voc ({listing.stem})", split, pairs, VOC_CLASSES, lookup, bit_palette(len(VOC_CLASSES)))


def cityscapes(root: str | Path, split: str) -> PairDataset:
    """Cityscapes, fine annotations, the 19 classes that are evaluated; everything else is ignored.

    Raises:
        FileNotFoundError: a folder or the split is missing; says which.
        ValueError: pairs are incomplete, all of them listed.
    """
    from torchvision.datasets import Cityscapes

    images_dir, labels_dir = split_folders(Path(root), "leftImg8bit", "gtFine", split)
    images = {_stem(path, "_leftImg8bit.png"): path for path in sorted(images_dir.glob("*/*_leftImg8bit.png"))}
    found = sorted(labels_dir.glob("*/*_gtFine_labelIds.png"))
    labels = {_stem(path, "_gtFine_labelIds.png"): path for path in found}
    evaluated = [c for c in Cityscapes.classes if not c.ignore_in_eval and c.train_id < IGNORE_INDEX]
    evaluated.sort(key=lambda c: c.train_id)
    others = [c.id for c in Cityscapes.classes if c not in evaluated and c.id >= 0]
    lookup = lookup_of({c.id: c.train_id for c in evaluated}, [IGNORE_INDEX, *others])
    palette = np.array([c.color for c in evaluated], dtype=np.uint8)
    pairs = matched(Path(root), split, list(images), images, labels)
    return PairDataset("cityscapes", split, pairs, [c.name for c in evaluated], lookup, palette)


def ade20k(root: str | Path, split: str) -> PairDataset:
    """ADE20K of the scene-parsing challenge: 150 classes; 0 is ignored. `train` and `val` name its two splits.

    Raises:
        FileNotFoundError: a folder or `objectInfo150.txt` is missing; says which.
        ValueError: pairs are incomplete, all of them listed.
    """
    folder = {"train": "training", "val": "validation"}.get(split, split)
    images_dir, labels_dir = split_folders(Path(root), "images", "annotations", folder)
    info = Path(root) / "objectInfo150.txt"
    if not info.is_file():
        raise FileNotFoundError(f"data: expected {info} naming the classes, got no such file")
    rows = [line.split("\t") for line in info.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
    names = [row[-1].split(",")[0].strip() for row in rows]
    images, labels = files_by_stem(images_dir, (".jpg",)), files_by_stem(labels_dir, (".png",))
    lookup = lookup_of({i + 1: i for i in range(len(names))}, [0])
    pairs = matched(Path(root), split, list(images), images, labels)
    return PairDataset("ade20k", split, pairs, names, lookup, bit_palette(len(names)))


class CocoDataset(SegmentationDataset):
    """COCO 2017 with the classes of VOC, drawn from its polygons; where objects overlap, pixels are ignored.

    The training split leaves out images with fewer than `LEAST_COCO_PIXELS` labelled pixels.

    Raises:
        FileNotFoundError: the annotations or the images of the split are missing.
        ValueError: images that the annotations name are missing, all of them listed; pycocotools is.
    """

    def __init__(self, root: str | Path, split: str) -> None:
        self.name, self.split = "coco", split
        self.class_names = VOC_CLASSES
        self.palette = bit_palette(len(VOC_CLASSES))
        images_dir = Path(root) / f"{split}2017"
        annotations = Path(root) / "annotations" / f"instances_{split}2017.json"
        for path in (images_dir, annotations):
            if not path.exists():
                raise FileNotFoundError(f"data: split {split!r} of COCO expects {path}, got nothing there")
        try:
            module: Any = importlib.import_module("pycocotools.coco")
        except ImportError as error:
            raise ValueError(f"data: COCO needs pycocotools: pip install pycocotools ({error})") from None
        self._coco = module.COCO(str(annotations))
        wanted = {category: index for index, category in enumerate(COCO_OF_VOC) if category}
        self._class_of = wanted
        records = sorted(self._coco.loadImgs(self._coco.getImgIds()), key=lambda record: record["id"])
        if split == "train":
            records = [r for r in records if sum(a["area"] for a in self._objects(r)) >= LEAST_COCO_PIXELS]
        missing = [r["file_name"] for r in records if not (images_dir / r["file_name"]).is_file()]
        if missing or not records:
            shown = "; ".join(missing[:10]) + (f"; and {len(missing) - 10} more" if len(missing) > 10 else "")
            raise ValueError(
                f"data: {images_dir}: expected the images of {annotations.name}, missing: {shown or 'all'}"
            )
        self._records = records
        self._images_dir = images_dir

    def __len__(self) -> int:
        return len(self._records)

    def identity(self, index: int) -> str:
        return Path(self._records[index]["file_name"]).stem

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        record = self._records[index]
        image = decode(self._images_dir / record["file_name"], "RGB")
        if image.shape[:2] != (record["height"], record["width"]):
            expected = (record["height"], record["width"])
            raise ValueError(f"{record['file_name']}: expected the annotated size {expected}, got {image.shape[:2]}")
        labels = np.zeros(image.shape[:2], np.uint8)
        covered = np.zeros(image.shape[:2], np.uint8)
        for annotation in self._objects(record):
            mask = self._coco.annToMask(annotation).astype(bool)
            labels[mask] = np.maximum(labels[mask], self._class_of[annotation["category_id"]])
            covered += mask & (covered < 2)
        labels[covered > 1] = IGNORE_INDEX
        return image, labels

    def check(self) -> list[str]:
        problems = []
        for index in range(len(self)):
            try:
                self.pair(index)
            except (OSError, ValueError) as error:
                problems.append(str(error))
        return problems

    def _objects(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        found = self._coco.loadAnns(self._coco.getAnnIds(imgIds=record["id"], catIds=list(self._class_of)))
        return [annotation for annotation in found if not annotation.get("iscrowd")]


def bit_palette(num_classes: int) -> npt.NDArray[np.uint8]:
    """(C, 3) the colours of VOC's label maps: the bits of the class dealt to the high bits of red, green and blue."""
    palette = np.zeros((num_classes, 3), dtype=np.uint8)
    for index in range(num_classes):
        rest = index
        for shift in range(7, -1, -1):
            for channel in range(3):
                palette[index, channel] |= (rest >> channel & 1) << shift
            rest >>= 3
    return palette


def _without(prefix: str, files: dict[str, Path]) -> dict[str, Path]:
    """By names without the prefix, where all have it: some copies of CamVid do."""
    is_prefixed = all(name.startswith(prefix) for name in files)
    return {name.removeprefix(prefix) if is_prefixed else name: path for name, path in files.items()}


def _stem(path: Path, ending: str) -> str:
    return path.name.removesuffix(ending)
