"""What `mess search` does to a run folder (`mess.runs`) or a calibration table. Needs no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import mess_core
from mess.calibration.table import CalibrationTable
from mess.cluster import connection
from mess.deployment.configuration import Configuration
from mess.files import EXITS_FILE, WEIGHTS, expect_run, file_sha256, write_json
from mess.progress import progress, say
from mess.reporting import charts
from mess.searching import Guarantee, Guaranteed, SearchInterrupted, SearchResult, baselines, guarantee, smaller_network
from mess.searching.request import LIMITS, STANDARD_TARGETS, Engine, SearchSettings, Target, show
from mess.searching.solve import indices_of
from mess.searching.sweep import Wish, check_parquet, sweep, wishes, write_parquet
from mess_core import Setting


def search_run(
    source: Path,
    *,
    split: str = "val",
    target: tuple[str, Target] | None = None,
    settings: SearchSettings | None = None,
    journal: Path | None = None,
) -> dict[str, SearchResult]:
    """Search a calibration table; write `configurations/<name>.json`, for a front `front.json`, and a picture.

    Names carry what is asked beside the target, so that no answer replaces that to another question: setting, cost and
    metric when those are not `input-dependent`, `macs` and `mean-iou`, then limits, and the split when it is not `val`,
    of a table file its name without `table-`: `drop-1pp-budgeted-latency_ms`, `drop-5pp-max-exits-2-min-share-0.1`. A
    search begins with the answer that is there.
    Interrupted (Ctrl-C), the best known is written where there is no answer yet.

    Args:
        source: a run folder, whose table of `split` is searched, or a table file, beside which the results go.
        target: by name; without it the standard targets and `front`.

    Returns:
        Results by name.

    Raises:
        SearchInterrupted: a KeyboardInterrupt, see `mess.search`; a plain one with Ray.
    """
    chosen = settings or SearchSettings()
    folder = source.parent if source.is_file() else source
    table = table_of(source, split)
    wanted = {**STANDARD_TARGETS, "front": Target()} if target is None else dict([target])
    results: dict[str, SearchResult] = {}
    suffix = told_apart(chosen, _searched(source, split))
    is_on_ray = chosen.engine == "ray"
    with connection(count=chosen.workers, threads=chosen.threads or 1) if is_on_ray else nullcontext():
        for name, wish in wanted.items():
            interruption: SearchInterrupted | None = None
            is_front = name == "front"
            path = folder / f"front{suffix}.json" if is_front else folder / "configurations" / f"{name}{suffix}.json"
            try:
                with progress(f"search {name}", 1) as bar:
                    found = chosen.search(table, wish, bar, journal, known=_known(path, table, chosen.setting))
            except SearchInterrupted as stopped:
                found, interruption = stopped.result, stopped
            results[name] = found
            if interruption is not None:
                _keep(path, found, is_front=is_front)
                raise interruption
            if is_front or found.configurations:
                _write(path, found, is_front=is_front)
            elif found.status == "infeasible":
                path.unlink(missing_ok=True)  # what an earlier search found is not an answer to this one
    picture = folder / "pictures" / f"{'tradeoff' if 'front' in results else next(iter(results))}{suffix}.png"
    if any(found.configurations for found in results.values()):
        charts.tradeoff_figure(table, results, picture, cost=chosen.cost, metric=chosen.metric, setting=chosen.setting)
    elif all(found.status == "infeasible" for found in results.values()):
        picture.unlink(missing_ok=True)
    return results


def _known(path: Path, table: CalibrationTable, setting: Setting) -> list[mess_core.Configuration]:
    """What an earlier search wrote, where the table has its exits: a search that is stopped does not lose it, and one
    that is not finds the same with it as without."""
    try:
        written = json.loads(path.read_text(encoding="utf-8-sig"))
        found = [Configuration.from_json(value) for value in (written if isinstance(written, list) else [written])]
        return [indices_of(configuration, table) for configuration in found if configuration.setting == setting]
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return []  # none, or that of another table


def _write(path: Path, found: SearchResult, *, is_front: bool) -> None:
    if is_front:
        write_json(path, [c.to_json() for c in found.configurations])
    else:
        found.best.save(path)


def _keep(path: Path, found: SearchResult, *, is_front: bool) -> None:
    """Write what an interrupted search knew, unless there is an answer already, and tell it."""
    if not found.configurations:
        known = "nothing was found yet"
    elif path.is_file():
        known = f"{path} is what an earlier search found"
    else:
        _write(path, found, is_front=is_front)
        known = f"the best known is in {path}"
    certified = f", gap {found.outcome.gap:.2%} certified" if found.outcome.gap < 1 else ""
    say(f"search {path.stem}: interrupted; {known}{certified}")


def _searched(source: Path, split: str) -> str:
    """What tells one table from others in names of answers."""
    return source.stem.removeprefix("table-") if source.is_file() else split


def told_apart(settings: SearchSettings, searched: str = "val") -> str:
    """What a search asks beside its target, as the end of a file's name: `-latency_ms-max-exits-2`."""
    usual, text = SearchSettings(), ""
    for name in ("setting", "cost", "metric", *LIMITS):
        value = getattr(settings, name)
        if name == "max_class_drop":  # the flag has percentage points
            value = {label: 100 * drop for label, drop in value.items()}
        if value != getattr(usual, name):
            text += f"-{LIMITS[name]}-{_words(value)}" if name in LIMITS else f"-{_words(value)}"
    text += "" if searched in ("val", "table") else f"-{_words(searched)}"
    if len(text) > 120:  # file systems take 255
        text = f"{text[:100]}-{sha256(text.encode()).hexdigest()[:12]}"
    return text


def _words(value: object) -> str:
    """A flag's value, in characters that every file system takes."""
    if isinstance(value, Mapping):
        words = [f"{name}={number:.12g}" for name, number in sorted(value.items())]
    elif isinstance(value, tuple):
        words = sorted(set(value))
    else:
        words = [f"{value:.12g}" if isinstance(value, float) else str(value)]
    text = "-".join(words).replace(":", "_")
    plain = re.sub(r"[^\w.=+-]+", "_", text, flags=re.ASCII)
    return plain if plain == text else f"{plain}-{sha256(text.encode()).hexdigest()[:8]}"


def sweep_run(
    source: Path,
    targets: Path,
    out: Path,
    *,
    split: str = "val",
    engine: Engine = "local",
    workers: int | None = None,
    threads: int | None = None,
) -> dict[str, SearchResult | str]:
    """Do every search of a sweep file (`mess.searching.sweep`) on one table, and write a Parquet table of the results.

    Args:
        source: a run folder, or a table file.
        targets: the sweep file.
        out: the Parquet file. Interrupted, what is done is in `<its name>.partial.parquet`.
    """
    asked = wishes(targets)
    check_parquet(out)  # what cannot be written is told before the long part
    done: dict[str, SearchResult | str] = {}
    partial = out.with_name(f"{out.stem}.partial{out.suffix}")
    with progress("sweep", len(asked)) as bar:

        def report(number: int, wish: Wish, result: SearchResult | str) -> None:
            done[wish.name] = result
            bar.set(number, len(asked), wish.name)

        table = table_of(source, split)
        try:
            results = sweep(table, asked, engine=engine, workers=workers, threads=threads, report=report)
        except BaseException:
            if done:
                with suppress(OSError):
                    write_parquet(partial, [wish for wish in asked if wish.name in done], done)
                    say(f"sweep: {len(done)} of {len(asked)} searches are in {partial}")
            raise
    write_parquet(out, asked, results)
    partial.unlink(missing_ok=True)
    return results


def guarantee_run(
    source: Path, promises: list[str], *, split: str, held_out: str | None, settings: SearchSettings
) -> Guaranteed:
    """Find the cheapest configuration with a promise (`mess.guarantee`); writes `configurations/guaranteed.json`, with
    limits and split in its name as in `search_run`.

    Args:
        source: a run folder, or a table file.
        held_out: split (of a run folder) whose table the promise is proven with; by default the table of `split` is
            divided.
    """
    if settings.setting != "input-dependent" or settings.min_share or settings.max_class_drop or settings.cost_limits:
        raise ValueError(
            "--guarantee: expected the input-dependent setting and no --min-share, --cost-limit or --class-drop beside "
            "it (promise a miss rate of the class)"
        )
    if settings.metric != SearchSettings().metric:
        raise ValueError("--metric: expected none beside --guarantee, which promises losses of images")
    if settings.resolution != SearchSettings().resolution:
        raise ValueError("--resolution: expected none beside --guarantee, which searches no front")
    if settings.engine != "local":
        raise ValueError("--engine: expected local beside --guarantee, whose searches are short")
    table = table_of(source, split)
    folder = source.parent if source.is_file() else source
    with progress("search path", 1) as bar:
        result = guarantee(
            table,
            promises,
            held_out=None if held_out is None else table_of(folder, held_out),
            cost=settings.cost,
            max_exits=settings.max_exits,
            time_limit=settings.time_limit if settings.time_limit is not None else settings.front_seconds,
            image_thresholds=settings.image_thresholds,
            required_exits=settings.required_exits,
            forbidden_exits=settings.forbidden_exits,
            threads=settings.threads,
            progress=lambda state: show(bar, state),
        )
    path = folder / "configurations" / f"guaranteed{told_apart(settings, _searched(source, split))}.json"
    if result.configuration is not None:
        result.configuration.save(path)
    elif result.is_complete and _promises(path) in (None, {str(Guarantee.parse(promise)) for promise in promises}):
        path.unlink(missing_ok=True)  # what another calibration promised is not promised by this one
    return result


def _promises(path: Path) -> set[str] | None:
    """What a configuration file promises; None where there is none, or one that cannot be read."""
    try:
        return {said["guarantee"] for said in Configuration.load(path).promise.get("guarantees", [])}
    except (OSError, ValueError, TypeError, LookupError):
        return None


def search_baselines(
    source: Path, *, split: str, target: Target, settings: SearchSettings
) -> dict[str, Configuration | None]:
    """What a single exit, uniform placement and a greedy choice reach for the same target."""
    table = table_of(source, split)

    # each takes less than starting workers does, whose threads are not this process's
    here = settings if settings.engine == "local" else replace(settings, engine="local", threads=None)

    def one(**other: Any) -> SearchResult:
        return here.search(table, target, **other)

    return baselines(
        table,
        one,
        max_exits=settings.max_exits,
        minimises_cost=target.minimises_cost,
        required=settings.required_exits,
        forbidden=settings.forbidden_exits,
    )


def search_smaller(
    source: Path, *, split: str, results: Mapping[str, SearchResult], settings: SearchSettings
) -> dict[str, Configuration | None]:
    """For each input-dependent result: the best plain network at no more than its cost (`mess.searching`)."""
    if settings.setting != "input-dependent":
        return {}
    table = table_of(source, split)
    return {
        name: smaller_network(table, max_cost=found.best.promise["cost"], cost=settings.cost, metric=settings.metric)
        for name, found in results.items()
        if name != "front" and found.configurations
    }


def table_of(source: Path, split: str) -> CalibrationTable:
    """A table file, or the table of `split` in a run folder."""
    if source.is_file():
        return CalibrationTable.load(source)
    expect_run(source)
    path = source / f"table-{split}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"table: {path} is not there; run `mess calibrate {source} --split {split}` first")
    table = CalibrationTable.load(path)
    if not is_of_weights(source, table.facts):
        raise ValueError(
            f"table: {path} is of other weights than {source / EXITS_FILE} has now; run `mess calibrate {source} "
            f"--split {split}` again"
        )
    return table


def is_of_weights(run: Path, facts: Mapping[str, Any]) -> bool:
    """Whether `facts`, of a table, a promise or an evaluation, were measured with the weights that the run has now, as
    far as they tell."""
    path = run / EXITS_FILE
    return WEIGHTS not in facts or not path.is_file() or _sha256(path, path.stat().st_mtime_ns) == facts[WEIGHTS]


@cache
def _sha256(path: Path, changed: int) -> str:
    return file_sha256(path)
