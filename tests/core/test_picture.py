"""What a network is fed: against Pillow and the definition in floating point; torchvision is in tests/mess."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import mess_core
from mess_core import _mess_core as native
from tests.oracles import pictures as oracle

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_LEVELS = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}
sides = st.one_of(st.integers(1, 20), st.sampled_from([64, 65, 127, 200]))
sizes = st.tuples(sides, sides)


def picture(size, seed=0, *, extreme=False):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2, (*size, 3)) * 255 if extreme else rng.integers(0, 256, (*size, 3))
    return values.astype(np.uint8)


@given(sizes, sizes, st.integers(0, 9), st.booleans())
def test_within_a_grey_level_of_the_definition_and_of_pillow(old, new, seed, extreme):
    image = picture(old, seed, extreme=extreme)
    found = mess_core.network_input(image, size=new, **GREY_LEVELS).transpose(1, 2, 0)
    np.testing.assert_array_equal(found, np.clip(np.rint(found), 0, 255))
    assert np.abs(found - oracle.resized(image, new)).max() <= 1
    pillow = np.asarray(Image.fromarray(image).resize(new[::-1], Image.Resampling.BILINEAR))
    assert np.abs(found - pillow.astype(float)).max() <= 1


def test_by_hand():
    image = np.array([[[0, 10, 255], [100, 10, 255]]], np.uint8)
    found = mess_core.network_input(image, size=(1, 1), **GREY_LEVELS)
    assert found.ravel().tolist() == [50.0, 10.0, 255.0]
    twice = mess_core.network_input(image, size=(1, 4), **GREY_LEVELS)
    assert twice[0, 0].tolist() == [0.0, 25.0, 75.0, 100.0]


def test_its_own_size_is_not_touched_and_normalised_as_torch_does():
    image = picture((7, 5))
    found = mess_core.network_input(image, mean=MEAN, std=STD)
    assert (found.dtype, found.shape) == (np.float32, (3, 7, 5))
    np.testing.assert_array_equal(found, oracle.network_input(image, (7, 5), MEAN, STD))
    expected = (image / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize("new", [(33, 65), (90, 20)])
def test_any_strides_read_only_and_an_output_of_the_caller(new):
    image = picture((70, 121), 3)
    expected = mess_core.network_input(image, mean=MEAN, std=STD, size=new)
    bgr = np.ascontiguousarray(image[..., ::-1])
    channels_first = np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0)
    wide = np.zeros((140, 300, 3), np.uint8)
    wide[::2, 30:151] = image
    frozen = image.copy()
    frozen.flags.writeable = False
    batch = np.empty((2, 3, *new), np.float32)
    for same in (bgr[..., ::-1], channels_first, wide[::2, 30:151], frozen, image[::-1][::-1]):
        np.testing.assert_array_equal(mess_core.network_input(same, mean=MEAN, std=STD, size=new), expected)
    assert mess_core.network_input(image, mean=MEAN, std=STD, size=new, out=batch[1]).base is not None
    np.testing.assert_array_equal(batch[1], expected)


@pytest.mark.parametrize("isa", native.instruction_sets())
def test_every_instruction_set_gives_the_same_bits(isa):
    image = picture((53, 87), 5)
    expected = [mess_core.network_input(image, mean=MEAN, std=STD, size=s) for s in ((31, 40), (90, 91), (53, 20))]
    before = native.instruction_set()
    native.set_instruction_set(isa)
    try:
        found = [mess_core.network_input(image, mean=MEAN, std=STD, size=s) for s in ((31, 40), (90, 91), (53, 20))]
    finally:
        native.set_instruction_set(before)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


IMAGE = picture((4, 5))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mess_core.network_input([[1]], mean=MEAN, std=STD), TypeError, "image: expected a NumPy array"),
        (lambda: mess_core.network_input(IMAGE[..., :2], mean=MEAN, std=STD), ValueError, r"image: .*\(4, 5, 2\)"),
        (lambda: mess_core.network_input(IMAGE[..., 0], mean=MEAN, std=STD), ValueError, r"image: .*\(4, 5\)"),
        (lambda: mess_core.network_input(IMAGE[:0], mean=MEAN, std=STD), ValueError, r"image: .*\(0, 5, 3\)"),
        (lambda: mess_core.network_input(IMAGE / 255, mean=MEAN, std=STD), ValueError, "image: .*float64"),
        (lambda: mess_core.network_input(IMAGE, mean=MEAN[:2], std=STD), TypeError, "mean: expected three numbers"),
        (lambda: mess_core.network_input(IMAGE, mean=0.5, std=STD), TypeError, "mean: expected three numbers"),
        (lambda: mess_core.network_input(IMAGE, mean=("a",) * 3, std=STD), TypeError, "mean: expected three numbers"),
        (lambda: mess_core.network_input(IMAGE, mean=(0, 0, np.nan), std=STD), ValueError, "mean: expected three num"),
        (
            lambda: mess_core.network_input(IMAGE, mean="123", std=STD),
            TypeError,
            "mean: expected three numbers, got '123'",
        ),
        (lambda: mess_core.network_input(IMAGE, mean=(0, 0, 1e300), std=STD), ValueError, "mean: .* in -1e6..1e6"),
        (lambda: mess_core.network_input(IMAGE, mean=MEAN, std=(1e-50, 1, 1)), ValueError, "std: .* in 1e-6..1e6"),
        (
            lambda: mess_core.network_input(IMAGE, mean=MEAN, std=(1, 1, 0)),
            ValueError,
            "std: expected three numbers in",
        ),
        (
            lambda: mess_core.network_input(IMAGE, mean=MEAN, std=STD, size=(0, 3)),
            ValueError,
            "size: expected at least",
        ),
        (lambda: mess_core.network_input(IMAGE, mean=MEAN, std=STD, size=3), TypeError, "size: expected"),
        (
            lambda: mess_core.network_input(IMAGE, mean=MEAN, std=STD, out=np.empty((3, 4, 4), np.float32)),
            ValueError,
            r"out: expected shape \(3, 4, 5\)",
        ),
        (
            lambda: mess_core.network_input(IMAGE, mean=MEAN, std=STD, out=np.empty((3, 4, 5))),
            TypeError,
            "out: expected a NumPy array of float32",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_picture_that_memory_refuses_is_an_error():
    line = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (2**40, 1, 3))
    with pytest.raises(ValueError, match="size: expected pictures that fit into memory"):
        mess_core.network_input(line, mean=MEAN, std=STD, size=(1, 2**20))
