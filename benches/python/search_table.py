"""A synthetic calibration table of any size, for measuring the search: seeded, and shaped like a real one.

Images have a difficulty and one to six classes. An exit has a quality that rises with its depth and varies with its
head; on an image it gets each class right to a share that falls with the image's difficulty, plus noise, some of it
shared by all exits, some by the heads of a point. What it misses it predicts as another class, mostly one that is in
the image. Its image confidence follows how right it was, with noise, and falls as the pixel threshold rises. Costs are
shares of the whole network: exit points at equal distances, heads from half a percent to seven percent, better heads
dearer. The noise is set so that two exits differ as much as on the CamVid run of this repository: there the
intersections of two heads of a point differ by 1.1 to 1.4 % of a class's ground truth in the median class (here 1.5),
of neighbouring points by 1.5 to 2.2 % (here 2.2).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mess_core import SearchTable

PIXELS = 187_500
"""Pixels of an image: 375 x 500."""


def synthetic_table(
    *, images: int = 1449, classes: int = 21, points: int = 6, heads: int = 24, pixels: int = 10, seed: int = 0
) -> SearchTable:
    """`points` x `heads` exits, `pixels` pixel thresholds."""
    rng = np.random.default_rng(seed)
    popularity = rng.dirichlet(np.full(classes - 1, 2.0))
    difficulty = rng.beta(2, 3, images)
    truth = np.zeros((images, classes), np.int64)
    present = np.zeros((images, classes), bool)
    for i in range(images):
        count = min(1 + rng.poisson(0.8), classes - 1)
        chosen = np.concatenate([[0], 1 + rng.choice(classes - 1, count, replace=False, p=popularity)])
        shares = rng.dirichlet(np.where(chosen == 0, 6.0, 2.0))
        truth[i, chosen] = np.floor(shares * PIXELS).astype(np.int64)
        present[i, chosen] = True
    class_difficulty = np.concatenate([[0.0], rng.uniform(0.5, 1.5, classes - 1)])

    num_exits = points * heads
    point = np.repeat(np.arange(points), heads)
    dearness = np.tile(np.linspace(0, 1, heads), points)
    backbone = (point + 1) / points * 0.93
    head = 0.005 + 0.065 * dearness**2
    depth = (point + 1) / points
    quality = 1.1 * (1 - np.exp(-2.2 * depth)) + 0.08 * np.sqrt(dearness) + rng.normal(0, 0.015, num_exits)

    intersection = np.zeros((num_exits, images, classes), np.int64)
    predicted = np.zeros((num_exits, images, classes), np.int64)
    confidence = np.zeros((num_exits, pixels, images))
    thresholds = np.linspace(0.5, 0.95, pixels)
    shared = rng.normal(0, 0.5, (images, classes))  # what is hard about an image is hard for every exit
    of_point = rng.normal(0, 0.1, (points, images, classes))
    confusion = rng.uniform(0.2, 1.0, (images, classes))
    stray = rng.integers(0, classes, images)
    for e in range(num_exits):
        score = 2.6 * quality[e] - 2.4 * difficulty[:, None] * class_difficulty + 0.6 + shared
        score += of_point[point[e]] + rng.normal(0, 0.13, score.shape)
        recall = 1 / (1 + np.exp(-1.6 * score))
        hit = np.minimum(np.round(recall * truth), truth).astype(np.int64)
        mistaken = present * confusion * rng.uniform(0.85, 1.15, (images, classes))
        predicted[e] = _predictions(truth, hit, mistaken, stray)
        intersection[e] = hit
        right = hit.sum(1) / truth.sum(1)
        certainty = np.log(right / (1 - right + 1e-9) + 1e-9) + rng.normal(0, 0.6, images)
        wobble = rng.normal(0, 0.25, (pixels, images)).cumsum(0)  # nearby thresholds order images alike, not equally
        values = 1 / (1 + np.exp(-(certainty[None] * 0.9 + wobble + 2.2 - 3.6 * thresholds[:, None])))
        confidence[e] = np.round(np.clip(values, 0, 1) * PIXELS) / PIXELS
    return SearchTable(
        intersection=intersection,
        predicted=predicted,
        ground_truth=truth,
        image_confidence=confidence,
        points=point.astype(np.int64),
        backbone_cost=backbone,
        head_cost=head,
        policy_cost=np.full(num_exits, 0.002),
    )


def _predictions(
    truth: npt.NDArray[np.int64],
    hit: npt.NDArray[np.int64],
    mistaken: npt.NDArray[np.float64],
    stray: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Hits, and every missed pixel as another class: nine of ten by weights `mistaken`, the rest as class `stray`."""
    predicted = hit.copy()
    missed = (truth - hit).sum(1)
    weights = mistaken / mistaken.sum(1, keepdims=True)
    predicted += np.floor(weights * (0.9 * missed)[:, None]).astype(np.int64)
    predicted[np.arange(len(stray)), stray] += np.floor(0.1 * missed).astype(np.int64)
    return predicted
