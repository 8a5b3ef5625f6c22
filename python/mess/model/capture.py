"""Hooks at exit points: look at, or replace, what the model computes there while its own code runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

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
        RuntimeError: a captured feature was modified in place after its exit point.
    """
    features: dict[int, Tensor] = {}
    watched: dict[int, tuple[Tensor, int]] = {}  # as the model has them, with their version then

    def keep(index: int, feature: Tensor, input_size: Size) -> None:
        if feature.is_inference():  # has no version counter: a copy is safe whatever happens to the original
            feature = feature.clone()
        else:
            watched[index] = (feature, feature._version)
        features[index] = points[index].layout.to_map(feature, input_size)

    with marked(net, points, keep):
        yield features
    for index, (feature, version) in watched.items():
        if feature._version != version:
            raise RuntimeError(
                f"exit point {points[index].module!r}: its feature is overwritten in place further down the model; "
                "place the exit at another module"
            )


@contextmanager
def marked(
    net: nn.Module, points: Sequence[ExitPoint], visit: Visit, modules: Mapping[str, nn.Module] | None = None
) -> Iterator[None]:
    """Call `visit(index, feature, input_size)` when the call of `points[index]` completes; its result, if any, replaces
    the feature, which is in the model's own layout."""
    modules = dict(net.named_modules()) if modules is None else modules
    sizes: list[Size] = [(0, 0)]

    def begin(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        images = next(value for value in (*inputs, *named.values()) if isinstance(value, Tensor))
        sizes[0] = (images.shape[-2], images.shape[-1])

    handles = [net.register_forward_pre_hook(begin, with_kwargs=True)]
    for name in {point.module for point in points}:
        if name not in modules:
            raise ValueError(f"points: expected names of the model's modules, got {name!r}")
        wanted = {point.call: index for index, point in enumerate(points) if point.module == name}
        handles.append(modules[name].register_forward_hook(_counting_hook(wanted, visit, sizes)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _counting_hook(wanted: dict[int, int], visit: Visit, sizes: list[Size]) -> Callable[[nn.Module, Any, Any], Any]:
    calls: Counter[str] = Counter()

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        index = wanted.get(calls["so far"])
        calls["so far"] += 1
        feature = None if index is None else feature_tensor(output)
        if index is None or feature is None:
            return None
        changed = visit(index, feature, sizes[0])
        return None if changed is None else with_feature(output, feature, changed)

    return hook
