"""The programs in examples/ run, with a file in place of a camera."""

from __future__ import annotations

import io
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

import mess
from tests.mess.test_deployment import dividing

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def folder(network, table, tmp_path_factory):
    out = tmp_path_factory.mktemp("examples") / "net"
    mess.export(mess.deploy(network, dividing(table)), out, class_names="abcdef")
    return out


def test_camera(folder, tmp_path, monkeypatch, capsys):
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 64))
    for i in range(4):
        writer.write(np.full((64, 96, 3), 60 * i, np.uint8))
    writer.release()
    monkeypatch.setattr(sys, "argv", ["camera.py", str(folder), str(path)])
    runpy.run_path(str(EXAMPLES / "camera.py"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("left at ") for line in lines)


def test_server(folder, monkeypatch):
    from fastapi.testclient import TestClient

    monkeypatch.setenv("MESS_NET", str(folder))
    app = runpy.run_path(str(EXAMPLES / "server.py"))["app"]
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    answer = TestClient(app).post("/segment", content=file.getvalue())
    assert answer.status_code == 200
    expected = mess.Runtime(folder).predict(picture)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), expected.labels)
    assert answer.headers["X-Exit"] == expected.exit
    for sent in (b"", b"no picture", file.getvalue()[:200]):  # the last is cut off
        assert TestClient(app).post("/segment", content=sent).status_code == 422


def one_convolution(path: Path, scale: float) -> None:
    """An ONNX network of two classes: light or dark, `scale` times as sure."""
    weight = scale * np.array([[1.0] * 3, [-1.0] * 3], np.float32).reshape(2, 3, 1, 1)
    bias = scale * np.array([-1.5, 1.5], np.float32)
    shape = [1, 3, "height", "width"]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["pixels", "w", "b"], ["logits"])],
        "g",
        [helper.make_tensor_value_info("pixels", 1, shape)],
        [helper.make_tensor_value_info("logits", 1, [1, 2, "height", "width"])],
        [onnx.numpy_helper.from_array(weight, "w"), onnx.numpy_helper.from_array(bias, "b")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def test_cascade(tmp_path, monkeypatch, capsys):
    one_convolution(tmp_path / "small.onnx", 2.0)
    one_convolution(tmp_path / "large.onnx", 20.0)
    contrast, grey = np.zeros((40, 60, 3), np.uint8), np.full((40, 60, 3), 140, np.uint8)
    contrast[:, 30:] = 255
    for name, picture in (("easy.png", contrast), ("hard.png", grey)):
        Image.fromarray(picture).save(tmp_path / name)
    names = [str(tmp_path / name) for name in ("small.onnx", "large.onnx", "easy.png", "hard.png")]
    monkeypatch.setattr(sys, "argv", ["cascade.py", *names])
    runpy.run_path(str(EXAMPLES / "cascade.py"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("easy.png: small network, 2 classes")
    assert lines[1].endswith("hard.png: large network, 1 classes")
    labels = np.asarray(Image.open(tmp_path / "easy.png.labels.png"))
    assert np.array_equal(labels[:, 30:] == 0, np.ones((40, 30), bool))


@pytest.mark.slow
def test_auxiliary_head(tmp_path, monkeypatch, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    monkeypatch.setattr(sys, "argv", ["auxiliary_head.py", str(tmp_path / "p.png")])
    runpy.run_path(str(EXAMPLES / "auxiliary_head.py"))
    assert "went on to the end" in capsys.readouterr().out  # an untrained network is never sure
    assert Image.open(tmp_path / "p.png.labels.png").size == (80, 64)
