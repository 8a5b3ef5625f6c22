"""Configuration search over a calibration table: exits, heads, pixel and image thresholds.

`SearchTable` holds what was measured, `search` finds the best configuration in it, `evaluate` gives the exact value of
one configuration, also on another split's table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mess_core import _mess_core as native
from mess_core._arrays import as_array, as_count, as_number, as_threads, as_word

Setting = Literal["budgeted", "anytime", "input-dependent"]
Metric = Literal["mean-iou", "pixel-accuracy", "mean-class-accuracy", "frequency-weighted-iou"]
Status = Literal["optimal", "infeasible", "stopped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchTable:
    """What calibration measured: E candidate exits, n images, C classes, T pixel thresholds, K cost columns.

    Attributes
    ----------
    intersection
        (E, n, C) int64, pixels predicted as a class and labelled with it
    predicted
        (E, n, C) int64, valid pixels predicted as a class
    ground_truth
        (n, C) int64, pixels labelled with a class
    image_confidence
        (E, T, n) float64 in [0, 1]
    points
        (E,) int64, exit point; a configuration visits strictly increasing ones
    backbone_cost
        (E,) or (K, E) float64, cost of the backbone up to the point, for one image
    head_cost
        the same shape
    policy_cost
        the same shape, cost of deciding whether to stop there
    image_weight
        (n,) int64, how often each image counts, at least 1; None for once

    The original final exit is one of the candidates. Each cost column has one unit, any will do. Arrays of these dtypes
    are read where they lie, memory-mapped ones too.
    """

    intersection: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    ground_truth: npt.NDArray[np.int64]
    image_confidence: npt.NDArray[np.float64]
    points: npt.NDArray[np.int64]
    backbone_cost: npt.NDArray[np.float64]
    head_cost: npt.NDArray[np.float64]
    policy_cost: npt.NDArray[np.float64]
    image_weight: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Gate:
    """`pixel_threshold` is an index into the table's T thresholds; an image stops when its image confidence is at least
    `image_threshold`."""

    pixel_threshold: int
    image_threshold: float


@dataclass(frozen=True, slots=True)
class Configuration:
    """Candidate exits in order of execution, and a gate for each but the last (none unless input-dependent)."""

    exits: tuple[int, ...]
    gates: tuple[Gate, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """A configuration with its exact mean cost, its accuracy (see `search`), and images that stop at each exit."""

    configuration: Configuration
    cost: float
    accuracy: float
    stopped: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`found` on a table, and the position in the configuration's exits at which each image stops, (n,) int64."""

    found: Found
    position: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CostLimit:
    """An upper bound, inclusive, on a number of a cost column.

    Attributes
    ----------
    at_most
        in the column's unit
    statistic
        "mean" over images; "p95", "max" or any "pNN": what at least that share of the images does not exceed; "total":
        backbone, heads and policies of all exits, whatever the images do (for memory)
    column
        index of the cost column
    """

    at_most: float
    statistic: str = "mean"
    column: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a search is.

    Attributes
    ----------
    done, total
        tasks of this pass
    next_gap
        gap that this pass will certify
    gap
        gap certified so far, infinite before the first pass ended and while nothing is known
    covered
        configurations that this pass examined or excluded
    cost, accuracy
        of the best configuration known (of a front: the most accurate), None before the first
    explored
        sets of configurations bounded so far
    evaluated
        configurations evaluated so far
    """

    done: int
    total: int
    next_gap: float
    gap: float
    covered: float
    cost: float | None
    accuracy: float | None
    explored: int
    evaluated: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a search.

    Attributes
    ----------
    status
        "optimal" (proven: nothing in the space is better; the front is complete), "infeasible" (proven: nothing
        satisfies target and limits), "stopped" (out of time; `found` is the best known)
    found
        the best configuration, or the whole front by rising cost; may be empty
    nearest
        when infeasible, the configuration within the limits that comes nearest to the target, or None; where the time
        ended meanwhile, the nearest that was found by then
    bound
        proven: no configuration costs less than this, or is more accurate than this; of a front: no configuration is
        more accurate, by more than this, than the front at its cost, or at less than a `resolution` above its cost
    gap
        |bound - value| / |value| of the best; of a front, `bound`. 0 when optimal or infeasible, infinite when stopped
        before anything was found
    explored
        sets of configurations whose bound was computed, and
    evaluated
        configurations whose exact value was; both depend on luck in pruning, unlike `found`
    covered
        configurations examined or excluded in the last pass, of
    space
        configurations in all
    """

    status: Status
    found: tuple[Found, ...]
    nearest: Found | None
    bound: float
    gap: float
    explored: int
    evaluated: int
    covered: float
    space: float

    @property
    def best(self) -> Found:
        """The only or cheapest configuration found.

        Raises LookupError when there is none; it names what comes nearest.
        """
        if not self.found:
            near = self.nearest
            said = f"; nearest: cost {near.cost:g}, accuracy {near.accuracy:g}" if near else ""
            raise LookupError(f"search: no configuration found, status {self.status}{said}")
        return self.found[0]


class SearchInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a search; `outcome` is what it had by then, as after a time limit: an `Outcome`."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(f"search: {outcome.status}, {len(outcome.found)} found, gap {outcome.gap:.3g}")
        self.outcome = outcome

    def __reduce__(self) -> tuple[type[SearchInterrupted], tuple[Outcome]]:
        return type(self), (self.outcome,)


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchProblem:
    """One search, for others to do: what `search(..., spread=...)` hands over. Can be pickled, but for `progress`.

    Attributes
    ----------
    table, known, journal, time_limit, threads, progress
        as `search` got them
    query
        setting and scoring, objective, space, limits, as the core takes them
    """

    table: SearchTable
    query: tuple[native._Scoring, native._Objective, native._Space, native._Limits]
    known: tuple[Configuration, ...] = ()
    journal: str | None = None
    time_limit: float | None = None
    threads: int | None = None
    progress: Callable[[Progress], object] | None = None

    @property
    def nearest(self) -> SearchProblem | None:
        """The search for what comes nearest to the target, when nothing satisfies it; None for a front."""
        opposite = {"minimize-cost": ("maximize-accuracy", np.inf), "maximize-accuracy": ("minimize-cost", -np.inf)}
        scoring, (name, _), space, limits = self.query
        if name not in opposite:
            return None
        progress = self.progress
        # what is looked for is not what was asked for: its gap is not told
        quiet = None if progress is None else lambda state: progress(replace(state, gap=np.inf))
        return replace(self, query=(scoring, opposite[name], space, limits), known=(), journal=None, progress=quiet)


def search(
    table: SearchTable,
    *,
    setting: Setting = "input-dependent",
    min_accuracy: float | None = None,
    max_cost: float | None = None,
    resolution: float = 0.0,
    metric: Metric = "mean-iou",
    cost_column: int = 0,
    max_exits: int = 3,
    image_thresholds: int | None = None,
    required_exits: Sequence[int] = (),
    forbidden_exits: Sequence[int] = (),
    min_share: float = 0.0,
    min_class_iou: Mapping[int, float] | None = None,
    cost_limits: Sequence[CostLimit] = (),
    horizon: float | None = None,
    min_final_accuracy: float = 0.0,
    known: Sequence[Configuration] = (),
    journal: str | PathLike[str] | None = None,
    part: tuple[int, int] = (0, 1),
    time_limit: float | None = None,
    threads: int | None = None,
    progress: Callable[[Progress], object] | None = None,
    spread: Callable[[SearchProblem], Outcome] | None = None,
) -> Outcome:
    """Find the best configuration, or the Pareto front, and prove that nothing in the space is better.

    Give `min_accuracy` for the least cost at that accuracy, `max_cost` for the greatest accuracy at that cost, neither
    for the front of (cost, accuracy). Both bounds are inclusive. Counts are summed over images and divided once.

    The space has every chain of up to `max_exits` exits at increasing points and, in the input-dependent setting, every
    pixel threshold and observed image confidence at each exit but the last; each exit gets at least one image. Ties go
    to the lower cost or higher accuracy, then to fewer exits, smaller indices and larger image thresholds: the answer
    is the same for any number of threads and any history.

    Parameters
    ----------
    table : SearchTable
        Copied only where an array has another dtype.
    setting : {"budgeted", "anytime", "input-dependent"}
        One exit for all images; all chosen exits in turn; or each image stops at the first exit that is sure enough and
        pays backbone, heads and policies up to there.
    min_accuracy, max_cost : float, optional
        The target.
    resolution : float
        Of a front: for every multiple of this cost, the most accurate configuration that costs no more, so that any
        configuration has one in the front that is at least as accurate and costs less than `resolution` more. 0 gives
        every point of the front.
    metric : {"mean-iou", "pixel-accuracy", "mean-class-accuracy", "frequency-weighted-iou"}
        What accuracy is, over the classes that have ground truth.
    cost_column : int
        Column of the table's costs that is minimised or bounded by `max_cost`.
    max_exits : int
        Exits of a configuration, the last one included.
    image_thresholds : int, optional
        Thresholds tried at each gate: None for all observed image confidences, or that many of their quantiles.
    required_exits, forbidden_exits : sequence of int
        Exits that every, or no, configuration has.
    min_share : float
        Least share of the images at each exit, in [0, 1].
    min_class_iou : mapping from class to float, optional
        Least IoU of single classes (anytime: of the last prediction).
    cost_limits : sequence of CostLimit
        Upper bounds on mean, percentile or total cost, of any column.
    horizon : float, optional
        Anytime only: accuracy is the expected accuracy of the newest prediction when the run is cut off at a cost drawn
        uniformly from 0 to this (default: the largest backbone cost in the table).
    min_final_accuracy : float
        Anytime only: least accuracy of the last prediction.
    known : sequence of Configuration
        Where to begin: answers of similar searches (another device's costs, a part of this space) make it faster.
    journal : path, optional
        File in which an input-dependent search notes what it has proven; called again with the same table and options
        after a kill, it goes on from there.
    part : (int, int)
        (i, m): only every m-th piece of work from the i-th on. The best of the outcomes of all m parts, in the order of
        ties above, is that of the whole; "optimal" then speaks of the part.
    time_limit : float, optional
        Seconds; the outcome is then "stopped", with the best known configuration and a certified gap.
    threads : int, optional
        All cores by default; what is found does not depend on it.
    progress : callable, optional
        Called about 20 times a second with a `Progress`.
    spread : callable, optional
        Does the search in place of this process: gets a `SearchProblem`, cuts it up with `SearchPieces`, and returns
        the outcome.

    Returns
    -------
    Outcome

    Raises
    ------
    ValueError
        A table that contradicts itself (the array is named), both targets at once, an option out of range, or a journal
        of another search.
    SearchInterrupted
        A KeyboardInterrupt: Ctrl-C, within a fraction of a second; its `outcome` is the best known, with a certified
        gap. (With `spread` it is a plain KeyboardInterrupt.)

    Notes
    -----
    Branch and bound: see `rust/mess-core/src/search/engine.rs` for the method and `bound.rs` for the proofs.
    """
    if min_accuracy is not None and max_cost is not None:
        raise ValueError("min_accuracy: expected None beside max_cost, got both")
    if min_accuracy is not None:
        objective = ("minimize-cost", as_number("min_accuracy", min_accuracy))
    elif max_cost is not None:
        objective = ("maximize-accuracy", as_number("max_cost", max_cost))
    else:
        objective = ("front", as_number("resolution", resolution))
    index, count = (as_count("part", number, least=0) for number in part) if np.shape(part) == (2,) else (0, 0)
    if not 0 <= index < count:
        raise ValueError(f"part: expected (i, m) with 0 <= i < m, got {part}")
    thresholds = None if image_thresholds is None else as_count("image_thresholds", image_thresholds)
    required, forbidden = [
        list(dict.fromkeys(as_count(name, exit_index, least=0) for exit_index in exits))
        for name, exits in (("required_exits", required_exits), ("forbidden_exits", forbidden_exits))
    ]
    floors = [
        (as_count("min_class_iou", c, least=0), as_number("min_class_iou", floor))
        for c, floor in (min_class_iou or {}).items()
    ]
    problem = SearchProblem(
        table=table,
        query=(
            _scoring(table, setting, horizon, min_final_accuracy, metric, cost_column),
            objective,
            (as_count("max_exits", max_exits), thresholds, required, forbidden, as_number("min_share", min_share)),
            (floors, [_cost_limit(limit) for limit in cost_limits]),
        ),
        known=tuple(known),
        journal=None if journal is None else fspath(journal),
        time_limit=None if time_limit is None else as_number("time_limit", time_limit),
        threads=as_threads(threads),
        progress=progress,
    )
    if spread is not None:
        if part != (0, 1):
            raise ValueError(f"part: expected none beside spread, got {part}")
        return spread(problem)
    found, interruption = native.search(
        _arrays(table),
        *problem.query,
        [_parts(configuration) for configuration in known],
        (index, count),
        problem.journal,
        problem.time_limit,
        problem.threads,
        None if progress is None else lambda *state: progress(_progress(*state)),
    )
    if isinstance(interruption, KeyboardInterrupt):
        raise SearchInterrupted(_outcome(found)) from interruption
    if interruption is not None:
        raise interruption
    return _outcome(found)


def evaluate(
    table: SearchTable,
    configuration: Configuration,
    *,
    setting: Setting = "input-dependent",
    metric: Metric = "mean-iou",
    cost_column: int = 0,
    horizon: float | None = None,
) -> Evaluation:
    """Exact cost and accuracy of one configuration, image by image.

    Parameters
    ----------
    table : SearchTable
        Of any split; the configuration's indices must mean the same exits and pixel thresholds in it.
    configuration : Configuration
    setting, metric, cost_column, horizon
        As in `search`.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        The configuration does not fit the table or the setting.
    """
    scoring = _scoring(table, setting, horizon, 0.0, metric, cost_column)
    cost, accuracy, stopped, position = native.evaluate(_arrays(table), scoring, _parts(configuration))
    found = Found(configuration, cost, accuracy, tuple(stopped))
    return Evaluation(found, np.asarray(position, dtype=np.int64))


def _scoring(
    table: SearchTable, setting: str, horizon: float | None, min_final_accuracy: float, metric: str, cost_column: int
) -> tuple[str, float, float, str, int]:
    column = as_count("cost_column", cost_column, least=0)
    if horizon is None:
        costs = np.asarray(table.backbone_cost, dtype=np.float64)
        costs = costs[column] if costs.ndim == 2 and column < len(costs) else costs
        horizon = float(costs.max()) if costs.size else 0.0
    return (
        as_word("setting", setting),
        as_number("horizon", horizon),
        as_number("min_final_accuracy", min_final_accuracy),
        as_word("metric", metric),
        column,
    )


def _parts(configuration: Configuration) -> tuple[list[int], list[tuple[int, float]]]:
    gates = [
        (as_count("gates", gate.pixel_threshold, least=0), as_number("gates", gate.image_threshold))
        for gate in configuration.gates
    ]
    return [as_count("exits", exit_index, least=0) for exit_index in configuration.exits], gates


def _cost_limit(limit: CostLimit) -> tuple[int, str, float, float]:
    column, name = as_count("cost_limits", limit.column, least=0), as_word("cost_limits", limit.statistic)
    if name in ("mean", "total"):
        return column, name, 0.0, as_number("cost_limits", limit.at_most)
    digits = "100" if name == "max" else name.removeprefix("p")
    if (
        not (digits.isascii() and digits.isdigit())
        or not 0 < int(digits) <= 100
        or (name != "max" and not name.startswith("p"))
    ):
        raise ValueError(f"cost_limits: expected the statistic 'mean', 'total', 'max' or 'p1' to 'p100', got {name!r}")
    return column, "quantile", int(digits) / 100, as_number("cost_limits", limit.at_most)


def _progress(
    tasks: tuple[int, int],
    gaps: tuple[float, float],
    covered: float,
    best: tuple[float, float] | None,
    explored: int,
    evaluated: int,
) -> Progress:
    cost, accuracy = best or (None, None)
    return Progress(*tasks, *gaps, covered, cost, accuracy, explored, evaluated)


def _arrays(table: SearchTable) -> tuple[Any, ...]:
    def converted(name: str, dtype: type[np.generic], ndim: int) -> npt.NDArray[Any]:
        array = as_array(name, getattr(table, name))
        kinds = "iu" if dtype is np.int64 else "fiu"
        if array.dtype.kind not in kinds:
            raise TypeError(f"{name}: expected {np.dtype(dtype)}, got dtype {array.dtype}")
        if array.ndim != ndim:
            raise ValueError(f"{name}: expected {ndim} dimensions, got shape {array.shape}")
        if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{name}: expected counts that fit into int64, got {array.max()}")
        return np.require(array, dtype, ["ALIGNED"])

    def costs(name: str) -> npt.NDArray[Any]:
        ndim = max(1, min(2, np.ndim(getattr(table, name))))
        return np.atleast_2d(converted(name, np.float64, ndim))

    return (
        converted("intersection", np.int64, 3),
        converted("predicted", np.int64, 3),
        converted("ground_truth", np.int64, 2),
        converted("image_confidence", np.float64, 3),
        converted("points", np.int64, 1),
        costs("backbone_cost"),
        costs("head_cost"),
        costs("policy_cost"),
        None if table.image_weight is None else converted("image_weight", np.int64, 1),
    )


def _outcome(given: native._Outcome) -> Outcome:
    status, found, nearest, bound, gap, explored, evaluated, covered, space = given
    return Outcome(
        status=status,
        found=tuple(_found(*entry) for entry in found),
        nearest=None if nearest is None else _found(*nearest),
        bound=bound,
        gap=gap,
        explored=explored,
        evaluated=evaluated,
        covered=covered,
        space=space,
    )


def _found(exits: list[int], gates: list[tuple[int, float]], cost: float, accuracy: float, stopped: list[int]) -> Found:
    configuration = Configuration(tuple(exits), tuple(Gate(pixel, image) for pixel, image in gates))
    return Found(configuration, cost, accuracy, tuple(stopped))
