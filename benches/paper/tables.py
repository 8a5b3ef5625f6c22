"""The paper's tables on CamVid: train, measure, print; with --record also to benches/record/paper.md.

Call it again after a kill: everything that is finished is kept. `--steps train` first and the rest on a quiet machine,
where clocks are to be believed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benches.machine import facts  # noqa: E402
from benches.paper.jobs import STAGE_2, Plan, accuracies, train_all  # noqa: E402
from benches.paper.measure import DROPS, MAX_DROP_OF_POLICIES, measure  # noqa: E402
from benches.paper.policies import POLICIES  # noqa: E402

Seeds = list[dict[str, Any]]
"""What `measure` returned, by seed."""

ROWS = {
    "best-at-1x": "best mIoU at <= 1x",
    "drop-0.1pp": "least MACs at <= 0.1 pp",
    "drop-1pp": "least MACs at <= 1 pp",
    "drop-1pp-latency_ms": "least latency at <= 1 pp",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="such as camvid:PATH")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of MobileNetV2's features")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("H", "W"))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--exit-epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--exit-learning-rate", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--steps", nargs="+", default=("train", "measure"), choices=("train", "measure"))
    parser.add_argument("--trained-at", help="commit that trained, where it is not the one that measures")
    parser.add_argument("--record", action="store_true", help="write benches/record/paper.md")
    arguments = parser.parse_args()
    plan = Plan(
        data=arguments.data,
        weights=arguments.weights,
        size=tuple(arguments.size),
        epochs=arguments.epochs,
        exit_epochs=arguments.exit_epochs,
        learning_rate=arguments.learning_rate,
        exit_learning_rate=arguments.exit_learning_rate,
        out=arguments.out,
    )
    if "train" in arguments.steps:
        for seed in arguments.seeds:
            train_all(plan, seed)
    if "measure" in arguments.steps:
        found = [measure(plan, seed) for seed in arguments.seeds]
        text = "\n".join(report(plan, arguments, found)) + "\n"
        print(text)
        if arguments.record:
            (ROOT / "benches" / "record" / "paper.md").write_text(text)


def report(plan: Plan, arguments: argparse.Namespace, found: Seeds) -> list[str]:
    """The record as Markdown; numbers are means over seeds, with the least and the greatest where they differ."""
    seeds = arguments.seeds
    machine = facts("torch", "torchvision", "numpy")
    if arguments.trained_at:
        machine["commit"] += f" (trained at {arguments.trained_at})"
    return [
        f"# The paper's tables: mobilenet_v2_fcn:8 on CamVid, {plan.size[0]} x {plan.size[1]}",
        "",
        "```text",
        f"python benches/paper/tables.py --data camvid:$MESS_DATA/camvid \\\n    --weights $MESS_DATA/weights/"
        f"{plan.weights.name} \\\n    --size {plan.size[0]} {plan.size[1]} --epochs {plan.epochs} "
        f"--exit-epochs {plan.exit_epochs} --learning-rate {plan.learning_rate:g} "
        f"--exit-learning-rate {plan.exit_learning_rate:g} \\\n    --seeds {' '.join(map(str, seeds))} --record",
        "```",
        "",
        *(f"- {key}: {value}" for key, value in machine.items()),
        f"- seeds: {len(seeds)}; a cell is the mean over them [least, greatest]",
        "- chosen on val (101 images), reported on test (233 images)",
        f"- reduced: {plan.epochs} epochs on {plan.size[0]} x {plan.size[1]} pixels on two CPU cores, from ImageNet "
        "weights; the paper trains on COCO and VOC on GPUs",
        "",
        "## 1. Stage 1: plain against exit-aware training",
        "",
        "mIoU on test (%). The early exits' plain heads (`fcn-r1-b0`) are newly initialised and trained on the frozen",
        "backbone with cross-entropy in both rows.",
        "",
        *accuracy_table(plan, seeds, {"plain": "plain-ce", "exit-aware (round robin)": "aware-ce"}),
        "",
        "## 2. Stage 2: end to end against a frozen backbone",
        "",
        "mIoU on test (%). End to end: all exits and the backbone at once, nothing after it. The others: new plain",
        "heads on the frozen backbone of exit-aware training.",
        "",
        *accuracy_table(
            plan, seeds, {"end to end": "all", **{f"frozen, {loss}": f"aware-{loss}" for _, loss in STAGE_2[1:]}}
        ),
        "",
        "## 3. Searched configurations",
        "",
        *end_to_end(found),
        "",
        "## 4. Searched exits against simpler choices",
        "",
        "MACs as a share of the final exit's, change of mIoU in percentage points. Uniform: exits that divide the",
        "backbone evenly, the same head at each, thresholds free (the best head and number of exits).",
        "",
        *placements(found),
        "",
        "## 5. Exit policies",
        "",
        f"Plain heads (aware-ce), at most 3 exits, least MACs at <= {100 * MAX_DROP_OF_POLICIES:g} pp on val. Area: "
        "under the ROC curve of",
        '"this exit is as good as the final one" (pixel accuracy of the image), mean over the exits, on test, at the',
        "pixel threshold that is best on val. Agreement does not pay for the exit before, which it needs.",
        "",
        *policies(found),
    ]


def accuracy_table(plan: Plan, seeds: Iterable[int], jobs: dict[str, str]) -> list[str]:
    columns = [accuracies(plan, seed, next(iter(jobs.values())))["test"] for seed in seeds]
    names = [*(f"exit {i}" for i in range(len(columns[0]) - 1)), "final"]
    out = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for name, job in jobs.items():
        values = [accuracies(plan, seed, job)["test"] for seed in seeds]
        cells = [spread([100 * row[i] for row in values], "{:.1f}") for i in range(len(names))]
        out.append(f"| {name} | {' | '.join(cells)} |")
    return out


def end_to_end(found: Seeds) -> list[str]:
    runs = [seed["end to end"] for seed in found]
    whole = [run["original"] for run in runs]
    iou = spread([100 * row["mean_iou"] for row in whole], "{:.2f}")
    out = [
        f"The clock: {runs[0]['clock_images']} test images one by one, plain model and deployed network interleaved, "
        f"{found[0]['threads']} threads.",
        "",
        "| | mIoU | change, pp | GMACs | fewer MACs | less time | images leaving early |",
        "|---|---|---|---|---|---|---|",
        f"| the network itself | {iou} | | {whole[0]['macs'] / 1e9:.2f} | 1 | 1 | |",
    ]
    for key, name in ROWS.items():
        rows = [run["configurations"][key] for run in runs if key in run["configurations"]]
        if len(rows) < len(runs):
            out.append(f"| {name} | none found by {len(runs) - len(rows)} seeds | | | | | |")
            continue
        pairs = list(zip(rows, whole, strict=True))
        cells = [
            spread([100 * row["mean_iou"] for row in rows], "{:.2f}"),
            spread([100 * (row["mean_iou"] - base["mean_iou"]) for row, base in pairs], "{:+.2f}"),
            spread([row["macs"] / 1e9 for row in rows], "{:.2f}"),
            spread([base["macs"] / row["macs"] for row, base in pairs], "{:.2f}x"),
            spread([row["clock"]["plain_ms"] / row["clock"]["deployed_ms"] for row in rows], "{:.2f}x"),
            spread([100 * sum(row["shares"][:-1]) for row in rows], "{:.0f} %"),
        ]
        out.append(f"| {name} | {' | '.join(cells)} |")
    return out


def placements(found: Seeds) -> list[str]:
    out = ["| on val | choice | MACs, val | MACs, test | change, test | MACs / searched, val |", "|---" * 6 + "|"]
    for drop in DROPS:
        seeds = [seed["placement"][drop] for seed in found]
        for choice in ("searched", "uniform", "single exit", "greedy"):
            rows = [seed[choice] for seed in seeds if choice in seed]
            if len(rows) < len(seeds):
                out.append(f"| {drop} | {choice} | none found by {len(seeds) - len(rows)} seeds | | | |")
                continue
            ratio = [row["cost_val"] / seed["searched"]["cost_val"] for row, seed in zip(rows, seeds, strict=True)]
            out.append(
                f"| {drop} | {choice} | {column(rows, 'cost_val', '{:.1%}')} | {column(rows, 'cost_test', '{:.1%}')} | "
                f"{column(rows, 'change_test', '{:+.2f}', 100)} | {spread(ratio, '{:.2f}x')} |"
            )
    return out


def policies(found: Seeds) -> list[str]:
    out = ["| policy | MACs, val | MACs, test | change, test | area |", "|---" * 5 + "|"]
    for policy in POLICIES:
        rows = [seed["policies"][policy] for seed in found]
        out.append(
            f"| {policy} | {column(rows, 'cost_val', '{:.1%}')} | {column(rows, 'cost_test', '{:.1%}')} | "
            f"{column(rows, 'change_test', '{:+.2f}', 100)} | {column(rows, 'area', '{:.3f}')} |"
        )
    return out


def column(rows: Seeds, key: str, form: str, factor: float = 1) -> str:
    return spread([factor * row[key] for row in rows], form)


def spread(values: list[float], form: str) -> str:
    """Mean, and least and greatest of several."""
    show: Callable[[float], str] = form.format
    if len(values) == 1 or show(min(values)) == show(max(values)):
        return show(mean(values))
    return f"{show(mean(values))} [{show(min(values))}, {show(max(values))}]"


if __name__ == "__main__":
    main()
