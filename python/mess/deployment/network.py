"""A network that really stops: the stages and heads of one configuration, and nothing behind its last exit.

One image on its way: stage -> head -> image confidence (`mess.confidence` -> `mess_core`) -> stop, or the next stage
with the images of the batch that go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from mess.confidence import Size, image_confidence, label_map
from mess.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from mess.deployment.configuration import ChosenExit, Configuration
from mess.exit_names import FINAL_EXIT
from mess.model.adapter import evaluating
from mess.model.capture import captured_features
from mess.model.frozen import FrozenHead, frozen_head
from mess.model.graph import check_conversion
from mess.model.network import ExitId, MultiExitNetwork, upsampled
from mess.model.split import Backend
from mess.model.stages import Stages
from mess.runtime.manifest import check_normalisation


@dataclass(frozen=True, slots=True)
class Prediction:
    """Result for a batch of B images. Full-size logits and label maps are made when they are asked for.

    Attributes:
        parts: in the order of leaving, which images left, and their exit's own logits (b, C, h, w).
        size: (height, width) of the input.
        exits: (B,) int64, position in the configuration's exits at which each image stopped.
        image_confidence: (B, G) float64 on the host, one column a gate; NaN where an image had left before.
    """

    parts: tuple[tuple[np.ndarray, Tensor], ...]
    size: Size
    exits: Tensor
    image_confidence: Tensor

    @property
    def logits(self) -> Tensor:
        """(B, C, H, W), upsampled bilinearly to the input's size; no copy where that is their size already."""
        whole = [upsampled(logits, self.size) for _, logits in self.parts]
        return whole[0] if len(whole) == 1 else torch.cat(whole)[self._order(whole[0].device)]

    @property
    def labels(self) -> Tensor:
        """Label map (B, H, W) int64, on the device of the logits; the same that calibration counts."""
        maps = [label_map(image, size=self.size) for _, logits in self.parts for image in logits.cpu()]
        device = self.parts[0][1].device
        return torch.from_numpy(np.stack(maps).astype(np.int64)).to(device)[self._order(device)]

    def _order(self, device: torch.device) -> Tensor:
        """Where each image of the batch is in the parts."""
        return torch.from_numpy(np.argsort(np.concatenate([images for images, _ in self.parts]))).to(device)


class _Recorded(nn.Module):
    """Stages and heads, moved or converted whole or not at all."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        check_conversion(self, fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


class StaticNetwork(_Recorded):
    """Images -> logits of one exit; holds only the layers up to there, unless its stages are eager."""

    def __init__(self, stages: Stages, head: nn.Module) -> None:
        super().__init__()
        self.stages = stages
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, C, H, W)."""
        state = self.stages.start(images)
        output = images
        for index in range(self.stages.num_stages):
            output, state = self.stages.run_stage(index, state)
        return upsampled(self.head(output), _size(images))


class DeployedNetwork(_Recorded):
    """The chosen exits of a multi-exit network, sharing its weights; inference only, always in eval mode.

    Where its stages are graphs (`stages.backend`) either may be moved or converted (`.cuda()`, `.half()`) and the other
    stays as it is, with weights of its own from then on; with other back ends the user's model is what runs, and moves
    along.

    Args:
        network: trained.
        configuration: from `mess.search`.
        example_input: (B, 3, H, W) of the size that images will have.
        any_size: take images of any size, or of any multiple of `stages.size_step`; a batch is of one size.
            What the search found and promised holds for the size that was calibrated.
        backend: how the model is cut (`mess.model.split`); by default the best that reproduces it bit for bit, which
            `stages.backend` then names.
        mean, std: a number a channel that pixels, as values in 0..1, are normalised with; for `mess.run`, `mess.export`
            and whoever asks the network. It takes normalised images itself.

    Attributes:
        class_names: of the C classes, where they are known (`mess.from_pretrained`); else empty.

    Raises:
        ValueError: the configuration does not fit the network, or `mean` and `std` are not a number a channel.
        RuntimeError: the model cannot be cut into stages, or with `any_size` not into graphs that take other sizes.
    """

    def __init__(
        self,
        network: MultiExitNetwork,
        configuration: Configuration,
        example_input: Tensor,
        *,
        any_size: bool = False,
        backend: Backend = "auto",
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        if (tuple(mean), tuple(std)) != (tuple(IMAGENET_MEAN), tuple(IMAGENET_STD)):  # which nobody may have asked for
            check_normalisation(mean, std, network.in_channels)
        self.mean, self.std = tuple(mean), tuple(std)
        self.in_channels = network.in_channels
        modules = tuple(point.name for point in network.points)
        if configuration.model != modules:
            raise ValueError(f"configuration: expected exit points {modules}, got {configuration.model}")
        self.configuration = configuration
        self.class_names: tuple[str, ...] = ()
        chosen = configuration.exits
        early = [_early_exit(network, entry) for entry in chosen if entry.exit != FINAL_EXIT]
        points = [network.points[exit_id.point] for exit_id in early]
        stages = network.split(example_input, points=points, backend=backend, any_size=any_size)
        self.stages = stages.up_to(len(chosen))
        with evaluating(network.net), captured_features(network.net, points) as features:
            network.net(example_input[:1].clone())  # a model may overwrite what it gets
        heads: list[nn.Module] = [
            frozen_head(network.head(exit_id), features[i], size_step=1 if any_size else None)
            for i, exit_id in enumerate(early)
        ]
        self.heads = nn.ModuleList(heads if len(heads) == len(chosen) else [*heads, nn.Identity()])
        self.strides = [point.output_stride for point in points]
        self.eval()

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Prediction:
        """Run in the configuration's own setting; anytime runs to the end."""
        if self.configuration.setting == "input-dependent":
            return self.input_dependent(images)
        return list(self.anytime(images))[-1]

    @torch.inference_mode()
    def input_dependent(self, images: Tensor) -> Prediction:
        """Each image (B, 3, H, W) stops at the first exit that is confident enough; the rest of the batch goes on.

        Raises:
            ValueError: an empty batch, or another size than the network was deployed for.
        """
        if self.configuration.setting != "input-dependent":
            raise ValueError(
                f"setting: expected a configuration for 'input-dependent', got {self.configuration.setting!r}"
            )
        _check_batch(images)
        if not self.stages.can_drop and images.shape[0] > 1:
            return _joined([self.input_dependent(image[None]) for image in images])
        chosen = self.configuration.exits
        batch = images.shape[0]
        state = self.stages.start(images)
        remaining = np.arange(batch)
        exits = np.zeros(batch, dtype=np.int64)
        confidences = np.full((batch, len(chosen) - 1), np.nan)
        left: list[tuple[np.ndarray, Tensor]] = []  # (which images, their logits), in order of leaving
        for position, entry in enumerate(chosen):
            output, state = self.stages.run_stage(position, state)
            logits = self.heads[position](output)
            leaves = np.ones(len(remaining), dtype=bool)
            if entry.pixel_threshold is not None and entry.image_threshold is not None:
                values = image_confidence(
                    logits,
                    size=_size(images),
                    pixel_threshold=entry.pixel_threshold,
                    output_stride=self.strides[position],
                    policy=self.configuration.policy,
                )
                confidences[remaining, position] = values
                leaves = values >= entry.image_threshold
            exits[remaining[leaves]] = position
            if leaves.all():
                left.append((remaining, logits))
                break
            if leaves.any():
                leaving, staying = _divided(leaves, logits.device)
                left.append((remaining[leaves], logits[leaving]))
                state = self.stages.keep(position, state, staying)
                remaining = remaining[~leaves]
        return Prediction(tuple(left), _size(images), torch.from_numpy(exits), torch.from_numpy(confidences))

    def anytime(self, images: Tensor) -> Iterator[Prediction]:
        """Progressively better predictions for a batch (B, 3, H, W), one an exit; stop iterating to stop computing."""
        _check_batch(images)
        batch = images.shape[0]
        state = self.stages.start(images)
        nothing = torch.full((batch, 0), torch.nan, dtype=torch.float64)
        for position in range(len(self.configuration.exits)):
            with torch.inference_mode():
                output, state = self.stages.run_stage(position, state)
                logits = self.heads[position](output)
            taken = torch.full((batch,), position, dtype=torch.int64)
            yield Prediction(((np.arange(batch), logits),), _size(images), taken, nothing)

    def budgeted(self, position: int) -> StaticNetwork:
        """The static network that ends at one of the configuration's exits, counted from 0 (negative: from the end)."""
        count = len(self.configuration.exits)
        if not isinstance(position, int):
            raise TypeError(f"position: expected an integer, got {type(position).__name__}")
        if not -count <= position < count:
            raise ValueError(f"position: expected {-count}..{count - 1}, got {position}")
        last = position % count
        head = self.heads[last]
        if isinstance(head, FrozenHead):
            head = FrozenHead(head.graph.up_to(1))  # of its own, as the stages are: either may be moved
        return StaticNetwork(self.stages.up_to(last + 1), head).eval()


def deploy(
    network: MultiExitNetwork,
    configuration: Configuration,
    example_input: Tensor | None = None,
    *,
    any_size: bool = False,
    backend: Backend = "auto",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> DeployedNetwork:
    """The network that runs `configuration`. While this and `mess.export` work, no other thread can record a model or
    run this one: torch does so in one thread of a process.

    Args:
        example_input: (B, channels, H, W) of the size that images will have; by default that of `mess.convert`.
        network, configuration, any_size, backend, mean, std: see `DeployedNetwork`.

    Raises:
        ValueError, RuntimeError: see `DeployedNetwork`.
    """
    if example_input is None:
        example_input = network.example()
    return DeployedNetwork(
        network, configuration, example_input, any_size=any_size, backend=backend, mean=mean, std=std
    )


def _joined(predictions: list[Prediction]) -> Prediction:
    """One for each image -> one for the batch."""
    return Prediction(
        tuple((np.array([i]), logits) for i, p in enumerate(predictions) for _, logits in p.parts),
        predictions[0].size,
        torch.cat([p.exits for p in predictions]),
        torch.cat([p.image_confidence for p in predictions]),
    )


def _size(images: Tensor) -> Size:
    return images.shape[-2], images.shape[-1]


def _divided(leaves: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of the images that leave and of those that do not, brought to `device` in one copy that nothing waits
    for: the answer of an exit is all that the host waits for there."""
    order = torch.from_numpy(np.argsort(~leaves, kind="stable"))
    may_go_on = device.type == "cuda"  # which has taken `order` when it says so; elsewhere it may be gone by then
    on_device = order.to(device, non_blocking=may_go_on)
    count = int(np.count_nonzero(leaves))
    return on_device[:count], on_device[count:]


def _early_exit(network: MultiExitNetwork, entry: ChosenExit) -> ExitId:
    known = {exit_id.name: exit_id for exit_id in network.exits}
    if entry.exit not in known:
        raise ValueError(
            f"configuration: expected one of the network's exits {sorted(known)[:4]}..., got {entry.exit!r}"
        )
    return known[entry.exit]


def _check_batch(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images: expected a tensor (B, channels, H, W), got {type(images).__name__}")
    if images.ndim != 4 or images.shape[0] == 0 or not images.is_floating_point():
        raise ValueError(
            f"images: expected a non-empty float batch (B, channels, H, W), got {tuple(images.shape)}, {images.dtype}"
        )
