"""The package itself: light imports, typed surface, forks and threads."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading

import numpy as np

import mess_core
from mess_core._arrays import as_float32, as_labels

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


def confidence(_: int = 0) -> float:
    return mess_core.image_confidence(LOGITS, pixel_threshold=0.5)


def test_a_forked_child_works_after_its_parent_used_the_pool():
    expected = confidence()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(confidence, range(4)) == [expected] * 4


def test_many_python_threads_at_once():
    expected, found = confidence(), []
    threads = [threading.Thread(target=lambda: found.append(confidence())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 8
