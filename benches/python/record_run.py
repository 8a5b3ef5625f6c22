"""Turn what `mess evaluate` wrote into a record with the machine's facts.

    python benches/python/record_run.py RUN --name camvid --commands FILE

Reads RUN/evaluation-test.json and RUN/run.json; writes benches/record/<name>.md and .json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benches.machine import facts  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--commands", type=Path, required=True, help="text file with the commands that made the run")
    arguments = parser.parse_args()
    settings = json.loads((arguments.run / "run.json").read_text())
    result = json.loads((arguments.run / "evaluation-test.json").read_text())
    result["machine"] = facts("mess", "torch", "torchvision", "numpy")
    record = ROOT / "benches" / "record"
    (record / f"{arguments.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (record / f"{arguments.name}.md").write_text("\n".join(lines(settings, result, arguments.commands)) + "\n")


def lines(settings: dict, result: dict, commands: Path) -> list[str]:
    """The record as Markdown."""
    original, found = result["original"], result["configurations"]
    macs, accuracy = original["macs"], original["mean_iou"]
    height, width = settings["size"]
    out = [
        f"# {settings['model']} on {result['facts']['data']}, {height} x {width}",
        "",
        "```text",
        commands.read_text().strip(),
        "```",
        "",
        *(f"- {key}: {value}" for key, value in result["machine"].items()),
        f"- threads: {result['facts'].get('threads')}, batch 1",
        f"- clock: mean over {result['clock_images']} images of the medians over rounds, interleaved",
        "- only the ratio within a row is comparable: the machine is shared, its speed drifts",
        "",
        f"Test split, {result['images']} images; exits, heads and thresholds were chosen on val.",
        f"The original network: {accuracy:.2%} mIoU, {macs / 1e9:.2f} GMACs.",
        "",
        "| configuration | promise on val | mIoU | change | MACs | of MACs | plain ms | deployed ms | of the clock |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found.items():
        clock = row["clock"]
        out.append(
            f"| {name} | {row['promise']['accuracy']:.2%} | {row['mean_iou']:.2%} | "
            f"{100 * (row['mean_iou'] - accuracy):+.2f} pp | {row['macs'] / 1e9:.2f} G | {row['macs'] / macs:.1%} | "
            f"{clock['plain_ms']:.1f} | {clock['deployed_ms']:.1f} | {clock['deployed_ms'] / clock['plain_ms']:.1%} |"
        )
    out += ["", "| configuration | exits (pixel threshold, image threshold) | share of images |", "|---|---|---|"]
    for name, row in found.items():
        exits = " -> ".join(
            f"{e['exit']} ({e['pixel_threshold']:g}, {e['image_threshold']:.4f})" if e["pixel_threshold"] else e["exit"]
            for e in row["exits"]
        )
        out.append(f"| {name} | {exits} | {', '.join(f'{share:.1%}' for share in row['shares'])} |")
    classes = list(next(iter(found.values()))["iou"])
    out += ["", f"| IoU (%) | {' | '.join(classes)} |", "|---" * (len(classes) + 1) + "|"]
    out += [f"| {name} | {' | '.join(_percent(row['iou'][c]) for c in classes)} |" for name, row in found.items()]
    return out


def _percent(share: float | None) -> str:
    """Nothing of a class without ground truth."""
    return "" if share is None or math.isnan(share) else f"{100 * share:.1f}"


if __name__ == "__main__":
    main()
