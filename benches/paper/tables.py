"""The paper's tables on CamVid: train, measure, print; with --record also to benches/record/paper.md.

Call it again after a kill: everything that is finished is kept. Run it on a quiet machine from `--steps measure` on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benches.paper.jobs import Plan, train_all  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="such as camvid:PATH")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of MobileNetV2's features")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("H", "W"))
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--exit-epochs", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--exit-learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--steps", nargs="+", default=("train",), choices=("train",))
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
    for seed in arguments.seeds:
        train_all(plan, seed)


if __name__ == "__main__":
    main()
