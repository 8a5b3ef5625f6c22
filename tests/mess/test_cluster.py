"""Searches, sweeps and calibrations on a real Ray cluster of two workers, which is started here; and its accidents."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
from benches.python.guarantee import as_calibration_table
from benches.python.search_table import synthetic_table
from PIL import Image
from typer.testing import CliRunner

import mess
import mess_core
from mess import cli, runs, search_verb, verbs
from mess.calibration.cluster import on_ray as calibrated_on_ray
from mess.calibration.table import CalibrationTable
from mess.cluster import Workers, connection
from mess.searching import on_ray, request
from mess.searching.sweep import wishes
from mess_core import SearchPieces

ROOT = Path(__file__).resolve().parents[2]
LUCK = {"explored": 0, "evaluated": 0}
SMALL = {"images": 60, "classes": 4, "points": 4, "heads": 4, "pixels": 3}


@pytest.fixture(scope="module")
def ray():
    """One cluster for all tests that do not kill it."""
    with connection(count=2) as library:
        yield library


@pytest.fixture(scope="module")
def small():
    return synthetic_table(**SMALL)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"min_accuracy": 0.6},
        {"max_cost": 0.5},
        {"resolution": 0.01},
        {"min_accuracy": 2.0},
        {"max_cost": 0.0},
        {"setting": "budgeted"},
        {"setting": "anytime", "max_cost": 0.8},
        {"max_cost": 0.5, "min_share": 0.05, "min_class_iou": {1: 0.2}, "required_exits": [5]},
    ],
)
def test_the_search_is_that_of_one_process(ray, small, options):
    one = mess_core.search(small, **options)
    several = mess_core.search(small, **options, spread=on_ray(workers=2))
    assert replace(one, **LUCK) == replace(several, **LUCK)
    if one.status == "optimal" and options.get("setting") is None:
        assert several.explored > 0


@pytest.mark.slow
def test_progress_and_time_limit(ray, small):
    seen = []
    mess_core.search(small, max_cost=0.5, progress=seen.append, spread=on_ray(workers=2))
    last = seen[-1]
    assert (last.done, last.gap) == (last.total, 0.0)
    assert last.accuracy is not None
    stopped = mess_core.search(small, max_cost=0.5, time_limit=0.0, spread=on_ray(workers=1))
    assert stopped.status == "stopped"


@pytest.mark.slow
def test_a_cluster_that_others_use_too(ray, small, monkeypatch):
    """Workers that have no room are not waited for; without any the job says so, and goes on when there is room."""

    class Holder:
        def hold(self):
            return True

    def held(count):
        holders = [ray.remote(num_cpus=1)(Holder).remote() for _ in range(count)]
        assert ray.get([holder.hold.remote() for holder in holders]) == [True] * count
        return holders

    one = mess_core.search(small, resolution=0.01)
    (holder,) = held(1)
    several = mess_core.search(small, resolution=0.01, spread=on_ray(workers=2))
    assert replace(one, **LUCK) == replace(several, **LUCK)
    holders = [holder, *held(1)]
    monkeypatch.setattr("mess.cluster.PATIENCE_SECONDS", 0.5)
    timers = [threading.Timer(2.0, ray.kill, [holder]) for holder in holders]
    for timer in timers:
        timer.start()
    with pytest.warns(UserWarning, match="waiting for a worker: no node has 1 free core, or"):
        several = mess_core.search(small, resolution=0.01, spread=on_ray(workers=2))
    assert replace(one, **LUCK) == replace(several, **LUCK)


class Dying(SearchPieces):
    """Kills its own process at the second piece that it is asked for; when it is started again, it lives."""

    def __init__(self, problem, mark):
        super().__init__(problem)
        self._mark, self._asked = Path(mark), 0

    def run(self, *arguments):
        self._asked += 1
        if self._asked == 2 and not self._mark.exists():
            self._mark.write_text("killed")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(*arguments)


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(ray, small, tmp_path, monkeypatch):
    mark = tmp_path / "mark"

    def dying(kind, problem, **options):
        assert kind is SearchPieces
        return Workers(Dying, problem, str(mark), **options)

    monkeypatch.setattr("mess.searching.cluster.Workers", dying)
    one = mess_core.search(small, resolution=0.01)
    several = mess_core.search(small, resolution=0.01, spread=on_ray(workers=2), journal=tmp_path / "journal")
    assert mark.exists()
    assert replace(one, **LUCK) == replace(several, **LUCK)


class Failing:
    """A worker that says no."""

    def say(self, word):
        raise ValueError(f"word: expected another, got {word}")

    def end(self):
        os._exit(1)


@pytest.mark.slow
def test_what_a_worker_raises_is_raised_here(ray, monkeypatch):
    with Workers(Failing, count=1) as workers:
        with pytest.raises(ValueError, match="word: expected another, got x"):
            workers.one("say", "x")
        with pytest.raises(ValueError, match="word: expected another, got y"):
            list(workers.all("say", lambda worker: ("y",), lambda: None))
    monkeypatch.setattr("mess.cluster.RESTARTS", 1)
    with Workers(Failing, count=1) as workers, pytest.raises(RuntimeError, match="a worker died"):
        workers.one("end")
    with pytest.raises(ValueError, match="workers: expected at least 1"):
        Workers(Failing, count=0)
    with pytest.raises(ValueError, match="threads: expected no more than"):
        Workers(Failing, threads=10_000)


def test_a_worker_is_on_one_node(monkeypatch):
    """Cores of several nodes make none: a worker that no node has room for would be waited for for ever."""
    nodes = [{"Alive": True, "Resources": {"CPU": 4.0}}] * 2 + [{"Alive": False, "Resources": {"CPU": 64.0}}]

    @contextlib.contextmanager
    def cluster(**_):
        yield SimpleNamespace(nodes=lambda: nodes, put=lambda x: x, remote=ray_remote, kill=lambda *_, **__: None)

    def ray_remote(**options):
        actor = SimpleNamespace(prepare=SimpleNamespace(remote=lambda *_: None))
        return lambda kind: SimpleNamespace(remote=lambda *_: actor)

    monkeypatch.setattr("mess.cluster.connection", cluster)
    with pytest.raises(ValueError, match="threads: expected no more than a node of the cluster has, got 8"):
        Workers(Failing, threads=8)
    for threads, count in ((3, 2), (2, 4), (4, 2)):
        with Workers(Failing, threads=threads) as workers:
            assert workers.count == count


def test_without_ray(monkeypatch, small):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RuntimeError, match=r"pip install 'mess\[ray\]'"):
        mess_core.search(small, max_cost=0.5, spread=on_ray())


DRIVER = """
import signal
import sys
from benches.python.search_table import synthetic_table
import mess_core
from mess.searching import on_ray
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
table = synthetic_table(images=200, classes=6, points=5, heads=6, pixels=4)
print("ready", flush=True)
mess_core.search(table, resolution=0.002, journal=sys.argv[1], spread=on_ray(workers=2))
"""


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_from_its_journal(ray, tmp_path):
    """On a cluster or in one process."""
    journal = tmp_path / "journal"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(journal)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.is_file() and journal.read_bytes().count(b"done") > 20:
            break
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    process.kill()
    process.wait()
    assert journal.read_bytes().count(b"done") > 20
    table = synthetic_table(images=200, classes=6, points=5, heads=6, pixels=4)
    whole = mess_core.search(table, resolution=0.002)
    again = shutil.copy(journal, tmp_path / "again")
    for resumed in (
        mess_core.search(table, resolution=0.002, journal=journal),
        mess_core.search(table, resolution=0.002, journal=again, spread=on_ray(workers=2)),
    ):
        assert replace(whole, **LUCK) == replace(resumed, **LUCK)
        assert resumed.explored < whole.explored


LOST_IN_A_CALLBACK = """
import signal
from mess.cluster import every_interrupt

class Deaf:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
try:
    with every_interrupt():
        Deaf()
        print("the end", flush=True)
except KeyboardInterrupt:
    print("told", flush=True)
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
with every_interrupt():
    print("quiet", flush=True)
"""


def test_ctrl_c_in_a_callback_is_not_lost():
    """In a process of its own: an interrupt that went astray would end the one that runs the tests."""
    command = [sys.executable, "-c", LOST_IN_A_CALLBACK]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.stdout.split("\n") == ["the end", "told", "quiet", ""], done.stderr


@pytest.mark.slow
def test_ctrl_c_ends_it_at_once(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "journal")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "journal").is_file():
        time.sleep(0.01)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0, errors
    assert "KeyboardInterrupt" in errors


@pytest.mark.slow
def test_a_cluster_that_somebody_started(small, tmp_path):
    """The same command with RAY_ADDRESS, and the cluster is there afterwards."""
    table = as_calibration_table(small, "val")
    table.save(tmp_path / "table.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ray_command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"]
    port = address.rpartition(":")[2]
    options = ["--include-dashboard=false", "--disable-usage-stats", f"--port={port}"]
    head = subprocess.Popen([*ray_command, *options], start_new_session=True, stdout=subprocess.DEVNULL)
    command = [sys.executable, "-m", "mess", "search", "table.safetensors", "--accuracy-drop", "2", "--no-baselines"]
    try:
        answers = []
        for more in (["--engine", "ray"], ["--engine", "ray"], []):
            told = subprocess.run(
                [*command, "--json", *more],
                cwd=tmp_path,
                env={**os.environ, "RAY_ADDRESS": address},
                capture_output=True,
                text=True,
                check=False,
            )
            assert told.returncode == 0, told.stderr
            answers.append(json.loads(told.stdout)["drop-2pp"] | {"explored": None, "evaluated": None})
        assert answers[0] == answers[1] == answers[2]
        assert head.poll() is None
    finally:
        head.terminate()  # and it ends its processes
        try:
            head.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)


SWEEP = """
[[search]]
name = "phone"
accuracy-drop = [0.5, 2]
max-exits = [2, 3]

[[search]]
budget = "0.6x"
class-drop = ["class 1=5"]

[[search]]
name = "front"
front = true
resolution = 2
setting = "budgeted"

[[search]]
name = "impossible"
min-accuracy = 99.9

[[search]]
name = "wrong"
budget = "1x"
cost = "volts"
"""


@pytest.mark.slow
def test_a_sweep_has_the_answers_of_single_searches(ray, small, tmp_path):
    table = as_calibration_table(small, "val")
    path = tmp_path / "table.safetensors"
    table.save(path)
    (tmp_path / "targets.toml").write_text(SWEEP)
    asked = wishes(tmp_path / "targets.toml")
    assert [wish.name for wish in asked] == [
        "phone accuracy-drop=0.5 max-exits=2",
        "phone accuracy-drop=0.5 max-exits=3",
        "phone accuracy-drop=2 max-exits=2",
        "phone accuracy-drop=2 max-exits=3",
        "budget=0.6x class-drop=['class 1=5']",
        "front",
        "impossible",
        "wrong",
    ]
    contents = {}
    for engine in ("local", "ray"):
        out = tmp_path / f"{engine}.parquet"
        more = ["--workers", "2"] if engine == "ray" else []
        command = ["search", str(path), "--sweep", str(tmp_path / "targets.toml"), "-o", str(out), "--json"]
        told = CliRunner().invoke(cli.app, [*command, "--engine", engine, *more])
        assert told.exit_code == 1, told.output  # one of them is impossible
        assert json.loads(told.stdout)["impossible"]["status"] == "infeasible"
        contents[engine] = pyarrow.parquet.read_table(out)
    assert contents["local"].equals(contents["ray"])
    rows = contents["ray"].to_pylist()
    assert rows[-1]["status"] == "error"
    assert "cost: expected one of" in rows[-1]["error"]
    for wish in asked[:-1]:
        alone = wish.settings.search(table, wish.target)
        mine = [row for row in rows if row["search"] == wish.name]
        assert {row["status"] for row in mine} == {alone.status}
        found = [mess.Configuration.from_json(json.loads(r["configuration"])) for r in mine if r["configuration"]]
        assert found == list(alone.configurations)
        assert json.loads(mine[0]["asked"]) == dict(wish.asked)
    assert next(row["cost"] for row in rows if row["search"] == "impossible") is None


def test_a_sweep_that_is_interrupted_leaves_what_is_done(small, tmp_path, monkeypatch):
    table, out = tmp_path / "table.safetensors", tmp_path / "out.parquet"
    as_calibration_table(small, "val").save(table)
    (tmp_path / "targets.toml").write_text("[[search]]\nbudget = ['0.5x', '0.6x', '0.7x']\n")
    with pytest.raises(IsADirectoryError, match="out: expected the name of a file"):
        search_verb.sweep_run(table, tmp_path / "targets.toml", tmp_path)
    done = []

    def search(self, *args, **options):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(original(self, *args, **options))
        return done[-1]

    original = request.SearchSettings.search
    monkeypatch.setattr(request.SearchSettings, "search", search)
    with pytest.raises(KeyboardInterrupt):
        search_verb.sweep_run(table, tmp_path / "targets.toml", out)
    found = pyarrow.parquet.read_table(tmp_path / "out.partial.parquet").to_pylist()
    assert [row["cost"] for row in found] == [one.best.promise["cost"] for one in done]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.partial.parquet", "table.safetensors", "targets.toml"]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done.clear()
    with pytest.raises(RuntimeError, match=r"sweep: Parquet needs the ray extra"):
        search_verb.sweep_run(table, tmp_path / "targets.toml", tmp_path / "other.parquet")
    assert not done


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected tables"),
        ("search = 3", "expected tables"),
        ("[[search]]", "number 1: expected one of accuracy-drop"),
        ("[[search]]\nfront = true\nspeed = 3", "number 1: expected .*, got 'speed'"),
        ("[[search]]\nfront = true\nbudget = '1x'", "expected at most one, got 2"),
        ("[[search]]\naccuracy-drop = 'much'", "number 1: accuracy-drop: expected a number, got 'much'"),
        ("[[search]]\nbudget = 3", "number 1: budget: expected a text, got '3'"),
        (f"[[search]]\naccuracy-drop = {10**400}", "number 1: accuracy-drop: expected a number, got '1000"),
        ("[[search]]\nfront = 1", "number 1: front: expected true or false, got '1'"),
        ("[[search]]\nfront = true\nmax-exits = [2, 2.5]", "max-exits: expected a whole number, got '2.5'"),
        ("[[search]]\nfront = true\nclass-drop = [3]", "class-drop: expected a list of texts, got '3'"),
        ("[[search]]\nfront = true\nrequire = 'final'", "require: expected a list of texts, got 'final'"),
        ("[[search]]\naccuracy-drop = []", "number 1: accuracy-drop: expected a value or a list of some"),
        ("[[search]]\naccuracy-drop = [1, 1]", "expected different searches, got 'accuracy-drop=1' twice"),
        ("[[search]]\nfront = true\nsetting = 'other'", "--setting: expected one of"),
        ("[[search", "sweep: "),
    ],
)
def test_a_sweep_file_that_is_off(tmp_path, text, said):
    (tmp_path / "targets.toml").write_text(text)
    with pytest.raises(ValueError, match=said):
        wishes(tmp_path / "targets.toml")


def calibrated(folder, engine, **options):
    verbs.calibrate_run(folder, split="val", latency_rounds=0, engine=engine, **options)
    return (folder / "table-val.safetensors").read_bytes()


@pytest.mark.slow
def test_the_table_is_byte_for_byte_that_of_one_process(ray, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    one = calibrated(tmp_path / "run", "local")
    assert calibrated(tmp_path / "run", "ray", workers=2) == one
    with pytest.raises(ValueError, match="--workers, --threads: expected --engine ray"):
        calibrated(tmp_path / "run", "local", workers=2)


@pytest.mark.slow
def test_costs_are_measured_here(ray, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    verbs.calibrate_run(tmp_path / "run", split="val", latency_rounds=1, engine="ray", workers=2)
    table = CalibrationTable.load(tmp_path / "run" / "table-val.safetensors")
    assert set(table.costs) == {"macs", "latency_ms"}
    assert table.facts["latency_rounds"] == 1


def folder_of_pictures(path: Path, images: int) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (path / kind / split).mkdir(parents=True)
        for i in range(images):
            picture = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(picture).save(path / "images" / split / f"{i:02}.png")
            labels = rng.integers(0, 6, (48, 64), dtype=np.uint8)
            Image.fromarray(labels).save(path / "labels" / split / f"{i:02}.png")
    (path / "dataset.json").write_text(json.dumps({"classes": list("abcdef")}))


@pytest.mark.slow
def test_corrupt_images_are_named_and_lose_nothing_else(ray, run_folder, tmp_path):
    """All that is wrong is said at once, what could be read is kept, and the same call goes on when it is mended."""
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(run_folder, run)
    folder_of_pictures(data, 30)
    settings = json.loads((run / "run.json").read_text())
    settings |= {"data": f"folder:{data}", "class_names": list("abcdef"), "palette": []}
    (run / "run.json").write_text(json.dumps(settings))
    whole = calibrated(run, "local")
    broken = [data / "images" / "val" / name for name in ("05.png", "06.png", "17.png")]
    content = [path.read_bytes() for path in broken]
    for path in broken:
        path.write_bytes(content[0][:100])
    for engine, options in (("ray", {"workers": 2}), ("local", {})):
        with pytest.raises(ValueError, match="05") as told:
            calibrated(run, engine, **options)
        if engine == "ray":
            assert "3 images cannot be read" in str(told.value)
            assert all(path.stem in str(told.value) for path in broken)
    kept = CalibrationTable.load(run / "partial-val.safetensors")
    batch = runs.RunSettings.load(run).batch_size
    assert len(kept.images) == 30 - 2 * batch  # of eight batches, two have broken images
    for path, before in zip(broken, content, strict=True):
        path.write_bytes(before)
    assert calibrated(run, "local") == whole
    assert not (run / "partial-val.safetensors").exists()


@pytest.mark.slow
def test_a_killed_calibration_goes_on_with_the_other_engine(ray, run_folder, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    whole = calibrated(run, "local")
    monkeypatch.setattr("mess.calibration.partial.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("mess.calibration.partial.SAVE_TIMES", 0.0)
    spread = calibrated_on_ray(run, "val", workers=2)
    asked = []

    def killed(measure, todo):
        for count, result in enumerate(spread(measure, todo)):
            if count == 3:
                raise KeyboardInterrupt
            yield result

    def counted(measure, todo):
        asked.extend(todo)
        return spread(measure, todo)

    monkeypatch.setattr("mess.verbs.on_ray", lambda *_, **__: killed)
    with pytest.raises(KeyboardInterrupt):
        calibrated(run, "ray")
    monkeypatch.setattr("mess.verbs.on_ray", lambda *_, **__: counted)
    assert calibrated(run, "ray") == whole
    assert len(asked) == 3


@pytest.mark.slow
def test_the_verbs(ray, run_folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    command = ["search", str(run), "--accuracy-drop", "2", "--no-baselines", "--json"]
    told = [CliRunner().invoke(cli.app, [*command, *more]) for more in ((), ("--engine", "ray", "--workers", "2"))]
    one, several = (json.loads(result.stdout)["drop-2pp"] for result in told)
    luck = {"explored": None, "evaluated": None}
    assert one | luck == several | luck
    told = CliRunner().invoke(cli.app, [*command, "--engine", "slurm"])
    assert "--engine: expected one of local, ray" in str(told.exception)
    told = CliRunner().invoke(cli.app, [*command, "--workers", "2"])
    assert "--workers: expected --engine ray" in str(told.exception)
