"""Configuration search over a calibration table: exits, heads, pixel and image thresholds.

`SearchTable` holds what was measured, `search` finds the best configuration in it, `evaluate` gives the exact value of
one configuration, also on another split's table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mess_core import _mess_core as native
from mess_core._arrays import as_count, as_threads

Setting = Literal["budgeted", "anytime", "input-dependent"]
Status = Literal["optimal", "infeasible", "stopped"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchTable:
    """What calibration measured: E candidate exits, n images, C classes, T pixel thresholds.

    intersection : (E, n, C) int64, pixels predicted as a class and labelled with it
    predicted : (E, n, C) int64, valid pixels predicted as a class
    ground_truth : (n, C) int64, pixels labelled with a class
    image_confidence : (E, T, n) float64 in [0, 1]
    points : (E,) int64, exit point; a configuration visits strictly increasing ones
    backbone_cost : (E,) float64, cost of the backbone up to the point, for one image
    head_cost : (E,) float64
    policy_cost : (E,) float64, cost of deciding whether to stop there

    The original final exit is one of the candidates. Any unit of cost will do, the same in all three.
    """

    intersection: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    ground_truth: npt.NDArray[np.int64]
    image_confidence: npt.NDArray[np.float64]
    points: npt.NDArray[np.int64]
    backbone_cost: npt.NDArray[np.float64]
    head_cost: npt.NDArray[np.float64]
    policy_cost: npt.NDArray[np.float64]


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
    """A configuration with its exact mean cost, accuracy (dataset mean IoU), and images that stop at each exit."""

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
class Outcome:
    """Result of a search.

    status : "optimal" (the whole space was examined), "infeasible" (and nothing in it satisfies the constraint),
        "stopped" (out of time; `found` is the best known)
    found : the best configuration, or the whole front by rising cost; may be empty
    evaluated : configurations whose accuracy was computed (depends on luck in pruning, unlike `found`)
    """

    status: Status
    found: tuple[Found, ...]
    evaluated: int

    @property
    def best(self) -> Found:
        """The only or cheapest configuration found.

        Raises LookupError when there is none.
        """
        if not self.found:
            raise LookupError(f"search: no configuration found, status {self.status}")
        return self.found[0]


def search(
    table: SearchTable,
    *,
    setting: Setting = "input-dependent",
    min_accuracy: float | None = None,
    max_cost: float | None = None,
    max_exits: int = 3,
    image_thresholds: int | None = 16,
    horizon: float | None = None,
    min_final_accuracy: float = 0.0,
    time_limit: float | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Outcome:
    """Examine every configuration; give the best one, or the Pareto front.

    Give `min_accuracy` for the least cost at that accuracy, `max_cost` for the greatest accuracy at that cost, neither
    for the front of (cost, accuracy). Both bounds are inclusive. Accuracy is mean IoU: counts are summed over images,
    divided once, and averaged over the classes that have ground truth.

    Parameters
    ----------
    table : SearchTable
        Copied only where an array has another dtype.
    setting : {"budgeted", "anytime", "input-dependent"}
        One exit for all images; all chosen exits in turn; or each image stops at the first exit that is sure enough and
        pays backbone, heads and policies up to there.
    min_accuracy, max_cost : float, optional
        The constraint.
    max_exits : int
        Exits of a configuration, the last one included.
    image_thresholds : int, optional
        Thresholds tried at each gate: that many quantiles of the observed image confidences, or None for all of them.
    horizon : float, optional
        Anytime only: accuracy is the expected accuracy of the newest prediction when the run is cut off at a cost drawn
        uniformly from 0 to this (default: the largest backbone cost in the table).
    min_final_accuracy : float
        Anytime only: least accuracy of the last prediction.
    time_limit : float, optional
        Seconds; the outcome is then "stopped", with the best known configuration.
    threads : int, optional
        All cores by default; what is found does not depend on it.
    progress : callable, optional
        Called about 20 times a second with (items done, items in all).

    Returns
    -------
    Outcome

    Raises
    ------
    ValueError
        A table that contradicts itself (the array is named), both constraints at once, or an option out of range.
    KeyboardInterrupt
        Ctrl-C, within a fraction of a second.
    """
    if min_accuracy is not None and max_cost is not None:
        raise ValueError("min_accuracy: expected None beside max_cost, got both")
    arrays = _arrays(table)
    status, found, evaluated = native.search(
        arrays,
        setting,
        _horizon(table, horizon),
        float(min_final_accuracy),
        None if min_accuracy is None else float(min_accuracy),
        None if max_cost is None else float(max_cost),
        as_count("max_exits", max_exits),
        None if image_thresholds is None else as_count("image_thresholds", image_thresholds),
        None if time_limit is None else float(time_limit),
        as_threads(threads),
        progress,
    )
    return Outcome(status, tuple(_found(*entry) for entry in found), evaluated)


def evaluate(
    table: SearchTable,
    configuration: Configuration,
    *,
    setting: Setting = "input-dependent",
    horizon: float | None = None,
) -> Evaluation:
    """Exact cost and accuracy of one configuration, image by image.

    Parameters
    ----------
    table : SearchTable
        Of any split; the configuration's indices must mean the same exits and pixel thresholds in it.
    configuration : Configuration
    setting, horizon
        As in `search`.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        The configuration does not fit the table or the setting.
    """
    gates = [(gate.pixel_threshold, float(gate.image_threshold)) for gate in configuration.gates]
    cost, accuracy, stopped, position = native.evaluate(
        _arrays(table), setting, _horizon(table, horizon), list(configuration.exits), gates
    )
    found = Found(configuration, cost, accuracy, tuple(stopped))
    return Evaluation(found, np.asarray(position, dtype=np.int64))


def _arrays(table: SearchTable) -> tuple[Any, ...]:
    def converted(name: str, dtype: type[np.generic], ndim: int) -> npt.NDArray[Any]:
        array = np.asarray(getattr(table, name))
        kinds = "iu" if dtype is np.int64 else "fiu"
        if array.dtype.kind not in kinds:
            raise TypeError(f"{name}: expected {np.dtype(dtype)}, got dtype {array.dtype}")
        if array.ndim != ndim:
            raise ValueError(f"{name}: expected {ndim} dimensions, got shape {array.shape}")
        if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{name}: expected counts that fit into int64, got {array.max()}")
        return np.require(array, dtype, ["ALIGNED"])

    return (
        converted("intersection", np.int64, 3),
        converted("predicted", np.int64, 3),
        converted("ground_truth", np.int64, 2),
        converted("image_confidence", np.float64, 3),
        converted("points", np.int64, 1),
        converted("backbone_cost", np.float64, 1),
        converted("head_cost", np.float64, 1),
        converted("policy_cost", np.float64, 1),
    )


def _horizon(table: SearchTable, horizon: float | None) -> float:
    if horizon is not None:
        return float(horizon)
    costs = np.asarray(table.backbone_cost, dtype=np.float64)
    return float(costs.max()) if costs.size else 0.0


def _found(exits: list[int], gates: list[tuple[int, float]], cost: float, accuracy: float, stopped: list[int]) -> Found:
    configuration = Configuration(tuple(exits), tuple(Gate(pixel, image) for pixel, image in gates))
    return Found(configuration, cost, accuracy, tuple(stopped))
