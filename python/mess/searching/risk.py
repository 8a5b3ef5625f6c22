"""Finite-sample statements about a mean of bounded losses: p-values, fixed-sequence testing, conformal risk control.

Assumption of all of them: the n images are drawn independently from the distribution that the statement is about, and
were not used to choose what is tested (conformal risk control: exchangeable with the next image is enough).

References:
- Angelopoulos, Bates, Candes, Jordan, Lei: Learn then Test. arXiv 2110.01052 (Hoeffding-Bentkus, fixed sequence).
- Waudby-Smith, Ramdas: Estimating means of bounded random variables by betting. JRSS B 2024, arXiv 2010.09686 (WSR).
- Angelopoulos, Bates, Fisch, Lei, Schuster: Conformal risk control. ICLR 2024, arXiv 2208.02814.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

Losses = npt.NDArray[np.float64]
"""(n,) one loss an image."""

PValue = Callable[[Losses, float], float]


def betting_p_value(losses: Losses, limit: float, *, bounds: tuple[float, float] = (0.0, 1.0)) -> float:
    """p-value of "the mean loss is `limit` or more", by betting against it (WSR; aGRAPA bets).

    A gambler starts with 1 and before each image stakes a share on its loss being below `limit`; were the mean at least
    `limit`, its wealth would exceed 1/p at any time with probability p at most (Ville). The stake is what would have
    grown fastest on the images before, so low variance is rewarded.

    Args:
        losses: (n,) float64 within `bounds`, in an order that does not depend on them.
        limit: strictly within `bounds`, else the p-value is 1 (below) or 0 (above).
        bounds: least and greatest possible loss.

    Raises:
        ValueError: no losses, or one outside `bounds` or NaN.
    """
    scaled, target = _scaled(losses, limit, bounds)
    if target <= 0 or target >= 1:
        return float(target <= 0)
    gains = target - scaled
    count = np.arange(len(gains))  # images before each
    mean = _before(gains) / np.maximum(count, 1)
    square = (_before(gains**2) + 1e-3) / np.maximum(count, 1)
    most = 0.999 / (1 - target)  # the wealth cannot become negative
    stake = np.where(count < _FIRST, 0.5 / (1 - target), np.clip(mean / square, 0, most))
    return float(np.exp(-max(0.0, np.cumsum(np.log1p(stake * gains)).max())))


_FIRST = 20
"""Images on which stakes are fixed, because nothing is known yet."""


def hoeffding_bentkus_p_value(losses: Losses, limit: float, *, bounds: tuple[float, float] = (0.0, 1.0)) -> float:
    """p-value of "the mean loss is `limit` or more" from the mean alone (Hoeffding-Bentkus).

    For losses that are 0 or 1, where it is often the smaller one (10 of 400 at a limit of 0.05: 0.026; betting 0.15 in
    the median order); needs far more images than `betting_p_value` for others. Arguments and errors as there.
    """
    from scipy.stats import binom

    scaled, target = _scaled(losses, limit, bounds)
    if target <= 0 or target >= 1:
        return float(target <= 0)
    n, mean = len(scaled), float(scaled.mean())
    if mean >= target:
        return 1.0
    divergence = (mean * np.log(mean / target) if mean > 0 else 0.0) + (1 - mean) * np.log((1 - mean) / (1 - target))
    bentkus = np.e * binom.cdf(np.ceil(n * mean - 1e-9 * n), n, target)
    return float(min(1.0, np.exp(-n * divergence), bentkus))


def least_limit(
    images: int, confidence: float, p_value: Callable[..., float], *, bounds: tuple[float, float] = (0.0, 1.0)
) -> float:
    """The least limit that `images` images without any loss would prove by `p_value`, to within 1e-6 above.

    No test can do much better than 1 - (1 - confidence)^(1 / images): were so large a share of all images a total loss,
    there might be none among these.
    """
    none = np.zeros(images)
    low, high = bounds
    while high - low > 1e-6:  # the larger the limit, the smaller the p-value
        middle = (low + high) / 2
        proves = p_value(none, middle, bounds=bounds) <= 1 - confidence
        low, high = (low, middle) if proves else (middle, high)
    return high


def fixed_sequence(p_values: Iterable[float], delta: float) -> int:
    """How many hypotheses in a row, from the first, have p <= `delta`; lazy: nothing behind the first failure is asked.

    If the order was fixed beforehand, the probability that one of them is true (a promise is broken) is at most
    `delta`, however many there are: the first true one in the order would have to pass its own test.
    """
    passed = 0
    for p in p_values:
        if not p <= delta:
            break
        passed += 1
    return passed


def conformal_risk_control(losses: npt.NDArray[np.float64], limit: float, *, largest: float = 1.0) -> int:
    """How far a single knob may be turned so that the *expected* loss of the next image is at most `limit`.

    Args:
        losses: (n, settings), from the most cautious setting to the boldest. Where an image's loss falls on the way,
            its largest so far counts, which can only be more careful.
        limit: on the expectation, over calibration images and the next one together.
        largest: the greatest possible loss.

    Returns:
        How many settings, counted from the most cautious, are allowed; the last of them is the answer, 0 is none.
    """
    if losses.ndim != 2 or losses.shape[0] == 0 or not np.isfinite(losses).all():
        raise ValueError(f"losses: expected finite (n, settings) with n above 0, got {losses.shape}")
    monotone = np.maximum.accumulate(losses, axis=1)
    n = len(losses)
    bound = (monotone.sum(axis=0) + largest) / (n + 1)
    return fixed_sequence((bound > limit).astype(float), 0.5)


def bootstrap_interval(
    statistic: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float64]],
    images: int,
    rng: np.random.Generator,
    *,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of what is no mean over images, such as dataset mIoU. A description, no guarantee.

    `statistic` takes image indices (..., n) and gives one number a row.
    """
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.arange(images),),
        lambda indices, axis: statistic(indices),
        n_resamples=1000,
        batch=50,
        vectorized=True,
        axis=-1,
        confidence_level=confidence,
        method="percentile",
        rng=rng,
    ).confidence_interval
    return float(found.low), float(found.high)


def _scaled(losses: Losses, limit: float, bounds: tuple[float, float]) -> tuple[Losses, float]:
    low, high = bounds
    values = np.asarray(losses, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"losses: expected (n,) with n above 0, got {values.shape}")
    if not ((values >= low) & (values <= high)).all():
        raise ValueError(f"losses: expected numbers in {low}..{high}, got {values.min()} to {values.max()}")
    return (values - low) / (high - low), (limit - low) / (high - low)


def _before(values: Losses) -> Losses:
    """Sum of all values before each."""
    return np.concatenate([[0.0], np.cumsum(values)[:-1]])
