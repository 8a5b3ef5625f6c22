"""Charts of a run, as PNG files: workload along the network, accuracy against cost. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

from mess.calibration.table import CalibrationTable
from mess.files import write_whole
from mess.reporting.tables import unit_of
from mess.searching.solve import SearchResult, exit_accuracy
from mess_core import Metric, Setting

if TYPE_CHECKING:
    from mess.model.network import MultiExitNetwork

mpl.rcParams.update({"figure.dpi": 120, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#888888"  # Okabe and Ito: safe for colour-blind readers


def workload_figure(network: MultiExitNetwork, path: Path) -> None:
    """Cumulative workload along the layers, with the exit points."""
    workload = network.workload
    ends = [layer.end / workload.total for layer in workload.layers]
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(ends, color=BLUE, linewidth=1.5)
    position = {(layer.name, layer.call): i for i, layer in enumerate(workload.layers)}
    for index, point in enumerate(network.points):
        at = position[point.module, point.call]
        axes.plot(at, point.share, "o", color=ORANGE)
        axes.annotate(
            f"{index}: {point.name}\n{point.share:.0%}",
            (at, point.share),
            textcoords="offset points",
            xytext=(-6, 3),
            ha="right",
            fontsize=7,
        )
    total = f"{workload.total / 1e9:.2f} G{workload.unit}" if workload.cost == "macs" else f"{workload.total:.1f} ms"
    axes.set(xlabel="module calls in order of completion", ylabel=f"share of the workload ({total})", ylim=(0, 1.05))
    axes.set_title("Workload and exit points")
    save(figure, path)


METRICS: dict[Metric, str] = {
    "mean-iou": "mean IoU",
    "pixel-accuracy": "pixel accuracy",
    "mean-class-accuracy": "mean class accuracy",
    "frequency-weighted-iou": "frequency-weighted IoU",
}


def tradeoff_figure(
    table: CalibrationTable,
    results: Mapping[str, SearchResult],
    path: Path,
    *,
    cost: str = "macs",
    metric: Metric = "mean-iou",
    setting: Setting = "input-dependent",
) -> None:
    """Accuracy against cost: single exits, the original network, the Pareto front if one of `results` is named `front`,
    and the best of the others.

    In the anytime setting accuracies are means over cut-offs, so there are no other networks beside them.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    scale, unit = (1e9, "GMACs") if cost == "macs" else (1.0, unit_of(cost))
    is_anytime = setting == "anytime"
    if not is_anytime:
        singles = range(len(table.exits))
        axes.scatter(
            [table.total_cost(i, cost) / scale for i in singles],
            [100 * exit_accuracy(table, i, metric) for i in singles],
            s=14,
            color=GREY,
            label="one exit for all images",
        )
    if "front" in results:
        front = results["front"]
        gap = front.outcome.gap
        proof = "proven" if gap == 0 else f"within {100 * gap:.2g} pp" if gap < 1 else "nothing certified yet"
        axes.plot(
            [c.promise["cost"] / scale for c in front.configurations],
            [100 * c.promise["accuracy"] for c in front.configurations],
            color=BLUE,
            drawstyle="steps-post",
            label=f"best of {front.outcome.space:.2g} configurations ({proof})",
        )
    if not is_anytime:
        original = next(iter(results.values()))
        axes.plot(
            original.baseline_cost / scale,
            100 * original.baseline_accuracy,
            "s",
            color="black",
            label="the original network",
        )
    named = {name: result.best for name, result in results.items() if name != "front" and result.configurations}
    for (name, configuration), colour in zip(named.items(), (ORANGE, GREEN, "#CC79A7", "#56B4E9"), strict=False):
        promise = configuration.promise
        axes.plot(promise["cost"] / scale, 100 * promise["accuracy"], "D", color=colour, label=name)
    axes.set(
        xlabel=f"cost of running to the end ({unit})" if is_anytime else f"mean cost of an image ({unit})",
        ylabel=f"{METRICS[metric]} (%)" + (", mean over cut-offs" if is_anytime else ""),
        title=f"Accuracy against cost, {table.facts.get('split', 'calibration')} split",
    )
    axes.legend(fontsize=8, loc="lower right")
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """A figure as a PNG file, whole or not at all."""
    write_whole(path, lambda temporary: figure.savefig(temporary, format="png"))
