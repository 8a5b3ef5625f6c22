"""Workers on a Ray cluster, for batch jobs that are cut into pieces: `mess search` and `mess calibrate`.

A worker is an actor: prepared once, asked for one piece after the other, each as it becomes free. When one is killed
Ray starts it again, here or on another node, and asks it again for the piece that was lost; nothing else is kept there.
Ray comes with the extra `ray`; `RAY_ADDRESS` names a cluster, without it one is started on this machine for the job.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, Self

POLL_SECONDS = 0.2
"""How often waiting for workers looks around."""

PATIENCE_SECONDS = 10.0
"""Without a single worker, after which it is said that the job waits."""

RESTARTS = 100
"""Of each worker; one that dies more often dies of the job."""


@contextmanager
def connection(*, count: int | None = None, threads: int = 1) -> Iterator[Any]:
    """The library, connected to a cluster; one that is started here is shut down at the end of the outermost block.

    Args:
        count, threads: workers that are wanted and cores of each, for the size of a cluster that is started here.

    Raises:
        RuntimeError: Ray is not installed.
        ConnectionError: no cluster at `RAY_ADDRESS`.
    """
    try:
        with every_interrupt():
            ray = importlib.import_module("ray")
    except ImportError as error:
        raise RuntimeError(f"engine: ray needs the ray extra: pip install 'mess[ray]' ({error})") from None
    if ray.is_initialized():
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = {"address": "local", "num_cpus": _cores(count, threads), "include_dashboard": False}
    try:
        with every_interrupt():
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **({} if os.environ.get("RAY_ADDRESS") else own))
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def every_interrupt() -> Iterator[None]:
    """Ctrl-C within the block raises KeyboardInterrupt, at its end at the latest.

    Python itself only prints what is raised in a callback, such as those around the forks with which Ray starts its
    processes, so a Ctrl-C that comes in one is lost.
    """
    default = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not default:
        yield
        return
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        default(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, default)
    if came:
        raise KeyboardInterrupt


class Workers:
    """Actors of one class; leaving the block kills them. On a cluster that others use too those work that have room,
    and the rest join them when they get it.

    Args:
        kind: the class; workers import it, so `mess` must be installed on every node.
        arguments: for its constructor. Large arrays are stored once a node, and are read-only.
        count: how many; as many as the cluster has room for by default.
        threads: cores that each takes.

    Raises:
        RuntimeError, ConnectionError: as `connection`.
        ValueError: `count` or `threads` is off, or the cluster has no room for a single worker.
    """

    def __init__(self, kind: type, *arguments: Any, count: int | None = None, threads: int = 1) -> None:
        if threads < 1 or (count is not None and count < 1):
            raise ValueError(f"workers: expected at least 1, of at least 1 thread, got {count} of {threads}")
        with ExitStack() as stack:
            self._ray = stack.enter_context(connection(count=count, threads=threads))
            nodes = [node["Resources"].get("CPU", 0) for node in self._ray.nodes() if node["Alive"]]
            room = sum(int(cores // threads) for cores in nodes)  # a worker is on one node
            if not room:
                raise ValueError(f"threads: expected no more than a node of the cluster has, got {threads}")
            self.count = room if count is None else min(count, room)
            self._arguments = [self._ray.put(argument) for argument in arguments]  # kept for those started again
            options = {"num_cpus": threads, "max_restarts": RESTARTS, "max_task_retries": RESTARTS}
            remote = self._ray.remote(**options)(_Actor)
            self._actors = [remote.remote(kind) for _ in range(self.count)]
            self._threads = threads
            # those that are not there yet, by what tells that they are; prepared all at once, whoever is asked first
            self._coming = {actor.prepare.remote(self._arguments): at for at, actor in enumerate(self._actors)}
            self._there: list[int] = []
            self._said_after = time.monotonic() + PATIENCE_SECONDS
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            for actor in self._actors:
                self._ray.kill(actor, no_restart=True)

    def one(self, method: str, *arguments: Any) -> Any:
        """Ask the first worker that is there, and wait."""
        while not self._there:
            self._wait([])
        return self._result(self._ask(self._there[0], method, arguments))

    def all(
        self, method: str, next_piece: Callable[[int], tuple[Any, ...] | None], at_times: Callable[[], object]
    ) -> Iterator[tuple[int, Any]]:
        """Ask every worker for one piece after the other, until there are no more.

        Args:
            method: of the class; gets a piece as its arguments.
            next_piece: gives the next piece for a worker (by number), None when there is none for anybody any more.
            at_times: called several times a second while waiting.

        Yields:
            (number of the worker, its result), as they come. What a worker raises is raised here.
        """
        asked: dict[Any, int] = {}
        is_over = False

        def ask(worker: int) -> None:
            nonlocal is_over
            piece = None if is_over else next_piece(worker)
            is_over = piece is None
            if piece is not None:
                asked[self._ask(worker, method, piece)] = worker

        for worker in list(self._there):
            ask(worker)
        while asked or (self._coming and not is_over):
            arrived, ready = self._wait(list(asked))
            at_times()
            for reference in ready:
                worker = asked.pop(reference)
                result = self._result(reference)
                yield worker, result
                ask(worker)
            for worker in arrived:
                ask(worker)

    def _wait(self, asked: list[Any]) -> tuple[list[int], list[Any]]:
        """For a moment: workers that came, and what is ready of that which is asked."""
        ready, _ = self._ray.wait([*asked, *self._coming], timeout=POLL_SECONDS)
        arrived = [self._coming.pop(reference) for reference in ready if reference in self._coming]
        self._there += arrived
        if not self._there and time.monotonic() > self._said_after:
            self._said_after = float("inf")
            cores = f"{self._threads} free core{'s' if self._threads > 1 else ''}"
            warnings.warn(f"ray: waiting for a worker: no node has {cores}, or it is still starting", stacklevel=3)
        return arrived, [reference for reference in ready if reference in asked]

    def _ask(self, worker: int, method: str, arguments: tuple[Any, ...]) -> Any:
        return self._actors[worker].call.remote(self._arguments, method, arguments)

    def _result(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayActorError as error:
            raise RuntimeError(f"a worker died and could not be started again: {error}") from None


class _Actor:
    """An object of some class; after a restart it is made again when it is asked for something."""

    def __init__(self, kind: type) -> None:
        self._kind, self._object = kind, None

    def prepare(self, references: list[Any]) -> None:
        if self._object is None:
            self._object = self._kind(*importlib.import_module("ray").get(references))

    def call(self, references: list[Any], method: str, arguments: tuple[Any, ...]) -> Any:
        self.prepare(references)
        return getattr(self._object, method)(*arguments)


def at_home(folder: str) -> None:
    """In a worker: find files and modules as the process that asks does, whose current folder is given."""
    if os.path.isdir(folder):  # noqa: PTH112
        os.chdir(folder)
    if "" not in sys.path:
        sys.path.insert(0, "")


def _cores(count: int | None, threads: int) -> int:
    """Of a cluster on this machine; more workers than cores are allowed, they share."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(available, threads) if count is None else count * threads
