"""The programs in examples/ run, with a file in place of a camera."""

from __future__ import annotations

import io
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
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
