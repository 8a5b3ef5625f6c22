"""The multi-exit network: the user's model, exit points along it, candidate heads at every point.

`convert` assembles it: profile -> points -> heads. The user's model stays the object it was, under `net`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mess.model.adapter import LogitsModel, PickLogits, check_example, evaluating, logits_from_output, maps_like
from mess.model.capture import captured_features
from mess.model.cost import CostKind, WorkloadProfile, profile
from mess.model.exits import (
    AnyHead,
    CustomHead,
    ExitHead,
    GridName,
    HeadBuilder,
    HeadSpec,
    block_kind_of,
    head_from,
    head_grid,
)
from mess.model.points import ExitPoint, named_points
from mess.model.points import exit_points as equidistant_points
from mess.model.split import Backend, check_stages, split
from mess.model.stages import Stages


@dataclass(frozen=True, slots=True, order=True)
class ExitId:
    """An early exit: index of its exit point, and the head attached there."""

    point: int
    head: AnyHead

    @property
    def name(self) -> str:
        """For example `2:fcn-r4-b0`: point 2, head `fcn-r4-b0`."""
        return f"{self.point}:{self.head.name}"


class MultiExitNetwork(LogitsModel):
    """A user's segmentation model with candidate exit heads.

    Called like the model it wraps, it gives the final exit's logits, bit for bit those of the user's model. `features`
    and `exit_logits` give the early exits. `state_dict()` keeps the user's names under `net.`; heads are under
    `heads.`.

    Attributes:
        net: the user's model itself.
        points: exit points in order of execution.
        heads: `heads[str(point)][head name]`.
        num_classes: C of the logits.
        workload: the profile that placed the points.
        in_channels: channels of the images.
        stages: names of the stages that the user declared, if any.
    """

    def __init__(
        self,
        net: nn.Module,
        points: Sequence[ExitPoint],
        heads: Sequence[AnyHead],
        num_classes: int,
        workload: WorkloadProfile,
        in_channels: int = 3,
        pick_logits: PickLogits | None = None,
        stages: Sequence[str] = (),
    ) -> None:
        super().__init__(net, pick_logits)
        self.points = tuple(points)
        self.stages = tuple(stages)
        self.head_specs = tuple(heads)
        self.num_classes = num_classes
        self.workload = workload
        self.in_channels = in_channels
        self.block_kind = block_kind_of(net)
        self.heads = nn.ModuleDict(
            {
                str(i): nn.ModuleDict({spec.name: self._new_head(p, spec) for spec in heads})
                for i, p in enumerate(points)
            }
        )

    def example(self, size: tuple[int, int] | None = None) -> Tensor:
        """A batch (1, 3, H, W) of zeros, on the network's device and of its dtype; by default of the converted size."""
        parameter = next(self.parameters())
        shape = (1, self.in_channels, *(size or self.workload.input_size))
        return torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)

    @property
    def exits(self) -> tuple[ExitId, ...]:
        """Every candidate early exit, by point, then in the grid's order."""
        return tuple(ExitId(i, spec) for i in range(len(self.points)) for spec in self.head_specs)

    @property
    def plain_exits(self) -> tuple[ExitId, ...]:
        """The first head of every point: what stage 1 trains."""
        return tuple(ExitId(i, self.head_specs[0]) for i in range(len(self.points)))

    def head(self, exit_id: ExitId) -> nn.Module:
        """The head module of an exit."""
        return self._heads_at(exit_id.point)[exit_id.head.name]

    def features(self, images: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """One pass: final logits (B, C, h, w), and the feature (B, channels, h_i, w_i) at every exit point."""
        with captured_features(self.net, self.points) as found:
            logits = self(images)
        return logits, found

    def exit_logits(self, features: Mapping[int, Tensor], exits: Iterable[ExitId]) -> dict[ExitId, Tensor]:
        """Logits (B, C, h_i, w_i) of `exits`, at the resolution of their features."""
        return {exit_id: self.head(exit_id)(features[exit_id.point]) for exit_id in exits}

    def split(
        self,
        example_input: Tensor | None = None,
        *,
        points: Sequence[ExitPoint] | None = None,
        backend: Backend = "auto",
        any_size: bool = False,
    ) -> Stages:
        """The model in stages that can stop at `points` (all of them), for the size of `example_input`, or any.

        Raises:
            RuntimeError: it cannot be cut; see `mess.model.split.split`.
        """
        example = self.example() if example_input is None else example_input
        chosen = self.points if points is None else points
        model = LogitsModel(self.net, self.pick_logits)
        return split(model, chosen, example, stages=self.stages, backend=backend, any_size=any_size)

    def _heads_at(self, point: int) -> nn.ModuleDict:
        at = self.heads[str(point)]
        assert isinstance(at, nn.ModuleDict)
        return at

    def _new_head(self, point: ExitPoint, spec: AnyHead) -> nn.Module:
        if not isinstance(spec, HeadSpec):
            head = spec.build(point.channels, self.num_classes)
            if not isinstance(head, nn.Module):
                raise TypeError(f"heads: expected {spec.name} to build an nn.Module, got {type(head).__name__}")
            return head
        return ExitHead(spec, channels=point.channels, num_classes=self.num_classes, block_kind=self.block_kind)


def convert(
    model: nn.Module,
    example_input: Tensor,
    *,
    num_exits: int = 6,
    exit_points: Sequence[str] | None = None,
    heads: Sequence[AnyHead | str | HeadBuilder] | GridName = "full",
    cost: CostKind = "macs",
    pick_logits: PickLogits | None = None,
    stages: Sequence[str] = (),
    seed: int = 0,
) -> MultiExitNetwork:
    """Turn a segmentation model into a multi-exit network; no line of the model changes, no parameter is copied.

    Args:
        model: takes (B, channels, H, W) and returns logits (B, C, h, w), alone or in a dict, object or tuple.
        example_input: a batch of the size the network will see; only shapes matter.
        num_exits: exits wanted, the final one included.
        exit_points: names of modules to exit behind, instead of points chosen by workload; `name#1` is the second call.
        heads: candidate heads of every point, of which stage 1 of `mess.train` trains the first: a named grid, or any
            sequence of `HeadSpec`, their names, and functions `build(channels, num_classes)` that return a module from
            features (B, channels, h, w) to logits.
        cost: what "equidistant" is measured in, `macs` or `latency`.
        pick_logits: finds the logits in what the model returns, where `mess` does not know it.
        stages: names of modules that, run one after the other (a tuple as the next one's arguments), are the model;
            exits are then at their ends, and a deployed network runs them instead of a graph.
        seed: initialises the heads; the model's own weights are not touched.

    Returns:
        The network. A warning says so when the model offers fewer points than asked.

    Raises:
        TypeError: the model's output holds no logits (B, C, H, W), the model is compiled already, or a head is none.
        ValueError: an argument is off, or the model has no block to exit from.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    compiled = [name for name, part in model.named_modules() if vars(part).get("_compiled_call_impl") is not None]
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod") or compiled:
        got = f"a compiled {compiled[0] or type(model).__name__!r}" if compiled else type(model).__name__
        raise TypeError(
            f"model: expected the model as Python runs it, got {got}; convert it before torch.compile or "
            "torch.jit.script, whose code no hook sees"
        )
    images = check_example(example_input)[:1].clone()  # a model may overwrite what it gets
    given = head_grid(cast("GridName", heads)) if isinstance(heads, str) else heads
    specs = tuple(head_from(spec) for spec in given)
    if not specs or len({spec.name for spec in specs}) != len(specs):
        raise ValueError(f"heads: expected at least one HeadSpec and no duplicates, got {[s.name for s in specs]}")
    taken = [spec.name for spec in specs if hasattr(nn.ModuleDict(), spec.name)]
    if taken:
        raise ValueError(f"heads: expected names that are none of a module's attributes, got {taken[0]!r}")
    adapted = LogitsModel(model, pick_logits)
    check_stages(adapted, stages)
    try:
        with evaluating(model):
            output = model(images.clone())
            logits = logits_from_output(output, pick_logits)
    except TypeError:  # no logits, which is said already, or a mistake in the model that says what it is
        raise
    except Exception as error:  # whatever the user's code raises
        raise ValueError(
            f"example_input: the model does not run on {tuple(images.shape)} (--size; many models want height and "
            f"width to be multiples of 8, 16 or 32): {type(error).__name__}: {error}"
        ) from error
    num_classes = logits.shape[1]
    alike = 0 if pick_logits is not None else len(maps_like(output, logits))
    if alike > 1:
        warnings.warn(
            f"model: returns {alike} maps of {num_classes} channels, of which the first is taken for its logits; "
            "pick_logits= takes another",
            stacklevel=2,
        )
    if num_classes < 2:
        raise ValueError(
            f"model: expected logits of at least 2 classes, got {num_classes}: confidence is a softmax; give a model "
            "with one sigmoid output two (0 and the logit)"
        )
    workload = profile(model, images, cost=cost)
    if exit_points is not None:
        points = named_points(workload, exit_points)
    else:
        points = equidistant_points(workload, num_exits=num_exits, among=stages or None)
        if len(points) < num_exits - 1:
            warnings.warn(
                f"num_exits: asked {num_exits}, got {len(points) + 1}: the blocks of this model end too far apart for "
                f"more ({', '.join(f'{p.name} at {p.share:.0%}' for p in points)}); exit_points= names others",
                stacklevel=2,
            )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed those of the GPUs too
        network = MultiExitNetwork(model, points, specs, num_classes, workload, images.shape[1], pick_logits, stages)
    network.heads.to(device=images.device, dtype=images.dtype)  # the model is left as it is
    if any(isinstance(spec, CustomHead) for spec in specs):
        _check_custom_heads(network, images)
    return network


def _check_custom_heads(network: MultiExitNetwork, images: Tensor) -> None:
    """ValueError when a head of the user's does not give logits of the network's classes, or overwrites its feature."""
    own = {id(parameter) for parameter in network.net.parameters()}
    with torch.inference_mode(False), evaluating(network):  # inference tensors do not tell when they are overwritten
        _, features = network.features(images.clone())
        for exit_id in network.exits:
            if isinstance(exit_id.head, CustomHead):
                feature = features[exit_id.point]
                version = feature._version
                if any(id(parameter) in own for parameter in network.head(exit_id).parameters()):
                    raise ValueError(
                        f"heads: expected {exit_id.head.name!r} to have parameters of its own, got some of the model, "
                        "which would be trained with it (copy.deepcopy makes others)"
                    )
                logits = network.head(exit_id)(feature)
                if feature._version != version or _overwrites_in_training(network.head(exit_id), feature):
                    raise ValueError(
                        f"heads: expected {exit_id.head.name!r} to leave its feature as it is, which other heads and "
                        "the rest of the model go on with, got one that overwrites it (inplace=True in front, of a "
                        "dropout too?)"
                    )
                if logits.ndim != 4 or logits.shape[1] != network.num_classes:
                    raise ValueError(
                        f"heads: expected logits (B, {network.num_classes}, h, w) of {exit_id.head.name!r}, got "
                        f"{tuple(logits.shape)} for a feature of {tuple(feature.shape)}"
                    )


def _overwrites_in_training(head: nn.Module, feature: Tensor) -> bool:
    """Whether a head overwrites a feature in train mode, when a dropout does something; told by a copy of the head."""
    feature = feature.repeat(2, 1, 1, 1)  # of one value a channel there is no batch norm
    version = feature._version
    devices = [feature.device] if feature.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        copy.deepcopy(head).train()(feature)
    return feature._version != version


def upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear to `size` (height, width), align_corners=False; itself when it has that size already."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
