"""What a search is asked for, in the words of the command line: targets and settings, and how flags become them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from mess.calibration.table import CalibrationTable
from mess.progress import Bar
from mess.searching.cluster import on_ray
from mess.searching.solve import SearchResult, search
from mess_core import Metric, Progress, Setting

Engine = Literal["local", "ray"]
"""Who does a batch job: this process, or workers of a Ray cluster (`mess.cluster`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What to look for, see `mess.search`; nothing given means the whole front."""

    max_drop: float | None = None
    min_accuracy: float | None = None
    max_cost: float | None = None
    max_cost_ratio: float | None = None

    @property
    def minimises_cost(self) -> bool:
        """Whether accuracy is what is bounded."""
        return self.max_drop is not None or self.min_accuracy is not None


STANDARD_TARGETS = {
    "drop-0.1pp": Target(max_drop=0.001),
    "drop-1pp": Target(max_drop=0.01),
    "best-at-1x": Target(max_cost_ratio=1.0),
}
"""What `mess search` looks for when no target is given: the three rows of the paper's table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """How to search, see `mess.search`; the target comes beside it.

    Attributes:
        front_seconds: limit for a front when `time_limit` does not say; it certifies how complete the front is by then.
        threads: cores, of each worker when `engine` is `ray`.
        workers: see `mess.cluster`.
    """

    setting: Setting = "input-dependent"
    cost: str = "macs"
    metric: Metric = "mean-iou"
    max_exits: int = 3
    image_thresholds: int | None = None
    resolution: float = 0.001
    required_exits: tuple[str, ...] = ()
    forbidden_exits: tuple[str, ...] = ()
    min_share: float = 0.0
    max_class_drop: Mapping[str, float] = field(default_factory=dict)
    cost_limits: Mapping[str, float] = field(default_factory=dict)
    time_limit: float | None = None
    front_seconds: float = 10.0
    threads: int | None = None
    engine: Engine = "local"
    workers: int | None = None

    def search(
        self, table: CalibrationTable, target: Target, bar: Bar | None = None, journal: Path | None = None, **other: Any
    ) -> SearchResult:
        """One search with these settings; `other` takes precedence."""
        is_front = target == Target()
        asked = {**asdict(target), **{f.name: getattr(self, f.name) for f in fields(self)}}
        asked["time_limit"] = self.time_limit if self.time_limit is not None or not is_front else asked["front_seconds"]
        engine, workers = asked.pop("engine"), asked.pop("workers")
        if engine == "ray":
            asked["spread"] = on_ray(workers=workers, threads=self.threads or 1)
        del asked["front_seconds"]
        asked |= {"journal": journal, "progress": None if bar is None else lambda state: show(bar, state, target)}
        return search(table, **(asked | other))


COSTS = {"latency": "latency_ms", "onnxruntime": "onnxruntime_ms", "openvino": "openvino_ms", "size": "size_mb"}
"""Columns that flags have shorter names for."""

LIMITS = {
    "max_exits": "max-exits",
    "image_thresholds": "image-thresholds",
    "required_exits": "require",
    "forbidden_exits": "forbid",
    "min_share": "min-share",
    "max_class_drop": "class-drop",
    "cost_limits": "cost-limit",
}
"""Settings that bound the answer beside the target, with their flags."""


def differing(settings: SearchSettings) -> list[str]:
    """Names of flags by which a search differs from what is usual, but for who does it (engine, workers, threads)."""
    usual = SearchSettings()
    found = [f.name for f in fields(settings) if getattr(settings, f.name) != getattr(usual, f.name)]
    return [LIMITS.get(n, n).replace("_", "-") for n in found if n not in ("engine", "workers", "threads")]


def show(bar: Bar, state: Progress, target: Target | None = None) -> None:
    """How far a search is, on a bar: what was looked at, the best and what bounds it, the gap between the two."""
    known = "" if state.cost is None else f", best {state.cost:.4g} / {state.accuracy:.2%}"
    gap = "" if state.gap > 1 else f", gap {state.gap:.2%} certified"
    if gap and state.cost is not None and state.accuracy is not None and target not in (None, Target()):
        least, most = state.cost * (1 - state.gap), min(1.0, state.accuracy * (1 + state.gap))
        gap += f": none below {least:.4g}" if target.minimises_cost else f": none above {most:.2%}"
    bar.set(state.done, state.total, f"{state.explored:,} explored{known}{gap}")


def targets(
    *,
    accuracy_drop: float | None = None,
    min_accuracy: float | None = None,
    budget: str | None = None,
    front: bool = False,
) -> list[tuple[str, Target]]:
    """The target that flags ask for, by name: one, or none.

    Args:
        accuracy_drop: percentage points.
        min_accuracy: percent.
        budget: `0.5x`, a share of the original's cost, or a cost.

    Raises:
        ValueError: several, or one out of range; names the flag.
    """
    in_range("accuracy-drop", accuracy_drop, 0, math.nextafter(100, 0), "percentage points, 0 to below 100, such as 1")
    in_range("min-accuracy", min_accuracy, 1, 100, "percent, such as 60")
    ratio, limit = _budget(budget)
    wanted = {
        f"drop-{accuracy_drop or 0:g}pp": None if accuracy_drop is None else Target(max_drop=accuracy_drop / 100),
        f"miou-{min_accuracy or 0:g}": None if min_accuracy is None else Target(min_accuracy=min_accuracy / 100),
        f"best-at-{budget}": None if budget is None else Target(max_cost_ratio=ratio, max_cost=limit),
        "front": Target() if front else None,
    }
    given = [(name, target) for name, target in wanted.items() if target is not None]
    if len(given) > 1:
        named = "--accuracy-drop, --min-accuracy, --budget, --front"
        raise ValueError(f"{named}: expected at most one, got {len(given)}")
    return given


def settings(
    *,
    setting: str = "input-dependent",
    cost: str = "macs",
    metric: str = "mean-iou",
    max_exits: int = 3,
    image_thresholds: int = 0,
    require: Sequence[str] = (),
    forbid: Sequence[str] = (),
    min_share: float = 0.0,
    class_drop: Sequence[str] = (),
    cost_limit: Sequence[str] = (),
    resolution: float = 0.1,
    time_limit: float | None = None,
    threads: int | None = None,
    engine: str = "local",
    workers: int | None = None,
) -> SearchSettings:
    """The settings that flags ask for; see `mess search --help`.

    Raises:
        ValueError: a word that is unknown, or what only Ray knows without it; names the flag.
    """
    if workers is not None and engine != "ray":
        raise ValueError("--workers: expected --engine ray beside it")
    return SearchSettings(
        setting=choice("setting", setting, get_args(Setting)),
        cost=COSTS.get(cost, cost),
        metric=choice("metric", metric, get_args(Metric)),
        max_exits=max_exits,
        image_thresholds=image_thresholds or None,
        resolution=resolution / 100,
        required_exits=tuple(require),
        forbidden_exits=tuple(forbid),
        min_share=min_share,
        max_class_drop=_once("class-drop", [_class_drop(text) for text in class_drop]),
        cost_limits=_once("cost-limit", [_cost_limit(text) for text in cost_limit]),
        time_limit=time_limit,
        threads=threads,
        engine=choice("engine", engine, get_args(Engine)),
        workers=workers,
    )


Word = TypeVar("Word", bound=str)


def choice(option: str, value: str, known: tuple[Word, ...]) -> Word:
    """The word among `known` that equals `value`; ValueError naming the flag when there is none."""
    for word in known:
        if value == word:
            return word
    raise ValueError(f"--{option}: expected one of {', '.join(known)}, got {value!r}")


def in_range(option: str, value: float | None, least: float, most: float, expected: str) -> None:
    """ValueError naming the flag unless `value` is None or within."""
    if value is not None and not least <= value <= most:
        raise ValueError(f"--{option}: expected {expected}, got {value:g}")


def _budget(text: str | None) -> tuple[float | None, float | None]:
    """(share of the original's cost, cost): one of them."""
    if text is None:
        return None, None
    try:
        value = float(text.lower().removesuffix("x"))
    except ValueError:
        value = -1.0
    if not value > 0:
        raise ValueError(f"--budget: expected a share such as 0.5x, or a cost, got {text!r}")
    return (value, None) if text.lower().endswith("x") else (None, value)


def _class_drop(text: str) -> tuple[str, float]:
    name, separator, points = text.rpartition("=")
    try:
        return name if separator else "", float(points) / 100
    except ValueError:
        raise ValueError(f"--class-drop: expected CLASS=PERCENTAGE_POINTS, got {text!r}") from None


def _once(option: str, given: list[tuple[str, float]]) -> dict[str, float]:
    by_name = dict(given)
    if len(by_name) < len(given):
        raise ValueError(f"--{option}: expected each name once, got {', '.join(name for name, _ in given)}")
    return by_name


def _cost_limit(text: str) -> tuple[str, float]:
    name, _, share = text.rpartition("=")
    column, colon, statistic = name.rpartition(":")
    try:
        return f"{COSTS.get(column, column)}{colon}{statistic}", float(share.lower().removesuffix("x"))
    except ValueError:
        said = "STATISTIC=SHARE such as p95=1.1x, or COST:STATISTIC=SHARE"
        raise ValueError(f"--cost-limit: expected {said}, got {text!r}") from None
