"""Every command and code block of the README runs, as written, in order."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def commands() -> list[str]:
    joined = "".join(blocks("sh")).replace("\\\n", " ")
    return [line.split(" #")[0].strip() for line in joined.splitlines() if line.strip()]


def test_there_is_something_to_run_and_nothing_of_another_kind():
    assert {name for name, _ in BLOCKS} <= {"sh", "python", "text"}
    assert len(blocks("python")) >= 2
    assert len(commands()) >= 6
    assert len(README.splitlines()) < 200


@pytest.mark.slow
def test_python_blocks(tmp_path):
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks("python")))
    found = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


@pytest.mark.slow
def test_commands(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    for command in commands():
        words = shlex.split(command)
        if words[0] == "make":
            subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        elif words[0] in ("mess", "torchrun"):
            module = {"torchrun": "torch.distributed.run"}.get(words[0], words[0])
            words = [sys.executable, "-m", module, *words[1:]]
            found = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert found.returncode == 0, f"{command}\n{found.stderr}"
        else:
            assert words[:2] == ["pip", "install"], command
            assert "[torch]" in words[2]


def test_files_named_in_the_walks_exist():
    named = re.findall(r"`((?:python|rust|tests|benches|docs)/[\w/.-]+)`", README)
    assert len(named) > 10
    for name in named:
        assert (ROOT / name).exists(), name


def test_pictures_exist():
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README):
        assert (ROOT / name).is_file(), name


def test_every_dependency_is_explained():
    """docs/dependencies.md names each, in the row of its extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    explained = (ROOT / "docs" / "dependencies.md").read_text()
    rows = [line.split("|") for line in explained.splitlines() if line.startswith("| ")]
    by_extra = {"": project["dependencies"], **project["optional-dependencies"]}
    for extra, wanted in by_extra.items():
        for requirement in wanted:
            name = re.split(r"[><=; \[]", requirement)[0]
            if name == "mess":
                continue
            if extra == "dev":
                assert re.search(rf"\b{name}\b", explained), name
            else:
                extras = [[e.strip(" `") for e in row[3].split(",")] for row in rows]
                assert any(name in row[1] and extra in of_row for row, of_row in zip(rows, extras, strict=True)), name
