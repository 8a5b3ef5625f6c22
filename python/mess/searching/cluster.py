"""The exact search on a Ray cluster: `mess.search(table, ..., spread=on_ray())`.

The table is stored once a node. Every worker prepares the search for itself and then works off tasks, a chunk at a
time; what goes back and forth are names of tasks and configurations found (`mess_core.SearchPieces`, which says why the
answer is that of one process, bit for bit). The driver alone writes the journal, which is that of the search in one
process: a search can be killed here and go on there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from mess.cluster import Workers
from mess_core import Configuration, Outcome, Progress, SearchJournal, SearchPieces, SearchProblem

Task = TypeVar("Task")

CHUNKS = 4
"""A chunk is what is left, divided by this and by the workers: large at first, small at the end."""

LEAST_SECONDS = 0.05
"""Of a chunk: some fifty times what it takes to ask for one."""


def chunk_size(left: int, workers: int, seconds_of_task: float) -> int:
    """How many of the tasks that are left the next worker gets."""
    worth_it = math.ceil(LEAST_SECONDS / seconds_of_task) if seconds_of_task > 0 else 1
    return max(1, left // (CHUNKS * workers), min(worth_it, left // workers))


def dealt(tasks: Sequence[Task]) -> list[Task]:
    """In an order in which neighbours are far apart: they take similar times, a few of them nearly all of it."""
    golden = (math.sqrt(5) - 1) / 2
    return [tasks[i] for i in sorted(range(len(tasks)), key=lambda i: i * golden % 1)]


def on_ray(*, workers: int | None = None, threads: int = 1) -> Callable[[SearchProblem], Outcome]:
    """What `mess.search(..., spread=...)` wants, to search with Ray.

    Args:
        workers: how many; as many as the cluster has room for by default.
        threads: cores that each takes.

    The outcome equals that of one process in all but `explored` and `evaluated`, which depend on luck in pruning, and,
    of a search that was stopped, `found`, `gap` and `covered` (0).
    """

    def search(problem: SearchProblem) -> Outcome:
        driver = _Driver(problem, workers, threads)
        outcome = driver.search()
        if outcome.status == "infeasible" and problem.nearest is not None:
            left = replace(problem.nearest, time_limit=driver.seconds_left())
            nearest = _Driver(left, workers, threads).search()
            outcome = replace(outcome, nearest=nearest.found[-1] if nearest.found else None)
        return outcome

    return search


@dataclass
class _Driver:
    """Deals out the tasks of one pass after the other, and collects what was found."""

    problem: SearchProblem
    workers: int | None
    threads: int
    known: dict[Configuration, None] = field(default_factory=dict)
    """In the order in which they were found."""
    sent: list[set[Configuration]] = field(default_factory=list)
    """What each worker knows of them."""
    journal: SearchJournal | None = None
    started: float = field(default_factory=time.monotonic)
    gap: float = math.inf
    explored: int = 0
    evaluated: int = 0
    best: tuple[float, float] | None = None

    def search(self) -> Outcome:
        self.journal = None if self.problem.journal is None else SearchJournal(self.problem.journal, self.problem)
        self.known = dict.fromkeys((*self.problem.known, *(self.journal.known if self.journal else ())))
        # what `progress` refers to cannot be sent
        problem = replace(self.problem, known=tuple(self.known), threads=self.threads, journal=None, progress=None)
        with Workers(SearchPieces, problem, count=self.workers, threads=self.threads) as workers:
            self.sent = [set(self.known) for _ in range(workers.count)]
            gaps, tasks = workers.one("gaps"), workers.one("tasks")
            for gap in gaps:
                if not self._pass(workers, gap, tasks):
                    break  # out of time
            outcome: Outcome = workers.one("outcome", self.gap, list(self.known))
        return replace(outcome, explored=self.explored, evaluated=self.evaluated)

    def _pass(self, workers: Workers, gap: float, tasks: Sequence[str]) -> bool:
        """Whether all tasks of the pass with this gap were finished, now or before, so that it is certified."""
        left = dealt([task for task in tasks if self.journal is None or not self.journal.is_done(gap, task)])
        waiting = set(left)
        begun, spent = len(left), 0.0  # tasks, and seconds of workers, of this pass
        asked_at = [0.0] * workers.count

        def show() -> None:
            self._show(len(tasks) - len(waiting), len(tasks), gap)

        def next_piece(worker: int) -> tuple[float, list[str], list[Configuration], float | None] | None:
            seconds = self.seconds_left()
            if not left or seconds == 0:
                return None
            size = chunk_size(len(left), workers.count, spent / max(1, begun - len(waiting)))
            chunk, left[:size] = left[:size], []
            new = [configuration for configuration in self.known if configuration not in self.sent[worker]]
            self.sent[worker].update(new)
            asked_at[worker] = time.monotonic()
            return gap, chunk, new, seconds

        for worker, piece in workers.all("run", next_piece, show):
            spent += time.monotonic() - asked_at[worker]
            configurations = [found.configuration for found in piece.found]
            self.known.update(dict.fromkeys(configurations))
            self.sent[worker].update(configurations)
            if self.journal is not None:
                self.journal.finish(gap, piece.finished, configurations)
            waiting.difference_update(piece.finished)
            self.explored += piece.explored
            self.evaluated += piece.evaluated
            if piece.found:
                self.best = (piece.found[-1].cost, piece.found[-1].accuracy)
        if not waiting:
            self.gap = gap
        show()
        return not waiting

    def seconds_left(self) -> float | None:
        """Of the time limit, if there is one."""
        limit = self.problem.time_limit
        return None if limit is None else max(0.0, limit - (time.monotonic() - self.started))

    def _show(self, done: int, total: int, gap: float) -> None:
        if self.problem.progress is not None:
            cost, accuracy = self.best or (None, None)
            self.problem.progress(
                Progress(done, total, gap, self.gap, 0.0, cost, accuracy, self.explored, self.evaluated)
            )
