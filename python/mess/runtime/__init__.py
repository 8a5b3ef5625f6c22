"""Runs an exported deployment with ONNX Runtime or OpenVINO, NumPy and `mess_core`: no torch.

Reading order: `manifest` (what a folder holds) -> `pixels` (from a picture to the network's input, and back) ->
`backends` (who runs an ONNX file) -> `network` (stages, decisions, deadlines) -> `stream` (frames
of a camera).
"""

from mess.runtime.manifest import Manifest
from mess.runtime.network import Result, Runtime
from mess.runtime.stream import Stream

__all__ = ["Manifest", "Result", "Runtime", "Stream"]
