"""Does a watch see images leave what was calibrated on? Test pictures, growing darker, more blurred and noisier.

    python benches/python/drift.py RUN --configuration drop-1pp --record

Every strength has a fresh watch over all pictures of the split, in shuffled order (neighbours of a video are alike).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

import mess
from mess import runs, verbs
from mess.runtime import Watch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benches.machine import facts  # noqa: E402
from benches.pictures import resized  # noqa: E402

Picture = npt.NDArray[np.uint8]


def darker(picture: Picture, light: float, rng: np.random.Generator) -> Picture:
    return np.rint(picture * light).astype(np.uint8)


def blurred(picture: Picture, sigma: float, rng: np.random.Generator) -> Picture:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), dtype=np.uint8)


def noisier(picture: Picture, sigma: float, rng: np.random.Generator) -> Picture:
    return np.clip(np.rint(picture + rng.normal(0, sigma, picture.shape)), 0, 255).astype(np.uint8)


CHANGES: tuple[tuple[str, Callable[[Picture, float, np.random.Generator], Picture], tuple[float, ...]], ...] = (
    ("light (share)", darker, (0.8, 0.6, 0.4, 0.2)),
    ("blur (sigma, pixels)", blurred, (0.5, 1.0, 2.0, 3.0)),
    ("noise (sigma, of 255)", noisier, (5, 10, 20, 40)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--configuration", default="drop-1pp", help="name in the run; it needs a gate")
    parser.add_argument("--split", default="test")
    parser.add_argument("--false-alarm", type=float, default=0.01)
    parser.add_argument("--record", action="store_true", help="write benches/record/drift.md")
    arguments = parser.parse_args()
    settings = runs.RunSettings.load(arguments.run)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        net = Path(folder) / "net"
        verbs.export_run(arguments.run, configuration=arguments.configuration, out=net)
        runtime = mess.Runtime(net)
        splits = ("val", arguments.split)
        pictures = {split: loaded(settings, split) for split in splits}
        for split in splits:
            lines.append(row(runtime, arguments, f"{split}, unchanged", pictures[split]))
            print(lines[-1], flush=True)
        for name, change, strengths in CHANGES:
            for strength in strengths:
                rng = np.random.default_rng(0)
                changed = [(change(picture, strength, rng), labels) for picture, labels in pictures[arguments.split]]
                lines.append(row(runtime, arguments, f"{name} {strength:g}", changed))
                print(lines[-1], flush=True)
        exits = ", ".join(entry.name for entry in runtime.manifest.exits)
    data = settings.data.partition(":")[0]
    out = [
        "# Images that leave what was calibrated on",
        "",
        "```text",
        f"python benches/python/drift.py {' '.join(sys.argv[1:])}",
        "```",
        "",
        *(f"- {key}: {value}" for key, value in facts("numpy", "onnxruntime").items()),
        f"- {settings.model} on {data}, calibrated on val; {arguments.configuration}: {exits}",
        f"- alarm: image at which the watch says so, false alarm rate {arguments.false_alarm:g}",
        "- mIoU: of the deployment, and of its final exit for every image (what fall-back gives)",
        "",
        "| pictures | images | alarm at | most wealth | PSI, confidence | PSI, exits | early | mIoU | final exit |",
        "|---" * 9 + "|",
        *lines,
    ]
    if arguments.record:
        (ROOT / "benches" / "record" / "drift.md").write_text("\n".join(out) + "\n")


def loaded(settings: runs.RunSettings, split: str) -> list[tuple[Picture, npt.NDArray[np.integer]]]:
    """Pictures at the network's size, and labels at theirs."""
    data = runs.dataset(settings, split=split)
    pairs = [data.pair(i) for i in range(len(data))]
    return [(resized(picture, settings.size), labels) for picture, labels in pairs]


def row(
    runtime: mess.Runtime,
    arguments: argparse.Namespace,
    name: str,
    pairs: list[tuple[Picture, npt.NDArray[np.integer]]],
) -> str:
    watch = Watch(runtime, false_alarm=arguments.false_alarm)
    never = [None if e.image_threshold is None else np.inf for e in runtime.manifest.exits]
    classes = len(runtime.manifest.classes)
    confusion = np.zeros((2, classes, classes), dtype=np.int64)
    for i in np.random.default_rng(0).permutation(len(pairs)):
        picture, labels = pairs[i]
        for which, result in enumerate((watch.predict(picture), runtime.predict(picture, image_thresholds=never))):
            predicted = cv2.resize(
                result.labels.astype(np.uint8), labels.shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT
            )
            valid = labels != 255
            pairs_of = labels[valid].astype(np.int64) * classes + predicted[valid]
            confusion[which] += np.bincount(pairs_of, minlength=classes**2).reshape(classes, classes)
    report = watch.report()
    hit = np.einsum("wcc->wc", confusion)
    union = confusion.sum(1) + confusion.sum(2) - hit
    iou = np.where(confusion.sum(2) > 0, hit / np.maximum(union, 1), np.nan)
    accuracy = np.nanmean(iou, axis=1)
    return (
        f"| {name} | {report.images} | {report.alarmed_at or 'none'} | {report.most_wealth:.3g} | "
        f"{report.psi_confidence:.2f} | {report.psi_exits:.2f} | {1 - report.shares[-1]:.0%} | {accuracy[0]:.1%} | "
        f"{accuracy[1]:.1%} |"
    )


if __name__ == "__main__":
    main()
