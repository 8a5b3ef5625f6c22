"""Brute force over every configuration of a small table, by the definition: image by image, sum, divide."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from mess_core import Configuration, Gate, SearchTable


def weights(table: SearchTable) -> np.ndarray:
    """How often each image counts."""
    images = table.ground_truth.shape[0]
    return np.ones(images, int) if table.image_weight is None else np.asarray(table.image_weight)


def iou(table: SearchTable, exit_of_image: list[int]) -> np.ndarray:
    """(C,) sum over images, divide once; NaN for classes without ground truth."""
    w = weights(table)
    intersection = sum(w[i] * table.intersection[e, i] for i, e in enumerate(exit_of_image))
    predicted = sum(w[i] * table.predicted[e, i] for i, e in enumerate(exit_of_image))
    truth = (w[:, None] * table.ground_truth).sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.where(truth > 0, intersection / (truth + predicted - intersection), np.nan)


def accuracy(table: SearchTable, exit_of_image: list[int], metric: str = "mean-iou") -> float:
    """One of the four metrics, as the literature defines them."""
    w = weights(table)
    truth = (w[:, None] * table.ground_truth).sum(axis=0)
    present = truth > 0
    intersection = sum(w[i] * table.intersection[e, i] for i, e in enumerate(exit_of_image))[present]
    of_class = iou(table, exit_of_image)[present]
    truth = truth[present]
    return float(
        {
            "mean-iou": np.mean(of_class),
            "pixel-accuracy": intersection.sum() / truth.sum(),
            "mean-class-accuracy": np.mean(intersection / truth),
            "frequency-weighted-iou": (truth * of_class).sum() / truth.sum(),
        }[metric]
    )


def exits_taken(table: SearchTable, configuration: Configuration) -> list[int]:
    """Position in the configuration at which each image stops."""
    positions = []
    for image in range(table.ground_truth.shape[0]):
        gates = zip(configuration.exits, configuration.gates, strict=False)
        stops = [table.image_confidence[e, g.pixel_threshold, image] >= g.image_threshold for e, g in gates]
        positions.append(stops.index(True) if any(stops) else len(configuration.exits) - 1)
    return positions


def costs_paid(table: SearchTable, configuration: Configuration, column: int = 0) -> list[float]:
    """What each image pays: backbone up to where it stops, every head and policy on the way."""
    backbone, head, policy = (
        np.atleast_2d(costs)[column] for costs in (table.backbone_cost, table.head_cost, table.policy_cost)
    )
    paid = []
    for position in exits_taken(table, configuration):
        passed = configuration.exits[: position + 1]
        gated = passed[: len(configuration.gates)]
        paid.append(backbone[passed[-1]] + sum(head[e] for e in passed) + sum(policy[e] for e in gated))
    return paid


def evaluate(
    table: SearchTable, configuration: Configuration, metric: str = "mean-iou", column: int = 0
) -> tuple[float, float, list[int]]:
    """(mean cost, accuracy, images per exit) of an input-dependent or static configuration."""
    positions = exits_taken(table, configuration)
    w = weights(table)
    cost = sum(c * k for c, k in zip(costs_paid(table, configuration, column), w, strict=True)) / w.sum()
    taken = [configuration.exits[p] for p in positions]
    stopped = [positions.count(p) for p in range(len(configuration.exits))]
    return float(cost), accuracy(table, taken, metric), stopped


def configurations(table: SearchTable, max_exits: int) -> Iterator[Configuration]:
    """Every configuration with every observed confidence as an image threshold."""
    num_exits, num_pixels, _ = table.image_confidence.shape

    def chains(exits: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        yield exits
        if len(exits) < max_exits:
            for e in range(num_exits):
                if table.points[e] > table.points[exits[-1]]:
                    yield from chains((*exits, e))

    for first in range(num_exits):
        for exits in chains((first,)):
            options = [
                [Gate(t, float(v)) for t in range(num_pixels) for v in np.unique(table.image_confidence[e, t])]
                for e in exits[:-1]
            ]
            for gates in product(*options):
                yield Configuration(exits, gates)


def anytime(table: SearchTable, exits: tuple[int, ...], horizon: float) -> tuple[float, float]:
    """(cost to the end, accuracy averaged over a uniform cut-off), by numerical bookkeeping of the ready times."""
    n = table.ground_truth.shape[0]
    ready = [table.backbone_cost[e] + sum(table.head_cost[d] for d in exits[: i + 1]) for i, e in enumerate(exits)]
    total = 0.0
    for i, e in enumerate(exits):
        until = ready[i + 1] if i + 1 < len(exits) else horizon
        total += accuracy(table, [e] * n) * (min(until, horizon) - min(ready[i], horizon)) / horizon
    return ready[-1], total
