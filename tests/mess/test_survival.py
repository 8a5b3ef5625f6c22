"""Killed at random moments, or on a disk that is full: what was there before is there, whole. See `survival.py`."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mess.files import files_in, replace_folder, whole_folder, write_json, write_whole

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
            replace_folder(new, path, last="file")
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
    with whole_folder(tmp_path / "net", last="a"):
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
    with whole_folder(tmp_path / "net", last="a") as folder:
        (folder / "a").touch()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {p.name for p in (*files, *folders)} - {gone.name} | {"report.html", "env", "[ab].json", "net"}


def test_a_folder_that_a_link_leads_to_is_replaced(tmp_path):
    (tmp_path / "net-v1").mkdir()
    (tmp_path / "net-v1" / "old").touch()
    (tmp_path / "current").symlink_to("net-v1")
    for _ in range(2):
        with whole_folder(tmp_path / "current", last="new") as folder:
            (folder / "new").touch()
        assert (tmp_path / "current").is_symlink()
        assert [path.name for path in (tmp_path / "net-v1").iterdir()] == ["new"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "net-v1"]


def refuse_to_rename(path, number, monkeypatch):
    """A file system that answers with this error where `path` shall get another name."""
    replace = Path.replace

    def refusing(self, target):
        if self == path:
            raise OSError(number, os.strerror(number), str(self))
        return replace(self, target)

    monkeypatch.setattr("mess.files._exchanged", lambda a, b: False)
    monkeypatch.setattr(Path, "replace", refusing)


@pytest.mark.parametrize("why", ["mount", "here", "parent", "rename"])
def test_a_folder_that_cannot_be_renamed_is_filled(why, tmp_path, monkeypatch):
    """A mount point, the current folder, one in a folder that may not be written, one that the file system keeps."""
    home = tmp_path / "home"
    path = home / "net"
    (path / "old").mkdir(parents=True)
    (path / "manifest").write_text("old")
    inode = path.stat().st_ino
    if why == "mount":
        monkeypatch.setattr("mess.files.os.path.ismount", lambda p: p == path)
    elif why == "here":
        (path / "old" / "inner").mkdir()
        monkeypatch.chdir(path)
    elif why == "parent":
        monkeypatch.setattr("mess.files.os.access", lambda p, mode: p != home)
    else:
        refuse_to_rename(path, errno.EBUSY, monkeypatch)
    with whole_folder(path, last="manifest") as folder:
        assert folder.parent == (home if why == "rename" else path)
        (folder / "manifest").write_text("new")
        other = path / ".mess-net-0123abcd"  # of another process that writes to the same mount
        other.mkdir(exist_ok=True)
        (folder / "a").write_text("a")
        (folder / "inner").mkdir()
        (folder / "inner" / "z").write_text("z")
    other.rmdir()
    assert path.stat().st_ino == inode
    assert [p.name for p in home.iterdir()] == ["net"]
    assert {p.relative_to(path).as_posix() for p in path.rglob("*")} == {"manifest", "a", "inner", "inner/z"}
    assert (path / "manifest").read_text() == "new"
    with pytest.raises(RuntimeError, match="half"), whole_folder(path, last="manifest"):
        raise RuntimeError("half")
    assert (path / "manifest").read_text() == "new"
    assert len(list(path.iterdir())) == 3


def test_a_folder_that_is_in_use_stays(tmp_path, monkeypatch):
    """On Windows, where a file of it is open: neither is half of it deleted."""
    path = tmp_path / "net"
    path.mkdir()
    (path / "manifest").write_text("old")
    refuse_to_rename(path, errno.EACCES, monkeypatch)
    with pytest.raises(PermissionError), whole_folder(path, last="manifest") as folder:
        (folder / "manifest").write_text("new")
    assert (path / "manifest").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def test_many_threads_write_one_file(tmp_path):
    """Each a whole one, with the rights that the umask gives, which stays as it is."""
    mask = os.umask(0o027)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda i: write_json(tmp_path / "a.json", {"text": str(i) * 10_000}), range(200)))
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mask)
    text = json.loads((tmp_path / "a.json").read_text())["text"]
    assert len(set(text)) <= 3
    assert len(text) in (10_000, 20_000, 30_000)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o640


def test_a_device_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"out: expected the name of a file to write, got .*pipe, a device or a pipe"):
        write_json(pipe, {})
    assert pipe.is_fifo()


def test_every_file_is_flushed_by_a_handle_that_may_write(tmp_path, monkeypatch):
    """Windows refuses others."""
    flushed = []

    def fsync(number):
        os.write(number, b"")  # what a handle for reading refuses
        flushed.append(number)

    monkeypatch.setattr("mess.files.os.fsync", fsync)
    write_json(tmp_path / "a.json", {})
    with whole_folder(tmp_path / "net", last="a") as folder:
        (folder / "a").write_text("a")
    assert len(flushed) == 2


def test_files_in_leaves_out_what_is_being_written(tmp_path):
    for name in ("b.json", "a.json", ".mess-4711-a.json", "._a.json", "c.txt"):
        (tmp_path / name).write_text("{")
    assert list(files_in(tmp_path, "*.json")) == ["a", "b"]
