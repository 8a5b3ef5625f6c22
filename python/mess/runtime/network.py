"""A deployment folder at work: stage -> head -> decision -> stop, or the next stage with the images that go on."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections import deque
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

MOST_THREADS = 1024
"""That a backend is asked for."""

SHARED_FROM = 1 << 22
"""Numbers that a decision or a label map reads, from which threads share it: as where `mess_core` is told no number."""

RETRY_AFTER = 100
"""Calls in which a deadline kept a stage from beginning, before it is tried again."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a deployment says of one picture.

    Attributes:
        labels: (H, W) at the picture's own size; the value is the class.
        exit: name of the exit taken.
        image_confidence: at each gate passed or taken, in order. Gates with an image threshold above 1, which nothing
            can pass, are not among them unless a deadline may need their predictions.
        stage_ms: milliseconds of each stage that ran, its head and its decision, in order; in a batch, of the whole
            batch, with taking out the images that left before. Resizing and label maps are not in it.
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
        threads: of the backend, and at most of decisions and label maps; as many as they like by default.
        size: (height, width) that pictures are resized to and the network is loaded for; by default the one that was
            calibrated. Thresholds, costs and the promise are of that one.
        deadline_ms: give the best prediction there is at this time after the call of `predict`: a stage that would end
            later, label maps included, going by the medians of the last 5 runs, is not begun. The first exit always
            runs. One that was not begun in `RETRY_AFTER` calls is tried again, as it may have become faster; that
            prediction may be late.

    Raises:
        FileNotFoundError, ValueError: no deployment, another version, a file that is missing or altered, or a `size`
            that it does not take.
        RuntimeError: the backend is not installed; or, of every call, this process is a fork of the one that loaded the
            deployment, whose threads a fork does not have: load it in the process that uses it.
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
        self._process = os.getpid()
        if threads is not None and not (_is_integer(threads) and 1 <= threads <= MOST_THREADS):
            raise ValueError(f"threads: expected an integer in 1..{MOST_THREADS}, got {threads!r}")
        if deadline_ms is not None and not (_is_number(deadline_ms) and deadline_ms >= 0):
            raise ValueError(f"deadline_ms: expected a number of milliseconds, 0 or more, got {deadline_ms!r}")
        root = Path(folder)
        self.manifest = Manifest.load(root)
        self.deadline_ms = deadline_ms
        self._workspace = mess_core.Workspace()
        self._pace = [_Pace() for _ in self.manifest.exits]
        self._label_ms: deque[float] = deque(maxlen=5)
        self.size = self.manifest.size if size is None else _checked_size(size, self.manifest)
        self._stages: list[Session] = []
        self._heads: list[Session | None] = []
        self._threads = None if threads is None else int(threads)
        self._load(root, backend, self._threads)

    def predict(self, image: Picture, *, image_thresholds: Sequence[float | None] | None = None) -> Result:
        """Segment one picture, stopping as early as the thresholds, or the deadline, allow; anytime: at the last exit.

        Args:
            image: (H, W, 3) uint8 RGB.
            image_thresholds: one an exit instead of the manifest's; None where it has none. An exit whose threshold is
                above 1 lets nothing leave, so unless there is a deadline its head and its decision are not run; nor are
                those of an anytime deployment before its last exit.

        Raises:
            TypeError, ValueError: `image` is not (H, W, 3) uint8, or thresholds do not fit the exits.
        """
        return self.predict_batch([image], image_thresholds=image_thresholds)[0]

    def predict_batch(
        self, images: Sequence[Picture], *, image_thresholds: Sequence[float | None] | None = None
    ) -> list[Result]:
        """Several pictures at once: those that are sure leave, the others go on.

        Args:
            images: (H, W, 3) uint8 RGB each, of any sizes: each is resized to the network's.
            image_thresholds: as of `predict`.

        Several pictures need sessions of their own, which are loaded, outside all times, when they first come.

        Returns:
            Results in the order given.

        Raises:
            TypeError, ValueError: as of `predict`, and for no image.
        """
        self._check_process()
        thresholds = self._thresholds(image_thresholds)
        last = len(self.manifest.exits) - 1
        if len(images) > 1:
            for session in filter(None, (*self._stages, *self._heads)):
                session.load_for_batches()  # before the clock runs: a stage is judged by its runs
        start = time.perf_counter()
        state = self._start(images)
        remaining = np.arange(len(images))
        confidences: list[list[float]] = [[] for _ in images]
        results: dict[int, Result] = {}
        times: list[float] = []
        began = time.perf_counter()
        for position, entry in enumerate(self.manifest.exits):
            threshold = thresholds[position]
            feature, state = self._run_stage(position, state, len(remaining))
            passes_all = position < last if threshold is None else threshold > 1
            if passes_all and self.deadline_ms is None:
                times.append(1000 * (time.perf_counter() - began))
                began = time.perf_counter()
                continue
            logits = self._logits(position, feature)
            leaves = np.full(len(remaining), fill_value=not passes_all)
            if threshold is not None:
                values = self._confidence(entry, logits)
                for image, value in zip(remaining, values, strict=True):
                    confidences[image].append(float(value))
                leaves = values >= threshold
            times.append(1000 * (time.perf_counter() - began))
            self._pace[position].ran(len(remaining), times[-1])

            results |= self._results(images, remaining, leaves, logits, entry, confidences, times)
            if leaves.all():
                break
            if self._is_late(position + 1, int(np.count_nonzero(~leaves)), start):
                results |= self._results(images, remaining, ~leaves, logits, entry, confidences, times)
                break
            began = time.perf_counter()
            if leaves.any():
                kept = ~leaves
                state = {name: state[name][kept] if is_batched else state[name] for name, is_batched in entry.carried}
                remaining = remaining[kept]
        return [results[image] for image in range(len(images))]

    def anytime(self, image: Picture) -> Iterator[Result]:
        """One better prediction after the other, an exit each; stop iterating to stop computing.

        Args:
            image: (H, W, 3) uint8 RGB.

        Raises:
            TypeError, ValueError: `image` is not (H, W, 3) uint8.
        """
        self._check_process()
        state, times = self._start([image]), []
        for position, entry in enumerate(self.manifest.exits):
            began = time.perf_counter()
            feature, state = self._run_stage(position, state, 1)
            logits = self._logits(position, feature)
            times.append(1000 * (time.perf_counter() - began))
            yield self._result(image, logits[0], entry, [], times)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(
                "runtime: expected the process that loaded the deployment, got a fork, which has not its threads; make "
                "a Runtime in each process"
            )

    def _load(self, root: Path, backend: BackendName, threads: int | None) -> None:
        """Every stage and head; where sizes are free, for those that one image's values have behind the one before."""
        is_free = self.manifest.size_step is not None
        state: dict[str, npt.NDArray[Any]] = {}
        if is_free:
            state["images"] = np.zeros((1, 3, *self.size), dtype=np.float32)
        for position, entry in enumerate(self.manifest.exits):
            shapes = {name: value.shape for name, value in state.items()} if is_free else None
            path, model = root / entry.stage, self.manifest.read(root, entry.stage)
            stage = load(backend, path, entry.inputs, entry.outputs, threads, shapes=shapes, model=model)
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
                else load(
                    backend,
                    root / entry.head,
                    ["feature"],
                    ["logits"],
                    threads,
                    shapes=shapes,
                    model=self.manifest.read(root, entry.head),
                )
            )

    def _thresholds(self, given: Sequence[float | None] | None) -> list[float | None]:
        own = [entry.image_threshold for entry in self.manifest.exits]
        if given is None:
            return own
        wanted = list(given)
        if [value is None for value in wanted] != [value is None for value in own]:
            raise ValueError(
                f"image_thresholds: expected one an exit, None where the manifest has none: {own}, got {given}"
            )
        if not all(value is None or (_is_number(value) and not math.isnan(value)) for value in wanted):
            raise ValueError(f"image_thresholds: expected numbers, got {given}")
        return wanted

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
            threads=self._threads_for(logits),
            **self.manifest.policy,
        )
        assert isinstance(values, np.ndarray)
        return values

    def _threads_for(self, logits: npt.NDArray[np.float32]) -> int | None:
        """Of a decision or a label map: `threads` at most, and one where more cost more than they save."""
        numbers = math.prod(logits.shape[:-2]) * math.prod(self.size)
        return 1 if self._threads is not None and numbers < SHARED_FROM else self._threads

    def _upsampling(self, logits: npt.NDArray[np.float32]) -> tuple[int, int] | None:
        return None if logits.shape[-2:] == self.size else self.size

    def _is_late(self, position: int, images: int, start: float) -> bool:
        """Whether a stage for so many images, and their label maps, would probably end behind the deadline."""
        if self.deadline_ms is None:
            return False
        for_labels = images * statistics.median_low(self._label_ms) if self._label_ms else 0.0
        ms_left = self.deadline_ms - 1000 * (time.perf_counter() - start) - for_labels
        return not self._pace[position].may_begin(images, ms_left)

    def _results(
        self,
        images: Sequence[Picture],
        remaining: npt.NDArray[np.int64],
        leaves: npt.NDArray[np.bool_],
        logits: npt.NDArray[np.float32],
        entry: StageFiles,
        confidences: Sequence[Sequence[float]],
        times: Sequence[float],
    ) -> dict[int, Result]:
        """By number, of those that leave at an exit; their logits are looked at where they are."""
        results = {}
        for row in np.flatnonzero(leaves):
            began = time.perf_counter()
            image = int(remaining[row])
            results[image] = self._result(images[image], logits[row], entry, confidences[image], times)
            self._label_ms.append(1000 * (time.perf_counter() - began))
        return results

    def _result(
        self,
        image: Picture,
        logits: npt.NDArray[np.float32],
        entry: StageFiles,
        confidences: Sequence[float],
        times: Sequence[float],
    ) -> Result:
        labels = mess_core.label_map(
            logits, size=self._upsampling(logits), workspace=self._workspace, threads=self._threads_for(logits)
        )
        whole = labels if labels.shape == image.shape[:2] else labels_at(labels, image.shape[:2])
        return Result(whole, entry.name, tuple(confidences), tuple(times))


class _Pace:
    """How long a stage with its head and its decision takes, going by its last runs; one image and several apart.

    The median of five, of two the lower. A run after so many that were put off says how it is now, and what was known
    is forgotten.
    """

    def __init__(self) -> None:
        self._ms_an_image: tuple[deque[float], deque[float]] = deque(maxlen=5), deque(maxlen=5)
        self._put_off = [0, 0]

    def ran(self, images: int, ms: float) -> None:
        kind = images > 1
        if self._put_off[kind] >= RETRY_AFTER:
            self._ms_an_image[kind].clear()
        self._ms_an_image[kind].append(ms / images)
        self._put_off[kind] = 0

    def may_begin(self, images: int, ms_left: float) -> bool:
        """Whether it is likely to end in this time, or was put off so often that it is due."""
        kind = images > 1
        known = list(self._ms_an_image[kind])  # another thread may change it
        expected = images * statistics.median_low(known) if known else 0.0
        if ms_left >= expected or (ms_left > 0 and self._put_off[kind] >= RETRY_AFTER):
            return True
        self._put_off[kind] += 1
        return False


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _checked_size(size: tuple[int, int], manifest: Manifest) -> tuple[int, int]:
    step = manifest.size_step
    try:
        sides = [side for side in size if _is_integer(side) and 1 <= side <= LARGEST_SIDE]
    except TypeError:
        sides = []
    if len(sides) != 2 or len(size) != 2:
        raise ValueError(f"size: expected (height, width) in 1..{LARGEST_SIDE}, got {size!r}")
    size = (int(sides[0]), int(sides[1]))
    if size[0] * size[1] > LARGEST_AREA:
        raise ValueError(f"size: expected at most {LARGEST_AREA} pixels, got {size!r}")
    if step is None and size != manifest.size:
        raise ValueError(f"size: expected {manifest.size}, which alone this deployment takes, got {size!r}")
    if step is not None and any(side % step for side in size):
        raise ValueError(f"size: expected a height and width that are multiples of {step}, got {size!r}")
    return size
