"""Calibration on a Ray cluster: batches are measured by workers, one after the other as these become free.

Workers make the network and the data of the run folder for themselves, so folder and data must be found under the same
names on every node (a shared file system). The batches are those of one process, so the table is too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from mess import runs
from mess.calibration.collect import Spread
from mess.calibration.counts import BatchCounts, Measure
from mess.cluster import Workers, at_home
from mess.data.loader import batches_from
from mess.model.adapter import evaluating


def on_ray(folder: str | Path, split: str, *, workers: int | None = None, threads: int = 1) -> Spread:
    """What `mess.calibrate(..., spread=...)` wants, to measure the images of a run folder's split with Ray.

    Args:
        folder: the run, with its trained network.
        split: of its data.
        workers: how many; as many as the cluster has room for by default.
        threads: cores that each takes. Results are those of a single process with as many threads.
    """

    def spread(measure: Measure, todo: Sequence[int]) -> Iterator[tuple[int, BatchCounts | tuple[str, ...]]]:
        if not todo:
            return
        left = list(todo)

        def next_piece(_: int) -> tuple[int] | None:
            return (left.pop(0),) if left else None

        here = str(Path.cwd())
        with Workers(_Worker, here, str(folder), split, measure, threads, count=workers, threads=threads) as several:
            for _, (number, found) in several.all("run", next_piece, lambda: None):
                yield number, found

    return spread


class _Worker:
    """In a process of its own, on some node."""

    def __init__(self, here: str, folder: str, split: str, measure: Measure, threads: int) -> None:
        at_home(here)
        os.environ["MESS_CORE_THREADS"] = str(threads)
        torch.set_num_threads(threads)
        self._network = runs.trained_network(Path(folder))
        self._batches = runs.loader(runs.RunSettings.load(Path(folder)), split=split)
        self._measure = measure

    def run(self, number: int) -> tuple[int, BatchCounts | tuple[str, ...]]:
        try:
            images, labels = next(batches_from(self._batches, 0, number))
        except (ValueError, OSError) as error:
            return number, self._unreadable(number) or (f"batch {number} ({error})",)
        with evaluating(self._network):
            return number, self._measure.counts(self._network, images, labels)

    def _unreadable(self, number: int) -> tuple[str, ...]:
        """What is wrong with each image of a batch that cannot be read."""
        said = []
        for index in self._batches.indices(number):
            try:
                self._batches.example(index)
            except (ValueError, OSError) as error:
                said.append(f"{self._batches.dataset.identity(index)} ({error})")
        return tuple(said)
