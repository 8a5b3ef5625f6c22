"""Datasets by name, folders with mistakes in them, seeded batches."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from mess.data import FolderDataset, SceneDataset, SeededLoader, dataset_from_spec
from mess.data.transforms import apply_transform, eval_transform, train_transform


@pytest.fixture
def folder(tmp_path):
    """Three pairs of 6 x 8 pixels, classes a and b, value 9 ignored."""
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["a", "b"], "ignore_index": 9}))
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
    for name in "xyz":
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(tmp_path / f"images/train/{name}.png")
        labels = rng.integers(0, 2, (6, 8), dtype=np.uint8)
        labels[0, 0] = 9
        Image.fromarray(labels).save(tmp_path / f"labels/train/{name}.png")
    return tmp_path


def test_a_folder(folder):
    data = dataset_from_spec(f"folder:{folder}", split="train")
    image, labels = data.pair(1)
    assert (len(data), data.num_classes, data.identity(1)) == (3, 2, "y")
    assert image.shape == (6, 8, 3)
    assert labels[0, 0] == 255
    assert data.check() == []


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_pictures_of_more_than_8_bits_are_refused_rather_than_clipped(folder, kind):
    Image.fromarray(np.full((6, 8), 300, kind)).save(folder / "images/train/y.tiff")
    (folder / "images/train/y.tiff").rename(folder / "images/train/y.png")
    problems = FolderDataset(folder, "train").check()
    assert len(problems) == 1
    assert "expected 8 bits a channel, got mode" in problems[0]


def test_a_split_list_gives_order_and_subset(folder):
    (folder / "splits").mkdir()
    (folder / "splits" / "train.txt").write_text("z\nx\n")
    data = FolderDataset(folder, "train")
    assert [data.identity(i) for i in range(len(data))] == ["z", "x"]


def test_missing_things_are_named(folder):
    with pytest.raises(FileNotFoundError, match="data: expected a folder .*got /no/where"):
        FolderDataset("/no/where", "train")
    with pytest.raises(FileNotFoundError, match=r"split 'val' expects the folder .*splits there: \['train'\]"):
        FolderDataset(folder, "val")
    (folder / "images/train/x.png").rename(folder / "images/train/x.tif")  # which nothing here reads
    with pytest.raises(ValueError, match="1 incomplete pairs: no image for x"):
        FolderDataset(folder, "train")
    (folder / "images/train/x.tif").rename(folder / "images/train/x.png")
    (folder / "labels/train/x.png").unlink()
    (folder / "labels/train/y.png").unlink()
    with pytest.raises(ValueError, match="2 incomplete pairs: no label map for x; no label map for y"):
        FolderDataset(folder, "train")
    (folder / "images/train/z.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"label map for y; 1 problems with the others: .*z\.png: cannot be decoded"):
        FolderDataset(folder, "train")
    (folder / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="is no complete JSON file"):
        FolderDataset(folder, "train")


def test_bad_pictures_are_all_listed(folder):
    Image.fromarray(np.zeros((6, 7), np.uint8)).save(folder / "labels/train/x.png")
    Image.fromarray(np.full((6, 8), 5, np.uint8)).save(folder / "labels/train/y.png")
    (folder / "images/train/z.png").write_bytes(b"no picture")
    problems = FolderDataset(folder, "train").check()
    assert len(problems) == 3
    assert "expected the image's size (6, 8), got (6, 7)" in problems[0]
    assert "expected labels 0..1 or 9 (ignored), got [5]" in problems[1]
    assert "cannot be decoded" in problems[2]


def test_masks_of_0_and_255_are_not_taken_for_ignored_without_a_word(folder):
    (folder / "dataset.json").write_text(json.dumps({"classes": ["background", "object"]}))
    for name in "xyz":
        labels = np.zeros((6, 8), np.uint8)
        labels[2:4] = 255
        Image.fromarray(labels).save(folder / f"labels/train/{name}.png")
    problems = FolderDataset(folder, "train").check()
    assert len(problems) == 1
    assert "no pixel is labelled object; 48 pixels are ignored (value 255)" in problems[0]
    (folder / "dataset.json").write_text(json.dumps({"classes": ["background", "object"], "ignore_index": 9}))
    assert "got [255]" in FolderDataset(folder, "train").check()[0]


def test_the_value_of_a_class_can_be_ignored(folder, recwarn):
    """`unlabelled` as class 0, as many tools write it: the class stays, nothing is labelled with it."""
    about = {"classes": ["unlabelled", "road", "car"], "ignore_index": 0}
    (folder / "dataset.json").write_text(json.dumps(about))
    values = np.repeat(np.array([0, 1, 2], np.uint8), 16).reshape(6, 8)
    for name in "xyz":
        Image.fromarray(values).save(folder / f"labels/train/{name}.png")
    data = FolderDataset(folder, "train")
    np.testing.assert_array_equal(data.pair(0)[1], np.where(values == 0, 255, values))
    assert data.check() == []
    assert not recwarn.list
    labels = np.where(values == 2, 1, values).astype(np.uint8)
    for name in "xyz":
        Image.fromarray(labels).save(folder / f"labels/train/{name}.png")
    assert "no pixel is labelled unlabelled, car; 48 pixels are ignored (value 0)" in data.check()[0]
    Image.fromarray(values + 1).save(folder / "labels/train/x.png")
    assert "expected labels 1..2 or 0 (ignored), got [3]" in FolderDataset(folder, "train").check()[0]


def test_names_with_spaces_in_a_split_list(folder):
    for kind in ("images", "labels"):
        (folder / kind / "train" / "x.png").rename(folder / kind / "train" / "x 1.png")
    (folder / "splits").mkdir()
    (folder / "splits" / "train.txt").write_text("x 1\n\ny\n")
    data = FolderDataset(folder, "train")
    assert [data.identity(i) for i in range(len(data))] == ["x 1", "y"]


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"classes": "ab"}, "classes: expected a list of names, got 'ab'"),
        ({"classes": []}, "classes: expected 1 to 255 names"),
        ({"classes": ["a", "b"], "palette_rgb": [[1, 2], [3, 4]]}, r"palette_rgb: expected \[red, green, blue\]"),
        ({"classes": [str(i) for i in range(256)]}, "expected 1 to 255 names"),
        ({"classes": ["a", "b"], "palette_rgb": [[1, 2, 3], [3, 4, 256]]}, "of 0..255 for each class, got"),
        (
            {"classes": ["a", "b"], "palette_rgb": [[1, 2, 3]]},
            "palette_rgb: expected a colour for each of 2 classes, got 1",
        ),
        ({"classes": ["a", "b"], "ignore_index": "x"}, "ignore_index: expected a label, got 'x'"),
        ({"classes": ["a", "b"], "ignore_index": 300}, r"ignore_index: expected a label in 0\.\.255, or -1"),
        ({"classes": ["a", "b", "a"]}, r"classes: expected different names, got \['a'\] more than once"),
    ],
)
def test_a_description_that_is_off_is_refused(folder, info, message):
    (folder / "dataset.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=message):
        FolderDataset(folder, "train")


@pytest.mark.parametrize("spec", ["voc", "scenes:x", "folder:", ""])
def test_unknown_specs(spec):
    with pytest.raises(ValueError, match="data: expected 'scenes'"):
        dataset_from_spec(spec, split="train")


def test_scenes_are_the_same_every_time_and_differ_by_split_and_index():
    one, two = SceneDataset(split="train", count=4), SceneDataset(split="train", count=4)
    for a, b in zip(one.pair(2), two.pair(2), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.pair(0)[0], one.pair(1)[0])
    assert not np.array_equal(one.pair(0)[0], SceneDataset(split="val", count=4).pair(0)[0])
    assert one.pair(3)[1].max() < one.num_classes
    with pytest.raises(IndexError, match=r"index: expected 0..3, got 4"):
        one.pair(4)


def test_scenes_hold_every_class_and_get_harder():
    data = SceneDataset(split="train", count=60)
    present = np.unique(np.concatenate([np.unique(data.pair(i)[1]) for i in range(60)]))
    assert present.tolist() == list(range(data.num_classes))
    order = sorted(range(60), key=data.difficulty)
    objects = [(data.pair(i)[1] > 0).mean() for i in order]
    edges = [np.mean(np.diff(data.pair(i)[1].astype(int), axis=1) != 0) for i in order]
    assert np.mean(edges[:20]) < np.mean(edges[-20:])
    assert min(objects) >= 0


def test_batches_depend_on_seed_and_epoch_alone():
    data = SceneDataset(split="train", count=6, size=(32, 48))

    def epoch(number, seed=0):
        batches = SeededLoader(data, batch_size=3, size=(32, 48), train=True, seed=seed)
        batches.set_epoch(number)
        torch.rand(3)  # the global stream plays no part
        return torch.cat([images for images, _ in batches])

    assert torch.equal(epoch(1), epoch(1))
    assert not torch.equal(epoch(1), epoch(2))
    assert not torch.equal(epoch(1), epoch(1, seed=5))


def test_loading_does_not_disturb_the_global_stream():
    batches = SeededLoader(SceneDataset(split="train", count=4), batch_size=2, size=(32, 48), train=True)
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    list(batches)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"train": True}, "size: expected"),
        ({"train": True, "size": (8, 8), "batch_size": 9}, "batch_size: expected at most the 4 images"),
    ],
)
def test_bad_loader_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SeededLoader(SceneDataset(split="train", count=4), **options)


def test_workers_and_later_beginnings_change_nothing():
    data = SceneDataset(split="train", count=6)
    plain = SeededLoader(data, size=(16, 24), batch_size=2, train=True, seed=1)
    ahead = SeededLoader(data, size=(16, 24), batch_size=2, train=True, seed=1, workers=2)
    expected, found = list(plain.begin(3, 0)), list(ahead.begin(3, 0))
    later = list(plain.begin(3, 1))
    assert len(expected) == len(found) == 3
    for (a, b), (c, d) in zip(expected, found, strict=True):
        assert torch.equal(a, c)
        assert torch.equal(b, d)
    assert torch.equal(later[0][0], expected[1][0])
    assert len(later) == 2
    with pytest.raises(ValueError, match="workers: expected at least 0, got -1"):
        SeededLoader(data, workers=-1)


@pytest.mark.parametrize("source", [(720, 960), (200, 300), (96, 128), (60, 70)])
@pytest.mark.parametrize("train", [False, True])
def test_labels_stay_on_their_image(source, train):
    """Discs that are drawn in the image too: resized, cropped or turned, the image still says where the labels are."""
    rows, columns = np.mgrid[: source[0], : source[1]] + 0.5
    radius = source[0] / 12
    rng, outside, inside, offset = np.random.default_rng(0), 0, 0, []
    for seed in range(12):
        centres = rng.uniform(0.1, 0.9, (6, 2)) * source
        disc = np.min([np.hypot(rows - y, columns - x) for y, x in centres], axis=0) < radius
        pair = 255 * np.repeat(disc[..., None], 3, axis=2).astype(np.uint8), disc.astype(np.uint8)
        torch.manual_seed(seed)
        transform = (train_transform if train else eval_transform)((96, 128), (0, 0, 0), (1, 1, 1))
        image, labels = apply_transform(transform, *pair)
        grey = image.mean(0)
        drawn, marked = grey > (grey.max() + grey.min()) / 2, labels == 1
        outside += int((drawn ^ marked).sum())
        inside += int((drawn & marked).sum())
        for axis in (0, 1):
            middle = [(mask.nonzero()[:, axis].double() + 0.5).sum() for mask in (drawn, marked)]
            offset.append(float(middle[1] / marked.sum() - middle[0] / drawn.sum()))
    assert outside < 0.1 * inside
    assert abs(np.mean(offset)) < 0.1  # half a pixel, with torchvision's own nearest neighbour


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def test_pictures_are_turned_as_exif_says(folder):
    """As programs show them, and label them: a camera that was held upright, or upside down."""
    values = np.zeros((6, 8), np.uint8)
    values[:2, :3] = 1
    shown = Image.fromarray(np.repeat(values[..., None] * 200, 3, axis=2))
    stored = shown.transpose(Image.Transpose.ROTATE_180)
    for name in "xyz":
        Image.fromarray(values).save(folder / f"labels/train/{name}.png")
        (folder / f"images/train/{name}.png").unlink()
    stored.save(folder / "images/train/x.png", exif=orientation(3))
    shown.transpose(Image.Transpose.ROTATE_90).save(folder / "images/train/y.png", exif=orientation(6))
    shown.save(folder / "images/train/z.png")
    data = FolderDataset(folder, "train")
    assert data.check() == []
    for i in range(3):
        image, labels = data.pair(i)
        np.testing.assert_array_equal(image[..., 0], 200 * labels)
    shown.save(folder / "images/train/z.png", exif=orientation(6))
    assert "expected the image's size (8, 6), turned as its EXIF orientation says, got (6, 8)" in data.check()[0]


def test_one_image_for_one_label_map(folder):
    Image.new("RGB", (8, 6)).save(folder / "images/train/x.jpg")
    with pytest.raises(ValueError, match=r"images/train: expected one file named x, got x.jpg and x.png"):
        FolderDataset(folder, "train")


def test_a_list_of_a_split(folder):
    (folder / "splits").mkdir()
    (folder / "splits/train.txt").write_text("x\ny\n", encoding="utf-8-sig")  # as Windows' editor does
    assert len(FolderDataset(folder, "train")) == 2
    (folder / "splits/train.txt").write_text("x\ny\nx\n")
    with pytest.raises(ValueError, match="x is listed 2 times"):
        FolderDataset(folder, "train")


@pytest.mark.parametrize("bits", [2, 4])
def test_labels_of_fewer_bits_are_not_scaled(folder, bits):
    """Pillow reads grey of 2 bits as 0, 85, 170, 255."""
    path = folder / "labels/train/x.png"
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(path)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + bytes(8 * bits // 8) for _ in range(6))
    header = struct.pack(">IIBBBBB", 8, 6, bits, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert f"expected 8 bits a pixel, got {bits}" in FolderDataset(folder, "train").check()[0]
