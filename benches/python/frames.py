"""A trained run's deployment on real frames: batches that images leave, and a stream that remembers, by `mess.Runtime`.

    python benches/python/frames.py RUN --configuration drop-1pp --record

Batches: images a second against the plain model, and against a batch that waits for its hardest image. Streams: the
frames of the split in their order, with the temporal options of `mess.runtime.Stream`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import mess
import mess_core
from mess import runs, verbs
from mess.model.adapter import LogitsModel
from mess.model.onnx_file import exporting
from mess.runtime import Result, Runtime, Stream
from mess.runtime.backends import BATCH, load

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benches.machine import facts  # noqa: E402
from benches.pictures import mean_iou, resized  # noqa: E402

STREAMS: dict[str, dict[str, Any]] = {
    "image by image": {},
    "skip after 3 refusals, retry every 10": {"skip_after": 3},
    "hysteresis 0.01": {"hysteresis": 0.01},
    "hysteresis 0.05": {"hysteresis": 0.05},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--configuration", default="drop-1pp", help="name in the run; it needs a gate")
    parser.add_argument("--split", default="test")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=(1, 8, 16))
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write benches/record/frames.md")
    arguments = parser.parse_args()
    settings = runs.RunSettings.load(arguments.run)
    data = runs.dataset(settings, split=arguments.split)
    pairs = [data.pair(i) for i in range(min(arguments.frames, len(data)))]
    pictures = [resized(image, settings.size) for image, _ in pairs]
    every = [resized(data.pair(i)[0], settings.size) for i in range(len(data))]
    with tempfile.TemporaryDirectory() as folder:
        net, plain = Path(folder) / "net", Path(folder) / "plain.onnx"
        verbs.export_run(arguments.run, configuration=arguments.configuration, out=net)
        network = runs.trained_network(arguments.run)
        with exporting():
            torch.onnx.export(
                LogitsModel(network.net, network.pick_logits).eval(),
                (torch.rand(2, 3, *settings.size),),
                str(plain),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim(BATCH)},),
                external_data=False,
                input_names=["images"],
                output_names=["logits"],
                verbose=False,
            )
        runtime = Runtime(net, threads=arguments.threads)
        out = [
            "# Real frames through an exported deployment",
            "",
            "```text",
            f"python benches/python/frames.py {' '.join(sys.argv[1:])}",
            "```",
            "",
            *(f"- {key}: {value}" for key, value in facts("torch", "onnxruntime").items()),
            f"- {settings.model} on {data.name}, {settings.size[0]} x {settings.size[1]}, {arguments.configuration}, "
            f"{len(pictures)} frames of {arguments.split}, {arguments.threads} threads, ONNX Runtime",
            f"- exits: {', '.join(entry.name for entry in runtime.manifest.exits)}",
            "",
            "## Against torch",
            "",
            *against_torch(arguments, network, runtime, every),
            "",
            "## Batches",
            "",
            "Images a second, from pictures of the network's size to label maps; medians over interleaved rounds.",
            "",
            *batches(runtime, plain, pictures, arguments),
            "",
            "## Streams",
            "",
            *streams(
                runtime,
                [image for image, _ in pairs],
                [labels for _, labels in pairs],
                len(data.class_names),
                arguments.rounds,
            ),
        ]
    text = "\n".join(out) + "\n"
    print(text)
    if arguments.record:
        (ROOT / "benches" / "record" / "frames.md").write_text(text)


def against_torch(
    arguments: argparse.Namespace, network: mess.MultiExitNetwork, runtime: Runtime, pictures: list[np.ndarray]
) -> list[str]:
    """Exits taken and label maps of every picture, by the folder and by the deployed torch network."""
    chosen = verbs.configuration_named(arguments.run, arguments.configuration)
    settings = runs.RunSettings.load(arguments.run)
    deployed = mess.deploy(network, chosen, mean=settings.mean, std=settings.std)
    same, labels, margins = 0, [], []
    for picture in pictures:
        ours, theirs = runtime.predict(picture), mess.run(deployed, picture)
        same += ours.exit == theirs.exit
        labels.append((ours.labels == theirs.labels).mean())
        if ours.exit != theirs.exit:
            gaps = zip(ours.image_confidence, (e.image_threshold for e in chosen.exits), strict=False)
            margins.append(min(abs(c - t) for c, t in gaps if t is not None))
    apart = f"; image confidence of the others is within {max(margins):.1e} of a threshold" if margins else ""
    return [
        f"{same} of {len(pictures)} images of the split take the same exit{apart}. Label maps agree on "
        f"{np.mean(labels):.4%} of the pixels.",
    ]


def batches(runtime: Runtime, plain: Path, pictures: list[np.ndarray], arguments: argparse.Namespace) -> list[str]:
    whole = load("onnxruntime", plain, ["images"], ["logits"], arguments.threads)
    manifest, workspace = runtime.manifest, mess_core.Workspace()

    def label(logits: np.ndarray) -> None:
        size = runtime._upsampling(logits)
        mess_core.label_map(logits, size=size, workspace=workspace, threads=runtime._threads_for(logits))

    def run_plain(batch: list[np.ndarray]) -> None:
        for logits in whole.run(runtime._start(batch), batch=len(batch))["logits"]:
            label(logits)

    def run_together(batch: list[np.ndarray]) -> None:
        """Nobody leaves before the hardest image of the batch; each has the labels of the exit that it was sure at."""
        state, waiting = runtime._start(batch), np.ones(len(batch), dtype=bool)
        for position, entry in enumerate(manifest.exits):
            feature, state = runtime._run_stage(position, state, len(batch))
            logits = runtime._logits(position, feature)
            sure = waiting
            if entry.image_threshold is not None:
                sure = waiting & (runtime._confidence(entry, logits) >= entry.image_threshold)
            for image in np.flatnonzero(sure):
                label(logits[image])
            waiting = waiting & ~sure
            if not waiting.any():
                return

    ways = {"plain": run_plain, "leaving": runtime.predict_batch, "waiting": run_together}
    out = ["| batch | plain | images leave | batch waits | leave / plain | leave / waits |", "|---" * 6 + "|"]
    for size in arguments.batch_sizes:
        groups = [pictures[i : i + size] for i in range(0, len(pictures) - size + 1, size)]
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds + 1):
            for name, call in ways.items():
                start = time.perf_counter()
                for group in groups:
                    call(group)
                times[name].append(time.perf_counter() - start)
        speed = {name: size * len(groups) / median(values[1:]) for name, values in times.items()}
        out.append(
            f"| {size} | {speed['plain']:.1f} | {speed['leaving']:.1f} | {speed['waiting']:.1f} | "
            f"{speed['leaving'] / speed['plain']:.2f} | {speed['leaving'] / speed['waiting']:.2f} |"
        )
    return out


def streams(
    runtime: Runtime, frames: list[np.ndarray], truth: list[np.ndarray], num_classes: int, rounds: int
) -> list[str]:
    """Milliseconds are medians over interleaved rounds of the mean over frames; all else is the same in each."""
    names = [entry.name for entry in runtime.manifest.exits]
    out = [
        f"| | mIoU | ms a frame | share of frames at {', '.join(names)} | changes of exit |",
        "|---|---|---|---|---|",
    ]
    times: dict[str, list[float]] = {title: [] for title in STREAMS}
    seen: dict[str, list[Result]] = {}
    for _ in range(1 + rounds):
        for title, options in STREAMS.items():
            stream = Stream(runtime, **options)
            seen[title] = [stream.predict(frame) for frame in frames]
            times[title].append(float(np.mean([sum(result.stage_ms) for result in seen[title]])))
    for title, results in seen.items():
        exits = [names.index(result.exit) for result in results]
        iou = mean_iou(((result.labels, labels) for result, labels in zip(results, truth, strict=True)), num_classes)
        shares = ", ".join(f"{exits.count(i) / len(exits):.0%}" for i in range(len(names)))
        changes = sum(a != b for a, b in pairwise(exits))
        out.append(f"| {title} | {iou:.2%} | {median(times[title][1:]):.1f} | {shares} | {changes} |")
    return out


if __name__ == "__main__":
    main()
