"""The seam to the core: tensors as the core sees them, and its results against torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

import mess_core

LOGITS = torch.from_numpy(np.random.default_rng(0).normal(0, 4, (7, 12, 15)).astype(np.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_tensors_are_read_where_they_lie(dtype, memory_format):
    batch = torch.stack([LOGITS, -LOGITS]).to(dtype).contiguous(memory_format=memory_format)
    expected = mess_core.image_confidence(batch.float().numpy(), pixel_threshold=0.6, output_stride=2)
    found = mess_core.image_confidence(batch, pixel_threshold=0.6, output_stride=2)
    np.testing.assert_array_equal(found, expected)
    for a, b in zip(
        mess_core.confidence_map(batch[1]), mess_core.confidence_map(batch[1].float().numpy()), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_bfloat16_tensor_is_borrowed_and_kept_alive():
    tensor = LOGITS.to(torch.bfloat16)
    bits = mess_core._mess_core.bfloat16_bits(tensor[:, 2:, ::2].__dlpack__())
    tensor.fill_(1.0)
    assert (bits == 0x3F80).all()  # bfloat16's 1.0
    del tensor
    assert (bits == 0x3F80).all()
    assert bits.shape == (7, 10, 8)


def test_labels_and_masks_may_be_tensors():
    labels = LOGITS.argmax(0)
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        np.testing.assert_array_equal(mess_core.label_edges(labels.to(dtype)), mess_core.label_edges(labels.numpy()))
    mask = labels > 3
    np.testing.assert_array_equal(mess_core.dilate(mask, 3), mess_core.dilate(mask.numpy(), 3))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: LOGITS.clone().requires_grad_(), "requires? grad"),
        (lambda: LOGITS.to("meta"), "logits: "),
        (lambda: LOGITS.to(torch.complex64), "logits: expected numbers"),
    ],
)
def test_what_cannot_be_read_is_said(bad, message):
    with pytest.raises((TypeError, BufferError), match=message):
        mess_core.image_confidence(bad(), pixel_threshold=0.5)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(96, 120), (89, 113), (12, 15), (7, 5), (1, 1), (300, 17)])
def test_fused_upsampling_equals_torch(align_corners, size):
    # one class against zero: the confidence's logit is the upsampled value
    logits = torch.cat([LOGITS[:1], torch.zeros_like(LOGITS[:1])])
    full = functional.interpolate(logits[None], size, mode="bilinear", align_corners=align_corners)[0]
    confidence, labels = mess_core.confidence_map(logits, size=size, align_corners=align_corners)
    p = confidence.astype(np.float64)
    found = np.where(labels == 0, 1, -1) * np.log(p / (1 - p))
    near = np.abs(full[0].numpy()) < 6  # beyond, 1 - p has too few digits to read the value back
    np.testing.assert_allclose(found[near], full[0].double().numpy()[near], atol=1e-6 * 16 + 2e-4)
    whole = functional.interpolate(LOGITS[None], size, mode="bilinear", align_corners=align_corners)[0]
    expected, expected_labels = whole.softmax(0).max(0)
    confidence, labels = mess_core.confidence_map(LOGITS, size=size, align_corners=align_corners)
    np.testing.assert_allclose(confidence, expected.numpy(), atol=2e-5)
    clear = (whole.topk(2, dim=0).values.diff(dim=0).abs() > 1e-4)[0].numpy()
    np.testing.assert_array_equal(labels[clear], expected_labels.numpy()[clear])


def test_an_empty_tensor_of_bfloat16_is_told_as_others_are():
    empty = torch.zeros(0, 3, 4, 5, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="logits: expected at least one image"):
        mess_core.image_confidence(empty, pixel_threshold=0.5)
    values, labels = mess_core.confidence_map(torch.zeros(3, 0, 5, dtype=torch.bfloat16))
    assert values.shape == labels.shape == (0, 5)
