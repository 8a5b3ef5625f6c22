"""The exact search against brute force, Optuna and pymoo, on one table in one run.

    python benches/python/search.py [--seconds 60] [--long 300] [--rounds 3] [--table runs/camvid/table-val.safetensors]
        [--record [NAME]]

Prints a Markdown table; `--record` writes it to benches/record/search.md, or NAME.md there. Optuna and pymoo are taken
when installed (`pip install optuna pymoo`); they need not be.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

import mess_core
from mess_core import Configuration, SearchTable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from search_table import synthetic_table

from machine import facts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60, help="for each heuristic")
    parser.add_argument("--long", type=float, default=300, help="for each exact search")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--table", type=Path, help="a calibration table file besides the synthetic one")
    parser.add_argument("--record", nargs="?", const="search", metavar="NAME")
    options = parser.parse_args()
    lines = [
        "# The configuration search",
        "",
        f"`python {' '.join(sys.argv)}`; medians of {options.rounds} rounds.",
        "",
    ]
    lines += [f"- {name}: {value}" for name, value in facts("mess", "numpy", "optuna", "pymoo").items()]
    table = synthetic_table()
    lines += ["", "## Synthetic table: 1,449 images, 21 classes, 6 points x 24 heads, 10 pixel thresholds", ""]
    lines += searches(table, options.rounds, options.long)
    lines += ["", "## Certified gap over time, 2 threads, least cost at 1 pp", "", *gaps(options.long)]
    lines += ["", "## Against brute force in NumPy", "", *brute_force(options.rounds)]
    lines += ["", f"## Heuristics, {options.seconds:g} s each, at most 3 exits, least cost at 1 pp", ""]
    lines += heuristics(table, options.seconds)
    lines += ["", "## Fronts, at most 3 exits", "", *fronts(table, options.seconds)]
    lines += ["", "## Growth: one thread, least cost at 1 pp, memory beside the table", "", *growth()]
    if options.table is not None:
        from mess.calibration.table import CalibrationTable

        real = CalibrationTable.load(options.table).search_table("macs")
        shape = f"{real.intersection.shape[1]} images, {real.intersection.shape[0]} exits"
        lines += ["", f"## {options.table}: {shape}", "", *searches(real, options.rounds, options.long)]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.record:
        (Path(__file__).resolve().parents[1] / "record" / f"{options.record}.md").write_text(text)


def searches(table: SearchTable, rounds: int, seconds: float) -> list[str]:
    """Wall time, threads, and what is proven."""
    final = mess_core.evaluate(table, Configuration((len(table.points) - 1,))).found
    drop, half = {"min_accuracy": final.accuracy - 0.01}, {"max_cost": 0.7 * final.cost}
    front = {"resolution": 0.001 * final.cost}
    lines = [
        "| exits | objective | threads | seconds | status | gap | configurations | cost | accuracy |",
        "|" + "---|" * 9,
    ]
    questions = [
        (2, "least cost, 1 pp", drop, 1),
        (2, "front, 0.1 %", front, 2),
        (3, "least cost, 1 pp", drop, 1),
        (3, "least cost, 1 pp", drop, 2),
        (3, "best at 0.7 x", half, 1),
        (3, "best at 0.7 x", half, 2),
        (3, "front, 0.1 %", front, 2),
    ]
    times: list[list[float]] = [[] for _ in questions]
    outcomes: dict[int, mess_core.Outcome] = {}
    for _ in range(rounds):  # everything once a round: drift of the machine hits all alike
        for number, (exits, _, goal, threads) in enumerate(questions):
            start = time.perf_counter()
            outcomes[number] = mess_core.search(table, max_exits=exits, threads=threads, time_limit=seconds, **goal)
            times[number].append(time.perf_counter() - start)
    for number, (exits, name, _, threads) in enumerate(questions):
        outcome = outcomes[number]
        best = outcome.found[-1]
        lines.append(
            f"| {exits} | {name} | {threads} | {statistics.median(times[number]):.2f} | {outcome.status} "
            f"| {outcome.gap:.2%} | {outcome.space:.2g} | {best.cost / final.cost:.4f} | {best.accuracy:.4f} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    least, best_at, whole = (times[number] for number in (3, 5, 6))

    def ratio(a: list[float], b: list[float]) -> float:
        return statistics.median(x / y for x, y in zip(a, b, strict=True))

    both = [(x + y) / 2 for x, y in zip(least, best_at, strict=True)]
    lines += [
        "",
        f"3 exits, 2 threads, ratios within a round: the front takes {ratio(whole, least):.1f} times least cost, "
        f"{ratio(whole, best_at):.1f} times best at 0.7 x, {ratio(whole, both):.1f} times their mean. One thread takes "
        f"{ratio(times[2], least):.2f} and {ratio(times[4], best_at):.2f} times as long as two.",
    ]
    return lines


def gaps(seconds: float) -> list[str]:
    """When each gap was certified, and the best known then."""
    lines = ["| heads a point | exits | configurations | seconds | certified gap | best known |", "|" + "---|" * 6]
    for heads, exits in ((24, 4), (64, 5)):
        table = synthetic_table(heads=heads)
        final = mess_core.evaluate(table, Configuration((len(table.points) - 1,))).found
        start, certified, marks = time.perf_counter(), [1.0], [60.0, 300.0, 900.0]
        row = f"| {heads} | {exits} |"

        def show(
            gap: float, cost: float, space: float, row: str = row, start: float = start, final: float = final.cost
        ) -> None:
            space_text = "" if np.isnan(space) else f"{space:.2g}"
            line = f"{row} {space_text} | {time.perf_counter() - start:.0f} | {gap:.0%} | {cost / final:.4f} |"
            lines.append(line)
            print(line, file=sys.stderr, flush=True)

        def watch(
            now: mess_core.Progress,
            certified: list[float] = certified,
            marks: list[float] = marks,
            start: float = start,
            show: Callable[..., None] = show,
        ) -> None:
            is_mark = bool(marks) and time.perf_counter() - start >= marks[0]
            if is_mark:
                marks.pop(0)
            if now.cost is not None and (is_mark or now.gap < certified[0]):
                certified[0] = min(now.gap, certified[0])
                show(certified[0], now.cost, float("nan"))

        target = final.accuracy - 0.01
        outcome = mess_core.search(
            table, min_accuracy=target, max_exits=exits, threads=2, time_limit=seconds, progress=watch
        )
        assert outcome.best is not None
        show(outcome.gap, outcome.best.cost, outcome.space)
    return lines


def brute_force(rounds: int) -> list[str]:
    """Configurations a second: NumPy over all pairs of exits and thresholds, and the exact search."""
    table = synthetic_table(images=200, points=3, heads=4, pixels=3)
    start = time.perf_counter()
    count, best = numpy_pairs(table)
    numpy_rate = count / (time.perf_counter() - start)
    full = synthetic_table()
    final = mess_core.evaluate(full, Configuration((len(full.points) - 1,))).found
    target = final.accuracy - 0.01
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        outcome = mess_core.search(full, min_accuracy=target, threads=1)
        times.append(time.perf_counter() - start)
    rate = outcome.space / statistics.median(times)
    small = mess_core.search(table, max_cost=1e9, max_exits=2).best
    return [
        f"NumPy, all pairs at once for each gate: {numpy_rate:.3g} configurations a second (best accuracy {best:.6f}, "
        f"the search's {small.accuracy:.6f}). Exact search of 3 exits, one thread: {rate:.3g} configurations covered a "
        f"second, {rate / numpy_rate:.2g} times as many."
    ]


def numpy_pairs(table: SearchTable) -> tuple[int, float]:
    """(configurations, best accuracy) of all chains of two exits: running sums over images in order of confidence."""
    intersection, wrong = table.intersection, table.predicted - table.intersection
    truth = table.ground_truth.sum(0)
    present = truth > 0
    count, best = 0, 0.0
    for first in range(len(table.points)):
        for pixel in range(table.image_confidence.shape[1]):
            order = np.argsort(-table.image_confidence[first, pixel], kind="stable")
            for last in np.flatnonzero(table.points > table.points[first]):
                t = intersection[last].sum(0) + np.cumsum((intersection[first] - intersection[last])[order], axis=0)
                f = wrong[last].sum(0) + np.cumsum((wrong[first] - wrong[last])[order], axis=0)
                values = (t[:-1, present] / (truth + f)[:-1, present]).mean(1)
                count, best = count + len(values), max(best, float(values.max()))
    return count, best


def heuristics(table: SearchTable, seconds: float) -> list[str]:
    """Least cost that Optuna and pymoo find in the same wall time, each evaluating exactly."""
    final = mess_core.evaluate(table, Configuration((len(table.points) - 1,))).found
    target = final.accuracy - 0.01
    start = time.perf_counter()
    exact = mess_core.search(table, min_accuracy=target)
    lines = ["| method | seconds | evaluations | least cost |", "|---|---|---|---|"]
    lines.append(f"| exact search, proven | {time.perf_counter() - start:.1f} | | {exact.best.cost / final.cost:.4f} |")
    evaluator = Evaluator(table)
    for name, run in (
        ("Optuna TPE", optuna_tpe),
        ("Optuna NSGA-II", optuna_nsga),
        ("pymoo NSGA-II", pymoo_nsga2),
        ("pymoo NSGA-III", pymoo_nsga3),
    ):
        try:
            cost, count = run(evaluator, target, seconds)
        except ImportError:
            lines.append(f"| {name} | | | not installed |")
            continue
        lines.append(f"| {name} | {seconds:g} | {count:,} | {cost / final.cost:.4f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def fronts(table: SearchTable, seconds: float) -> list[str]:
    """Area under each front, and how many of its points are better than the exact one. Each method gets as long as the
    exact search took, or the given seconds if that is more."""
    final = mess_core.evaluate(table, Configuration((len(table.points) - 1,))).found
    resolution = 0.001 * final.cost
    start = time.perf_counter()
    outcome = mess_core.search(table, max_exits=3, resolution=resolution, threads=2, time_limit=10 * seconds)
    elapsed = time.perf_counter() - start
    exact = [(f.cost, f.accuracy) for f in outcome.found]
    seconds = max(seconds, elapsed)
    lines = [
        "| method | seconds | evaluations | points | area | points better than the exact front |",
        "|" + "---|" * 6,
    ]
    lines.append(f"| exact, {outcome.status} | {elapsed:.0f} | | {len(exact)} | {_area(exact, final.cost):.5f} | |")
    evaluator = Evaluator(table)
    for name, run in (
        ("Optuna NSGA-II", optuna_front),
        ("pymoo NSGA-II", pymoo_front2),
        ("pymoo NSGA-III", pymoo_front3),
    ):
        try:
            count, front = run(evaluator, seconds)
        except ImportError:
            lines.append(f"| {name} | | | | not installed | |")
            continue
        better = sum(
            all(accuracy > known + 1e-9 for other, known in exact if other <= cost + resolution)
            for cost, accuracy in front
        )
        lines.append(
            f"| {name} | {seconds:.0f} | {count:,} | {len(front)} | {_area(front, final.cost):.5f} | {better} |"
        )
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def _area(front: list[tuple[float, float]], full: float) -> float:
    """Hypervolume: mean accuracy over budgets from 0 to the full cost."""
    area, best, before = 0.0, 0.0, 0.0
    for cost, accuracy in sorted(front):
        if cost > full:
            break
        area += best * (cost - before) / full
        best, before = max(best, accuracy), cost
    return area + best * (full - before) / full


class Evaluator:
    """Cost and accuracy of a vector in [0, 1]^9: 3 exits, 2 gates (pixel threshold, rank), 2 switches."""

    def __init__(self, table: SearchTable) -> None:
        self.table = table
        self.wrong = table.predicted - table.intersection
        self.truth = table.ground_truth.sum(0)
        self.order = np.sort(table.image_confidence, axis=2)[..., ::-1]
        self.exits = [np.flatnonzero(table.points == point) for point in np.unique(table.points)]

    def __call__(self, x: np.ndarray) -> tuple[float, float]:
        table = self.table
        num_exits, num_pixels, images = table.image_confidence.shape
        chosen = sorted(
            {
                int(min(v, 1 - 1e-9) * num_exits)
                for v, on in zip(x[:3], (True, x[7] > 0.3, x[8] > 0.3), strict=True)
                if on
            }
        )
        chain: list[int] = []
        for exit_index in chosen:
            if not chain or table.points[exit_index] > table.points[chain[-1]]:
                chain.append(exit_index)
        remains = np.ones(images, bool)
        t, f, cost, way = np.zeros(len(self.truth)), np.zeros(len(self.truth)), 0.0, 0.0
        for at, exit_index in enumerate(chain):
            is_last = at + 1 == len(chain)
            way += table.head_cost[exit_index] + (0.0 if is_last else table.policy_cost[exit_index])
            leaves = remains
            if not is_last:
                pixel = int(min(x[3 + 2 * at], 1 - 1e-9) * num_pixels)
                threshold = self.order[exit_index, pixel, int(min(x[4 + 2 * at], 1 - 1e-9) * images)]
                leaves = remains & (table.image_confidence[exit_index, pixel] >= threshold)
            t += table.intersection[exit_index, leaves].sum(0)
            f += self.wrong[exit_index, leaves].sum(0)
            cost += leaves.sum() * (table.backbone_cost[exit_index] + way)
            remains = remains & ~leaves
        present = self.truth > 0
        return cost / images, float((t[present] / (self.truth + f)[present]).mean())


def optuna_tpe(evaluator: Evaluator, target: float, seconds: float) -> tuple[float, int]:
    import optuna

    return _optuna(optuna.samplers.TPESampler(seed=0), evaluator, target, seconds)


def optuna_nsga(evaluator: Evaluator, target: float, seconds: float) -> tuple[float, int]:
    import optuna

    return _optuna(optuna.samplers.NSGAIISampler(seed=0), evaluator, target, seconds)


def _optuna(sampler: object, evaluator: Evaluator, target: float, seconds: float) -> tuple[float, int]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    best = [np.inf]

    def objective(trial: optuna.Trial) -> float:
        cost, accuracy = evaluator(np.array([trial.suggest_float(str(i), 0, 1) for i in range(9)]))
        if accuracy >= target:
            best[0] = min(best[0], cost)
        return cost + 20 * max(0.0, target - accuracy)

    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, timeout=seconds)
    return best[0], len(study.trials)


def optuna_front(evaluator: Evaluator, seconds: float) -> tuple[int, list[tuple[float, float]]]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.NSGAIISampler(seed=0), directions=["minimize", "maximize"])
    study.optimize(
        lambda trial: evaluator(np.array([trial.suggest_float(str(i), 0, 1) for i in range(9)])), timeout=seconds
    )
    return len(study.trials), [(trial.values[0], trial.values[1]) for trial in study.best_trials]


def pymoo_front2(evaluator: Evaluator, seconds: float) -> tuple[int, list[tuple[float, float]]]:
    return _pymoo_front(_nsga2(), evaluator, seconds)


def pymoo_front3(evaluator: Evaluator, seconds: float) -> tuple[int, list[tuple[float, float]]]:
    return _pymoo_front(_nsga3(199), evaluator, seconds)


def _pymoo_front(algorithm: object, evaluator: Evaluator, seconds: float) -> tuple[int, list[tuple[float, float]]]:
    def losses(x: np.ndarray) -> list[float]:
        cost, accuracy = evaluator(x)
        return [cost, -accuracy]

    count, front = _pymoo(algorithm, losses, seconds)
    return count, [(float(cost), -float(loss)) for cost, loss in front]


def pymoo_nsga2(evaluator: Evaluator, target: float, seconds: float) -> tuple[float, int]:
    return _pymoo_least_cost(_nsga2(), evaluator, target, seconds)


def pymoo_nsga3(evaluator: Evaluator, target: float, seconds: float) -> tuple[float, int]:
    return _pymoo_least_cost(_nsga3(99), evaluator, target, seconds)


def _pymoo_least_cost(algorithm: object, evaluator: Evaluator, target: float, seconds: float) -> tuple[float, int]:
    best = [np.inf]

    def losses(x: np.ndarray) -> list[float]:
        cost, accuracy = evaluator(x)
        if accuracy >= target:
            best[0] = min(best[0], cost)
        return [cost, max(0.0, target - accuracy)]

    count, _ = _pymoo(algorithm, losses, seconds)
    return best[0], count


def _nsga2() -> object:
    from pymoo.algorithms.moo.nsga2 import NSGA2

    return NSGA2(pop_size=200)


def _nsga3(partitions: int) -> object:
    from pymoo.algorithms.moo.nsga3 import NSGA3
    from pymoo.util.ref_dirs import get_reference_directions

    return NSGA3(ref_dirs=get_reference_directions("das-dennis", 2, n_partitions=partitions), pop_size=200)


def _pymoo(algorithm: object, losses: Callable[[np.ndarray], list[float]], seconds: float) -> tuple[int, np.ndarray]:
    """(evaluations, (N, 2) losses of the front) after so many seconds of wall time."""
    from pymoo.core.problem import ElementwiseProblem
    from pymoo.optimize import minimize

    count = [0]

    class Trade(ElementwiseProblem):
        def __init__(self) -> None:
            super().__init__(n_var=9, n_obj=2, xl=0, xu=1)

        def _evaluate(self, x: np.ndarray, out: dict, *_: object, **__: object) -> None:
            count[0] += 1
            out["F"] = losses(x)

    minutes, rest = divmod(int(seconds), 60)
    result = minimize(Trade(), algorithm, ("time", f"00:{minutes:02d}:{rest:02d}"), seed=0)
    return count[0], np.atleast_2d(result.F)


def growth() -> list[str]:
    """Seconds and memory as one size doubles, and the slope of a line through the logarithms."""
    base = {"images": 400, "classes": 12, "points": 5, "heads": 8, "pixels": 5}
    sizes = {
        "images": (400, 800, 1600, 3200),
        "classes": (12, 24, 48, 96),
        "heads": (8, 16, 32),
        "pixels": (5, 10, 20),
    }
    lines = [
        "| what doubles | sizes | 2 exits: s | exponent | 3 exits: s | exponent | MB | exponent | table, MB |",
        "|" + "---|" * 9,
    ]
    for what, values in sizes.items():
        measured = [[_measured(base | {what: size}, exits) for size in values] for exits in (2, 3)]
        cells = [what, ", ".join(map(str, values))]
        for numbers, digits in (
            ([seconds for seconds, *_ in measured[0]], 3),
            ([seconds for seconds, *_ in measured[1]], 3),
            ([megabytes for _, megabytes, _ in measured[1]], 1),
        ):
            cells += [", ".join(f"{n:.{digits}f}" for n in numbers), f"{_slope(values, numbers):.2f}"]
        cells.append(", ".join(f"{of_table:.1f}" for *_, of_table in measured[1]))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| exits | seconds | times those of one less | MB |", "|---|---|---|---|"]
    before = None
    for exits in (2, 3, 4, 5):
        seconds, megabytes, _ = _measured(base, exits)
        ratio = "" if before is None else f"{seconds / before:.1f}"
        lines.append(f"| {exits} | {seconds:.3f} | {ratio} | {megabytes:.1f} |")
        before = seconds
    table = synthetic_table(images=300, heads=64)
    final = mess_core.evaluate(table, Configuration((len(table.points) - 1,))).found
    start = time.perf_counter()
    outcome = mess_core.search(
        table, setting="anytime", max_cost=final.cost, horizon=final.cost, max_exits=5, threads=1, time_limit=300
    )
    lines += [
        "",
        f"The anytime setting, 6 points x 64 heads, at most 5 exits, most accurate at 1x, one thread: "
        f"{time.perf_counter() - start:.2f} s, {outcome.status}, {outcome.space:.2g} chains.",
    ]
    return lines


def _slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def _measured(sizes: dict[str, int], exits: int) -> tuple[float, float, float]:
    """Median seconds of three searches, the memory that the first one took at most, and the table's, in MB.

    In a process of its own, whose memory is that of one search."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, sizes, exits).result()


def _measure(sizes: dict[str, int], exits: int) -> tuple[float, float, float]:
    table = synthetic_table(**sizes)
    final = mess_core.evaluate(table, Configuration((len(table.points) - 1,))).found
    ctypes.CDLL(None).malloc_trim(0)  # what made the table is given back, so that the search does not live on it
    times, before = [], _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    for _ in range(3):
        start = time.perf_counter()
        outcome = mess_core.search(
            table, min_accuracy=final.accuracy - 0.01, max_exits=exits, threads=1, time_limit=300
        )
        assert outcome.status == "optimal", outcome.status  # one that ran out of time is no measurement
        times.append(time.perf_counter() - start)
        if len(times) == 1:
            taken = _memory("VmHWM") - before
    arrays = (table.intersection, table.predicted, table.ground_truth, table.image_confidence)
    return statistics.median(times), taken, sum(array.nbytes for array in arrays) / 1e6


def _memory(field: str) -> float:
    """Of this process, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(field)


if __name__ == "__main__":
    main()
