"""Erosion, dilation and the boundary mask: oracle, OpenCV, SciPy, laws."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

import mess_core
from tests.oracles import confidence as oracle

masks = st.tuples(st.integers(0, 9), st.integers(0, 9)).flatmap(lambda s: hnp.arrays(bool, s))


@given(masks, st.integers(1, 14))
def test_erode_and_dilate_equal_the_oracle(mask, size):
    np.testing.assert_array_equal(mess_core.dilate(mask, size), oracle.dilate(mask, size))
    np.testing.assert_array_equal(mess_core.erode(mask, size), oracle.erode(mask, size))


@given(masks, st.integers(1, 14))
def test_duality(mask, size):
    np.testing.assert_array_equal(mess_core.erode(mask, size), ~mess_core.dilate(~mask, size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 15, 16, 32, 33])
def test_opencv(size):
    mask = np.random.default_rng(size).random((61, 83)) < 0.03
    kernel = np.ones((size, size), np.uint8)
    np.testing.assert_array_equal(mess_core.dilate(mask, size), cv2.dilate(mask.astype(np.uint8), kernel) > 0)
    full = ~mask
    np.testing.assert_array_equal(mess_core.erode(full, size), cv2.erode(full.astype(np.uint8), kernel) > 0)


@pytest.mark.parametrize("size", [1, 3, 9, 17])
def test_scipy_where_the_anchors_agree(size):
    mask = np.random.default_rng(size).random((40, 50)) < 0.05
    structure = np.ones((size, size), bool)
    np.testing.assert_array_equal(mess_core.dilate(mask, size), ndimage.binary_dilation(mask, structure))
    expected = ndimage.binary_erosion(~mask, structure, border_value=1)
    np.testing.assert_array_equal(mess_core.erode(~mask, size), expected)


def test_uint8_masks_are_nonzero():
    mask = np.array([[0, 255, 0, 1]], np.uint8)
    np.testing.assert_array_equal(mess_core.dilate(mask, 1), [[False, True, False, True]])


def test_a_literal_erosion_of_the_edges_erases_them():
    labels = np.zeros((32, 32), np.uint8)
    labels[8:20, 8:20] = 3
    edges = mess_core.label_edges(labels)
    assert edges.sum() > 40
    assert not mess_core.erode(edges, 2).any()
    mask = mess_core.boundary_mask(labels, output_stride=8)
    np.testing.assert_array_equal(mask, ~mess_core.erode(~edges, 8))
    assert mask.sum() > edges.sum()


@given(masks, st.integers(1, 9), st.integers(1, 9))
def test_dilation_grows_with_the_size(mask, a, b):
    small, large = sorted((a, b))
    assert (mess_core.dilate(mask, small) <= mess_core.dilate(mask, large)).all()
