"""The exit policy as literal NumPy: loops, no shortcuts, nothing shared with the package. Slow; for small inputs."""

from __future__ import annotations

import numpy as np

TAN_22_5 = 13573
SOBEL = {3: ([1, 2, 1], [-1, 0, 1]), 5: ([1, 4, 6, 4, 1], [-1, -2, 0, 2, 1])}
SOBEL[7] = ([1, 6, 15, 20, 15, 6, 1], [-1, -4, -5, 0, 5, 4, 1])


def confidence_map(logits: np.ndarray, kind: str = "top1") -> tuple[np.ndarray, np.ndarray]:
    """(C, H, W) -> confidence (H, W) in float64, labels (H, W)."""
    labels = logits.argmax(axis=0)
    y = logits.astype(np.float64)
    with np.errstate(over="ignore"):
        p = np.exp(y - y.max(axis=0))
    p /= p.sum(axis=0)
    if kind == "top1":
        return p.max(axis=0), labels
    if len(p) == 1:
        return np.ones(labels.shape), labels
    if kind == "margin":
        ordered = np.sort(p, axis=0)
        return ordered[-1] - ordered[-2], labels
    entropy = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(axis=0)
    return 1 - entropy / np.log(len(p)), labels


def interpolate(logits: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Bilinear, as PyTorch defines it, in float64; pixel by pixel."""
    num_classes, height, width = logits.shape

    def place(index: int, output: int, given: int) -> tuple[int, int, float]:
        if align_corners:
            position = index * (given - 1) / (output - 1) if output > 1 else 0.0
        else:
            position = max(0.0, (index + 0.5) * given / output - 0.5)
        low = min(int(position), given - 1)
        return low, min(low + 1, given - 1), position - low

    out = np.zeros((num_classes, *size))
    for i in range(size[0]):
        top, bottom, a = place(i, size[0], height)
        for j in range(size[1]):
            left, right, b = place(j, size[1], width)
            y = logits.astype(np.float64)
            upper = y[:, top, left] * (1 - b) + y[:, top, right] * b
            lower = y[:, bottom, left] * (1 - b) + y[:, bottom, right] * b
            out[:, i, j] = upper * (1 - a) + lower * a
    return out


def canny(image: np.ndarray, low: float, high: float, aperture: int = 3, l2: bool = False) -> np.ndarray:
    """OpenCV's Canny, step by step."""
    height, width = image.shape
    smooth, derive = SOBEL[aperture]
    r = aperture // 2
    dx, dy = np.zeros((height, width), int), np.zeros((height, width), int)
    for i in range(height):
        for j in range(width):
            for a in range(aperture):
                for b in range(aperture):
                    y, x = min(max(i + a - r, 0), height - 1), min(max(j + b - r, 0), width - 1)
                    dx[i, j] += smooth[a] * derive[b] * int(image[y, x])
                    dy[i, j] += derive[a] * smooth[b] * int(image[y, x])
    if aperture == 7:
        dx, dy = np.rint(dx / 16).astype(int), np.rint(dy / 16).astype(int)
        low, high = low / 16, high / 16
    low, high = min(low, high), max(low, high)
    if l2:
        low, high = (t * t if t > 0 else t for t in (min(low, 32767), min(high, 32767)))
    low, high = np.floor(low), np.floor(high)
    size = dx * dx + dy * dy if l2 else abs(dx) + abs(dy)
    m = np.pad(size, 1)
    candidate, strong = np.zeros((height, width), bool), []
    for i in range(height):
        for j in range(width):
            here, (x, y) = size[i, j], (dx[i, j], dy[i, j])
            if not here > low:
                continue
            flat, steep = abs(x) * TAN_22_5, abs(y) << 15
            if steep < flat:
                peak = here > m[i + 1, j] and here >= m[i + 1, j + 2]
            elif steep > flat + (abs(x) << 16):
                peak = here > m[i, j + 1] and here >= m[i + 2, j + 1]
            else:
                s = -1 if (x < 0) != (y < 0) else 1
                peak = here > m[i, j + 1 - s] and here > m[i + 2, j + 1 + s]
            candidate[i, j] = peak
            if peak and here > high:
                strong.append((i, j))
    edges = np.zeros((height, width), bool)
    while strong:
        i, j = strong.pop()
        if not (0 <= i < height and 0 <= j < width) or edges[i, j] or not candidate[i, j]:
            continue
        edges[i, j] = True
        strong += [(i + a, j + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
    return edges


def label_edges(labels: np.ndarray, edges: str = "canny") -> np.ndarray:
    """Boundaries of a label map."""
    if edges == "canny":
        return canny(labels, 0, 0)
    found = np.zeros(labels.shape, bool)
    height, width = labels.shape
    for i in range(height):
        for j in range(width):
            for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                if 0 <= i + a < height and 0 <= j + b < width:
                    found[i, j] |= labels[i, j] != labels[i + a, j + b]
    return found


def dilate(mask: np.ndarray, size: int) -> np.ndarray:
    """Any true pixel under the square, OpenCV's anchor, nothing outside the picture."""
    out = np.zeros(mask.shape, bool)
    for i in range(mask.shape[0]):
        for j in range(mask.shape[1]):
            rows = slice(max(i - size // 2, 0), i + size - size // 2)
            columns = slice(max(j - size // 2, 0), j + size - size // 2)
            out[i, j] = mask[rows, columns].any()
    return out


def erode(mask: np.ndarray, size: int) -> np.ndarray:
    """All pixels under the square true."""
    out = np.zeros(mask.shape, bool)
    for i in range(mask.shape[0]):
        for j in range(mask.shape[1]):
            rows = slice(max(i - size // 2, 0), i + size - size // 2)
            columns = slice(max(j - size // 2, 0), j + size - size // 2)
            out[i, j] = mask[rows, columns].all()
    return out


def refine_confidence(confidence: np.ndarray, mask: np.ndarray, window: int) -> np.ndarray:
    """Median of the replicated window where the mask is true."""
    out = confidence.copy()
    if not mask.any():
        return out
    r = window // 2
    padded = np.pad(confidence, r, mode="edge")
    for i, j in zip(*np.nonzero(mask), strict=True):
        values = padded[i : i + window, j : j + window].ravel()
        out[i, j] = sorted(values, key=lambda v: (not np.isnan(v), v))[window * window // 2]  # NaN lowest
    return out


def image_confidence_from_map(
    confidence: np.ndarray, labels: np.ndarray, pixel_threshold: float, output_stride: int, refine: bool, edges: str
) -> float:
    """Refine, compare, average."""
    if refine:
        mask = dilate(label_edges(labels, edges), output_stride)
        confidence = refine_confidence(confidence, mask, 4 * output_stride + 1)
    return float((confidence >= np.float32(pixel_threshold)).mean())
