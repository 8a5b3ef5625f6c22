"""A short string names a dataset, the same on the command line and in Python."""

from __future__ import annotations

from mess.data.dataset import SegmentationDataset
from mess.data.folder import FolderDataset
from mess.data.scenes import SceneDataset

_FORMS = (
    "'scenes' or 'scenes:COUNT' (drawn, nothing to download), 'folder:PATH' or 'camvid:PATH' "
    "(images/<split>, labels/<split>, dataset.json)"
)


def dataset_from_spec(spec: str, *, split: str) -> SegmentationDataset:
    """The dataset that `spec` names.

    Args:
        spec: `scenes[:COUNT]`, `folder:PATH` or `camvid:PATH`.
        split: `train`, `val`, `test`, or any split the folder has.

    Raises:
        ValueError: `spec` has none of these forms.
        FileNotFoundError: the folder or the split is not there.
    """
    kind, _, rest = spec.partition(":")
    if kind == "scenes" and (not rest or rest.isdigit()):
        return SceneDataset(split=split, count=int(rest) if rest else None)
    if kind in ("folder", "camvid") and rest:
        return FolderDataset(rest, split)
    raise ValueError(f"data: expected {_FORMS}, got {spec!r}")
