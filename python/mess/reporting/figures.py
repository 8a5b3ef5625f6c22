"""Pictures of a run, as PNG files: predictions along the exits, confidence before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor

import mess_core
from mess.confidence import host_array
from mess.deployment.network import DeployedNetwork
from mess.policy import PolicySettings
from mess.reporting.charts import GREEN, GREY, save


def predictions_figure(
    deployed: DeployedNetwork,
    images: Tensor,
    labels: Tensor,
    palette: npt.NDArray[np.uint8],
    path: Path,
    *,
    names: Sequence[str] = (),
) -> None:
    """A row an image: picture, ground truth, then the prediction of each exit up to where the image left."""
    chosen = deployed.configuration.exits
    with torch.no_grad():
        prediction = deployed(images)
        steps = [p.labels for p in deployed.anytime(images)]
    figure = Figure(figsize=(2 * (2 + len(chosen)), 1.75 * len(images)), layout="constrained")
    grid = figure.subplots(len(images), 2 + len(chosen), squeeze=False)
    for row, axes in enumerate(grid):
        axes[0].imshow(picture(images[row], deployed.mean, deployed.std))
        axes[0].set_title(names[row] if names else f"image {row}", fontsize=7)
        axes[1].imshow(label_picture(labels[row].numpy(), palette))
        axes[1].set_title("ground truth", fontsize=7)
        for position, entry in enumerate(chosen):
            left = int(prediction.exits[row])
            axis = axes[2 + position]
            if position > left:
                axis.text(0.5, 0.5, "not run", ha="center", va="center", color=GREY, fontsize=8)
                axis.set_title(entry.exit, fontsize=7, color=GREY)
                continue
            axis.imshow(label_picture(steps[position][row].cpu().numpy(), palette))
            said = ""
            if position < prediction.image_confidence.shape[1]:
                value = float(prediction.image_confidence[row, position])
                sign = "≥" if position == left else "<"
                said = f"\n{value:.3f} {sign} {entry.image_threshold:.3f}"
            stops = "  stops here" if position == left else ""
            axis.set_title(f"{entry.exit}{said}{stops}", fontsize=7, color=GREEN if stops else "black")
    for axis in grid.flat:
        axis.set_axis_off()
    save(figure, path)


def confidence_figure(
    image: npt.NDArray[np.float32],
    logits: Tensor,
    output_stride: int,
    policy: PolicySettings,
    pixel_threshold: float,
    path: Path,
) -> None:
    """A `picture` (H, W, 3) and full-size exit logits (C, H, W): confidence, boundary mask, refined confidence."""
    confidence, labels = mess_core.confidence_map(host_array(logits), kind=policy.confidence)
    mask = mess_core.boundary_mask(labels, output_stride=output_stride, edges=policy.edges)
    refined = mess_core.refine_confidence(confidence, mask, window=4 * output_stride + 1)
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    axes = figure.subplots(1, 4)
    axes[0].imshow(image)
    axes[0].set_title("image", fontsize=8)
    for axis, values, title in (
        (
            axes[1],
            confidence,
            f"confidence: {(confidence >= pixel_threshold).mean():.3f} of pixels ≥ {pixel_threshold:g}",
        ),
        (axes[3], refined, f"refined: {(refined >= pixel_threshold).mean():.3f} of pixels ≥ {pixel_threshold:g}"),
    ):
        shown = axis.imshow(values, cmap="viridis", vmin=0, vmax=1)
        axis.set_title(title, fontsize=8)
        figure.colorbar(shown, ax=axis, shrink=0.7)
    axes[2].imshow(mask, cmap="gray")
    axes[2].set_title(f"boundary mask (output stride {output_stride})", fontsize=8)
    for axis in axes:
        axis.set_axis_off()
    save(figure, path)


def label_picture(labels: npt.NDArray[np.integer[Any]], palette: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Label map (H, W) as RGB (H, W, 3) uint8; labels outside the palette are black."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[: len(palette)] = palette
    picture: npt.NDArray[np.uint8] = colours[np.clip(labels, 0, 255)]
    return picture


def picture(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> npt.NDArray[np.float32]:
    """A tensor (3, H, W) normalised with these as RGB in [0, 1]."""
    shift, scale = (torch.tensor(numbers).reshape(3, 1, 1) for numbers in (mean, std))
    return (image.cpu() * scale + shift).clamp(0, 1).permute(1, 2, 0).numpy()
