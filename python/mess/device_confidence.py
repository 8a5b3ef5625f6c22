"""The image confidence in torch operations, for logits that are not on the CPU: no copy to the host but the result.

The same steps as `mess_core` (whose docstrings say what each is): the boundary mask and the counts are integers and
equal to it exactly, where no logit is +infinity; confidences are a softmax in torch's arithmetic, so a pixel within
rounding of the threshold may fall on the other side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from mess.confidence import Size
    from mess.policy import PolicySettings

_TAN_22_5 = 13573  # times 2^15, as OpenCV has it
_IMPOSSIBLE = -1e37  # what -infinity counts as when logits are upsampled
_TOGETHER = 16  # classes


@torch.no_grad()
def confident_pixels(
    logits: Tensor, *, size: Size, pixel_threshold: float, output_stride: int, policy: PolicySettings
) -> Tensor:
    """How many pixels are confident, (B,) int64, on the device of a head's own logits (B, C, h, w), at `size`.

    Their share is the image confidence. It is for the host to work out: a device that multiplies by a rounded 1 / (H W)
    misses thresholds that are such shares by a bit. Args and meaning as in `mess.confidence.image_confidence`; nothing
    waits for the device.
    """
    confidences, labels = _maps(logits, size, policy)
    confident = confidences >= float(np.float32(pixel_threshold))
    if policy.refine:
        edges = canny_edges(labels) if policy.edges == "canny" else label_edges(labels)
        near = dilated(edges, output_stride)
        confident = torch.where(near, median_of_binary(confident, 4 * output_stride + 1), confident)
    return confident.flatten(1).sum(dim=1)


def _maps(logits: Tensor, size: Size, policy: PolicySettings) -> tuple[Tensor, Tensor]:
    """Confidences and labels (B, H, W) of logits (B, C, h, w), `_TOGETHER` classes at a time: neither the logits nor
    the softmax of all of them are ever stored at full size. A confidence is NaN where the softmax is undefined, which
    is below every threshold; of equal classes the first is the label.
    """

    def parts() -> Iterator[Tensor]:
        for logits_of_some in torch.split(logits, _TOGETHER, dim=1):
            part = logits_of_some.float()
            if tuple(part.shape[-2:]) != tuple(size):
                part = part.where(part != -torch.inf, _IMPOSSIBLE)  # which a weight of 0 would make NaN
                part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
            yield part

    num_largest = 2 if policy.confidence == "margin" else 1
    labels, largest, first = None, None, 0
    for part in parts():
        best, at = part.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).max(dim=1)
        here = _largest(part, num_largest)
        if labels is None or largest is None:
            labels, known, largest = at, best, here
        else:
            labels, known = torch.where(best > known, first + at, labels), torch.maximum(best, known)
            largest = _largest(torch.cat([largest, here], dim=1), num_largest)
        first += part.shape[1]
    assert labels is not None
    assert largest is not None
    reference = largest[:, :1].where(largest[:, :1] != -torch.inf, 0.0)  # where nothing is possible, 0 / 0 follows
    total, weighted = torch.zeros_like(reference), torch.zeros_like(reference)
    for part in parts():
        below = part - reference
        share = below.exp()
        total += share.sum(dim=1, keepdim=True)
        if policy.confidence == "entropy":
            weighted += torch.where(share > 0, share * below, share).sum(dim=1, keepdim=True)
    if policy.confidence == "entropy":
        found = 1 - (total.log() - weighted / total) / math.log(logits.shape[1])
    else:
        shares = (largest - reference).exp() / total
        found = shares[:, :1] - shares[:, 1:].sum(dim=1, keepdim=True)  # less the second, if there is one
    return found.squeeze(1), labels


def _largest(values: Tensor, count: int) -> Tensor:
    """The largest of the classes, (B, count, H, W), or all of fewer."""
    return values.amax(dim=1, keepdim=True) if count == 1 else values.topk(min(count, values.shape[1]), dim=1).values


def canny_edges(labels: Tensor) -> Tensor:
    """(B, H, W) bool: Canny of label maps (B, H, W) with low = high = 0, aperture 3, L1: every change is an edge."""
    padded = F.pad(labels.float().unsqueeze(1), (1, 1, 1, 1), mode="replicate").squeeze(1).int()
    top, middle, bottom = padded[:, :-2], padded[:, 1:-1], padded[:, 2:]
    rows = top + 2 * middle + bottom  # smooth down the columns, derive along the rows
    dx = rows[:, :, 2:] - rows[:, :, :-2]
    columns = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    dy = columns[:, 2:] - columns[:, :-2]
    size = dx.abs() + dy.abs()
    around = F.pad(size, (1, 1, 1, 1))  # nothing outside
    height, width = size.shape[1:]

    def at(row: int, column: int) -> Tensor:
        return around[:, 1 + row : 1 + row + height, 1 + column : 1 + column + width]

    flat, steep = dx.abs().long() * _TAN_22_5, dy.abs().long() << 15
    horizontal = (size > at(0, -1)) & (size >= at(0, 1))
    vertical = (size > at(-1, 0)) & (size >= at(1, 0))
    falling = (size > at(-1, -1)) & (size > at(1, 1))
    rising = (size > at(-1, 1)) & (size > at(1, -1))
    diagonal = torch.where((dx < 0) != (dy < 0), rising, falling)
    is_steep = steep > flat + (dx.abs().long() << 16)
    peak = torch.where(steep < flat, horizontal, torch.where(is_steep, vertical, diagonal))
    return peak & (size > 0)


def label_edges(labels: Tensor) -> Tensor:
    """(B, H, W) bool: pixels of label maps (B, H, W) that differ from one of their four neighbours."""
    edges = torch.zeros_like(labels, dtype=torch.bool)
    across, down = labels[:, :, 1:] != labels[:, :, :-1], labels[:, 1:] != labels[:, :-1]
    edges[:, :, 1:] |= across
    edges[:, :, :-1] |= across
    edges[:, 1:] |= down
    edges[:, :-1] |= down
    return edges


def dilated(mask: Tensor, size: int) -> Tensor:
    """(B, H, W) bool: any true pixel of `mask` under a `size` x `size` square with OpenCV's anchor."""
    before, after = size // 2, (size - 1) // 2
    padded = F.pad(mask.float().unsqueeze(1), (before, after, before, after))
    lines = F.max_pool2d(padded, (1, size), stride=1)
    return F.max_pool2d(lines, (size, 1), stride=1).squeeze(1) > 0


def median_of_binary(values: Tensor, window: int) -> Tensor:
    """(B, H, W) bool: the median of `values` over an odd `window`, the border repeated: what more than half are."""
    reach = window // 2
    padded = F.pad(values.float().unsqueeze(1), (reach, reach, reach, reach), mode="replicate").squeeze(1)
    counts = padded.int().cumsum(dim=1).cumsum(dim=2)
    counts = F.pad(counts, (1, 0, 1, 0))
    inside = counts[:, window:, window:] - counts[:, :-window, window:]
    inside = inside - counts[:, window:, :-window] + counts[:, :-window, :-window]
    return 2 * inside > window * window
