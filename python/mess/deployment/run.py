"""One picture through a deployed network: resize, normalise, run, resize the labels back, time it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mess.clock import milliseconds
from mess.data.transforms import image_tensor
from mess.deployment.network import DeployedNetwork
from mess.runtime.pixels import labels_at


@dataclass(frozen=True, slots=True)
class RunResult:
    """labels: (H, W) int64 at the picture's own size. exit: name of the exit taken. image_confidence: at each gate
    passed or taken, in order. milliseconds: from the tensor to its label map."""

    labels: npt.NDArray[np.int64]
    exit: str
    image_confidence: tuple[float, ...]
    milliseconds: float


def run(network: DeployedNetwork, image: npt.NDArray[np.uint8]) -> RunResult:
    """Segment one picture, stopping as early as the network's configuration allows.

    Args:
        network: from `mess.deploy`.
        image: (H, W, 3) uint8 RGB of any size.

    Raises:
        TypeError: `image` is no array.
        ValueError: it is not (H, W, 3) uint8, it is empty, or the network takes other images.
    """
    if network.in_channels != 3:
        raise ValueError(f"network: expected one of RGB images, got {network.in_channels} channels; call it yourself")
    parameter = next(network.parameters())
    images = image_tensor(image, network.stages.input_size, network.mean, network.std)
    images = images.to(parameter.device, parameter.dtype)
    start = milliseconds(images.device)
    prediction = network(images)
    label_map = prediction.labels
    elapsed = milliseconds(images.device) - start
    labels = labels_at(label_map[0].cpu().numpy(), (image.shape[0], image.shape[1]))
    position = int(prediction.exits[0])
    confidences = prediction.image_confidence[0]
    return RunResult(
        labels=labels,
        exit=network.configuration.exits[position].exit,
        image_confidence=tuple(float(c) for c in confidences[~torch.isnan(confidences)]),
        milliseconds=elapsed,
    )
