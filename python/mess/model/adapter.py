"""The one contract a user's model must meet: one image batch in, dense logits out.

Models return tensors, dicts (torchvision: `out`), objects with `.logits` (transformers), tuples whose first entry is
the prediction, or masks with a class each (EoMT, Mask2Former). `LogitsModel` hides the difference and owns no
parameters but the user's; what it does not know, a function of the user's picks out.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor, nn

PickLogits = Callable[[Any], Tensor]
"""From what a model returns to its logits (B, C, h, w)."""


class LogitsModel(nn.Module):
    """The user's model as (B, 3, H, W) -> logits (B, C, h, w); `net` is the user's own module, not a copy.

    `pick_logits` finds the logits in what `net` returns; by default `logits_from_output` does.
    """

    def __init__(self, net: nn.Module, pick_logits: PickLogits | None = None) -> None:
        super().__init__()
        self.net = net
        self.pick_logits = pick_logits

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C, h, w) of the final exit, exactly as the user's model computes them."""
        return logits_from_output(self.net(images), self.pick_logits)


def logits_from_output(output: Any, pick_logits: PickLogits | None = None) -> Tensor:
    """The logits (B, C, h, w) inside whatever a segmentation model returned, or what `pick_logits` makes of it.

    Raises:
        TypeError: no tensor of four dimensions is where one is expected; says what came.
    """
    if pick_logits is not None:
        output = pick_logits(output)
    found: Any = output
    if getattr(output, "masks_queries_logits", None) is not None:
        found = _logits_from_masks(output.class_queries_logits, output.masks_queries_logits)
    elif isinstance(output, Mapping):
        found = next((output[key] for key in ("out", "logits") if key in output), None)
    elif hasattr(output, "logits") or hasattr(output, "out"):
        found = output.logits if hasattr(output, "logits") else output.out
    elif isinstance(output, list | tuple) and output:
        found = output[0]
    if isinstance(found, Tensor) and found.ndim == 4:
        return found
    shape = f"tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(output).__name__
    if isinstance(output, Mapping):
        shape = f"{type(output).__name__} with keys {list(output)}"
    raise TypeError(
        "model: expected an output of logits (B, C, H, W): a tensor, a dict with 'out' or 'logits', an object with "
        f".logits or .out, or a tuple that begins with it; got {shape}; a function pick_logits= can pick it out"
    )


def maps_like(output: Any, logits: Tensor) -> list[Tensor]:
    """Of a list or tuple that a model returned, all that could be its logits by their shape."""
    if not isinstance(output, list | tuple):
        return []
    channels = logits.shape[:2]
    return [value for value in output if isinstance(value, Tensor) and value.ndim == 4 and value.shape[:2] == channels]


def check_training_output(model: LogitsModel, example: Tensor) -> None:
    """TypeError when what the model returns in training begins with another map than its logits in evaluation, as of a
    model that puts auxiliary maps in front in training alone: they would be trained for the logits.

    Norms and dropouts stay in evaluation here, so that the same map has the same numbers; buffers are left as they are.
    """
    if model.pick_logits is not None:
        return
    noise = torch.rand(example.shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    images = noise.to(example)
    modes = [(part, part.training) for part in model.net.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.net.named_buffers()}
    try:
        with evaluating(model):
            expected = model(images.clone())
        for part, _ in modes:
            part.training = not any(word in type(part).__name__.lower() for word in ("norm", "drop", "stochastic"))
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = model.net(images.clone())
            picked = logits_from_output(output)
    except Exception:  # such a pass is not its way of training, which says so itself
        return
    finally:
        for part, mode in modes:
            part.training = mode
        with torch.no_grad():
            for name, buffer in model.net.named_buffers():
                if name in buffers and not torch.equal(buffer, buffers[name]):
                    buffer.copy_(buffers[name])
    found = [_is_close(value, expected) for value in maps_like(output, expected)]
    if any(found) and not _is_close(picked, expected):
        raise TypeError(
            f"model: its logits in evaluation are map {found.index(True)} of the {len(found)} that it returns in "
            "training, of which the first would be taken; a function pick_logits= picks them out in both"
        )


def _is_close(value: Tensor, expected: Tensor) -> bool:
    tolerance = 1e-3 * float(expected.abs().max())
    return value.shape == expected.shape and bool(torch.allclose(value, expected, rtol=0.0, atol=tolerance))


def _logits_from_masks(classes: Tensor, masks: Tensor) -> Tensor:
    """Logits (B, C, h, w) of queries with class logits (B, Q, C + 1), the last for none, and a mask (B, Q, h, w) each.

    The score of a class at a pixel is the sum over queries of p(class) times sigmoid(mask) (Cheng et al., MaskFormer,
    2021, section 3.4); its logarithm has the same order, and its softmax is each class's share of the scores.
    """
    scores = torch.einsum("bqc,bqhw->bchw", classes.softmax(dim=-1)[..., :-1], masks.sigmoid())
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()


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
def evaluating(module: nn.Module | Sequence[nn.Module]) -> Iterator[None]:
    """`module` in eval() and without gradients inside the block; every sub-module's own mode is restored after it.

    A list of all modules, instead of the one that holds them, saves the search for them.
    """
    parts = module.modules() if isinstance(module, nn.Module) else module
    training = [part for part in parts if part.training]
    for part in training:
        part.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def quiet_attempt() -> Iterator[None]:
    """Inside the block torch does not say at length why it gave up: what fails is tried otherwise, or raised."""
    with _QUIET:
        loggers = [logging.getLogger(name) for name in _CHATTY]
        before = [logger.disabled for logger in loggers]
        try:
            for logger in loggers:
                logger.disabled = True
            with redirect_stderr(io.StringIO()):  # torch.export prints the graph so far
                yield
        finally:
            for logger, disabled in zip(loggers, before, strict=True):
                logger.disabled = disabled


_QUIET = threading.RLock()
"""Standard error and loggers are the process's: what several threads set and restored in turn would stay as it is."""


_CHATTY = (
    "torch._subclasses.fake_tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.export",
    "torch.export._trace",
    "torch._export.non_strict_utils",
)
