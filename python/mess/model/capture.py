"""Hooks at exit points: look at, or replace, what the model computes there while its own code runs."""

from __future__ import annotations

import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from mess.model.layout import Size, feature_tensor, with_feature
from mess.model.points import ExitPoint

Visit = Callable[[int, Tensor, Size], Tensor | None]
"""(index of the exit point, feature in the model's own layout, size of the images) -> its replacement, if any."""


@contextmanager
def captured_features(net: nn.Module, points: Sequence[ExitPoint]) -> Iterator[dict[int, Tensor]]:
    """Inside the block, a forward pass of `net` fills the yielded dict: index in `points` -> feature (B, C, h, w),
    a map whatever the layout that the model keeps it in.

    A feature that the model later overwrites in place would silently turn into another one, so its version counter is
    checked when the block ends.

    Raises:
        RuntimeError: a captured feature was modified in place after its exit point, or a pass met no feature at one.
    """
    features: dict[int, Tensor] = {}
    watched: dict[int, tuple[Tensor, int]] = {}  # as the model has them, with their version then
    has_gradients = torch.is_grad_enabled()

    def keep(index: int, feature: Tensor, input_size: Size) -> None:
        if has_gradients and not torch.is_grad_enabled():
            warnings.warn(
                f"exit point {points[index].module!r}: the model computes its feature without gradients "
                "(torch.utils.checkpoint with use_reentrant=True?): what this exit's loss says reaches no weight of it",
                stacklevel=2,
            )
        if feature.is_inference():  # has no version counter: a copy is safe whatever happens to the original
            feature = feature.clone()
        else:
            watched[index] = (feature, feature._version)
        features[index] = points[index].layout.to_map(feature, input_size)

    with marked(net, points, keep) as passes:
        yield features
    missed = [points[index].name for index in range(len(points)) if index not in features]
    if passes and missed:
        raise RuntimeError(
            f"exit points {missed}: the model did not come by there in this pass (a block that training skips, "
            "code that is compiled, scripted or in a thread of its own); place the exits where every pass goes"
        )
    for index, (feature, version) in watched.items():
        if feature._version != version:
            raise RuntimeError(
                f"exit point {points[index].module!r}: its feature is overwritten in place further down the model; "
                "place the exit at another module"
            )


@contextmanager
def marked(
    net: nn.Module, points: Sequence[ExitPoint], visit: Visit, modules: Mapping[str, nn.Module] | None = None
) -> Iterator[list[Size]]:
    """Call `visit(index, feature, input_size)` when the call of `points[index]` completes; its result, if any, replaces
    the feature, which is in the model's own layout. Passes of other threads and greenlets, or ones that are suspended
    meanwhile, are none of its business. Yields the sizes of the images of passes so far."""
    modules = dict(net.named_modules()) if modules is None else modules
    sizes: list[Size] = []
    own = weakref.ref(getcurrent())  # a suspended pass must not hold itself

    def begin(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if getcurrent() is own():
            images = next(value for value in (*inputs, *named.values()) if isinstance(value, Tensor))
            sizes.append((images.shape[-2], images.shape[-1]))

    handles = [net.register_forward_pre_hook(begin, with_kwargs=True)]
    for name in {point.module for point in points}:
        if name not in modules:
            raise ValueError(f"points: expected names of the model's modules, got {name!r}")
        wanted = {point.call: index for index, point in enumerate(points) if point.module == name}
        handles.append(modules[name].register_forward_hook(_counting_hook(wanted, visit, sizes, own)))
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()


def _counting_hook(
    wanted: dict[int, int], visit: Visit, sizes: list[Size], own: weakref.ref[greenlet]
) -> Callable[[nn.Module, Any, Any], Any]:
    calls: Counter[str] = Counter()

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        if getcurrent() is not own() or not sizes:
            return None
        index = wanted.get(calls["so far"])
        calls["so far"] += 1
        feature = None if index is None else feature_tensor(output)
        if index is None or feature is None:
            return None
        changed = visit(index, feature, sizes[-1])
        return None if changed is None else with_feature(output, feature, changed)

    return hook
