"""A search in pieces, for those who spread it over processes and machines.

Everybody prepares the same search and then works off some tasks of a pass. What goes from one to the others is small:
names of tasks, and configurations found. Passes certify falling gaps; when all tasks of the pass with gap 0 are
finished, whoever finished them, the outcome is that of `search` in one process, bit for bit
(`rust/mess-core/src/search/pieces.rs` has the reason).

    def alone(problem):
        pieces = SearchPieces(problem)
        known, certified = (), float("inf")
        for gap in pieces.gaps():
            known = [f.configuration for f in pieces.run(gap, pieces.tasks(), known).found]
            certified = gap
        return pieces.outcome(certified, known)

    search(table, min_accuracy=0.6, spread=alone)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath

from mess_core import _mess_core as native
from mess_core._search import Configuration, Found, Outcome, SearchProblem, _arrays, _found, _outcome, _parts


@dataclass(frozen=True, slots=True)
class Piece:
    """What `SearchPieces.run` did.

    Attributes
    ----------
    found
        the best configuration known, or the front
    finished
        names of the tasks that were finished
    explored, evaluated
        see `Outcome`
    """

    found: tuple[Found, ...]
    finished: tuple[str, ...]
    explored: int
    evaluated: int


class SearchPieces:
    """A search that is prepared: good configurations are found, and the tasks that prove or refute them are laid out.

    Parameters
    ----------
    problem : SearchProblem
        What `search(..., spread=...)` hands over; its `time_limit` is for the preparations, its `journal` is not used.
        Its arrays must not change.

    Raises
    ------
    ValueError
        As `search`.
    KeyboardInterrupt
        Ctrl-C, within a fraction of a second.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self._arrays, self._threads = _arrays(problem.table), problem.threads
        known = [_parts(configuration) for configuration in problem.known]
        self._pieces = native.SearchPieces(self._arrays, *problem.query, known, problem.time_limit, problem.threads)

    def gaps(self) -> tuple[float, ...]:
        """Gaps of the passes, down to 0; none when the preparations proved everything, or were cut short."""
        return tuple(self._pieces.gaps(self._arrays))

    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks of each pass, sorted; the same in every process."""
        return tuple(self._pieces.tasks())

    def run(
        self,
        gap: float,
        tasks: Sequence[str],
        known: Sequence[Configuration] = (),
        time_limit: float | None = None,
    ) -> Piece:
        """Work off some tasks of the pass with this gap; none is finished where the preparations were cut short.

        Parameters
        ----------
        gap : float
            One of `gaps`; in one process, calls with different ones must not overlap.
        tasks : sequence of str
            Some of `tasks`.
        known : sequence of Configuration
            What others found; the more is known, the less there is to do.
        time_limit : float, optional
            Seconds; tasks that are not finished by then are not done.

        Raises
        ------
        ValueError
            A task that does not exist, or a configuration that does not fit the table.
        KeyboardInterrupt
            Ctrl-C.
        """
        configurations = [_parts(configuration) for configuration in known]
        found, finished, explored, evaluated = self._pieces.run(
            self._arrays, float(gap), list(tasks), configurations, time_limit, self._threads
        )
        return Piece(tuple(_found(*entry) for entry in found), tuple(finished), explored, evaluated)

    def outcome(self, gap: float, known: Sequence[Configuration] = ()) -> Outcome:
        """The outcome when the pass with this gap is finished, whoever worked on it (infinity before the first), and
        these configurations are known. Of `explored` and `evaluated` it knows nothing, and when nothing satisfies the
        target it has no `nearest`: see `SearchProblem.nearest`.

        Raises
        ------
        ValueError
            A configuration that does not fit the table.
        """
        configurations = [_parts(configuration) for configuration in known]
        return _outcome(self._pieces.outcome(self._arrays, float(gap), configurations))


class SearchJournal:
    """The file in which a search notes what it has proven: the same that `search(..., journal=...)` writes and reads.

    Parameters
    ----------
    path : path
        Made when it is not there.
    problem : SearchProblem
        Whose journal it is.

    Raises
    ------
    ValueError
        A journal of another search, or no file that can be written.
    """

    def __init__(self, path: str | PathLike[str], problem: SearchProblem) -> None:
        self._journal = native.SearchJournal(fspath(path), _arrays(problem.table), *problem.query)

    @property
    def known(self) -> tuple[Configuration, ...]:
        """Configurations that were found before."""
        return tuple(_found(*parts, 0.0, 0.0, []).configuration for parts in self._journal.known())

    def is_done(self, gap: float, task: str) -> bool:
        """Whether this task was finished before, in the pass with this gap."""
        return self._journal.is_done(float(gap), task)

    def finish(self, gap: float, tasks: Sequence[str], known: Sequence[Configuration]) -> None:
        """Note that tasks are finished, after all configurations that were found up to then.

        Raises
        ------
        ValueError
            It cannot be written: a full disk, for example.
        """
        self._journal.finish(float(gap), list(tasks), [_parts(configuration) for configuration in known])
