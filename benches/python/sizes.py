"""A deployment that takes every size, at sizes that it was not calibrated at, on a labelled split, by `mess.Runtime`.

    python benches/python/sizes.py RUN --configuration drop-1pp --record

Each row compares the deployment with the original network at the same size; both are folders of
`mess export --any-size`. Sizes are multiples of `MULTIPLE`, but for the last, a pixel more than was calibrated.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

import mess
from mess import runs, verbs
from mess.deployment.configuration import ChosenExit, Configuration
from mess.exit_names import FINAL_EXIT
from mess.runtime import Result, Runtime

MULTIPLE = 16
"""Pixels; a multiple of the output stride of every head."""

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benches.machine import facts  # noqa: E402
from benches.pictures import mean_iou  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--configuration", default="drop-1pp", help="name in the run")
    parser.add_argument("--split", default="test")
    parser.add_argument("--factors", type=float, nargs="+", default=(0.67, 0.83, 1.0, 1.25, 1.5, 2.0))
    parser.add_argument("--images", type=int, help="the first so many; all by default")
    parser.add_argument("--rounds", type=int, default=3, help="of each picture, interleaved")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", action="store_true", help="write benches/record/sizes.md")
    arguments = parser.parse_args()
    settings = runs.RunSettings.load(arguments.run)
    data = runs.dataset(settings, split=arguments.split)
    pairs = [data.pair(i) for i in range(min(arguments.images or len(data), len(data)))]
    chosen = verbs.configuration_named(arguments.run, arguments.configuration)
    names = [one.exit for one in chosen.exits]
    out = [
        "# Other sizes than the calibrated one",
        "",
        "```text",
        f"python benches/python/sizes.py {' '.join(sys.argv[1:])}",
        "```",
        "",
        *(f"- {key}: {value}" for key, value in facts("torch", "onnxruntime").items()),
        f"- {settings.model} on {data.name}, calibrated at {settings.size[0]} x {settings.size[1]}, "
        f"{arguments.configuration}, {len(pairs)} images of {arguments.split}, {arguments.threads} threads",
        f"- exits: {', '.join(names)}",
        "",
        "mIoU at the ground truth's own size. Time is that of stages, heads and decisions: deployment / original.",
        "",
        f"| size | original | deployment | difference | images at {', '.join(names)} | time |",
        "|" + "---|" * 6,
    ]
    with tempfile.TemporaryDirectory() as folder:
        network = runs.trained_network(arguments.run)
        original = Configuration(setting="budgeted", model=chosen.model, exits=(ChosenExit(exit=FINAL_EXIT),))
        folders = {"original": Path(folder) / "original", "deployment": Path(folder) / "deployment"}
        for configuration, path in ((original, folders["original"]), (chosen, folders["deployment"])):
            deployed = mess.deploy(network, configuration, any_size=True, mean=settings.mean, std=settings.std)
            mess.export(deployed, path, class_names=settings.class_names)
        step = max(MULTIPLE, Runtime(folders["deployment"]).manifest.size_step or 1)
        sizes = [
            [max(step, round(factor * side / step) * step) for side in settings.size] for factor in arguments.factors
        ]
        for height, width in [*sizes, [side + 1 for side in settings.size]]:
            runtimes = {
                name: Runtime(path, threads=arguments.threads, size=(height, width)) for name, path in folders.items()
            }
            results, milliseconds = predicted(runtimes, [image for image, _ in pairs], arguments.rounds)
            accuracy = {}
            for name, found in results.items():
                labels = ((result.labels, truth) for result, (_, truth) in zip(found, pairs, strict=True))
                accuracy[name] = mean_iou(labels, len(data.class_names))
            taken = [result.exit for result in results["deployment"]]
            shares = ", ".join(f"{taken.count(exit_name) / len(taken):.0%}" for exit_name in names)
            out.append(
                f"| {height} x {width} | {accuracy['original']:.2%} | {accuracy['deployment']:.2%} "
                f"| {100 * (accuracy['deployment'] - accuracy['original']):+.2f} pp | {shares} "
                f"| {milliseconds['deployment'] / milliseconds['original']:.2f} |"
            )
            print(out[-1], file=sys.stderr, flush=True)
    text = "\n".join(out) + "\n"
    print(text)
    if arguments.record:
        (ROOT / "benches" / "record" / "sizes.md").write_text(text)


def predicted(
    runtimes: dict[str, Runtime], pictures: list[np.ndarray], rounds: int
) -> tuple[dict[str, list[Result]], dict[str, float]]:
    """What each says of every picture, and its milliseconds for all: of each the median of interleaved rounds."""
    results: dict[str, list[Result]] = {name: [] for name in runtimes}
    milliseconds = dict.fromkeys(runtimes, 0.0)
    for runtime in runtimes.values():
        runtime.predict(pictures[0])  # cold
    for picture in pictures:
        again = [{name: runtime.predict(picture) for name, runtime in runtimes.items()} for _ in range(rounds)]
        for name in runtimes:
            results[name].append(again[0][name])
            milliseconds[name] += median(sum(result[name].stage_ms) for result in again)
    return results, milliseconds


if __name__ == "__main__":
    main()
