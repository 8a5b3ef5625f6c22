"""The two stages, one flat loop.

Stage 1 (`pretrain`) trains backbone and final exit together with one early exit at a time; stage 2 (`train_exits`)
freezes both and trains every candidate head from the same features. `train` runs the two, resuming where a killed run
stopped: a run that was interrupted and continued gives the same weights as one that was not, to the bit on the CPU
(some gradients of GPUs are sums in no order).

Started by `torchrun`, every process trains on its part of each batch and all end with the same weights, those that one
process gives with the batches put together (`launch`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mess.data.dataset import IGNORE_INDEX, check_labels
from mess.data.loader import batches_from, identity_of, mixed_seed
from mess.exit_names import FINAL_EXIT
from mess.files import EXITS_FILE
from mess.model.adapter import check_training_output, evaluating
from mess.model.network import ExitId, MultiExitNetwork, upsampled
from mess.model.weights import state_sha256
from mess.progress import progress, say
from mess.training.cache import FeatureCache, Frozen
from mess.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from mess.training.launch import average_gradients, batch_norm_synchronised, launcher
from mess.training.losses import ExitLoss
from mess.training.schedule import active_exits
from mess.training.settings import TrainSettings

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer

Batches = Iterable[tuple[Tensor, Tensor]]
"""Batches of (images (B, 3, H, W) float, labels (B, H, W) int64); has `__len__`, may have `set_epoch(int)`."""

Log = Callable[[int, dict[str, float]], object]
"""Called as `log(step, values)` after every step, with values by name, such as `pretrain/loss/final`."""

PRETRAIN_FILE = "pretrain.safetensors"


def train(
    network: MultiExitNetwork,
    batches: Batches,
    *,
    pretraining: TrainSettings | None = None,
    exits: TrainSettings | None = None,
    out: str | Path | None = None,
    checkpoint_minutes: float = 10.0,
    cache_views: int = 0,
    log: Log | None = None,
) -> None:
    """Both stages in turn, in place; with `out`, checkpoints go there and a second call continues from them.

    Args:
        network: from `mess.convert`.
        batches: training batches; anything iterable with a length. With several processes (`torchrun`), a
            `mess.data.SeededLoader` or a `torch.utils.data.DataLoader`, which are divided among them.
        pretraining: settings of stage 1 (None: defaults).
        exits: settings of stage 2 (None: those of stage 1 with a third of the epochs).
        out: folder for `pretrain.safetensors` and `exits.safetensors`.
        checkpoint_minutes: a checkpoint is written after every epoch, and inside one when the last is this old.
        cache_views: stage 2 keeps the backbone's features of this many epochs in `out/features` and goes through them
            in turn, see `mess.training.cache`; 0 runs the backbone every time.
        log: called after every step, such as `mess.training.board.tensorboard(folder)`.

    Raises:
        TypeError: the model returns other maps first in training than in evaluation.
        ValueError: a checkpoint in `out` is damaged, or belongs to other exits, data (as far as it can tell: of a
            `DataLoader` by its numbers), settings or (of stage 2) another backbone.
        KeyboardInterrupt: Ctrl-C; the last checkpoint is on disk.
    """
    first = pretraining or TrainSettings()
    second = exits or replace(first, epochs=max(1, first.epochs // 3))
    folder = Path(out) if out is not None else None
    if cache_views < 0:
        raise ValueError(f"cache_views: expected 0 (none) or more, got {cache_views}")
    if cache_views and folder is None:
        raise ValueError("out: expected a folder for the features of cache_views, got None")
    pretrain(
        network,
        batches,
        settings=first,
        checkpoint=folder / PRETRAIN_FILE if folder else None,
        checkpoint_minutes=checkpoint_minutes,
        log=log,
    )
    train_exits(
        network,
        batches,
        settings=second,
        checkpoint=folder / EXITS_FILE if folder else None,
        checkpoint_minutes=checkpoint_minutes,
        cache=folder / "features" if folder and cache_views else None,
        cache_views=cache_views,
        log=log,
    )


def pretrain(
    network: MultiExitNetwork,
    batches: Batches,
    *,
    settings: TrainSettings,
    checkpoint: Path | None = None,
    checkpoint_minutes: float = 10.0,
    log: Log | None = None,
) -> tuple[dict[str, float], ...]:
    """Stage 1: every batch trains the final exit and the early exits that the schedule names.

    An early exit here is its point's first head. Heads that a batch leaves out are not run, so their batch-norm
    statistics do not move.

    Args:
        network, batches, checkpoint_minutes, log: see `mess.train`.
        checkpoint: file that is written and gone on from; None for none.

    Returns:
        Mean loss of every epoch, by exit.

    Raises:
        ValueError, KeyboardInterrupt: see `mess.train`.
    """
    fabric = launcher(network, settings.precision)
    check_training_output(network, network.example())
    network.train()
    plain = network.plain_exits
    whole = fabric.setup_module(_WithExits(network, plain))
    parameters = list(whole.parameters())
    dtype = parameters[0].dtype

    def step(images: Tensor, target: Tensor, number: int) -> Iterator[dict[str, Tensor]]:
        active = active_exits(settings.schedule, number, len(plain))
        size = (target.shape[1], target.shape[2])
        every = [upsampled(logits.to(dtype), size) for logits in whole(images, active)]
        loss = ExitLoss("ce", every[0], target)
        names = [FINAL_EXIT, *(plain[i].name for i in active)]
        yield {name: loss(logits) for name, logits in zip(names, every, strict=True)}

    stage = _Stage(
        "pretrain",
        fabric,
        network,
        parameters,
        settings,
        checkpoint=checkpoint,
        checkpoint_minutes=checkpoint_minutes,
        log=log,
        data_parallel=whole,
    )
    return stage.run(_shared(batches, fabric), step)


class _WithExits(nn.Module):
    """Stage 1 as one forward pass, which is what data parallelism wraps: the final logits, then those of `active`.

    Its modules are those that stage 1 trains: candidate heads beside the plain ones are not sent around. `active` are
    numbers in `plain`: in mixed precision Fabric looks for tensors in all arguments, and refuses an `ExitId`.
    """

    def __init__(self, network: MultiExitNetwork, plain: Sequence[ExitId]) -> None:
        super().__init__()
        self.net = network.net
        self.heads = nn.ModuleList(network.head(exit_id) for exit_id in plain)
        self._plain = plain
        self._whole = [network]  # in a list, so that it is no module of this one

    def forward(self, images: Tensor, active: Sequence[int]) -> list[Tensor]:
        final, features = self._whole[0].features(images)
        return [final, *self._whole[0].exit_logits(features, [self._plain[i] for i in active]).values()]


def train_exits(
    network: MultiExitNetwork,
    batches: Batches,
    *,
    settings: TrainSettings,
    checkpoint: Path | None = None,
    checkpoint_minutes: float = 10.0,
    cache: Path | None = None,
    cache_views: int = 1,
    log: Log | None = None,
) -> tuple[dict[str, float], ...]:
    """Stage 2: backbone and final exit frozen, in eval mode; all heads learn from one pass over the backbone.

    Args:
        network, batches, checkpoint_minutes, log: see `mess.train`.
        checkpoint: file that is written and gone on from; None for none.
        cache: folder for what the backbone says of `cache_views` epochs, see `mess.training.cache`.

    Returns:
        Mean loss of every epoch, by exit.

    Raises:
        ValueError, KeyboardInterrupt: see `mess.train`.
    """
    fabric = launcher(network, settings.precision)
    network.eval()
    network.heads.train()
    parameters = list(network.heads.parameters())
    dtype = parameters[0].dtype

    def frozen(images: Tensor) -> Frozen:
        with evaluating(network.net), fabric.autocast():
            return Frozen(*network.features(stage.prepared(images)))

    def step(images: Tensor | Frozen, target: Tensor, number: int) -> Iterator[dict[str, Tensor]]:
        known = images if isinstance(images, Frozen) else frozen(images)
        size = (target.shape[1], target.shape[2])
        final = upsampled(known.final.to(dtype), size)
        loss = ExitLoss(settings.loss, final, target, alpha=settings.alpha, temperature=settings.temperature)
        for exit_id in network.exits:
            # the heads' own dtype whatever the backbone runs in: with bfloat16 the weight gradient of a dilated
            # convolution of 40 channels (DeepLabV3 head) came back NaN from oneDNN (torch 2.15, CPU)
            logits = network.head(exit_id)(known.features[exit_id.point].to(dtype))
            # one head's graph at a time: memory does not grow with their number
            yield {exit_id.name: loss(upsampled(logits, size))}

    stage = _Stage(
        "exits",
        fabric,
        network,
        parameters,
        settings,
        checkpoint=checkpoint,
        checkpoint_minutes=checkpoint_minutes,
        log=log,
    )
    own = _shared(batches, fabric)
    if cache is not None:
        part = f"-{fabric.global_rank}of{fabric.world_size}" if fabric.world_size > 1 else ""
        points = ", ".join(point.name for point in network.points)
        about = {"points": points, "precision": settings.precision}
        if not hasattr(own, "begin"):
            about["seed"] = str(settings.seed)  # the order of a DataLoader comes from it
        own = FeatureCache(cache, own, frozen, network.net, views=cache_views, part=part, about=about)
    return stage.run(own, step)


Step = Callable[[Any, Tensor, int], Iterator[dict[str, Tensor]]]
"""(images or `Frozen`, labels on the grid of the loss, number of the step from 1) -> losses by exit, means over valid
pixels, in groups that are backpropagated together."""


class _Stage:
    """Epochs of a step: `run` -> `_epoch` -> `_gradients`.

    Everything random depends on (seed, stage, epoch, step, process), so there is no random state to store.
    """

    def __init__(
        self,
        name: str,
        fabric: Fabric,
        network: MultiExitNetwork,
        parameters: Sequence[nn.Parameter],
        settings: TrainSettings,
        *,
        checkpoint: Path | None,
        checkpoint_minutes: float,
        log: Log | None,
        data_parallel: _FabricModule | None = None,
    ) -> None:
        types = {p.dtype for p in parameters if p.requires_grad} & {torch.float16, torch.bfloat16}
        if types:
            raise ValueError(
                f"network: expected parameters of float32 to train, got {types.pop()}, in which steps are lost or "
                "infinite; load the model in float32 (precision= is for mixed precision)"
            )
        self.name, self.fabric, self.network, self.settings = name, fabric, network, settings
        self.parameters, self.data_parallel = parameters, data_parallel
        self.checkpoint, self.checkpoint_minutes, self.log = checkpoint, checkpoint_minutes, log
        self.memory_format = _memory_format(network, fabric)
        rate, decay = settings.learning_rate, settings.weight_decay
        self.optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        # the same behind loss scaling, where the precision has that
        self.scaled = cast("_FabricOptimizer", fabric.setup_optimizers(self.optimizer))

    def run(self, batches: Any, step: Step) -> tuple[dict[str, float], ...]:
        """Every epoch that is not done yet."""
        if len(batches) == 0:
            raise ValueError("batches: expected at least one batch, got none")
        per_epoch = -(-len(batches) // self.settings.accumulate)
        done = self._resume(per_epoch, batches)
        self._saved, self._epochs_saved = time.perf_counter(), done.epoch
        synchronised = self.fabric.world_size > 1 and self.settings.sync_batch_norm
        devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)  # type: ignore[no-untyped-call]
        try:
            with (
                batch_norm_synchronised(self.network, enabled=synchronised),
                torch.random.fork_rng(devices=devices),  # the caller's numbers go on as if there had been no training
            ):
                while done.epoch < self.settings.epochs:
                    done = self._epoch(batches, step, done, per_epoch)
                    self._save(done)
        except KeyboardInterrupt:
            kept = f"; {self._epochs_saved} epochs are in {self.checkpoint}, the same call goes on from there"
            say(f"{self.name}: interrupted{kept if self.checkpoint else ''}")
            raise
        self.network.eval()
        return done.losses

    def _epoch(self, batches: Any, step: Step, done: Progress, per_epoch: int) -> Progress:
        """One epoch from `done.step` on."""
        settings, fabric, epoch, first = self.settings, self.fabric, done.epoch, done.step
        running = dict(done.running)
        seeds = (settings.seed, len(self.name), epoch)  # the stages' names differ in length
        torch.manual_seed(mixed_seed(*seeds))  # a DataLoader draws its order from it
        source = batches_from(batches, epoch, first * settings.accumulate)
        title = f"{self.name} epoch {epoch + 1}/{settings.epochs}"
        images_seen, valid, start, rate, speed = 0, 0, time.perf_counter(), 0.0, 0.0
        with progress(title, per_epoch, first) as advance:
            for index in range(first, per_epoch):
                group = [_checked(batch) for batch in islice(source, settings.accumulate)]
                if not group:
                    met = index * settings.accumulate
                    raise ValueError(
                        f"batches: expected {len(batches)} in every epoch, as their len() says, got {met} in this one"
                    )
                number = epoch * per_epoch + index
                rate = settings.learning_rate * max(0.0, 1 - number / (settings.epochs * per_epoch)) ** 0.9
                for parameter_group in self.optimizer.param_groups:
                    parameter_group["lr"] = rate
                torch.manual_seed(mixed_seed(*seeds, index, fabric.global_rank))  # for dropout
                losses, pixels = self._gradients(group, step, number + 1)
                valid += pixels
                self._check_finite(losses, batches, index, epoch)
                self.scaled.step()
                self.scaled.zero_grad(set_to_none=True)
                for name, loss in losses.items():
                    total, count = running.get(name, (0.0, 0))
                    running[name] = (total + loss * pixels, count + pixels)
                images_seen += fabric.world_size * sum(len(labels) for _, labels in group)
                speed = images_seen / (time.perf_counter() - start)
                advance(f"loss {_mean(losses):.3f}  lr {rate:.1e}  {speed:.0f} images/s")
                if self.log is not None and fabric.is_global_zero:
                    values = {f"{self.name}/loss/{name}": loss for name, loss in losses.items()}
                    values |= {f"{self.name}/learning_rate": rate, f"{self.name}/images_per_second": speed}
                    self.log(number + 1, values)
                if time.perf_counter() - self._saved >= 60 * self.checkpoint_minutes and index + 1 < per_epoch:
                    self._save(replace(done, step=index + 1, running=running))
        if valid == 0 and first == 0:
            raise ValueError(
                f"batches: expected labels of 0..{self.network.num_classes - 1}, got an epoch of {images_seen} images "
                f"where every pixel is {IGNORE_INDEX}, to be ignored"
            )
        means = {name: total / max(1, count) for name, (total, count) in running.items()}
        seconds = time.perf_counter() - start
        left = seconds / (per_epoch - first) * per_epoch * (settings.epochs - epoch - 1)
        say(_line(title, means, rate, speed, seconds, left))
        return replace(done, epoch=epoch + 1, step=0, running={}, losses=(*done.losses, means))

    def _gradients(self, group: Sequence[tuple[Any, Tensor]], step: Step, number: int) -> tuple[dict[str, float], int]:
        """Gradients of one step, added over the batches of `group` and averaged over the processes; losses by exit, and
        the number of valid pixels.

        A batch weighs as many pixels as are valid in it, so that the loss is the mean over the valid pixels of all.
        """
        fabric, parallel = self.fabric, self.data_parallel
        targets = []
        for _, labels in group:
            check_labels(labels[labels != IGNORE_INDEX], self.network.num_classes)
            targets.append(coarse_labels(labels.to(fabric.device), self.settings.loss_stride))
        counts = torch.stack([(target != IGNORE_INDEX).sum() for target in targets])
        valid = torch.as_tensor(fabric.all_reduce(counts.sum(), reduce_op="sum"))
        shares = counts * fabric.world_size / valid.clamp(min=1)
        sums: dict[str, Tensor] = {}
        for share, (images, _), target in zip(shares, group, targets, strict=True):
            is_last = target is targets[-1]
            with nullcontext() if parallel is None else fabric.no_backward_sync(parallel, enabled=not is_last):
                for losses in step(self.prepared(images), target, number):
                    fabric.backward(torch.stack([loss * share for loss in losses.values()]).sum())
                    for name, loss in losses.items():
                        part = loss.detach() * share
                        sums[name] = sums[name] + part if name in sums else part
        if parallel is None:
            average_gradients(fabric, self.parameters)
        means = torch.as_tensor(fabric.all_reduce(torch.stack(list(sums.values())), reduce_op="mean"))
        return dict(zip(sums, means.tolist(), strict=True)), int(valid)

    def prepared(self, images: Any) -> Any:
        """Images (B, channels, H, W), or what the backbone said of them, where and as the network takes them."""
        if isinstance(images, Frozen):
            return images.to(self.fabric.device)
        return images.to(self.fabric.device, self.parameters[0].dtype).contiguous(memory_format=self.memory_format)

    def _check_finite(self, losses: Mapping[str, float], batches: Any, index: int, epoch: int) -> None:
        wrong = [name for name, loss in losses.items() if not math.isfinite(loss)]
        if not wrong:
            return
        first = index * self.settings.accumulate
        numbers = range(first, min(first + self.settings.accumulate, len(batches)))
        images = [name for number in numbers for name in batches.names(number)] if hasattr(batches, "names") else []
        shown = f" ({', '.join(images[:8])}{', ...' if len(images) > 8 else ''})" if images else ""
        raise RuntimeError(
            f"{self.name}: the loss of exit {wrong[0]} is {losses[wrong[0]]} at batch {first + 1} of epoch "
            f"{epoch + 1}{shown}; lower learning_rate or use precision='float32'"
        )

    def _save(self, now: Progress) -> None:
        if self.checkpoint is not None and self.fabric.is_global_zero:
            save_checkpoint(self.checkpoint, self.network, self.optimizer, now)
        self._saved, self._epochs_saved = time.perf_counter(), now.epoch

    def _resume(self, per_epoch: int, batches: Any) -> Progress:
        if self.checkpoint is None:
            return Progress(stage=self.name, settings=asdict(self.settings))
        network = self.network
        about = {
            "steps_per_epoch": per_epoch,
            "data": identity_of(batches),
            "points": [point.name for point in network.points],
            "heads": [spec.name for spec in network.head_specs],
        }
        if self.name == "exits" or not self.settings.epochs:  # the backbone is not trained: it is whose training it is
            about["backbone"] = self.fabric.broadcast(state_sha256(network.net))  # statistics may differ by process
        fresh = Progress(stage=self.name, settings={**asdict(self.settings), **about})
        if self.fabric.is_global_zero and not self.checkpoint.is_file():
            save_checkpoint(self.checkpoint, self.network, self.optimizer, fresh)  # for an early Ctrl-C
        self.fabric.barrier()
        done = load_checkpoint(self.checkpoint, self.network, self.optimizer, expected=fresh)
        self.fabric.barrier()
        if done.epoch or done.step:
            part = f" and {done.step} of {per_epoch} steps" if done.step else ""
            epochs = f"{done.epoch} of {self.settings.epochs} epochs{part}"
            say(f"{self.name}: {epochs} are done already")
        return done


def _shared(batches: Any, fabric: Fabric) -> Any:
    """This process's part of the batches."""
    if fabric.world_size == 1:
        return batches
    if hasattr(batches, "shard"):
        batches.shard(fabric.global_rank, fabric.world_size)
        return batches
    if isinstance(batches, DataLoader):
        return fabric.setup_dataloaders(batches, move_to_device=False)
    raise ValueError(
        f"batches: expected a mess.data.SeededLoader or a torch DataLoader to divide among {fabric.world_size} "
        f"processes, got {type(batches).__name__}"
    )


def _checked(batch: Any) -> tuple[Any, Tensor]:
    parts = batch if isinstance(batch, tuple | list) else ()
    if len(parts) != 2 or not isinstance(parts[1], Tensor) or parts[1].ndim != 3:
        shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in parts]
        raise ValueError(
            f"batches: expected (images (B, channels, H, W), labels (B, H, W)), two tensors, got a "
            f"{type(batch).__name__} of {shapes}"
        )
    return parts[0], parts[1]


def _memory_format(network: MultiExitNetwork, fabric: Fabric) -> torch.memory_format:
    """Channels last, which is faster, unless the model joins dimensions by `view`, which it could not then."""
    example = network.example().repeat(2, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    try:
        with evaluating(network), fabric.autocast():
            network(example)
    except Exception as error:  # any other is the training's to tell
        if "view size is not compatible" in str(error):
            return torch.contiguous_format
    return torch.channels_last


def _mean(losses: Mapping[str, float]) -> float:
    return sum(losses.values()) / len(losses)


def _line(title: str, means: Mapping[str, float], rate: float, speed: float, seconds: float, left: float) -> str:
    """One epoch in one line: losses by exit, of many heads their mean by exit point."""
    by_point: dict[str, list[float]] = {}
    for name, loss in means.items():
        by_point.setdefault(name.partition(":")[0], []).append(loss)
    order = sorted(by_point, key=lambda point: (point == FINAL_EXIT, point.zfill(4)))
    parts = " ".join(f"{point} {sum(by_point[point]) / len(by_point[point]):.3f}" for point in order)
    rest = f", {left / 60:.0f} min left" if left >= 60 else ""
    return f"{title}  loss {_mean(means):.4f} ({parts})  lr {rate:.1e}  {speed:.0f} images/s  {seconds:.0f} s{rest}"


def coarse_labels(labels: Tensor, stride: int) -> Tensor:
    """Labels (B, H, W) at every `stride`-th pixel: at the middle of each cell, as bilinear resampling has it."""
    if stride == 1:
        return labels
    rows, columns = (
        ((2 * torch.arange(count, device=labels.device) + 1) * length) // (2 * count)
        for length in labels.shape[1:]
        for count in [-(-length // stride)]
    )
    return labels[:, rows][:, :, columns]
