"""What the tests of `test_survival.py` kill: one writer, over and over, each time with another content.

python -m tests.mess.survival kill WRITER FOLDER TIMES    killed at random moments, looked at after each
python -m tests.mess.survival full WRITER FOLDER          in a folder on a small disk that fills up
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from benches.python.guarantee import as_calibration_table
from benches.python.search_table import synthetic_table

import mess
from mess.calibration import partial as partial_state
from mess.deployment.configuration import ChosenExit, Configuration
from mess.files import write_json
from mess.runtime.manifest import Manifest
from mess.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from tests.mess.test_training import fresh

torch.set_num_threads(1)
torch.multiprocessing.set_sharing_strategy("file_system")


class Writer:
    """`write(folder, n)` writes state n; `read(folder)` is the n of what is there, None for nothing; it raises what a
    reader of broken files raises."""

    def write(self, folder: Path, n: int) -> None:
        raise NotImplementedError

    def read(self, folder: Path) -> int | None:
        raise NotImplementedError


class Checkpoint(Writer):
    def __init__(self) -> None:
        self.network, _ = fresh()

    def write(self, folder: Path, n: int) -> None:
        path = folder / "pretrain.safetensors"
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.fill_(n)
        save_checkpoint(path, self.network, None, Progress(stage="pretrain", settings={}, epoch=n))

    def read(self, folder: Path) -> int | None:
        path = folder / "pretrain.safetensors"
        if not path.exists():
            return None
        epoch = load_checkpoint(path, self.network).epoch
        assert all((parameter == epoch).all() for parameter in self.network.parameters())
        return epoch


class Training(Writer):
    """Whole epochs of both stages, with a checkpoint after every step; n counts the runs."""

    def write(self, folder: Path, n: int) -> None:
        network, batches = fresh()
        settings = mess.TrainSettings(epochs=1)
        mess.train(network, batches, pretraining=settings, exits=settings, out=folder, checkpoint_minutes=0)
        for path in folder.glob("*.safetensors"):
            path.unlink()

    def read(self, folder: Path) -> int | None:
        network, _ = fresh()
        for path in folder.glob("[!.]*.safetensors"):
            load_checkpoint(path, network)
        return None


class Table(Writer):
    def __init__(self) -> None:
        self.table = as_calibration_table(synthetic_table(images=300, classes=5, points=3, heads=3, pixels=2), "val")

    def write(self, folder: Path, n: int) -> None:
        self.table.facts["n"] = n
        self.table.save(folder / "table-val.safetensors")

    def read(self, folder: Path) -> int | None:
        path = folder / "table-val.safetensors"
        if not path.exists():
            return None
        table = mess.CalibrationTable.load(path)
        assert np.array_equal(table.intersection, self.table.intersection)
        n: int = table.facts["n"]
        return n


class Calibration(Writer):
    """With what is done kept after every batch; the state is how many batches are in there, or all."""

    def __init__(self) -> None:
        self.network, self.loader = fresh()
        partial_state.SAVE_SECONDS = partial_state.SAVE_TIMES = 0.0

    def write(self, folder: Path, n: int) -> None:
        partial, path = folder / "partial-val.safetensors", folder / "table-val.safetensors"
        mess.calibrate(self.network, self.loader, latency_rounds=0, partial=partial).save(path)
        partial.unlink()
        path.unlink()

    def read(self, folder: Path) -> int | None:
        for name in ("partial-val.safetensors", "table-val.safetensors"):
            if (folder / name).exists():
                mess.CalibrationTable.load(folder / name)
        return None


class Json(Writer):
    def write(self, folder: Path, n: int) -> None:
        write_json(folder / "front.json", {"n": n, "front": [{"n": n, "exits": ["0:head"] * 9}] * 500})

    def read(self, folder: Path) -> int | None:
        import json

        path = folder / "front.json"
        return int(json.loads(path.read_text())["front"][-1]["n"]) if path.exists() else None


class Search(Writer):
    """A search with a journal; a state is what the journal says when it is asked again."""

    def __init__(self) -> None:
        self.table = as_calibration_table(synthetic_table(images=200, classes=5, points=4, heads=4, pixels=3), "val")
        self.answer = mess.search(self.table, max_drop=0.02, threads=1).best

    def write(self, folder: Path, n: int) -> None:
        mess.search(self.table, max_drop=0.02, threads=1, journal=folder / "journal")
        (folder / "journal").unlink()

    def read(self, folder: Path) -> int | None:
        assert mess.search(self.table, max_drop=0.02, threads=1, journal=folder / "journal").best == self.answer
        (folder / "journal").unlink()
        return None


class Export(Writer):
    def __init__(self) -> None:
        network, _ = fresh()
        model = tuple(point.name for point in network.points)
        first = ChosenExit(exit=network.exits[0].name, pixel_threshold=0.5, image_threshold=0.9)
        chosen = Configuration(setting="input-dependent", model=model, exits=(first, ChosenExit(exit="final")))
        self.deployed = mess.deploy(network, chosen)
        self.names = [f"class {i}" for i in range(network.num_classes)]

    def write(self, folder: Path, n: int) -> None:
        mess.export(self.deployed, folder / "net", class_names=self.names, facts={"n": n})

    def read(self, folder: Path) -> int | None:
        return int(Manifest.load(folder / "net").facts["n"]) if (folder / "net").exists() else None


WRITERS: dict[str, Callable[[], Writer]] = {
    "checkpoint": Checkpoint,
    "training": Training,
    "table": Table,
    "calibration": Calibration,
    "json": Json,
    "search": Search,
    "export": Export,
}


def kill(writer: Writer, folder: Path, times: int) -> None:
    """What is there after a kill is whole, and no older than what was there before the writer began."""
    start = time.perf_counter()
    first = _forked(lambda: writer.write(folder, 0))
    assert os.waitpid(first, 0)[1] == 0, "the writer failed"
    once = time.perf_counter() - start
    rng = random.Random(0)
    before, later = writer.read(folder), 0
    for round_ in range(times):
        child = _forked(lambda n=1000 * round_ + 1: _write_on(writer, folder, n))
        time.sleep(rng.uniform(0, min(5 * once, once + 0.1) + 0.03))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the writer failed before it was killed"
        after = writer.read(folder)
        if before is not None:
            assert after is not None, "nothing is left"
            assert after >= before
        later += after != before
        before = after
    print(f"{times} kills, {later} of them after a new state, {1000 * once:.1f} ms a state")


def _forked(work: Callable[[], None]) -> int:
    """The child that does it. All writing is done in children: autograd's threads do not survive a fork."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)  # whatever happens, the child does not go on with the parent's code
    return child


def _write_on(writer: Writer, folder: Path, n: int) -> None:
    while True:
        writer.write(folder, n)
        n += 1


def full(writer: Writer, folder: Path) -> None:
    """A writer that finds no room says so, and leaves what was there, and nothing else (a journal that was begun)."""

    def names() -> list[str]:
        return sorted(path.name for path in folder.iterdir() if path.name != "journal")

    writer.write(folder, 1)
    assert writer.read(folder) in (1, None)
    before = names()
    with (folder / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    try:
        writer.write(folder, 2)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}")
    else:
        raise AssertionError("written to a full disk")
    (folder / "filler").unlink()
    assert names() == before
    assert writer.read(folder) in (1, None)
    writer.write(folder, 3)
    assert writer.read(folder) in (3, None)


if __name__ == "__main__":
    what, name, where, *rest = sys.argv[1:]
    if what == "kill":
        kill(WRITERS[name](), Path(where), int(rest[0]))
    else:
        full(WRITERS[name](), Path(where))
