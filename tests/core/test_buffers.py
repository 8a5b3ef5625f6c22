"""Caller's buffers and workspaces: written where asked, no growth per call, safe to share."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest

import mess_core

LOGITS = np.random.default_rng(0).normal(0, 3, (5, 40, 50)).astype(np.float32)


def test_out_is_written_and_returned():
    expected = mess_core.policy_maps(LOGITS, output_stride=4)
    out = mess_core.PolicyMaps(
        np.full((40, 50), 7, np.float32),
        np.full((40, 50), 7, np.uint8),
        np.ones((40, 50), bool),
        np.full((40, 50), 7, np.float32),
    )
    found = mess_core.policy_maps(LOGITS, output_stride=4, out=out)
    for a, b, c in zip(found, out, expected, strict=True):
        assert a is b
        np.testing.assert_array_equal(a, c)
    assert expected.mask.dtype == bool
    edges = np.ones((40, 50), bool)
    assert mess_core.label_edges(expected.labels, out=edges) is edges
    np.testing.assert_array_equal(edges, mess_core.label_edges(expected.labels))
    grey = np.random.default_rng(1).integers(0, 256, (40, 50), dtype=np.uint8)
    assert mess_core.canny(grey, 20, 90, out=edges) is edges
    np.testing.assert_array_equal(edges, mess_core.canny(grey, 20, 90))
    for operation in (mess_core.erode, mess_core.dilate):
        assert operation(expected.mask, 3, out=edges) is edges
        np.testing.assert_array_equal(edges, operation(expected.mask, 3))


def test_wide_labels_can_be_written_for_few_classes():
    labels = np.empty((40, 50), np.int32)
    mess_core.confidence_map(LOGITS, out=(np.empty((40, 50), np.float32), labels))
    np.testing.assert_array_equal(labels, mess_core.confidence_map(LOGITS)[1])


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
def test_a_stride_of_few_bits_is_a_number_like_others(kind):
    logits = np.random.default_rng(0).normal(size=(3, 40, 40)).astype(np.float32)
    found, expected = (mess_core.policy_maps(logits, output_stride=stride) for stride in (kind(64), 64))
    assert np.array_equal(found.refined, expected.refined)
    assert not np.array_equal(found.refined, found.confidence)


def test_policy_maps_are_the_steps():
    maps = mess_core.policy_maps(LOGITS, output_stride=2, size=(80, 90))
    confidence, labels = mess_core.confidence_map(LOGITS, size=(80, 90))
    np.testing.assert_array_equal(maps.confidence, confidence)
    np.testing.assert_array_equal(maps.labels, labels)
    np.testing.assert_array_equal(maps.mask, mess_core.boundary_mask(labels, output_stride=2))
    np.testing.assert_array_equal(maps.refined, mess_core.refine_confidence(confidence, maps.mask, window=9))
    value = mess_core.image_confidence(LOGITS, pixel_threshold=0.7, output_stride=2, size=(80, 90))
    assert value == (maps.refined >= np.float32(0.7)).mean()


@pytest.mark.parametrize("size", [None, (80, 100)])
def test_a_workspace_serves_pictures_of_any_size(size):
    workspace = mess_core.Workspace()
    for shape in ((5, 40, 50), (3, 7, 9), (300, 20, 20), (5, 60, 10), (5, 40, 50)):
        y = np.random.default_rng(2).normal(0, 3, shape).astype(np.float32)
        for thresholds in (0.7, [0.2, 0.7]):
            fresh = mess_core.image_confidence(y, pixel_threshold=thresholds, size=size)
            reused = mess_core.image_confidence(y, pixel_threshold=thresholds, size=size, workspace=workspace)
            np.testing.assert_array_equal(fresh, reused)


def test_threads_may_share_a_workspace():
    workspace, wrong = mess_core.Workspace(), []
    expected = mess_core.image_confidence(LOGITS, pixel_threshold=0.7)

    def work() -> None:
        found = {mess_core.image_confidence(LOGITS, pixel_threshold=0.7, workspace=workspace) for _ in range(50)}
        wrong.extend(found - {expected})

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nothing_of_the_pictures_size_is_allocated_in_python():
    workspace = mess_core.Workspace()
    out = mess_core.policy_maps(LOGITS)
    mess_core.image_confidence(LOGITS, pixel_threshold=0.7, workspace=workspace)
    tracemalloc.start()
    for _ in range(20):
        mess_core.image_confidence(LOGITS, pixel_threshold=0.7, workspace=workspace)
        mess_core.policy_maps(LOGITS, out=out, workspace=workspace)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < LOGITS[0].nbytes
