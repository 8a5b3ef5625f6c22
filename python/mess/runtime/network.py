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
from mess.runtime.backends import BackendName, Session, load
from mess.runtime.manifest import LARGEST_AREA, LARGEST_SIDE, Manifest, StageFiles
from mess.runtime.pixels import labels_at

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
        size: (height, width) that pictures are resized to and the network is loaded for; by default the one that was
            calibrated. Thresholds, costs and the promise are of that one.
        deadline_ms: give the best prediction there is at this time after the call of `predict`: a stage that would end
            later, going by its last run, is not begun. The first exit always runs.

    Raises:
        FileNotFoundError, ValueError: no deployment, another version, a file that is missing or altered, or a `size`
            that it does not take.
        RuntimeError: the backend is not installed.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        backend: BackendName = "onnxruntime",
        threads: int | None = None,
        size: tuple[int, int] | None = None,
        deadline_ms: float | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        if deadline_ms is not None and not deadline_ms >= 0:
            raise ValueError(f"deadline_ms: expected 0 or more, got {deadline_ms}")
        root = Path(folder)
        self.manifest = Manifest.load(root)
        self.deadline_ms = deadline_ms
        self._workspace = mess_core.Workspace()
        self._last_ms = [0.0] * len(self.manifest.exits)
        self.size = self.manifest.size if size is None else _checked_size(size, self.manifest)
        self._stages: list[Session] = []
        self._heads: list[Session | None] = []
        self._load(root, backend, threads)

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

    def _load(self, root: Path, backend: BackendName, threads: int | None) -> None:
        """Every stage and head; where sizes are free, for those that one image's values have behind the one before."""
        is_free = self.manifest.size_step is not None
        state: dict[str, npt.NDArray[Any]] = {}
        if is_free:
            state["images"] = np.zeros((1, 3, *self.size), dtype=np.float32)
        for position, entry in enumerate(self.manifest.exits):
            shapes = {name: value.shape for name, value in state.items()} if is_free else None
            stage = load(backend, root / entry.stage, entry.inputs, entry.outputs, threads, shapes=shapes)
            self._stages.append(stage)
            taken = stage.inputs.get("images", ())[-2:]
            if position == 0 and taken != self.size and not (is_free and taken == (None, None)):
                raise ValueError(
                    f"deployment: {root}: input.size: expected {taken}, as in {entry.stage}, got {self.size}"
                )
            shapes = None
            if is_free:
                try:
                    feature, state = self._run_stage(position, state, 1)
                except Exception as error:  # the backends' own kinds have no base in common
                    raise ValueError(f"deployment: {root / entry.stage}: cannot run at {self.size}: {error}") from None
                shapes = {"feature": feature.shape}
            self._heads.append(
                None
                if entry.head is None
                else load(backend, root / entry.head, ["feature"], ["logits"], threads, shapes=shapes)
            )

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
        pixels = np.empty((len(images), 3, *self.size), dtype=np.float32)
        for image, row in zip(images, pixels, strict=True):
            mess_core.network_input(image, mean=manifest.mean, std=manifest.std, out=row, size=self.size)
        return {"images": pixels}

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
            workspace=self._workspace,
            **self.manifest.policy,
        )
        assert isinstance(values, np.ndarray)
        return values

    def _upsampling(self, logits: npt.NDArray[np.float32]) -> tuple[int, int] | None:
        return None if logits.shape[-2:] == self.size else self.size

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
        labels = mess_core.label_map(logits, size=self._upsampling(logits), workspace=self._workspace)
        whole = labels if labels.shape == image.shape[:2] else labels_at(labels, image.shape[:2])
        return Result(whole, entry.name, tuple(confidences), tuple(times))


def _checked_size(size: tuple[int, int], manifest: Manifest) -> tuple[int, int]:
    step = manifest.size_step
    if len(size) != 2 or not all(isinstance(side, int) and 1 <= side <= LARGEST_SIDE for side in size):
        raise ValueError(f"size: expected (height, width) in 1..{LARGEST_SIDE}, got {size!r}")
    if size[0] * size[1] > LARGEST_AREA:
        raise ValueError(f"size: expected at most {LARGEST_AREA} pixels, got {size!r}")
    if step is None and tuple(size) != manifest.size:
        raise ValueError(f"size: expected {manifest.size}, which alone this deployment takes, got {size!r}")
    if step is not None and any(side % step for side in size):
        raise ValueError(f"size: expected a height and width that are multiples of {step}, got {size!r}")
    return size[0], size[1]
