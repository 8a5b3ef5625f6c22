"""Killed at random moments, or on a disk that is full: what was there before is there, whole. See `survival.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from mess.files import replace_folder, sweep, write_json

SMALL_DISK = "mount -t tmpfs -o size=128M none {folder} && exec {python} -m tests.mess.survival full {writer} {folder}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("writer", "times"),
    [
        ("checkpoint", 50),
        ("table", 50),
        ("json", 50),
        ("calibration", 50),
        ("search", 50),
        ("export", 8),
        ("training", 25),
    ],
)
def test_killed_at_random_moments(writer, times, tmp_path):
    command = [sys.executable, "-m", "tests.mess.survival", "kill", writer, tmp_path, str(times)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert f"{times} kills" in found.stdout


@pytest.mark.slow
@pytest.mark.parametrize("writer", ["checkpoint", "table", "json", "calibration", "search", "export", "training"])
def test_a_full_disk_is_said_and_loses_nothing(writer, tmp_path):
    """On a real file system of some megabytes, in a name space of its own."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("needs unshare(1) and the right to mount: a container without user name spaces")
    command = SMALL_DISK.format(folder=tmp_path, python=sys.executable, writer=writer)
    found = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert "o space left" in found.stdout  # "No space left on device", in whichever words around it


def test_a_folder_takes_the_place_of_another(tmp_path, monkeypatch):
    for exchanges in (True, False):
        if not exchanges:
            monkeypatch.setattr("mess.files._exchanged", lambda a, b: False)
        new, path = tmp_path / "new", tmp_path / "net"
        for text in ("first", "second", "third"):
            new.mkdir()
            (new / "file").write_text(text)
            replace_folder(new, path)
            assert (path / "file").read_text() == text
            assert [p.name for p in tmp_path.iterdir()] == ["net"]
        shutil.rmtree(path)


def test_what_killed_writers_left_is_swept(tmp_path):

    old, young, other = (tmp_path / name for name in (".1.a.json", ".2.a.json", ".1.b.json"))
    for path in (old, young, other):
        path.write_text("x")
    folder = tmp_path / ".net-1"
    (folder / "inner").mkdir(parents=True)
    for path in (old, other, folder):
        os.utime(path, (0, 0))
    write_json(tmp_path / "a.json", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == [".1.b.json", ".2.a.json", ".net-1", "a.json"]
    sweep(tmp_path, ".net-*")
    assert not folder.exists()
