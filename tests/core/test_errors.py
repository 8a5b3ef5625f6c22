"""Bad input gets an exception that names the argument, what was expected and what came; never a panic."""

from __future__ import annotations

import numpy as np
import pytest

import mess_core

LOGITS = np.zeros((3, 4, 5), np.float32)
MAP = np.full((4, 5), 0.5, np.float32)
LABELS = np.zeros((4, 5), np.uint8)
MASK = np.zeros((4, 5), bool)


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def confident(**options):
    return mess_core.image_confidence(options.pop("logits", LOGITS), **{"pixel_threshold": 0.5, **options})


def leaves(**options):
    return mess_core.should_exit(
        options.pop("logits", LOGITS), **{"pixel_threshold": 0.5, "image_threshold": 0.5, **options}
    )


def from_map(confidence=MAP, labels=LABELS, **options):
    return mess_core.image_confidence_from_map(confidence, labels, **{"pixel_threshold": 0.5, **options})


def overlapping(one, other):
    """All maps of logits with a class for every byte of them, two of them in the same memory."""
    logits = np.zeros((4, 8, 16), np.float32)
    maps = mess_core.policy_maps(logits if other != "labels" else np.zeros((300, 8, 16), np.float32))
    shared = logits[0] if other == "logits" else getattr(maps, other)
    place = shared.reshape(-1).view(getattr(maps, one).dtype)[: 8 * 16].reshape(8, 16)
    return mess_core.policy_maps(logits, out=maps._replace(**{one: place}))


class OnDevice:
    """A DLPack producer whose memory is of some kind."""

    def __init__(self, array, device):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device, 0


@pytest.mark.parametrize("device", [1, 3, 11])
def test_memory_that_is_pinned_is_memory(device):
    """torch says of what `pin_memory` gave that it is kDLCUDAHost."""
    expected = mess_core.image_confidence(LOGITS, pixel_threshold=0.5)
    assert mess_core.image_confidence(OnDevice(LOGITS, device), pixel_threshold=0.5) == expected


BOTH = np.zeros((4, 5), np.float32)

CASES = [
    (lambda: confident(logits=LOGITS[0]), ValueError, r"logits: expected shape .*, got \(4, 5\)"),
    (lambda: confident(logits=LOGITS[None, None]), ValueError, r"logits: expected shape"),
    (lambda: confident(logits=np.zeros((0, 3, 4, 5))), ValueError, r"logits: expected at least one image"),
    (lambda: confident(logits=LOGITS[:0]), ValueError, r"logits: expected at least one class"),
    (lambda: confident(logits=LOGITS[:1]), ValueError, r"logits: expected at least 2 classes, got shape \(1, 4, 5\)"),
    (lambda: leaves(logits=LOGITS[None, :1]), ValueError, r"logits: expected at least 2 classes, got shape \(1, 1, 4"),
    (lambda: confident(logits=LOGITS[:, :0]), ValueError, r"at least one pixel"),
    (lambda: confident(logits=LOGITS[:, :0], size=(2, 2)), ValueError, r"logits: expected at least one pixel"),
    (lambda: confident(logits=LOGITS.astype(complex)), TypeError, r"logits: expected numbers .*complex128"),
    (lambda: confident(logits=LOGITS.astype("U1")), TypeError, r"logits: expected numbers"),
    (lambda: confident(logits=np.ma.masked_array(LOGITS)), TypeError, r"logits: expected an array without a mask"),
    (
        lambda: mess_core.refine_confidence(MAP, np.ma.masked_array(MASK), window=3),
        TypeError,
        r"mask: .* without a mask",
    ),
    (lambda: confident(logits=None), TypeError, r"logits: expected numbers"),
    (lambda: confident(logits=OnDevice(LOGITS, 2)), TypeError, r"logits: expected data in CPU memory, got .* type 2;"),
    (lambda: confident(pixel_threshold=1.5), ValueError, r"pixel_threshold: expected a number in \[0, 1\], got 1.5"),
    (lambda: confident(pixel_threshold=-0.1), ValueError, r"pixel_threshold: .*got -0.1"),
    (lambda: confident(pixel_threshold=np.nan), ValueError, r"pixel_threshold: .*got nan"),
    (lambda: confident(pixel_threshold=[0.5, 2]), ValueError, r"pixel_threshold: .*got \[2.0\]"),
    (lambda: confident(pixel_threshold=[]), ValueError, r"pixel_threshold: .*non-empty"),
    (lambda: confident(pixel_threshold="0.5"), TypeError, r"pixel_threshold: expected a number"),
    (lambda: confident(output_stride=0), ValueError, r"output_stride: expected at least 1, got 0"),
    (lambda: confident(output_stride=257), ValueError, r"output_stride: expected 1..=256"),
    (lambda: confident(output_stride=2.5), TypeError, r"output_stride: expected an integer, got float 2.5"),
    (lambda: confident(edges="sobel"), ValueError, r"edges: expected 'canny' or 'labels', got 'sobel'"),
    (lambda: confident(confidence="max"), ValueError, r"confidence: expected 'top1', .*got 'max'"),
    (lambda: confident(output_stride=10**30), ValueError, r"output_stride: expected at most 2147483647, got 10"),
    (lambda: confident(edges=None), TypeError, r"edges: expected a string, got NoneType None"),
    (lambda: confident(confidence=3), TypeError, r"confidence: expected a string, got int 3"),
    (lambda: confident(workspace=3), TypeError, r"workspace: expected a Workspace, got int"),
    (lambda: confident(size=(10**30, 1)), ValueError, r"size: expected at most 2147483647 pixels a side"),
    (lambda: leaves(image_threshold=10**400), TypeError, r"image_threshold: expected a number, got 10"),
    (lambda: mess_core.confidence_map(LOGITS, out=5), TypeError, r"out: expected \(confidence, labels\), two arrays"),
    (lambda: mess_core.policy_maps(LOGITS, out=(1, 2, 3, 4)), TypeError, r"out: expected PolicyMaps, got tuple"),
    (
        lambda: mess_core.policy_maps(LOGITS, confidence="best"),
        ValueError,
        r"confidence: expected .*'top1'.*got 'best'",
    ),
    (lambda: mess_core.policy_maps(LOGITS, edges="sobel"), ValueError, r"edges: expected .*'canny'.*got 'sobel'"),
    (lambda: mess_core.policy_maps(LOGITS, edges=5), TypeError, r"edges: expected a string, got int 5"),
    # views of one number that have more pixels than there is memory: a failed allocation would end the process
    (
        lambda: mess_core.label_map(np.broadcast_to(np.float32(0), (2, 2**20, 2**20)), size=(1, 1)),
        ValueError,
        r"logits: expected classes and pixels that fit into memory, got \(2, 1048576, 1048576\)",
    ),
    (
        lambda: from_map(*(np.broadcast_to(value, (2**21, 2**20)) for value in (np.float32(1), np.uint8(0)))),
        ValueError,
        r"confidence: expected maps that fit into memory, got \(2097152, 1048576\) pixels",
    ),
    (
        lambda: mess_core.network_input(
            np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (1, 2**40, 3)), mean=(0, 0, 0), std=(1, 1, 1), size=(1, 1)
        ),
        ValueError,
        r"size: expected pictures that fit into memory, got 1 x 1099511627776 pixels, wanted 1 x 1",
    ),
    (
        lambda: mess_core.network_input(
            np.ma.masked_array(np.zeros((4, 5, 3), np.uint8)), mean=(0, 0, 0), std=(1, 1, 1)
        ),
        TypeError,
        r"image: expected an array without a mask",
    ),
    (lambda: overlapping("mask", "confidence"), ValueError, r"out.mask: .* overlaps out.confidence"),
    (lambda: overlapping("refined", "labels"), ValueError, r"out.refined: .* overlaps out.labels"),
    (lambda: overlapping("refined", "logits"), ValueError, r"out.refined: .* overlaps logits"),
    (lambda: from_map(labels=np.ma.masked_array(LABELS)), TypeError, r"labels: expected an array without a mask"),
    (lambda: mess_core.canny(np.ma.masked_array(LABELS), 0, 0), TypeError, r"image: expected an array without a mask"),
    (lambda: leaves(image_threshold="0.9"), TypeError, r"image_threshold: expected a number, got '0.9'"),
    (lambda: leaves(image_threshold=True), TypeError, r"image_threshold: expected a number, got True"),
    (
        lambda: mess_core.confidence_map(np.zeros((300, 4, 5), np.float32), out=(BOTH, BOTH.view(np.int32))),
        ValueError,
        r"out\[1\]: expected memory of its own, got an array that overlaps out\[0\]",
    ),
    (lambda: confident(size=(0, 3)), ValueError, r"size: expected at least one pixel"),
    (lambda: confident(size=7), TypeError, r"size: expected \(height, width\), integers"),
    (lambda: confident(size=(10**7, 10**8)), ValueError, r"size: expected a picture that fits into memory"),
    (lambda: mess_core.confidence_map(LOGITS, size=(10**7, 10**8)), (ValueError, MemoryError), r"10000000"),
    (lambda: leaves(image_threshold=np.nan), ValueError, r"image_threshold: expected a number, got NaN"),
    (lambda: leaves(pixel_threshold=[0.1, 0.2]), ValueError, r"pixel_threshold: expected one number, got \[0.1, 0.2\]"),
    (lambda: leaves(logits=LOGITS[0]), ValueError, r"logits: expected shape .*, got \(4, 5\)"),
    (lambda: confident(threads=0), ValueError, r"threads: expected at least 1, got 0"),
    (lambda: confident(threads=5000), ValueError, r"threads: expected None or 1..=1024, got 5000"),
    (lambda: mess_core.confidence_map(LOGITS, kind="best"), ValueError, r"kind: expected 'top1'.*got 'best'"),
    (lambda: mess_core.label_map(LOGITS[None]), ValueError, r"logits: expected shape \(C, H, W\), got"),
    (lambda: mess_core.label_map(LOGITS, size=(0, 3)), ValueError, r"size: expected at least one pixel"),
    (lambda: mess_core.label_map(LOGITS, size=(10**7, 10**8)), (ValueError, MemoryError), r"10000000"),
    (lambda: mess_core.label_map(LOGITS, out=MAP), TypeError, r"out: expected .* uint8 or int32"),
    (lambda: mess_core.confidence_map(LOGITS[None]), ValueError, r"logits: expected shape \(C, H, W\), got"),
    (lambda: from_map(MAP[:, :-1]), ValueError, r"labels: expected shape \(4, 4\), got \(4, 5\)"),
    (lambda: from_map(MAP[:0], LABELS[:0]), ValueError, r"confidence: expected at least one pixel"),
    (lambda: from_map(np.zeros((0, 4, 5)), np.zeros((0, 4, 5), int)), ValueError, r"at least one image"),
    (lambda: from_map(MAP, LABELS - 1.0), TypeError, r"labels: expected integer class indices, got dtype float64"),
    (
        lambda: from_map(MAP, LABELS.astype(int) - 1),
        ValueError,
        r"class indices 0..65535, got -1 at row 0, column 0",
    ),
    (lambda: from_map(MAP, LABELS.astype(np.int64) + 2**40), ValueError, r"labels: expected class indices"),
    (lambda: from_map(MAP, LABELS.astype(np.int32) - 7), ValueError, r"labels: .*got -7 at row 0, column 0"),
    (lambda: mess_core.canny(MAP, 0, 0), TypeError, r"image: expected uint8, got dtype float32"),
    (lambda: mess_core.canny(LABELS[0], 0, 0), ValueError, r"image: expected shape \(H, W\), got \(5,\)"),
    (lambda: mess_core.canny(LABELS, 0, 0, aperture=4), ValueError, r"aperture: expected 3, 5 or 7, got 4"),
    (lambda: mess_core.canny(LABELS, np.nan, 0), ValueError, r"low: expected a finite threshold, got NaN"),
    (lambda: mess_core.canny(LABELS, 0, np.inf), ValueError, r"high: expected a finite threshold, got inf"),
    (lambda: mess_core.dilate(MAP, 3), TypeError, r"mask: expected bool.*got dtype float32"),
    (lambda: mess_core.erode(MASK[0], 3), ValueError, r"mask: expected shape \(H, W\), got \(5,\)"),
    (lambda: mess_core.erode(MASK, 0), ValueError, r"size: expected at least 1, got 0"),
    (lambda: mess_core.erode(MASK, 2**31), ValueError, r"size: expected at most 2147483647, got 2147483648"),
    (lambda: mess_core.dilate(MASK, 40000), ValueError, r"size: expected 1..=32768 pixels, got 40000"),
    (lambda: mess_core.boundary_mask(LABELS, output_stride=300), ValueError, r"output_stride: expected 1..=256"),
    (lambda: mess_core.refine_confidence(MAP, MASK, window=4), ValueError, r"window: expected an odd number.*got 4"),
    (lambda: mess_core.refine_confidence(MAP, MASK, window=2001), ValueError, r"window: .*got 2001"),
    (lambda: mess_core.refine_confidence(MAP, MASK[:2], window=3), ValueError, r"mask: expected shape \(4, 5\)"),
    (lambda: mess_core.dilate(MASK, 3, out=MASK), ValueError, r"out: expected memory of its own"),
    (lambda: mess_core.dilate(MASK, 3, out=np.zeros((5, 4), bool)), ValueError, r"out: expected shape \(4, 5\)"),
    (lambda: mess_core.dilate(MASK, 3, out=np.zeros((4, 5))), TypeError, r"out: expected a NumPy array of bool"),
    (lambda: mess_core.dilate(MASK, 3, out=[[True]]), TypeError, r"out: expected a NumPy array of bool, got list"),
    (lambda: mess_core.dilate(MASK, 3, out=np.zeros((5, 4), bool).T), ValueError, r"out: .*C-contiguous.*strides"),
    (lambda: mess_core.dilate(MASK, 3, out=read_only(MASK)), ValueError, r"out: expected a writable.*read-only"),
    (lambda: mess_core.refine_confidence(MAP, MASK, window=3, out=MAP), ValueError, r"out: expected memory of its own"),
    (lambda: mess_core.confidence_map(LOGITS, out=(MAP, MAP)), TypeError, r"out\[1\]: expected .* uint8 or int32"),
    (lambda: mess_core.image_confidence(LOGITS, pixel_threshold=0.5, workspace=3), TypeError, r"workspace"),
]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_bad_input(case):
    call, kind, message = CASES[case]
    with pytest.raises(kind, match=message):
        call()


def test_an_input_is_never_changed():
    logits = np.random.default_rng(0).normal(size=LOGITS.shape).astype(np.float32)
    before = logits.copy()
    mess_core.image_confidence(logits, pixel_threshold=0.5)
    np.testing.assert_array_equal(logits, before)
