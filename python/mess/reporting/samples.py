"""Images worth looking at: easiest, hardest, those that should have gone on; and what each exit says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import mess_core
from mess import runs
from mess.calibration.table import CalibrationTable
from mess.confidence import host_array
from mess.data import SeededLoader
from mess.deployment.configuration import Configuration
from mess.model.network import MultiExitNetwork
from mess.progress import say
from mess.reporting import figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What one exit says of a sample, with the thresholds that ask whether the image leaves; none at the last exit."""

    exit: str
    maps: mess_core.PolicyMaps
    pixel_threshold: float | None
    image_threshold: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """An image to show: why, its name, RGB (H, W, 3) uint8, ground truth (H, W), and every exit up to where it left."""

    kind: str
    name: str
    picture: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.integer[Any]]
    gates: Sequence[Gate]


def samples(
    network: MultiExitNetwork,
    settings: runs.RunSettings,
    splits: Mapping[str, CalibrationTable],
    named: Sequence[Configuration],
    count: int,
) -> list[Sample]:
    """The easiest and hardest images of the last split, and those that should not have left, for the first
    configuration with gates; none where the data is not at hand."""
    gated = [c for c in named if len(c.exits) > 1]
    split, table = list(splits.items())[-1]
    if not gated or count < 1:
        return []
    try:
        batches = runs.loader(settings, split=split)
    except (FileNotFoundError, ValueError) as error:
        say(f"report: no sample images: {error}")
        return []
    chosen = gated[0]
    rows = [table.exits.index(entry.exit) for entry in chosen.exits]
    confidence = np.array(
        [
            table.image_confidence[row, table.pixel_thresholds.index(entry.pixel_threshold)]
            for row, entry in zip(rows, chosen.exits, strict=True)
            if entry.pixel_threshold is not None
        ]
    )
    thresholds = [entry.image_threshold for entry in chosen.exits if entry.image_threshold is not None]
    leaves = confidence >= np.array(thresholds)[:, None]
    position = np.where(leaves.any(axis=0), leaves.argmax(axis=0), len(thresholds))
    right = table.intersection.sum(axis=2)
    lost = right[rows[-1]] - right[np.array(rows)[position], np.arange(len(position))]
    easy = np.argsort(-confidence[0], kind="stable")
    picked = {
        "easiest": easy[:count].tolist(),
        "hardest": easy[::-1][:count].tolist(),
        "wrongly left early": [i for i in np.argsort(-lost, kind="stable")[:count].tolist() if lost[i] > 0],
    }
    return [
        _sample(network, chosen, batches, i, kind, table.images[i], int(position[i]))
        for kind, images in picked.items()
        for i in images
    ]


def _sample(
    network: MultiExitNetwork,
    configuration: Configuration,
    batches: SeededLoader,
    index: int,
    kind: str,
    name: str,
    left: int,
) -> Sample:
    image, truth = batches.example(index)
    size = (image.shape[1], image.shape[2])
    by_name = {exit_id.name: exit_id for exit_id in network.exits}
    gates = []
    with torch.no_grad():
        final, features = network.features(image[None])
        for entry in configuration.exits[: left + 1]:
            exit_id = by_name.get(entry.exit)
            logits = final if exit_id is None else network.head(exit_id)(features[exit_id.point])
            maps = mess_core.policy_maps(
                host_array(logits[0]),
                output_stride=1 if exit_id is None else network.points[exit_id.point].output_stride,
                edges=configuration.policy.edges,
                confidence=configuration.policy.confidence,
                size=size,
            )
            gates.append(
                Gate(
                    exit=entry.exit,
                    maps=maps,
                    pixel_threshold=entry.pixel_threshold,
                    image_threshold=entry.image_threshold,
                )
            )
    picture = (255 * figures.picture(image, batches.mean, batches.std)).round().astype(np.uint8)
    return Sample(kind=kind, name=name, picture=picture, truth=truth.numpy(), gates=gates)
