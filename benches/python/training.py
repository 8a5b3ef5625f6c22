"""What stage 2 costs: all heads of an exit point in one step, against the slowest of them and the backbone's pass.

Goal: a step with all heads of a point <= 2 x the slowest head alone + one pass of the backbone. The row beside it says
what no implementation gets below: multiply-accumulates of all heads / of the largest.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

import mess
from mess import TrainSettings
from mess.calibration.collect import mac_costs
from mess.model.adapter import evaluating
from mess.model.exits import head_grid
from mess.model.network import MultiExitNetwork
from mess.model.zoo import model_from_spec
from mess.progress import console
from mess.training.loop import train_exits

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benches.machine import facts  # noqa: E402
from benches.paper.jobs import GRID  # noqa: E402

Batch = tuple[torch.Tensor, torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mobilenet_v2_fcn:8")
    parser.add_argument("--size", type=int, nargs=2, default=(192, 256), metavar=("H", "W"))
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--points", nargs="+", default=("features.10", "features.15"), help="exit points to measure")
    parser.add_argument("--grids", nargs="+", default=("small", "paper", "full"), choices=("small", "paper", "full"))
    parser.add_argument("--steps", type=int, default=5, help="steps a median is taken over")
    parser.add_argument("--record", action="store_true", help="write benches/record/training.md")
    arguments = parser.parse_args()
    console.quiet = True
    batch = (
        torch.rand(arguments.batch_size, 3, *arguments.size),
        torch.randint(0, 11, (arguments.batch_size, *arguments.size)),
    )
    out = [
        "# Stage 2: all heads of an exit point in one step",
        "",
        "```text",
        f"python benches/python/training.py {' '.join(a for a in sys.argv[1:])}",
        "```",
        "",
        *(f"- {key}: {value}" for key, value in facts("torch").items()),
        f"- {arguments.model}, {arguments.batch_size} images of {arguments.size[0]} x {arguments.size[1]}, PFD at "
        f"every second pixel, {torch.get_num_threads()} threads, medians of {arguments.steps} steps",
        "",
        "| point | grid | heads | backbone, s | slowest head, s | all heads, s | all / (2 slowest + backbone) | "
        "MACs of all / of the largest |",
        "|---" * 8 + "|",
    ]
    for point in arguments.points:
        for grid in arguments.grids:
            out.append(row(arguments, point, grid, batch))
            print(out[-1], flush=True)
    out += ["", *grouping(arguments.batch_size, arguments.steps)]
    if arguments.record:
        (ROOT / "benches" / "record" / "training.md").write_text("\n".join(out) + "\n")
    print("\n".join(out))


def row(arguments: argparse.Namespace, point: str, grid: str, batch: Batch) -> str:
    names = GRID.split(",") if grid == "paper" else [spec.name for spec in head_grid(grid)]  # type: ignore[arg-type]
    whole = converted(arguments, point, names)
    macs = mac_costs(whole, tuple(arguments.size))["head"][:-1]
    backbone = backbone_seconds(whole, batch, arguments.steps)
    every = step_seconds(whole, batch, arguments.steps)
    largest = sorted(range(len(names)), key=lambda i: -macs[i])[:3]  # the slowest is one of these
    alone = [step_seconds(converted(arguments, point, [names[i]]), batch, arguments.steps) for i in largest]
    slowest = max(alone) - backbone
    bar = every / (2 * slowest + backbone)
    return (
        f"| {point} | {grid} | {len(names)} | {backbone:.2f} | {slowest:.2f} | {every:.2f} | {bar:.2f} | "
        f"{macs.sum() / macs.max():.1f} |"
    )


def converted(arguments: argparse.Namespace, point: str, heads: list[str]) -> MultiExitNetwork:
    net = model_from_spec(arguments.model, num_classes=11)
    return mess.convert(net, torch.zeros(1, 3, *arguments.size), exit_points=[point], heads=heads)


def step_seconds(network: MultiExitNetwork, batch: Batch, steps: int) -> float:
    """One step of `train_exits`: the backbone's pass, and every head forward and backward."""
    times: list[float] = []
    settings = TrainSettings(epochs=1, loss_stride=2)
    train_exits(network, [batch] * (steps + 2), settings=settings, log=lambda *_: times.append(time.perf_counter()))
    return median(later - earlier for earlier, later in pairwise(times[1:]))


def backbone_seconds(network: MultiExitNetwork, batch: Batch, steps: int) -> float:
    images, times = batch[0].contiguous(memory_format=torch.channels_last), []
    with evaluating(network):
        for _ in range(steps + 1):
            start = time.perf_counter()
            network.features(images)
            times.append(time.perf_counter() - start)
    return median(times[1:])


def grouping(batch_size: int, steps: int) -> list[str]:
    """Would convolutions of several heads gain by being one? Forward and weight gradients of three, on 24 x 32."""
    out = [
        "## Convolutions of three heads: one after the other, or as one",
        "",
        "Forward and backward, ms. Same feature: one convolution with all output channels. Features of three points:",
        "one grouped convolution.",
        "",
        "| channels in, out, kernel | same feature: separate | as one | three features: separate | grouped |",
        "|---" * 5 + "|",
    ]
    for channels, width, kernel in ((160, 40, 1), (160, 40, 3), (160, 160, 3), (40, 40, 3), (40, 10, 3)):
        features = [torch.rand(batch_size, channels, 24, 32) for _ in range(3)]
        features = [feature.contiguous(memory_format=torch.channels_last) for feature in features]
        joined = torch.cat(features, 1).contiguous(memory_format=torch.channels_last)

        def convolution(inside: int, outside: int, groups: int, kernel: int = kernel) -> torch.nn.Conv2d:
            return torch.nn.Conv2d(inside, outside, kernel, padding=kernel // 2, groups=groups, bias=False)

        heads = [convolution(channels, width, 1) for _ in range(3)]
        ways = (
            [(head, features[0]) for head in heads],
            [(convolution(channels, 3 * width, 1), features[0])],
            list(zip(heads, features, strict=True)),
            [(convolution(3 * channels, 3 * width, 3), joined)],
        )
        cells = [f"{1e3 * both_ways_seconds(way, 4 * steps):.1f}" for way in ways]
        out.append(f"| {channels}, {width}, {kernel} x {kernel} | {' | '.join(cells)} |")
    return out


def both_ways_seconds(calls: list[tuple[torch.nn.Conv2d, torch.Tensor]], rounds: int) -> float:
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for convolution, feature in calls:
            convolution(feature).sum().backward()
        times.append(time.perf_counter() - start)
    return median(times[1:])


if __name__ == "__main__":
    main()
