"""A calibration that is under way: the batches done so far, in memory and in a file that the same call goes on from."""

from __future__ import annotations

import time
from collections.abc import KeysView, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mess.calibration.counts import BatchCounts, Measure
from mess.calibration.table import CalibrationTable, Costs
from mess.files import differences, entries, entry

SAVE_SECONDS, SAVE_TIMES = 30.0, 10.0
"""Between two writes of what is done: so long, or so many times as long as a write, where that is more."""

PARTIAL = "partial"
"""Among the facts of a table that is not complete: batches done, and what it depends on."""

_AXES = {"intersection": 1, "predicted": 1, "ground_truth": 0, "disagreement": 1, "image_confidence": 2}
"""Of the arrays, which dimension is images."""


@dataclass(kw_only=True, eq=False)
class Partial:
    """What is known after some batches, in any order.

    The first fields are the table's. `costs` and `input_size` come with the first batch.
    """

    exits: tuple[str, ...]
    points: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    measure: Measure
    model: tuple[str, ...]
    facts: dict[str, Any]
    input_size: tuple[int, int] | None = None
    costs: dict[str, Costs] = field(default_factory=dict)
    _added: dict[int, BatchCounts] = field(default_factory=dict)
    _before: CalibrationTable | None = None
    _done: dict[int, int] = field(default_factory=dict)
    """Images of each batch by its number: those in `_before`, then those added."""
    _file: Path | None = None
    _identity: dict[str, Any] = field(default_factory=dict)
    _next_save: float = field(default_factory=lambda: time.monotonic() + SAVE_SECONDS)

    @property
    def batches(self) -> KeysView[int]:
        """Numbers of those that are done."""
        return self._done.keys()

    @property
    def images(self) -> int:
        """In them."""
        return sum(self._done.values())

    def resume(self, path: Path, identity: dict[str, Any], facts: Mapping[str, Any]) -> None:
        """Keep the state in `path`, and begin with what is there; of the facts, those that the caller gives are new.

        Raises:
            ValueError: what is there is of another calibration, or no table.
        """
        told = {name: str(getattr(self, name)) for name in ("exits", "class_names", "model")}
        measured = {name: str(getattr(self.measure, name)) for name in ("pixel_thresholds", "policy")}
        self._file, self._identity = path, {**identity, **told, **measured}
        if not path.is_file():
            return
        before = CalibrationTable.load(path)
        kept = before.facts.get(PARTIAL)
        if not isinstance(kept, dict) or kept.get("identity") != self._identity:
            changed = differences(kept.get("identity", {}) if isinstance(kept, dict) else {}, self._identity)
            raise ValueError(f"partial: {path} belongs to another calibration: {changed}; delete it to begin again")
        pairs = [entries({"batch": pair}, "batch", int, "a batch") for pair in entry(kept, "batches", list, "batches")]
        is_pairs = all(len(pair) == 2 and min(pair) >= 0 for pair in pairs)
        if not is_pairs or sum(dict(pairs).values()) != len(before.images):
            raise ValueError(f"partial: {path}: expected batches of {len(before.images)} images, got {pairs}")
        # in memory: where a file is mapped, Windows does not let another take its name
        arrays: dict[str, Any] = {name: np.array(getattr(before, name)) for name in (*_AXES, "points")}
        costs = {c: {part: np.array(of) for part, of in parts.items()} for c, parts in before.costs.items()}
        before = replace(before, costs=costs, **arrays)
        self._before, self._done = before, dict(pairs)
        self.input_size, self.costs = before.input_size, dict(before.costs)
        self.facts = {name: value for name, value in before.facts.items() if name != PARTIAL} | dict(facts)

    def add(self, number: int, counts: BatchCounts) -> None:
        """One batch more.

        Raises:
            ValueError: images of another size than those before.
        """
        if self.input_size != counts.size:
            raise ValueError(f"batches: expected images of one size, {self.input_size}, got {counts.size}")
        self._added[number] = counts
        self._done[number] = len(counts.ground_truth)
        if self._file is not None and time.monotonic() >= self._next_save:
            self.save()

    def save(self) -> None:
        """Write the state to the file, if there is one, whole or not at all."""
        if self._file is None or not self._added:
            return
        begin = time.monotonic()
        about = {"batches": [list(pair) for pair in self._done.items()], "identity": self._identity}
        self._collected({**self.facts, PARTIAL: about}, None).save(self._file)
        seconds = time.monotonic() - begin
        self._next_save = begin + seconds + max(SAVE_SECONDS, SAVE_TIMES * seconds)

    def table(self, image_names: tuple[str, ...] | None) -> CalibrationTable:
        """The end: images in the order of the batches, and their names."""
        return self._collected(self.facts, image_names)

    def _collected(self, facts: dict[str, Any], image_names: tuple[str, ...] | None) -> CalibrationTable:
        assert self.input_size is not None
        arrays = {name: self._joined(name, axis) for name, axis in _AXES.items()}
        count = len(arrays["ground_truth"])
        if PARTIAL not in facts:
            numbers = [n for n, images in self._done.items() for _ in range(images)]
            order = np.argsort(numbers, kind="stable")
            if not np.array_equal(order, np.arange(count)):
                arrays = {name: array.take(order, axis=_AXES[name]) for name, array in arrays.items()}
        return CalibrationTable(
            exits=self.exits,
            points=self.points,
            images=image_names or tuple(str(i) for i in range(count)),
            class_names=self.class_names,
            pixel_thresholds=self.measure.pixel_thresholds,
            costs=self.costs,
            policy=self.measure.policy,
            input_size=self.input_size,
            model=self.model,
            facts=facts,
            **arrays,
        )

    def _joined(self, name: str, axis: int) -> npt.NDArray[Any]:
        before = [] if self._before is None else [getattr(self._before, name)]
        return np.concatenate([*before, *(getattr(counts, name) for counts in self._added.values())], axis=axis)
