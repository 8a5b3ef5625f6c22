"""A deployment that takes every size, at sizes that it was not calibrated at, on a labelled split, by `mess.Runtime`.

    python benches/python/sizes.py RUN --configuration drop-1pp --record

Each row compares the deployment with the original network at the same size; both are folders of `mess export --any-size`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import mess
from mess import runs, verbs
from mess.deployment.configuration import ChosenExit, Configuration
from mess.exit_names import FINAL_EXIT
from mess.runtime import Runtime

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benches.machine import facts  # noqa: E402
from benches.pictures import mean_iou  # noqa: E402

STEP = 32  # which every network that takes several sizes takes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--configuration", default="drop-1pp", help="name in the run")
    parser.add_argument("--split", default="test")
    parser.add_argument("--factors", type=float, nargs="+", default=(0.67, 0.8, 1.0, 1.25, 1.5, 2.0))
    parser.add_argument("--images", type=int, help="the first so many; all by default")
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
        f"{arguments.configuration}, {len(pairs)} images of {arguments.split}, {arguments.threads} threads, ONNX Runtime",
        f"- exits: {', '.join(names)}",
        "",
        "mIoU at the ground truth's own size. Time is that of stages, heads and decisions, deployment / original.",
        "",
        f"| size | original | deployment | difference | images at {', '.join(names)} | time |",
        "|" + "---|" * 6,
    ]
    with tempfile.TemporaryDirectory() as folder:
        network = runs.trained_network(arguments.run)
        original = Configuration(setting="budgeted", model=chosen.model, exits=(ChosenExit(exit=FINAL_EXIT),))
        folders = {"original": Path(folder) / "original", "deployment": Path(folder) / "deployment"}
        for configuration, path in ((original, folders["original"]), (chosen, folders["deployment"])):
            deployed = mess.deploy(network, replace(configuration, promise={}), any_size=True)
            mess.export(deployed, path, class_names=settings.class_names)
        for factor in arguments.factors:
            height, width = (max(STEP, round(factor * side / STEP) * STEP) for side in settings.size)
            accuracy, milliseconds, shares = {}, {}, ""
            for name, path in folders.items():
                runtime = Runtime(path, threads=arguments.threads, size=(height, width))
                runtime.predict(pairs[0][0])
                results = [runtime.predict(image) for image, _ in pairs]
                labels = ((result.labels, truth) for result, (_, truth) in zip(results, pairs, strict=True))
                accuracy[name] = mean_iou(labels, len(data.class_names))
                milliseconds[name] = sum(sum(result.stage_ms) for result in results)
                taken = [result.exit for result in results]
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


if __name__ == "__main__":
    main()
