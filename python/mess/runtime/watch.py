"""Are the images still like those of calibration? If not, thresholds and promises hold no more.

What is watched is the image confidence at the first gate, which every image passes. Under the null hypothesis that
calibration images and all images since then are exchangeable, the rank of each new confidence among all before it is
uniform and independent of the earlier ranks (ties broken by chance). A gambler who bets against that (the simple
jumper) has wealth that reaches 1/a at any time, ever, with probability a at most (Ville's inequality): that is the
false alarm rate, however long the watch lasts and however often one looks.

References: Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, 2nd ed., chapter 8; Vovk et al.: Retrain or
not retrain: conformal test martingales for change-point detection. COPA 2021, arXiv 2102.10439.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mess.files import entries
from mess.runtime.network import Picture, Result, Runtime

BINS = 100
"""Of image confidence, each a hundredth wide; fixed beforehand, so that binning cannot spoil exchangeability."""

PROMISE = "first_gate_histogram"
"""Entry of a configuration's promise: calibration images by image confidence at the first gate."""

JUMPS = (0.001, 0.01, 0.1, 1.0)
"""How often the gamblers whose mean is taken change their mind, from hardly ever to every image."""

_BETS = np.array([-1.0, 0.0, 1.0])

_log = logging.getLogger("mess")


def histogram(image_confidence: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """(BINS,) counts of image confidences (n,) in 0..1."""
    return np.bincount(_bin(image_confidence), minlength=BINS)


def _bin(image_confidence: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    return np.minimum((np.asarray(image_confidence) * BINS).astype(np.int64), BINS - 1)


@dataclass(frozen=True, slots=True)
class DriftReport:
    """What a watch has seen.

    Attributes:
        images: since the last reset.
        wealth: the gambler's, now
        most_wealth: its greatest.
        alarmed_at: the image,
            counted from 1, at which it reached 1 / false_alarm; None if it never did.
        psi_confidence, psi_exits: Population Stability Index of the image confidence at the first gate (ten bins of
            equal calibration share) and of the exits taken, all images since the reset against calibration. By
            convention below 0.1 is calm and above 0.25 another population; few images make it large by chance, and it
            has no false alarm rate.
        shares, expected_shares: of images at each exit, and those of calibration.
    """

    images: int
    wealth: float
    most_wealth: float
    alarmed_at: int | None
    psi_confidence: float
    psi_exits: float
    shares: tuple[float, ...]
    expected_shares: tuple[float, ...]


class Watch:
    """A `Runtime` that says when its images have left what it was calibrated on.

    Frames of a video are no exchangeable images: neighbours are alike. Watch every so many of them (`every`), so many
    that they show different scenes, or the alarm will tell of a long red light.

    Args:
        runtime: of an input-dependent deployment with at least one gate.
        false_alarm: probability of an alarm, ever, while images are like those of calibration.
        fall_back: after an alarm every image goes to the deployment's last exit, which needs no threshold to be
            trusted; the original network's own, where the search had to keep that (`required_exits=["final"]`).
            Not with `deadline_ms`, by which the runtime may stop before it.
        every: only every so many images are bet on; all are counted.
        seed: of the breaking of ties.

    Raises:
        ValueError: another setting, no histogram in the manifest (an export of an older version), or an option out of
            range.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        false_alarm: float = 0.01,
        fall_back: bool = False,
        every: int = 1,
        seed: int = 0,
    ) -> None:
        manifest = runtime.manifest
        if manifest.setting != "input-dependent" or len(manifest.exits) < 2:
            raise ValueError(
                f"runtime: expected an 'input-dependent' deployment with a gate, got {manifest.setting!r} with "
                f"{len(manifest.exits)} exits"
            )
        first = manifest.exits[0]
        if first.image_threshold is not None and first.image_threshold > 1:
            raise ValueError(
                f"runtime: expected a first gate that lets images leave, got {first.name!r} with an image threshold of "
                f"{first.image_threshold:g}: it is not asked"
            )
        if not 0 < false_alarm < 1:
            raise ValueError(f"false_alarm: expected a probability above 0 and below 1, got {false_alarm}")
        if fall_back and runtime.deadline_ms is not None:
            raise ValueError(
                f"fall_back: expected a runtime without a deadline, which may stop before the last exit, got one of "
                f"{runtime.deadline_ms:g} ms"
            )
        if every < 1:
            raise ValueError(f"every: expected at least 1, got {every}")
        self._calibration = _counts(manifest.promise.get(PROMISE), BINS, PROMISE)
        shares = entries(manifest.promise, "shares", (int, float), "shares of images")
        if len(shares) != len(manifest.exits) or not all(0 <= share <= 1 for share in shares):
            raise ValueError(f"shares: expected one in 0..1 for each of {len(manifest.exits)} exits, got {shares}")
        self._expected = np.array(shares, dtype=np.float64)
        self.runtime = runtime
        self.false_alarm, self.fall_back, self.every, self.seed = false_alarm, fall_back, every, seed
        self._names = [entry.name for entry in manifest.exits]
        self.reset()

    def reset(self) -> None:
        """Begin again, with what calibration saw and nothing since."""
        self._rng = np.random.default_rng(self.seed)
        self._bag = self._calibration.copy()
        self._log_capital = np.log(np.full((len(JUMPS), len(_BETS)), 1 / (len(JUMPS) * len(_BETS))))
        self._most = 0.0  # logarithm of the greatest wealth
        self._alarmed_at: int | None = None
        self._images = 0
        self._seen = np.zeros(BINS, dtype=np.int64)
        self._taken = np.zeros(len(self._names), dtype=np.int64)

    @property
    def drifted(self) -> bool:
        """Whether the alarm was given."""
        return self._alarmed_at is not None

    def predict(self, image: Picture) -> Result:
        """Segment an image (H, W, 3) uint8 RGB, and watch. In fall-back nothing more is watched until `reset`."""
        if self.drifted and self.fall_back:
            never = [None if e.image_threshold is None else math.inf for e in self.runtime.manifest.exits]
            return self.runtime.predict(image, image_thresholds=never)
        result = self.runtime.predict(image)
        self.update(result)
        return result

    def update(self, result: Result) -> None:
        """Watch a result that `runtime.predict` or `predict_batch` gave, with the manifest's own thresholds."""
        most = math.inf if self.runtime.deadline_ms is not None else 1.0  # an exit that asks for more is not asked
        on_the_way = self.runtime.manifest.exits[: self._names.index(result.exit) + 1]
        asked = sum(e.image_threshold is not None and e.image_threshold <= most for e in on_the_way)
        if not result.image_confidence or len(result.image_confidence) < asked:
            raise ValueError(
                f"result: expected the image confidence of each gate, the first one's too, {asked} in all, got "
                f"{len(result.image_confidence)}; a `Stream` that skips gates cannot be watched"
            )
        self._images += 1
        self._taken[self._names.index(result.exit)] += 1
        place = int(_bin(np.array(result.image_confidence[0])))
        self._seen[place] += 1
        if (self._images - 1) % self.every:
            return
        self._bag[place] += 1
        rank = self._bag[:place].sum() + self._rng.random() * self._bag[place]
        self._bet(float(rank / self._bag.sum()))
        if self._alarmed_at is None and self._most >= -math.log(self.false_alarm):
            self._alarmed_at = self._images
            _log.warning(
                "images have left what was calibrated on (after %d; false alarm rate %g); shares of exits %s, now %s",
                self._images,
                self.false_alarm,
                [f"{share:.0%}" for share in self._expected],
                [f"{share:.0%}" for share in self._taken / self._images],
            )

    def report(self) -> DriftReport:
        """What was seen until now."""
        groups = _groups(self._calibration)
        return DriftReport(
            images=self._images,
            wealth=math.exp(min(self._log_wealth(), 700.0)),
            most_wealth=math.exp(min(self._most, 700.0)),
            alarmed_at=self._alarmed_at,
            psi_confidence=_psi(np.bincount(groups, self._calibration), np.bincount(groups, self._seen)),
            psi_exits=_psi(self._expected * self._calibration.sum(), self._taken),
            shares=tuple(float(share) for share in self._taken / max(self._images, 1)),
            expected_shares=tuple(float(share) for share in self._expected),
        )

    def _bet(self, rank: float) -> None:
        """One round of all gamblers: some of each one's capital changes its bet, then all bets are settled."""
        total = np.logaddexp.reduce(self._log_capital, axis=1, keepdims=True)
        jumps = np.array(JUMPS)[:, None]
        with np.errstate(divide="ignore"):  # all of it jumps: log 0
            kept = self._log_capital + np.log(1 - jumps)
        self._log_capital = np.logaddexp(kept, total + np.log(jumps / len(_BETS)))
        self._log_capital += np.log1p(_BETS * (rank - 0.5))
        self._most = max(self._most, self._log_wealth())

    def _log_wealth(self) -> float:
        return float(np.logaddexp.reduce(self._log_capital, axis=None))


def _counts(value: object, length: int, name: str) -> npt.NDArray[np.int64]:
    counts = value if isinstance(value, Sequence) else ()
    if len(counts) != length or not all(type(x) is int and 0 <= x < 1 << 31 for x in counts) or not any(counts):
        raise ValueError(
            f"manifest: promise.{name}: expected {length} counts of calibration images, got {str(value)[:40]}; search "
            "and export again"
        )
    return np.array(counts, dtype=np.int64)


def _groups(counts: npt.NDArray[np.int64], wanted: int = 10) -> npt.NDArray[np.int64]:
    """Which of at most `wanted` neighbouring groups, of about equal count, each bin belongs to."""
    before = np.cumsum(counts) - counts
    groups = np.minimum(before * wanted // counts.sum(), wanted - 1)
    return np.unique(groups, return_inverse=True)[1]


def _psi(expected: npt.NDArray[Any], found: npt.NDArray[Any]) -> float:
    """Population Stability Index of counts; half an image is added to each, so that none is empty."""
    if found.sum() == 0:
        return 0.0
    p, q = ((counts + 0.5) / (counts + 0.5).sum() for counts in (expected, found))
    return float(((q - p) * np.log(q / p)).sum())
