"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from mess.calibration.table import CalibrationTable
from mess.deployment.configuration import Configuration, describe
from mess.exit_names import FINAL_EXIT
from mess.searching.promise import Guaranteed
from mess.searching.solve import Report, SearchResult

if TYPE_CHECKING:
    from mess.model.network import MultiExitNetwork


def layers_table(network: MultiExitNetwork, depth: int = 2) -> Table:
    """Workload of the modules nested up to `depth` deep that cost anything, in order of completion; and exit points."""
    workload = network.workload
    at = {(point.module, point.call): str(index) for index, point in enumerate(network.points)}
    height, width = workload.input_size
    table = Table(title=f"Workload, input {height} x {width}: {amount(workload.total, workload.cost)} {workload.unit}")
    for heading in ("module", "kind", "output", workload.unit, "share", "so far", "exit point"):
        table.add_column(heading, justify="left" if heading in ("module", "kind") else "right")
    for layer in workload.layers:
        work = layer.end - layer.start
        point = at.get((layer.name, layer.call))
        if point is None and (layer.name.count(".") >= depth or not work):
            continue
        shape = " x ".join(map(str, layer.feature)) if layer.feature else ""
        shares = [f"{value / workload.total:.1%}" for value in (work, layer.end)]
        table.add_row(layer.call_name, layer.kind, shape, amount(work, workload.cost), *shares, point or "")
    return table


def points_table(network: MultiExitNetwork) -> Table:
    """Exit points: where, how deep, what shape."""
    workload = network.workload
    table = Table(title=f"Exit points, input {workload.input_size[0]} x {workload.input_size[1]}")
    for heading in ("point", "module", "channels", "feature", "output stride", workload.unit, "share"):
        table.add_column(heading, justify="left" if heading == "module" else "right")
    for index, point in enumerate(network.points):
        size = f"{point.feature_size[0]} x {point.feature_size[1]}"
        table.add_row(
            str(index),
            point.name,
            str(point.channels),
            size,
            str(point.output_stride),
            amount(point.workload, workload.cost),
            f"{point.share:.1%}",
        )
    table.add_row("final", "(the model itself)", "", "", "", amount(workload.total, workload.cost), "100.0%")
    return table


def search_text(name: str, result: SearchResult, smaller: Mapping[str, Configuration | None]) -> str:
    """What a search found and what it proves, in some lines; the first says what a plain network does at the cost."""
    outcome = result.outcome
    proof = (
        f"{outcome.status}: {outcome.explored:,} sets bounded and {outcome.evaluated:,} configurations evaluated of "
        f"{outcome.space:.3g}"
    )
    if outcome.status == "stopped":
        proof += f", gap {outcome.gap:.2%} certified" if outcome.gap < 1 else ", nothing certified yet"
    if name == "front" or len(result.configurations) > 1:
        return f"{name}: {len(result.configurations)} configurations\n  {proof}"
    if not result.configurations:
        near = result.nearest
        nearest = f"; nearest: {describe(near.exits)}, {_values(near, result)}" if near else ""
        said = "nothing was found in time" if outcome.status == "stopped" else "nothing satisfies the target"
        return f"{name}: {said}{nearest}\n  {proof}"
    best = result.best
    original = f"original {result.baseline_accuracy:.2%}"
    lines = [f"{name}: {describe(best.exits)}", f"{_values(best, result)} ({original})", proof]
    if name in smaller:
        lines.insert(1, smaller_text(best.promise["accuracy"], smaller[name], result.baseline_cost))
    return "\n  ".join(lines)


def smaller_text(accuracy: float, smaller: Configuration | None, original_cost: float) -> str:
    """Whether a plain network at the same cost is better than one of this accuracy."""
    question = "is a plain smaller network at this cost better?"
    if smaller is None:
        return f"{question} There is none: no exit alone costs so little"
    reached, gain = smaller.promise["accuracy"], 100 * (smaller.promise["accuracy"] - accuracy)
    compared = f"{abs(gain):.2f} pp {'more' if gain > 0 else 'less'}" if abs(gain) >= 0.005 else "the same"
    if smaller.exits[-1].exit == FINAL_EXIT:
        return f"{question} At this cost it is the original itself: {reached:.2%}, {compared}"
    answer = "YES" if gain >= 0.005 else "No"
    return (
        f"{question} {answer}: cut off at {smaller.exits[-1].exit}, it reaches {reached:.2%} at "
        f"{smaller.promise['cost'] / original_cost:.1%} of the cost, {compared}"
    )


def smaller_json(smaller: Configuration | None) -> dict[str, Any] | None:
    """The plain network beside a configuration: its exit, accuracy and cost."""
    return None if smaller is None else {"exit": smaller.exits[-1].exit, **smaller.promise}


def baselines_text(result: SearchResult, simpler: Mapping[str, Configuration | None]) -> str:
    """A line for each simpler way of choosing."""
    lines = []
    for name, configuration in simpler.items():
        said = "nothing satisfies the target" if configuration is None else _values(configuration, result)
        lines.append(f"  {name}: {said}")
    return "\n".join(["  simpler ways for the same target:", *(f"  {line}" for line in lines)])


def guaranteed_text(result: Guaranteed) -> str:
    """What is promised, how it was proven, what it costs."""
    lines = []
    best = result.configuration
    if best is None:
        lines.append("guaranteed: nothing cheaper than the original network can be promised with these images")
        if not result.is_complete and all(proof.guarantee.limit > proof.least_provable for proof in result.proofs):
            lines[-1] += ", as far as the search for configurations got (--time-limit)"
    else:
        cost, accuracy = best.promise["cost"] / result.baseline_cost, best.promise["accuracy"]
        lines.append(f"guaranteed: {describe(best.exits)}")
        lines.append(
            f"  {cost:.1%} of the cost and accuracy {accuracy:.2%} (original {result.baseline_accuracy:.2%}) on the "
            f"{result.held_out} images that it is proven with"
        )
    for proof in result.proofs:
        said = f"mean {proof.mean_loss:.4f} on {proof.images} images"
        said += "" if proof.p_value is None else f", p = {proof.p_value:.3g}"
        lines.append(f"  {'promised' if best else 'not proven'}: {proof.guarantee} ({said})")
        if best is None and proof.guarantee.limit <= proof.least_provable:
            lines.append(
                f"    {proof.images} images cannot prove less than {proof.least_provable:.3f}, even without any loss"
            )
    if best is not None:
        low, high = result.drop_interval
        falls = f"falls by {100 * low:.2f} to {100 * high:.2f} pp (bootstrap interval, 95 %; no guarantee)"
        unknown = "has no interval: some samples of the images have no labelled pixel"
        lines.append(f"  mean IoU {unknown if math.isnan(low + high) else falls}")
    lines.append(
        f"  {result.searched} images searched, {result.held_out} held out; {result.tested} of {result.path} "
        "configurations passed, from cautious to bold"
    )
    return "\n".join(lines)


def guaranteed_json(result: Guaranteed) -> dict[str, Any]:
    """The JSON object that `mess search --guarantee ... --json` prints."""
    return {
        "configuration": None if result.configuration is None else result.configuration.to_json(),
        "proofs": [{**asdict(proof), "guarantee": str(proof.guarantee)} for proof in result.proofs],
        "original": {"accuracy": result.baseline_accuracy, "cost": result.baseline_cost},
        "accuracy_interval": result.accuracy_interval,
        "drop_interval": result.drop_interval,
        "images": {"searched": result.searched, "held_out": result.held_out},
        "path": result.path,
        "tested": result.tested,
        "is_complete": result.is_complete,
    }


def search_json(
    result: SearchResult, smaller: Configuration | None, simpler: Mapping[str, Configuration | None] | None = None
) -> dict[str, Any]:
    """The JSON object that `mess search --json` prints for each target; `simpler` ways by name, None for no answer."""
    return {
        "smaller_network": smaller_json(smaller),
        "simpler": {name: None if found is None else found.to_json() for name, found in (simpler or {}).items()},
        "status": result.outcome.status,
        "bound": result.outcome.bound,
        "gap": result.outcome.gap,
        "explored": result.outcome.explored,
        "evaluated": result.outcome.evaluated,
        "covered": result.outcome.covered,
        "space": result.outcome.space,
        "original": {"accuracy": result.baseline_accuracy, "cost": result.baseline_cost},
        "configurations": [configuration.to_json() for configuration in result.configurations],
        "nearest": None if result.nearest is None else result.nearest.to_json(),
    }


def _values(configuration: Configuration, result: SearchResult) -> str:
    promise = configuration.promise
    accuracy = f"accuracy {promise['accuracy']:.2%}"
    if "last_accuracy" in promise:
        accuracy = (
            f"accuracy {promise['last_accuracy']:.2%} at the end, {promise['accuracy']:.2%} on average when cut off"
        )
    return f"{accuracy} at {promise['cost'] / result.baseline_cost:.1%} of the cost"


def configuration_table(title: str, configuration: Configuration, table: CalibrationTable, report: Report) -> Table:
    """One row an exit: cost of an image that stops there, the exit's accuracy alone, share of images leaving there."""
    out = Table(title=escape(title), title_justify="left")
    out.add_column("exit", no_wrap=True)
    costs = [{"macs": "MACs", "latency_ms": "latency"}.get(c, c.rpartition("_")[0] or c) for c in table.costs]
    for heading in ("pixel ≥", "image ≥", *costs, "mIoU alone", "leaving"):
        out.add_column(heading, justify="right")
    spent = dict.fromkeys(table.costs, 0.0)
    for chosen, share in zip(configuration.exits, report.shares, strict=True):
        index = table.exits.index(chosen.exit)
        cells = []
        for column, of in table.costs.items():
            spent[column] += of["head"][index] + (0.0 if chosen.pixel_threshold is None else of["policy"][index])
            cells.append(amount(of["backbone"][index] + spent[column], column))
        out.add_row(
            chosen.exit,
            "" if chosen.pixel_threshold is None else f"{chosen.pixel_threshold:g}",
            "" if chosen.image_threshold is None else f"{chosen.image_threshold:.3f}",
            *cells,
            f"{table.mean_iou(index):.2%}",
            f"{share:.1%}",
        )
    return out


def summary_table(
    title: str, rows: Sequence[tuple[str, float, float, float | None]], baseline: tuple[float, float, float | None]
) -> Table:
    """Rows of (name, mIoU, MACs, ms or None) against the original network's (mIoU, MACs, ms)."""
    out = Table(title=escape(title), title_justify="left")
    for heading in (
        "network",
        "mIoU",
        "change",
        "MACs / image",
        "share",
        "ms / image",
        "share",
    ):
        is_name = heading == "network"
        out.add_column(heading, justify="left" if is_name else "right", no_wrap=is_name)
    accuracy, macs, milliseconds = baseline
    for name, a, m, t in (("original", accuracy, macs, milliseconds), *rows):
        timed = t is not None and milliseconds
        out.add_row(
            escape(name),
            f"{a:.2%}",
            f"{100 * (a - accuracy):+.2f} pp",
            amount(m, "macs"),
            f"{m / macs:.1%}",
            f"{t:.1f}" if timed else "",
            f"{t / milliseconds:.1%}" if timed and t is not None and milliseconds else "",
        )
    return out


def amount(value: float, column: str) -> str:
    """A cost for people: `1.23 G`, `45.6 M` (MACs), `7.8 ms` or `9.1 MB`."""
    if column != "macs":
        return f"{value:.1f} {unit_of(column)}"
    return f"{value / 1e9:.2f} G" if value >= 1e9 else f"{value / 1e6:.1f} M"


def unit_of(column: str) -> str:
    """Of a cost: `MACs`, `ms` or `MB`."""
    return "MACs" if column == "macs" else "MB" if column == "size_mb" else "ms"
