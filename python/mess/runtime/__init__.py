"""Runs an exported deployment with ONNX Runtime or OpenVINO, NumPy and `mess_core`: no torch.

Reading order: `manifest` (what a folder holds) -> `pixels` (from a picture to the network's input, and back) ->
`backends` (who runs an ONNX file) -> `network` (stages, decisions, deadlines) -> `stream` (frames of a camera), `watch`
(are the images still those of calibration?).
"""

from mess.runtime.manifest import Manifest
from mess.runtime.network import Result, Runtime
from mess.runtime.stream import Stream
from mess.runtime.watch import DriftReport, Watch

__all__ = ["DriftReport", "Manifest", "Result", "Runtime", "Stream", "Watch"]
