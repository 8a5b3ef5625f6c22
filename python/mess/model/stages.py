"""A model that runs in stages, from one exit point to the next: what every back end offers."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from mess.model.adapter import LogitsModel, evaluating
from mess.model.fused import unfused
from mess.model.layout import Size

State = tuple[Any, ...]
"""What a run needs to go on behind a cut."""


class Stages(nn.Module):
    """Stage i ends at exit point i, the one behind the last point at the logits.

    Attributes:
        backend: `graph`, `stages` or `eager`, see `mess.model.split`.
        can_drop: whether some images of a batch can leave and the others go on (`keep`).
        num_stages: how many there are.
        input_size: (height, width) that it was cut for.
        size_step: images may have any height and width that are multiples of it; None: `input_size` alone.
    """

    backend: ClassVar[str]
    can_drop: ClassVar[bool] = True

    def __init__(self, num_stages: int, input_size: Size, size_step: int | None = None) -> None:
        super().__init__()
        self.num_stages = num_stages
        self.input_size = input_size
        self.size_step = size_step

    def up_to(self, count: int) -> Stages:
        """The first `count` stages."""
        raise NotImplementedError

    def start(self, images: Tensor) -> State:
        """The state before the first stage, for images (B, channels, H, W) of a size that it takes."""
        raise NotImplementedError

    def run_stage(self, index: int, state: State) -> tuple[Tensor, State]:
        """(feature (B, C, h, w), next state) of a stage that ends at an exit point; (logits, ()) of the last one."""
        raise NotImplementedError

    def keep(self, index: int, state: State, kept: Tensor) -> State:
        """The state after stage `index` of the images that `kept` (B,) bool or indices selects."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Nothing: a stage always computes as in eval mode, and the modes of the user's modules are the user's."""
        return self

    def check_size(self, images: Tensor) -> None:
        """ValueError when the stages do not take images of this size."""
        size, step = tuple(images.shape[-2:]), self.size_step
        if step is None and size != self.input_size:
            raise ValueError(f"images: expected height and width {self.input_size}, got {size}")
        if step is not None and (0 in size or any(side % step for side in size)):
            raise ValueError(f"images: expected a height and width that are multiples of {step}, got {size}")


@torch.inference_mode()
def check_equal(stages: Stages, model: LogitsModel, images: Tensor) -> None:
    """RuntimeError when the stages give other logits than the model for `images`.

    Attention that torch fuses in evaluation may differ from its parts in the last bits: stages that equal the parts do.
    """
    with evaluating(model):
        expected, again = (model(images.clone()) for _ in range(2))  # a model may overwrite what it gets
    state = stages.start(images.clone())
    for index in range(stages.num_stages):
        output, state = stages.run_stage(index, state)
    if output.shape != expected.shape:
        raise RuntimeError(f"expected logits of shape {tuple(expected.shape)}, got {tuple(output.shape)}")
    noise = _distance(again, expected)  # 0 where the device computes the same thing twice
    if _distance(output, expected) <= 4 * noise:
        return
    with evaluating(model), unfused():
        of_parts = model(images.clone())
    if not _distance(output, of_parts) <= 4 * noise:
        raise RuntimeError(f"its logits differ from the model's by up to {_distance(output, expected):.3g}")


def _distance(a: Tensor, b: Tensor) -> float:
    """The greatest difference; 0 between equal infinities and between NaN, infinite between NaN and a number."""
    a, b = a.cpu(), b.cpu()  # MPS has no float64
    is_same = (a == b) | (a.isnan() & b.isnan())
    return float((a.double() - b.double()).abs().nan_to_num(nan=torch.inf, posinf=torch.inf).where(~is_same, 0.0).max())
