"""Table 5: six ways to say how sure an exit is of an image, everything else equal.

Each gives one number an image (for the shares: one a pixel threshold). Exits and thresholds are searched on val for one
accuracy, exactly, and reported on test; the area under the ROC curve asks how well the number tells images on which the
exit is as good as the final one (per-image pixel accuracy no lower) from the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.stats import mannwhitneyu

import mess
import mess_core
from mess import CalibrationTable, PolicySettings, runs
from mess.calibration.collect import PIXEL_THRESHOLDS
from mess.confidence import host_array
from mess.model.network import MultiExitNetwork, upsampled

SHARES = {
    "share of pixels": PolicySettings(refine=False),
    "edge-refined share (ours)": PolicySettings(),
    "share, margin": PolicySettings(refine=False, confidence="margin"),
    "share, entropy": PolicySettings(refine=False, confidence="entropy"),
}
POLICIES = ("mean confidence", *SHARES, "agreement with the exit before")


def compared(network: MultiExitNetwork, settings: runs.RunSettings, max_drop: float) -> dict[str, dict[str, Any]]:
    """By policy: cost (share of the final exit's MACs) on val and test, change of mIoU on both, areas."""
    tables = {split: tables_of(network, settings, split) for split in ("val", "test")}
    rows: dict[str, dict[str, Any]] = {}
    for policy in POLICIES:
        val, test = tables["val"][policy], tables["test"][policy]
        found = mess.search(val, max_drop=max_drop, max_exits=3)
        full = val.total_cost(len(val.exits) - 1, "macs")
        reports = {split: mess.evaluate(found.best, tables[split][policy]) for split in ("val", "test")}
        last = {split: tables[split][policy].mean_iou(len(val.exits) - 1) for split in ("val", "test")}
        best = max(range(len(val.pixel_thresholds)), key=lambda t: np.nanmean(areas(val, t)))
        rows[policy] = {
            **{f"cost_{split}": report.cost / full for split, report in reports.items()},
            **{f"change_{split}": report.accuracy - last[split] for split, report in reports.items()},
            "exits": len(found.best.exits),
            "area": float(np.nanmean(areas(test, best))),
        }
    return rows


def tables_of(network: MultiExitNetwork, settings: runs.RunSettings, split: str) -> dict[str, CalibrationTable]:
    """A calibration table for every policy: the same counts and costs, other image confidences."""
    batches = runs.loader(settings, split=split)
    base = mess.calibrate(network, batches, latency_rounds=0, policy=SHARES["edge-refined share (ours)"])
    values = confidences(network, batches)
    single = ("mean confidence", "agreement with the exit before")
    return {
        policy: replace(
            base,
            image_confidence=values[policy],
            pixel_thresholds=(0.5,) if policy in single else base.pixel_thresholds,
        )
        for policy in POLICIES
    }


def confidences(network: MultiExitNetwork, batches: Any) -> dict[str, np.ndarray]:
    """(E, T, n) by policy: image confidence of every exit at every pixel threshold (T = 1 where there is none)."""
    strides = [point.output_stride for point in network.points]
    found: dict[str, list[list[Sequence[float]]]] = {policy: [] for policy in POLICIES}
    with torch.no_grad():
        for images, _ in batches:
            final, features = network.features(images)
            early = network.exit_logits(features, network.exits).values()
            every = [host_array(upsampled(logits, images.shape[2:])) for logits in (*early, final)]
            for i in range(len(images)):
                values = one_image([logits[i] for logits in every], [*strides, 1])
                for policy, row in values.items():
                    found[policy].append(row)
    return {policy: np.array(rows).transpose(1, 2, 0) for policy, rows in found.items()}


def one_image(logits: list[np.ndarray], strides: list[int]) -> dict[str, list[Sequence[float]]]:
    """For every policy and exit the image confidences of one image."""
    rows: dict[str, list[Sequence[float]]] = {policy: [] for policy in POLICIES}
    before = None
    for values, stride in zip(logits, strides, strict=True):
        top, labels = mess_core.confidence_map(values)
        rows["mean confidence"].append([float(top.mean())])
        rows["agreement with the exit before"].append([0.0 if before is None else float((labels == before).mean())])
        before = labels
        for policy, settings in SHARES.items():
            map_, _ = (
                (top, labels)
                if settings.confidence == "top1"
                else mess_core.confidence_map(values, kind=settings.confidence)
            )
            share = mess_core.image_confidence_from_map(
                map_,
                labels,
                pixel_threshold=np.array(PIXEL_THRESHOLDS),
                output_stride=stride,
                refine=settings.refine,
            )
            rows[policy].append(share)
    return rows


def areas(table: CalibrationTable, threshold: int) -> list[float]:
    """Area under the ROC curve of every early exit; NaN where all images are of one kind."""
    right = table.intersection.sum(axis=2)  # (E, n) pixels
    found = []
    for exit_index in range(len(table.exits) - 1):
        good = right[exit_index] >= right[-1]
        scores = table.image_confidence[exit_index, threshold]
        if good.all() or not good.any():
            found.append(float("nan"))
        else:
            statistic = mannwhitneyu(scores[good], scores[~good]).statistic
            found.append(float(statistic / (good.sum() * (~good).sum())))
    return found
