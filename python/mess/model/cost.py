"""What each layer of a model costs: multiply-accumulates, counted; or milliseconds, measured.

Convention: one multiply-accumulate = 1, as in the table of the paper (its "GFLOPs" for ResNet50-FCN, 138.63, are MACs).
FLOPs in the sense of PyTorch's counter are twice that; `macs` here is always the counter's number halved. Only
convolutions and matrix products are counted (the counter's list); interpolation, normalisation and activations are 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mess.clock import milliseconds
from mess.model.adapter import check_example, evaluating, logits_from_output

CostKind = Literal["macs", "latency"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCost:
    """One call of one module, in order of completion.

    `name` is the module's name in the model; `call` counts the calls of a shared module from 0. `start` and `end` are
    the cumulative workload when the call begins and completes, in MACs or milliseconds of one image. `feature` is
    (channels, height, width) of a 4-D output, else None. `is_container` marks Sequential, ModuleList, ModuleDict;
    `is_stack` a module whose children are all leaves. `is_overwritten`: the output is modified in place further on.
    """

    name: str
    call: int
    kind: str
    is_container: bool
    is_stack: bool
    start: float
    end: float
    feature: tuple[int, int, int] | None
    is_overwritten: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadProfile:
    """Cumulative workload of a model along its layers, for one image of `input_size` (height, width)."""

    by: CostKind
    input_size: tuple[int, int]
    total: float
    layers: tuple[LayerCost, ...]

    @property
    def unit(self) -> str:
        """`MACs` or `ms`."""
        return "MACs" if self.by == "macs" else "ms"


def profile(model: nn.Module, example_input: Tensor, *, by: CostKind = "macs", rounds: int = 5) -> WorkloadProfile:
    """Workload of every module call of one forward pass.

    Args:
        model: any segmentation model that takes `example_input`; it is run in eval mode and left as it was.
        example_input: (B, channels, H, W) float; only its first image is used.
        by: `macs` counts multiply-accumulates without computing anything (fake tensors); `latency` measures
            milliseconds on the example's device, hooks included.
        rounds: forward passes whose median is taken, for `latency`.

    Returns:
        The profile; `layers` in order of completion.

    Raises:
        TypeError: the model's output holds no logits (B, C, H, W).
        ValueError: `example_input` is not (B, channels, H, W), or `by` or `rounds` is off.
    """
    images = check_example(example_input)[:1]
    if by not in ("macs", "latency"):
        raise ValueError(f"by: expected 'macs' or 'latency', got {by!r}")
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")
    with evaluating(model):
        layers, total = _counted(model, images) if by == "macs" else _timed(model, images, rounds)
    return WorkloadProfile(by=by, input_size=(images.shape[2], images.shape[3]), total=total, layers=tuple(layers))


def count_macs(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of one call of `module`, from shapes alone."""
    with (
        evaluating(module),
        FakeTensorMode(allow_non_fake_inputs=True) as fake,
        FlopCounterMode(display=False) as counter,
    ):
        module(*(fake.from_tensor(t.detach()) for t in inputs))
    return int(counter.get_total_flops() // 2)


def _counted(model: nn.Module, images: Tensor) -> tuple[list[LayerCost], float]:
    with FakeTensorMode(allow_non_fake_inputs=True) as fake, FlopCounterMode(display=False) as counter:
        layers = _walk(model, fake.from_tensor(images), lambda: counter.get_total_flops() // 2)
        return layers, float(counter.get_total_flops() // 2)


def _timed(model: nn.Module, images: Tensor, rounds: int) -> tuple[list[LayerCost], float]:
    def clock() -> float:
        return milliseconds(images.device)

    runs: list[list[LayerCost]] = []
    totals: list[float] = []
    for _ in range(rounds + 1):  # the first round warms up
        start = clock()
        runs.append(_walk(model, images, lambda: clock() - start))  # noqa: B023  (called before `start` changes)
        totals.append(clock() - start)
    layers = [
        replace(calls[0], start=median(c.start for c in calls), end=median(c.end for c in calls))
        for calls in zip(*runs[1:], strict=True)
    ]
    return layers, median(totals[1:])


def _walk(model: nn.Module, images: Tensor, workload: Callable[[], float]) -> list[LayerCost]:
    """Run the model once and note `workload()` whenever a module call completes."""
    layers: list[LayerCost] = []
    calls: Counter[str] = Counter()
    starts: list[float] = []  # a stack: module calls nest
    outputs: list[tuple[Any, int]] = []

    def begin(_: nn.Module, __: Any) -> None:
        starts.append(float(workload()))

    def end_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def end(module: nn.Module, _: Any, output: Any) -> None:
            is_feature = isinstance(output, Tensor) and output.ndim == 4
            layers.append(
                LayerCost(
                    name=name,
                    call=calls[name],
                    kind=type(module).__name__,
                    is_container=isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict),
                    is_stack=all(not list(child.children()) for child in module.children()),
                    start=starts.pop(),
                    end=float(workload()),
                    feature=(output.shape[1], output.shape[2], output.shape[3]) if is_feature else None,
                )
            )
            outputs.append((output, output._version if is_feature else 0))
            calls[name] += 1

        return end

    named = [(name, module) for name, module in model.named_modules() if name]
    handles = [module.register_forward_pre_hook(begin) for _, module in named]
    handles += [module.register_forward_hook(end_of(name)) for name, module in named]
    try:
        logits_from_output(model(images))
    finally:
        for handle in handles:
            handle.remove()
    return [
        replace(layer, is_overwritten=layer.feature is not None and output._version != version)
        for layer, (output, version) in zip(layers, outputs, strict=True)
    ]
