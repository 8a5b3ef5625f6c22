"""The windowed median: oracle, SciPy, laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

import mess_core
from tests.oracles import confidence as oracle

values = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 0.5, 1.0, np.inf, -np.inf]))
shapes = st.tuples(st.integers(0, 8), st.integers(0, 8))
maps_and_masks = shapes.flatmap(lambda s: st.tuples(hnp.arrays(np.float32, s, elements=values), hnp.arrays(bool, s)))
windows = st.integers(0, 8).map(lambda r: 2 * r + 1)


@given(maps_and_masks, windows)
def test_refine_equals_the_oracle(map_and_mask, window):
    confidence, mask = map_and_mask
    found = mess_core.refine_confidence(confidence, mask, window=window)
    np.testing.assert_array_equal(found, oracle.refine_confidence(confidence, mask, window))


@pytest.mark.parametrize("window", [1, 3, 17, 33, 65, 129])
def test_scipy(window):
    confidence = np.random.default_rng(window).random((24, 31), dtype=np.float32)
    found = mess_core.refine_confidence(confidence, np.ones((24, 31), bool), window=window)
    np.testing.assert_array_equal(found, ndimage.median_filter(confidence, window, mode="nearest"))


@given(maps_and_masks)
def test_nothing_changes_outside_the_mask_or_with_window_1(map_and_mask):
    confidence, mask = map_and_mask
    refined = mess_core.refine_confidence(confidence, mask, window=5)
    np.testing.assert_array_equal(refined[~mask], confidence[~mask])
    np.testing.assert_array_equal(mess_core.refine_confidence(confidence, mask, window=1), confidence)


def test_median_of_a_constant_is_the_constant():
    confidence = np.full((9, 9), 0.25, np.float32)
    np.testing.assert_array_equal(mess_core.refine_confidence(confidence, np.ones((9, 9), bool), window=33), confidence)


@pytest.mark.parametrize("threads", [1, 3])
def test_thread_count(threads):
    rng = np.random.default_rng(0)
    confidence, mask = rng.random((50, 60), dtype=np.float32), rng.random((50, 60)) < 0.3
    np.testing.assert_array_equal(
        mess_core.refine_confidence(confidence, mask, window=9, threads=threads),
        mess_core.refine_confidence(confidence, mask, window=9),
    )
