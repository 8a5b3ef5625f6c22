"""A shared folder: the same predictions from it, the Hub's layout, and nothing of it trusted."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import types
from dataclasses import replace

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

import mess
from mess import cli, search_verb, verbs
from mess.deployment.card import model_card
from mess.deployment.pretrained import Pretrained
from mess.model.zoo import comes_from_a_library, small_resnet_fcn
from mess.searching import request

CLASSES = ("a", "b", "c", "d", "e", "f")


@pytest.fixture(scope="module")
def found(table):
    return {"best": mess.search(table, max_cost_ratio=0.8).best, "half": mess.search(table, max_cost_ratio=0.5).best}


@pytest.fixture
def shared(network, found, tmp_path):
    mess.save_pretrained(network, tmp_path / "net", found, class_names=CLASSES, model="small_resnet_fcn")
    return tmp_path / "net"


def same(a, b, images):
    first, second = a(images), b(images)
    assert torch.equal(first.exits, second.exits)
    assert torch.equal(first.logits, second.logits)


@pytest.mark.parametrize("name", [None, "best", "half"])
def test_what_is_loaded_predicts_the_same_bits(network, found, shared, val_images, name):
    loaded = mess.from_pretrained(shared, configuration=name)
    same(mess.deploy(network, found[name or "best"]), loaded, val_images[0])
    assert loaded.class_names == CLASSES
    assert not loaded.training


def test_the_layout(shared, found):
    assert {path.name for path in shared.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    config = json.loads((shared / "config.json").read_text())
    assert config["id2label"] == dict(zip("012345", CLASSES, strict=True))
    used = {chosen.exit for c in found.values() for chosen in c.exits if chosen.exit != "final"}
    heads = {tuple(name.split(".")[1:3]) for name in load_file(shared / "model.safetensors") if "heads." in name}
    assert heads == {tuple(name.split(":")) for name in used}  # no candidate that nobody uses
    assert Pretrained.load(shared).configurations == found


def test_a_model_of_ones_own_is_given(network, found, tmp_path, val_images):
    mess.save_pretrained(network, tmp_path / "net", found["half"], class_names=CLASSES)
    with pytest.raises(TypeError, match="network: expected a MultiExitNetwork, from mess.convert, got Deployed"):
        mess.save_pretrained(mess.deploy(network, found["half"]), tmp_path / "x", found["half"], class_names=CLASSES)
    with pytest.raises(ValueError, match="net: expected the model, which"):
        mess.from_pretrained(tmp_path / "net")
    same(
        mess.deploy(network, found["half"]),
        mess.from_pretrained(tmp_path / "net", small_resnet_fcn(num_classes=6)),
        val_images[0],
    )
    with pytest.raises(ValueError, match="6 classes, got 7"):
        mess.from_pretrained(tmp_path / "net", small_resnet_fcn(num_classes=7))
    with pytest.raises(ValueError, match="does not fit the network"):
        mess.from_pretrained(tmp_path / "net", small_resnet_fcn(num_classes=6, width=8))


def narrow(channels, num_classes):
    return nn.Conv2d(channels, num_classes, 1)


def test_heads_of_ones_own_are_given(tmp_path):
    network = mess.convert(
        small_resnet_fcn(num_classes=6), torch.zeros(1, 3, 48, 64), num_exits=3, heads=["fcn-r4-b0", narrow]
    ).eval()
    model = tuple(point.name for point in network.points)
    exits = [mess.ChosenExit(exit=name) for name in ("0:narrow", "1:fcn-r4-b0", "final")]
    anytime = mess.Configuration(setting="anytime", model=model, exits=tuple(exits))
    mess.save_pretrained(network, tmp_path / "net", anytime, class_names=CLASSES, model="small_resnet_fcn")
    with pytest.raises(ValueError, match="heads: expected the function that builds 'narrow'"):
        mess.from_pretrained(tmp_path / "net")
    loaded = mess.from_pretrained(tmp_path / "net", heads=[narrow])
    images = torch.rand(2, 3, 48, 64)
    for a, b in zip(mess.deploy(network, anytime).anytime(images), loaded.anytime(images), strict=True):
        assert torch.equal(a.logits, b.logits)


@pytest.mark.parametrize("known", [{}, {"mean": (0.5,), "std": (0.25,)}])
def test_images_of_another_number_of_channels(tmp_path, known):
    """How they are normalised is the caller's to know, unless it is told."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 2, 1))
    network = mess.convert(net, torch.zeros(1, 1, 16, 16), exit_points=["0"], heads=["fcn-r1-b0"]).eval()
    alone = mess.Configuration(setting="budgeted", model=("0",), exits=(mess.ChosenExit(exit="final"),))
    mess.save_pretrained(network, tmp_path / "net", alone, class_names=("a", "b"), **known)
    loaded = mess.from_pretrained(tmp_path / "net", net)
    same(mess.deploy(network, alone), loaded, torch.rand(2, 1, 16, 16))
    assert not known or (loaded.mean, loaded.std) == (known["mean"], known["std"])


def test_tied_weights(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 3, 3, padding=1)
            self.second = nn.Sequential(self.first, nn.Conv2d(3, 2, 1))

        def forward(self, images):
            return self.second(self.first(images))

    network = mess.convert(Tied(), torch.zeros(1, 3, 16, 16), exit_points=["first"], heads=["fcn-r1-b0"]).eval()
    alone = mess.Configuration(setting="budgeted", model=("first",), exits=(mess.ChosenExit(exit="final"),))
    mess.save_pretrained(network, tmp_path / "net", alone, class_names=("a", "b"))
    images = torch.rand(1, 3, 16, 16)
    same(mess.deploy(network, alone), mess.from_pretrained(tmp_path / "net", Tied()), images)


@pytest.mark.parametrize("code", ["mine.py:net", "os:system", "hf:../elsewhere", "hf:somebody/model"])
def test_no_folder_has_code_run_or_other_files_read(shared, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("raise SystemExit('was run')")
    config = json.loads((shared / "config.json").read_text())
    (shared / "config.json").write_text(json.dumps({**config, "model": code}))
    with pytest.raises(ValueError, match="never loaded on a folder's word"):
        mess.from_pretrained(shared)


def test_which_models_come_from_libraries():
    for spec in ("small_resnet_fcn", "mobilenet_v2_fcn:16", "torchvision:fcn_resnet50", "smp:Unet/resnet18", "hf:dpt"):
        assert comes_from_a_library(spec)
    foreign = ("smp:Unet/tu-local-dir:/some/path", "smp:Unet/tu-hf-hub:somebody/model")
    for spec in ("", "torchvision:nothing", "mobilenet_v2_fcn:x", "package.module:factory", *foreign):
        assert not comes_from_a_library(spec)


def change(shared, **entries):
    config = json.loads((shared / "config.json").read_text())
    (shared / "config.json").write_text(json.dumps({**config, **entries}))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"format": "another"}, "expected format 'mess pretrained', got 'another'"),
        ({"version": 9}, "expected version 1, got 9"),
        ({"configurations": {}}, "configurations: expected at least one"),
        ({"configurations": {"x": {"version": 7}}}, "expected version 1, got 7"),
        ({"id2label": {"1": "a"}}, "a name for each class"),
        ({"id2label": {"0": "a", "1": "b"}}, "net: expected|expected logits of|does not fit"),
        ({"input": {"size": [0, 4], "channels": 3, "mean": [], "std": []}}, "size: expected height and width above 0"),
        ({"input": {"size": [8, 8], "channels": 3, "mean": [0.5], "std": [1.0]}}, "mean, std: expected 3 numbers each"),
        (
            {"input": {"size": [65536, 65536], "channels": 3, "mean": [], "std": []}},
            "input: expected sides of at most 65536 and at most 268435456 numbers an image, got 3 channels of 65536 x",
        ),
        ({"input": {"size": [8, 8], "channels": 2**40, "mean": [], "std": []}}, "input: expected sides of at most"),
        ({"input": {"size": [8, 8], "channels": 0, "mean": [], "std": []}}, "input: expected sides of at most"),
        ({"input": {"size": [8, 8], "channels": 1, "mean": [0.5], "std": [0.0]}}, "std: expected numbers in 1e-6..1e6"),
        ({"palette": [[1, 2, 300]]}, "palette: expected"),
        ({"weights": {"sha256": "0"}}, "expected the file of config.json, got another"),
        ({"stages": ["nowhere"]}, "stages: expected"),
    ],
)
def test_a_folder_that_is_off(shared, entries, said):
    change(shared, **entries)
    with pytest.raises(ValueError, match=said):
        mess.from_pretrained(shared)


def test_broken_weights(shared):
    whole = (shared / "model.safetensors").read_bytes()
    (shared / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="got another"):
        mess.from_pretrained(shared)
    (shared / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=re.escape("model.safetensors")):
        mess.from_pretrained(shared)
    with pytest.raises(FileNotFoundError, match=re.escape("nowhere/config.json")):
        mess.from_pretrained(shared.parent / "nowhere")


def test_what_is_written_over(network, found, shared):
    before = (shared / "config.json").read_bytes()
    options = {"class_names": CLASSES, "model": "small_resnet_fcn"}
    mess.save_pretrained(network, shared, found, **options)
    assert (shared / "config.json").read_bytes() == before
    with pytest.raises(ValueError, match="class_names: expected 6, got 2"):
        mess.save_pretrained(network, shared, found, class_names=("a", "b"))
    nothing = {"split": "test", "images": 1, "facts": {}, "original": {}, "configurations": {}}
    with pytest.raises(ValueError, match="measured: expected all of"):
        mess.save_pretrained(network, shared, found, measured=nothing, **options)
    assert (shared / "config.json").read_bytes() == before
    (shared / "precious.txt").touch()
    with pytest.raises(ValueError, match=r"out: expected a new or empty folder.*'precious.txt' would be lost"):
        mess.save_pretrained(network, shared, found, **options)
    (shared / "precious.txt").unlink()
    for name, content in (
        ("README.md", "mine"),
        ("config.json", '{"model_type": "segformer"}'),
    ):  # as transformers has it
        mine = shared.with_name(name)
        mine.mkdir()
        (mine / name).write_text(content)
        with pytest.raises(ValueError, match=r"out: expected a new or empty folder, .*config.json"):
            mess.save_pretrained(network, mine, found, **options)
        assert (mine / name).read_text() == content


def test_other_networks_configurations(network, found, tmp_path):
    other = mess.convert(small_resnet_fcn(num_classes=6), torch.zeros(1, 3, 48, 64), num_exits=2, heads="tiny")
    with pytest.raises(ValueError, match="configurations: expected exit points"):
        mess.save_pretrained(other, tmp_path / "net", found, class_names=CLASSES)
    assert not (tmp_path / "net").exists()


def test_the_card_is_one_for_the_hub(found):
    row = {"mean_iou": 0.5, "macs": 4e8, "shares": [0.5, 0.5], "clock": {"deployed_ms": 3.0, "plain_ms": 4.0}}
    measured = {
        "split": "test",
        "images": 12,
        "facts": {"data": 'odd: "name" #1', "device": "cuda:0"},
        "original": {"mean_iou": 0.6, "macs": 8e8},
        "configurations": {"best": row, "half": row},
    }
    text = model_card(found, model="", size=(48, 64), measured=measured, license="apache-2.0")
    card = huggingface_hub.ModelCard(text)
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "image-segmentation"
    assert {(r.dataset_name, r.metric_type, r.metric_value) for r in card.data.eval_results} == {
        ('odd: "name" #1', "mean_iou", 0.5)
    }
    assert "| best | 50.00% | 50.0% | 75.0% | 50%, 50% |" in text
    assert "which the search did not see" in text
    seen = model_card(found, model="", size=(48, 64), measured=measured | {"split": "val"})
    assert "which the search did not see" not in seen
    assert "by which `best`, `half` was chosen" in seen
    assert huggingface_hub.ModelCard(seen).data.eval_results is None
    promise = {**found["best"].promise, "split": "extra", "searched_split": "test"}  # chosen on one, proven on another
    proven = {"best": replace(found["best"], promise=promise)}
    assert "by which `best` was chosen" in model_card(proven, model="", size=(48, 64), measured=measured)
    assert "time of one image on the CPU" in text  # where it was taken, whatever the table was calibrated on
    plain = huggingface_hub.ModelCard(model_card(found, model="small_resnet_fcn", size=(48, 64)))
    assert plain.data.eval_results is None
    assert "Not measured on images that the search did not see" in plain.text


def test_the_card_says_what_is_in_the_folder(found):
    alone = {"best": found["best"]}
    row = {"mean_iou": 0.5, "macs": 4e8, "shares": [1.0], "clock": {"deployed_ms": 3.0, "plain_ms": 4.0}}
    measured = {
        "split": "test",
        "images": 12,
        "facts": {},
        "original": {"mean_iou": 0.6, "macs": 8e8},
        "configurations": {"best": row, "half": row},
    }
    card = huggingface_hub.ModelCard(model_card(alone, model="mine.py:net", size=(48, 64), measured=measured))
    assert [result.metric_name for result in card.data.eval_results] == ["best"]
    assert 'mess.from_pretrained(".", net=my_model)' in card.text  # what makes it is code
    assert "net=" not in model_card(alone, model="small_resnet_fcn", size=(48, 64)).split("```")[1]


def test_the_hub_is_asked_when_it_is_named(network, found, shared, val_images, monkeypatch, tmp_path):
    """The library's own calls, and no network: what they are called with is what is looked at."""
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.append((name, options)) or str(shared)
    )
    same(mess.deploy(network, found["best"]), mess.from_pretrained("somebody/net", revision="abc"), val_images[0])
    files = ["config.json", "model.safetensors", "README.md"]
    assert asked == [("somebody/net", {"revision": "abc", "allow_patterns": files})]
    calls = []
    api = types.SimpleNamespace(
        create_repo=lambda name, exist_ok, private: calls.append(("create", name, exist_ok, private)),
        upload_folder=lambda repo_id, folder_path, allow_patterns: calls.append((repo_id, folder_path, allow_patterns)),
    )
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    out = tmp_path / "up"
    for private in (False, True):
        mess.save_pretrained(network, out, found, class_names=CLASSES, push_to_hub="somebody/net", private=private)
        assert calls == [("create", "somebody/net", True, private or None), ("somebody/net", out, sorted(files))]
        calls.clear()


def test_private_says_how_to_share(network, found, tmp_path):
    with pytest.raises(ValueError, match="private: expected push_to_hub beside it, got none"):
        mess.save_pretrained(network, tmp_path / "net", found, class_names=CLASSES, private=True)


def test_what_the_hub_refuses_is_one_line(network, found, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("401 Client Error.\n\nRepository Not Found for url: x.\nPlease log in.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(
        RuntimeError, match="^pretrained: somebody/net: no such folder, and 401 Client Error. Repository"
    ):
        mess.from_pretrained("somebody/net")
    for folder in ("./net", "../net"):  # no names there
        with pytest.raises(FileNotFoundError, match=r"pretrained: expected a file, got .*net/config.json"):
            mess.from_pretrained(folder)
    options = {"class_names": CLASSES, "push_to_hub": "somebody/net"}
    with pytest.raises(RuntimeError, match="^push_to_hub: somebody/net: 401 .* Please log in.; .*net is written$"):
        mess.save_pretrained(network, tmp_path / "net", found, **options)
    assert (tmp_path / "net" / "config.json").is_file()


def test_without_the_hubs_library(network, found, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RuntimeError, match=re.escape("pip install 'mess[hub]'")):
        mess.from_pretrained("somebody/net")
    with pytest.raises(RuntimeError, match=re.escape("pip install 'mess[hub]'")):
        mess.save_pretrained(network, tmp_path / "net", found, class_names=CLASSES, push_to_hub="somebody/net")
    assert not (tmp_path / "net").exists()


@pytest.mark.slow
def test_the_verbs(run_folder, tmp_path):
    """From a run to a shared folder, and from there alone to a segmented picture, the same as from the run."""
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    search_verb.search_run(run, target=("drop-1pp", request.Target(max_drop=0.05)))
    search_verb.search_run(run, target=("best-at-1x", request.Target(max_cost_ratio=1.0)))
    verbs.evaluate_run(run, clock_images=2, rounds=1)
    told = CliRunner().invoke(cli.app, ["share", str(run), "--out", str(tmp_path / "net"), "--license", "mit"])
    assert told.exit_code == 0, told.output
    card = huggingface_hub.ModelCard.load(tmp_path / "net" / "README.md")
    assert card.data.license == "mit"
    assert len(card.data.eval_results) == 2
    kept = (run / "configurations" / "drop-1pp.json").read_text()
    other = json.loads(kept) | {"exits": [{"exit": "final"}]}
    (run / "configurations" / "drop-1pp.json").write_text(json.dumps(other))  # searched again, and not measured
    with pytest.raises(ValueError, match=r"evaluation-test.json is not of .* as they are now; run `mess evaluate"):
        verbs.share_run(run, names=[], out=tmp_path / "stale")
    assert not (tmp_path / "stale").exists()
    (run / "configurations" / "drop-1pp.json").write_text(kept)
    photo = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    for folder, out in ((run, "a"), (tmp_path / "net", "b")):
        command = [sys.executable, "-m", "mess", "run", str(folder), "photo.png", "--out", out]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    (tmp_path / "net" / "config.json").write_text(json.dumps({**config, "model": "mine.py:net"}))
    with pytest.raises(ValueError, match="mess run has --model"):
        next(verbs.run_images(tmp_path / "net", [tmp_path / "photo.png"], configuration=None, out=tmp_path / "c"))
    command = [sys.executable, "-m", "mess", "run", "net", "photo.png", "--out", "c", "--model", "small_resnet_fcn"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert np.array_equal(Image.open(tmp_path / "b" / "photo.png"), Image.open(tmp_path / "c" / "photo.png"))
    a, b = (Image.open(tmp_path / name / "photo.png") for name in "ab")
    assert np.array_equal(a, b)
    assert a.getpalette() == b.getpalette()
    with pytest.raises(ValueError, match="configuration: expected some of"):
        verbs.share_run(run, names=["other"], out=tmp_path / "net")
