"""Runs an exported deployment with ONNX Runtime or OpenVINO, NumPy and `mess_core`: no torch.

Reading order: `manifest` (what a folder holds) -> `pixels` (from a picture to the network's input, and back) ->
`backends` (who runs an ONNX file) -> `network` (stages, decisions, deadlines).
"""

from mess.runtime.manifest import Manifest
from mess.runtime.network import Result, Runtime

__all__ = ["Manifest", "Result", "Runtime"]
