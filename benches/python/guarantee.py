"""What a promise costs, and whether it holds: many draws of calibration images from one large population.

Each draw is what a user has. The naive way takes the exact optimum on all of its images; a guarantee divides them. What
each chooses is then judged on the whole population: did the promised mean loss hold, and what does an image cost?
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

import mess_core
from mess import PolicySettings
from mess.calibration.table import CalibrationTable
from mess.deployment.configuration import Configuration
from mess.searching.promise import Bound, Guarantee, guarantee, least_cost

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benches.machine import facts  # noqa: E402
from benches.python.search_table import PIXELS, synthetic_table  # noqa: E402

WAYS: tuple[tuple[str, float, Bound], ...] = (
    ("one fifth searched, betting (the default)", 0.2, "betting"),
    ("one half searched, betting", 0.5, "betting"),
    ("one half searched, Hoeffding-Bentkus (cautious)", 0.5, "hoeffding-bentkus"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--images", type=int, nargs="+", default=(1449,), help="calibration images of a draw")
    parser.add_argument("--population", type=int, default=12000)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--exits", type=int, nargs="+", default=(2, 3))
    parser.add_argument("--promise", default="error increase <= 0.01 with 90 %")
    parser.add_argument("--time-limit", type=float, default=20, help="seconds for the path")
    parser.add_argument("--record", action="store_true", help="write benches/record/guarantee.md")
    arguments = parser.parse_args()
    promise = Guarantee.parse(arguments.promise)
    population = as_calibration_table(
        synthetic_table(images=arguments.population, heads=arguments.heads, pixels=4), "population"
    )
    out = [
        "# What a promise costs",
        "",
        "```text",
        f"python benches/python/guarantee.py {' '.join(sys.argv[1:])}",
        "```",
        "",
        *(f"- {key}: {value}" for key, value in facts("numpy", "scipy").items()),
        f"- promise: {promise}; {arguments.draws} draws from {arguments.population} synthetic images "
        f"(benches/python/search_table.py, {arguments.heads} heads, 4 pixel thresholds)",
        "- cost: mean over the population, as a share of the original's, abstentions at 1; broken: draws whose choice",
        "  loses more than promised on the population",
        "",
        "| images | exits | way | cost | mean loss | broken | abstained | seconds |",
        "|---" * 8 + "|",
    ]
    for images in arguments.images:
        for exits in arguments.exits:
            out += rows(population, promise, images, exits, arguments.draws, arguments.time_limit)
    if arguments.record:
        (ROOT / "benches" / "record" / "guarantee.md").write_text("\n".join(out) + "\n")
    print("\n".join(out))


def rows(
    population: CalibrationTable, promise: Guarantee, images: int, exits: int, draws: int, limit: float
) -> list[str]:
    losses = promise.losses(population)
    original = population.total_cost(len(population.exits) - 1, "macs")
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        table = population.select(np.sort(rng.choice(len(population.images), images, replace=False)))
        start = time.perf_counter()
        naive = least_cost(table, promise, cost="macs", max_exits=exits)
        chosen = [("optimum on all images (no promise)", naive, time.perf_counter() - start)]
        for name, share, bound in WAYS:
            start = time.perf_counter()
            result = guarantee(
                table, promise, learn_share=share, bound=bound, seed=draw, max_exits=exits, time_limit=limit
            )
            chosen.append((name, result.configuration, time.perf_counter() - start))
        for name, configuration, seconds in chosen:
            cost, loss = judged(population, losses, configuration)
            found.setdefault(name, []).append((cost / original, loss, float(configuration is None), seconds))
        print(draw, {name: round(values[-1][0], 3) for name, values in found.items()}, file=sys.stderr, flush=True)
    lines = []
    for name, values in found.items():
        table_of = np.array(values)
        broken = int((table_of[:, 1] > promise.limit).sum())
        cost, loss, _, seconds = table_of.mean(axis=0)
        lines.append(
            f"| {images} | {exits} | {name} | {cost:.4f} | {loss:.4f} | {broken} of {draws} | "
            f"{int(table_of[:, 2].sum())} | {seconds:.1f} |"
        )
    return lines


def judged(
    population: CalibrationTable, losses: npt.NDArray[np.float64], configuration: Configuration | None
) -> tuple[float, float]:
    """(mean cost, mean loss) on the population; the original network's for none."""
    final = len(population.exits) - 1
    if configuration is None:
        return population.total_cost(final, "macs"), 0.0
    exits = tuple(population.exits.index(e.exit) for e in configuration.exits)
    gates = tuple(
        mess_core.Gate(population.pixel_thresholds.index(e.pixel_threshold), e.image_threshold)
        for e in configuration.exits
        if e.pixel_threshold is not None and e.image_threshold is not None
    )
    evaluation = mess_core.evaluate(population.search_table("macs"), mess_core.Configuration(exits, gates))
    taken = np.asarray(exits)[evaluation.position]
    return evaluation.found.cost, float(np.nanmean(losses[taken, np.arange(len(taken))]))


def as_calibration_table(table: mess_core.SearchTable, split: str) -> CalibrationTable:
    """A search table with the last exit of the last point as the final exit and none beside it there."""
    points = np.asarray(table.points)
    kept = np.append(np.flatnonzero(points < points.max()), len(points) - 1)
    intersection, predicted = (np.asarray(a)[kept] for a in (table.intersection, table.predicted))
    truth = np.asarray(table.ground_truth)
    return CalibrationTable(
        exits=(*(f"{points[i]}:head-{i}" for i in kept[:-1]), "final"),
        points=points[kept].astype(np.int64),
        images=tuple(str(i) for i in range(len(truth))),
        class_names=tuple(f"class {i}" for i in range(truth.shape[1])),
        pixel_thresholds=tuple(np.linspace(0.5, 0.95, table.image_confidence.shape[1]).tolist()),
        intersection=intersection,
        predicted=predicted,
        ground_truth=truth,
        # pixels that must differ, going by the counts alone
        disagreement=np.abs(predicted - predicted[-1]).sum(axis=2) // 2,
        image_confidence=np.asarray(table.image_confidence)[kept],
        costs={
            "macs": {
                "backbone": np.asarray(table.backbone_cost)[kept],
                "head": np.asarray(table.head_cost)[kept],
                "policy": np.asarray(table.policy_cost)[kept],
            }
        },
        policy=PolicySettings(),
        input_size=(1, PIXELS),
        model=tuple(f"point {i}" for i in range(int(points.max()))),
        facts={"split": split},
    )


if __name__ == "__main__":
    main()
