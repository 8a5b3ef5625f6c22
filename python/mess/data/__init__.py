"""Datasets, transforms and loaders. Nothing here knows a model.

Reading order: `spec` (a string names a dataset) -> `pairs`, `folder`, `published`, `scenes` (where images come from) ->
`transforms` (what training sees) -> `loader` (seeded batches).
"""

from mess.data.dataset import IGNORE_INDEX, SegmentationDataset
from mess.data.folder import FolderDataset
from mess.data.loader import SeededLoader
from mess.data.scenes import SceneDataset
from mess.data.spec import dataset_from_spec

__all__ = [
    "IGNORE_INDEX",
    "FolderDataset",
    "SceneDataset",
    "SeededLoader",
    "SegmentationDataset",
    "dataset_from_spec",
]
