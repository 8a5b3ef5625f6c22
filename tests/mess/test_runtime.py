"""A deployment folder: the same as the torch network, without torch; hostile and altered folders; deadlines."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms import v2

import mess
import mess_core
from mess import runs, verbs
from mess.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from mess.data.transforms import image_tensor
from mess.deployment.configuration import ChosenExit, Configuration
from mess.runtime import Manifest, Stream
from mess.runtime.pixels import labels_at
from tests.mess.conftest import SETTINGS
from tests.mess.test_deployment import dividing, gated
from tests.oracles.pictures import resized

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def configuration(table):
    return dividing(table)


@pytest.fixture(scope="module")
def folder(network, configuration, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "net"
    mess.export(mess.deploy(network, configuration), out, class_names=[f"class {i}" for i in range(6)])
    return out


@pytest.fixture(scope="module")
def pictures():
    data = runs.dataset(SETTINGS, split="val")
    return [data.pair(i)[0] for i in range(len(data))]


def test_the_same_network_gives_the_same_files(network, configuration, folder, tmp_path):
    """Nothing in them says where they were made."""
    mess.export(mess.deploy(network, configuration), tmp_path / "net", class_names=[f"class {i}" for i in range(6)])
    for path in folder.iterdir():
        content = path.read_bytes()
        assert (tmp_path / "net" / path.name).read_bytes() == content
        assert b"stack_trace" not in content
        assert str(Path(mess.__file__).parent).encode() not in content


def test_it_is_the_torch_network(network, configuration, folder, pictures):
    """Labels, exits and image confidences of every picture, alone and in one batch; pictures of the network's size."""
    pictures = [resized(picture, SETTINGS.size) for picture in pictures]
    deployed, runtime = mess.deploy(network, configuration), mess.Runtime(folder)
    together = runtime.predict_batch(pictures)
    taken = set()
    for picture, of_batch in zip(pictures, together, strict=True):
        expected, alone = mess.run(deployed, picture), runtime.predict(picture)
        for found in (alone, of_batch):
            assert found.exit == expected.exit
            assert found.labels.shape == picture.shape[:2]
            assert (found.labels == expected.labels).mean() > 0.999  # pixels whose two best classes are within rounding
            assert found.image_confidence == pytest.approx(expected.image_confidence, abs=2e-3)
        assert len(alone.stage_ms) == 1 + [entry.exit for entry in configuration.exits].index(alone.exit)
        taken.add(alone.exit)
    assert len(taken) > 1


class Twice(torch.nn.Module):
    """What is alive at its exit point is one tensor under two names, as in SegFormer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 8), (8, 8), (8, 4)))

    def forward(self, x):
        x = self.a(x)
        y, z = x.flatten(2), x.flatten(2)
        x = self.b(x)
        return self.c(x + (y * z).view_as(x))


def test_a_tensor_that_is_carried_twice(tmp_path):
    network = mess.convert(Twice(), torch.zeros(1, 3, 16, 24), exit_points=["a", "b"], heads=["fcn-r8-b0"])
    exits = [ChosenExit(exit=e.name, pixel_threshold=0.5, image_threshold=1.0) for e in network.exits]
    model = tuple(point.name for point in network.points)
    configuration = Configuration(setting="input-dependent", model=model, exits=(*exits, ChosenExit(exit="final")))
    mess.export(mess.deploy(network.eval(), configuration), tmp_path / "net", class_names="abcd")
    runtime = mess.Runtime(tmp_path / "net")
    assert len(runtime.manifest.exits[1].inputs) == len(set(runtime.manifest.exits[1].inputs))
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    found, expected = runtime.predict(picture), mess.run(mess.deploy(network, configuration), picture)
    assert found.exit == expected.exit
    assert (found.labels == expected.labels).mean() > 0.99
    pytest.importorskip("openvino")  # which forgets an input that is only asked for its batch size
    assert (mess.Runtime(tmp_path / "net", backend="openvino").predict(picture).labels == found.labels).mean() > 0.99


def test_pictures_of_another_size_are_resized_alike(network, configuration, folder, pictures):
    deployed, runtime = mess.deploy(network, configuration), mess.Runtime(folder)
    agreed = [(runtime.predict(p).labels == mess.run(deployed, p).labels).mean() for p in pictures]
    assert np.mean(agreed) > 0.999


def test_threads_change_nothing(folder, pictures):
    results = [mess.Runtime(folder, threads=threads).predict(pictures[0]) for threads in (None, 1, 2)]
    for other in results[1:]:
        assert other.exit == results[0].exit
        assert (other.labels == results[0].labels).mean() > 0.999
        assert other.image_confidence == pytest.approx(results[0].image_confidence, abs=1e-3)


def test_anytime_gives_every_exit(network, folder, pictures, configuration):
    deployed = mess.deploy(network, configuration)
    picture = resized(pictures[0], SETTINGS.size)
    steps = list(mess.Runtime(folder).anytime(picture))
    expected = list(deployed.anytime(image_tensor(picture)))
    assert [step.exit for step in steps] == [entry.exit for entry in configuration.exits]
    for step, other in zip(steps, expected, strict=True):
        assert (step.labels == other.labels[0].numpy()).mean() > 0.999


def test_an_anytime_deployment_predicts_at_the_last_exit(network, table, tmp_path, pictures):
    names = ("0:fcn-r1-b0", "2:fcn-r4-b0", "final")
    chosen = Configuration(setting="anytime", model=table.model, exits=tuple(ChosenExit(exit=name) for name in names))
    deployed = mess.deploy(network, chosen)
    mess.export(deployed, tmp_path / "net", class_names="abcdef")
    picture = resized(pictures[0], SETTINGS.size)
    whole = mess.run(deployed, picture)
    for options in ({}, {"deadline_ms": 1e6}):
        runtime = mess.Runtime(tmp_path / "net", **options)
        for result in (runtime.predict(picture), *runtime.predict_batch([picture, picture])):
            assert (result.exit, len(result.stage_ms)) == (whole.exit, 3) == ("final", 3)
            assert (result.labels == whole.labels).mean() > 0.999
    assert mess.Runtime(tmp_path / "net", deadline_ms=0).predict(picture).exit == names[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads: expected an integer in 1..1024, got 0"),
        ({"threads": 20000}, "threads: expected an integer in 1..1024, got 20000"),
        ({"threads": 1.5}, "threads: expected an integer in 1..1024, got 1.5"),
        ({"threads": "2"}, "threads: expected an integer"),
        ({"size": 48}, r"size: expected \(height, width\) in 1..65536, got 48"),
        ({"size": (True, True)}, "size: expected"),
        ({"size": (48,)}, "size: expected"),
        ({"size": (48.0, 64.0)}, "size: expected"),
    ],
)
def test_bad_options_of_a_runtime(folder, options, message):
    with pytest.raises(ValueError, match=message):
        mess.Runtime(folder, **options)


def test_a_size_of_numpy_integers(folder):
    height, width = SETTINGS.size
    assert mess.Runtime(folder, size=(np.int64(height), np.int64(width)), threads=np.int64(1)).size == SETTINGS.size


def test_a_budgeted_export_holds_what_its_exit_needs(network, table, folder, tmp_path, pictures):
    name = "0:fcn-r1-b0"
    chosen = Configuration(setting="budgeted", model=table.model, exits=(ChosenExit(exit=name),), policy=table.policy)
    manifest = mess.export(mess.deploy(network, chosen), tmp_path / "net", class_names="abcdef")
    assert sorted(manifest.files) == ["head-0.onnx", "stage-0.onnx"]
    whole = mess.Runtime(folder).manifest.files
    assert sum(f["bytes"] for f in manifest.files.values()) < sum(f["bytes"] for f in whole.values()) / 2
    result = mess.Runtime(tmp_path / "net").predict(pictures[0])
    assert (result.exit, result.image_confidence) == (name, ())


class Branches(torch.nn.Module):
    """A branch begins before the first exit point, goes on between the two, and is read behind the last."""

    def __init__(self, in_place: bool):
        super().__init__()
        self.stem, self.a, self.b = (torch.nn.Conv2d(i, 8, 3, padding=1) for i in (3, 8, 8))
        self.begin, self.go_on = torch.nn.Conv2d(8, 64, 3, padding=1), torch.nn.Conv2d(64, 64, 3, padding=1)
        self.relu, self.drop = torch.nn.ReLU(in_place), torch.nn.Dropout(0.5, in_place)
        self.last = torch.nn.Conv2d(72, 4, 1)

    def forward(self, x):
        x = self.relu(self.stem(x))
        beside = self.drop(self.relu(self.begin(x)))
        x = self.a(x)
        beside = self.relu(self.go_on(beside))
        beside += 1
        x = self.b(x.relu())
        return self.last(torch.cat([x.relu(), self.relu(self.go_on(beside))], 1))


@pytest.mark.parametrize("in_place", [False, True])
def test_a_budgeted_export_computes_what_its_exit_needs(tmp_path, in_place):
    """Neither the branch that goes on behind the exit, nor what it was carried in."""
    example = torch.zeros(1, 3, 16, 24)
    network = mess.convert(Branches(in_place), example, exit_points=["a", "b"], heads=["fcn-r1-b0"]).eval()
    model = tuple(point.name for point in network.points)
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    gate = {"pixel_threshold": 0.5, "image_threshold": 2.0}
    first, second = (ChosenExit(exit=f"{i}:fcn-r1-b0") for i in range(2))
    for setting, exits in (("budgeted", (first,)), ("input-dependent", (replace(first, **gate), second))):
        chosen = Configuration(setting=setting, model=model, exits=exits)
        deployed = mess.deploy(network, chosen)
        values = [value for stage in deployed.stages.stages for value in (*stage.parameters(), *stage.buffers())]
        assert all(value.shape[0] != 64 for value in values)
        manifest = mess.export(deployed, tmp_path / setting, class_names="abcd")
        assert [len(entry.outputs) for entry in manifest.exits] == [1] * len(exits)
        assert manifest.exits[-1].carried == ()
        found, expected = mess.Runtime(tmp_path / setting).predict(picture), mess.run(deployed, picture)
        assert found.exit == expected.exit == exits[-1].exit
        assert (found.labels == expected.labels).mean() > 0.99
        images = image_tensor(picture)
        with torch.no_grad():
            _, features = network.features(images)
            state = deployed.stages.start(images)
            for i in range(len(exits)):
                feature, state = deployed.stages.run_stage(i, state)
                assert torch.equal(feature, features[i])


class Overwriting(torch.nn.Module):
    """What is carried past an exit, or the images, is changed in place and read again behind a later one."""

    def __init__(self, what: str):
        super().__init__()
        self.what = what
        self.detail, self.a = (torch.nn.Conv2d(3, 8, 3, padding=1) for _ in range(2))
        self.b, self.c, self.out = (torch.nn.Conv2d(i, o, 1) for i, o in ((8, 8), (8, 8), (8, 4)))
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.7))

    def forward(self, images):
        if self.what == "images":
            images.sub_(self.mean)
        beside = self.detail(images)
        view, rest = beside[:, :4], beside[:, 4:]
        x = self.a(images)
        beside_too = x.sigmoid()
        x = self.b(x)
        if self.what == "carried":
            beside += beside_too
        elif self.what == "view":
            view.mul_(beside_too[:, :4])
        elif self.what == "halves":  # which share memory, and no number
            view.mul_(beside_too[:, :4])
            beside = torch.cat([view, rest], 1)
        x = self.c(x)
        return self.out(x + beside + (self.detail(images) if self.what == "images" else 0))


@pytest.mark.parametrize("what", ["images", "carried", "view", "halves"])
def test_what_a_stage_changes_in_place_is_changed_behind_it(tmp_path, what):
    """A value under its old name would be the one from before: other labels, and nothing to tell."""
    example = torch.zeros(1, 3, 16, 24)
    torch.manual_seed(0)
    network = mess.convert(Overwriting(what), example, exit_points=["a", "b", "c"], heads=["fcn-r1-b0"]).eval()
    gate = {"pixel_threshold": 0.5, "image_threshold": 2.0}
    exits = [ChosenExit(exit=f"{i}:fcn-r1-b0", **gate) for i in range(3)]
    chosen = Configuration(
        setting="input-dependent",
        model=tuple(point.name for point in network.points),
        exits=(*exits, ChosenExit(exit="final")),
    )
    deployed = mess.deploy(network, chosen)
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    if what == "view":
        with pytest.raises(RuntimeError, match="stage-2 changes a tensor in place of which another one"):
            mess.export(deployed, tmp_path, class_names="abcd")
        return
    mess.export(deployed, tmp_path, class_names="abcd")
    expected = mess.run(deployed, picture)
    assert expected.exit == "final"
    for backend in ("onnxruntime", "openvino"):
        found = mess.Runtime(tmp_path, backend=backend).predict(picture)
        assert found.exit == "final"
        assert np.array_equal(found.labels, expected.labels)


def test_a_deadline_ends_with_the_best_there_is(network, table, tmp_path, pictures, monkeypatch):
    mess.export(mess.deploy(network, gated(table, 1.5)), tmp_path / "net", class_names="abcdef")  # never sure
    exits = ["0:fcn-r1-b0", "2:fcn-r4-b0", "final"]
    assert mess.Runtime(tmp_path / "net", deadline_ms=0).predict(pictures[0]).exit == exits[0]
    assert mess.Runtime(tmp_path / "net", deadline_ms=1e6).predict(pictures[0]).exit == exits[2]
    clock = iter(range(1000))  # every look at the clock is 1 ms after the last one
    monkeypatch.setattr("mess.runtime.network.time.perf_counter", lambda: next(clock) / 1000)
    runtime = mess.Runtime(tmp_path / "net", deadline_ms=5.5)
    # start 0; stage 0 from 1 to 2; at 3 nothing is known of stage 1, which runs from 4 to 5; at 6 it is too late
    assert runtime.predict(pictures[0]).exit == exits[1]
    # the second time a stage is known to take 1 ms and a label map too: 3 + 1 + 1 is in time, 6 + 1 + 1 is not
    assert runtime.predict(pictures[0]).exit == exits[1]
    runtime.deadline_ms = 4.5
    assert runtime.predict(pictures[0]).exit == exits[0]
    for bad in (-1.0, float("nan"), "5"):
        with pytest.raises(ValueError, match="deadline_ms: expected a number of milliseconds, 0 or more"):
            mess.Runtime(tmp_path / "net", deadline_ms=bad)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_what_batches_need_is_loaded_before_the_clock_runs(folder, pictures, backend):
    """Else the first run of a stage would say that it is slow; also of stages that no image gets to yet."""
    if backend == "openvino":
        pytest.importorskip("openvino")
    runtime = mess.Runtime(folder, backend=backend, deadline_ms=1e6)
    everybody_leaves = [None if e.image_threshold is None else 0.0 for e in runtime.manifest.exits]
    runtime.predict(pictures[0], image_thresholds=everybody_leaves)
    assert all(stage._any is None for stage in runtime._stages)
    runtime.predict_batch(pictures[:2], image_thresholds=everybody_leaves)
    assert all(session._any is not None for session in (*runtime._stages, *runtime._heads) if session)


def test_a_stage_that_was_slow_is_not_given_up_for_ever(network, table, tmp_path, pictures, monkeypatch):
    """A deadline between 5 and 6 looks at the clock is enough for two exits, as above; stages may take longer."""
    mess.export(mess.deploy(network, gated(table, 1.5)), tmp_path / "net", class_names="abcdef")
    exits = ["0:fcn-r1-b0", "2:fcn-r4-b0", "final"]
    now, slow = [0], [0]

    def look():
        now[0] += 1
        return now[0] / 1000

    monkeypatch.setattr("mess.runtime.network.time.perf_counter", look)
    monkeypatch.setattr("mess.runtime.network.RETRY_AFTER", 3)
    runtime = mess.Runtime(tmp_path / "net", deadline_ms=5.5)
    run = runtime._stages[1].run

    def delayed(*args, **options):
        now[0] += slow[0]
        return run(*args, **options)

    runtime._stages[1].run = delayed

    def predict():
        return runtime.predict(pictures[0]).exit

    assert [predict() for _ in range(3)] == [exits[1]] * 3
    slow[0] = 50
    assert predict() == exits[1]  # late: nobody knew
    slow[0] = 0
    assert [predict() for _ in range(4)] == [exits[1]] * 4  # one slow run of five is not what to expect
    slow[0] = 50
    assert [predict() for _ in range(3)] == [exits[1]] * 3  # three are
    slow[0] = 0
    assert [predict() for _ in range(3)] == [exits[0]] * 3
    assert [predict() for _ in range(3)] == [exits[1]] * 3  # tried again after three calls without it, and fast again
    runtime.deadline_ms = 0
    assert [predict() for _ in range(9)] == [exits[0]] * 9  # when there is no time left nothing is tried
    other = mess.Runtime(tmp_path / "net", deadline_ms=5.5)
    other.predict_batch(pictures[:8])
    assert other.predict(pictures[0]).exit == exits[1]  # what a batch takes says nothing of one picture
    slow[0] = 50
    for one in [other] * 3:
        one.predict(pictures[0])
    slow[0] = 0
    other.deadline_ms = 40
    taken = []
    for _ in range(12):  # batches that are in time, in between, do not keep pictures from being tried again
        taken.append(other.predict(pictures[0]).exit)
        other.predict_batch(pictures[:2])
    assert taken.count(exits[2]) >= 3


def test_the_label_maps_of_those_that_leave_count_for_the_deadline(network, table, tmp_path, pictures, monkeypatch):
    """They are made before it is decided whether there is time for the others."""
    mess.export(mess.deploy(network, dividing(table)), tmp_path / "net", class_names="abcdef")
    pictures = [resized(picture, SETTINGS.size) for picture in pictures]
    exits = [result.exit for result in mess.Runtime(tmp_path / "net").predict_batch(pictures)]
    leaving = exits.count("0:fcn-r1-b0")
    assert 0 < leaving < len(pictures)
    now = [0.0]
    monkeypatch.setattr("mess.runtime.network.time.perf_counter", lambda: now[0])
    runtime = mess.Runtime(tmp_path / "net", deadline_ms=10 * leaving - 1)
    result = runtime._result

    def of_ten_ms(*args):
        now[0] += 0.01
        return result(*args)

    runtime._result = of_ten_ms
    assert {one.exit for one in runtime.predict_batch(pictures)} == {"0:fcn-r1-b0"}
    now[0], runtime.deadline_ms = 0.0, 10 * len(pictures)
    assert [one.exit for one in runtime.predict_batch(pictures)] == exits


class Scripted:
    """A runtime whose first exit says what it is told, so that a stream can be followed by hand."""

    def __init__(self, confidences):
        entries = [SimpleNamespace(name=n, image_threshold=t) for n, t in (("a", 0.9), ("b", 0.8), ("last", None))]
        self.manifest = SimpleNamespace(setting="input-dependent", exits=entries)
        self.confidences, self.asked, self.cut_off = iter(confidences), [], False

    def predict(self, frame, *, image_thresholds):
        self.asked.append(tuple(image_thresholds))
        a, b = next(self.confidences)
        leaves = [a >= image_thresholds[0], b >= image_thresholds[1], True]
        if self.cut_off:
            leaves = [True, *leaves[1:]]
        at = leaves.index(True)
        return SimpleNamespace(exit=self.manifest.exits[at].name, image_confidence=(a, b)[: at + 1])


def test_a_stream_stops_asking_an_exit_that_refuses():
    runtime = Scripted([(0.5, 0.85)] * 7)
    stream = Stream(runtime, skip_after=2, retry_every=5)
    assert [stream.predict(None).exit for _ in range(7)] == ["b"] * 7
    asked = [thresholds[0] for thresholds in runtime.asked]
    assert asked == [0.9, 0.9, np.inf, np.inf, np.inf, 0.9, np.inf]  # the sixth frame tries again
    assert {thresholds[1:] for thresholds in runtime.asked} == {(0.8, None)}
    stream.reset()
    runtime.confidences = iter([(0.5, 0.5)])
    assert stream.predict(None).exit == "last"
    assert runtime.asked[-1] == (0.9, 0.8, None)


def test_a_stream_with_hysteresis_does_not_flicker():
    frames = [(0.91, 0), (0.89, 0.85), (0.91, 0), (0.85, 0.85), (0.89, 0.79)]
    plain, sticky = Stream(Scripted(frames)), Stream(Scripted(frames), hysteresis=0.03)
    assert [plain.predict(None).exit for _ in frames] == ["a", "b", "a", "b", "last"]
    assert [sticky.predict(None).exit for _ in frames] == ["a", "a", "a", "b", "b"]
    most = Stream(Scripted([(0.91, 0), (0.45, 0), (0.44, 0.4), (0.3, 0)]), hysteresis=1.0)
    assert [most.predict(None).exit for _ in range(4)] == ["a", "a", "last", "last"]  # half of 0.9, never nothing


def test_a_frame_that_a_deadline_cut_off_was_refused():
    runtime = Scripted([(0.5, 0)] * 4)
    runtime.cut_off = True  # at its first exit
    stream = Stream(runtime, skip_after=3, retry_every=10, hysteresis=0.1)
    assert [stream.predict(None).exit for _ in range(4)] == ["a"] * 4
    assert [thresholds[0] for thresholds in runtime.asked] == [0.9, 0.9, 0.9, np.inf]


def test_a_stream_over_a_folder(folder, pictures, network, table, tmp_path):
    runtime = mess.Runtime(folder)
    plain = [runtime.predict(picture) for picture in pictures]
    stream = Stream(runtime)
    assert [stream.predict(picture).exit for picture in pictures] == [result.exit for result in plain]
    never = [np.inf, np.inf, None]
    last = runtime.predict(pictures[0], image_thresholds=never)
    assert (last.exit, last.image_confidence, len(last.stage_ms)) == ("final", (), 3)
    with pytest.raises(ValueError, match="image_thresholds: expected one an exit"):
        runtime.predict(pictures[0], image_thresholds=[0.5])
    for bad in ([np.nan, 1, None], ["a", 1, None], [True, 1, None]):
        with pytest.raises(ValueError, match="image_thresholds: expected numbers, got"):
            runtime.predict(pictures[0], image_thresholds=bad)
    chosen = Configuration(
        setting="budgeted", model=table.model, exits=(ChosenExit(exit="final"),), policy=table.policy
    )
    mess.export(mess.deploy(network, chosen), tmp_path / "net", class_names="abcdef")
    with pytest.raises(ValueError, match="runtime: expected an 'input-dependent' deployment"):
        Stream(mess.Runtime(tmp_path / "net"))
    bad_options = [{"skip_after": bad} for bad in (0, 1.5, True, "3")]
    bad_options += [{"retry_every": bad} for bad in (0, 2.5, None)]
    for option in (*bad_options, {"hysteresis": -0.1}, {"hysteresis": "a"}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: expected"):
            Stream(runtime, **option)


GREY_LEVELS = 0 if "AVX" in torch.backends.cpu.get_cpu_capability() else 1
"""By how many torchvision may differ: it has an integer kernel with AVX2, and rounds floats elsewhere."""


@given(
    st.tuples(st.integers(1, 200), st.integers(1, 200)),
    st.tuples(st.integers(1, 130), st.integers(1, 130)),
    st.integers(0, 9),
    st.booleans(),
)
def test_pictures_are_resized_as_torchvision_does_bit_for_bit(old, new, seed, extreme):
    rng = np.random.default_rng(seed)
    image = (rng.integers(0, 2, (*old, 3)) * 255 if extreme else rng.integers(0, 256, (*old, 3))).astype(np.uint8)
    found = mess_core.network_input(image, mean=(0, 0, 0), std=(1 / 255,) * 3, size=new)
    expected = v2.functional.resize(torch.from_numpy(image).permute(2, 0, 1), list(new), antialias=True)
    assert np.abs(found - expected.numpy()).max() <= GREY_LEVELS


@pytest.mark.parametrize("size", [(48, 64), (20, 31), (100, 70), (1, 1), (48, 200)])
def test_pixels_are_those_of_training(size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = mess_core.network_input(image, mean=IMAGENET_MEAN, std=IMAGENET_STD, size=(48, 64))
    limit = (GREY_LEVELS + 1e-3) / 255 / min(IMAGENET_STD)
    assert np.abs(found - image_tensor(image, (48, 64))[0].numpy()).max() <= limit
    labels = np.random.default_rng(1).integers(0, 9, (48, 64), dtype=np.uint8)
    nearest = torch.nn.functional.interpolate(torch.from_numpy(labels)[None, None], size=size, mode="nearest-exact")
    assert np.array_equal(labels_at(labels, size), nearest[0, 0].numpy())


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ([[1]], TypeError, "image: expected a NumPy array"),
        (np.zeros((4, 4), np.uint8), ValueError, r"image: expected \(H, W, 3\) uint8 RGB, got \(4, 4\) uint8"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, "image: expected"),
        (np.zeros((4, 4, 3), np.float32), ValueError, "float32"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "image: expected"),
    ],
)
def test_bad_pictures(folder, image, error, message):
    with pytest.raises(error, match=message):
        mess.Runtime(folder).predict(image)


@pytest.mark.parametrize("size", [(37, 41), (88, 94), (147, 123), (480, 640)])
def test_labels_at_the_pictures_size_are_those_of_torch(network, configuration, folder, size):
    """Where the middles of two pixels are equally near, too."""
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = mess.run(mess.deploy(network, configuration), picture).labels
    assert (mess.Runtime(folder).predict(picture).labels != expected).mean() < 1e-3


def test_pictures_of_any_size(folder):
    runtime = mess.Runtime(folder)
    for size in ((1, 1), (3, 700), (1500, 1100)):
        assert runtime.predict(np.zeros((*size, 3), np.uint8)).labels.shape == size
    with pytest.raises(ValueError, match="images: expected at least one picture"):
        runtime.predict_batch([])


def copied(folder: Path, out: Path) -> Path:
    out.mkdir()
    for path in folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    return out


def change(**entries):
    def apply(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return apply


def in_exit(key: str, value):
    def apply(folder: Path) -> None:
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["exits"][0][key] = value
        path.write_text(json.dumps(manifest))

    return apply


def flip(folder: Path) -> None:
    data = bytearray((folder / "stage-1.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "stage-1.onnx").write_bytes(data)


def link(folder: Path) -> None:
    (folder / "head-0.onnx").rename(folder / "elsewhere")
    (folder / "head-0.onnx").symlink_to(folder / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), FileNotFoundError, "deployment: expected a file"),
        (lambda f: (f / "manifest.json").write_text("{"), ValueError, "is no complete JSON file"),
        (lambda f: (f / "manifest.json").write_text("[" * 100_000), ValueError, "is no complete JSON file"),
        (change(version=2), ValueError, "expected format 'mess deployment' version 1, got .* version 2"),
        (change(format="x"), ValueError, "got 'x' version 1"),
        (change(exits=[]), ValueError, "exits: expected at least one"),
        (change(classes=None), ValueError, "an entry is missing or off"),
        (change(setting="fast"), ValueError, "setting: expected"),
        (change(policy={"refine": True}), ValueError, "policy: expected its three entries"),
        (change(files={"../x.onnx": {"sha256": "", "bytes": 0}}), ValueError, "an entry is missing or off"),
        (in_exit("stage", "/etc/passwd"), ValueError, "expected files that are listed, got '/etc/passwd'"),
        (in_exit("inputs", ["other"]), ValueError, r"exits\[0\].inputs: expected some of \('images',\)"),
        (in_exit("feature", "other"), ValueError, r"exits\[0\].outputs"),
        (in_exit("pixel_threshold", 2.0), ValueError, "pixel_threshold: expected 0..1"),
        (in_exit("image_threshold", float("nan")), ValueError, "image_threshold: expected 0 or more, got nan"),
        (in_exit("pixel_threshold", None), ValueError, "thresholds at gates and only there"),
        (in_exit("output_stride", 0), ValueError, "output_stride: expected 1..256"),
        (in_exit("unknown", 0), ValueError, "an entry is missing or off"),
        (lambda f: (f / "stage-1.onnx").unlink(), FileNotFoundError, "expected the file .*stage-1.onnx"),
        (lambda f: (f / "stage-1.onnx").write_bytes(b""), ValueError, "got 0; it was altered or truncated"),
        (flip, ValueError, "expected SHA-256 .* it was altered"),
        (link, FileNotFoundError, "head-0.onnx to be a file, got a link"),
        (in_exit("name", "final"), ValueError, "exits: expected different names, got .*final"),
        (change(palette=[[0, 0, 0]]), ValueError, "palette: expected none, or 6 colours, got 1"),
    ],
)
def test_damaged_folders_are_refused(folder, tmp_path, damage, error, message):
    other = copied(folder, tmp_path / "net")
    mess.Runtime(other)
    damage(other)
    with pytest.raises(error, match=message):
        mess.Runtime(other)


def test_a_folder_that_is_replaced_while_it_is_loaded(folder, tmp_path, monkeypatch):
    """Between the check of the hashes and the reading of the files: other weights would have the old thresholds."""
    other = copied(folder, tmp_path / "net")
    checked = Manifest.load

    def then_replaced(path):
        manifest = checked(path)
        flip(Path(path))
        return manifest

    monkeypatch.setattr(Manifest, "load", then_replaced)
    with pytest.raises(ValueError, match=r"stage-1.onnx: expected SHA-256 .* it was replaced while it was loaded"):
        mess.Runtime(other)


def test_a_fork_is_told_to_load_its_own(folder, pictures, monkeypatch):
    runtime = mess.Runtime(folder)
    monkeypatch.setattr("mess.runtime.network.os.getpid", lambda: -1)
    for call in (lambda: runtime.predict(pictures[0]), lambda: next(runtime.anytime(pictures[0]))):
        with pytest.raises(RuntimeError, match="runtime: expected the process that loaded the deployment, got a fork"):
            call()


def test_nothing_is_copied_where_nobody_leaves(folder, pictures, monkeypatch):
    runtime = mess.Runtime(folder)
    run, seen = runtime._run_stage, []
    logits, label_map = runtime._logits, mess_core.label_map
    made, labelled = [], []
    runtime._logits = lambda *args: made.append(logits(*args)) or made[-1]
    monkeypatch.setattr(mess_core, "label_map", lambda of, **options: labelled.append(of) or label_map(of, **options))

    def watched(position, state, batch):
        feature, after = run(position, state, batch)
        seen.append((list(state.values()), list(after.values())))
        return feature, after

    runtime._run_stage = watched
    assert runtime.predict(pictures[0], image_thresholds=[1.0, 1.0, None]).exit == "final"
    assert len(seen) == 3
    for (_, handed_on), (got, _) in pairwise(seen):
        assert all(a is b for a, b in zip(handed_on, got, strict=True))
    assert len(labelled) == 1
    assert np.shares_memory(labelled[0], made[-1])


def test_threads_are_those_of_decisions_and_label_maps_too(folder, pictures, monkeypatch):
    asked = []
    for name in ("image_confidence", "label_map"):
        call = getattr(mess_core, name)

        def with_threads(*args, call=call, **options):
            asked.append(options["threads"])
            return call(*args, **options)

        monkeypatch.setattr(mess_core, name, with_threads)
    for threads, small, large in ((None, None, None), (1, 1, 1), (3, 1, 3)):
        asked.clear()
        mess.Runtime(folder, threads=threads).predict(pictures[0])
        assert set(asked) == {small}
        with monkeypatch.context() as patch:
            patch.setattr("mess.runtime.network.SHARED_FROM", 1)
            asked.clear()
            mess.Runtime(folder, threads=threads).predict(pictures[0])
        assert set(asked) == {large}


def test_what_cannot_be_exported_leaves_nothing(network, table, configuration, folder, tmp_path, monkeypatch):
    deployed = mess.deploy(network, configuration)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="out: expected a new or empty folder, or an earlier one of these"):
        mess.export(deployed, tmp_path / "mine", class_names="abcdef")
    (tmp_path / "mine" / "thesis.tex").rename(tmp_path / "mine" / "manifest.json")  # a name that others use too
    for content in ("x", '{"manifest_version": 3}'):
        (tmp_path / "mine" / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match="out: .*manifest.json is"):
            mess.export(deployed, tmp_path / "mine", class_names="abcdef")
        assert (tmp_path / "mine" / "manifest.json").read_text() == content
    with pytest.raises(ValueError, match="class_names: expected 6, one a class, got 2"):
        mess.export(deployed, tmp_path / "new", class_names="ab")
    for options, message in (
        ({"palette": [(0, 0, 0)]}, "palette: expected a colour for each of 6 classes, got 1"),
        ({"palette": [(0.0, 0.5, 1.0)] * 6}, "palette: expected integers 0..255, red, green, blue"),
        ({"palette": bytes(768)}, "palette: expected integers 0..255, red, green, blue"),
        ({"palette": [(0, 0, 300)] * 6}, r"palette: expected \[red, green, blue\] of 0..255 for each class"),
        ({"class_names": range(6)}, r"class_names: expected a name for each class, got \[0, 1"),
        ({"facts": {"a": np.float32(1)}}, "facts: expected what JSON can say: "),
        ({"mean": (0.5,)}, "mean, std: expected 3 numbers each"),
        ({"std": (0.0, 1.0, 1.0)}, "std: expected numbers in 1e-6..1e6"),
    ):
        with pytest.raises(ValueError, match=message):
            mess.export(deployed, tmp_path / "new", **{"class_names": "abcdef", **options})
    with pytest.raises(RuntimeError, match="model: expected stages that are graphs, got eager"):
        mess.export(mess.deploy(network, configuration, backend="eager"), tmp_path / "new", class_names="abcdef")
    monkeypatch.setattr("mess.model.onnx_file.TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="export: stage-0: .* off torch's in ONNX Runtime; not exported"):
        mess.export(deployed, tmp_path / "new", class_names="abcdef")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    monkeypatch.undo()
    mess.export(deployed, tmp_path / "new", class_names="abcdef")
    mess.export(deployed, tmp_path / "new", class_names="uvwxyz")  # replaced
    assert mess.Runtime(tmp_path / "new").manifest.classes == tuple("uvwxyz")
    (tmp_path / "new" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="'notes.txt' would be lost"):
        mess.export(deployed, tmp_path / "new", class_names="abcdef")
    with pytest.raises(ValueError, match="backend: expected one of"):
        mess.Runtime(folder, backend="tensorrt")
    with pytest.raises(ValueError, match="threads: expected an integer in 1..1024, got 0"):
        mess.Runtime(folder, threads=0)


def test_openvino_says_the_same(folder, pictures):
    pytest.importorskip("openvino")
    ours, theirs = mess.Runtime(folder), mess.Runtime(folder, backend="openvino")
    for picture in pictures[:4]:
        assert theirs.predict(picture).exit == ours.predict(picture).exit


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_runtime_in_several_threads(folder, pictures, backend):
    if backend == "openvino":
        pytest.importorskip("openvino")
    runtime = mess.Runtime(folder, backend=backend, threads=1)
    expected = [runtime.predict(picture) for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(runtime.predict, [*pictures] * 8))
    for one, wanted in zip(found, expected * 8, strict=True):
        assert one.exit == wanted.exit
        assert np.array_equal(one.labels, wanted.labels)


def test_the_verb(run_folder, configuration, tmp_path):
    configuration.save(tmp_path / "c.json")
    manifest = verbs.export_run(run_folder, configuration=str(tmp_path / "c.json"), out=tmp_path / "net")
    assert manifest.size_step is None
    options = {"configuration": str(tmp_path / "c.json"), "out": tmp_path / "free"}
    assert verbs.export_run(run_folder, any_size=True, **options).size_step == 1
    assert mess.Runtime(tmp_path / "free", size=(64, 64)).size == (64, 64)
    assert manifest.classes == runs.RunSettings.load(run_folder).class_names
    assert manifest.facts["split"] == "val"
    assert mess.Runtime(tmp_path / "net").manifest == manifest


INTERRUPTED = """
import signal, sys, threading
import mess
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
held = [mess.Runtime(sys.argv[1], backend="openvino")]
if sys.argv[2] == "another thread":
    other = threading.Thread(target=held.clear)
    other.start()
    other.join()
held.clear()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("ends_in", ["this thread", "another thread"])
def test_signals_are_handled_when_openvino_has_been_used(folder, ends_in):
    """A segmentation fault when the stack for signals was that of a Core that had ended."""
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", INTERRUPTED, folder, ends_in]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (found.returncode, found.stdout) == (0, "interrupted\n"), found.stderr


@pytest.mark.slow
def test_it_runs_where_torch_is_not_installed(folder, pictures, tmp_path):
    """In a virtual environment of NumPy and ONNX Runtime alone."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "requirements.lock"]
    subprocess.run([*install, "numpy", "onnxruntime"], check=True)
    np.save(tmp_path / "picture.npy", pictures[0])
    script = (
        "import sys, importlib.util, numpy as np, mess\n"
        "assert all(importlib.util.find_spec(n) is None for n in ('torch', 'safetensors', 'typer', 'PIL'))\n"
        "result = mess.Runtime(sys.argv[1]).predict(np.load(sys.argv[2]))\n"
        "print(result.exit, result.labels.sum())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
    command = [python, "-c", script, folder, tmp_path / "picture.npy"]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stderr
    expected = mess.Runtime(folder).predict(pictures[0])
    assert found.stdout.split() == [expected.exit, str(expected.labels.sum())]
    assert sys.executable != str(python)


@pytest.fixture(scope="module")
def free_folder(network, configuration, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "free"
    deployed = mess.deploy(network, configuration, any_size=True)
    mess.export(deployed, out, class_names=[f"class {i}" for i in range(6)])
    return out


@pytest.mark.parametrize("size", [SETTINGS.size, (61, 107), (128, 96)])
def test_one_folder_takes_any_size(network, configuration, free_folder, pictures, size):
    """Labels, exits and confidences are those of a network deployed for that size alone, alone and in a batch."""
    pictures = [resized(picture, size) for picture in pictures]
    fixed = mess.deploy(network, configuration, torch.zeros(1, 3, *size))
    free = mess.deploy(network, configuration, any_size=True)
    runtime = mess.Runtime(free_folder, size=size)
    batch = torch.stack([image_tensor(p, size, IMAGENET_MEAN, IMAGENET_STD)[0] for p in pictures])
    expected, same = fixed(batch), free(batch)
    assert torch.equal(same.exits, expected.exits)
    assert torch.equal(same.labels, expected.labels)
    together = runtime.predict_batch(pictures)
    names = [entry.exit for entry in configuration.exits]
    for i, (picture, of_batch) in enumerate(zip(pictures, together, strict=True)):
        for found in (runtime.predict(picture), of_batch):
            assert found.exit == names[expected.exits[i]]
            assert found.labels.shape == size
            assert (found.labels == expected.labels[i].numpy()).mean() > 0.999


def test_openvino_takes_any_size(free_folder, pictures):
    pytest.importorskip("openvino")
    size = (61, 107)
    expected = mess.Runtime(free_folder, size=size).predict_batch(pictures)
    found = mess.Runtime(free_folder, size=size, backend="openvino").predict_batch(pictures)
    assert [result.exit for result in found] == [result.exit for result in expected]


def test_a_size_that_is_not_taken_is_told(folder, free_folder, pictures):
    with pytest.raises(ValueError, match=r"size: expected .*alone this deployment takes, got \(61, 107\)"):
        mess.Runtime(folder, size=(61, 107))
    with pytest.raises(ValueError, match=r"size: expected \(height, width\) in 1\.\."):
        mess.Runtime(free_folder, size=(0, 107))
    with pytest.raises(ValueError, match="size: expected at most"):
        mess.Runtime(free_folder, size=(65536, 65536))
    assert mess.Runtime(free_folder, size=(1, 1)).predict(pictures[0]).labels.shape == pictures[0].shape[:2]


def test_a_manifest_that_promises_sizes_its_files_do_not_take(folder, tmp_path):
    altered = tmp_path / "net"
    shutil.copytree(folder, altered)
    manifest = json.loads((altered / "manifest.json").read_text())
    manifest["input"]["size_step"] = 1
    (altered / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"deployment: .*input.size: expected .*got \(61, 107\)"):
        mess.Runtime(altered, size=(61, 107))
