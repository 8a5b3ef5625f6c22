"""What simpler ways of choosing find for the same target: what the exact search bought."""

from __future__ import annotations

from collections.abc import Callable

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
    return _best(search(table, setting="budgeted", max_exits=1, max_cost=max_cost, cost=cost, metric=metric))


Search = Callable[..., SearchResult]
"""`mess.search` with table, target and settings filled in; takes `setting`, `max_exits` and `required_exits`."""


def baselines(
    table: CalibrationTable, one: Search, *, max_exits: int, minimises_cost: bool
) -> dict[str, Configuration | None]:
    """The best configuration of three smaller spaces, each searched exactly; None where nothing meets the target.

    single exit: one static exit for all images, no decision.
    uniform: exits at points that divide the backbone evenly, the same head at each, thresholds free; the best head and
        number of exits.
    greedy: the best single exit, then one exit more at a time with all earlier ones kept, thresholds free.
    """
    return {
        "single exit": _best(one(setting="budgeted", max_exits=1)),
        "uniform": _uniform(table, one, max_exits, minimises_cost),
        "greedy": _greedy(one, max_exits),
    }


def _uniform(table: CalibrationTable, one: Search, max_exits: int, minimises_cost: bool) -> Configuration | None:
    num_points = len(table.model)
    heads = {name.partition(":")[2] for name in table.exits if name != FINAL_EXIT}
    found = []
    for count in range(2, min(max_exits, num_points + 1) + 1):
        points = [round((i + 1) * (num_points + 1) / count) - 1 for i in range(count - 1)]
        for head in sorted(heads):
            names = [f"{point}:{head}" for point in points]
            if len(set(names)) == len(names) and set(names) <= set(table.exits):
                found.append(one(max_exits=count, required_exits=[*names, FINAL_EXIT]))
    return _better(found, minimises_cost)


def _greedy(one: Search, max_exits: int) -> Configuration | None:
    best = one(setting="budgeted", max_exits=1)
    for count in range(2, max_exits + 1):
        if not best.configurations:
            break
        kept = [chosen.exit for chosen in best.best.exits]
        longer = one(max_exits=count, required_exits=kept)
        if not longer.configurations or longer.best.exits == best.best.exits:
            break
        best = longer
    return _best(best)


def _best(result: SearchResult) -> Configuration | None:
    return result.best if result.configurations else None


def _better(results: list[SearchResult], minimises_cost: bool) -> Configuration | None:
    """Of several searches for one target, the one with the least cost or the greatest accuracy."""
    found = [result.best for result in results if result.configurations]
    if not found:
        return None
    if minimises_cost:
        return min(found, key=lambda configuration: configuration.promise["cost"])
    return max(found, key=lambda configuration: configuration.promise["accuracy"])
