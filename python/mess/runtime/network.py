"""A deployment folder at work: stage -> head -> decision -> stop, or the next stage with the images that go on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import mess_core
from mess.runtime.backends import BackendName, load
from mess.runtime.manifest import Manifest, StageFiles
from mess.runtime.pixels import labels_at, network_input

Picture = npt.NDArray[np.uint8]
"""(H, W, 3) uint8 RGB of any size."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a deployment says of one picture.

    Attributes:
        labels: (H, W) at the picture's own size; the value is the class.
        exit: name of the exit taken.
        image_confidence: at each gate passed or taken, in order.
        stage_ms: milliseconds of each stage that ran, its head and its decision, in order; in a batch, of the whole
            batch.
    """

    labels: npt.NDArray[np.integer]
    exit: str
    image_confidence: tuple[float, ...]
    stage_ms: tuple[float, ...]


class Runtime:
    """A deployment folder, loaded: `mess export` makes one. Needs NumPy, `mess_core` and the backend, no torch.

    Args:
        folder: the deployment; every file is checked against the manifest's hashes.
        backend: `onnxruntime` or `openvino`.
        threads: of the backend; as many as it likes by default.
        deadline_ms: give the best prediction there is at this time after the call of `predict`: a stage that would end
            later, going by its last run, is not begun. The first exit always runs.

    Raises:
        FileNotFoundError, ValueError: no deployment, another version, or a file that is missing or altered.
        RuntimeError: the backend is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        backend: BackendName = "onnxruntime",
        threads: int | None = None,
        deadline_ms: float | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        if deadline_ms is not None and not deadline_ms >= 0:
            raise ValueError(f"deadline_ms: expected 0 or more, got {deadline_ms}")
        root = Path(folder)
        self.manifest = Manifest.load(root)
        self.deadline_ms = deadline_ms
        self._last_ms = [0.0] * len(self.manifest.exits)
        exits = self.manifest.exits
        self._stages = [load(backend, root / e.stage, e.inputs, e.outputs, threads) for e in exits]
        self._heads = [
            None if e.head is None else load(backend, root / e.head, ["feature"], ["logits"], threads) for e in exits
        ]
        size = self._stages[0].inputs.get("images", ())[-2:]
        if size != self.manifest.size:
            raise ValueError(
                f"deployment: {root}: input.size: expected {size}, as in {exits[0].stage}, got {self.manifest.size}"
            )

    def predict(self, image: Picture, *, image_thresholds: Sequence[float | None] | None = None) -> Result:
        """Segment one picture, stopping as early as the thresholds, or the deadline, allow.

        Args:
            image: (H, W, 3) uint8 RGB.
            image_thresholds: one an exit instead of the manifest's; None where it has none. An exit whose threshold is
                above 1 lets nothing leave, so unless there is a deadline its head and its decision are not run.

        Raises:
            TypeError, ValueError: `image` is not (H, W, 3) uint8, or thresholds do not fit the exits.
        """
        return self.predict_batch([image], image_thresholds=image_thresholds)[0]

    def predict_batch(
        self, images: Sequence[Picture], *, image_thresholds: Sequence[float | None] | None = None
    ) -> list[Result]:
        """Several pictures at once: those that are sure leave, the others go on; results in the order given."""
        thresholds = self._thresholds(image_thresholds)
        start = time.perf_counter()
        state = self._start(images)
        remaining = np.arange(len(images))
        confidences: list[list[float]] = [[] for _ in images]
        results: list[Result | None] = [None] * len(images)
        times: list[float] = []
        for position, entry in enumerate(self.manifest.exits):
            began = time.perf_counter()
            threshold = thresholds[position]
            feature, state = self._run_stage(position, state, len(remaining))
            if threshold is not None and threshold > 1 and self.deadline_ms is None:
                times.append(1000 * (time.perf_counter() - began))
                continue
            logits = self._logits(position, feature)
            leaves = np.ones(len(remaining), dtype=bool)
            if threshold is not None:
                values = self._confidence(entry, logits)
                for image, value in zip(remaining, values, strict=True):
                    confidences[image].append(float(value))
                leaves = values >= threshold
            times.append(1000 * (time.perf_counter() - began))
            self._last_ms[position] = times[-1]
            if not leaves.all() and self._is_late(position + 1, start):
                leaves[:] = True
            for image, values in zip(remaining[leaves], logits[leaves], strict=True):
                results[image] = self._result(images[image], values, entry, confidences[image], times)
            if leaves.all():
                break
            state = {name: state[name][~leaves] if is_batched else state[name] for name, is_batched in entry.carried}
            remaining = remaining[~leaves]
        assert all(result is not None for result in results)
        return [result for result in results if result is not None]

    def anytime(self, image: Picture) -> Iterator[Result]:
        """One better prediction after the other, an exit each; stop iterating to stop computing."""
        state, times = self._start([image]), []
        for position, entry in enumerate(self.manifest.exits):
            began = time.perf_counter()
            feature, state = self._run_stage(position, state, 1)
            logits = self._logits(position, feature)
            times.append(1000 * (time.perf_counter() - began))
            yield self._result(image, logits[0], entry, [], times)

    def _thresholds(self, given: Sequence[float | None] | None) -> list[float | None]:
        own = [entry.image_threshold for entry in self.manifest.exits]
        if given is None:
            return own
        if [value is None for value in given] != [value is None for value in own]:
            raise ValueError(
                f"image_thresholds: expected one an exit, None where the manifest has none: {own}, got {given}"
            )
        return list(given)

    def _start(self, images: Sequence[Picture]) -> dict[str, npt.NDArray[Any]]:
        if len(images) == 0:
            raise ValueError("images: expected at least one picture, got none")
        manifest = self.manifest
        pixels = [network_input(image, manifest.size, manifest.mean, manifest.std) for image in images]
        return {"images": np.stack(pixels)}

    def _run_stage(
        self, position: int, state: dict[str, npt.NDArray[Any]], batch: int
    ) -> tuple[npt.NDArray[np.float32], dict[str, npt.NDArray[Any]]]:
        """The feature (B, channels, h, w) at an exit, or the logits at the final one, and what its stage hands on."""
        entry = self.manifest.exits[position]
        inputs = {name: state[name] for name in entry.inputs}
        known = state | self._stages[position].run(inputs, batch=batch)
        return known[entry.feature], {name: known[name] for name, _ in entry.carried}

    def _logits(self, position: int, feature: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(B, C, h, w) of an exit."""
        head = self._heads[position]
        logits = feature if head is None else head.run({"feature": feature}, batch=len(feature))["logits"]
        if logits.ndim != 4 or logits.shape[:2] != (len(feature), len(self.manifest.classes)):
            raise ValueError(
                f"deployment: exit {self.manifest.exits[position].name}: expected logits of {len(feature)} images and "
                f"{len(self.manifest.classes)} classes, got shape {logits.shape}"
            )
        return logits

    def _confidence(self, entry: StageFiles, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        assert entry.pixel_threshold is not None
        values = mess_core.image_confidence(
            logits,
            pixel_threshold=entry.pixel_threshold,
            output_stride=entry.output_stride,
            size=self._upsampling(logits),
            **self.manifest.policy,
        )
        assert isinstance(values, np.ndarray)
        return values

    def _upsampling(self, logits: npt.NDArray[np.float32]) -> tuple[int, int] | None:
        return None if logits.shape[-2:] == self.manifest.size else self.manifest.size

    def _is_late(self, position: int, start: float) -> bool:
        if self.deadline_ms is None or position == len(self.manifest.exits):
            return False
        return 1000 * (time.perf_counter() - start) + self._last_ms[position] > self.deadline_ms

    def _result(
        self,
        image: Picture,
        logits: npt.NDArray[np.float32],
        entry: StageFiles,
        confidences: Sequence[float],
        times: Sequence[float],
    ) -> Result:
        _, labels = mess_core.confidence_map(logits, size=self._upsampling(logits))
        whole = labels if labels.shape == image.shape[:2] else labels_at(labels, image.shape[:2])
        return Result(whole, entry.name, tuple(confidences), tuple(times))
