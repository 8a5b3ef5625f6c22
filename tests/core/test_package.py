"""The package itself: light imports, typed surface, forks and threads."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import numpy as np
import pytest

import mess_core
from mess_core._arrays import as_float32, as_labels
from tests.core.test_search import random_table

LOGITS = np.random.default_rng(0).normal(size=(4, 64, 64)).astype(np.float32)


def printed(code: str) -> str:
    """What a fresh interpreter prints when it runs `code`."""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def test_import_needs_numpy_only():
    code = (
        "import sys; before = set(sys.modules); import numpy; numpys = set(sys.modules); import mess_core;"
        "own = {m.split('.')[0] for m in set(sys.modules) - numpys} - set(sys.stdlib_module_names);"
        "print(sorted(own))"
    )
    assert printed(code) == "['mess_core', 'numpy']"


def test_import_mess_does_not_load_torch():
    code = "import sys, mess; print('torch' in sys.modules)"
    assert printed(code) == "False"


def test_core_tests_never_import_torch():
    code = (
        "import sys, importlib, pkgutil, tests.core;"
        "[importlib.import_module(f'tests.core.{m.name}') for m in pkgutil.iter_modules(tests.core.__path__)];"
        "print('torch' in sys.modules)"
    )
    assert printed(code) == "False"


def test_contiguous_float32_is_not_copied():
    for array in (LOGITS, LOGITS[:, ::2], LOGITS.transpose(0, 2, 1)):
        assert np.shares_memory(as_float32("logits", array, ndims=(3,), axes=""), array)
    labels = np.zeros((3, 4), np.uint8)
    assert np.shares_memory(as_labels("labels", labels), labels)


def test_the_gil_is_released_while_the_core_works():
    large = np.random.default_rng(1).normal(size=(8, 64, 400, 400)).astype(np.float32)
    worker = threading.Thread(target=lambda: mess_core.image_confidence(large, pixel_threshold=0.5, threads=1))
    worker.start()
    steps = 0
    while worker.is_alive():
        steps += 1
    worker.join()
    assert steps > 1000  # with the GIL held this thread would get a handful of turns


TYPES = ("__version__", "ConfidenceKind", "EdgeKind", "Metric", "Setting", "Status")


def test_every_public_name_has_a_docstring():
    for name in mess_core.__all__:
        assert name in TYPES or getattr(mess_core, name).__doc__, name


PICTURE = np.random.default_rng(2).integers(0, 256, (64, 48, 3), dtype=np.uint8)
MAP, LABELS = mess_core.confidence_map(LOGITS)
MASK = mess_core.boundary_mask(LABELS, output_stride=2)
IMAGE = np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
TABLE = random_table(0, points=3, heads=3, images=8)
BEST = mess_core.search(TABLE, max_exits=2).best

CALLS = {
    "image_confidence": lambda t: mess_core.image_confidence(LOGITS, pixel_threshold=0.5, threads=t),
    "should_exit": lambda t: mess_core.should_exit(LOGITS, pixel_threshold=0.5, image_threshold=0.3, threads=t),
    "image_confidence_from_map": lambda t: mess_core.image_confidence_from_map(
        MAP, LABELS, pixel_threshold=0.5, output_stride=2, threads=t
    ),
    "network_input": lambda t: mess_core.network_input(PICTURE, mean=(0.5,) * 3, std=(0.2,) * 3, size=(70, 31)),
    "label_map": lambda t: mess_core.label_map(LOGITS, size=(128, 96), threads=t),
    "confidence_map": lambda t: mess_core.confidence_map(LOGITS, size=(128, 96), threads=t),
    "policy_maps": lambda t: mess_core.policy_maps(LOGITS, threads=t),
    "canny": lambda t: mess_core.canny(IMAGE, low=40, high=90),
    "label_edges": lambda t: mess_core.label_edges(LABELS),
    "dilate": lambda t: mess_core.dilate(MASK, size=3),
    "erode": lambda t: mess_core.erode(MASK, size=3),
    "boundary_mask": lambda t: mess_core.boundary_mask(LABELS, output_stride=2),
    "refine_confidence": lambda t: mess_core.refine_confidence(MAP, MASK, window=9, threads=t),
    "search": lambda t: mess_core.search(TABLE, max_exits=2, threads=t).best,
    "evaluate": lambda t: mess_core.evaluate(TABLE, BEST.configuration).found,
}
"""Every function that computes, with so many threads."""


def told(result: object) -> bytes:
    parts = result if isinstance(result, tuple) and not hasattr(result, "cost") else (result,)
    return b"|".join(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode() for part in parts)


def each_of(number: int = 0) -> dict[str, bytes]:
    """All answers, in another order and with other threads each time."""
    names = sorted(CALLS)[number % len(CALLS) :] + sorted(CALLS)[: number % len(CALLS)]
    return {name: told(CALLS[name](1 + number % 2)) for name in names}


def test_all_functions_are_there():
    functions = {name for name in mess_core.__all__ if callable(getattr(mess_core, name)) and name.islower()}
    assert functions == {*CALLS, "build_info"}


def test_build_info():
    code = "import mess_core; info = mess_core.build_info(); print(info['threads'], info['instruction_set'])"
    environment = {**os.environ, "MESS_CORE_THREADS": "3", "MESS_CORE_ISA": "portable"}
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert told.stdout.split() == ["3", "portable"]
    info = mess_core.build_info()
    assert info["version"] == mess_core.__version__
    assert info["instruction_set"] in info["instruction_sets"]
    assert info["profile"] == "release"
    assert info["numpy"] == np.__version__
    assert set(info) == set(mess_core.BuildInfo.__annotations__)


@pytest.mark.skipif(shutil.which("cargo") is None, reason="asks cargo for the crates that are linked")
def test_licences_that_ask_for_a_notice_have_one():
    """Of all crates in the wheel; those that offer the project's own, which comes with it, need no other."""
    root = Path(__file__).resolve().parents[2]
    command = ["cargo", "tree", "--package=mess-core-py", "--edges=normal", "--prefix=none", "--format={p}|{l}"]
    told = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    crates = {line.split()[0]: line.partition("|")[2] for line in told.splitlines() if line}
    assert {"numpy", "rayon", "ndarray"} <= crates.keys()
    others = {name for name, license in crates.items() if "Apache-2.0" not in license}
    with (root / "pyproject.toml").open("rb") as file:
        shipped = tomllib.load(file)["project"]["license-files"]
    notices = {"numpy": "LICENSE-rust-numpy"}
    assert others == notices.keys()
    assert all(notice in shipped and (root / notice).is_file() for notice in notices.values())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not fork")
def test_a_forked_child_works_after_its_parent_used_the_pool():
    expected = each_of(1)  # with the pool
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(each_of, range(4)) == [expected] * 4


def test_every_function_in_many_python_threads_at_once():
    expected, found = each_of(), []
    threads = [threading.Thread(target=lambda n=n: found.append(each_of(n))) for n in range(2 * len(CALLS))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * len(threads)
