"""The saving on the clock: plain model and deployed network on the same images, one at a time, interleaved.

Both are timed from the image to the label map, which is made from their logits in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

import torch
from torch import Tensor, nn

from mess.clock import milliseconds
from mess.confidence import label_map
from mess.deployment.network import DeployedNetwork


@dataclass(frozen=True, slots=True)
class ClockReport:
    """Mean over images of the median over rounds, in ms, batch 1; and the share of images at each exit."""

    plain_ms: float
    deployed_ms: float
    shares: tuple[float, ...]


@torch.inference_mode()
def measure_deployed(
    net: nn.Module, deployed: DeployedNetwork, images: Sequence[Tensor], *, rounds: int = 3
) -> ClockReport:
    """Time `net`, which gives logits (1, C, h, w), and `deployed` on `images` (1, 3, H, W), after a round of warm-up.

    Raises:
        ValueError: no image, or rounds below 1.
    """
    if not images or rounds < 1:
        raise ValueError(f"images, rounds: expected at least one of each, got {len(images)}, {rounds}")
    plain: list[list[float]] = [[] for _ in images]
    early: list[list[float]] = [[] for _ in images]
    taken = [0] * len(deployed.configuration.exits)
    for round_index in range(rounds + 1):
        for index, image in enumerate(images):
            for_plain, for_early = image.clone(), image.clone()  # a model may overwrite what it gets
            start = milliseconds(image.device)
            label_map(net(for_plain)[0], size=deployed.stages.input_size)
            middle = milliseconds(image.device)
            prediction = deployed(for_early)
            _ = prediction.labels
            end = milliseconds(image.device)
            if round_index:
                plain[index].append(middle - start)
                early[index].append(end - middle)
            else:
                taken[int(prediction.exits[0])] += 1
    return ClockReport(
        plain_ms=fmean(median(values) for values in plain),
        deployed_ms=fmean(median(values) for values in early),
        shares=tuple(count / len(images) for count in taken),
    )
