"""What simpler ways of choosing find for the same target: what the exact search bought."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mess.calibration.table import CalibrationTable
from mess.deployment.configuration import Configuration
from mess.exit_names import FINAL_EXIT
from mess.searching.solve import SearchResult, search
from mess_core import Metric


def smaller_network(
    table: CalibrationTable, *, max_cost: float, cost: str = "macs", metric: Metric = "mean-iou"
) -> Configuration | None:
    """The most accurate plain network at no more than `max_cost`: cut off at one exit, for all images alike.

    What an input-dependent configuration of that cost must be better than. None where no exit alone costs so little.
    """
    found = search(table, setting="budgeted", max_exits=1, max_cost=max_cost, cost=cost, metric=metric)
    return found.best if found.configurations else None


Search = Callable[..., SearchResult]
"""`mess.search` with table, target and settings filled in; takes `setting`, `max_exits` and `required_exits`."""


def baselines(
    table: CalibrationTable,
    one: Search,
    *,
    max_exits: int,
    minimises_cost: bool,
    required: Sequence[str] = (),
    forbidden: Sequence[str] = (),
) -> dict[str, Configuration | None]:
    """The best configuration of three smaller spaces, each searched exactly; None where nothing meets the target.

    single exit: one static exit for all images, no decision.
    uniform: exits at points that divide the backbone evenly, the same head at each, thresholds free; the best head and
        number of exits.
    greedy: the best single exit, then one exit more at a time with all earlier ones kept, thresholds free.

    `required` and `forbidden` exits bind them too; what a time limit stopped before anything was found is left out.
    """
    found = {
        "single exit": _single(one, required),
        "uniform": _uniform(table, one, max_exits, required, forbidden),
        "greedy": _greedy(one, max_exits, required),
    }
    return {
        name: _better(results, minimises_cost)
        for name, results in found.items()
        if any(r.configurations for r in results) or not any(r.status == "stopped" for r in results)
    }


def _single(one: Search, required: Sequence[str]) -> list[SearchResult]:
    return [one(setting="budgeted", max_exits=1)] if len(required) <= 1 else []


def _uniform(
    table: CalibrationTable, one: Search, max_exits: int, required: Sequence[str], forbidden: Sequence[str]
) -> list[SearchResult]:
    num_points = len(table.model)
    heads = {name.partition(":")[2] for name in table.exits if name != FINAL_EXIT}
    found = []
    for count in range(2, min(max_exits, num_points + 1) + 1):
        points = [round((i + 1) * (num_points + 1) / count) - 1 for i in range(count - 1)]
        for head in sorted(heads):
            names = {*(f"{point}:{head}" for point in points), FINAL_EXIT}
            if len(names) == count and set(required) <= names <= set(table.exits) - set(forbidden):
                found.append(one(max_exits=count, required_exits=sorted(names)))
    return found


def _greedy(one: Search, max_exits: int, required: Sequence[str]) -> list[SearchResult]:
    """The last of the growing configurations, or every search when none found anything."""
    tried, kept = _single(one, required), list(required)
    best = [result for result in tried if result.configurations]
    if not best and not required:
        return tried  # no exit to begin with
    for count in range(max(2, len(required)), max_exits + 1):
        if best:
            kept = _exits(best[-1])
        tried.append(one(max_exits=count, required_exits=kept))
        if best and (not tried[-1].configurations or _exits(tried[-1]) == kept):
            break
        best += [result for result in tried[-1:] if result.configurations]
    return best[-1:] or tried


def _exits(result: SearchResult) -> list[str]:
    return [chosen.exit for chosen in result.best.exits]


def _better(results: list[SearchResult], minimises_cost: bool) -> Configuration | None:
    """Of several searches for one target, the one with the least cost or the greatest accuracy; of equal ones, the one
    that is better in the other, as the search has it."""
    found = [result.best for result in results if result.configurations]
    if not found:
        return None

    def rank(configuration: Configuration) -> tuple[float, float]:
        cost, accuracy = configuration.promise["cost"], configuration.promise["accuracy"]
        return (cost, -accuracy) if minimises_cost else (-accuracy, cost)

    return min(found, key=rank)
