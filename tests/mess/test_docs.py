"""Every ```python and ```sh block of the pages in docs/ runs as written, in order, page by page.

A page runs in a folder of its own with a copy of the prepared run, trained, calibrated and searched, as `run`
(quickstart.md makes its own), and a picture as `photo.jpg`. Its Python blocks share one namespace; a block whose first
line is a comment with a file's name is written there too.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mess import cli, search_verb
from mess.progress import console

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
FILE_NAME = re.compile(r"# ([\w-]+\.(?:py|toml))\n")


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of every block of a page."""
    return BLOCK.findall((DOCS / page).read_text())


def commands(text: str) -> list[str]:
    lines = text.replace("\\\n", " ").splitlines()
    return [line.split(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture(scope="module")
def searched_run(run_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "run"
    shutil.copytree(run_folder, folder)
    search_verb.search_run(folder)
    return folder


@pytest.fixture
def place(searched_run, tmp_path, monkeypatch):
    """The current folder is an empty one with the run and a picture in it; what commands change of the process is
    put back."""
    shutil.copytree(searched_run, tmp_path / "run")
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(console, "stderr", False)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    mpl.use("agg")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for such small layers a second thread costs more than it saves
    yield tmp_path
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(kind in ("python", "sh") for kind, _ in blocks(page))])
def test_blocks_run(page, place, monkeypatch):
    if page == "quickstart.md":
        shutil.rmtree(place / "run")
    namespace = {"__name__": "__main__"}
    for language, text in blocks(page):
        named = FILE_NAME.match(text)
        if named:
            (place / named[1]).write_text(text)
        if language == "python":
            exec(compile(text, page, "exec"), namespace)
        elif language == "sh":
            for command in commands(text):
                run_command(command, monkeypatch)


def run_command(command: str, monkeypatch) -> None:
    words = shlex.split(command)
    with monkeypatch.context() as patch:
        while "=" in words[0]:
            patch.setenv(*words.pop(0).split("=", 1))
        if words[0] == "pip":
            assert words[1] == "install", command
            return
        assert words[0] == "mess", command
        told = CliRunner().invoke(cli.app, words[1:])
        patch.setattr(console, "stderr", False)
    assert told.exit_code == 0, f"{command}\n{told.output}\n{told.exception!r}"


def test_nothing_of_another_kind():
    kinds = {kind for page in PAGES for kind, _ in blocks(page)}
    assert kinds <= {"python", "sh", "toml", "text", "json"}
    for page in PAGES:
        assert (DOCS / page).read_text().count("```") == 2 * len(blocks(page)), page
        assert all(FILE_NAME.match(text) for kind, text in blocks(page) if kind == "toml"), page


CODES = re.findall(r"^\| (\d+) \| .* \| (?:`(mess .*)`)? ?\|$", (DOCS / "cli.md").read_text(), flags=re.MULTILINE)


def exit_code(arguments: list[str], monkeypatch) -> int:
    monkeypatch.setattr(sys, "argv", ["mess", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "command"), CODES)
def test_exit_codes_are_those_of_the_page(code, command, place, monkeypatch):
    if not command:  # Ctrl-C

        def interrupted(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("mess.search_verb.search_run", interrupted)
        command = "mess search run"
    assert exit_code(shlex.split(command)[1:], monkeypatch) == int(code)


def test_the_page_has_all_exit_codes():
    assert [int(code) for code, _ in CODES] == [0, 1, 2, 130]
