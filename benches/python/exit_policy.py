"""The exit policy against the compositions that a user would write: torch + OpenCV, and NumPy + SciPy.

    python benches/python/exit_policy.py [--rounds 7]

One thread each, all contenders interleaved in every round, medians over rounds. Writes benches/record/exit_policy.md.
The OpenCV composition takes its median on uint8 (a rounded confidence: `cv2.medianBlur` has no float32 beyond window
5), so it answers a slightly different question; ours and SciPy's are exact.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from scipy import ndimage

import mess_core

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benches.machine import facts  # noqa: E402

CASES = {"CamVid 11x240x320": (11, 240, 320), "VOC 21x520x520": (21, 520, 520), "ADE 150x512x512": (150, 512, 512)}
OUTPUT_STRIDE, THRESHOLD = 8, 0.9
WINDOW = 4 * OUTPUT_STRIDE + 1
KERNEL = np.ones((OUTPUT_STRIDE, OUTPUT_STRIDE), np.uint8)


def realistic_logits(num_classes: int, height: int, width: int) -> np.ndarray:
    """Smooth regions with soft boundaries, as an output at stride 8 gives after bilinear upsampling."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, num_classes, (5, 7)).astype(np.uint8)
    regions = cv2.resize(ids, (width // 8, height // 8), interpolation=cv2.INTER_NEAREST)
    coarse = rng.normal(0, 1, (num_classes, height // 8, width // 8)).astype(np.float32)
    coarse += 7 * (regions == np.arange(num_classes)[:, None, None])
    full = torch.nn.functional.interpolate(torch.from_numpy(coarse)[None], (height, width), mode="bilinear")[0]
    return np.ascontiguousarray(full.numpy())


def ours(logits: np.ndarray, refine: bool) -> float:
    return mess_core.image_confidence(
        logits, pixel_threshold=THRESHOLD, output_stride=OUTPUT_STRIDE, refine=refine, threads=1
    )


def torch_and_opencv(logits: np.ndarray, refine: bool) -> float:
    confidence, labels = torch.from_numpy(logits).softmax(0).max(0)
    values = confidence.numpy()
    if refine:
        edges = cv2.Canny(labels.numpy().astype(np.uint8), 0, 0)
        mask = cv2.dilate(edges, KERNEL) > 0
        smooth = cv2.medianBlur((values * 255).astype(np.uint8), WINDOW).astype(np.float32) / 255
        values = np.where(mask, smooth, values)
    return float((values >= np.float32(THRESHOLD)).mean())


def numpy_and_scipy(logits: np.ndarray, refine: bool) -> float:
    e = np.exp(logits - logits.max(axis=0))
    values, labels = e.max(axis=0) / e.sum(axis=0), logits.argmax(axis=0).astype(np.uint8)
    if refine:
        mask = cv2.dilate(cv2.Canny(labels, 0, 0), KERNEL) > 0
        values = np.where(mask, ndimage.median_filter(values, WINDOW, mode="nearest"), values)
    return float((values >= np.float32(THRESHOLD)).mean())


CONTENDERS: dict[str, Callable[[np.ndarray, bool], float]] = {
    "mess_core": ours,
    "torch + OpenCV": torch_and_opencv,
    "NumPy + SciPy": numpy_and_scipy,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    lines = [
        f"| case | refine | {' | '.join(CONTENDERS)} | image confidence |",
        "|---|---|" + "---|" * (len(CONTENDERS) + 1),
    ]
    for case, shape in CASES.items():
        logits = realistic_logits(*shape)
        for refine in (False, True):
            times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
            answers = {}
            for index in range(rounds + 1):  # the first warms up
                for name, contender in CONTENDERS.items():
                    if refine and name == "NumPy + SciPy" and index > 2:
                        continue  # seconds each: two rounds are enough to see the order of magnitude
                    start = time.perf_counter()
                    answers[name] = contender(logits, refine)
                    if index:
                        times[name].append(1e3 * (time.perf_counter() - start))
            cells = [f"{median(times[name]):.1f} ms" for name in CONTENDERS]
            said = " / ".join(f"{answers[name]:.4f}" for name in CONTENDERS)
            lines.append(f"| {case} | {'yes' if refine else 'no'} | {' | '.join(cells)} | {said} |")
            print(lines[-1], flush=True)
    known = facts("mess", "numpy", "torch", "opencv-python-headless", "scipy")
    head = [
        "# Exit policy, one thread",
        "",
        f"`python benches/python/exit_policy.py --rounds {rounds}`: medians of {rounds} rounds, interleaved "
        "(NumPy + SciPy with the median: 2 rounds). Output stride 8, window 33, threshold 0.9. "
        "The OpenCV median works on uint8.",
        "",
        *(f"- {key}: {value}" for key, value in known.items()),
        "",
    ]
    path = ROOT / "benches" / "record" / "exit_policy.md"
    path.write_text("\n".join(head + lines) + "\n")
    print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
