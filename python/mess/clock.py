"""The one clock of every measurement: wall time, with the work of a device waited for."""

from __future__ import annotations

import time

import torch


def milliseconds(device: torch.device) -> float:
    """Milliseconds since an arbitrary moment, after everything queued on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() * 1e3
