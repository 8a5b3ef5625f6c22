"""A torch model that was trained with an auxiliary head has an early exit already: mess_core decides whether to stop.

python examples/auxiliary_head.py photo.jpg [weights.pth]    torchvision's FCN-ResNet50; untrained without weights
"""

import sys

import numpy as np
import torch
from PIL import Image
from torchvision.models.segmentation import fcn_resnet50
from torchvision.transforms.functional import normalize, to_tensor

import mess_core

net = fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True, num_classes=21).eval()
if len(sys.argv) > 2:
    net.load_state_dict(torch.load(sys.argv[2], weights_only=True))
picture = Image.open(sys.argv[1]).convert("RGB")
image = normalize(to_tensor(picture), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[None]
size = (picture.height, picture.width)

with torch.inference_mode():
    feature = image
    for name, layer in net.backbone.items():
        feature = layer(feature)
        if name == "layer3":  # three quarters of the layers, where the auxiliary head reads
            early = net.aux_classifier(feature)[0]
            confidence = mess_core.image_confidence(early, pixel_threshold=0.9, output_stride=8, size=size)
            if confidence >= 0.95:
                break
    logits = early if confidence >= 0.95 else net.classifier(feature)[0]

labels = mess_core.label_map(logits, size=size)  # torch tensors are read where they lie
Image.fromarray(labels.astype(np.uint8)).save(f"{sys.argv[1]}.labels.png")
print(f"image confidence {confidence:.3f}: {'stopped early' if confidence >= 0.95 else 'went on to the end'}")
