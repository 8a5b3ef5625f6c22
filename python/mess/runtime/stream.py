"""Frames of one camera: neighbours are alike, so what the exits said of the last frames is worth something.

Both means are off by default, because both bend what the search promised: its thresholds hold image by image.
"""

from __future__ import annotations

import math

from mess.runtime.network import Picture, Result, Runtime


class Stream:
    """A `Runtime` that remembers the frames before.

    Args:
        runtime: of an input-dependent deployment.
        skip_after: an exit that refused this many frames in a row is not asked any more, which saves its head and its
            decision (None: always asked). An image that would have left there goes on, and gets
            the later exit's prediction. With the runtime's `deadline_ms` it saves nothing: heads are run then, as
            their predictions may be the best there is in time.
        retry_every: every so many frames all exits are asked again.
        hysteresis: the exit that the last frame took asks this much less image confidence (0..1) of the next one, so
            that a stream does not flicker between two exits. Images leave that the search would have sent on. It asks
            at least half of what it does otherwise: with less than nothing to ask for, no frame would go on again.

    Raises:
        ValueError: another setting, or an option out of range.
    """

    def __init__(
        self, runtime: Runtime, *, skip_after: int | None = None, retry_every: int = 10, hysteresis: float = 0.0
    ) -> None:
        if runtime.manifest.setting != "input-dependent":
            raise ValueError(
                f"runtime: expected an 'input-dependent' deployment, got one that is {runtime.manifest.setting!r}"
            )
        for name, value in (("skip_after", skip_after), ("retry_every", retry_every)):
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not is_count and not (name == "skip_after" and value is None):
                raise ValueError(f"{name}: expected an integer, at least 1, got {value!r}")
        if not (isinstance(hysteresis, int | float) and 0 <= hysteresis <= 1):
            raise ValueError(f"hysteresis: expected a number in 0..1, got {hysteresis!r}")
        self.runtime = runtime
        self.skip_after, self.retry_every, self.hysteresis = skip_after, retry_every, hysteresis
        self._names = [entry.name for entry in runtime.manifest.exits]
        self._thresholds = [entry.image_threshold for entry in runtime.manifest.exits]
        self.reset()

    def reset(self) -> None:
        """Forget the frames before: a new scene."""
        self._refused = [0] * len(self._names)
        self._last: int | None = None
        self._frames = 0

    def predict(self, frame: Picture) -> Result:
        """Segment the next frame (H, W, 3) uint8 RGB."""
        thresholds = self._now()
        result = self.runtime.predict(frame, image_thresholds=thresholds)
        ended = self._names.index(result.exit)
        asked = thresholds[ended]
        is_taken = asked is None or result.image_confidence[-1] >= asked  # else the deadline ended it there
        self._last = ended if is_taken else None
        self._frames += 1
        for position, threshold in enumerate(thresholds[: ended + 1]):
            if threshold is not None and threshold != math.inf:  # it was asked
                self._refused[position] = 0 if position == self._last else self._refused[position] + 1
        return result

    def _now(self) -> list[float | None]:
        """Image thresholds for the next frame; infinite where the exit is not asked."""
        retry = self._frames % self.retry_every == 0
        now: list[float | None] = []
        for position, threshold in enumerate(self._thresholds):
            if threshold is None:
                now.append(None)
            elif self.skip_after is not None and self._refused[position] >= self.skip_after and not retry:
                now.append(math.inf)
            else:
                lowered = max(threshold - self.hysteresis, threshold / 2)
                now.append(lowered if position == self._last else threshold)
        return now
