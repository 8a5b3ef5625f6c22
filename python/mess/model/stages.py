"""A model that runs in stages, from one exit point to the next: what every back end offers."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from torch import Tensor, nn

from mess.model.layout import Size

State = tuple[Any, ...]
"""What a run needs to go on behind a cut."""


class Stages(nn.Module):
    """Stage i ends at exit point i, the one behind the last point at the logits.

    Attributes:
        backend: `graph`, `stages` or `eager`, see `mess.model.split`.
        can_drop: whether some images of a batch can leave and the others go on (`keep`).
        num_stages: how many there are.
        input_size: (height, width) of the images.
    """

    backend: ClassVar[str]
    can_drop: ClassVar[bool] = True

    def __init__(self, num_stages: int, input_size: Size) -> None:
        super().__init__()
        self.num_stages = num_stages
        self.input_size = input_size

    def up_to(self, count: int) -> Stages:
        """The first `count` stages."""
        raise NotImplementedError

    def start(self, images: Tensor) -> State:
        """The state before the first stage, for images (B, channels, H, W) of `input_size`."""
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
        """ValueError when the images are not of the size that the stages were made for."""
        if tuple(images.shape[-2:]) != self.input_size:
            raise ValueError(f"images: expected height and width {self.input_size}, got {tuple(images.shape[-2:])}")
