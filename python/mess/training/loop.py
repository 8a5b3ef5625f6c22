"""The two stages, one flat loop.

Stage 1 (`pretrain`) trains backbone and final exit together with one early exit at a time; stage 2 (`train_exits`)
freezes both and trains every candidate head from the same features. `train` runs the two, resuming where a killed run
stopped: a run that was interrupted and continued gives the same weights as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from mess.data.dataset import IGNORE_INDEX, check_labels
from mess.model.adapter import evaluating
from mess.model.network import MultiExitNetwork, upsampled
from mess.progress import console, progress
from mess.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from mess.training.losses import ExitLoss, LossKind
from mess.training.schedule import SCHEDULES, Schedule, active_exits

Batches = Iterable[tuple[Tensor, Tensor]]
"""Batches of (images (B, 3, H, W) float, labels (B, H, W) int64); has `__len__`, may have `set_epoch(int)`."""

PRETRAIN_FILE = "pretrain.safetensors"
EXITS_FILE = "exits.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """How one stage is trained.

    epochs: passes over the data.
    learning_rate: peak rate of AdamW; decays to 0 as (1 - step / steps)^0.9.
    weight_decay: AdamW's.
    schedule: stage 1 only, see `mess.training.schedule`.
    loss, alpha, temperature: stage 2 only, see `mess.training.losses`.
    loss_stride: logits and labels are compared on a grid this many pixels apart; 1 is every pixel.
    precision: `float32`, or `bfloat16` by autocast for the backbone and the heads of stage 1 (losses, and the heads of
        stage 2, stay float32).
    seed: of everything random in the stage.
    """

    epochs: int = 30
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    schedule: Schedule = "round_robin"
    loss: LossKind = "pfd"
    alpha: float = 0.5
    temperature: float = 1.0
    loss_stride: int = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"epochs: expected at least 0, got {self.epochs}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: expected > 0, got {self.learning_rate}")
        if self.loss_stride < 1:
            raise ValueError(f"loss_stride: expected at least 1, got {self.loss_stride}")
        for name, value, known in (
            ("schedule", self.schedule, SCHEDULES),
            ("loss", self.loss, ("pfd", "kd", "ce")),
            ("precision", self.precision, ("float32", "bfloat16")),
        ):
            if value not in known:
                raise ValueError(f"{name}: expected one of {known}, got {value!r}")


def train(
    network: MultiExitNetwork,
    batches: Batches,
    *,
    pretraining: TrainSettings | None = None,
    exits: TrainSettings | None = None,
    out: str | Path | None = None,
) -> None:
    """Both stages in turn, in place; with `out`, checkpoints go there and a second call continues from them.

    Args:
        network: from `mess.convert`.
        batches: training batches; anything iterable with a length.
        pretraining: settings of stage 1 (None: defaults).
        exits: settings of stage 2 (None: defaults with a third of the epochs).
        out: folder for `pretrain.safetensors` and `exits.safetensors`.

    Raises:
        ValueError: a checkpoint in `out` is damaged, or belongs to another network or other settings.
        KeyboardInterrupt: Ctrl-C; the last finished epoch is on disk.
    """
    first = pretraining or TrainSettings()
    second = exits or replace(first, epochs=max(1, first.epochs // 3))
    folder = Path(out) if out is not None else None
    pretrain(network, batches, settings=first, checkpoint=folder / PRETRAIN_FILE if folder else None)
    train_exits(network, batches, settings=second, checkpoint=folder / EXITS_FILE if folder else None)


def pretrain(
    network: MultiExitNetwork, batches: Batches, *, settings: TrainSettings, checkpoint: Path | None = None
) -> tuple[float, ...]:
    """Stage 1: every batch trains the final exit and the early exits that the schedule names.

    An early exit here is its point's first head. Heads that a batch leaves out are not run, so their batch-norm
    statistics do not move.

    Returns:
        Mean loss of every epoch.
    """
    network.train()
    plain = network.plain_exits
    heads = [network.head(exit_id) for exit_id in plain]
    parameters = [*network.net.parameters(), *(p for head in heads for p in head.parameters())]

    def step(images: Tensor, labels: Tensor, batch: int) -> Tensor:
        active = [plain[i] for i in active_exits(settings.schedule, batch, len(plain))]
        with _autocast(images, settings):
            final, features = network.features(images)
            early = network.exit_logits(features, active)
        size = _loss_size(labels, settings)
        loss = ExitLoss("ce", upsampled(final, size), coarse_labels(labels, size))
        losses = [loss(upsampled(logits.float(), size)) for logits in (final, *early.values())]
        total = torch.stack(losses).sum()
        torch.autograd.backward(total)
        return total.detach()

    return _run("pretrain", network, parameters, batches, settings, step, checkpoint)


def train_exits(
    network: MultiExitNetwork, batches: Batches, *, settings: TrainSettings, checkpoint: Path | None = None
) -> tuple[float, ...]:
    """Stage 2: backbone and final exit frozen, in eval mode; all heads learn from one pass over the backbone.

    Returns:
        Mean loss of every epoch, averaged over the heads.
    """
    network.eval()
    network.heads.train()
    exits = network.exits
    parameters = list(network.heads.parameters())
    dtype = parameters[0].dtype

    def step(images: Tensor, labels: Tensor, batch: int) -> Tensor:
        with evaluating(network.net), _autocast(images, settings):
            final, features = network.features(images)
        size = _loss_size(labels, settings)
        loss = ExitLoss(
            settings.loss,
            upsampled(final.to(dtype), size),
            coarse_labels(labels, size),
            alpha=settings.alpha,
            temperature=settings.temperature,
        )
        total = torch.zeros((), device=images.device)
        for exit_id in exits:
            # the heads' own dtype whatever the backbone runs in: with bfloat16 the weight gradient of a dilated
            # convolution of 40 channels (DeepLabV3 head) came back NaN from oneDNN (torch 2.15, CPU)
            logits = network.head(exit_id)(features[exit_id.point].to(dtype))
            of_head = loss(upsampled(logits, size))
            torch.autograd.backward(of_head)  # one head's graph at a time: memory does not grow with their number
            total += of_head.detach()
        return total / len(exits)

    return _run("exits", network, parameters, batches, settings, step, checkpoint)


def _run(
    stage: str,
    network: MultiExitNetwork,
    parameters: Sequence[nn.Parameter],
    batches: Batches,
    settings: TrainSettings,
    step: Callable[[Tensor, Tensor, int], Tensor],
    checkpoint: Path | None,
) -> tuple[float, ...]:
    """Epochs of `step`; everything random depends on (seed, stage, epoch), so there is no random state to store."""
    per_epoch = len(batches)  # type: ignore[arg-type]
    if per_epoch == 0:
        raise ValueError("batches: expected at least one batch, got none")
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    done = _resume(stage, network, optimizer, settings, checkpoint)
    losses = list(done.losses)
    device = next(network.parameters()).device
    try:
        for epoch in range(done.epoch, settings.epochs):
            if hasattr(batches, "set_epoch"):
                batches.set_epoch(epoch)
            # for dropout; tuples of integers hash alike in every process
            torch.manual_seed(hash((settings.seed, len(stage), epoch)) & 0x7FFFFFFF)
            mean, start = 0.0, time.perf_counter()
            with progress(f"{stage} epoch {epoch + 1}/{settings.epochs}", per_epoch) as advance:
                for index, (images, labels) in enumerate(batches):
                    batch = epoch * per_epoch + index
                    for group in optimizer.param_groups:
                        group["lr"] = (
                            settings.learning_rate * max(0.0, 1 - batch / (settings.epochs * per_epoch)) ** 0.9
                        )
                    check_labels(labels[labels != IGNORE_INDEX], network.num_classes)
                    images = images.to(device).contiguous(memory_format=torch.channels_last)
                    loss = float(step(images, labels.to(device), batch + 1))
                    if not math.isfinite(loss):
                        raise RuntimeError(
                            f"{stage}: the loss is {loss} at batch {index + 1} of epoch {epoch + 1}; "
                            "lower learning_rate or use precision='float32'"
                        )
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    mean += loss / per_epoch
                    advance(f"loss {loss:.3f}")
            losses.append(mean)
            seconds = time.perf_counter() - start
            console.print(
                f"{stage} epoch {epoch + 1}/{settings.epochs}  loss {mean:.4f}  {seconds:.0f} s", highlight=False
            )
            if checkpoint is not None:
                save_checkpoint(checkpoint, network, optimizer, _progress(stage, epoch + 1, settings, losses))
    except KeyboardInterrupt:
        kept = f"; {len(losses)} epochs are in {checkpoint}, the same call goes on from there" if checkpoint else ""
        console.print(f"{stage}: interrupted{kept}", highlight=False)
        raise
    network.eval()
    return tuple(losses)


def _resume(
    stage: str,
    network: MultiExitNetwork,
    optimizer: torch.optim.Optimizer,
    settings: TrainSettings,
    checkpoint: Path | None,
) -> Progress:
    fresh = _progress(stage, 0, settings, [])
    if checkpoint is None:
        return fresh
    if not checkpoint.is_file():
        save_checkpoint(checkpoint, network, optimizer, fresh)  # so that an early Ctrl-C leaves something to continue
        return fresh
    done = load_checkpoint(checkpoint, network, optimizer, expected=fresh)
    console.print(f"{stage}: {done.epoch} of {settings.epochs} epochs are done already", highlight=False)
    return done


def _progress(stage: str, epoch: int, settings: TrainSettings, losses: Sequence[float]) -> Progress:
    return Progress(stage=stage, epoch=epoch, settings=asdict(settings), losses=tuple(losses))


def _autocast(images: Tensor, settings: TrainSettings) -> torch.autocast:
    return torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=settings.precision == "bfloat16")


def _loss_size(labels: Tensor, settings: TrainSettings) -> tuple[int, int]:
    return -(-labels.shape[1] // settings.loss_stride), -(-labels.shape[2] // settings.loss_stride)


def coarse_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (B, H, W) at the grid of `size`: the pixel at the middle of each cell, as bilinear resampling has it."""
    if tuple(labels.shape[1:]) == size:
        return labels
    rows, columns = (
        ((2 * torch.arange(count, device=labels.device) + 1) * length) // (2 * count)
        for count, length in zip(size, labels.shape[1:], strict=True)
    )
    return labels[:, rows][:, :, columns]
