"""One pass of every candidate exit over a labelled split."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mess.calibration.latency import measure_latency
from mess.calibration.table import CalibrationTable, Costs
from mess.confidence import PolicySettings, label_map, labels_and_confidences
from mess.data.dataset import IGNORE_INDEX, check_labels
from mess.data.loader import batches_from
from mess.files import differences, entry
from mess.model.adapter import evaluating
from mess.model.cost import count_macs, profile
from mess.model.network import FINAL_EXIT, MultiExitNetwork
from mess.model.weights import state_sha256
from mess.progress import console, progress

PIXEL_THRESHOLDS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)

SAVE_SECONDS = 30.0
"""Between two writes of what is done."""

PARTIAL = "partial"
"""Among the facts of a table that is not complete: batches done, and what it depends on."""


def calibrate(
    network: MultiExitNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    class_names: Sequence[str] | None = None,
    image_names: Sequence[str] | None = None,
    pixel_thresholds: Sequence[float] = PIXEL_THRESHOLDS,
    policy: PolicySettings | None = None,
    latency_rounds: int = 15,
    facts: dict[str, Any] | None = None,
    partial: str | Path | None = None,
) -> CalibrationTable:
    """Run every exit on every image and keep what the search needs.

    Args:
        network: a trained multi-exit network; it is run in eval mode and left in the mode it was in.
        batches: (images (B, 3, H, W) float, labels (B, H, W) int64 with 255 ignored), in a fixed order, one size.
        class_names: C of them; numbers by default.
        image_names: one an image; numbers by default.
        pixel_thresholds: in [0, 1]; image confidence is computed at each.
        policy: how image confidence is computed.
        latency_rounds: rounds of the latency measurement; 0 leaves the `latency_ms` column out.
        facts: anything worth keeping with the table.
        partial: a file that keeps what is done, every half minute and when Ctrl-C comes. The same call goes on from
            it. Delete it when the table is saved.

    Returns:
        The table, with costs `macs` and `latency_ms`.

    Raises:
        ValueError: no batch, sizes that differ, labels outside the classes, thresholds outside [0, 1]; `partial` is of
            another calibration.
        KeyboardInterrupt: Ctrl-C; what is done is in `partial`.
    """
    if not pixel_thresholds or not all(0 <= t <= 1 for t in pixel_thresholds):
        raise ValueError(f"pixel_thresholds: expected numbers in [0, 1], got {list(pixel_thresholds)}")
    settings = policy or PolicySettings()
    device = next(network.parameters()).device
    strides = [network.points[e.point].output_stride for e in network.exits]
    done = _Done(
        exits=(*(e.name for e in network.exits), FINAL_EXIT),
        points=np.array([*(e.point for e in network.exits), len(network.points)], dtype=np.int64),
        image_names=image_names,
        class_names=tuple(class_names or (str(i) for i in range(network.num_classes))),
        pixel_thresholds=tuple(float(t) for t in pixel_thresholds),
        policy=settings,
        model=tuple(point.name for point in network.points),
        facts={"device": str(device), "machine": platform.machine(), "torch": torch.__version__, **(facts or {})},
    )
    if partial is not None:
        done.resume(Path(partial), _identity(network, batches, latency_rounds))
    total = len(batches) if isinstance(batches, Sized) else 0
    rest = batches_from(batches, 0, done.batches) if done.batches else batches
    try:
        with evaluating(network), progress("calibrate", total, done.batches) as advance:
            for images, labels in rest:
                size = (images.shape[2], images.shape[3])
                if done.input_size not in (None, size) or tuple(labels.shape) != (images.shape[0], *size):
                    raise ValueError(
                        f"batches: expected images and labels of size {done.input_size or size}, got {size} and "
                        f"{tuple(labels.shape[1:])}"
                    )
                if done.input_size is None:  # costs first: what cannot be measured is said before the long part
                    done.input_size = size
                    done.costs["macs"] = mac_costs(network, size)
                    if latency_rounds:
                        done.costs["latency_ms"], plain = measure_latency(
                            network, input_size=size, policy=settings, rounds=latency_rounds
                        )
                        done.facts |= {"plain_latency_ms": plain, "latency_rounds": latency_rounds}
                        done.facts |= {"threads": torch.get_num_threads()}
                final, features = network.features(images.to(device))
                every = [*network.exit_logits(features, network.exits).values(), final]
                final_labels = [label_map(image, size=size) for image in final]
                rows = [_Row(network.num_classes, truth) for truth in labels.cpu().numpy()]
                for stride, logits in zip([*strides, 1], every, strict=True):
                    for i, row in enumerate(rows):
                        predicted, confidences = labels_and_confidences(
                            logits[i],
                            size=size,
                            pixel_thresholds=pixel_thresholds,
                            output_stride=stride,
                            policy=settings,
                        )
                        row.add(predicted, confidences, differs=int((predicted != final_labels[i]).sum()))
                done.add(rows)
                advance()
    except KeyboardInterrupt:
        if partial is not None and done.batches:
            done.save()
            console.print(f"calibrate: interrupted; {done.batches} batches are in {partial}, the same call goes on")
        raise
    if done.input_size is None:
        raise ValueError("batches: expected at least one batch, got none")
    return done.table()


@dataclass(kw_only=True, eq=False)
class _Done:
    """What is known after some batches; itself a table, of the images so far."""

    exits: tuple[str, ...]
    points: npt.NDArray[np.int64]
    image_names: Sequence[str] | None
    class_names: tuple[str, ...]
    pixel_thresholds: tuple[float, ...]
    policy: PolicySettings
    model: tuple[str, ...]
    facts: dict[str, Any]
    input_size: tuple[int, int] | None = None
    costs: dict[str, Costs] = field(default_factory=dict)
    _added: list[list[_Row]] = field(default_factory=list)
    _before: CalibrationTable | None = None
    _file: Path | None = None
    _identity: dict[str, Any] = field(default_factory=dict)
    _saved: float = field(default_factory=time.monotonic)

    @property
    def batches(self) -> int:
        """Done."""
        return len(self._added) + (0 if self._before is None else int(self._before.facts[PARTIAL]["batches"]))

    def resume(self, path: Path, identity: dict[str, Any]) -> None:
        """Keep the state in `path`, and begin with what is there; ValueError where that is of another calibration."""
        told = {name: getattr(self, name) for name in ("exits", "class_names", "pixel_thresholds", "policy", "model")}
        self._file, self._identity = path, {**identity, **{name: str(value) for name, value in told.items()}}
        if not path.is_file():
            return
        before = CalibrationTable.load(path)
        kept = before.facts.get(PARTIAL)
        if not isinstance(kept, dict) or kept.get("identity") != self._identity:
            changed = differences(kept.get("identity", {}) if isinstance(kept, dict) else {}, self._identity)
            raise ValueError(f"partial: {path} belongs to another calibration: {changed}; delete it to begin again")
        entry(kept, "batches", int, "batches done")
        self._before = before
        self.input_size, self.costs = before.input_size, dict(before.costs)
        self.facts = {name: value for name, value in before.facts.items() if name != PARTIAL}

    def add(self, rows: list[_Row]) -> None:
        """One batch more."""
        self._added.append(rows)
        if self._file is not None and time.monotonic() - self._saved > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write the state, whole or not at all."""
        assert self._file is not None
        so_far = self._collected({**self.facts, PARTIAL: {"batches": self.batches, "identity": self._identity}})
        so_far.save(self._file)
        self._saved = time.monotonic()

    def table(self) -> CalibrationTable:
        """The end."""
        return self._collected(self.facts)

    def _collected(self, facts: dict[str, Any]) -> CalibrationTable:
        assert self.input_size is not None
        before, rows = self._before, [row for batch in self._added for row in batch]

        def joined(name: str, axis: int) -> npt.NDArray[Any]:
            parts = [] if before is None else [getattr(before, name)]
            parts += [np.stack([getattr(row, name) for row in rows], axis=axis)] if rows else []
            return np.concatenate(parts, axis=axis)

        count = len(rows) + (0 if before is None else len(before.images))
        named = self.image_names or [str(i) for i in range(count)]
        return CalibrationTable(
            exits=self.exits,
            points=self.points,
            images=tuple(named if PARTIAL not in facts else named[:count]),
            class_names=self.class_names,
            pixel_thresholds=self.pixel_thresholds,
            intersection=joined("intersection", 1),
            predicted=joined("predicted", 1),
            ground_truth=joined("ground_truth", 0),
            disagreement=joined("disagreement", 1),
            image_confidence=joined("image_confidence", 2),
            costs=self.costs,
            policy=self.policy,
            input_size=self.input_size,
            model=self.model,
            facts=facts,
        )


def _identity(network: MultiExitNetwork, batches: Any, latency_rounds: int) -> dict[str, Any]:
    """What a calibration depends on, beside what the table says anyway."""
    images = getattr(batches, "identity", "batches of the caller's own")
    return {"network": state_sha256(network), "images": images, "latency_rounds": latency_rounds}


def mac_costs(network: MultiExitNetwork, input_size: tuple[int, int]) -> Costs:
    """Multiply-accumulates of every exit for one image; the policy has none (no convolution, no matrix product)."""
    example = network.example(input_size)
    workload = profile(network.net, example)
    at = {(layer.name, layer.call): layer for layer in workload.layers}
    reached = [at[point.module, point.call] for point in network.points]
    heads = []
    for exit_id in network.exits:
        shape = reached[exit_id.point].feature
        assert shape is not None
        heads.append(float(count_macs(network.head(exit_id), example.new_zeros(1, *shape))))
    return {
        "backbone": np.array([*(reached[e.point].end for e in network.exits), workload.total]),
        "head": np.array([*heads, 0.0]),
        "policy": np.zeros(len(heads) + 1),
    }


class _Row:
    """What is kept of one image: (E, C) counts, (E,) disagreement and (E, T) confidences, filled exit by exit."""

    def __init__(self, num_classes: int, truth: npt.NDArray[np.int64]) -> None:
        self._num_classes = num_classes
        self._truth = truth
        self._valid = truth != IGNORE_INDEX
        check_labels(truth[self._valid], num_classes)
        self.ground_truth = self._count(truth[self._valid])
        self._parts: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []
        self._differs: list[int] = []

    def add(self, predicted: npt.NDArray[np.integer], confidence: npt.NDArray[np.float64], *, differs: int) -> None:
        agreed = predicted[self._valid & (predicted == self._truth)]
        self._parts.append((self._count(agreed), self._count(predicted[self._valid]), confidence))
        self._differs.append(differs)

    @property
    def disagreement(self) -> npt.NDArray[np.int64]:
        return np.array(self._differs, dtype=np.int64)

    @property
    def intersection(self) -> npt.NDArray[np.int64]:
        return np.stack([part[0] for part in self._parts])

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        return np.stack([part[1] for part in self._parts])

    @property
    def image_confidence(self) -> npt.NDArray[np.float64]:
        return np.stack([part[2] for part in self._parts])

    def _count(self, labels: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
        return np.bincount(labels.astype(np.int64), minlength=self._num_classes)
