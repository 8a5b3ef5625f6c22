"""Per-pixel confidence and the whole image confidence, against the NumPy oracle and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import mess_core
from tests.oracles import confidence as oracle

KINDS = ("top1", "margin", "entropy")
sizes = st.tuples(st.integers(2, 5), st.integers(1, 9), st.integers(1, 9))
numbers = st.one_of(st.floats(-30, 30, width=32), st.sampled_from([-np.inf, 0.0, 1.0, 88.0, -1e30, 3e38, -3e38]))


def logits(draw_shape=sizes):
    return draw_shape.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=numbers)).filter(
        lambda y: np.isfinite(y.max(axis=0)).all()
    )


@given(logits(), st.sampled_from(KINDS))
def test_confidence_map_equals_the_oracle(y, kind):
    confidence, labels = mess_core.confidence_map(y, kind=kind)
    expected, expected_labels = oracle.confidence_map(y, kind)
    np.testing.assert_array_equal(labels, expected_labels)
    np.testing.assert_allclose(confidence, expected, atol=2e-6)
    assert (confidence >= 0).all()
    assert (confidence <= 1).all()


@given(logits(), st.integers(1, 8), st.booleans(), st.sampled_from(("canny", "labels")), st.floats(0, 1, width=32))
def test_image_confidence_equals_its_own_steps_exactly(y, output_stride, refine, edges, threshold):
    confidence, labels = mess_core.confidence_map(y)
    expected = oracle.image_confidence_from_map(confidence, labels, threshold, output_stride, refine, edges)
    options = {"pixel_threshold": threshold, "output_stride": output_stride, "refine": refine, "edges": edges}
    assert mess_core.image_confidence(y, **options) == expected
    assert mess_core.image_confidence_from_map(confidence, labels, **options) == expected


@pytest.mark.parametrize("num_classes", [2, 21, 150, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_many_classes_and_pixels_stay_within_the_stated_error(num_classes, kind):
    y = np.random.default_rng(0).normal(0, 4, (num_classes, 37, 300)).astype(np.float32)
    confidence, labels = mess_core.confidence_map(y, kind=kind)
    expected, expected_labels = oracle.confidence_map(y, kind)
    np.testing.assert_array_equal(labels, expected_labels)
    assert labels.dtype == (np.uint8 if num_classes <= 256 else np.int32)
    np.testing.assert_allclose(confidence, expected, atol=2e-6)


@pytest.mark.parametrize("num_classes", [2, 21, 150, 1000])
@pytest.mark.parametrize("kind", ["top1", "margin", "entropy"])
def test_a_leader_and_equal_followers_come_near_the_stated_error(num_classes, kind):
    """All roundings of the sum go one way."""
    logits = np.zeros((num_classes, 1, 4001), np.float32)
    logits[1:] = np.linspace(-12, -1, 4001, dtype=np.float32)
    confidence, _ = mess_core.confidence_map(logits, kind=kind)
    worst = np.abs(confidence - oracle.confidence_map(logits.astype(np.float64), kind)[0]).max()
    assert worst <= (num_classes + 20) * 2.0**-24 * (4 if kind == "entropy" else 1)
    assert num_classes < 1000 or worst > 1e-5


def test_two_classes_by_hand():
    # logits (ln 3, 0): softmax (3/4, 1/4)
    y = np.array([[[np.log(3.0)]], [[0.0]]], dtype=np.float32)
    assert mess_core.confidence_map(y)[0][0, 0] == pytest.approx(0.75, abs=1e-6)
    assert mess_core.confidence_map(y, kind="margin")[0][0, 0] == pytest.approx(0.5, abs=1e-6)
    entropy = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    assert mess_core.confidence_map(y, kind="entropy")[0][0, 0] == pytest.approx(1 - entropy, abs=1e-6)


def test_both_comparisons_are_inclusive():
    confidence = np.array([[0.5, 0.25]], dtype=np.float32)
    labels = np.zeros((1, 2), np.uint8)
    assert mess_core.image_confidence_from_map(confidence, labels, pixel_threshold=0.5) == 0.5
    assert mess_core.image_confidence_from_map(confidence, labels, pixel_threshold=0.25) == 1.0


def test_threshold_is_compared_in_float32():
    confidence = np.full((1, 1), 0.9, np.float32)  # a little below the float64 0.9
    assert mess_core.image_confidence_from_map(confidence, np.zeros((1, 1), int), pixel_threshold=0.9) == 1.0


@pytest.mark.parametrize(
    ("nodes", "size"),
    [
        ((3, 2500), (6, 5000)),  # more cells than a tile holds, two pixels each
        ((3, 1300), (12, 5200)),
        ((2, 900), (6, 2700)),  # three pixels: no power of two
        ((2, 600), (16, 4800)),
        ((2, 300), (32, 4800)),
        ((2, 2100), (5, 5250)),  # two pixels or three
        ((2, 3), (140, 290)),  # cells that are cut at 64 columns
        ((2, 5000), (3, 2400)),  # fewer pixels than nodes
    ],
)
@pytest.mark.parametrize("align_corners", [False, True])
def test_wide_pictures_equal_the_oracle(nodes, size, align_corners):
    y = np.random.default_rng(0).normal(0, 2, (3, *nodes)).astype(np.float32)
    confidence, labels = mess_core.confidence_map(y, size=size, align_corners=align_corners)
    full = oracle.interpolate(y, size, align_corners)
    np.testing.assert_allclose(confidence, oracle.confidence_map(full)[0], atol=1e-3)  # positions are float32
    first, second = np.sort(full, axis=0)[[-1, -2]]
    clear = first - second > 0.01
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(labels[clear], full.argmax(axis=0)[clear])
    np.testing.assert_array_equal(mess_core.label_map(y, size=size, align_corners=align_corners), labels)
    for threshold in (0.4, 0.6, 0.9):
        options = {"size": size, "align_corners": align_corners, "refine": False}
        found = mess_core.image_confidence(y, pixel_threshold=threshold, **options)
        assert found == (confidence >= np.float32(threshold)).mean()


def test_batch_and_several_thresholds_equal_single_calls():
    y = np.random.default_rng(1).normal(size=(3, 4, 20, 30)).astype(np.float32)
    thresholds = [0.3, 0.6, 0.9]
    together = mess_core.image_confidence(y, pixel_threshold=thresholds)
    assert together.shape == (3, 3)
    single = [[mess_core.image_confidence(image, pixel_threshold=t) for t in thresholds] for image in y]
    np.testing.assert_array_equal(together, single)
    np.testing.assert_array_equal(mess_core.image_confidence(y, pixel_threshold=0.6), together[:, 1])
    maps = [mess_core.confidence_map(image) for image in y]
    from_maps = mess_core.image_confidence_from_map(
        np.stack([m[0] for m in maps]), np.stack([m[1] for m in maps]), pixel_threshold=thresholds
    )
    np.testing.assert_array_equal(together, from_maps)


def test_image_confidence_falls_as_the_threshold_rises():
    y = np.random.default_rng(2).normal(0, 3, (5, 40, 50)).astype(np.float32)
    values = mess_core.image_confidence(y, pixel_threshold=np.linspace(0, 1, 51))
    assert (np.diff(values) <= 0).all()
    assert values[0] == 1.0


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_do_not_depend_on_the_thread_count(threads):
    y = np.random.default_rng(3).normal(0, 3, (2, 7, 65, 129)).astype(np.float32)
    reference = mess_core.image_confidence(y, pixel_threshold=0.7)
    np.testing.assert_array_equal(mess_core.image_confidence(y, pixel_threshold=0.7, threads=threads), reference)
    expected, _ = mess_core.confidence_map(y[0], kind="entropy")
    np.testing.assert_array_equal(mess_core.confidence_map(y[0], kind="entropy", threads=threads)[0], expected)


@pytest.mark.parametrize(
    "change",
    [
        np.asfortranarray,
        lambda y: y.transpose(1, 2, 0).copy().transpose(2, 0, 1),  # channels last
        lambda y: np.repeat(y, 2, axis=2)[:, :, ::2],
        lambda y: y[:, ::-1].copy()[:, ::-1],
        lambda y: y.astype(np.float64),
        lambda y: y.astype(">f4"),
        lambda y: np.frombuffer(b"\0" + y.tobytes(), np.uint8)[1:].view(np.float32).reshape(y.shape),  # unaligned
        lambda y: y.tolist(),
    ],
)
def test_every_layout_and_dtype_gives_the_same_bits(change):
    y = np.random.default_rng(4).normal(size=(3, 10, 14)).astype(np.float32)
    expected = mess_core.confidence_map(y)
    changed = change(y)
    if isinstance(changed, np.ndarray):
        changed.flags.writeable = False
    for a, b in zip(mess_core.confidence_map(changed), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert mess_core.image_confidence(changed, pixel_threshold=0.5) == mess_core.image_confidence(
        y, pixel_threshold=0.5
    )


@pytest.mark.parametrize("size", [(9, 7), (16, 40), (1, 1)])
def test_size_upsamples_first(size):
    y = np.random.default_rng(6).normal(size=(3, 5, 6)).astype(np.float32)
    confidence, labels = mess_core.confidence_map(y, size=size)
    assert confidence.shape == labels.shape == size
    value = mess_core.image_confidence(y, pixel_threshold=0.5, size=size)
    assert value == mess_core.image_confidence_from_map(confidence, labels, pixel_threshold=0.5)


def test_empty_pictures_give_empty_maps():
    confidence, labels = mess_core.confidence_map(np.zeros((3, 0, 5), np.float32))
    assert confidence.shape == labels.shape == (0, 5)
