"""The cheapest configuration for which a promise about unseen images can be proven.

A configuration that was searched for among billions looks better on its own images than it is. Here the images are
divided: one part is searched for a path of configurations from cautious to bold (the front of cost against the
promised loss, in steps of 0.2 % of the original's cost, as far as it is found in time), the other part, which the
search did not see, tests them in that order until one fails (Learn then Test, `mess.searching.risk`). The promise holds
with the stated confidence whatever the search did, and whatever the network is, for images drawn like those of the
table. It breaks where they are not: another camera, town or season (`mess.runtime.watch` watches for that), or frames
of one video, of which neighbours are no independent images.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

import mess_core
from mess.calibration.table import CalibrationTable
from mess.deployment.configuration import Configuration
from mess.exit_names import FINAL_EXIT
from mess.searching import risk
from mess.searching.solve import check_required, found_configuration, index_of
from mess_core import SearchTable

Loss = Literal["disagreement", "error increase", "miss rate"]
Bound = Literal["betting", "hoeffding-bentkus"]

LEARN_SHARE = 0.2
"""Of a table that is divided, the part that is searched. Measured (benches/record/guarantee.md): proving needs images
more than searching does."""

_SEARCH_OPTIONS = {"image_thresholds", "required_exits", "forbidden_exits", "threads", "progress"}

_SCALE = 1 << 20
"""Losses of the search are integers: steps of a millionth."""

_PATTERN = re.compile(
    r"\s*(?:(?P<loss>disagreement|error[ -]increase)|miss[ -]rate of (?P<of_class>.+?))\s*<=\s*"
    r"(?P<limit>[0-9.]+(?:e-[0-9]+)?)"
    r"\s*(?P<percent>%)?\s*(?:with\s*(?P<confidence>[0-9.]+)\s*%|(?P<average>on average))\s*"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Guarantee:
    """What is promised of images that nobody has seen: the mean loss is at most `limit`.

    Attributes:
        loss: of an image. `disagreement`: the share of its pixels that the final exit labels otherwise; `error
            increase`: the share of its labelled pixels that are wrong, less the share that the final exit has wrong, in
            -1..1 (an image that gets better counts against one that gets worse); `miss rate`: of the pixels of a class,
            those not found, over the images that have the class.
        of_class: of a miss rate.
        limit: above 0, below 1.
        confidence: probability with which the promise holds, over the images that it was proven with; None promises the
            expected loss only, over those images and the next one (conformal risk control).
    """

    loss: Loss
    limit: float
    confidence: float | None = 0.95
    of_class: str | None = None

    def __post_init__(self) -> None:
        if self.loss not in get_args(Loss):
            raise ValueError(f"loss: expected one of {get_args(Loss)}, got {self.loss!r}")
        if not 0 < self.limit < 1:
            raise ValueError(f"limit: expected a share above 0 and below 1, got {self.limit}")
        if self.confidence is not None and not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence: expected 50 % or more, and below 100 %, got {self.confidence:.4g}")
        if self.confidence is None and self.loss == "miss rate":
            raise ValueError(
                "guarantee: expected a confidence for a miss rate, got one on average: conformal risk control falls "
                "back to the original network, which misses pixels of the class too"
            )
        if (self.of_class is not None) != (self.loss == "miss rate"):
            raise ValueError(f"of_class: expected a class for a miss rate and only there, got {self.of_class!r}")

    @classmethod
    def parse(cls, text: str) -> Guarantee:
        """Of words: `disagreement <= 0.02 with 95 %`, `error increase <= 1 % with 90 %`,
        `miss rate of pedestrian <= 0.1 with 95 %`, `disagreement <= 0.02 on average`.

        Raises:
            ValueError: other words, or numbers out of range.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(
                "guarantee: expected 'disagreement <= 0.02 with 95 %', 'error increase <= ...', 'miss rate of CLASS <= "
                f"...', or '... on average', got {text!r}"
            )
        try:
            limit = float(Decimal(match["limit"]) / (100 if match["percent"] else 1))
            confidence = None if match["average"] else float(Decimal(match["confidence"]) / 100)
        except InvalidOperation:
            raise ValueError(f"guarantee: expected numbers, got {text!r}") from None
        loss: Any = "miss rate" if match["of_class"] else match["loss"].replace("-", " ")
        return cls(loss=loss, limit=limit, confidence=confidence, of_class=match["of_class"])

    def __str__(self) -> str:
        what = self.loss if self.of_class is None else f"{self.loss} of {self.of_class}"
        return f"{what} <= {self.limit} " + (
            "on average" if self.confidence is None else f"with {100 * self.confidence:.15g} %"
        )

    @property
    def bounds(self) -> tuple[float, float]:
        """Least and greatest loss that an image can have."""
        return (-1.0 if self.loss == "error increase" else 0.0, 1.0)

    def losses(self, table: CalibrationTable) -> npt.NDArray[np.float64]:
        """(E, n) loss of every exit on every image of a table; NaN where an image says nothing about it.

        Raises:
            ValueError: the table lacks the class.
        """
        if self.loss == "disagreement":
            return table.disagreement / (table.input_size[0] * table.input_size[1])
        if self.of_class is not None:
            if self.of_class not in table.class_names:
                raise ValueError(
                    f"guarantee: expected one of the classes {list(table.class_names)}, got {self.of_class!r}"
                )
            index = table.class_names.index(self.of_class)
            truth = table.ground_truth[:, index]
            missed = 1 - table.intersection[:, :, index] / np.maximum(truth, 1)
            return np.where(truth > 0, missed, np.nan)
        truth = table.ground_truth.sum(axis=1)
        right = np.where(truth > 0, table.intersection.sum(axis=2) / np.maximum(truth, 1), np.nan)
        increase: npt.NDArray[np.float64] = right[table.exits.index(FINAL_EXIT)] - right
        return increase


@dataclass(frozen=True, slots=True)
class Proof:
    """One guarantee as the held-out images have it, for the configuration that was chosen.

    Attributes:
        images: that say something about the loss.
        mean_loss: over them.
        least_provable: the least limit that so many images could prove had they no loss at all.
        p_value: of the promise being broken; None for one on average.
    """

    guarantee: Guarantee
    images: int
    mean_loss: float
    p_value: float | None
    least_provable: float


@dataclass(frozen=True, slots=True)
class Guaranteed:
    """The outcome of `guarantee`.

    Attributes:
        configuration: the cheapest one for the held-out images of those on the path for which everything is proven (on
            average: the last one), its `promise` measured on them; None when nothing cheaper than the original network
            can be promised (an abstention).
        proofs: one a guarantee, of that configuration, or of the first one that failed.
        baseline_accuracy, baseline_cost: the final exit alone, on the held-out images.
        accuracy_interval, drop_interval: percentile bootstrap intervals (95 %) of the configuration's mean IoU and of
            its drop below the final exit's. They describe; no guarantee follows from them.
        searched, held_out: numbers of images.
        path: configurations on the path
        tested: how many passed.
        is_complete: whether the search for the path came to its end; of one that ran out of time more may be provable.
    """

    configuration: Configuration | None
    proofs: tuple[Proof, ...]
    baseline_accuracy: float
    baseline_cost: float
    accuracy_interval: tuple[float, float]
    drop_interval: tuple[float, float]
    searched: int
    held_out: int
    path: int
    tested: int
    is_complete: bool


def guarantee(
    table: CalibrationTable,
    promises: str | Guarantee | Sequence[str | Guarantee],
    *,
    held_out: CalibrationTable | None = None,
    learn_share: float = LEARN_SHARE,
    seed: int = 0,
    bound: Bound = "betting",
    cost: str = "macs",
    max_exits: int = 3,
    time_limit: float | None = 60.0,
    **search_options: Any,
) -> Guaranteed:
    """Find the cheapest input-dependent configuration for which promises about unseen images can be proven.

    Each promise holds with its own confidence. With a confidence they are tested one after the other on a path (see the
    module); one "on average" stands alone and turns a single knob, all image thresholds together, of the cheapest
    configuration within the limit.

    Args:
        table: searched. Without `held_out` it is divided, by chance.
        promises: `Guarantee`s or words, see `Guarantee.parse`.
        held_out: a table of other images, drawn like those that the promise is about, which nothing was chosen by: not
            the weights, not the search.
        learn_share: of a table that is divided, the part that is searched.
        seed: of the division and of the order of the test.
        bound: `betting` or, for losses near 0 or 1, `hoeffding-bentkus`.
        cost, max_exits: as in `mess.search`.
        time_limit: seconds for the path; a path that is not the best one costs money, never the promise.
        search_options: `image_thresholds`, `required_exits`, `forbidden_exits` (names), `threads`, `progress`, as in
            `mess.search`.

    Raises:
        ValueError: no promise, an unknown class, tables of different networks, or too few images.
    """
    wanted = [Guarantee.parse(p) if isinstance(p, str) else p for p in _as_list(promises)]
    if not wanted:
        raise ValueError("promises: expected at least one, got none")
    on_average = [g for g in wanted if g.confidence is None]
    if on_average and len(wanted) > 1:
        raise ValueError(f"promises: expected one alone where it is on average, got {len(wanted)}")
    if bound not in get_args(Bound):
        raise ValueError(f"bound: expected one of {get_args(Bound)}, got {bound!r}")
    rng = np.random.default_rng(seed)
    learn, test = _divided(table, held_out, learn_share, rng)
    if test.facts.get("split") == "train":
        raise ValueError(
            f"{'table' if held_out is None else 'held_out'}: expected images that nothing was chosen by, got the train "
            "split, which the weights are fitted to"
        )
    for g in wanted:
        known = [np.isfinite(g.losses(part)[-1]).any() for part in (learn, test)]
        if not all(known):
            raise ValueError(f"promises: expected images that say something about {g} in both parts, got none")
    unknown = set(search_options) - _SEARCH_OPTIONS
    if unknown:
        raise ValueError(f"search_options: expected some of {sorted(_SEARCH_OPTIONS)}, got {sorted(unknown)}")
    check_required(table, search_options.get("required_exits", ()), search_options.get("forbidden_exits", ()))
    options = {"cost": cost, "max_exits": max_exits, "time_limit": time_limit, **search_options}
    path, is_complete = _knob(learn, wanted[0], options) if on_average else _front(learn, wanted, options)
    order = rng.permutation(len(test.images))
    losses = [_PathLosses(g, test, cost, order) for g in wanted]
    if on_average:
        rows = [losses[0].of(c) for c in path]
        stacked = np.stack(rows, axis=1) if rows else np.zeros((1, 0))
        passed = risk.conformal_risk_control(stacked, wanted[0].limit)
    else:
        test_of = risk.betting_p_value if bound == "betting" else risk.hoeffding_bentkus_p_value

        def worst(configuration: mess_core.Configuration) -> float:
            """Above 1 when one promise is not proven. A promise of confidence 1 - delta needs p <= delta."""
            return max(
                test_of(at.of(configuration), at.promise.limit, bounds=at.promise.bounds) / _delta(at.promise)
                for at in losses
            )

        passed = risk.fixed_sequence((worst(c) for c in path), 1.0)
    arrays = test.search_table(cost)
    # all that passed are proven together, so any of them may be taken; on average only the last one is
    proven = path[:passed][-1:] if on_average else path[:passed]
    costs = [mess_core.evaluate(arrays, configuration).found.cost for configuration in proven]
    chosen = proven[int(np.argmin(costs))] if proven else None
    shown = chosen or (path[0] if path else None)
    proofs = tuple(_proof(at, shown, bound) for at in losses) if shown is not None else ()
    if chosen is not None and min(costs) >= _original_cost(test, cost):
        chosen, proofs = None, ()  # the original network keeps every promise, and costs less
    return _outcome(learn, test, chosen, proofs, cost, len(path), passed, rng, is_complete)


def least_cost(
    table: CalibrationTable, promise: Guarantee, *, cost: str = "macs", max_exits: int = 3, **search_options: Any
) -> Configuration | None:
    """The exact optimum for a promise on the images that it is searched on, of which nothing follows for others."""
    options = {"cost": cost, "max_exits": max_exits, **search_options}
    found = _search(table, [promise], options, within=promise.limit).found
    if not found:
        return None
    evaluation = mess_core.evaluate(table.search_table(cost), found[0].configuration)
    return found_configuration(table, evaluation.found, "input-dependent", cost)


def _delta(promise: Guarantee) -> float:
    assert promise.confidence is not None
    return 1 - promise.confidence


def _as_list(promises: str | Guarantee | Sequence[str | Guarantee]) -> list[str | Guarantee]:
    return [promises] if isinstance(promises, str | Guarantee) else list(promises)


def _divided(
    table: CalibrationTable, held_out: CalibrationTable | None, learn_share: float, rng: np.random.Generator
) -> tuple[CalibrationTable, CalibrationTable]:
    if held_out is not None:
        same = ("exits", "model", "class_names", "pixel_thresholds", "policy", "input_size")
        for name in same:
            if getattr(held_out, name) != getattr(table, name):
                raise ValueError(
                    f"held_out: expected the {name} of the table that is searched, {getattr(table, name)}, got "
                    f"{getattr(held_out, name)}"
                )
        if len(held_out.images) < 2:
            raise ValueError(f"held_out: expected at least 2 images, got {len(held_out.images)}")
        both = set(_in_both(table, held_out))
        if _has_names(table) and _has_names(held_out) and table.facts.get("split") == held_out.facts.get("split"):
            both |= set(held_out.images) & set(table.images)
        if both:
            raise ValueError(
                f"held_out: expected other images than those searched, got {len(both)} that are in both: "
                f"{sorted(both)[:3]}"
            )
        return table, held_out
    if not 0 < learn_share < 1:
        raise ValueError(f"learn_share: expected above 0 and below 1, got {learn_share}")
    count = round(learn_share * len(table.images))
    if count < 1 or count > len(table.images) - 2:
        raise ValueError(
            f"table: expected images enough to divide, at least 1 searched and 2 held out, got {len(table.images)}"
        )
    order = rng.permutation(len(table.images))
    return table.select(np.sort(order[:count])), table.select(np.sort(order[count:]))


def _has_names(table: CalibrationTable) -> bool:
    """Whether images were named, not numbered by `mess.calibrate`."""
    return table.images != tuple(str(number) for number in range(len(table.images)))


def _in_both(searched: CalibrationTable, held_out: CalibrationTable) -> list[str]:
    """Images of `held_out` that were searched too, whatever they are called there: of the same ground truth, which no
    other has (empty scenes are alike), and as confident at every exit, but for what another device rounds; or, if half
    of the images are so, of the same ground truth and confidences."""

    def one_of_a_kind(table: CalibrationTable) -> dict[bytes, int]:
        rows = [row.tobytes() for row in table.ground_truth]
        counts = Counter(rows)
        return {row: number for number, row in enumerate(rows) if counts[row] == 1}

    there = one_of_a_kind(searched)

    def is_alike(number: int, other: int) -> bool:
        pair = held_out.image_confidence[..., number], searched.image_confidence[..., other]
        return np.allclose(*pair, rtol=0.0, atol=0.01)

    known = ((number, there[row]) for row, number in one_of_a_kind(held_out).items() if row in there)
    both = [held_out.images[number] for number, other in known if is_alike(number, other)]

    def everything(table: CalibrationTable) -> list[int]:
        confidences = np.moveaxis(table.image_confidence, -1, 0)
        return [hash((row.tobytes(), of.tobytes())) for row, of in zip(table.ground_truth, confidences, strict=True)]

    same = set(everything(searched))
    exactly = [name for name, image in zip(held_out.images, everything(held_out), strict=True) if image in same]
    return both + (exactly if 2 * len(exactly) >= len(held_out.images) else [])


_Path = tuple[list[mess_core.Configuration], bool]
"""Configurations from cautious to bold, and whether the search for them came to its end."""


def _front(learn: CalibrationTable, promises: Sequence[Guarantee], options: dict[str, Any]) -> _Path:
    """Cost against the promised losses, each as a share of its limit: dearest first, none dearer than the original."""
    limit = _original_cost(learn, options["cost"])
    outcome = _search(learn, promises, options, resolution=0.002 * limit)
    path = [found.configuration for found in reversed(outcome.found) if found.cost < limit]
    return path, outcome.status != "stopped"


def _knob(learn: CalibrationTable, promise: Guarantee, options: dict[str, Any]) -> _Path:
    """All image thresholds of the cheapest configuration within the limit, moved together from above 1 down to 0.

    The final exit is its last one, so that the most cautious setting is the original network, whose loss is none.
    """
    required = list(dict.fromkeys([*options.get("required_exits", ()), FINAL_EXIT]))
    outcome = _search(learn, [promise], options | {"required_exits": required}, within=promise.limit)
    is_complete = outcome.status != "stopped"
    if not outcome.found or not outcome.found[0].configuration.gates:
        return [], is_complete
    start, path = outcome.found[0].configuration, []
    for turn in np.linspace(1, -1, 401):
        above = np.nextafter(1.0, 2.0)
        gates = tuple(
            replace(
                gate,
                image_threshold=float(
                    gate.image_threshold + turn * (above - gate.image_threshold)
                    if turn >= 0
                    else gate.image_threshold * (1 + turn)
                ),
            )
            for gate in start.gates
        )
        path.append(replace(start, gates=gates))
    return path, is_complete


def _search(
    learn: CalibrationTable,
    promises: Sequence[Guarantee],
    options: dict[str, Any],
    *,
    within: float | None = None,
    resolution: float = 0.0,
) -> mess_core.Outcome:
    """The exact search on losses in place of IoU: one class, of which an exit finds what is not lost.

    Several losses count together, each as a share of its limit. `within`: least cost with a mean loss of at most this,
    else the front.
    """
    arrays = learn.search_table(options["cost"])
    total = np.zeros(learn.disagreement.shape)
    for g in promises:
        losses = g.losses(learn)
        known = np.isfinite(losses[-1])
        # a mean over the images that say something, as a mean over all of them
        total += np.where(known, losses, 0.0) * (len(known) / known.sum()) / (g.limit if len(promises) > 1 else 1.0)
    low, high = float(total.min()), max(float(total.max()), float(total.min()) + 1e-6)
    score = np.rint(_SCALE * (high - total) / (high - low)).astype(np.int64)[:, :, None]
    one_class = SearchTable(
        intersection=score,
        predicted=score,
        ground_truth=np.full((len(learn.images), 1), _SCALE, dtype=np.int64),
        image_confidence=arrays.image_confidence,
        points=arrays.points,
        backbone_cost=arrays.backbone_cost,
        head_cost=arrays.head_cost,
        policy_cost=arrays.policy_cost,
    )
    rest = {name: value for name, value in options.items() if name != "cost"}
    for name in ("required_exits", "forbidden_exits"):
        rest[name] = [index_of("exits", learn.exits, wanted) for wanted in rest.get(name, ())]
    return mess_core.search(
        one_class,
        setting="input-dependent",
        metric="pixel-accuracy",
        min_accuracy=None if within is None else max(0.0, (high - within) / (high - low)),
        resolution=resolution,
        **rest,
    )


def _original_cost(table: CalibrationTable, cost: str) -> float:
    return table.total_cost(table.exits.index(FINAL_EXIT), cost)


class _PathLosses:
    """Losses of one promise on the held-out images, configuration by configuration, in one order drawn beforehand."""

    def __init__(self, promise: Guarantee, test: CalibrationTable, cost: str, order: npt.NDArray[np.int64]) -> None:
        self.promise = promise
        self._losses = promise.losses(test)
        self._order = order[np.isfinite(self._losses[-1, order])]
        self._arrays = test.search_table(cost)

    def of(self, configuration: mess_core.Configuration) -> npt.NDArray[np.float64]:
        position = mess_core.evaluate(self._arrays, configuration).position
        taken = np.asarray(configuration.exits)[position]
        found: npt.NDArray[np.float64] = self._losses[taken, np.arange(len(taken))][self._order]
        return found


def _proof(at: _PathLosses, configuration: mess_core.Configuration, bound: Bound) -> Proof:
    losses = at.of(configuration)
    p_value = None
    least = 1 / (len(losses) + 1)  # on average
    if at.promise.confidence is not None:
        test_of = risk.betting_p_value if bound == "betting" else risk.hoeffding_bentkus_p_value
        p_value = test_of(losses, at.promise.limit, bounds=at.promise.bounds)
        least = risk.least_limit(len(losses), at.promise.confidence, test_of, bounds=at.promise.bounds)
    return Proof(at.promise, len(losses), float(losses.mean()), p_value, least)


def _outcome(
    learn: CalibrationTable,
    test: CalibrationTable,
    chosen: mess_core.Configuration | None,
    proofs: tuple[Proof, ...],
    cost: str,
    path: int,
    passed: int,
    rng: np.random.Generator,
    is_complete: bool,
) -> Guaranteed:
    final = test.exits.index(FINAL_EXIT)
    arrays = test.search_table(cost)
    shown = chosen or mess_core.Configuration((final,))
    evaluation = mess_core.evaluate(arrays, shown)
    taken = np.asarray(shown.exits)[evaluation.position]
    configuration = None
    if chosen is not None:
        configuration = found_configuration(test, evaluation.found, "input-dependent", cost)
        said = [{"guarantee": str(p.guarantee), "mean_loss": p.mean_loss, "p_value": p.p_value} for p in proofs]
        promise = {**configuration.promise, "guarantees": said}
        if "split" in learn.facts:
            promise["searched_split"] = learn.facts["split"]
        configuration = replace(configuration, promise=promise)

    images = np.arange(len(taken))
    mixture, original = (
        np.stack([table_counts[exits, images] for table_counts in (test.intersection, test.predicted)])
        for exits in (taken, np.full_like(taken, final))
    )

    def accuracy(counts: npt.NDArray[np.int64], chosen_images: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Mean IoU of resampled images (..., n)."""
        intersection, predicted = (part[chosen_images].sum(axis=-2) for part in counts)
        truth = test.ground_truth[chosen_images].sum(axis=-2)
        iou = np.where(truth > 0, intersection / np.maximum(truth + predicted - intersection, 1), np.nan)
        means: npt.NDArray[np.float64] = np.nanmean(iou, axis=-1)
        return means

    accuracies = risk.bootstrap_interval(lambda i: accuracy(mixture, i), len(taken), rng)
    drops = risk.bootstrap_interval(lambda i: accuracy(original, i) - accuracy(mixture, i), len(taken), rng)
    return Guaranteed(
        configuration=configuration,
        proofs=proofs,
        baseline_accuracy=test.mean_iou(final),
        baseline_cost=_original_cost(test, cost),
        accuracy_interval=accuracies,
        drop_interval=drops,
        searched=len(learn.images),
        held_out=len(test.images),
        path=path,
        tested=passed,
        is_complete=is_complete,
    )
