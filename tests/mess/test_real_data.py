"""Real images and real weights, where they are (see `data_folder`)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models import mobilenet_v2

import mess
from mess.data import SeededLoader, dataset_from_spec
from mess.model.zoo import mobilenet_v2_fcn


def test_camvid_is_complete_and_its_labels_are_in_range(data_folder):
    sizes = {}
    for split in ("train", "val", "test"):
        data = dataset_from_spec(f"camvid:{data_folder / 'camvid'}", split=split)
        sizes[split] = len(data)
        image, labels = data.pair(len(data) - 1)
        assert image.shape == (360, 480, 3)
        assert set(np.unique(labels)) <= {*range(11), 255}
    assert sizes == {"train": 367, "val": 101, "test": 233}
    assert data.class_names[:2] == ("sky", "building")


def test_imagenet_weights_give_torchvisions_features(data_folder):
    path = data_folder / "weights" / "mobilenet_v2_imagenet_features.safetensors"
    net = mobilenet_v2_fcn(num_classes=11, output_stride=32, weights=path).eval()
    reference = mobilenet_v2(weights=None).eval()
    own = {n: v for n, v in net.state_dict().items() if n.startswith("features.")}
    reference.load_state_dict(own, strict=False)
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(net.features(image), reference.features[:18](image))


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_keeps_what_the_weights_see(data_folder, output_stride):
    path = data_folder / "weights" / "mobilenet_v2_imagenet_features.safetensors"
    dilated = mobilenet_v2_fcn(num_classes=11, output_stride=output_stride, weights=path).eval()
    plain = mobilenet_v2_fcn(num_classes=11, output_stride=32, weights=path).eval()
    data = dataset_from_spec(f"camvid:{data_folder / 'camvid'}", split="val")
    image, _ = SeededLoader(data, size=(257, 321)).example(0)
    with torch.no_grad():
        fine, coarse = dilated.features(image[None]), plain.features(image[None])
    step = 32 // output_stride
    aligned = fine[:, :, ::step, ::step][:, :, 2:-2, 2:-2]  # away from the border, where padding differs
    torch.testing.assert_close(aligned, coarse[:, :, 2:-2, 2:-2], rtol=1e-3, atol=1e-3)


def test_convert_on_a_real_image(data_folder):
    path = data_folder / "weights" / "mobilenet_v2_imagenet_features.safetensors"
    net = mobilenet_v2_fcn(num_classes=11, weights=path).eval()
    data = dataset_from_spec(f"camvid:{data_folder / 'camvid'}", split="val")
    image, _ = SeededLoader(data, size=(120, 160)).example(0)
    network = mess.convert(net, image[None], heads="tiny").eval()
    with torch.no_grad():
        assert torch.equal(network(image[None]), net(image[None]))
