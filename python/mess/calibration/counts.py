"""What calibration keeps of a batch of images: exact counts and image confidences of every exit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mess.confidence import Size, label_map, labels_and_confidences
from mess.data.dataset import IGNORE_INDEX, check_labels
from mess.model.network import MultiExitNetwork
from mess.policy import PolicySettings


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BatchCounts:
    """Of B images of one size, and E exits, the final one last; the arrays are those of `CalibrationTable`.

    Attributes:
        size: (height, width) in pixels.
        intersection, predicted: (E, B, C) int64.
        ground_truth: (B, C) int64.
        disagreement: (E, B) int64.
        image_confidence: (E, T, B) float64.
    """

    size: Size
    intersection: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    ground_truth: npt.NDArray[np.int64]
    disagreement: npt.NDArray[np.int64]
    image_confidence: npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """How images are measured: pixel thresholds in [0, 1], and how image confidence is computed."""

    pixel_thresholds: tuple[float, ...]
    policy: PolicySettings

    def counts(self, network: MultiExitNetwork, images: Tensor, labels: Tensor) -> BatchCounts:
        """Run every exit on images (B, 3, H, W) with labels (B, H, W), the network being in eval mode.

        Raises:
            ValueError: labels of another size, or outside the classes.
        """
        size = (images.shape[2], images.shape[3])
        if tuple(labels.shape) != (images.shape[0], *size):
            raise ValueError(
                f"batches: expected labels of the images' size {size}, got {tuple(labels.shape[1:])} for "
                f"{tuple(images.shape)}"
            )
        parameter = next(network.parameters())
        classes = network.num_classes
        truths = labels.cpu().numpy()
        valid = truths != IGNORE_INDEX
        for truth, is_valid in zip(truths, valid, strict=True):
            check_labels(truth[is_valid], classes)
        with torch.no_grad():
            final, features = network.features(images.to(parameter.device, parameter.dtype))
        final = final.cpu()
        strides = [*(network.points[exit_id.point].output_stride for exit_id in network.exits), 1]
        final_labels = [label_map(image, size=size) for image in final]
        batch, exits, thresholds = len(truths), len(strides), len(self.pixel_thresholds)
        found = BatchCounts(
            size=size,
            intersection=np.empty((exits, batch, classes), np.int64),
            predicted=np.empty((exits, batch, classes), np.int64),
            ground_truth=np.stack([_counts(t[v], classes) for t, v in zip(truths, valid, strict=True)]),
            disagreement=np.empty((exits, batch), np.int64),
            image_confidence=np.empty((exits, thresholds, batch), np.float64),
        )
        for e, (exit_id, stride) in enumerate(zip((*network.exits, None), strides, strict=True)):
            logits = final
            if exit_id is not None:  # one by one: those of a grid of heads are more than a memory holds
                with torch.no_grad():
                    logits = network.exit_logits(features, [exit_id])[exit_id].cpu()
            for i in range(batch):
                predicted, found.image_confidence[e, :, i] = labels_and_confidences(
                    logits[i],
                    size=size,
                    pixel_thresholds=self.pixel_thresholds,
                    output_stride=stride,
                    policy=self.policy,
                )
                found.intersection[e, i] = _counts(predicted[valid[i] & (predicted == truths[i])], classes)
                found.predicted[e, i] = _counts(predicted[valid[i]], classes)
                found.disagreement[e, i] = (predicted != final_labels[i]).sum()
        return found


def _counts(labels: npt.NDArray[np.integer], classes: int) -> npt.NDArray[np.int64]:
    return np.bincount(labels.astype(np.int64), minlength=classes)
