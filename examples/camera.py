"""Segment a camera (a number) or a video file with an exported deployment: python examples/camera.py net 0"""

import sys

import cv2

from mess.runtime import Runtime, Stream

stream = Stream(Runtime(sys.argv[1]), skip_after=5)
capture = cv2.VideoCapture(int(sys.argv[2]) if sys.argv[2].isdigit() else sys.argv[2])
while True:
    there, frame = capture.read()
    if not there:
        break
    result = stream.predict(frame[..., ::-1])  # OpenCV gives BGR
    print(f"left at {result.exit} after {sum(result.stage_ms):.1f} ms, classes {sorted(set(result.labels.flat))}")
