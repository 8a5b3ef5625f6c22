"""The torch operations against mess_core, on the CPU: integer steps exactly, the whole within a pixel of rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mess_core
from mess import PolicySettings, device_confidence
from mess.confidence import image_confidence


def label_maps(seed: int, *, batch=2, height=19, width=23, classes=5) -> np.ndarray:
    """Noise in one half, blocks in the other."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, classes, (batch, height, width))
    blocks = np.kron(rng.integers(0, classes, (batch, height // 4 + 1, width // 4 + 1)), np.ones((4, 4), int))
    return np.where(np.arange(width) < width // 2, noise, blocks[:, :height, :width]).astype(np.uint8)


@given(seed=st.integers(0, 2**32), classes=st.sampled_from([2, 5, 150, 256]))
def test_edges_are_mess_cores(seed, classes):
    labels = label_maps(seed, classes=classes)
    tensor = torch.from_numpy(labels.astype(np.int64))
    ours = {"canny": device_confidence.canny_edges, "labels": device_confidence.label_edges}
    for kind, function in ours.items():
        for image, edges in zip(labels, function(tensor).numpy(), strict=True):
            assert np.array_equal(edges, mess_core.label_edges(image, edges=kind))


@given(seed=st.integers(0, 2**32), size=st.integers(1, 12), share=st.floats(0, 1))
def test_dilation_and_median_are_mess_cores(seed, size, share):
    mask = np.random.default_rng(seed).random((1, 17, 21)) < share
    tensor = torch.from_numpy(mask)
    dilated = np.asarray(mess_core.dilate(mask[0].astype(np.uint8), size)) > 0
    assert np.array_equal(device_confidence.dilated(tensor, size)[0].numpy(), dilated)
    window = 2 * size + 1
    medians = mess_core.refine_confidence(mask[0].astype(np.float32), np.ones(mask[0].shape, bool), window=window)
    assert np.array_equal(device_confidence.median_of_binary(tensor, window)[0].numpy(), medians > 0.5)


@pytest.mark.parametrize("classes", [7, 16, 17, 40])
@pytest.mark.parametrize("confidence", ["top1", "margin", "entropy"])
@pytest.mark.parametrize("edges", ["canny", "labels"])
@pytest.mark.parametrize("refine", [True, False])
def test_the_whole_is_mess_cores(classes, confidence, edges, refine):
    policy = PolicySettings(confidence=confidence, edges=edges, refine=refine)
    generator = torch.Generator().manual_seed(0)
    for size, stride in (((48, 64), 8), ((24, 32), 4), ((12, 16), 1)):
        logits = 3 * torch.randn(3, classes, 12, 16, generator=generator)
        asked = {"size": size, "pixel_threshold": 0.6, "output_stride": stride, "policy": policy}
        counts = device_confidence.confident_pixels(logits, **asked)
        assert counts.dtype == torch.int64
        # a pixel within rounding of the threshold may fall on the other side, and change as many medians as see it
        wanted = image_confidence(logits, **asked) * size[0] * size[1]
        np.testing.assert_allclose(counts.numpy(), wanted, atol=2.001)


def test_a_share_of_pixels_is_what_mess_core_makes_of_it():
    """To the last bit, as thresholds are such shares: GPUs multiply by a rounded 1 / (H W) where they take a mean."""
    logits = torch.zeros(1, 2, 96, 128)
    logits[:, 0] = 9.0
    rounded_down = [n for n in range(96 * 128) if n * (1 / (96 * 128)) < n / (96 * 128)]
    logits[:, 0].view(-1)[rounded_down[-1] :] = 0.0
    asked = {"size": (96, 128), "pixel_threshold": 0.9, "output_stride": 1, "policy": PolicySettings(refine=False)}
    counts = device_confidence.confident_pixels(logits, **asked)
    assert counts.tolist() == [rounded_down[-1]]
    assert counts.numpy() / (96 * 128) == image_confidence(logits, **asked)


def test_undefined_pixels_are_never_confident():
    logits = torch.zeros(1, 2, 4, 4)
    logits[0, 0] = 9.0
    logits[0, 0, 0, 0] = torch.nan
    logits[0, 0, 1, 1] = torch.inf
    asked = {"size": (4, 4), "pixel_threshold": 0.0, "output_stride": 1, "policy": PolicySettings(refine=False)}
    assert device_confidence.confident_pixels(logits, **asked).tolist() == [14]
    assert image_confidence(logits, **asked).tolist() == [14 / 16]


@pytest.mark.parametrize("confidence", ["top1", "margin", "entropy"])
@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize("size", [(40, 40), (20, 20)])
@pytest.mark.parametrize("classes", [5, 37])
@pytest.mark.parametrize(
    ("where", "value"),
    [
        ((slice(None), 3), -torch.inf),
        ((slice(None), slice(0, 4)), -torch.inf),
        ((slice(None), slice(0, 33)), -torch.inf),
        ((slice(None), 3, slice(None), slice(0, 9)), -torch.inf),
        ((0, 3, 4, 4), torch.nan),
    ],
)
def test_impossible_classes_are_mess_cores(confidence, refine, size, classes, where, value):
    """A class that a mask rules out with -infinity, also where an upsampling gives it no weight; a NaN."""
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(2, classes, 5, 5, generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    logits[where] = value
    asked = {
        "size": size,
        "pixel_threshold": 0.7,
        "output_stride": 4,
        "policy": PolicySettings(confidence=confidence, refine=refine),
    }
    counts = device_confidence.confident_pixels(logits, **asked).numpy()
    np.testing.assert_allclose(counts, image_confidence(logits, **asked) * size[0] * size[1], atol=2.001)


@pytest.mark.parametrize("confidence", ["top1", "margin", "entropy"])
def test_no_map_of_all_classes_is_stored_at_full_size(confidence):
    """As GPUs run out of memory for it: the largest value that any operation makes is one of a few classes."""

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            for value in made if isinstance(made, tuple | list) else [made]:
                if isinstance(value, torch.Tensor):
                    self.largest = max(self.largest, value.numel())
            return made

    logits = torch.randn(2, 150, 8, 8, generator=torch.Generator().manual_seed(0))
    with Sizes() as sizes:
        device_confidence.confident_pixels(
            logits, size=(64, 64), pixel_threshold=0.2, output_stride=8, policy=PolicySettings(confidence=confidence)
        )
    assert 2 * 64 * 64 <= sizes.largest <= 2 * 20 * 64 * 64


@pytest.mark.parametrize("classes", [3, 40])
def test_of_equal_classes_the_first_is_the_label(classes):
    logits = torch.zeros(1, classes, 4, 6)
    logits[:, 1:] = 1.0
    assert device_confidence._maps(logits, (4, 6), PolicySettings())[1].eq(1).all()


@pytest.mark.parametrize("confidence", ["top1", "margin", "entropy"])
@pytest.mark.parametrize("size", [(4, 6), (8, 12)])
def test_finite_logits_have_a_softmax_however_low(confidence, size):
    """As masks make them of the least number that there is."""
    logits = torch.full((1, 20, 4, 6), torch.finfo(torch.float32).min)
    asked = {"size": size, "output_stride": 1, "policy": PolicySettings(confidence=confidence, refine=False)}
    for threshold in (0.0, 0.04, 0.06):
        counts = device_confidence.confident_pixels(logits, pixel_threshold=threshold, **asked)
        wanted = image_confidence(logits, pixel_threshold=threshold, **asked) * size[0] * size[1]
        assert counts.tolist() == wanted.tolist()
