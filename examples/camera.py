"""Segment a camera (a number) or a video file with an exported deployment: python examples/camera.py net 0"""

import sys
import time

import cv2
import numpy as np

from mess.runtime import Runtime, Stream

stream = Stream(Runtime(sys.argv[1]))  # options of a video: see docs/deployment.md
capture = cv2.VideoCapture(int(sys.argv[2]) if sys.argv[2].isdigit() else sys.argv[2])
if not capture.isOpened():
    sys.exit(f"expected a camera or a video file, got {sys.argv[2]}")
while True:
    there, frame = capture.read()
    if not there:
        break
    start = time.perf_counter()
    result = stream.predict(frame[..., ::-1])  # OpenCV gives BGR
    took = 1000 * (time.perf_counter() - start)
    print(f"left at {result.exit} after {took:.1f} ms, classes {np.unique(result.labels).tolist()}")
