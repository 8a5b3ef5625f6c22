"""The command line as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import mess as mess_package
import mess_core
from mess import cli, doctor
from mess.progress import say

VERBS = (
    "profile",
    "train",
    "calibrate",
    "search",
    "evaluate",
    "run",
    "picture",
    "export",
    "report",
    "share",
    "demo",
    "doctor",
)


def mess(*arguments, check=True) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mess", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check)


def test_help_lists_every_verb_without_loading_torch():
    found = mess("--help").stdout
    for verb in VERBS:
        assert f"\n  {verb} " in found
    code = "import sys; from mess import cli; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself(verb):
    found = mess(verb, "--help").stdout
    assert "Usage: mess" in found
    options = [line for line in found.splitlines() if line.startswith("  --")]
    assert all(len(line.split()) > 2 for line in options)


def test_version():
    info = mess_core.build_info()
    told = mess("--version").stdout
    assert told.startswith(f"mess {info['version']} (commit ")
    assert f"{info['target']}, {info['instruction_set']}, {info['threads']} threads)" in told


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "run"])
def test_every_verb_has_json(verb):
    assert "--json" in mess(verb, "--help").stdout


def test_a_verb_that_prints_json_leaves_standard_output_to_the_next(capsys):
    from mess.progress import console

    told = CliRunner().invoke(cli.app, ["search", "nothing", "--json"])
    assert told.exit_code != 0
    console.print("after")
    assert capsys.readouterr().out == "after\n"


def test_doctor():
    parts = {part["name"]: part for part in json.loads(mess("doctor", "--json").stdout)}
    for name in ("core", "torch", "training", "export", "onnxruntime", "tensorboard"):
        assert parts[name]["state"] == "works", parts[name]
        assert parts[name]["remedy"] is None
    assert mess_core.__version__ in parts["core"]["told"]


def test_doctor_names_the_remedy_for_what_is_missing_or_broken(monkeypatch, capsys):
    class Odd:
        __version__ = "1.0"

        class InferenceSession:
            def __init__(self, *_, **__):
                raise OSError("libgomp.so.1: cannot open shared object file\nand more")

    monkeypatch.setitem(sys.modules, "openvino", None)  # importing it fails as if it was not there
    monkeypatch.setitem(sys.modules, "onnxruntime", Odd)
    assert doctor.main(as_json=False) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "missing openvino" in told
    assert "for mess.Runtime(backend='openvino'): pip install 'mess[openvino]'" in told
    assert "broken onnxruntime OSError: libgomp.so.1: cannot open shared object file for" in told
    assert "and more" not in told


def test_doctor_on_a_full_disk_and_a_slow_build(monkeypatch, capsys):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=5_000_000))
    slow = mess_core.build_info() | {"profile": "debug"}
    monkeypatch.setattr(doctor.importlib.import_module("mess_core"), "build_info", lambda: slow)
    assert doctor.main(as_json=False) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "broken disk 0.01 GB free here for runs and tables: free some space, or work in another folder" in told
    assert "maturin develop --release" in told
    assert "force-reinstall" not in told


def test_doctor_works_where_the_command_line_is_not_installed():
    code = (
        "import sys; sys.modules['typer'] = None; sys.argv = ['mess', 'doctor', '--json'];"
        "from mess.__main__ import main; main()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert json.loads(found.stdout)[0]["name"] == "core", found.stderr


def test_a_configuration_file_is_equal_to_flags(tmp_path):
    points = "features.3,features.7"
    flags = ("--model", "small_resnet_fcn", "--input", "3x64x64", "--classes", "5", "--exit-points", points)
    path = tmp_path / "job.toml"
    path.write_text(
        '[profile]\nmodel = "small_resnet_fcn"\ninput = "3x64x64"\nclasses = 5\n'
        'exit-points = ["features.3", "features.7"]\njson = true\n'
    )
    expected = mess("profile", *flags, "--json").stdout
    assert mess("--config", path, "profile").stdout == expected
    assert mess("--config", path, "profile", "--exit-points", "features.7").stdout != expected  # a flag wins
    for text, message in (
        ("[profile]\nmodell = 1\n", "[profile]: expected flags of `mess profile` such as model, got 'modell'"),
        ("[profil]\nmodel = 1\n", "expected tables named after verbs (profile, train, "),
        ("profile = 1\n", "got 'profile'"),
        ("[profile\n", "--config: "),
    ):
        path.write_text(text)
        found = mess("--config", path, "profile", check=False)
        assert found.returncode == 2
        assert message in found.stderr
        assert "Traceback" not in found.stderr
    assert "--config: " in mess("--config", tmp_path / "none", "doctor", check=False).stderr


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("search run --metric me", {"mean-iou", "mean-class-accuracy"}),
        ("train --loss ", {"pfd", "kd", "ce"}),
        ("export RUN --configuration drop", {"drop-1pp", "drop-5pp"}),
        ("shar", {"share"}),
    ],
)
def test_the_shell_completes(typed, offered, tmp_path):
    (tmp_path / "configurations").mkdir()
    for name in ("drop-1pp", "drop-5pp", "best-at-1x"):
        (tmp_path / "configurations" / f"{name}.json").touch()
    words = "mess " + typed.replace("RUN", str(tmp_path))
    asked = {"_MESS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    command = [sys.executable, "-m", "mess"]
    found = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) == offered


def test_debug_shows_where_an_error_came_from():
    found = mess("--debug", "profile", "--model", "unet", check=False)
    assert "Traceback" in found.stderr
    assert found.stderr.splitlines()[-1].startswith("mess: error: model: expected one of")


def test_profile(tmp_path):
    arguments = ("profile", "--model", "small_resnet_fcn", "--input", "3x64x64", "--classes", 5)
    found = mess(*arguments, "--picture", tmp_path / "w.png").stdout
    assert "output stride" in found
    assert "features.1" in found  # the layers too
    assert "MACs" in found
    assert Image.open(tmp_path / "w.png").size[0] > 400
    points = json.loads(mess(*arguments, "--json").stdout)
    assert points["unit"] == "MACs"
    assert len(points["points"]) == 5
    points = json.loads(mess(*arguments, "--exit-points", "features.7, features.3", "--json").stdout)
    assert [point["module"] for point in points["points"]] == ["features.3", "features.7"]


TRAIN = ("train", "--model", "small_resnet_fcn", "--data", "scenes:8", "--size", "8x8", "--out", "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("profile", "--model", "unet"), "mess: error: model: expected one of"),
        (("profile", "--model", "small_resnet_fcn", "--input", "64x64"), "--input: expected CHANNELSxHEIGHTxWIDTH"),
        (
            (*TRAIN, "--device", "no"),
            "--device: expected one that is there, or auto, got 'no'",
        ),
        (("profile", "--model", "small_resnet_fcn", "--classes", -3), "num_classes: expected at least 1, got -3"),
        (("profile", "--model", "small_resnet_fcn", "--cost", "watts"), "--cost: expected one of macs, latency"),
        (
            ("train", "--model", "small_resnet_fcn", "--data", "folder:/no/where", "--size", "8x8", "--out", "x"),
            "data: expected a folder with images/, labels/ and dataset.json, got /no/where",
        ),
        (
            ("calibrate", "/no/where"),
            "run: expected a run folder, got /no/where (no run.json there); `mess train` makes",
        ),
        (("search", "/no/where"), "run: expected a run folder, got /no/where"),
        (
            ("search", "/no/where", "--max-drop", "100"),
            "--accuracy-drop: expected percentage points, 0 to below 100, such as 1",
        ),
        (
            (*TRAIN, "--mean", "0"),
            "mean, std: expected 3 numbers each, got ((0.0,)",
        ),
        (
            (*TRAIN, "--std", "a"),
            "--std: expected numbers joined by commas, such as 0.5,0.5,0.5, got 'a'",
        ),
        (("calibrate", "/no/where", "--backend", "x"), "--backend: expected one of onnxruntime, openvino, got 'x'"),
        (("search", "/no/where", "--min-accuracy", "0.5"), "--min-accuracy: expected percent, such as 60, got 0.5"),
        (("search", "/no/where", "--max-drop", "1", "--budget", "1x"), "expected at most one"),
        (("search", "/no/where", "--min-cost"), "--min-cost: expected --accuracy-drop or --min-accuracy beside it"),
        (
            ("search", "/no/where", "--max-drop", "1", "--min-cost", "--setting", "anytime"),
            "--min-cost: expected --min-accuracy in the anytime setting",
        ),
        (
            ("search", "/no/where", "--sweep", "x", "--cost", "latency_ms", "--max-exits", "2"),
            "--cost: expected in the entries of the sweep file, got it beside --sweep",
        ),
        (("search", "/no/where", "--sweep", "x", "--require", "final"), "--require: expected in the entries of"),
        (
            ("search", "/no/where", "--sweep", "x", "--held-out", "test"),
            "--sweep: expected no target, --guarantee, --held",
        ),
        (("search", "/no/where", "--budget", "half"), "--budget: expected a share such as 0.5x, or a cost, got 'half'"),
        (("search", "/no/where", "--class-drop", "car"), "--class-drop: expected CLASS=PERCENTAGE_POINTS, got 'car'"),
        (
            ("search", "/no/where", "--cost-limit", "p95=1x", "--cost-limit", "p95=2x"),
            "--cost-limit: expected each name once, got p95, p95",
        ),
        (("run", "/no/where", "x.png"), "run: expected a run folder"),
        (("search", "/no/where", "--out", "x"), "--out: expected --sweep beside it"),
        (("calibrate", "/no/where", "--device", "gpu"), "--device: expected one that is there, or auto, got 'gpu'"),
        (("calibrate", "/no/where", "--device", "meta"), "--device: expected one that is there, or auto, got 'meta'"),
        (
            ("search", "/no/where", "--guarantee", "disagreement <= 0.1 with 90 %", "--resolution", "1"),
            "--resolution: expected none beside --guarantee",
        ),
    ],
)
def test_mistakes_are_one_line_and_status_2(arguments, message):
    found = mess(*arguments, check=False)
    assert found.returncode == 2
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


BROKEN_MODELS = {
    "syntax": "def make(:",
    "name": "def make():\n    return undefined",
    "key": "def make():\n    return {}['nope']",
    "size": """
import torch
class Net(torch.nn.Conv2d):
    def forward(self, x):
        assert x.shape[-1] % 32 == 0, "multiple of 32"
        return super().forward(x)
def make():
    return Net(3, 6, 3)
""",
}


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("syntax", "cannot be run: SyntaxError"),
        ("name", "make cannot be called: NameError: name 'undefined' is not defined"),
        ("key", "make cannot be called: KeyError: 'nope'"),
        ("size", "the model does not run on (1, 3, 40, 40) (--size"),
    ],
)
def test_what_a_model_of_ones_own_raises_is_one_line(tmp_path, broken, message):
    (tmp_path / "m.py").write_text(BROKEN_MODELS[broken])
    found = mess("profile", "--model", f"{tmp_path / 'm.py'}:make", "--input", "3x40x40", check=False)
    assert found.returncode == 2
    assert message in found.stderr
    assert "Traceback" not in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_lines_are_printed_as_they_are(capsys):
    """Names of files may look like markup or emoji, and be longer than a line."""
    name = "a [edited] :a: [/x] " + 40 * "long "
    say(name)
    assert name in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_job(tmp_path):
    run = tmp_path / "run"
    settings = ("--model", "small_resnet_fcn", "--data", "scenes:16", "--size", "48x64", "--num-exits", 4, "--heads",
                "tiny", "--batch-size", 4, "--epochs", 2, "--exit-epochs", 1)  # fmt: skip
    mess("train", *settings, "--out", run)
    again = mess("train", *settings, "--out", run).stdout
    assert "pretrain: 2 of 2 epochs are done already" in again
    assert "loss" not in again
    assert len(json.loads(mess("train", *settings, "--out", run, "--json").stdout)["points"]) == 3
    early = mess("search", run, check=False)
    assert "run `mess calibrate" in early.stderr
    early = mess("run", run, "x.png", check=False)
    assert "run `mess search` first" in early.stderr
    other = mess("train", *settings, "--out", run, "--seed", 1, check=False)
    assert other.returncode == 2
    assert "holds another run: seed 0 there, 1 asked" in other.stderr
    assert "final exit" in mess("calibrate", run, "--latency-rounds", 2).stdout
    told = json.loads(mess("calibrate", run, "--latency-rounds", 2, "--json").stdout)
    assert told["images"] > 0
    assert "final" in told["mean_iou"]
    found = mess("search", run).stdout
    for name in ("drop-0.1pp", "drop-1pp", "best-at-1x", "front"):
        assert name in found
    (run / "configurations" / "miou-100.json").write_text("of an earlier search")
    impossible = mess("search", run, "--min-accuracy", 100, check=False)
    assert impossible.returncode == 1
    assert "nothing satisfies the target; nearest: " in impossible.stdout
    assert "infeasible: " in impossible.stdout
    assert not (run / "configurations" / "miou-100.json").exists()
    budgeted = json.loads(mess("search", run, "--setting", "budgeted", "--budget", "0.5x", "--json").stdout)
    assert len(budgeted["best-at-0.5x"]["configurations"][0]["exits"]) == 1
    table = run / "table-val.safetensors"
    wanted = ("--min-cost", "--accuracy-drop", 5, "--cost", "latency", "--journal", tmp_path / "journal")
    by_file = mess("search", table, *wanted).stdout
    assert "drop-5pp: " in by_file
    assert "greedy: " in by_file
    assert (tmp_path / "journal").read_text().startswith("mess-search-journal 3 ")
    assert "front: " in mess("search", run, "--front", "--resolution", 1, "--max-exits", 2).stdout
    assert "original" in mess("evaluate", run, "--clock-images", 2, "--rounds", 1).stdout
    drawn = json.loads(mess("picture", run, "--num-images", 2, "--json").stdout)["pictures"]
    assert all(Image.open(name).size[0] > 400 for name in drawn)
    for name in ("workload", "tradeoff", "predictions"):
        assert Image.open(run / "pictures" / f"{name}.png").size[0] > 400
    pixels = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.jpg")
    said = mess("run", run, tmp_path / "p.jpg", "--configuration", "best-at-1x", "--out", tmp_path / "out").stdout
    assert "left at" in said
    with Image.open(tmp_path / "out" / "p.png") as labels:
        assert (labels.mode, labels.size) == ("P", (50, 60))
    twice = mess("run", run, tmp_path / "p.jpg", tmp_path / "q" / "p.jpg", check=False)
    assert "images: expected different names" in twice.stderr
    Image.fromarray(pixels).save(tmp_path / "r.png")
    lost = mess("run", run, tmp_path / "r.png", "--out", tmp_path, check=False)
    assert "would be lost" in lost.stderr
    assert Image.open(tmp_path / "r.png").mode == "RGB"
    found = mess("evaluate", run, "--clock-images", 1, "--rounds", 1, "--json")
    assert json.loads(found.stdout)["split"] == "test"
    assert "too good to be true" not in found.stderr
    seen = mess("evaluate", run, "--split", "val", "--clock-images", 1, "--rounds", 1).stdout
    assert "chosen on the val split itself, so too good to be true of others" in seen.replace("\n", " ")
    (tmp_path / "p.jpg").write_bytes(b"no picture")
    broken = mess("run", run, tmp_path / "p.jpg", "--configuration", "best-at-1x", check=False)
    assert broken.returncode == 2
    assert "cannot be decoded as an image" in broken.stderr


@pytest.mark.slow
def test_another_normalisation_goes_all_the_way(tmp_path):
    """A picture with the values that the network was trained on, whoever loads it."""
    run = tmp_path / "run"
    model = ("--model", "small_resnet_fcn", "--num-exits", 3, "--heads", "fcn-r1-b0")
    data = ("--data", "scenes:8", "--size", "48x64", "--batch-size", 4, "--mean", "0.5,0.4,0.3", "--std", "0.2,0.3,0.4")
    mess("train", *model, *data, "--epochs", 0, "--exit-epochs", 1, "--out", run)
    mess("calibrate", run, "--latency-rounds", 0)
    mess("search", run, "--min-cost", "--accuracy-drop", 5)
    mess("picture", run, "--configuration", "drop-5pp", "--num-images", 1, "--split", "val")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    images = (torch.from_numpy(pixels) / 255 - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.2, 0.3, 0.4])
    deployed = mess_package.load_run(run)
    expected = deployed(images.permute(2, 0, 1)[None]).labels[0].numpy()
    assert len(np.unique(expected)) > 1
    assert deployed.class_names
    mess("export", run, "--out", tmp_path / "net")
    mess("share", run, "--out", tmp_path / "shared")
    mess("run", run, save(pixels, tmp_path / "p.png"), "--out", tmp_path / "out")
    found = {
        "run": np.asarray(Image.open(tmp_path / "out" / "p.png")),
        "run in Python": mess_package.run(deployed, pixels).labels,
        "shared": mess_package.run(mess_package.from_pretrained(tmp_path / "shared"), pixels).labels,
        "exported": mess_package.Runtime(tmp_path / "net").predict(pixels).labels,
    }
    for name, labels in found.items():
        assert (labels != expected).mean() <= (0.01 if name == "exported" else 0), name
    wrong = mess("run", tmp_path / "net", tmp_path / "p.png", check=False).stderr
    assert f"(no run.json there); {tmp_path / 'net'} is a deployment, for mess.Runtime" in wrong
    with pytest.raises(FileNotFoundError, match="no such file; .* is a run folder, for mess run, mess export"):
        mess_package.Runtime(run)


def save(pixels: np.ndarray, path):
    Image.fromarray(pixels).save(path)
    return path
