"""The decision path: equal to the float definition in its outcome, whatever the input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mess_core
from tests.oracles import confidence as oracle

numbers = st.one_of(
    st.floats(-30, 30, width=32),
    st.sampled_from([np.nan, np.inf, -np.inf, 0.0, 1.0, 88.0, -1e30, 1e30, 3.4e38, -3.4e38, 1e-40]),
)
shapes = st.tuples(st.integers(2, 20), st.integers(1, 7), st.integers(1, 7))
wild_logits = shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=numbers))
thresholds = st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, -0.0, 1.0, 0.5, 1e-30]))


@given(wild_logits, thresholds, st.integers(1, 3), st.booleans(), st.sampled_from(["top1", "margin", "entropy"]))
def test_any_input_equals_its_own_maps(y, threshold, output_stride, refine, kind):
    confidence, labels = mess_core.confidence_map(y, kind=kind)
    expected = oracle.image_confidence_from_map(confidence, labels, threshold, output_stride, refine, "canny")
    options = {"pixel_threshold": threshold, "output_stride": output_stride, "refine": refine, "confidence": kind}
    assert mess_core.image_confidence(y, **options) == expected
    for image_threshold in (np.nextafter(expected, -1), expected, np.nextafter(expected, 2), 0.0, 1.0, 1.5, -1.0):
        leaves = mess_core.should_exit(y, image_threshold=image_threshold, **options)
        assert leaves is bool(expected >= image_threshold), image_threshold


@given(wild_logits)
def test_undefined_pixels_are_below_every_threshold(y):
    confidence, labels = mess_core.confidence_map(y)
    undefined = np.isnan(y).any(axis=0) | (y == np.inf).any(axis=0) | (y == -np.inf).all(axis=0)
    np.testing.assert_array_equal(np.isnan(confidence), undefined)
    with np.errstate(invalid="ignore"):
        expected = np.where(np.isnan(y), -np.inf, y).argmax(axis=0)
    np.testing.assert_array_equal(labels, expected)
    assert mess_core.image_confidence(y, pixel_threshold=0.0, refine=False) == (~undefined).mean()


@pytest.mark.parametrize("num_classes", [2, 3, 8, 19, 21, 150, 1000])
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0, 40.0])
def test_thresholds_at_and_one_ulp_beside_the_confidence_of_every_pixel(num_classes, spread):
    y = np.random.default_rng(num_classes).normal(0, spread, (num_classes, 9, 11)).astype(np.float32)
    confidence, _ = mess_core.confidence_map(y)
    for value in confidence.ravel():
        for threshold in (np.nextafter(value, np.float32(0)), value, np.nextafter(value, np.float32(2))):
            if threshold <= 1:
                found = mess_core.image_confidence(y, pixel_threshold=float(threshold), refine=False)
                assert found == (confidence >= threshold).mean()


@pytest.mark.parametrize("size", [None, (9, 11)])
def test_minus_zero_is_zero(size):
    """Found by fuzzing: 1/t - 1 of -0 was minus infinity, so no pixel passed."""
    y = np.random.default_rng(0).normal(size=(3, 5, 6)).astype(np.float32)
    assert mess_core.image_confidence(y, pixel_threshold=-0.0, size=size) == 1.0
    assert mess_core.should_exit(y, pixel_threshold=-0.0, image_threshold=1.0, size=size)


def test_every_pixel_exactly_at_the_threshold():
    # p = 1 / (1 + k) exactly: k other classes equal to the largest
    for others in range(6):
        y = np.zeros((8, 16, 16), np.float32)
        y[others + 1 :] = -np.inf
        value = np.float32(1) / np.float32(1 + others)
        for threshold, expected in ((value, 1.0), (np.nextafter(value, np.float32(0)), 1.0)):
            assert mess_core.image_confidence(y, pixel_threshold=float(threshold)) == expected
        if others:
            above = float(np.nextafter(value, np.float32(1)))
            assert mess_core.image_confidence(y, pixel_threshold=above) == 0.0


def test_the_largest_class_in_a_late_group_far_above_the_first():
    # the sum is taken relative to the first group: rises of 79 to 200 try its range
    for rise in (10.0, 79.0, 81.0, 100.0, 200.0):
        y = np.random.default_rng(0).normal(0, 1, (40, 12, 12)).astype(np.float32)
        y[35] += rise
        confidence, _ = mess_core.confidence_map(y)
        for threshold in (0.2, 0.9, 1.0, float(confidence.min())):
            found = mess_core.image_confidence(y, pixel_threshold=threshold, refine=False)
            assert found == (confidence >= np.float32(threshold)).mean()


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (3, 300), (70, 90), (129, 64)])
@pytest.mark.parametrize("output_stride", [1, 4, 16])
@pytest.mark.parametrize("edges", ["canny", "labels"])
def test_strips_and_early_ends_decide_as_the_whole(shape, output_stride, edges):
    rng = np.random.default_rng(1)
    coarse = rng.normal(0, 4, (5, -(-shape[0] // 8), -(-shape[1] // 8)))
    y = np.repeat(np.repeat(coarse, 8, 1), 8, 2)[:, : shape[0], : shape[1]].astype(np.float32)
    y += rng.normal(0, 0.5, y.shape).astype(np.float32)
    options = {"pixel_threshold": 0.8, "output_stride": output_stride, "edges": edges}
    confidence, labels = mess_core.confidence_map(y)
    expected = mess_core.image_confidence_from_map(confidence, labels, **options)
    assert mess_core.image_confidence(y, **options) == expected
    workspace = mess_core.Workspace()
    for image_threshold in [*np.linspace(0, 1, 23), expected, np.nextafter(expected, 2)]:
        for threads in (1, 2):
            leaves = mess_core.should_exit(
                y, image_threshold=image_threshold, workspace=workspace, threads=threads, **options
            )
            assert leaves is bool(expected >= image_threshold)


def test_a_batch_decides_image_by_image():
    y = np.random.default_rng(2).normal(0, 2, (5, 4, 30, 40)).astype(np.float32)
    values = mess_core.image_confidence(y, pixel_threshold=0.6)
    middle = float(np.median(values))
    leaves = mess_core.should_exit(y, pixel_threshold=0.6, image_threshold=middle)
    assert leaves.dtype == bool
    np.testing.assert_array_equal(leaves, values >= middle)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(2, 4), st.integers(1, 5), st.integers(1, 5)), elements=numbers),
    st.tuples(st.integers(1, 23), st.integers(1, 23)),
    st.booleans(),
    thresholds,
)
def test_fused_upsampling_decides_as_its_own_maps(y, size, align_corners, threshold):
    options = {"size": size, "align_corners": align_corners}
    confidence, labels = mess_core.confidence_map(y, **options)
    expected = oracle.image_confidence_from_map(confidence, labels, threshold, 2, True, "canny")
    assert mess_core.image_confidence(y, pixel_threshold=threshold, output_stride=2, **options) == expected
    plain = mess_core.image_confidence(y, pixel_threshold=threshold, refine=False, **options)
    assert plain == (confidence >= np.float32(threshold)).mean()


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(2, 9), st.integers(1, 5), st.integers(1, 5)), elements=numbers),
    st.one_of(st.none(), st.tuples(st.integers(1, 70), st.integers(1, 70))),
    st.booleans(),
)
def test_the_label_map_is_that_of_the_confidences(y, size, align_corners):
    options = {"size": size, "align_corners": align_corners}
    _, expected = mess_core.confidence_map(y, **options)
    workspace = mess_core.Workspace()
    for _ in range(2):
        found = mess_core.label_map(y, workspace=workspace, **options)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    # a decision before it leaves nothing behind in the workspace
    mess_core.image_confidence(y, pixel_threshold=0.5, workspace=workspace, **options)
    np.testing.assert_array_equal(mess_core.label_map(y, workspace=workspace, **options), expected)


def test_label_maps_of_many_classes_and_of_any_kind_of_input():
    y = np.random.default_rng(0).normal(0, 2, (300, 6, 7)).astype(np.float32)
    _, expected = mess_core.confidence_map(y, size=(48, 63))
    out = np.empty((48, 63), np.int32)
    assert mess_core.label_map(y, size=(48, 63), out=out) is out
    np.testing.assert_array_equal(out, expected)
    channels_last = np.ascontiguousarray(y.transpose(1, 2, 0)).transpose(2, 0, 1)
    for kind in (y.astype(np.float64), channels_last, y[::-1][::-1], y.tolist()):
        np.testing.assert_array_equal(mess_core.label_map(kind, size=(48, 63)), expected)
    half = y.astype(np.float16)
    np.testing.assert_array_equal(
        mess_core.label_map(half, size=(48, 63)), mess_core.label_map(half.astype(np.float32), size=(48, 63))
    )
    assert mess_core.label_map(np.zeros((3, 0, 5), np.float32)).shape == (0, 5)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(64, 96), (61, 100), (8, 12), (5, 7), (520, 130)])
@pytest.mark.parametrize("smooth", [0.3, 3.0])
def test_sure_cells_change_nothing(align_corners, size, smooth):
    # smooth regions with confident insides: most cells are decided from their nodes alone
    rng = np.random.default_rng(3)
    regions = np.kron(rng.integers(0, 6, (2, 3)), np.ones((4, 4), int))
    y = (rng.normal(0, smooth, (6, 8, 12)) + 8 * (regions == np.arange(6)[:, None, None])).astype(np.float32)
    options = {"size": size, "align_corners": align_corners}
    confidence, labels = mess_core.confidence_map(y, **options)
    for threshold in (0.5, 0.9, 0.99, 0.999, float(confidence.min()), float(np.median(confidence))):
        expected = mess_core.image_confidence_from_map(confidence, labels, pixel_threshold=threshold, output_stride=4)
        found = mess_core.image_confidence(y, pixel_threshold=threshold, output_stride=4, **options)
        assert found == expected


SIZES = [
    ((8, 12), (64, 96)),  # cells of 8 x 8 pixels, as wide as half the lanes
    ((5, 7), (80, 112)),  # 16 x 16
    ((4, 5), (128, 160)),  # 32 x 32: several blocks
    ((8, 12), (43, 61)),  # cells of five or six
    ((9, 11), (36, 44)),  # 4 x 4: too few for sums
    ((2, 3), (200, 290)),  # cells that are cut at 64 columns
    ((1, 20), (40, 160)),  # one row of nodes, one column
    ((20, 1), (160, 40)),
]


@pytest.mark.parametrize(("nodes", "size"), SIZES)
@pytest.mark.parametrize("num_classes", [2, 11, 40])
@pytest.mark.parametrize("spread", [0.05, 1.0, 4.0, 12.0])
def test_cells_decide_as_their_pixels_at_thresholds_beside_any_of_them(nodes, size, num_classes, spread):
    rng = np.random.default_rng(num_classes)
    y = rng.normal(0, spread, (num_classes, *nodes)).astype(np.float32)
    y[1, 0, 0] = -np.inf
    for align_corners in (False, True):
        options = {"size": size, "align_corners": align_corners}
        confidence, labels = mess_core.confidence_map(y, **options)
        some = rng.choice(confidence.ravel(), 12)
        for value in [*some, confidence.max(), confidence.min(), np.float32(0.999), np.float32(1e-3), np.float32(1)]:
            for threshold in (np.nextafter(value, np.float32(0)), value, np.nextafter(value, np.float32(2))):
                if threshold > 1:
                    continue
                found = mess_core.image_confidence(y, pixel_threshold=float(threshold), refine=False, **options)
                assert found == (confidence >= threshold).mean()
        # the labels: refinement follows their edges
        threshold = float(np.median(confidence))
        expected = mess_core.image_confidence_from_map(confidence, labels, pixel_threshold=threshold, output_stride=1)
        assert mess_core.image_confidence(y, pixel_threshold=threshold, output_stride=1, **options) == expected


def decisions_are_those_of_the_map(y, thresholds, **options):
    confidence, labels = mess_core.confidence_map(y, **options)
    for value in (*thresholds, *np.random.default_rng(0).choice(confidence.ravel(), 6)):
        for threshold in (np.nextafter(np.float32(value), np.float32(0)), np.float32(value)):
            found = mess_core.image_confidence(y, pixel_threshold=float(threshold), refine=False, **options)
            assert found == (confidence >= threshold).mean()
    np.testing.assert_array_equal(mess_core.label_map(y, **options), labels)


@pytest.mark.parametrize(("nodes", "size"), SIZES[:6])
@pytest.mark.parametrize("num_classes", [2, 11, 40])
@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_few_unsure_cells_in_a_row_of_sure_ones(nodes, size, num_classes, spread):
    """A row of unsure cells is measured whole; here they are decided one by one."""
    y = np.random.default_rng(num_classes).normal(0, spread, (num_classes, *nodes)).astype(np.float32)
    y[1, :, : max(2, 2 * nodes[1] // 3)] += 20
    decisions_are_those_of_the_map(y, (0.5, 0.9), size=size)


def test_scattered_unsure_cells_beyond_one_tile():
    y = np.random.default_rng(0).normal(0, 0.5, (4, 3, 8000)).astype(np.float32)
    y[2] += np.where(np.arange(8000) % 6 == 0, 0, 20)
    decisions_are_those_of_the_map(y, (0.5, 0.9), size=(6, 16000))


@pytest.mark.parametrize("far", [-25.0, 0.5])
@pytest.mark.parametrize("odd", [np.nan, -np.inf, 1e30, 60.0, -60.0])
@pytest.mark.parametrize("classes", [[2], [0, 1, 2]])
def test_one_odd_node_in_a_class_that_hardly_matters_or_in_all(far, odd, classes):
    y = np.empty((3, 5, 6), np.float32)
    y[0], y[1], y[2] = np.linspace(2, 4, 6), 1.0, far
    y[classes, 2, 3] = odd
    confidence, labels = mess_core.confidence_map(y, size=(40, 48))
    for threshold in (0.6, 0.8, 0.9, 0.95):
        found = mess_core.image_confidence(y, pixel_threshold=threshold, refine=False, size=(40, 48))
        assert found == (confidence >= np.float32(threshold)).mean()
    np.testing.assert_array_equal(mess_core.label_map(y, size=(40, 48)), labels)


def test_cells_between_many_rows_of_nodes():
    """Positions are rounded most where they are largest."""
    rng = np.random.default_rng(0)
    y = np.cumsum(rng.normal(0, 1.5, (6, 700, 9)), axis=1).astype(np.float32)
    for size in ((5600, 72), (4901, 70)):
        confidence, _ = mess_core.confidence_map(y, size=size)
        for threshold in rng.choice(confidence.ravel(), 20):
            found = mess_core.image_confidence(y, pixel_threshold=float(threshold), refine=False, size=size)
            assert found == (confidence >= threshold).mean()


@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(2, 4), st.integers(1, 5), st.integers(1, 5)),
        elements=st.floats(-9, 9, width=32),
    ),
    st.tuples(st.integers(1, 19), st.integers(1, 19)),
    st.booleans(),
)
def test_upsampling_equals_the_oracle(y, size, align_corners):
    confidence, _ = mess_core.confidence_map(y, size=size, align_corners=align_corners)
    full = oracle.interpolate(y, size, align_corners)
    np.testing.assert_allclose(confidence, oracle.confidence_map(full)[0], atol=2e-5)
