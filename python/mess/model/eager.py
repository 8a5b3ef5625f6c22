"""The eager back end: the user's own code, suspended at exit points.

The forward pass runs in a greenlet, a stack of its own in the same thread. A hook at every exit point switches back to
the caller with the feature; the next stage switches in again. Whatever Python does in between works, and a run that is
dropped simply never goes on. A batch cannot be thinned out, since the suspended code holds all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import cast

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from mess.model.adapter import LogitsModel, evaluating
from mess.model.capture import marked
from mess.model.layout import Size
from mess.model.points import ExitPoint
from mess.model.stages import Stages, State


class EagerStages(Stages):
    """The model itself, in eval mode while it runs; all of it is kept, also behind the last stage."""

    backend = "eager"
    can_drop = False

    def __init__(self, model: LogitsModel, points: Sequence[ExitPoint], count: int, input_size: Size) -> None:
        super().__init__(count, input_size)
        self.model = model
        self.points = tuple(points)
        self._modules_by_name = dict(model.net.named_modules())

    def up_to(self, count: int) -> EagerStages:
        """The first `count` stages."""
        return EagerStages(self.model, self.points[:count], count, self.input_size)

    def start(self, images: Tensor) -> State:
        """A run that has not begun."""
        self.check_size(images)
        return (_Run(self.model, self.points, images, self._modules_by_name),)

    def run_stage(self, index: int, state: State) -> tuple[Tensor, State]:
        """Let the run go on to its next exit point."""
        run: _Run = state[0]
        return run.go_on(index), state

    def keep(self, index: int, state: State, kept: Tensor) -> State:
        """Not possible.

        Raises:
            RuntimeError: always; see `can_drop`.
        """
        raise RuntimeError("images of a batch cannot leave a model that runs with hooks; run them one by one")


class _Run:
    """One forward pass that stops at every exit point. Dropping it unwinds the pass where it stands."""

    def __init__(
        self, model: LogitsModel, points: Sequence[ExitPoint], images: Tensor, modules: Mapping[str, nn.Module]
    ) -> None:
        self._points = points
        self._parts = list(modules.values())
        self._greenlet = greenlet(_forward)
        self._arguments: tuple[object, ...] = (model, points, images, modules)

    def go_on(self, index: int) -> Tensor:
        """The feature of exit point `index`, or the logits."""
        self._greenlet.parent = getcurrent()  # whoever asks gets the answer, and the errors
        arguments, self._arguments = self._arguments, ()
        # a model may enter modes in front of an exit, which are its own
        with evaluating(self._parts), torch.inference_mode(torch.is_inference_mode_enabled()):
            met, output = cast("tuple[int, Tensor]", self._greenlet.switch(*arguments))
        if met != index:
            names = [point.name for point in self._points]
            raise RuntimeError(
                f"model: expected to meet the exit points {names} in this order on the way to the logits, met number "
                f"{met} instead of {index}; exit where every image passes"
            )
        return output

    def __del__(self) -> None:
        """End the pass, and leave the modes of whoever drops it: what it entered resets those it found itself."""
        run = self._greenlet
        if not run:  # it was not begun, or has ended
            return
        # a run of another thread cannot be ended here: it is there, when that goes on
        with torch.inference_mode(torch.is_inference_mode_enabled()), suppress(greenlet.error, ValueError):
            run.parent = getcurrent()
            run.throw(GreenletExit)


def _forward(
    model: LogitsModel, points: Sequence[ExitPoint], images: Tensor, modules: Mapping[str, nn.Module]
) -> tuple[int, Tensor]:
    """In a greenlet: switch back with (index, feature) at every exit point, return (number of points, logits).

    It must not hold the run that started it, nor itself: a run that is dropped is to end at once.
    """

    def visit(index: int, feature: Tensor, input_size: Size) -> None:
        feature = points[index].layout.to_map(feature, input_size)
        getcurrent().parent.switch((index, feature))  # no name for it: the frame would hold itself

    with marked(model.net, points, visit, modules):
        return len(points), model(images)
