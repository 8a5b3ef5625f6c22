"""Attention that torch fuses in evaluation, as the operations that it consists of."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def unfused() -> Iterator[None]:
    """Inside the block `nn.MultiheadAttention` and what contains it run their parts: nothing counts the fused
    operation, and `torch.export` records the parts. One block at a time, as the switch is the process's."""
    with _SWITCH:
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(before)


_SWITCH = threading.RLock()
