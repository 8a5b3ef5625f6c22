"""Cut a model at exit points into stages, by the first of three ways that works for it.

*stages*: modules that the user names, run one after the other. *graph*: `torch.export` and a cut of the graph; images
of a batch can leave at every cut, and what lies behind the last one is gone. *eager*: the user's own code, suspended at
hooks; works for everything, one image at a time.

Each is compared with the model on a probe when it is made, bit for bit; one that differs is given up for the next.
Training and calibration need no stages: they look at features through hooks (`capture.py`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from mess.model.adapter import LogitsModel, check_example, evaluating, logits_from_output
from mess.model.eager import EagerStages
from mess.model.graph import split_graph
from mess.model.layout import Size, feature_tensor
from mess.model.points import ExitPoint
from mess.model.stages import Stages, State, check_equal

Backend = Literal["auto", "stages", "graph", "eager"]

SIZE_STEPS = (1, 32)
"""Steps of height and width that are tried, in this order, where a graph is to take any size: many networks that go
down and up again take multiples of their largest stride alone."""


def split(
    model: LogitsModel,
    points: Sequence[ExitPoint],
    example_input: Tensor,
    *,
    stages: Sequence[str] = (),
    backend: Backend = "auto",
    any_size: bool = False,
) -> Stages:
    """Cut `model` at `points`, for images of the size of `example_input`.

    Args:
        model: the user's model, adapted.
        points: in order of execution.
        example_input: (B, channels, H, W).
        stages: names of the model's modules that, run one after the other, are the model; see `mess.convert`.
        backend: one of the three ways, or the first that works.
        any_size: a graph that takes images of every size, or of every multiple of `Stages.size_step`.

    Returns:
        The stages; a warning says so when the graph, which is the best for a batch, could not be made.

    Raises:
        RuntimeError: no way works, or the one that was asked for does not; says why.
        ValueError: no such back end, or `stages` that are asked for but not declared.
    """
    example = check_example(example_input)
    size = (example.shape[2], example.shape[3])
    ways: dict[str, Callable[[], Stages]] = {
        "stages": lambda: DeclaredStages(model, stages, points, example),
        "graph": lambda: split_graph(model, points, example),
        "eager": lambda: EagerStages(model, points, len(points) + 1, size),
    }
    free = {
        f"graph, sizes in steps of {n}": partial(split_graph, model, points, example, size_step=n) for n in SIZE_STEPS
    }
    if backend not in ("auto", *ways):
        raise ValueError(f"backend: expected 'auto', 'stages', 'graph' or 'eager', got {backend!r}")
    if backend == "stages" and not stages:
        raise ValueError("backend: expected another than 'stages' where mess.convert was given no stages")
    wanted = [backend] if backend != "auto" else (["stages"] if stages else []) + ["graph", "eager"]
    if any_size:
        if backend not in ("auto", "graph"):
            raise ValueError(f"backend: expected 'graph', which alone takes any size, got {backend!r}")
        ways, wanted = {**free}, [*free]
    failures = Exception if any_size else RuntimeError  # a model says in its own way which sizes it does not take
    reasons: list[str] = []
    for way in wanted:
        try:
            found = ways[way]()
            for probe in _probes(found, example):
                check_equal(found, model, probe)
        except failures as error:
            reasons.append(f"{way}: {error}")
            continue
        if reasons and not any_size:
            warnings.warn(f"deployed with back end {way!r}, since {'; '.join(reasons)}", stacklevel=2)
        return found
    raise RuntimeError(f"model: cannot be run in stages: {'; '.join(reasons)}")


class DeclaredStages(Stages):
    """Modules that the user named, run one after the other; a tuple that one returns are the next one's arguments."""

    backend = "stages"

    def __init__(
        self, model: LogitsModel, names: Sequence[str], points: Sequence[ExitPoint], example_input: Tensor
    ) -> None:
        super().__init__(len(points) + 1, (example_input.shape[2], example_input.shape[3]))
        unknown = [point.name for point in points if point.name not in names]
        if unknown:
            raise RuntimeError(f"stages: expected exit points at the ends of {list(names)}, got {unknown}")
        modules = dict(model.net.named_modules())
        ends = [names.index(point.name) + 1 for point in points]
        self.pick = model.pick_logits
        self.points = tuple(points)
        self.parts = nn.ModuleList(
            nn.ModuleList(modules[name] for name in names[begin:end])
            for begin, end in zip([0, *ends], [*ends, len(names)], strict=True)
        )
        self.batched = self._batched(example_input)

    def up_to(self, count: int) -> DeclaredStages:
        """The first `count` stages; what lies behind them is gone."""
        shorter = DeclaredStages.__new__(DeclaredStages)
        Stages.__init__(shorter, count, self.input_size)
        shorter.pick, shorter.points = self.pick, self.points[:count]
        shorter.parts, shorter.batched = self.parts[:count], self.batched[:count]
        return shorter

    def start(self, images: Tensor) -> State:
        """The state before the first stage."""
        self.check_size(images)
        return (images,)

    def run_stage(self, index: int, state: State) -> tuple[Tensor, State]:
        """(feature, next state) of a stage that ends at an exit point; (logits, ()) of the last one."""
        part = cast("nn.ModuleList", self.parts[index])
        with evaluating(part):
            for module in part:
                output = module(*state)
                state = output if isinstance(output, tuple) else (output,)
        if index == len(self.points):
            return logits_from_output(state[0] if len(state) == 1 else state, self.pick), ()
        feature = feature_tensor(state[0] if len(state) == 1 else state)
        if feature is None:
            raise RuntimeError(f"stages: expected one map among the outputs of {self.points[index].name!r}")
        return self.points[index].layout.to_map(feature, self.input_size), state

    def keep(self, index: int, state: State, kept: Tensor) -> State:
        """The state after stage `index` of the images that `kept` (B,) bool or indices selects."""
        values, form = tree_flatten(state)
        thinned = [v[kept] if batched else v for v, batched in zip(values, self.batched[index], strict=True)]
        result: State = tree_unflatten(thinned, form)
        return result

    def _batched(self, example: Tensor) -> tuple[tuple[bool, ...], ...]:
        """Which values of the state after each stage, those in lists and dicts too, have the batch in front.

        Raises:
            RuntimeError: one depends on the batch in another way, so that no image can leave it.
        """
        states: list[list[list[Any]]] = [[], []]
        for batch, after in zip((2, 3), states, strict=True):
            state = self.start(example[:1].repeat(batch, 1, 1, 1))
            for index in range(len(self.points)):
                _, state = self.run_stage(index, state)
                after.append(tree_leaves(state))
        found = []
        for point, of_two, of_three in zip(self.points, *states, strict=True):
            if len(of_two) != len(of_three):
                raise RuntimeError(f"stages: {point.name!r} hands on a value an image, so no image can leave it")
            pairs = zip(of_two, of_three, strict=True)
            found.append(tuple(_has_batch(point.name, two, three) for two, three in pairs))
        return tuple(found)


def _has_batch(stage: str, of_two: Any, of_three: Any) -> bool:
    """Whether a value that a stage hands on has the batch in front, from what it is of two images and of three."""
    if isinstance(of_two, Tensor):
        two, three = of_two.shape, of_three.shape
        if two[:1] == (2,) and three[:1] == (3,) and two[1:] == three[1:]:
            return True
    else:
        two, three = of_two, of_three
    if two is not None and not isinstance(two, tuple | int | float | str):
        raise RuntimeError(
            f"stages: {stage!r} hands on a {type(two).__name__}, which nobody knows to take images out of"
        )
    if two != three:
        raise RuntimeError(
            f"stages: {stage!r} hands on a value that depends on the batch otherwise than in its first size ({two} of "
            f"two images, {three} of three), so no image can leave it"
        )
    return False


def _probes(stages: Stages, example: Tensor) -> Iterator[Tensor]:
    """An image of noise of every size that is tried: that of the example, and another where any will do."""
    for size in probe_sizes(stages):
        generator = torch.Generator("cpu").manual_seed(0)
        yield torch.rand(1, example.shape[1], *size, generator=generator, device="cpu").to(example)


def probe_sizes(stages: Stages) -> list[Size]:
    """The sizes that stages are compared at: that of their example, and another where they take more."""
    return [stages.input_size] + ([another_size(stages)] if stages.size_step else [])


def another_size(stages: Stages) -> Size:
    """A size that stages of any size take, so much larger than their example's that a grid of patches is another."""
    step, (height, width) = stages.size_step or 1, stages.input_size
    more = (height // 4 + 3, width // 2 + 5) if step == 1 else (step, 2 * step)
    return height + more[0], width + more[1]


def check_stages(model: LogitsModel, names: Sequence[str]) -> None:
    """ValueError when a declared stage is no module of the model."""
    modules = dict(model.net.named_modules())
    unknown = [name for name in names if name not in modules]
    if unknown or len(set(names)) != len(names):
        raise ValueError(f"stages: expected different modules of the model, in order, got {list(names)}; no {unknown}")
