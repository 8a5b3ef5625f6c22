"""A process that decides for weeks does not grow. What one call takes is in `rust/mess-core/tests/allocations.rs`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import numpy as np
import mess_core

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

logits = np.random.default_rng(0).normal(size=(4, 16, 16)).astype(np.float32)
shared = mess_core.Workspace()
confidence, labels = mess_core.confidence_map(logits)
mask = mess_core.boundary_mask(labels, output_stride=1)
calls = {
    "image_confidence": (1_000_000, lambda: mess_core.image_confidence(logits, pixel_threshold=0.5, workspace=shared)),
    "without": (200_000, lambda: mess_core.image_confidence(logits, pixel_threshold=0.5, size=(20, 20))),
    "should_exit": (200_000, lambda: mess_core.should_exit(logits, pixel_threshold=0.5, image_threshold=0.5)),
    "refused": (100_000, lambda: refused()),
    "maps": (50_000, lambda: mess_core.policy_maps(logits)),
    "refine": (50_000, lambda: mess_core.refine_confidence(confidence, mask, window=5)),
    "threads": (20_000, lambda: mess_core.image_confidence(logits, pixel_threshold=0.5, threads=2)),
}

def refused():
    try:
        mess_core.image_confidence(logits, pixel_threshold=2.0)
    except ValueError:
        pass

for name, (times, call) in calls.items():
    for _ in range(2000):
        call()
    before = resident()
    for _ in range(times):
        call()
    print(name, times, (resident() - before) // 1024, flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc: resident memory is read there")
def test_a_million_calls_do_not_grow_the_process():
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    grown = {line.split()[0]: int(line.split()[2]) for line in found.stdout.splitlines()}
    assert len(grown) == 7
    assert all(kilobytes < 512 for kilobytes in grown.values()), grown  # half a byte a call
