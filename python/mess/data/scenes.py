"""Drawn scenes of graded difficulty: nothing to download, and exits have something to decide.

A scene is a lit, noisy ground with objects on it. The class of an object is its *shape and texture* (five kinds). In an
easy scene few large objects also wear their class's usual colour, so shallow features suffice. As the difficulty grows,
colours become arbitrary, contrast falls, noise and occlusion grow, and only shape and texture tell.
"""

from __future__ import annotations

import numpy as np

from mess.data.dataset import SegmentationDataset, default_palette

CLASS_NAMES = ("ground", "striped disc", "dotted disc", "checked box", "barred box", "plain triangle")
USUAL_COLOURS = np.array(
    [[0.45, 0.45, 0.42], [0.85, 0.25, 0.2], [0.2, 0.45, 0.85], [0.9, 0.75, 0.2], [0.3, 0.7, 0.35], [0.7, 0.35, 0.75]]
)
DEFAULT_COUNTS = {"train": 480, "val": 120, "test": 120}
_SPLIT_SEEDS = {"train": 1, "val": 2, "test": 3}


class SceneDataset(SegmentationDataset):
    """`count` scenes of (height, width) pixels; scene `i` of a split is always the same picture.

    Args:
        split: `train`, `val` or `test`: three disjoint random streams.
        count: number of scenes (default 480 / 120 / 120).
        size: (height, width) in pixels.
        seed: another set of scenes.
    """

    name = "scenes"
    class_names = CLASS_NAMES
    palette = default_palette(len(CLASS_NAMES))

    def __init__(
        self, *, split: str, count: int | None = None, size: tuple[int, int] = (96, 128), seed: int = 0
    ) -> None:
        if split not in _SPLIT_SEEDS:
            raise ValueError(f"split: expected one of {sorted(_SPLIT_SEEDS)}, got {split!r}")
        if count is not None and count < 1:
            raise ValueError(f"count: expected at least 1 scene, got {count}")
        self.split, self.size, self.seed = split, size, seed
        self._count = DEFAULT_COUNTS[split] if count is None else count

    def __len__(self) -> int:
        return self._count

    def identity(self, index: int) -> str:
        return f"{self.split}-{index:04d}"

    def difficulty(self, index: int) -> float:
        """0 (easy) .. 1 (hard), spread evenly over the split by the golden-ratio sequence."""
        return float((index * 0.6180339887498949) % 1.0)

    def pair(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0..{len(self) - 1}, got {index}")
        rng = np.random.default_rng([self.seed, _SPLIT_SEEDS[self.split], index])
        return draw_scene(rng, size=self.size, difficulty=self.difficulty(index))


def draw_scene(rng: np.random.Generator, *, size: tuple[int, int], difficulty: float) -> tuple[np.ndarray, np.ndarray]:
    """One scene: image (H, W, 3) uint8 and label map (H, W) uint8."""
    height, width = size
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float64)
    light = 0.85 + 0.3 * (rng.random() - 0.5) * rows / height + 0.3 * (rng.random() - 0.5) * columns / width
    image = USUAL_COLOURS[0] + 0.08 * difficulty * rng.standard_normal(3)
    image = np.broadcast_to(image, (height, width, 3)) * light[..., None]
    labels = np.zeros((height, width), dtype=np.uint8)
    for _ in range(1 + rng.integers(0, 2) + round(6 * difficulty)):
        kind = int(rng.integers(1, len(CLASS_NAMES)))
        inside, texture = _object(rng, rows, columns, kind, difficulty)
        usual, arbitrary = USUAL_COLOURS[kind], rng.random(3)
        colour = (1 - difficulty) * usual + difficulty * arbitrary
        contrast = 0.45 - 0.25 * difficulty
        painted = colour * light[..., None] * (1 - contrast + contrast * texture[..., None])
        image = np.where(inside[..., None], painted, image)
        labels[inside] = kind
    image = image + (0.02 + 0.10 * difficulty) * rng.standard_normal(image.shape)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8), labels


def _object(
    rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray, kind: int, difficulty: float
) -> tuple[np.ndarray, np.ndarray]:
    """Inside mask (H, W) bool and texture (H, W) in [0, 1] of one object."""
    height, width = rows.shape
    radius = min(height, width) * rng.uniform(0.30 - 0.17 * difficulty, 0.40 - 0.20 * difficulty)
    y = rows - rng.uniform(0.1, 0.9) * height
    x = columns - rng.uniform(0.1, 0.9) * width
    angle = rng.uniform(-0.4, 0.4)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    period = 8.0
    stripes = (np.floor(v / period * 2) % 2).astype(np.float64)
    bars = (np.floor(u / period * 2) % 2).astype(np.float64)
    dots = ((u % period - period / 2) ** 2 + (v % period - period / 2) ** 2 > (period / 3.2) ** 2).astype(np.float64)
    disc, box = u**2 + v**2 <= radius**2, (abs(u) <= radius * 0.9) & (abs(v) <= radius * 0.9)
    triangle = (v <= radius * 0.7) & (v >= 2 * abs(u) - radius)
    return {
        1: (disc, stripes),
        2: (disc, dots),
        3: (box, np.abs(stripes - bars)),
        4: (box, bars),
        5: (triangle, np.ones_like(u)),
    }[kind]
