"""One pass of every candidate exit over a labelled split."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from mess.calibration.counts import BatchCounts, Measure
from mess.calibration.latency import measure_backends, measure_latency
from mess.calibration.partial import Partial
from mess.calibration.table import CalibrationTable, Costs
from mess.data.loader import SeededLoader, batches_from, identity_of
from mess.exit_names import FINAL_EXIT
from mess.model.adapter import evaluating
from mess.model.cost import count_macs, profile
from mess.model.network import MultiExitNetwork
from mess.model.weights import state_sha256
from mess.policy import PolicySettings
from mess.progress import progress, say
from mess.runtime.backends import BackendName

PIXEL_THRESHOLDS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)

Spread = Callable[[Measure, Sequence[int]], Iterator[tuple[int, BatchCounts | tuple[str, ...]]]]
"""Who measures batches, by number, in place of this process: gives (number, counts) in any order, or in place of counts
what is wrong with images that cannot be read."""


def calibrate(
    network: MultiExitNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    class_names: Sequence[str] | None = None,
    image_names: Sequence[str] | None = None,
    pixel_thresholds: Sequence[float] = PIXEL_THRESHOLDS,
    policy: PolicySettings | None = None,
    latency_rounds: int = 15,
    backends: Sequence[BackendName] = (),
    facts: dict[str, Any] | None = None,
    partial: str | Path | None = None,
    spread: Spread | None = None,
) -> CalibrationTable:
    """Run every exit on every image and keep what the search needs.

    Args:
        network: a trained multi-exit network; it is run in eval mode and left in the mode it was in.
        batches: (images (B, 3, H, W) float, labels (B, H, W) int64 with 255 ignored), in a fixed order, of one size:
            costs are of that size, and so must the images be that `mess.deploy` is told of, if it is not the size that
            the network was converted with.
        class_names: C of them; numbers by default.
        image_names: one an image; numbers by default.
        pixel_thresholds: in [0, 1]; image confidence is computed at each.
        policy: how image confidence is computed.
        latency_rounds: rounds of the latency measurement; 0 leaves the `latency_ms` column out.
        backends: those of an exported folder that latency is measured in too, in columns `onnxruntime_ms` and
            `openvino_ms`, on the CPU: what is cheap in torch may be dear there. With any of them, `size_mb` is the
            size of the ONNX files.
        facts: anything worth keeping with the table.
        partial: a file that keeps what is done, every half minute and when Ctrl-C or an error comes. The same call goes
            on from it; other images are refused as far as they can be told apart (`SeededLoader`, a list; of a
            `DataLoader` by their number). Delete it when the table is saved.
        spread: who measures the images, in place of this process (`mess.calibration.cluster.on_ray`); costs are
            measured here.

    Returns:
        The table, with costs `macs`, `latency_ms`, and those of `backends`.

    Raises:
        ValueError: no batch, sizes that differ, labels outside the classes, thresholds outside [0, 1], images that
            cannot be read; `partial` is of another calibration.
        KeyboardInterrupt: Ctrl-C; what is done is in `partial`.
    """
    if not len(pixel_thresholds) or not all(0 <= t <= 1 for t in pixel_thresholds):
        raise ValueError(f"pixel_thresholds: expected numbers in [0, 1], got {list(pixel_thresholds)}")
    if class_names is not None and (isinstance(class_names, str) or len(class_names) != network.num_classes):
        raise ValueError(f"class_names: expected {network.num_classes} names, got {class_names!r}")
    if isinstance(image_names, str):
        raise ValueError(f"image_names: expected a name an image, got {image_names!r}")
    if image_names is not None and isinstance(batches, SeededLoader) and not batches.train:
        _check_names(image_names, len(batches.dataset))
    if spread is not None and not isinstance(batches, Sized):
        raise ValueError(f"batches: expected a number of them (len) beside spread, got {type(batches).__name__}")
    if not set(backends) <= set(get_args(BackendName)) or (backends and latency_rounds < 1):
        raise ValueError(
            f"backends: expected some of {get_args(BackendName)}, and latency_rounds above 0, got {list(backends)} and "
            f"{latency_rounds}"
        )
    measure = Measure(pixel_thresholds=tuple(float(t) for t in pixel_thresholds), policy=policy or PolicySettings())
    device = next(network.parameters()).device
    done = Partial(
        exits=(*(e.name for e in network.exits), FINAL_EXIT),
        points=np.array([*(e.point for e in network.exits), len(network.points)], dtype=np.int64),
        class_names=tuple(class_names or (str(i) for i in range(network.num_classes))),
        measure=measure,
        model=tuple(point.name for point in network.points),
        facts={"device": str(device), "machine": platform.machine(), "torch": torch.__version__, **(facts or {})},
    )
    if partial is not None:
        done.resume(Path(partial), _identity(network, batches, latency_rounds, backends), facts or {})
    total = len(batches) if isinstance(batches, Sized) else 0
    unreadable: list[str] = []
    try:
        with evaluating(network):
            if spread is not None and total and done.input_size is None:
                images, _ = next(batches_from(batches, 0, 0))
                _measure_costs(network, done, images, latency_rounds, backends)
            with progress("calibrate", total, len(done.batches)) as advance:
                if spread is None:
                    measured: Iterator[tuple[int, Any]] = _here(network, batches, done, latency_rounds, backends)
                else:
                    measured = spread(measure, [number for number in range(total) if number not in done.batches])
                for number, counts in measured:
                    if isinstance(counts, BatchCounts):
                        done.add(number, counts)
                    else:
                        unreadable += counts
                    advance()
            if unreadable:
                raise ValueError(
                    f"batches: {len(unreadable)} images cannot be read: {'; '.join(unreadable)}; all others are kept, "
                    "the same call goes on when these are mended"
                )
            missing = sorted(set(range(total)) - done.batches)
            if missing:
                raise ValueError(f"batches: expected {total}, got none of number {missing[0]} ({len(missing)} missing)")
        if done.input_size is None:
            raise ValueError("batches: expected at least one batch, got none")
        if image_names is not None:
            _check_names(image_names, done.images)
    except BaseException as error:
        done.save()
        if partial is not None and done.batches and isinstance(error, KeyboardInterrupt):
            say(f"calibrate: interrupted; {len(done.batches)} batches are in {partial}, the same call goes on")
        raise
    return done.table(None if image_names is None else tuple(image_names))


def _check_names(names: Sequence[str], images: int) -> None:
    if len(names) != images:
        raise ValueError(f"image_names: expected {images}, one an image, got {len(names)}")


def _here(
    network: MultiExitNetwork, batches: Any, done: Partial, latency_rounds: int, backends: Sequence[BackendName]
) -> Iterator[tuple[int, BatchCounts]]:
    """The batches that are not done, one after the other."""
    first = next(number for number in range(len(done.batches) + 1) if number not in done.batches)
    rest = batches_from(batches, 0, first) if first else batches
    for number, (images, labels) in enumerate(rest, start=first):
        if done.input_size is None:  # costs first: what cannot be measured is said before the long part
            _measure_costs(network, done, images, latency_rounds, backends)
        if number not in done.batches:
            yield number, done.measure.counts(network, images, labels)


def _measure_costs(
    network: MultiExitNetwork, done: Partial, images: Tensor, latency_rounds: int, backends: Sequence[BackendName]
) -> None:
    done.input_size = (images.shape[2], images.shape[3])
    done.costs["macs"] = mac_costs(network, done.input_size)
    if latency_rounds:
        done.costs["latency_ms"], plain = measure_latency(
            network, input_size=done.input_size, policy=done.measure.policy, rounds=latency_rounds
        )
        done.facts |= {"plain_latency_ms": plain, "latency_rounds": latency_rounds}
        done.facts |= {"threads": torch.get_num_threads()}
    if backends:
        measured = measure_backends(
            network, backends, input_size=done.input_size, policy=done.measure.policy, rounds=latency_rounds
        )
        done.costs |= {column: costs for column, (costs, _) in measured.items()}
        done.facts |= {f"plain_{column}": plain for column, (_, plain) in measured.items()}


def _identity(
    network: MultiExitNetwork, batches: Any, latency_rounds: int, backends: Sequence[BackendName]
) -> dict[str, Any]:
    """What a calibration depends on, beside what the table says anyway."""
    return {
        "network": state_sha256(network),
        "images": identity_of(batches),
        "latency_rounds": latency_rounds,
        "device": next(network.parameters()).device.type,
        **({"backends": sorted(set(backends))} if backends else {}),
    }


def mac_costs(network: MultiExitNetwork, input_size: tuple[int, int]) -> Costs:
    """Multiply-accumulates of every exit for one image; the policy has none (no convolution, no matrix product)."""
    example = network.example(input_size)
    workload = profile(network.net, example)
    at = {(layer.name, layer.call): layer for layer in workload.layers}
    reached = [at[point.module, point.call] for point in network.points]
    heads = []
    for exit_id in network.exits:
        shape = reached[exit_id.point].feature
        assert shape is not None
        heads.append(float(count_macs(network.head(exit_id), example.new_zeros(1, *shape))))
    return {
        "backbone": np.array([*(reached[e.point].end for e in network.exits), workload.total]),
        "head": np.array([*heads, 0.0]),
        "policy": np.zeros(len(heads) + 1),
    }
