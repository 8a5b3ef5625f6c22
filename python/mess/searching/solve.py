"""From a calibration table and a target to configurations: the exact search of `mess_core`, in the user's words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mess_core
from mess.calibration.table import CalibrationTable
from mess.deployment.configuration import ChosenExit, Configuration
from mess.exit_names import FINAL_EXIT
from mess.files import WEIGHTS
from mess.runtime import watch
from mess_core import Found, Metric, Outcome, Progress, SearchProblem, Setting, Status

_SLACK = 1e-12
"""Of limits that are relative to the final exit."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Configurations found: the best one, or the front by rising cost.

    Attributes:
        baseline_accuracy, baseline_cost: the final exit alone.
        nearest: when infeasible, what comes nearest to the target.
        outcome: the same in indices, with the proof: bound, gap, what was explored and covered.
    """

    configurations: tuple[Configuration, ...]
    baseline_accuracy: float
    baseline_cost: float
    nearest: Configuration | None
    outcome: Outcome

    @property
    def status(self) -> Status:
        """`optimal`, `infeasible` or `stopped`, see `mess_core.Outcome`."""
        return self.outcome.status

    @property
    def best(self) -> Configuration:
        """The only or cheapest configuration; LookupError when there is none."""
        if not self.configurations:
            found = "was found" if self.status == "stopped" else "satisfies the target"
            raise LookupError(f"search: no configuration {found} (status {self.status})")
        return self.configurations[0]


class SearchInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a search; `result` is what it had by then, as after a time limit: a `SearchResult`."""

    def __init__(self, result: SearchResult) -> None:
        super().__init__(f"search: {result.status}, {len(result.configurations)} found, gap {result.outcome.gap:.3g}")
        self.result = result

    def __reduce__(self) -> tuple[type[SearchInterrupted], tuple[SearchResult]]:
        return type(self), (self.result,)


@dataclass(frozen=True, slots=True)
class Report:
    """A configuration on a table: exact accuracy, in the metric it was evaluated by, and mean cost; share of images
    per exit, in the exits' order; each class's IoU."""

    accuracy: float
    cost: float
    shares: tuple[float, ...]
    iou: tuple[float, ...]


def search(
    table: CalibrationTable,
    *,
    setting: Setting = "input-dependent",
    max_drop: float | None = None,
    min_accuracy: float | None = None,
    max_cost: float | None = None,
    max_cost_ratio: float | None = None,
    resolution: float = 0.001,
    cost: str = "macs",
    metric: Metric = "mean-iou",
    max_exits: int = 3,
    image_thresholds: int | None = None,
    required_exits: Sequence[str] = (),
    forbidden_exits: Sequence[str] = (),
    min_share: float = 0.0,
    max_class_drop: Mapping[str, float] | None = None,
    cost_limits: Mapping[str, float] | None = None,
    known: Sequence[mess_core.Configuration] = (),
    journal: str | Path | None = None,
    time_limit: float | None = None,
    threads: int | None = None,
    progress: Callable[[Progress], object] | None = None,
    spread: Callable[[SearchProblem], Outcome] | None = None,
) -> SearchResult:
    """Find the best configuration for a target, or the whole trade-off when no target is given. Runs no network.

    Limits that are relative to the final exit (`max_drop`, `max_cost_ratio`, `max_class_drop`, `cost_limits`) are met
    to within 1e-12, so that what is exactly at the limit is within it however the products are rounded.

    Args:
        table: from `mess.calibrate`, of a split that is not the one results are reported on.
        setting: `budgeted`, `anytime` or `input-dependent`.
        max_drop: least cost with mean IoU at most this much below the final exit's (0.01 is 1 percentage point). In the
            anytime setting: best expected accuracy whose last prediction drops at most this much.
        min_accuracy: least cost with at least this accuracy.
        max_cost: greatest accuracy at no more than this cost, in the column's unit.
        max_cost_ratio: the same as a share of the final exit's cost.
        resolution: of a front, as a share of the final exit's cost: of all configurations within a step of this size,
            the most accurate; 0 for all.
        cost: column of the table: `macs`, `latency_ms`, or where they were measured `onnxruntime_ms`, `openvino_ms`,
            `size_mb`.
        metric: `mean-iou`, `pixel-accuracy`, `mean-class-accuracy` or `frequency-weighted-iou`.
        max_exits: exits of a configuration, the last one included.
        required_exits, forbidden_exits: names of exits that every, or no, configuration has.
        max_class_drop: by class name, how much its IoU may be below the final exit's (0.01 is 1 percentage point).
        cost_limits: by statistic (`p95`, any other percentile, `max`, `mean`, `total` of all exits whatever images do),
            the most that an image may cost, as a share of the final exit's cost; of another column of the table where
            its name stands in front (`latency_ms:p95`).
        image_thresholds, min_share, known, journal, time_limit, threads, progress: see `mess_core.search`.
        spread: who does it, instead of this process: `mess.searching.on_ray()`.

    Returns:
        The result; `result.best` is what `mess.deploy` takes.

    Raises:
        ValueError: several targets at once, a column that the table lacks, or an option out of range.
        SearchInterrupted: a KeyboardInterrupt: Ctrl-C; its `result` is the best known, with a certified gap. (With
            `spread` it is a plain KeyboardInterrupt.)
    """
    targets = {
        "max_drop": max_drop,
        "min_accuracy": min_accuracy,
        "max_cost": max_cost,
        "max_cost_ratio": max_cost_ratio,
    }
    given = [name for name, value in targets.items() if value is not None]
    if len(given) > 1:
        raise ValueError(f"{given[0]}: expected at most one target, got {' and '.join(given)}")
    if max_drop is not None and not max_drop < 1:
        raise ValueError(f"max_drop: expected a share below 1 (0.01 is 1 percentage point), got {max_drop}")
    check_required(table, required_exits, forbidden_exits)
    final = table.exits.index(FINAL_EXIT)
    limits = [(*_column_and_statistic(name, cost), ratio) for name, ratio in (cost_limits or {}).items()]
    columns = list(dict.fromkeys([cost, *(column for column, _, _ in limits)]))
    arrays = table.search_table(*columns)
    # from the same arithmetic as the search, so that the bounds it implies are met exactly
    single = mess_core.Configuration((final,))
    baselines = {
        column: mess_core.evaluate(arrays, single, setting="budgeted", metric=metric, cost_column=index).found
        for index, column in enumerate(columns)
    }
    original = {column: found.cost for column, found in baselines.items()}
    baseline_accuracy, baseline_cost = baselines[cost].accuracy, original[cost]
    if not resolution >= 0:
        raise ValueError(f"resolution: expected a share of the final exit's cost, 0 or more, got {resolution}")
    if max_cost_ratio is not None:
        max_cost = max_cost_ratio * baseline_cost * (1 + _SLACK)
    min_final_accuracy = 0.0
    if max_drop is not None:
        if setting == "anytime":
            min_final_accuracy, max_cost = baseline_accuracy - max_drop - _SLACK, float("inf")
        else:
            min_accuracy = baseline_accuracy - max_drop - _SLACK
    interruption: BaseException | None = None
    try:
        outcome = mess_core.search(
            arrays,
            setting=setting,
            min_accuracy=min_accuracy,
            max_cost=max_cost,
            resolution=resolution * baseline_cost,
            metric=metric,
            max_exits=max_exits,
            image_thresholds=image_thresholds,
            required_exits=[index_of("exits", table.exits, name) for name in required_exits],
            forbidden_exits=[index_of("exits", table.exits, name) for name in forbidden_exits],
            min_share=min_share,
            min_class_iou=_class_floors(table, final, max_class_drop or {}),
            cost_limits=[
                mess_core.CostLimit(ratio * original[column] * (1 + _SLACK), statistic, columns.index(column))
                for column, statistic, ratio in limits
            ],
            horizon=baseline_cost,
            min_final_accuracy=min_final_accuracy,
            known=known,
            journal=journal,
            time_limit=time_limit,
            threads=threads,
            progress=progress,
            spread=spread,
        )
    except mess_core.SearchInterrupted as stopped:
        outcome, interruption = stopped.outcome, stopped
    near = outcome.nearest
    result = SearchResult(
        configurations=tuple(found_configuration(table, found, setting, cost, metric) for found in outcome.found),
        baseline_accuracy=baseline_accuracy,
        baseline_cost=baseline_cost,
        nearest=None if near is None else found_configuration(table, near, setting, cost, metric),
        outcome=outcome,
    )
    if interruption is not None:
        raise SearchInterrupted(result) from interruption
    return result


def _column_and_statistic(name: str, cost: str) -> tuple[str, str]:
    """Of `latency_ms:p95`, or of `p95` of the column that is searched."""
    column, _, statistic = name.rpartition(":")
    return column or cost, statistic


def _class_floors(table: CalibrationTable, final: int, drops: Mapping[str, float]) -> dict[int, float]:
    """By number of the class, the least IoU."""
    iou, floors = table.iou(final), {}
    for name, drop in drops.items():
        index = index_of("class_names", table.class_names, name)
        if not math.isfinite(drop):
            raise ValueError(f"max_class_drop: expected a number for {name!r}, got {drop}")
        if math.isnan(iou[index]):
            raise ValueError(f"max_class_drop: expected classes with ground truth in the table, got {name!r}")
        floors[index] = min(max(0.0, float(iou[index]) - drop - _SLACK), 1.0)
    return floors


def evaluate(
    configuration: Configuration, table: CalibrationTable, *, cost: str = "macs", metric: Metric | None = None
) -> Report:
    """What a configuration does on a table, of any split: the honest numbers come from a split the search did not see.

    Args:
        cost: column of the table.
        metric: of the accuracy; by default the one that the configuration was searched by, else mean IoU.

    Raises:
        ValueError: the configuration has exits or pixel thresholds that the table lacks, or another policy.
    """
    indices = indices_of(configuration, table)
    evaluation = mess_core.evaluate(
        table.search_table(cost),
        indices,
        setting=configuration.setting,
        metric=metric_of(configuration) if metric is None else metric,
        horizon=table.total_cost(table.exits.index(FINAL_EXIT), cost),
    )
    images = len(table.images)
    taken = [indices.exits[position] for position in evaluation.position]
    mixture = _mixture_iou(table, taken)
    shares = tuple(count / images for count in evaluation.found.stopped)
    return Report(evaluation.found.accuracy, evaluation.found.cost, shares, mixture)


def indices_of(configuration: Configuration, table: CalibrationTable) -> mess_core.Configuration:
    """A configuration by the numbers that its exits and pixel thresholds have in a table.

    Raises:
        ValueError: the table lacks one of them, or has another policy.
    """
    if configuration.model != table.model:
        raise ValueError(f"table: expected exit points {configuration.model}, got {table.model}")
    if not configuration.decides_by(table.policy):
        raise ValueError(
            f"table: expected confidences of {configuration.policy}, got {table.policy}; calibrate both splits alike"
        )
    exits, gates = [], []
    for chosen in configuration.exits:
        exits.append(index_of("exits", table.exits, chosen.exit))
        if chosen.pixel_threshold is not None and chosen.image_threshold is not None:
            pixel = index_of("pixel_thresholds", table.pixel_thresholds, chosen.pixel_threshold)
            gates.append(mess_core.Gate(pixel, chosen.image_threshold))
    return mess_core.Configuration(tuple(exits), tuple(gates))


def metric_of(configuration: Configuration) -> Metric:
    """What a configuration was searched by."""
    metric: Metric = configuration.promise.get("metric", "mean-iou")
    return metric


def _mixture_iou(table: CalibrationTable, taken: list[int]) -> tuple[float, ...]:
    """Per-class IoU when image i takes exit taken[i]; NaN for classes without ground truth."""
    images = range(len(taken))
    intersection = sum(table.intersection[e, i] for e, i in zip(taken, images, strict=True))
    predicted = sum(table.predicted[e, i] for e, i in zip(taken, images, strict=True))
    truth = table.ground_truth.sum(axis=0)
    union = truth + predicted - intersection
    return tuple(float(i / u) if t else float("nan") for i, u, t in zip(intersection, union, truth, strict=True))


def check_required(table: CalibrationTable, required: Sequence[str], forbidden: Sequence[str]) -> None:
    """ValueError, by name, for exits that no configuration has together."""
    both = sorted(set(required) & set(forbidden))
    if both:
        raise ValueError(f"required_exits, forbidden_exits: expected different exits, got {both[0]!r} in both")
    at: dict[int, str] = {}
    for name in dict.fromkeys(required):
        point = int(table.points[index_of("exits", table.exits, name)])
        if point in at:
            raise ValueError(f"required_exits: expected one at a point, got {at[point]!r} and {name!r} at one")
        at[point] = name


def exit_accuracy(table: CalibrationTable, exit_index: int, metric: Metric) -> float:
    """Accuracy when all images take one exit."""
    if metric == "mean-iou":
        return table.mean_iou(exit_index)
    arrays = table.search_table(next(iter(table.costs)))
    single = mess_core.Configuration((exit_index,))
    return mess_core.evaluate(arrays, single, setting="budgeted", metric=metric).found.accuracy


def found_configuration(
    table: CalibrationTable, found: Found, setting: Setting, cost: str, metric: Metric = "mean-iou"
) -> Configuration:
    """What `mess_core` found, by names, and what it reaches on the table."""
    gates = [*found.configuration.gates, None] if found.configuration.gates else [None] * len(found.configuration.exits)
    chosen = tuple(
        ChosenExit(
            exit=table.exits[index],
            pixel_threshold=None if gate is None else table.pixel_thresholds[gate.pixel_threshold],
            image_threshold=None if gate is None else gate.image_threshold,
        )
        for index, gate in zip(found.configuration.exits, gates, strict=True)
    )
    images = len(table.images)
    promise = {
        "split": table.facts.get("split"),
        "accuracy": found.accuracy,
        "metric": metric,
        "cost": found.cost,
        "cost_column": cost,
        "shares": [count / images for count in found.stopped],
    }
    if WEIGHTS in table.facts:
        promise[WEIGHTS] = table.facts[WEIGHTS]
    first = found.configuration.gates[0] if found.configuration.gates else None
    if first is not None:  # what `mess.runtime.watch` compares with
        confidence = table.image_confidence[found.configuration.exits[0], first.pixel_threshold]
        promise[watch.PROMISE] = watch.histogram(confidence).tolist()
    if setting == "anytime":  # accuracy is the mean over cut-offs then; this is what the last prediction reaches
        promise["last_accuracy"] = exit_accuracy(table, found.configuration.exits[-1], metric)
    return Configuration(setting=setting, model=table.model, exits=chosen, policy=table.policy, promise=promise)


def index_of(what: str, known: tuple[object, ...], wanted: object) -> int:
    """Where an exit, a class or a threshold is in the table; ValueError when it is not."""
    if wanted not in known:
        raise ValueError(f"table: {what}: expected {wanted!r} among them, got {list(known)[:8]}")
    return known.index(wanted)
