"""A short string names a dataset, the same on the command line and in Python."""

from __future__ import annotations

from collections.abc import Callable

from mess.data.dataset import SegmentationDataset
from mess.data.folder import FolderDataset
from mess.data.published import CocoDataset, ade20k, camvid, cityscapes, voc
from mess.data.scenes import SceneDataset

_KINDS: dict[str, Callable[[str, str], SegmentationDataset]] = {
    "folder": FolderDataset,
    "camvid": camvid,
    "voc": voc,
    "cityscapes": cityscapes,
    "ade20k": ade20k,
    "coco": CocoDataset,
}

_FORMS = (
    "'scenes' or 'scenes:COUNT' (drawn, nothing to download), 'folder:PATH' (images/<split>, labels/<split>, "
    "dataset.json), 'camvid:PATH', 'voc:PATH', 'cityscapes:PATH', 'ade20k:PATH' or 'coco:PATH'"
)


def dataset_from_spec(spec: str, *, split: str) -> SegmentationDataset:
    """The dataset that `spec` names.

    Args:
        spec: `scenes[:COUNT]`, `folder:PATH`, or the name of a published dataset and its folder (`camvid:`, `voc:`,
            `cityscapes:`, `ade20k:`, `coco:`; see `mess.data.published`).
        split: `train`, `val`, `test`, or any split the folder has.

    Raises:
        ValueError: `spec` has none of these forms.
        FileNotFoundError: the folder or the split is not there.
    """
    kind, _, rest = spec.partition(":")
    if kind == "scenes" and (not rest or rest.isdigit()):
        return SceneDataset(split=split, count=int(rest) if rest else None)
    if kind in _KINDS and rest:
        return _KINDS[kind](rest, split)
    raise ValueError(f"data: expected {_FORMS}, got {spec!r}")
