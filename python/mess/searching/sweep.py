"""Many searches of one table: a grid of targets, settings and costs, whose results are one Parquet table.

A sweep file is TOML. Each `[[search]]` has flags of `mess search` without their dashes; a list stands for each of its
values, so an entry is a grid:

    [[search]]
    name = "phone"                       # optional
    accuracy-drop = [0.1, 0.5, 1.0]
    cost = ["macs", "latency"]
    max-exits = 3

Searches share what they find: each begins with the configurations that those before it found, which changes how long it
takes and, unless a time limit stops it, nothing else.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mess_core
from mess.calibration.table import CalibrationTable
from mess.cluster import Workers
from mess.deployment.configuration import Configuration, describe
from mess.files import entries, entry, expect_file, json_text, write_whole
from mess.searching import request
from mess.searching.request import SearchSettings, Target
from mess.searching.solve import SearchResult

_TARGETS = inspect.signature(request.targets).parameters
_SETTINGS = {
    name: parameter
    for name, parameter in inspect.signature(request.settings).parameters.items()
    if name not in ("threads", "engine", "workers")
}
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "float": ((int, float), "a number"),
    "int": (int, "a whole number"),
    "bool": (bool, "true or false"),
    "str": (str, "a text"),
}
"""By annotation of a flag's argument: what its value in a file is."""

_LISTS = ("require", "forbid", "class_drop", "cost_limit")
"""Flags that may be repeated: a list of texts is one value of them, a list of lists several."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """One search of a sweep: its name, what it was asked for in the words of the file, target and settings."""

    name: str
    asked: Mapping[str, Any]
    target: Target
    settings: SearchSettings


def wishes(path: str | Path) -> list[Wish]:
    """Every search of a sweep file, grids spelled out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no TOML, no search, a flag that is unknown or off, two searches of one name; names the entry.
    """
    try:
        given = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"sweep: {path}: {error}") from None
    asked = given.get("search")
    if not isinstance(asked, list) or not asked or not all(isinstance(one, dict) for one in asked):
        raise ValueError(f"sweep: {path}: expected tables [[search]], got {list(given) or 'nothing'}")
    found: list[Wish] = []
    for number, one in enumerate(asked):
        try:
            found += _grid(dict(one))
        except (TypeError, ValueError) as error:
            raise ValueError(f"sweep: {path}: [[search]] number {number + 1}: {error}") from None
    names = [wish.name for wish in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"sweep: {path}: expected different searches, got {twice[0]!r} twice")
    return found


def _grid(given: dict[str, Any]) -> Iterator[Wish]:
    known = {name.replace("_", "-"): name for name in (*_TARGETS, *_SETTINGS)}
    title = given.pop("name", "")
    unknown = sorted(given.keys() - known)
    if unknown:
        raise ValueError(f"expected {', '.join(known)}, got {unknown[0]!r}")
    options: list[list[Any]] = []
    for flag, value in given.items():
        if value == [] and known[flag] not in _LISTS:
            raise ValueError(f"{flag}: expected a value or a list of some, got an empty list")
        is_many = isinstance(value, list) and (known[flag] not in _LISTS or any(isinstance(v, list) for v in value))
        options.append(value if is_many else [value])
        for one in options[-1]:
            _check(flag, one, known[flag])
    many = [flag for flag, values in zip(given, options, strict=True) if len(values) > 1]
    for values in itertools.product(*options):
        asked = dict(zip(given, values, strict=True))
        flags = {known[flag]: value for flag, value in asked.items()}
        target = request.targets(**{name: flags.pop(name) for name in _TARGETS if name in flags})
        if not target:
            raise ValueError(f"expected one of {', '.join(_TARGETS).replace('_', '-')}, got none")
        words = (
            [str(title), *(f"{flag}={asked[flag]}" for flag in many)]
            if title
            else [f"{f}={v}" for f, v in asked.items()]
        )
        yield Wish(name=" ".join(words), asked=asked, target=target[0][1], settings=request.settings(**flags))


def _check(flag: str, value: Any, name: str) -> None:
    """ValueError that names the flag unless `value` is of the kind that the argument `name` takes."""
    if name in _LISTS:
        entries({flag: value}, flag, str, "texts")
    else:
        parameter = _TARGETS[name] if name in _TARGETS else _SETTINGS[name]
        entry({flag: value}, flag, *_KINDS[str(parameter.annotation).removesuffix(" | None")])


def sweep(
    table: CalibrationTable,
    asked: Sequence[Wish],
    *,
    engine: request.Engine = "local",
    workers: int | None = None,
    threads: int | None = None,
    report: Callable[[int, Wish, SearchResult | str], object] | None = None,
) -> dict[str, SearchResult | str]:
    """Do all searches, one after the other or, with Ray, as many at a time as there are workers.

    Args:
        table: from `mess.calibrate`.
        asked: from `wishes`.
        engine: `local` or `ray`, see `mess.cluster`; `workers` are Ray's.
        threads: cores of a search; all by default, 1 with Ray.
        report: told (number done, search, result) after each.

    Returns:
        Results by name, in the order asked, or what is wrong with a search that the table does not allow (an unknown
        class, say). They do not depend on engine, workers and threads.
    """
    results: dict[str, SearchResult | str] = {}
    worker = _Worker(table, threads) if engine == "local" else None
    known: dict[str, list[mess_core.Configuration]] = {}

    def note(wish: Wish, result: SearchResult | str) -> None:
        if not isinstance(result, str):
            known.setdefault(wish.settings.setting, []).extend(found.configuration for found in result.outcome.found)
        results[wish.name] = result
        if report is not None:
            report(len(results), wish, result)

    if worker is not None:
        for wish in asked:
            note(wish, worker.run(wish, known.get(wish.settings.setting, []))[1])
    else:
        left = list(asked)

        def next_piece(_: int) -> tuple[Wish, list[mess_core.Configuration]] | None:
            if not left:
                return None
            wish = left.pop(0)
            return wish, known.get(wish.settings.setting, [])

        by_name = {wish.name: wish for wish in asked}
        with Workers(_Worker, table, threads or 1, count=workers, threads=threads or 1) as several:
            for _, (name, result) in several.all("run", next_piece, lambda: None):
                note(by_name[name], result)
    return {wish.name: results[wish.name] for wish in asked}


class _Worker:
    """Searches one table, here or in a process of its own."""

    def __init__(self, table: CalibrationTable, threads: int | None) -> None:
        self._table, self._threads = table, threads

    def run(self, wish: Wish, known: Sequence[mess_core.Configuration]) -> tuple[str, SearchResult | str]:
        settings = replace(wish.settings, threads=self._threads)
        try:
            return wish.name, settings.search(self._table, wish.target, known=known)
        except ValueError as error:  # the others are not lost for it
            return wish.name, str(error)


def write_parquet(path: str | Path, asked: Sequence[Wish], results: Mapping[str, SearchResult | str]) -> None:
    """One row a configuration: `search` (name), `asked` (JSON), `status`, `bound`, `gap`, `cost_column`, `cost`,
    `cost_ratio`, `accuracy`, `drop`, `exits` (for people), `configuration` (JSON, see `Configuration`), `error`; whole
    or not at all. A search that found nothing has a row with nulls; of one that could not be done, `status` is "error".

    Raises:
        RuntimeError: pyarrow is not installed.
    """
    arrow, parquet = _parquet()
    text, number = arrow.string(), arrow.float64()
    columns = {
        "search": text,
        "asked": text,
        "status": text,
        "bound": number,
        "gap": number,
        "cost_column": text,
        "cost": number,
        "cost_ratio": number,
        "accuracy": number,
        "drop": number,
        "exits": text,
        "configuration": text,
        "error": text,
    }
    rows = [row for wish in asked for row in _rows(wish, results[wish.name])]
    content = arrow.Table.from_pylist(rows, schema=arrow.schema(list(columns.items())))
    write_whole(Path(path), lambda temporary: parquet.write_table(content, temporary))


def check_parquet(path: str | Path) -> None:
    """Raise what `write_parquet` would because of the library or the place."""
    _parquet()
    expect_file(Path(path))
    trial = Path(path).with_name(f".{Path(path).name}.trial")
    write_whole(trial, lambda temporary: temporary.touch())
    trial.unlink()


def _parquet() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise RuntimeError(f"sweep: Parquet needs the ray extra: pip install 'mess[ray]' ({error})") from None


def _rows(wish: Wish, result: SearchResult | str) -> Iterator[dict[str, Any]]:
    asked = json_text(dict(wish.asked))
    about: dict[str, Any] = {"search": wish.name, "asked": asked, "cost_column": wish.settings.cost}
    if isinstance(result, str):
        yield about | {"status": "error", "error": result}
        return
    about |= {"status": result.status, "bound": result.outcome.bound, "gap": result.outcome.gap}
    if not result.configurations:
        yield about
    for configuration in result.configurations:
        yield about | _measured(configuration, result)


def _measured(configuration: Configuration, result: SearchResult) -> dict[str, Any]:
    cost, accuracy = configuration.promise["cost"], configuration.promise["accuracy"]
    return {
        "cost": cost,
        "cost_ratio": cost / result.baseline_cost,
        "accuracy": accuracy,
        "drop": result.baseline_accuracy - accuracy,
        "exits": describe(configuration.exits),
        "configuration": json_text(configuration.to_json()),
    }
