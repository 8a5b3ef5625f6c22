"""Two ONNX networks of your own, a small and a large one; easy pictures never reach the large one. Nothing is trained.

python examples/cascade.py small.onnx large.onnx photo.jpg ...     needs mess_core, onnxruntime, opencv-python

Each takes (1, 3, H, W) float32, RGB in 0..1, and gives logits (1, classes, h, w) of any size.
"""

import sys

import cv2
import numpy as np
import onnxruntime

import mess_core

small, large = (onnxruntime.InferenceSession(path) for path in sys.argv[1:3])
workspace = mess_core.Workspace()  # buffers that calls reuse


def logits_of(session: onnxruntime.InferenceSession, pixels: np.ndarray) -> np.ndarray:
    return session.run(None, {session.get_inputs()[0].name: pixels})[0][0]


for path in sys.argv[3:]:
    read = cv2.imread(path)
    if read is None:
        sys.exit(f"{path}: no picture")
    picture = read[..., ::-1]  # OpenCV gives BGR
    pixels = np.ascontiguousarray(picture.transpose(2, 0, 1)[None], dtype=np.float32) / 255
    logits = logits_of(small, pixels)
    policy = {"pixel_threshold": 0.8, "output_stride": 8, "size": picture.shape[:2], "workspace": workspace}
    is_easy = mess_core.should_exit(logits, image_threshold=0.9, **policy)
    if not is_easy:
        logits = logits_of(large, pixels)
    labels = mess_core.label_map(logits, size=picture.shape[:2])
    cv2.imwrite(f"{path}.labels.png", labels)
    print(f"{path}: {'small' if is_easy else 'large'} network, {len(np.unique(labels))} classes")
