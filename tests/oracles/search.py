"""Brute force over every configuration of a small table, by the definition: image by image, sum, divide."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from mess_core import Configuration, Gate, SearchTable


def mean_iou(table: SearchTable, exit_of_image: list[int]) -> float:
    """Sum over images, divide once, average over classes with ground truth."""
    intersection = sum(table.intersection[e, i] for i, e in enumerate(exit_of_image))
    predicted = sum(table.predicted[e, i] for i, e in enumerate(exit_of_image))
    truth = table.ground_truth.sum(axis=0)
    present = truth > 0
    return float(np.mean(intersection[present] / (truth + predicted - intersection)[present]))


def evaluate(table: SearchTable, configuration: Configuration) -> tuple[float, float, list[int]]:
    """(mean cost, mean IoU, images per exit) of an input-dependent or static configuration."""
    cost, taken, stopped = 0.0, [], [0] * len(configuration.exits)
    for image in range(table.ground_truth.shape[0]):
        paid = 0.0
        for position, exit_index in enumerate(configuration.exits):
            paid += table.head_cost[exit_index]
            if position < len(configuration.gates):
                gate = configuration.gates[position]
                paid += table.policy_cost[exit_index]
                if table.image_confidence[exit_index, gate.pixel_threshold, image] < gate.image_threshold:
                    continue
            break
        cost += paid + table.backbone_cost[exit_index]
        taken.append(exit_index)
        stopped[position] += 1
    return cost / len(taken), mean_iou(table, taken), stopped


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
    accuracy = 0.0
    for i, e in enumerate(exits):
        until = ready[i + 1] if i + 1 < len(exits) else horizon
        accuracy += mean_iou(table, [e] * n) * (min(until, horizon) - min(ready[i], horizon)) / horizon
    return ready[-1], accuracy
