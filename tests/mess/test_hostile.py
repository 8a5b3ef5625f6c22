"""Files made to do harm: every reader refuses them by name, in bounded time and memory, and changes nothing.

`tests/fuzz` looks for more of them; what it found is here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import struct
import subprocess
import sys
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from PIL import Image
from safetensors.numpy import save_file

import mess
from mess import runs
from mess.data import dataset_from_spec
from mess.data.pairs import decode
from mess.deployment.configuration import ChosenExit
from mess.files import map_safetensors, read_safetensors, write_whole
from mess.model.weights import load_weights
from mess.training.checkpoint import load_checkpoint
from tests.fuzz import targets
from tests.mess.test_deployment import dividing

READERS = {name: start[-1] for name, (_, start) in targets.TARGETS.items() if name != "core" and start}
"""By name, a whole file as the fuzzed reader takes it."""


@pytest.fixture(scope="module")
def deployment(network, table, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("net") / "net"
    mess.export(mess.deploy(network, dividing(table)), folder, class_names="abcdef")
    return folder


@pytest.mark.parametrize("reader", READERS)
def test_truncated(reader):
    """A part of a file is refused, or read as what it is; nothing else is raised (the target checks)."""
    whole = READERS[reader]
    target = targets.TARGETS[reader][0]
    for length in sorted({*range(40), *np.linspace(0, len(whole) - 1, 60, dtype=int).tolist()}):
        target(whole[:length])


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_flipped_bits(reader):
    whole = READERS[reader]
    rng = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for at in rng.integers(1 if whole[0] == 0 else 0, len(data), rng.integers(1, 4)):
            data[at] ^= 1 << rng.integers(8)
        targets.TARGETS[reader][0](bytes(data))


DEEP = ("[" * 100_000, '{"a":' * 100_000, "9" * 100_000, '{"version":' + "9" * 10_000 + "}", "\xff\xfe", "null", "")


@pytest.mark.parametrize("text", DEEP, ids=lambda text: text[:12] or "empty")
def test_json_that_is_no_settings(text, tmp_path):
    """Nested 10^5 deep, a number of 10^5 digits, no object, no text."""
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    for read in (
        lambda: mess.Configuration.load(tmp_path / "run.json"),
        lambda: runs.RunSettings.load(tmp_path),
        lambda: mess.Runtime(tmp_path),
    ):
        with pytest.raises(ValueError, match=r"run\.json|manifest\.json"):
            read()
    header = json.dumps({"__metadata__": {"mess": text}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    for read in (lambda: mess.CalibrationTable.load(path), lambda: load_checkpoint(path, torch.nn.Linear(1, 1))):
        with pytest.raises(ValueError, match=r"x\.safetensors|table"):
            read()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 1e308}, "size: expected a list of height and width, got '1e"),  # found by fuzzing
        ({"size": [8]}, r"size: expected height and width above 0, got \(8,\)"),
        ({"model": []}, "model: expected text"),
        ({"seed": True}, "seed: expected an integer"),
        ({"class_names": {}}, "class_names: expected a list of names"),
        ({"palette": [[0, 0, 256]]}, "palette: expected .red, green, blue. of 0..255"),
    ],
)
def test_run_settings_are_checked_entry_by_entry(changed, message, tmp_path):
    whole = json.loads(READERS["run_settings"])
    (tmp_path / "run.json").write_text(json.dumps(whole))
    assert runs.RunSettings.load(tmp_path).size == (8, 8)
    (tmp_path / "run.json").write_text(json.dumps(whole | changed))
    with pytest.raises(ValueError, match=rf"run: .*run\.json: {message}"):
        runs.RunSettings.load(tmp_path)


def safetensors(path: Path, shape: list[int], offsets: tuple[int, int], data: bytes = b"", dtype: str = "F32") -> Path:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    header = json.dumps({"weight": entry, "__metadata__": {"mess": '{"version": 2}'}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ([1 << 40], (0, 1 << 42)),
        ([1 << 62, 1 << 62], (0, 16)),
        ([1 << 33, 1 << 31], (0, 0)),
        ([-1], (0, 16)),
        ([4], (16, 0)),
        ([4], (0, 1 << 63)),
        ([4], (-16, 0)),
        ([], (0, 16)),
    ],
)
def test_a_declared_size_is_not_believed(shape, offsets, tmp_path):
    path = safetensors(tmp_path / "x.safetensors", shape, offsets, bytes(16))
    for read in (
        lambda: mess.CalibrationTable.load(path),
        lambda: load_weights(torch.nn.Linear(1, 1), path),
        lambda: load_checkpoint(path, torch.nn.Linear(1, 1)),
    ):
        with pytest.raises(ValueError, match=r"x\.safetensors is truncated or no safetensors file"):
            read()


def test_a_header_of_2_to_the_63_bytes(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((1 << 63).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match="is truncated or no safetensors file"):
        read_safetensors(path, "x", framework="numpy")


@pytest.mark.parametrize("framework", ["pt", "numpy", "map"])
def test_a_file_replaced_while_it_is_read(framework, tmp_path):
    """As the checkpoint of a training that goes on: header and tensors are of one file, whichever."""
    path = tmp_path / "x.safetensors"

    def write(number: int) -> None:
        values = np.full(1 + number % 3, number)  # the sizes differ, and the length of the header
        write_whole(path, lambda to: save_file({"x": values}, to, metadata={"mess": json.dumps(10**number)}))

    def replace() -> None:
        for number in itertools.cycle(range(1, 18)):
            write(number)
            if done.wait(0.0005):
                return

    write(1)
    done = threading.Event()
    writer = threading.Thread(target=replace)
    writer.start()
    seen, reads = set(), 0
    try:
        while reads < 500 or (len(seen) < 3 and writer.is_alive()):  # a slow disk writes less often than is read
            reads += 1
            found, number = (
                map_safetensors(path, "x") if framework == "map" else read_safetensors(path, "x", framework=framework)
            )
            assert set(found["x"].tolist()) == {len(str(number)) - 1}
            seen.add(number)
    finally:
        done.set()
        writer.join()
    assert len(seen) >= 3


def test_no_pickle_is_opened(tmp_path):
    """A PyTorch file is a zip archive with a pickle, and so is what an attacker sends."""
    path = tmp_path / "x.safetensors"
    torch.save({"weight": torch.zeros(1, 1), "bias": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no safetensors file"):
        load_weights(torch.nn.Linear(1, 1), path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("data", bytes(1 << 24))
    with pytest.raises(ValueError, match="no safetensors file"):
        load_checkpoint(path, torch.nn.Linear(1, 1))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_numbers_that_are_none_in_a_table(value, table, tmp_path):
    """Saved and loaded, since that is how they come; whoever uses them says which they are."""

    def with_first(array: np.ndarray) -> np.ndarray:
        other = array.astype(np.float64)
        other.flat[0] = value
        return other if array.dtype == np.float64 else np.nan_to_num(other, posinf=-(2**62)).astype(array.dtype) - 1

    path = tmp_path / "table-val.safetensors"
    final = mess.Configuration(setting="budgeted", model=table.model, exits=(ChosenExit(exit="final"),))
    costs = {name: {part: with_first(a) for part, a in parts.items()} for name, parts in table.costs.items()}
    for changed, message in (
        ({"image_confidence": with_first(table.image_confidence)}, "image_confidence: expected numbers in"),
        ({"costs": costs}, "_cost: expected costs from 0 to 1e100"),
        ({"intersection": with_first(table.intersection)}, "intersection: expected 0..="),
        ({"ground_truth": with_first(table.ground_truth)}, "ground_truth: expected counts of 0 and more"),
    ):
        dataclasses.replace(table, **changed).save(path)
        read = mess.CalibrationTable.load(path)
        with pytest.raises(ValueError, match=message):
            mess.search(read, max_drop=0.1)
        with pytest.raises(ValueError, match=message):
            mess.evaluate(final, read)
    with pytest.raises(ValueError, match="losses: expected"):
        mess.guarantee(
            dataclasses.replace(table, disagreement=with_first(table.disagreement)), "disagreement <= 0.4 with 90 %"
        )
    with pytest.raises(ValueError, match=r"pixel_thresholds: expected numbers in 0\.\.1"):
        dataclasses.replace(table, pixel_thresholds=(value, *table.pixel_thresholds[1:]))


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def copied(folder: Path, out: Path) -> Path:
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return out


@pytest.mark.parametrize("name", ["../stage-0.onnx", "/etc/passwd", "a/../b.onnx", "..", "stage-0.onnx\n", "C:x.onnx"])
def test_a_manifest_names_files_of_its_folder_only(name, deployment, tmp_path):
    other = copied(deployment, tmp_path / "net")
    manifest = manifest_of(other)
    for where in (manifest["exits"][0],):
        where["stage"] = name
    manifest["files"][name] = manifest["files"]["stage-0.onnx"]
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="names like stage-0"):
        mess.Runtime(other)


def with_stage(folder: Path, data: bytes) -> Path:
    """The manifest vouches for the new file: whoever writes both can."""
    (folder / "stage-0.onnx").write_bytes(data)
    manifest = manifest_of(folder)
    manifest["files"]["stage-0.onnx"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def onnx_adding(inputs: str, shape: list, external: str | None = None) -> bytes:
    weight = helper.make_tensor("w", 1, [1], [1.0])
    if external is not None:
        weight.ClearField("float_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", external), ("length", "4")):
            entry = weight.external_data.add()
            entry.key, entry.value = key, value
    graph = helper.make_graph(
        [helper.make_node("Add", [inputs, "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info(inputs, 1, shape)],
        [helper.make_tensor_value_info("y", 1, None)],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()


def test_a_vouched_for_file_that_is_no_stage(deployment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(struct.pack("<f", 42))
    shape = ["batch", 3, 48, 64]
    for number, (data, message) in enumerate(
        [
            (b"", "cannot load it"),
            (b"\x08\x0a" * 1000, "cannot load it"),
            ((deployment / "stage-0.onnx").read_bytes()[:-200], "cannot load it"),
            (onnx_adding("images", shape, external="secret"), "cannot load it"),
            (onnx_adding("images", shape, external=str(tmp_path / "secret")), "cannot load it"),
            (onnx_adding("pictures", shape), "expected inputs .'images'. and outputs"),
        ]
    ):
        with pytest.raises(ValueError, match=message):
            mess.Runtime(with_stage(copied(deployment, tmp_path / str(number)), data))


def test_a_manifest_of_another_size_takes_no_memory(deployment, tmp_path):
    other = copied(deployment, tmp_path / "net")
    manifest = manifest_of(other)
    manifest["input"]["size"] = [1 << 16, 1 << 16]
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ValueError, match=r"input\.size: expected \(48, 64\), as in stage-0\.onnx, got \(65536, 65536\)"
    ):
        mess.Runtime(other)


def test_classes_that_the_network_does_not_have(deployment, tmp_path):
    other = copied(deployment, tmp_path / "net")
    manifest = manifest_of(other)
    manifest["classes"] = ["one", "two"]
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"expected logits of 1 images and 2 classes, got shape \(1, 6"):
        mess.Runtime(other).predict(np.zeros((48, 64, 3), np.uint8))


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_no_picture(tmp_path):
    """Ten kilobytes that say they are 4 GB of pixels; and data sets list it among their problems."""
    bomb = png(1 << 16, 1 << 16, bytes(1 << 20))
    for folder in ("images", "labels"):
        (tmp_path / folder / "train").mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / folder / "train" / "a.png")
        (tmp_path / folder / "train" / "b.png").write_bytes(bomb)
    (tmp_path / "dataset.json").write_text('{"classes": ["road", "sky"]}')
    with pytest.raises(ValueError, match=r"b\.png: cannot be decoded as an image \(Image size .* exceeds limit"):
        decode(tmp_path / "images" / "train" / "b.png", "RGB")
    problems = dataset_from_spec(f"folder:{tmp_path}", split="train").check()
    assert any("b.png: cannot be decoded" in problem for problem in problems)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(3), b"\xff\xd8\xff\xe0" + bytes(40)])
def test_pictures_that_are_none(data, tmp_path):
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.png: cannot be decoded as an image"):
        decode(tmp_path / "a.png", "RGB")


def test_readers_take_no_more_memory_than_the_file(tmp_path):
    """All refusals above in a process that may have 64 MB more than it had before it read anything."""
    script = """
import resource, sys
from pathlib import Path
import torch, mess
from mess.training.checkpoint import load_checkpoint
from mess.model.weights import load_weights
torch.optim.AdamW(torch.nn.Linear(1, 1).parameters())  # imports what is imported at first use
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
for path in sorted(Path(sys.argv[1]).iterdir()):
    for read in (mess.CalibrationTable.load, lambda p: load_weights(torch.nn.Linear(1, 1), p),
                 lambda p: load_checkpoint(p, torch.nn.Linear(1, 1))):
        try:
            read(path)
        except ValueError:
            print("refused")
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc: address space is counted by it")
    safetensors(tmp_path / "a.safetensors", [1 << 40], (0, 1 << 42), bytes(16))
    safetensors(tmp_path / "b.safetensors", [1 << 33, 1 << 31], (0, 0))
    safetensors(tmp_path / "c.safetensors", [0, 1 << 40], (0, 0))
    found = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.split() == ["refused"] * 9
