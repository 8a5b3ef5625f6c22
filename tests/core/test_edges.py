"""Canny and label boundaries: oracle, OpenCV, laws, a drawn picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mess_core
from tests.oracles import confidence as oracle

shapes = st.tuples(st.integers(1, 10), st.integers(1, 10))
pictures = shapes.flatmap(lambda s: hnp.arrays(np.uint8, s))
label_maps = shapes.flatmap(lambda s: hnp.arrays(np.uint8, s, elements=st.integers(0, 4)))
thresholds = st.one_of(st.integers(0, 900), st.floats(-5, 3000))


@given(pictures, thresholds, thresholds, st.sampled_from([3, 5, 7]), st.booleans())
def test_canny_equals_the_oracle(image, low, high, aperture, l2):
    found = mess_core.canny(image, low, high, aperture=aperture, l2=l2)
    np.testing.assert_array_equal(found, oracle.canny(image, low, high, aperture, l2))


@pytest.mark.parametrize("l2", [False, True])
@pytest.mark.parametrize("aperture", [3, 5, 7])
def test_canny_equals_opencv(aperture, l2):
    rng = np.random.default_rng(aperture + 10 * l2)
    for trial in range(250):
        height, width = rng.integers(1, 70, 2)
        noise = rng.integers(0, 256, (height, width), dtype=np.uint8)
        kind = trial % 4
        if kind == 1:
            noise = cv2.GaussianBlur(noise, (7, 7), 2)
        elif kind == 2:
            noise = cv2.resize(noise[:6, :6], (int(width), int(height)), interpolation=cv2.INTER_NEAREST) % 21
        elif kind == 3:
            noise = np.where(noise > 128, 255, 0).astype(np.uint8)  # saturated: the largest gradients there are
        scale = {3: 400, 5: 4000, 7: 40000}[aperture]
        low, high = rng.uniform(0, scale, 2) if trial % 5 else (0, 0)
        expected = cv2.Canny(noise, low, high, apertureSize=aperture, L2gradient=l2) > 0
        found = mess_core.canny(noise, low, high, aperture=aperture, l2=l2)
        np.testing.assert_array_equal(found, expected, err_msg=f"trial {trial}, {height} x {width}, {low}, {high}")


@given(label_maps, st.sampled_from(["canny", "labels"]))
def test_label_edges_equal_the_oracle(labels, edges):
    np.testing.assert_array_equal(mess_core.label_edges(labels, edges=edges), oracle.label_edges(labels, edges))


@given(label_maps, st.permutations(range(5)))
def test_exact_boundaries_do_not_depend_on_class_numbers(labels, order):
    renamed = np.asarray(order, np.uint8)[labels]
    np.testing.assert_array_equal(
        mess_core.label_edges(renamed, edges="labels"), mess_core.label_edges(labels, edges="labels")
    )


@given(label_maps)
def test_labels_of_every_dtype_give_the_same_edges(labels):
    expected = mess_core.label_edges(labels)
    for dtype in (np.int8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64):
        np.testing.assert_array_equal(mess_core.label_edges(labels.astype(dtype)), expected)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_empty_pictures_give_empty_maps(shape):
    empty = np.zeros(shape, np.uint8)
    assert mess_core.canny(empty, 0, 0).shape == shape
    assert mess_core.label_edges(empty, edges="labels").shape == shape
    assert mess_core.boundary_mask(empty, output_stride=8).shape == shape


def test_a_square_by_hand():
    labels = np.zeros((6, 6), np.uint8)
    labels[2:4, 2:4] = 1
    drawn = ["".join(".#"[v] for v in row) for row in mess_core.label_edges(labels, edges="labels").astype(int)]
    assert drawn == ["......", "..##..", ".####.", ".####.", "..##..", "......"]


def test_every_change_of_label_is_an_edge_with_zero_thresholds():
    # thresholds 100 / 200 on a 21-class map find next to nothing: ids are close to each other
    labels = cv2.resize(
        np.random.default_rng(0).integers(0, 21, (6, 8), dtype=np.uint8), (160, 120), interpolation=cv2.INTER_NEAREST
    )
    changes = mess_core.label_edges(labels, edges="labels")
    near = mess_core.dilate(mess_core.label_edges(labels), 3)
    assert (near & changes).sum() == changes.sum()
    assert mess_core.canny(labels, 100, 200).sum() < 0.05 * changes.sum()
