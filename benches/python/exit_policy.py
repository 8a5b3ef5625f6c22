"""The exit policy against the compositions that a user would write.

    python benches/python/exit_policy.py [--rounds 5] [--run runs/camvid]

One thread each, all contenders interleaved in every round, medians over rounds. Writes benches/record/exit_policy.md.

Contenders
- torch + OpenCV: softmax(0).max(0), Canny, dilate, medianBlur, compare, mean: the straightforward pipeline;
- tiled NumPy + OpenCV: the strongest composition found: maximum and sum of exponentials class by class on tiles that
  fit into cache, `cv2.exp`, buffers made once; its decision takes the median as a box count of the binary map;
- NumPy + SciPy: whole-array softmax, `scipy.ndimage.median_filter`; exact.
OpenCV's large medians exist for uint8 only, so the first two answer a slightly different question; ours is exact.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torchvision.transforms import v2

import mess_core
from mess_core import _mess_core as native

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benches.machine import facts  # noqa: E402

SIZES = {"VOC": (21, 520, 520), "ADE": (150, 512, 512), "Cityscapes": (19, 1024, 2048)}
THRESHOLD = 0.9
#: name -> (side of the mask's square, side of the median's window)
WINDOWS = {"output stride 8: square 8, window 33": (8, 33), "square 9, window 5": (9, 5)}

Contender = Callable[[], object]


def realistic_logits(num_classes: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth regions with soft boundaries, as an output at stride 8 gives after bilinear upsampling."""
    coarse = torch.from_numpy(coarse_logits(num_classes, height, width, seed))
    full = torch.nn.functional.interpolate(coarse[None], (height, width), mode="bilinear")[0]
    return np.ascontiguousarray(full.numpy())


def coarse_logits(num_classes: int, height: int, width: int, seed: int = 0, stride: int = 8) -> np.ndarray:
    """The output at that stride itself."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, num_classes, (5, 7)).astype(np.uint8)
    regions = cv2.resize(ids, (width // stride, height // stride), interpolation=cv2.INTER_NEAREST)
    coarse = rng.normal(0, 1, (num_classes, height // stride, width // stride)).astype(np.float32)
    return coarse + 7 * (regions == np.arange(num_classes)[:, None, None]).astype(np.float32)


class TorchAndOpenCV:
    """What most people would write."""

    def __init__(self, logits: np.ndarray, square: int, window: int) -> None:
        self.logits = torch.from_numpy(logits)
        self.kernel, self.window = np.ones((square, square), np.uint8), window

    def maps(self) -> np.ndarray:
        return self._maps(self.logits)

    def decide(self) -> float:
        return float((self._maps(self.logits) >= np.float32(THRESHOLD)).mean())

    def upsample_and_decide(self, size: tuple[int, int]) -> float:
        full = torch.nn.functional.interpolate(self.logits[None], size, mode="bilinear")[0]
        return float((self._maps(full) >= np.float32(THRESHOLD)).mean())

    def _maps(self, logits: torch.Tensor) -> np.ndarray:
        confidence, labels = logits.softmax(0).max(0)
        values = confidence.numpy()
        mask = cv2.dilate(cv2.Canny(labels.numpy().astype(np.uint8), 0, 0), self.kernel) > 0
        return np.where(mask, opencv_median(values, self.window), values)


def opencv_median(values: np.ndarray, window: int) -> np.ndarray:
    """float32 up to window 5, where OpenCV has it; else of the values rounded to 8 bits."""
    if window <= 5:
        return cv2.medianBlur(values, window)
    return cv2.medianBlur((values * 255).astype(np.uint8), window).astype(np.float32) / 255


class TiledNumPy:
    """The strongest composition found, with buffers made once."""

    def __init__(self, logits: np.ndarray, square: int, window: int) -> None:
        self.logits, self.window = logits, window
        self.kernel = np.ones((square, square), np.uint8)
        shape = logits.shape[1:]
        self.labels, self.sums = np.empty(shape, np.uint8), np.empty(shape, np.float32)
        self.rows = max(1, 16384 // shape[1])
        tile = (self.rows, shape[1])
        self.top, self.e, self.higher = np.empty(tile, np.float32), np.empty(tile, np.float32), np.empty(tile, bool)

    def _softmax(self) -> None:
        for start in range(0, self.logits.shape[1], self.rows):
            tile = self.logits[:, start : start + self.rows]
            n = tile.shape[1]
            top, e, higher = self.top[:n], self.e[:n], self.higher[:n]
            labels, sums = self.labels[start : start + n], self.sums[start : start + n]
            top[:] = tile[0]
            labels[:] = 0
            for c in range(1, len(tile)):
                np.greater(tile[c], top, out=higher)
                np.maximum(top, tile[c], out=top)
                np.copyto(labels, c, where=higher)
            sums[:] = 0
            for plane in tile:
                np.subtract(plane, top, out=e)
                cv2.exp(e, e)
                np.add(sums, e, out=sums)

    def maps(self) -> np.ndarray:
        self._softmax()
        values = np.divide(np.float32(1), self.sums)
        mask = cv2.dilate(cv2.Canny(self.labels, 0, 0), self.kernel) > 0
        return np.where(mask, opencv_median(values, self.window), values)

    def decide(self) -> float:
        self._softmax()
        passes = (self.sums <= np.float32(1 / THRESHOLD)).view(np.uint8)
        mask = cv2.dilate(cv2.Canny(self.labels, 0, 0), self.kernel)
        box = (self.window, self.window)
        counts = cv2.boxFilter(passes, cv2.CV_16U, box, normalize=False, borderType=cv2.BORDER_REPLICATE)
        refined = counts >= (self.window**2 + 1) // 2
        return float(np.where(mask > 0, refined, passes).mean())


def numpy_and_scipy(logits: np.ndarray, square: int, window: int) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=0))
    values, labels = e.max(axis=0) / e.sum(axis=0), logits.argmax(axis=0).astype(np.uint8)
    mask = cv2.dilate(cv2.Canny(labels, 0, 0), np.ones((square, square), np.uint8)) > 0
    return np.where(mask, ndimage.median_filter(values, window, mode="nearest"), values)


class Ours:
    """mess_core with a workspace and buffers made once."""

    def __init__(self, logits: np.ndarray, square: int, window: int, size: tuple[int, int] | None = None) -> None:
        self.logits, self.square, self.window, self.size = logits, square, window, size
        self.workspace = mess_core.Workspace()
        self.options = {"workspace": self.workspace, "size": size, "threads": 1}
        self.out = mess_core.policy_maps(logits, size=size, threads=1)
        self.edges = np.empty_like(self.out.mask)

    def maps(self) -> np.ndarray:
        confidence, labels, mask, refined = self.out
        mess_core.confidence_map(self.logits, out=(confidence, labels), **self.options)
        mess_core.label_edges(labels, out=self.edges)
        mess_core.dilate(self.edges, self.square, out=mask)
        return mess_core.refine_confidence(confidence, mask, window=self.window, out=refined, threads=1)

    def decide(self) -> float:
        # a square of s and a window of 4 s + 1 belong together here: stride 8, or 1 for window 5
        stride = (self.window - 1) // 4
        return mess_core.image_confidence(self.logits, pixel_threshold=THRESHOLD, output_stride=stride, **self.options)

    def leave(self) -> bool:
        return mess_core.should_exit(
            self.logits, pixel_threshold=THRESHOLD, image_threshold=0.97, output_stride=8, **self.options
        )


def timed(contenders: dict[str, Contender], rounds: int, slow: tuple[str, ...] = ()) -> dict[str, float]:
    """Median milliseconds of each, one call a round, interleaved; `slow` ones take part in two rounds."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for index in range(rounds + 1):  # the first warms up
        for name, contender in contenders.items():
            if name in slow and index > 2:
                continue
            start = time.perf_counter()
            contender()
            if index:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(values) for name, values in times.items()}


def policy_rows(rounds: int) -> Iterator[list[str]]:
    """The whole policy on realistic maps and on noise."""
    yield [
        "case",
        "maps",
        "window",
        "np.max",
        "torch + OpenCV",
        "tiled NumPy: decision / maps",
        "NumPy + SciPy",
        "mess_core: decision / maps",
        "decision: times torch, tiled, np.max",
        "maps: times torch, tiled, SciPy",
    ]
    for name, shape in SIZES.items():
        for kind in ("realistic", "noise"):
            rng = np.random.default_rng(1)
            logits = realistic_logits(*shape) if kind == "realistic" else rng.normal(0, 3, shape).astype(np.float32)
            for label, (square, window) in WINDOWS.items():
                a, b = TorchAndOpenCV(logits, square, window), TiledNumPy(logits, square, window)
                ours = Ours(logits, square, window)
                found = timed(
                    {
                        "max": lambda y=logits: np.max(y),
                        "torch": a.decide,
                        "tiled decision": b.decide,
                        "tiled maps": b.maps,
                        "scipy": lambda y=logits, s=square, w=window: numpy_and_scipy(y, s, w),
                        "decision": ours.decide,
                        "maps": ours.maps,
                    },
                    rounds,
                    slow=("scipy",),
                )
                d, m = found["decision"], found["maps"]
                yield [
                    f"{name} {'x'.join(map(str, shape))}",
                    kind,
                    label.rpartition(" ")[2],
                    f"{found['max']:.2f}",
                    f"{found['torch']:.1f}",
                    f"{found['tiled decision']:.1f} / {found['tiled maps']:.1f}",
                    f"{found['scipy']:.0f}",
                    f"{d:.2f} / {m:.2f}",
                    f"{found['torch'] / d:.1f}, {found['tiled decision'] / d:.1f}, {d / found['max']:.2f}",
                    f"{found['torch'] / m:.1f}, {found['tiled maps'] / m:.1f}, {found['scipy'] / m:.0f}",
                ]


def low_resolution_rows(rounds: int) -> Iterator[list[str]]:
    """From an exit head's own output, 1/8 of the size and other parts."""
    yield [
        "case",
        "maps",
        "torch interpolate + OpenCV",
        "mess_core decision",
        "should_exit at 0.97",
        "maps",
        "times torch",
        "labels: torch interpolate + argmax",
        "label_map",
        "times torch",
    ]
    cases = [(name, shape, 8) for name, shape in SIZES.items()]
    for name, shape, stride in [*cases, *(("VOC", (21, 512, 512), stride) for stride in (2, 4, 16))]:
        size, square, window = shape[1:], stride, 4 * stride + 1
        realistic = coarse_logits(*shape, stride=stride)
        noise = np.random.default_rng(1).normal(0, 2, realistic.shape).astype(np.float32)
        for kind, logits in (("realistic", realistic), ("noise at every node", noise)):
            a, ours = TorchAndOpenCV(logits, square, window), Ours(logits, square, window, size)
            labels = np.empty(size, np.uint8)
            found = timed(
                {
                    "torch": lambda a=a, size=size: a.upsample_and_decide(size),
                    "decision": ours.decide,
                    "leave": ours.leave,
                    "maps": ours.maps,
                    "argmax": lambda y=a.logits, size=size: torch.nn.functional.interpolate(
                        y[None], size, mode="bilinear"
                    ).argmax(1),
                    "labels": lambda y=logits, ours=ours, out=labels: mess_core.label_map(y, out=out, **ours.options),
                },
                rounds,
            )
            yield [
                f"{name} {'x'.join(map(str, logits.shape))} -> {size[0]}x{size[1]}",
                kind,
                f"{found['torch']:.1f}",
                f"{found['decision']:.2f}",
                f"{found['leave']:.2f}",
                f"{found['maps']:.2f}",
                f"{found['torch'] / found['decision']:.1f}",
                f"{found['argmax']:.1f}",
                f"{found['labels']:.2f}",
                f"{found['argmax'] / found['labels']:.1f}",
            ]


def picture_rows(rounds: int) -> Iterator[list[str]]:
    """From a picture to what a network is fed, 256 x 320: resized with antialiasing, normalised, channels first."""
    yield [
        "picture",
        "torchvision",
        "Pillow + NumPy",
        "OpenCV (area) + NumPy",
        "mess_core",
        "times torchvision, Pillow",
    ]
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    size = (256, 320)
    transform = v2.Compose(
        [
            v2.Resize(size, antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean.tolist(), std.tolist()),
        ]
    )

    def normalised(resized: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(((resized / np.float32(255) - mean) / std).transpose(2, 0, 1))

    for shape in ((256, 320), (360, 480), (720, 1280), (1080, 1920)):
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        found = timed(
            {
                "torchvision": lambda y=image: transform(torch.from_numpy(y).permute(2, 0, 1)),
                "pillow": lambda y=image: normalised(
                    np.asarray(Image.fromarray(y).resize(size[::-1], Image.Resampling.BILINEAR))
                ),
                "opencv": lambda y=image: normalised(cv2.resize(y, size[::-1], interpolation=cv2.INTER_AREA)),
                "ours": lambda y=image: mess_core.network_input(y, mean=mean, std=std, size=size),
            },
            3 * rounds,
        )
        yield [
            f"{shape[0]} x {shape[1]}",
            *(f"{found[name]:.2f}" for name in ("torchvision", "pillow", "opencv", "ours")),
            f"{found['torchvision'] / found['ours']:.1f}, {found['pillow'] / found['ours']:.1f}",
        ]


def kernel_rows(rounds: int) -> Iterator[list[str]]:
    """Single steps on VOC-sized maps."""
    yield ["step", "OpenCV", "mess_core", "times OpenCV"]
    out = mess_core.policy_maps(realistic_logits(*SIZES["VOC"]))
    noise = np.random.default_rng(2).integers(0, 21, out.labels.shape, dtype=np.uint8)
    grey = np.random.default_rng(3).integers(0, 256, out.labels.shape, dtype=np.uint8)
    mask = np.empty_like(out.mask)
    bits = mess_core.label_edges(out.labels)
    everywhere, refined = np.ones_like(mask), np.empty_like(out.refined)
    eight_bits = (out.confidence * 255).astype(np.uint8)
    steps: dict[str, tuple[Contender, Contender]] = {
        "Canny, label map": (
            lambda: cv2.Canny(out.labels, 0, 0),
            lambda: mess_core.canny(out.labels, 0, 0, out=mask),
        ),
        "Canny, labels of noise": (lambda: cv2.Canny(noise, 0, 0), lambda: mess_core.canny(noise, 0, 0, out=mask)),
        "Canny 100/200, grey noise": (
            lambda: cv2.Canny(grey, 100, 200),
            lambda: mess_core.canny(grey, 100, 200, out=mask),
        ),
    }
    for side in (3, 9, 17, 33):
        kernel = np.ones((side, side), np.uint8)
        steps[f"dilate {side}"] = (
            lambda k=kernel: cv2.dilate(bits.view(np.uint8), k, dst=mask.view(np.uint8)),
            lambda side=side: mess_core.dilate(bits, side, out=mask),
        )
    steps["median 5, float32, every pixel"] = (
        lambda: cv2.medianBlur(out.confidence, 5),
        lambda: mess_core.refine_confidence(out.confidence, everywhere, window=5, out=refined, threads=1),
    )
    for window in (9, 33, 65, 129):
        share = f"{out.mask.mean():.0%} of pixels"
        steps[f"median {window}: OpenCV uint8, every pixel; ours float32, {share}"] = (
            lambda w=window: cv2.medianBlur(eight_bits, w),
            lambda w=window: mess_core.refine_confidence(out.confidence, out.mask, window=w, out=refined, threads=1),
        )
    for name, (theirs, ours) in steps.items():
        found = timed({"theirs": theirs, "ours": ours}, 3 * rounds)
        ratio = found["theirs"] / found["ours"]
        yield [name, f"{found['theirs']:.3f}", f"{found['ours']:.3f}", f"{ratio:.2f}"]


def input_rows(rounds: int) -> Iterator[list[str]]:
    """Instruction sets, element types, layouts."""
    yield ["case", "input", "decision", "maps"]
    for name in ("VOC", "ADE"):
        logits = realistic_logits(*SIZES[name])
        for level in native.instruction_sets():
            with instruction_set(level):
                ours = Ours(logits, 8, 33)
                found = timed({"decision": ours.decide, "maps": ours.maps}, rounds)
            yield [name, f"float32, {level}", f"{found['decision']:.2f}", f"{found['maps']:.2f}"]
        last = np.moveaxis(np.ascontiguousarray(np.moveaxis(logits, 0, -1)), -1, 0)
        inputs = {
            "float32, channels last": last,
            "float16": logits.astype(np.float16),
            "bfloat16 (torch)": torch.from_numpy(logits).to(torch.bfloat16),
            "float64": logits.astype(np.float64),
            "float32, a crop": np.pad(logits, ((0, 0), (1, 1), (1, 1)))[:, 1:-1, 1:-1],
        }
        for label, value in inputs.items():
            ours = Ours(value, 8, 33)
            found = timed({"decision": ours.decide, "maps": ours.maps}, rounds)
            yield [name, label, f"{found['decision']:.2f}", f"{found['maps']:.2f}"]


@contextmanager
def instruction_set(level: str) -> Iterator[None]:
    before = native.instruction_set()
    native.set_instruction_set(level)
    try:
        yield
    finally:
        native.set_instruction_set(before)


def other_rows(rounds: int) -> Iterator[list[str]]:
    """Threads and the cost of calling."""
    yield ["what", "result"]
    batch = np.stack([realistic_logits(21, 260, 260, seed) for seed in range(16)])
    workspace = mess_core.Workspace()
    found = timed(
        {
            str(n): lambda n=n: mess_core.image_confidence(
                batch, pixel_threshold=THRESHOLD, threads=n, workspace=workspace
            )
            for n in (1, 2)
        },
        5 * rounds,
    )
    yield ["batch of 16 x 21x260x260, 1 thread / 2 threads", f"{found['1']:.2f} / {found['2']:.2f} ms"]
    yield ["speed-up", f"{found['1'] / found['2']:.2f}"]
    small = np.zeros((2, 4, 4), np.float32)
    for name, call in {
        "image_confidence": lambda: mess_core.image_confidence(small, pixel_threshold=0.9, workspace=workspace),
        "should_exit": lambda: mess_core.should_exit(
            small, pixel_threshold=0.9, image_threshold=0.5, workspace=workspace
        ),
    }.items():
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            for _ in range(5000):
                call()
            times.append((time.perf_counter() - start) / 5000 * 1e6)
        yield [f"{name} of a 2x4x4 picture, from Python", f"{median(times):.2f} us"]


def real_rows(rounds: int, run: Path) -> Iterator[list[str]]:
    """Logits of a trained network's exits on real images."""
    from mess import runs

    network = runs.trained_network(run).eval()
    settings = runs.RunSettings.load(run)
    images = [runs.loader(settings, split="val").example(index)[0] for index in (0, 40)]
    exits = network.plain_exits
    yield ["exit", "logits", "image confidence, ours", "torch + OpenCV", "levels agree", "ours ms", "torch ms"]
    for exit_id in exits:
        stride = network.points[exit_id.point].output_stride
        with torch.inference_mode():
            for image in images:
                _, features = network.features(image[None])
                logits = np.ascontiguousarray(network.head(exit_id)(features[exit_id.point])[0].numpy())
                size = tuple(image.shape[-2:])
                theirs = TorchAndOpenCV(logits, stride, 4 * stride + 1)
                options = {"pixel_threshold": THRESHOLD, "output_stride": stride, "size": size, "threads": 1}
                values = set()
                for level in native.instruction_sets():
                    with instruction_set(level):
                        values.add(mess_core.image_confidence(logits, **options))
                maps = mess_core.policy_maps(logits, output_stride=stride, size=size)
                values.add(float((maps.refined >= np.float32(THRESHOLD)).mean()))
                found = timed(
                    {
                        "ours": lambda y=logits, o=options: mess_core.image_confidence(y, **o),
                        "theirs": lambda t=theirs, s=size: t.upsample_and_decide(s),
                    },
                    rounds,
                )
                yield [
                    f"{exit_id.point}:{exit_id.head.name}",
                    "x".join(map(str, logits.shape)),
                    f"{min(values):.5f}",
                    f"{theirs.upsample_and_decide(size):.5f}",
                    "yes" if len(values) == 1 else "NO",
                    f"{found['ours']:.3f}",
                    f"{found['theirs']:.3f}",
                ]


def table(rows: Iterator[list[str]]) -> list[str]:
    lines = []
    for index, row in enumerate(rows):
        lines.append(f"| {' | '.join(row)} |")
        if index == 0:
            lines.append("|" + "---|" * len(row))
        print(lines[0] if index == 0 else lines[-1], flush=True)
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run", type=Path, help="a finished run folder: adds logits of its exits")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    known = facts("mess", "numpy", "torch", "opencv-python-headless", "scipy")
    known["instruction set"] = native.instruction_set()
    lines = [
        "# Exit policy, one thread",
        "",
        f"`python benches/python/exit_policy.py {' '.join(sys.argv[1:])}`: medians of {rounds} rounds in milliseconds, "
        "contenders interleaved (NumPy + SciPy: 2 rounds). Pixel threshold 0.9. Who is who: the script's first lines.",
        "",
        *(f"- {key}: {value}" for key, value in known.items()),
        "",
        "## The whole policy, from full-size logits",
        "",
        *table(policy_rows(rounds)),
        "## From the head's own output, at its output stride",
        "",
        *table(low_resolution_rows(rounds)),
        "## From a picture to a network's input, 256 x 320",
        "",
        *table(picture_rows(rounds)),
        "## Single steps, 520 x 520",
        "",
        *table(kernel_rows(rounds)),
        "## Instruction sets and inputs, realistic maps, output stride 8",
        "",
        *table(input_rows(rounds)),
        "## Threads and calling",
        "",
        *table(other_rows(rounds)),
    ]
    if arguments.run:
        lines += ["## A trained network's exits on real images", "", *table(real_rows(rounds, arguments.run))]
    path = ROOT / "benches" / "record" / "exit_policy.md"
    path.write_text("\n".join(lines).rstrip() + "\n")
    print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
