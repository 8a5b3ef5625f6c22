"""What is fuzzed. A target takes bytes and must return: an error that readers raise for bad files is caught, any other
exception, a wrong value or a hang is a finding."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from benches.python.guarantee import as_calibration_table
from benches.python.search_table import synthetic_table

import mess
import mess_core
from mess import runs
from mess.deployment.pretrained import Pretrained
from mess.runtime import Manifest, Watch
from mess.searching.sweep import wishes
from mess.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from tests.oracles import confidence as oracle

REFUSALS = (ValueError, FileNotFoundError)
"""What a reader may raise: a file that is not what it should be, or is not there."""

WORK = Path(tempfile.mkdtemp(prefix="mess-fuzz-"))


def _safetensors(whole: bytes, data: bytes) -> bytes:
    """`data` as a file (even first byte), or as the header in front of the tensors of `whole`."""
    if not data or data[0] % 2 == 0:
        return data[1:]
    length = int.from_bytes(whole[:8], "little")
    return len(data[1:]).to_bytes(8, "little") + data[1:] + whole[8 + length :]


def _header(whole: bytes) -> bytes:
    return whole[8 : 8 + int.from_bytes(whole[:8], "little")]


def _table() -> tuple[mess.CalibrationTable, bytes]:
    table = as_calibration_table(synthetic_table(images=3, classes=2, points=2, heads=1, pixels=1), "val")
    path = WORK / "whole-table.safetensors"
    table.save(path)
    return table, path.read_bytes()


TABLE, TABLE_BYTES = _table()
CONFIGURATION = mess.search(TABLE, max_drop=0.5, required_exits=["0:head-0", "final"]).best


def table(data: bytes) -> None:
    """A calibration table; what loads can be searched."""
    path = WORK / "table.safetensors"
    path.write_bytes(_safetensors(TABLE_BYTES, data))
    try:
        read = mess.CalibrationTable.load(path)
        read.validate()
        mess.search(read, max_drop=0.01, max_exits=2, time_limit=1, threads=1)
    except REFUSALS:
        return


def configuration(data: bytes) -> None:
    """A configuration; what loads can be evaluated or does not fit."""
    path = WORK / "configuration.json"
    path.write_bytes(data)
    try:
        read = mess.Configuration.load(path)
        assert mess.Configuration.from_json(json.loads(json.dumps(read.to_json()))) == read
        mess.evaluate(read, TABLE)
    except REFUSALS:
        return


def _manifest() -> bytes:
    import hashlib

    for name in ("stage-0.onnx", "stage-1.onnx", "head-0.onnx"):
        (WORK / name).write_bytes(b"x")
    facts = {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}
    gate = {"pixel_threshold": 0.9, "image_threshold": 0.8, "head": "head-0.onnx", "output_stride": 8}
    last = {"pixel_threshold": None, "image_threshold": None, "head": None, "output_stride": 1}
    first = {"name": "0:head-0", "stage": "stage-0.onnx", "inputs": ["images"], "outputs": ["a"], "feature": "a"}
    final = {"name": "final", "stage": "stage-1.onnx", "inputs": ["a"], "outputs": ["b"], "feature": "b"}
    value = {
        "format": "mess deployment",
        "version": 1,
        "setting": "input-dependent",
        "classes": ["a", "b"],
        "palette": [[0, 0, 0], [255, 0, 0]],
        "input": {"size": [8, 8], "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
        "policy": {"refine": True, "edges": "canny", "confidence": "top1"},
        "exits": [{**first, "carried": [["a", True]], **gate}, {**final, "carried": [], **last}],
        "promise": dict(CONFIGURATION.promise),
        "facts": {},
        "files": dict.fromkeys(("stage-0.onnx", "stage-1.onnx", "head-0.onnx"), facts),
    }
    return json.dumps(value).encode()


MANIFEST_BYTES = _manifest()


def manifest(data: bytes) -> None:
    """A deployment's manifest; what loads says what it read, and may be watched."""
    (WORK / "manifest.json").write_bytes(data)
    try:
        read = Manifest.load(WORK)
        assert read.to_json() == Manifest._from_json(json.loads(json.dumps(read.to_json()))).to_json()
        Watch(SimpleNamespace(manifest=read)).report()  # type: ignore[arg-type]
    except REFUSALS:
        return


class _Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 2, 1)


def _checkpoint() -> bytes:
    path = WORK / "whole-checkpoint.safetensors"
    net = _Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net.layer(torch.zeros(1, 1, 2, 2)).sum().backward()
    optimizer.step()
    progress = Progress(stage="exits", settings={"epochs": 1}, losses=({"0": 1.0},), running={"0": (1.0, 1)})
    save_checkpoint(path, net, optimizer, progress)
    return path.read_bytes()


CHECKPOINT_BYTES = _checkpoint()


def checkpoint(data: bytes) -> None:
    """A checkpoint; what is refused changes nothing."""
    path = WORK / "checkpoint.safetensors"
    path.write_bytes(_safetensors(CHECKPOINT_BYTES, data))
    net = _Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    try:
        load_checkpoint(path, net, torch.optim.AdamW(net.parameters()))
    except REFUSALS:
        assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def run_settings(data: bytes) -> None:
    """A run folder's settings."""
    (WORK / "run").mkdir(exist_ok=True)
    (WORK / "run" / "run.json").write_bytes(data)
    try:
        runs.RunSettings.load(WORK / "run")
    except REFUSALS:
        return


def _pretrained() -> Pretrained:
    colours = ((0, 0, 0), (255, 0, 0))
    return Pretrained(
        model="small_resnet_fcn",
        class_names=("a", "b"),
        palette=colours,
        size=(8, 8),
        channels=3,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        stages=(),
        configurations={"best": CONFIGURATION},
        sha256="0",
    )


def pretrained(data: bytes) -> None:
    """The `config.json` of a shared folder; what loads says what it read."""
    (WORK / "config.json").write_bytes(data)
    try:
        read = Pretrained.load(WORK)
        assert read.configuration() in read.configurations.values()
        (WORK / "config.json").write_text(json.dumps(read.to_json()))
        assert Pretrained.load(WORK) == read
    except REFUSALS:
        return


SWEEP = """[[search]]
name = "a"
accuracy-drop = [0.5, 2]
max-exits = 2
class-drop = ["b=5"]
[[search]]
budget = "0.5x"
"""


def sweep_file(data: bytes) -> None:
    """A sweep file; what loads are searches with a name of their own."""
    (WORK / "targets.toml").write_bytes(data)
    try:
        read = wishes(WORK / "targets.toml")
    except REFUSALS:
        return
    assert read
    assert len({wish.name for wish in read}) == len(read)


def core(data: bytes) -> None:
    """Arguments of any kind for every function of `mess_core`; small logits against the NumPy reference."""
    import atheris

    given = atheris.FuzzedDataProvider(data)

    def array(usual: str, ndim: int) -> object:
        """Mostly of a dtype and number of dimensions that the function takes."""
        kinds = {
            "logits": (np.float32, np.float64, np.float16),
            "image": (np.uint8,),
            "labels": (np.uint8, np.int32, np.int64, np.uint16),
            "mask": (np.bool_, np.uint8),
        }[usual]
        if given.ConsumeIntInRange(0, 7) == 0:
            kinds = (np.complex64, np.float32, np.int64, np.bool_, np.uint8, np.float16)
        if given.ConsumeIntInRange(0, 7) == 0:
            ndim = given.ConsumeIntInRange(0, 5)
        dtype = kinds[given.ConsumeIntInRange(0, len(kinds) - 1)]
        shape = [given.ConsumeIntInRange(0, 9) for _ in range(ndim)]
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        raw = given.ConsumeBytes(count).ljust(count, b"\x07")
        made = np.frombuffer(raw, dtype=dtype).reshape(shape)
        if usual == "labels" and made.dtype.kind in "iu":
            made = made & 7
        how = given.ConsumeIntInRange(0, 15)
        if how == 1:
            return made.T
        if how == 2 and made.ndim:
            return made[::-1]
        if how == 3 and made.ndim:
            return made[..., ::2]
        if how == 4:
            return made.tolist()
        if how == 5:
            return [None, "x", 3, object(), {}, b"abc"][given.ConsumeIntInRange(0, 5)]
        if how == 6:
            return made.astype(made.dtype.newbyteorder())
        return made.copy() if how == 7 else made  # writable, or read-only

    def word() -> object:
        some = [True, None, "canny", "labels", "top1", "margin", "entropy", -1, 0, 1, 2, 3, 8, 300, 0.5, 1.5, "", 1e30]
        some += [float("nan"), float("inf"), (4, 6), (0, 0), (10**9, 10**9), [2.0], [0.1, 0.9], 2**70]
        return some[given.ConsumeIntInRange(0, len(some) - 1)]

    policy = {"output_stride": 2, "edges": "canny", "refine": True}
    upsampling = {"size": (5, 7), "align_corners": True, "threads": 1}
    usual_of: dict[str, tuple[tuple[str, ...], dict[str, object]]] = {
        "image_confidence": (("logits",), {"pixel_threshold": 0.5, **policy, "confidence": "top1", **upsampling}),
        "should_exit": (("logits",), {"pixel_threshold": 0.5, "image_threshold": 0.5, **policy, **upsampling}),
        "confidence_map": (("logits",), {"kind": "top1", **upsampling}),
        "image_confidence_from_map": (("logits", "labels"), {"pixel_threshold": 0.5, **policy}),
        "policy_maps": (("logits",), {"output_stride": 2, "edges": "canny", **upsampling}),
        "canny": (("image",), {"low": 10, "high": 20, "aperture": 3, "l2": True}),
        "label_edges": (("labels",), {"edges": "canny"}),
        "dilate": (("mask",), {"size": 3}),
        "erode": (("mask",), {"size": 3}),
        "boundary_mask": (("labels",), {"output_stride": 2, "edges": "canny"}),
        "refine_confidence": (("logits", "mask"), {"window": 3}),
    }
    required = ("pixel_threshold", "image_threshold", "window", "low", "high")
    name = list(usual_of)[given.ConsumeIntInRange(0, len(usual_of) - 1)]
    function = getattr(mess_core, name)
    kinds, usual = usual_of[name]
    is_volume = kinds == ("logits",)
    arrays = [array(kind, 3 if is_volume else 2) for kind in kinds]
    if len(arrays) == 2 and all(isinstance(a, np.ndarray) and a.ndim == 2 for a in arrays):
        h, w = (min(x, y) for x, y in zip(*(a.shape for a in arrays), strict=True))  # type: ignore[attr-defined]
        arrays = [a[:h, :w] for a in arrays]  # type: ignore[index]
    needed = (*required, *(() if is_volume else ("size", "output_stride")))
    options = {
        option: word() if given.ConsumeIntInRange(0, 7) == 0 else value
        for option, value in usual.items()
        if option in needed or given.ConsumeBool()
    }
    try:
        found = function(*arrays, **options)
    except (TypeError, ValueError, MemoryError):
        return
    plain = name == "image_confidence" and set(options) <= {"pixel_threshold", "output_stride"}
    if plain and isinstance(arrays[0], np.ndarray) and arrays[0].ndim == 3 and arrays[0].dtype.kind == "f":
        with np.errstate(all="ignore"):
            logits = arrays[0].astype(np.float32)
            if np.isfinite(logits).all() and np.abs(logits).max() < 80 and np.isscalar(found):
                threshold = float(options["pixel_threshold"])  # type: ignore[arg-type]
                maps = oracle.confidence_map(logits)
                if (np.abs(maps[0] - threshold) < 1e-6).any():
                    return  # float32 may fall on either side
                stride = int(options.get("output_stride", 8))  # type: ignore[call-overload]
                expected = oracle.image_confidence_from_map(*maps, threshold, stride, True, "canny")
                assert abs(float(found) - float(expected)) <= 2 / logits[0].size, (found, expected)


def _run_settings() -> bytes:
    colours = ((0, 0, 0), (255, 0, 0))
    settings = runs.RunSettings(
        model="small_resnet_fcn", data="scenes:8", size=(8, 8), class_names=("a", "b"), palette=colours
    )
    return json.dumps(asdict(settings)).encode()


TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "table": (table, [b"\1" + _header(TABLE_BYTES), b"\0" + TABLE_BYTES]),
    "configuration": (configuration, [json.dumps(CONFIGURATION.to_json()).encode()]),
    "manifest": (manifest, [MANIFEST_BYTES]),
    "checkpoint": (checkpoint, [b"\1" + _header(CHECKPOINT_BYTES), b"\0" + CHECKPOINT_BYTES]),
    "run_settings": (run_settings, [_run_settings()]),
    "pretrained": (pretrained, [json.dumps(_pretrained().to_json()).encode()]),
    "sweep": (sweep_file, [SWEEP.encode()]),
    "core": (core, [bytes(range(256))]),
}
"""By name: the target and what to begin with."""
