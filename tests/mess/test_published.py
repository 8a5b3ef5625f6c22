"""The published datasets, in small folders of the form that their archives unpack to."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import Cityscapes, VOCSegmentation

from mess.data import dataset_from_spec
from mess.data.published import VOC_CLASSES, bit_palette

SIZE = (6, 8)


def write_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_labels(path: Path, values: list[int]) -> np.ndarray:
    """A label map whose rows begin with these values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.resize(np.array(values, np.uint8), SIZE)
    picture = Image.fromarray(labels, mode="P")
    picture.putpalette(bytes(range(256)) * 3)
    picture.save(path)
    return labels


@pytest.mark.parametrize("names", [("a", "a"), ("train_00001", "trainannot_00001")])
def test_camvid_as_segnet_has_it(tmp_path, names):
    write_image(tmp_path / f"train/{names[0]}.png")
    labels = write_labels(tmp_path / f"trainannot/{names[1]}.png", [0, 10, 11])
    data = dataset_from_spec(f"camvid:{tmp_path}", split="train")
    assert (len(data), data.num_classes, data.class_names[3]) == (1, 11, "road")
    assert (data.pair(0)[1] == np.where(labels == 11, 255, labels)).all()
    with pytest.raises(FileNotFoundError, match=r"split 'val' expects the folder .*val; splits there: \['train'\]"):
        dataset_from_spec(f"camvid:{tmp_path}", split="val")
    write_image(tmp_path / "train/b.png")
    with pytest.raises(ValueError, match="no label map for b"):
        dataset_from_spec(f"camvid:{tmp_path}", split="train")
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["x", "y"]}))
    write_image(tmp_path / "images/train/a.png")
    write_labels(tmp_path / "labels/train/a.png", [0, 1])
    assert dataset_from_spec(f"camvid:{tmp_path}", split="train").class_names == ("x", "y")


@pytest.fixture
def voc_root(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for number, name in enumerate(("a", "b", "c")):
        write_image(root / f"JPEGImages/{name}.jpg", number)
    for name in ("a", "b"):
        write_labels(root / f"SegmentationClass/{name}.png", [0, 1, 20, 255])
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for split, names in {"train": "b\na\n", "val": "a\n"}.items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text(names)
    return tmp_path


def test_voc_reads_as_torchvision_does(voc_root):
    data = dataset_from_spec(f"voc:{voc_root}", split="train")
    theirs = VOCSegmentation(str(voc_root), year="2012", image_set="train")
    assert (len(data), data.num_classes, data.identity(0)) == (2, 21, "b")
    for index in range(2):
        image, labels = data.pair(index)
        assert (image == np.asarray(theirs[index][0])).all()
        assert (labels == np.asarray(theirs[index][1])).all()
    with pytest.warns(UserWarning, match="no pixel is labelled bicycle"):
        assert data.check() == []
    assert bit_palette(21)[[1, 15, 20]].tolist() == [[128, 0, 0], [192, 128, 128], [0, 64, 128]]


def test_voc_takes_train_aug_where_it_is(voc_root):
    root = voc_root / "VOCdevkit/VOC2012"
    for name in ("b", "c"):
        write_labels(root / f"SegmentationClassAug/{name}.png", [0, 5])
    lines = "/JPEGImages/b.jpg /SegmentationClassAug/b.png\n/JPEGImages/c.jpg /SegmentationClassAug/c.png\n"
    (root / "ImageSets/Segmentation/train_aug.txt").write_text(lines)
    data = dataset_from_spec(f"voc:{root}", split="train")
    assert [data.identity(i) for i in range(len(data))] == ["b", "c"]
    assert set(np.unique(data.pair(0)[1])) == {0, 5}
    assert data.name == "voc (train_aug)"
    assert dataset_from_spec(f"voc:{root}", split="val").name == "voc (val)"


def test_what_is_missing_in_voc_is_named(voc_root, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected VOC2012 with JPEGImages/ at /no/where"):
        dataset_from_spec("voc:/no/where", split="train")
    with pytest.raises(FileNotFoundError, match=r"a list of split 'test' .* got \['train', 'val'\]"):
        dataset_from_spec(f"voc:{voc_root}", split="test")
    root = voc_root / "VOCdevkit/VOC2012"
    (root / "ImageSets/Segmentation/val.txt").write_text("a\nc\nd\n")
    with pytest.raises(ValueError, match="3 incomplete pairs: no image for d; no label map for c; no label map for d"):
        dataset_from_spec(f"voc:{voc_root}", split="val")
    write_labels(root / "SegmentationClass/b.png", [0, 21])
    assert any("expected labels 0..20 or 255 (ignored), got [21]" in p for p in checked(f"voc:{voc_root}", "train"))


def checked(spec: str, split: str) -> list[str]:
    return dataset_from_spec(spec, split=split).check()


def test_cityscapes_reads_as_torchvision_does(tmp_path):
    ids = [c.id for c in Cityscapes.classes if c.id >= 0]
    for number, name in enumerate(("aachen_000000_000019", "bonn_000001_000019")):
        city = name.split("_")[0]
        write_image(tmp_path / f"leftImg8bit/val/{city}/{name}_leftImg8bit.png", number)
        write_labels(tmp_path / f"gtFine/val/{city}/{name}_gtFine_labelIds.png", ids)
    data = dataset_from_spec(f"cityscapes:{tmp_path}", split="val")
    assert data.num_classes == 19
    assert data.class_names[:2] + data.class_names[-1:] == ("road", "sidewalk", "bicycle")
    assert data.identity(1) == "bonn_000001_000019_leftImg8bit"
    train_ids = {c.id: c.train_id for c in Cityscapes.classes}
    theirs = Cityscapes(str(tmp_path), split="val", mode="fine", target_type="semantic")
    order = {Path(path).stem: number for number, path in enumerate(theirs.images)}  # theirs is not sorted
    for index in range(2):
        image, labels = data.pair(index)
        their_image, their_labels = theirs[order[data.identity(index)]]
        assert (image == np.asarray(their_image)).all()
        expected = [[min(train_ids[v], 255) for v in row] for row in np.asarray(their_labels).tolist()]
        assert labels.tolist() == expected
    write_labels(tmp_path / "gtFine/val/bonn/bonn_000001_000019_gtFine_labelIds.png", [7, 77])
    problems = data.check()
    assert len(problems) == 1
    assert "got [77]" in problems[0]
    with pytest.raises(FileNotFoundError, match=r"split 'train' expects the folder .*; splits there: \['val'\]"):
        dataset_from_spec(f"cityscapes:{tmp_path}", split="train")


def test_ade20k(tmp_path):
    rows = "Idx\tRatio\tTrain\tVal\tName\n" + "".join(f"{i + 1}\t0.1\t1\t1\tname{i}, other\n" for i in range(150))
    for split, folder in (("train", "training"), ("val", "validation")):
        write_image(tmp_path / f"images/{folder}/ADE_{split}_1.jpg")
        write_labels(tmp_path / f"annotations/{folder}/ADE_{split}_1.png", [0, 1, 150])
    with pytest.raises(FileNotFoundError, match="objectInfo150.txt naming the classes"):
        dataset_from_spec(f"ade20k:{tmp_path}", split="val")
    (tmp_path / "objectInfo150.txt").write_text(rows)
    data = dataset_from_spec(f"ade20k:{tmp_path}", split="val")
    assert (data.num_classes, data.class_names[0], data.identity(0)) == (150, "name0", "ADE_val_1")
    assert set(np.unique(data.pair(0)[1])) == {255, 0, 149}


@pytest.fixture
def coco_root(tmp_path):
    def square(left: int, top: int, side: int) -> list[list[float]]:
        return [[left, top, left + side, top, left + side, top + side, left, top + side]]

    def annotation(number: int, image: int, category: int, polygon: list[list[float]], crowd: int = 0) -> dict:
        area = (polygon[0][2] - polygon[0][0]) ** 2
        return {"id": number, "image_id": image, "category_id": category, "segmentation": polygon, "area": area,
                "iscrowd": crowd, "bbox": [0, 0, 1, 1]}  # fmt: skip

    images = [{"id": 7, "file_name": "7.jpg", "height": 60, "width": 80}]
    images.append({"id": 9, "file_name": "9.jpg", "height": 60, "width": 80})
    boxes = [
        annotation(1, 7, 5, square(0, 0, 40)),  # aeroplane
        annotation(2, 7, 1, square(30, 30, 20)),  # person, overlaps it
        annotation(3, 7, 11, square(60, 0, 10)),  # a fire hydrant is background
        annotation(4, 9, 1, square(0, 0, 10)),  # too small to train on
    ]
    for split in ("train", "val"):
        for image in images:
            path = tmp_path / f"{split}2017" / image["file_name"]
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(path)
        (tmp_path / "annotations").mkdir(exist_ok=True)
        categories = [{"id": i, "name": str(i)} for i in (1, 5, 11)]
        content = {"images": images, "annotations": boxes, "categories": categories}
        (tmp_path / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))
    return tmp_path


def test_coco_with_the_classes_of_voc(coco_root):
    train, val = (dataset_from_spec(f"coco:{coco_root}", split=split) for split in ("train", "val"))
    assert (len(train), len(val), train.class_names) == (1, 2, VOC_CLASSES)
    image, labels = train.pair(0)
    assert image.shape == (60, 80, 3)
    assert labels[5, 5] == 1
    assert labels[45, 45] == VOC_CLASSES.index("person")
    assert labels[35, 35] == 255  # both
    assert labels[5, 65] == labels[55, 5] == 0
    assert val.check() == []
    (coco_root / "val2017/9.jpg").unlink()
    with pytest.raises(ValueError, match="missing: 9.jpg"):
        dataset_from_spec(f"coco:{coco_root}", split="val")
    with pytest.raises(FileNotFoundError, match="split 'test' of COCO expects .*test2017"):
        dataset_from_spec(f"coco:{coco_root}", split="test")


def test_a_class_that_never_occurs_is_warned_about_and_a_likely_ignore_value_named(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["a", "b", "c"]}))
    for name in ("x", "y"):
        write_image(tmp_path / f"images/train/{name}.png")
        write_labels(tmp_path / f"labels/train/{name}.png", [0, 1])
    with pytest.warns(UserWarning, match="no pixel is labelled c: its IoU there is undefined"):
        assert checked(f"folder:{tmp_path}", "train") == []
    write_labels(tmp_path / "labels/train/y.png", [0, 1, 2, 11])
    problems = checked(f"folder:{tmp_path}", "train")
    assert len(problems) == 1
    assert "expected labels 0..2 or 255 (ignored), got [11]: if 11 stands for 'ignore', say so" in problems[0]


def test_a_label_map_of_sixteen_bits_is_refused(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["a", "b"]}))
    write_image(tmp_path / "images/train/x.png")
    (tmp_path / "labels/train").mkdir(parents=True)
    Image.fromarray(np.zeros(SIZE, np.uint16)).save(tmp_path / "labels/train/x.png")
    assert "expected a single-channel 8-bit label map" in checked(f"folder:{tmp_path}", "train")[0]
