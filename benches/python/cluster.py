"""The search spread over workers: equal answers, what coordination costs, and 64 workers simulated from recorded tasks.

    python benches/python/cluster.py --record

Measured: one process with one and two threads, and a local Ray cluster with one and two workers of a thread each, one
after the other in every round. Then every task of the search is timed by itself, and the same dealing out of chunks
(`mess.searching.cluster`) is played with those times for any number of workers.
"""

from __future__ import annotations

import argparse
import heapq
import math
import pickle
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mess_core
from mess.cluster import Workers, connection
from mess.searching.cluster import chunk_size, dealt, on_ray
from mess_core import Outcome, SearchPieces, SearchProblem

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benches.machine import facts  # noqa: E402
from benches.python.search_table import synthetic_table  # noqa: E402

SIMULATED = (1, 2, 4, 8, 16, 32, 64)
BANDWIDTH = 1.25e9
"""Bytes a second between nodes of the simulated cluster: 10 Gbit/s."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--accuracy", type=float, default=0.6, help="target of the least cost")
    parser.add_argument("--resolution", type=float, default=0.02, help="of the front")
    parser.add_argument("--record", action="store_true", help="write benches/record/cluster.md")
    arguments = parser.parse_args()
    table = synthetic_table(images=arguments.images, heads=arguments.heads)
    searches: dict[str, dict[str, Any]] = {
        f"3 exits, least cost at {arguments.accuracy:.0%}": {"min_accuracy": arguments.accuracy, "max_exits": 3},
        f"4 exits, least cost at {arguments.accuracy:.0%}": {"min_accuracy": arguments.accuracy, "max_exits": 4},
        f"3 exits, front at {arguments.resolution:.0%}": {"resolution": arguments.resolution, "max_exits": 3},
    }
    size = len(pickle.dumps(table))
    out = [
        "# The search on more than one worker",
        "",
        "```text",
        f"python benches/python/cluster.py {' '.join(sys.argv[1:])}",
        "```",
        "",
        *(f"- {key}: {value}" for key, value in facts("numpy", "ray").items()),
        f"- table: benches/python/search_table.py, {arguments.images} images, 21 classes, 6 points x {arguments.heads} "
        f"heads, 10 pixel thresholds, {size / 1e9:.2f} GB",
        f"- seconds, medians of {arguments.rounds} rounds; the cluster was started before, which took STARTED s; a "
        "worker has one thread",
        "- equal: all outcomes equal that of one process bit for bit, but for `explored` and `evaluated`",
        "",
        "| search | 1 thread | 2 threads | Ray, 1 worker | Ray, 2 workers | 2 workers against 1 | equal |",
        "|---|---|---|---|---|---|---|",
    ]
    tasks = {}
    begin = time.perf_counter()
    with connection(count=2):
        with Workers(_Nothing, count=2) as idle:
            idle.one("nothing")
            started = time.perf_counter() - begin
            trip = _seconds(lambda: [idle.one("nothing") for _ in range(200)])[0] / 200
            service = _seconds(lambda: _asked_many(idle, 2000))[0] / 2000
        for name, options in searches.items():
            ways: list[dict[str, Any]] = [
                {"threads": 1},
                {"threads": 2},
                {"spread": on_ray(workers=1)},
                {"spread": on_ray(workers=2)},
            ]
            times: list[list[float]] = [[] for _ in ways]
            outcomes: list[Outcome] = []
            for _ in range(arguments.rounds):
                for way, seconds in zip(ways, times, strict=True):
                    took, outcome = _seconds(lambda way=way, options=options: mess_core.search(table, **options, **way))
                    seconds.append(took)
                    outcomes.append(replace(outcome, explored=0, evaluated=0))
            medians = [statistics.median(seconds) for seconds in times]
            is_equal = all(outcome == outcomes[0] for outcome in outcomes)
            out.append(
                f"| {name} | {' | '.join(f'{m:.2f}' for m in medians)} | {medians[2] / medians[3]:.2f} x | "
                f"{'yes' if is_equal else 'NO'} |"
            )
            print(out[-1])
    for name, options in searches.items():
        tasks[name] = _recorded(table, options)
    out = [line.replace("STARTED", f"{started:.1f}") for line in out]
    out += [
        "",
        "## What a search is made of",
        "",
        "One worker alone, tasks one by one. What others find matters as far as it comes after the preparations, in "
        "which every worker finds nearly everything.",
        "",
        "| search | preparations | tasks | median | longest | all tasks | better configurations found in tasks |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in tasks.items():
        every = [t for times in one.passes for t in times]
        out.append(
            f"| {name} | {one.prepare:.2f} s | {' + '.join(str(len(t)) for t in one.passes)} | "
            f"{1000 * statistics.median(every):.1f} ms | {1000 * max(every):.0f} ms | {sum(every):.2f} s | "
            f"{one.improved} |"
        )
    out += [
        "",
        "## Simulated",
        "",
        f"Seconds for W workers of one thread: the table at {8 * BANDWIDTH / 1e9:.0f} Gbit/s to one node after the "
        "other, preparations by every worker, the recorded tasks dealt out as `mess.searching.cluster` does, a round "
        f"trip of {1000 * trip:.1f} ms for each chunk, {1000 * service:.2f} ms of it the driver's own, which serves "
        "one worker at a time (both measured), passes waiting for their last task. In brackets, how many times faster "
        "than one worker.",
        "",
        f"| search | {' | '.join(str(w) for w in SIMULATED)} |",
        f"|---|{'---|' * len(SIMULATED)}",
    ]
    for name, one in tasks.items():
        spent = [one.simulated(workers, trip, service, size) for workers in SIMULATED]
        out.append(f"| {name} | {' | '.join(f'{t:.2f} ({spent[0] / t:.1f} x)' for t in spent)} |")
    out += [
        "",
        "Preparations are done by every worker, so the gain ends at (preparations + tasks) / preparations. Threads do "
        "share them: one worker a node, with all of its cores (`--threads`), gains more than one worker a core.",
    ]
    print("\n".join(out))
    if arguments.record:
        (ROOT / "benches" / "record" / "cluster.md").write_text("\n".join(out) + "\n")


class _Nothing:
    """A worker that does nothing, to time a round trip."""

    def nothing(self) -> None:
        return None


@dataclass(frozen=True)
class Recorded:
    """Seconds that one worker takes: for the preparations, and for each task of each pass."""

    prepare: float
    passes: Sequence[Sequence[float]]
    improved: int

    def simulated(self, workers: int, trip: float, service: float, size: int) -> float:
        """Seconds that `workers` take, the driver dealing out chunks as `mess.searching.cluster` does."""
        # the table goes from the driver's node to every other one, one after the other
        free = [size / BANDWIDTH * number + self.prepare for number in range(workers)]
        for times in self.passes:
            left = dealt(times)
            heapq.heapify(free)
            ends, driver, mean, spent, done = list(free), 0.0, 0.0, 0.0, 0
            while left:
                chunk = left[: chunk_size(len(left), workers, mean)]
                del left[: len(chunk)]
                begin = max(heapq.heappop(free), driver)
                driver = begin + service
                end = begin + trip + sum(chunk)
                spent, done = spent + trip + sum(chunk), done + len(chunk)
                mean = spent / done
                heapq.heappush(free, end)
                ends.append(end)
            free = [max(ends)] * workers  # the next pass begins when all is in
        return max(free)


def _recorded(table: mess_core.SearchTable, options: dict[str, Any]) -> Recorded:
    given: list[SearchProblem] = []

    def keep(problem: SearchProblem) -> Outcome:
        given.append(replace(problem, threads=1))
        return SearchPieces(given[0]).outcome(math.inf)

    mess_core.search(table, **options, spread=keep)
    prepare, pieces = _seconds(lambda: SearchPieces(given[0]))
    call = _seconds(lambda: [pieces.run(0.0, []) for _ in range(200)])[0] / 200  # what a call of no task costs
    passes, improved, before = [], 0, None
    for gap in pieces.gaps():
        times = []
        for task in pieces.tasks():
            took, piece = _seconds(lambda gap=gap, task=task: pieces.run(gap, [task]))
            times.append(max(0.0, took - call))
            improved += before is not None and piece.found != before
            before = piece.found
        passes.append(times)
    return Recorded(prepare, passes, improved)


def _asked_many(workers: Workers, count: int) -> None:
    """All at once, so that the driver is what they wait for."""
    left = [()] * count
    for _ in workers.all("nothing", lambda _: left.pop() if left else None, lambda: None):
        pass


def _seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


if __name__ == "__main__":
    main()
