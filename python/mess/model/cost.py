"""What each layer of a model costs: multiply-accumulates, counted; or milliseconds, measured.

Convention: one multiply-accumulate = 1, as in the table of the paper (its "GFLOPs" for ResNet50-FCN, 138.63, are MACs).
FLOPs in the sense of PyTorch's counter are twice that; `macs` here is always the counter's number halved. Only
convolutions and matrix products are counted (the counter's list); interpolation, normalisation and activations are 0.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

import torch
from greenlet import getcurrent
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from mess.clock import milliseconds
from mess.model.adapter import check_example, evaluating, quiet_attempt
from mess.model.exits import ExitHead
from mess.model.fused import unfused
from mess.model.layout import Layout, feature_tensor, layout_from_size, layout_from_sizes

CostKind = Literal["macs", "latency"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCost:
    """One call of one module, in order of completion.

    `name` is the module's name in the model; `call` counts the calls of a shared module from 0. `start` and `end` are
    the cumulative workload when the call begins and completes, in MACs or milliseconds of one image. `feature` is
    (channels, height, width) of an output that is a map of the picture, in whatever `layout`, else None. `is_container`
    marks Sequential, ModuleList, ModuleDict; `is_bundle` an output that only holds the map; `is_stack` a module whose
    children are all leaves. `is_overwritten`: the output is modified in place further on. `uses`: the share of the MACs
    so far that went into the feature; the rest went into other branches. `macs`: cumulative MACs at its completion,
    whatever the workload is.
    """

    name: str
    call: int
    kind: str
    is_container: bool
    is_bundle: bool
    is_stack: bool
    start: float
    end: float
    feature: tuple[int, int, int] | None = None
    layout: Layout | None = None
    is_overwritten: bool = False
    uses: float = 1.0
    macs: float = 0.0

    @property
    def call_name(self) -> str:
        """`name`, or `name#call` from the second call on."""
        return f"{self.name}#{self.call}" if self.call else self.name


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadProfile:
    """Cumulative workload of a model along its layers, for one image of `input_size` (height, width)."""

    cost: CostKind
    input_size: tuple[int, int]
    total: float
    layers: tuple[LayerCost, ...]

    @property
    def unit(self) -> str:
        """`MACs` or `ms`."""
        return "MACs" if self.cost == "macs" else "ms"


def profile(model: nn.Module, example_input: Tensor, *, cost: CostKind = "macs", rounds: int = 5) -> WorkloadProfile:
    """Workload of every module call of one forward pass.

    Args:
        model: any model that takes `example_input`; it is run in eval mode and left as it was.
        example_input: (B, channels, H, W) float; only its first image is used.
        cost: `macs` counts multiply-accumulates; `latency` measures milliseconds on the example's device, hooks
            included. Both run the model on the example, and on a larger one to see which dimensions are the picture's:
            really, since what a model keeps of a pass (coordinates by size, say) is found by its next one.
        rounds: forward passes whose median is taken, for `latency`, after one that warms up.

    Returns:
        The profile; `layers` in order of completion.

    Raises:
        ValueError: `example_input` is not (B, channels, H, W), or `cost` or `rounds` is off.
    """
    images = check_example(example_input)[:1]
    if cost not in ("macs", "latency"):
        raise ValueError(f"cost: expected 'macs' or 'latency', got {cost!r}")
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")
    with torch.inference_mode(False), evaluating(model):  # inference tensors do not tell when they are overwritten
        images = images.clone()  # a model may overwrite what it gets; no inference tensor
        calls, total = _counted(model, images)
        if cost == "latency":
            calls, total = _timed(model, images, rounds, {(call.name, call.call): call for call, _ in calls})
        layers = _with_features(model, images, calls)
    return WorkloadProfile(cost=cost, input_size=(images.shape[2], images.shape[3]), total=total, layers=tuple(layers))


def count_macs(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of one call of `module`; of an exit head of ours from shapes alone."""
    fakes = FakeTensorMode(allow_non_fake_inputs=True) if isinstance(module, ExitHead) else nullcontext()
    with evaluating(module), unfused(), fakes as fake, FlopCounterMode(display=False) as counter:
        module(*(t.detach() if fake is None else fake.from_tensor(t.detach()) for t in inputs))
    return int(counter.get_total_flops() // 2)


_Shape = tuple[int, ...]
_Calls = list[tuple[LayerCost, _Shape | None]]
"""Module calls in order of completion, with the shape of what may be their feature."""


def _counted(model: nn.Module, images: Tensor) -> tuple[_Calls, float]:
    with unfused(), FlopCounterMode(display=False) as counter, _Ancestry(counter) as ancestry:
        calls = _walk(model, images, lambda: counter.get_total_flops() // 2, ancestry.share)
        return [(replace(layer, macs=layer.end), s) for layer, s in calls], float(counter.get_total_flops() // 2)


class _Ancestry(TorchDispatchMode):
    """Which operations each tensor comes from, of those that the counter counts."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._counter = counter
        self._costs: list[int] = []
        self._masks: MutableMapping[Tensor, int] = WeakIdKeyDictionary()
        """Tensor -> bits of the operations behind it."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self._counter.get_total_flops()
        output = function(*args, **(kwargs or {}))
        cost = self._counter.get_total_flops() - before
        mask = 0
        for tensor in _tensors((args, kwargs)):
            mask |= self._masks.get(tensor, 0)
        if cost:
            mask |= 1 << len(self._costs)
            self._costs.append(cost)
        if mask:
            for tensor in _tensors(output):
                self._masks[tensor] = mask
        return output

    def share(self, tensor: Tensor) -> float:
        """Of all that was counted so far, the share that went into this tensor."""
        mask, total = self._masks.get(tensor, 0), sum(self._costs)
        own = sum(cost for at, cost in enumerate(self._costs) if mask >> at & 1)
        return own / total if total else 1.0


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _timed(
    model: nn.Module, images: Tensor, rounds: int, counted: dict[tuple[str, int], LayerCost]
) -> tuple[_Calls, float]:
    def clock() -> float:
        return milliseconds(images.device)

    runs: list[_Calls] = []
    totals: list[float] = []
    for _ in range(rounds + 1):  # the first round warms up
        fresh = images.clone()  # a model may overwrite what it gets
        start = clock()
        runs.append(_walk(model, fresh, lambda: clock() - start))  # noqa: B023  (called before `start` changes)
        totals.append(clock() - start)
    calls = []
    for same in zip(*runs[1:], strict=True):
        layer, shape = same[0]
        start, end = median(c.start for c, _ in same), median(c.end for c, _ in same)
        known = counted.get((layer.name, layer.call), layer)
        calls.append((replace(layer, start=start, end=end, uses=known.uses, macs=known.macs), shape))
    return calls, median(totals[1:])


def _with_features(model: nn.Module, images: Tensor, calls: _Calls) -> list[LayerCost]:
    """Find where the picture is in each output: by its shape for images of another size, where the model takes one."""
    height, width = images.shape[2:]
    others: dict[tuple[str, int], _Shape | None] = {}
    for other in _larger(height, width):
        try:
            with quiet_attempt(), unfused():
                walked = _walk(model, F.interpolate(images, other, mode="nearest"), lambda: 0.0)
        except Exception:  # the model takes no such size: what one size says has to do
            continue
        others = {(layer.name, layer.call): shape for layer, shape in walked}
        break
    layers = []
    for layer, shape in calls:
        second = others.get((layer.name, layer.call))
        if shape is None:
            layout = None
        elif second is None:
            layout = layout_from_size(shape, (height, width)) if not others else None
        else:
            layout = layout_from_sizes(shape, second, ((height, width), other))
        feature = layout.map_shape(shape, (height, width)) if layout and shape else None
        layers.append(replace(layer, feature=feature, layout=layout))
    return layers


def _larger(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Sizes that are larger in both dimensions, by different shares: first by as little as every map of them shows, and
    by multiples of what divides the size (of powers of two: 64), as a stride does; then for models that want more."""
    common = math.gcd(height, width)
    step = common // max(1, (common & -common) // 64)
    step *= -(-64 // step)
    yield height + step, width + 2 * step
    yield 2 * height, 3 * width
    yield 2 * height, 2 * width


def _walk(
    model: nn.Module,
    images: Tensor,
    workload: Callable[[], float],
    uses: Callable[[Tensor], float] = lambda _: 1.0,
) -> _Calls:
    """Run the model once and note `workload()` whenever a module call completes."""
    found: _Calls = []
    calls: Counter[str] = Counter()
    starts: list[float] = []  # a stack: module calls nest
    outputs: list[tuple[Tensor | None, int]] = []

    def begin(_: nn.Module, __: Any) -> None:
        if getcurrent() is own():  # not a pass of another thread
            starts.append(float(workload()))

    def end_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def end(module: nn.Module, _: Any, output: Any) -> None:
            if getcurrent() is not own():
                return
            tensor = feature_tensor(output)
            layer = LayerCost(
                name=name,
                call=calls[name],
                kind=type(module).__name__,
                is_container=isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict),
                is_bundle=not isinstance(output, Tensor),
                is_stack=all(not list(child.children()) for child in module.children()),
                start=starts.pop(),
                end=float(workload()),
                uses=1.0 if tensor is None else uses(tensor),
            )
            found.append((layer, None if tensor is None else tuple(tensor.shape)))
            outputs.append((tensor, 0 if tensor is None else tensor._version))
            calls[name] += 1

        return end

    own = weakref.ref(getcurrent())
    # no hook sees into a scripted module
    named = [(name, m) for name, m in model.named_modules() if name and not isinstance(m, torch.jit.ScriptModule)]
    handles = [module.register_forward_pre_hook(begin) for _, module in named]
    handles += [module.register_forward_hook(end_of(name)) for name, module in named]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (replace(layer, is_overwritten=tensor is not None and tensor._version != version), shape)
        for (layer, shape), (tensor, version) in zip(found, outputs, strict=True)
    ]
