"""Killed at random moments, or on a disk that is full: what was there before is there, whole. See `survival.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from mess.files import replace_folder, whole_folder, write_json, write_whole

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

    old, young, other = (tmp_path / name for name in (".mess-1-a.json", ".mess-2-a.json", ".mess-1-b.json"))
    for path in (old, young, other):
        path.write_text("x")
    folder = tmp_path / ".mess-net-12345678"
    (folder / "inner").mkdir(parents=True)
    for path in (old, other, folder):
        os.utime(path, (0, 0))
    write_json(tmp_path / "a.json", {})
    assert {p.name for p in tmp_path.iterdir()} == {young.name, other.name, folder.name, "a.json"}
    with whole_folder(tmp_path / "net"):
        pass
    assert not folder.exists()


def test_what_somebody_else_left_is_not_swept(tmp_path):
    """Hidden files and folders of similar names, old ones too; a name that is a pattern."""
    gone = tmp_path / ".mess-1-[ab].json"
    files = [tmp_path / name for name in (".2025.report.html", ".env-production", ".mess-1-a.json", gone.name)]
    folders = [tmp_path / name for name in (".net-backup", ".net-previous", ".net.old", ".mess-net")]
    for path in files:
        path.write_text("x")
    for path in folders:
        (path / "inner").mkdir(parents=True)
    for path in (*files, *folders):
        os.utime(path, (0, 0))
    for name in ("report.html", "env", "[ab].json"):
        write_whole(tmp_path / name, lambda path: path.write_text("new"))
    with whole_folder(tmp_path / "net") as folder:
        (folder / "a").touch()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {p.name for p in (*files, *folders)} - {gone.name} | {"report.html", "env", "[ab].json", "net"}


def test_a_folder_that_a_link_leads_to_is_replaced(tmp_path):
    (tmp_path / "net-v1").mkdir()
    (tmp_path / "net-v1" / "old").touch()
    (tmp_path / "current").symlink_to("net-v1")
    for _ in range(2):
        with whole_folder(tmp_path / "current") as folder:
            (folder / "new").touch()
        assert (tmp_path / "current").is_symlink()
        assert [path.name for path in (tmp_path / "net-v1").iterdir()] == ["new"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "net-v1"]
