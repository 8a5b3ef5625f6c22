"""Every instruction set, element type, layout and thread count gives the same bits."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import mess_core
from mess_core import _mess_core as native

LEVELS = native.instruction_sets()
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def restored():
    before = native.instruction_set()
    yield
    native.set_instruction_set(before)


def wild(shape: tuple[int, ...]) -> np.ndarray:
    """Values of all sizes, ties, infinities and NaN, exact in float16 and bfloat16."""
    y = RNG.normal(0, 6, shape)
    y[RNG.random(shape) < 0.05] = 2.5
    y[RNG.random(shape) < 0.002] = np.nan
    y[RNG.random(shape) < 0.01] = -np.inf
    y[RNG.random(shape) < 0.001] = np.inf
    bits = y.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)  # bfloat16's 8 bits of precision
    return bits.view(np.float32)


def channels_last(y: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(y, 0, -1)), -1, 0)


LAYOUTS = {
    "planar": np.ascontiguousarray,
    "channels last": channels_last,
    "every other column": lambda y: np.repeat(y, 2, axis=2)[:, :, ::2],
    "a crop": lambda y: np.pad(y, ((0, 0), (2, 1), (3, 5)))[:, 2:-1, 3:-5],
    "upside down": lambda y: y[:, ::-1].copy()[:, ::-1],
    "reversed classes": lambda y: y[::-1].copy()[::-1],
    "rows and columns exchanged": lambda y: np.ascontiguousarray(y.transpose(0, 2, 1)).transpose(0, 2, 1),
}
# float16 holds the values that bfloat16 holds as long as they are between 2^-14 and 65504: true of `wild`
FORMATS = {
    "float32": lambda y: (y, False),
    "float64": lambda y: (y.astype(np.float64), False),
    "float16": lambda y: (y.astype(np.float16).view(np.uint16), False),
    "bfloat16": lambda y: ((y.view(np.uint32) >> 16).astype(np.uint16), True),
}


def everything(y: np.ndarray, is_bfloat16: bool = False, threads: int | None = 1) -> list:
    """The results of every path that reads logits."""
    found = []
    if y.dtype == np.uint16 and not is_bfloat16:
        y = y.view(np.float16)
    for size in (None, (45, 70)):
        shape = y.shape[1:] if size is None else size
        for kind in ("top1", "margin", "entropy"):
            confidence, labels = np.empty(shape, np.float32), np.empty(shape, np.int32)
            bits = y.view(np.uint16) if y.dtype == np.float16 else y
            native.confidence_map(bits, is_bfloat16, kind, size, False, confidence, labels, None, threads)
            found += [confidence.view(np.uint32), labels]
            found.append(
                native.image_confidence(
                    bits, is_bfloat16, [0.3, 0.8], False, 4, True, "canny", kind, size, False, None, threads
                )
            )
            for threshold in (0.25, 0.8):
                found.append(
                    native.image_confidence(
                        bits, is_bfloat16, [threshold], True, 4, True, "labels", kind, size, False, None, threads
                    )
                )
    return found


def assert_equal(a: list, b: list) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("num_classes", [2, 5, 21, 300])
def test_every_level_and_thread_count(num_classes):
    y = wild((num_classes, 33, 71))
    native.set_instruction_set("portable")
    expected = everything(y)
    for level in LEVELS:
        native.set_instruction_set(level)
        assert native.instruction_set() == level
        for threads in (1, 3):
            assert_equal(everything(y, threads=threads), expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format_and_layout(level, layout, fmt):
    y = wild((11, 17, 40))
    native.set_instruction_set(level)
    expected = everything(y)
    raw, is_bfloat16 = FORMATS[fmt](y)
    changed = LAYOUTS[layout](raw)
    changed.flags.writeable = False
    np.testing.assert_array_equal(changed, raw)
    assert_equal(everything(changed, is_bfloat16), expected)


def test_every_level_of_the_map_kernels():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (67, 131), dtype=np.uint8)
    wide = rng.integers(0, 60000, (67, 131))
    mask = rng.random((67, 131)) < 0.1
    values = rng.random((67, 131), dtype=np.float32)
    values[rng.random(values.shape) < 0.01] = np.nan

    def results() -> list:
        found = [mess_core.canny(image, 50, 200, aperture=a, l2=l2) for a in (3, 5, 7) for l2 in (False, True)]
        found += [mess_core.label_edges(m, edges=e) for m in (image, wide) for e in ("canny", "labels")]
        found += [f(mask, size) for f in (mess_core.erode, mess_core.dilate) for size in (1, 2, 8, 33, 300)]
        found += [mess_core.refine_confidence(values, mask, window=w) for w in (3, 5, 7, 33, 129)]
        return found

    native.set_instruction_set("portable")
    expected = results()
    for level in LEVELS:
        native.set_instruction_set(level)
        assert_equal(results(), expected)


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def test_the_environment_forces_a_level():
    code = "from mess_core import _mess_core as m; print(m.instruction_set())"
    assert run(code, MESS_CORE_ISA="portable").stdout.strip() == "portable"
    assert run(code, MESS_CORE_ISA="").stdout.strip() == LEVELS[-1]
    refused = run(code, MESS_CORE_ISA="avx1024")
    assert refused.returncode != 0
    assert "MESS_CORE_ISA" in refused.stderr
    assert "got avx1024" in refused.stderr


def test_the_environment_sets_the_threads():
    # 4 million numbers and more would use every core
    code = (
        "import numpy as np, mess_core, os;"
        "mess_core.image_confidence(np.zeros((20, 500, 500), np.float32), pixel_threshold=0.5);"
        "print(len(os.listdir('/proc/self/task')) if os.path.exists('/proc/self/task') else {expected})"
    )
    assert run(code.format(expected=1), MESS_CORE_THREADS="1", OPENBLAS_NUM_THREADS="1").stdout.strip() == "1"
    three = run(code.format(expected=4), MESS_CORE_THREADS="3", OPENBLAS_NUM_THREADS="1")
    assert three.stdout.strip() == "4"
    # rayon's own variable is another program's, and `build_info` says what is so
    told = (
        code.format(expected="mess_core.build_info()['threads'] + 1") + ";print(mess_core.build_info()['threads'] + 1)"
    )
    found = run(told, RAYON_NUM_THREADS="7", MESS_CORE_THREADS="", OPENBLAS_NUM_THREADS="1").stdout.split()
    assert found[0] == found[1] or found[1] == "2"  # on one core no other is started
    refused = run(code, MESS_CORE_THREADS="many")
    assert refused.returncode != 0
    assert "MESS_CORE_THREADS" in refused.stderr
