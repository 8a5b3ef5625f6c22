"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from mess.calibration.table import CalibrationTable
from mess.deployment.configuration import Configuration
from mess.model.network import MultiExitNetwork
from mess.searching.solve import Report


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
            point.module,
            str(point.channels),
            size,
            str(point.output_stride),
            amount(point.workload, workload.by),
            f"{point.share:.1%}",
        )
    table.add_row("final", "(the model itself)", "", "", "", amount(workload.total, workload.by), "100.0%")
    return table


def configuration_table(title: str, configuration: Configuration, table: CalibrationTable, report: Report) -> Table:
    """One row an exit: cost of an image that stops there, the exit's accuracy alone, share of images leaving there."""
    out = Table(title=title, title_justify="left")
    out.add_column("exit", no_wrap=True)
    for heading in ("pixel ≥", "image ≥", "MACs", "latency", "mIoU alone", "leaving"):
        out.add_column(heading, justify="right")
    spent = dict.fromkeys(table.costs, 0.0)
    for position, (chosen, share) in enumerate(zip(configuration.exits, report.shares, strict=True)):
        index = table.exits.index(chosen.exit)
        cells = []
        for column, costs in table.costs.items():
            is_last = position == len(configuration.exits) - 1
            spent[column] += costs["head"][index] + (0.0 if is_last else costs["policy"][index])
            cells.append(amount(costs["backbone"][index] + spent[column], column))
        out.add_row(
            chosen.exit,
            "" if chosen.pixel_threshold is None else f"{chosen.pixel_threshold:g}",
            "" if chosen.image_threshold is None else f"{chosen.image_threshold:.3f}",
            *(cells + [""] * (2 - len(cells))),
            f"{table.mean_iou(index):.2%}",
            f"{share:.1%}",
        )
    return out


def summary_table(
    title: str, rows: Sequence[tuple[str, float, float, float | None]], baseline: tuple[float, float, float | None]
) -> Table:
    """Rows of (name, mIoU, MACs, ms or None) against the original network's (mIoU, MACs, ms)."""
    out = Table(title=title, title_justify="left")
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
            name,
            f"{a:.2%}",
            f"{100 * (a - accuracy):+.2f} pp",
            amount(m, "macs"),
            f"{m / macs:.1%}",
            f"{t:.1f}" if timed else "",
            f"{t / milliseconds:.1%}" if timed and t is not None and milliseconds else "",
        )
    return out


def amount(value: float, column: str) -> str:
    """A cost for people: `1.23 G`, `45.6 M` (MACs) or `7.8 ms`."""
    if column != "macs":
        return f"{value:.1f} ms"
    return f"{value / 1e9:.2f} G" if value >= 1e9 else f"{value / 1e6:.1f} M"
