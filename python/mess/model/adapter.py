"""The one contract a user's model must meet: one image batch in, dense logits out.

Models return tensors, dicts (torchvision: `out`), objects with `.logits` (transformers) or tuples whose first entry is
the prediction. `LogitsModel` hides the difference and owns no parameters but the user's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class LogitsModel(nn.Module):
    """The user's model as (B, 3, H, W) -> logits (B, C, h, w); `net` is the user's own module, not a copy."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C, h, w) of the final exit, exactly as the user's model computes them."""
        return logits_from_output(self.net(images))


def logits_from_output(output: Any) -> Tensor:
    """The logits (B, C, h, w) inside whatever a segmentation model returned.

    Raises:
        TypeError: no tensor of four dimensions is where one is expected; says what came.
    """
    found: Any = output
    if isinstance(output, Mapping):
        found = next((output[key] for key in ("out", "logits") if key in output), None)
    elif hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, list | tuple) and output:
        found = output[0]
    if isinstance(found, Tensor) and found.ndim == 4:
        return found
    shape = f"tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(output).__name__
    if isinstance(output, Mapping):
        shape = f"{type(output).__name__} with keys {list(output)}"
    raise TypeError(
        "model: expected an output of logits (B, C, H, W): a tensor, a dict with 'out' or 'logits', an object with "
        f".logits, or a tuple that begins with it; got {shape}"
    )


def check_example(example_input: Any) -> Tensor:
    """`example_input` itself when it is a float batch (B, 3, H, W), B >= 1; otherwise a ValueError or TypeError."""
    if not isinstance(example_input, Tensor):
        raise TypeError(f"example_input: expected a tensor (B, channels, H, W), got {type(example_input).__name__}")
    if example_input.ndim != 4 or 0 in example_input.shape or not example_input.is_floating_point():
        raise ValueError(
            "example_input: expected a non-empty float tensor (B, channels, H, W), "
            f"got shape {tuple(example_input.shape)}, {example_input.dtype}"
        )
    return example_input


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`module` in eval() and without gradients inside the block; every sub-module's own mode is restored after it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training
