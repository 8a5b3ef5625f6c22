"""The calibration table: counts against torchmetrics, confidences against mess_core, file format, misfits."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torchmetrics.classification import MulticlassJaccardIndex

import mess
import mess_core
from mess import runs, search_verb, verbs
from mess.calibration.collect import mac_costs
from mess.data import SceneDataset, SeededLoader
from mess.exit_names import FINAL_EXIT
from mess.model.cost import count_macs
from mess.model.network import upsampled
from mess.model.zoo import small_resnet_fcn
from mess.policy import PolicySettings
from tests.mess.conftest import SETTINGS


def logits_of(network, images, name):
    with torch.no_grad():
        final, features = network.features(images)
        if name == FINAL_EXIT:
            return final
        exit_id = next(e for e in network.exits if e.name == name)
        return upsampled(network.head(exit_id)(features[exit_id.point]), tuple(images.shape[2:]))


def test_mean_iou_equals_torchmetrics(network, table, val_images):
    images, labels = val_images
    for index in (0, len(table.exits) // 2, len(table.exits) - 1):
        metric = MulticlassJaccardIndex(network.num_classes, average="none", ignore_index=255)
        expected = metric(logits_of(network, images, table.exits[index]).argmax(1), labels).numpy()
        present = table.ground_truth.sum(axis=0) > 0
        np.testing.assert_allclose(table.iou(index)[present], expected[present], atol=1e-6)
        assert table.mean_iou(index) == pytest.approx(expected[present].mean(), abs=1e-6)


def test_image_confidence_is_mess_cores(network, table, val_images):
    images, _ = val_images
    for index in (1, 4):
        name = table.exits[index]
        stride = network.points[int(table.points[index])].output_stride
        logits = logits_of(network, images, name).numpy()
        expected = mess_core.image_confidence(logits, pixel_threshold=table.pixel_thresholds, output_stride=stride)
        np.testing.assert_array_equal(table.image_confidence[index].T, expected)


def test_disagreement_is_with_the_final_exit(network, table, val_images):
    images, _ = val_images
    final = logits_of(network, images, "final").argmax(1)
    for index in (0, 3, len(table.exits) - 1):
        differs = (logits_of(network, images, table.exits[index]).argmax(1) != final).sum((1, 2))
        # ties and upsampling within rounding may fall either way
        np.testing.assert_allclose(table.disagreement[index], differs.numpy(), atol=2)
    assert table.disagreement[0].sum() > 0
    assert (table.disagreement[-1] == 0).all()


def test_a_selection_is_a_table_of_its_own(table):
    picked = np.array([5, 1])
    part = table.select(picked)
    part.validate()
    assert part.images == (table.images[5], table.images[1])
    np.testing.assert_array_equal(part.image_confidence, table.image_confidence[:, :, picked])
    np.testing.assert_array_equal(part.disagreement, table.disagreement[:, picked])


def test_ignored_pixels_count_for_nothing(network, val_images):
    images, labels = (t[:2] for t in val_images)
    masked = labels.clone()
    masked[:, :10] = 255
    full = mess.calibrate(network, [(images, labels)], latency_rounds=0)
    less = mess.calibrate(network, [(images, masked)], latency_rounds=0)
    pixels = labels[0].numel()
    assert (full.ground_truth.sum(axis=1) == pixels).all()
    assert (less.ground_truth.sum(axis=1) == pixels - 10 * labels.shape[2]).all()
    assert (less.predicted.sum(axis=2) == pixels - 10 * labels.shape[2]).all()
    np.testing.assert_array_equal(full.image_confidence, less.image_confidence)


def test_costs(network, table):
    costs = table.costs["macs"]
    total = count_macs(network.net, torch.zeros(1, 3, 48, 64))
    assert costs["backbone"][-1] == total
    assert costs["head"][-1] == 0
    assert costs["backbone"][0] == network.points[0].workload
    for column in table.costs.values():
        assert (np.diff(column["backbone"]) >= 0).all()
        assert (column["head"][:-1] > 0).all()
    assert (table.costs["latency_ms"]["policy"][:-1] > 0).all()


def test_latency_in_the_backends_of_an_exported_folder(network, val_images, tmp_path):
    images = (val_images[0][:2], val_images[1][:2])
    table = mess.calibrate(network, [images], latency_rounds=1, backends=("onnxruntime", "openvino"))
    table.save(tmp_path / "table.safetensors")
    table = mess.CalibrationTable.load(tmp_path / "table.safetensors")
    assert set(table.costs) == {"macs", "latency_ms", "onnxruntime_ms", "openvino_ms", "size_mb"}
    for name in ("onnxruntime", "openvino"):
        costs = table.costs[f"{name}_ms"]
        assert (costs["policy"][:-1] > 0).all()
        assert costs["head"][-1] == costs["policy"][-1] == 0
        assert table.facts[f"plain_{name}_ms"] > 0
    # of files that were mixed up, sizes would tell: each has the weights of its own part, and little else
    size = table.costs["size_mb"]
    for index, exit_id in enumerate(network.exits):
        weights = sum(p.numel() for p in network.head(exit_id).parameters()) * 4e-6
        assert weights < size["head"][index] < weights + 0.05, exit_id
    weights = sum(p.numel() for p in network.net.parameters()) * 4e-6
    assert 0.9 * weights < table.facts["plain_size_mb"] < weights + 0.3
    assert size["backbone"][0] < size["backbone"][-1]
    limits = {"onnxruntime_ms:max": 1e3, "size_mb:total": 2}
    both = {"required_exits": [table.exits[0], "final"], "max_exits": 2}
    found = mess.search(table, max_cost_ratio=1e3, cost="openvino_ms", cost_limits=limits, **both).best
    assert found.promise["cost_column"] == "openvino_ms"
    # the size of all that can run is that of the folder, but for what one file has more of than two
    mess.export(mess.deploy(network, found), tmp_path / "net", class_names=table.class_names)
    total = size["backbone"][-1] + size["head"][0]
    assert total == pytest.approx(sum(path.stat().st_size for path in (tmp_path / "net").glob("*.onnx")) / 1e6, rel=0.2)


def test_what_a_backend_cannot_run_is_told(val_images):
    class Branching(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 4, 3, padding=1))
            self.end = torch.nn.Conv2d(4, 6, 1)

        def forward(self, images):
            feature = self.body(images)
            return self.end(feature if float(feature.mean()) > 0 else -feature)

    network = mess.convert(Branching(), torch.zeros(1, 3, 48, 64), exit_points=["body.0"], heads="tiny")
    batches = [(val_images[0][:1], val_images[1][:1] * 0)]
    with pytest.warns(UserWarning, match="eager"), pytest.raises(RuntimeError, match="cannot be run in stages: graph"):
        mess.calibrate(network, batches, latency_rounds=1, backends=("onnxruntime",))
    with (
        pytest.warns(UserWarning, match="eager"),
        pytest.raises(ValueError, match="network: expected float32 for onnx"),
    ):
        mess.calibrate(
            network.double(), [(batches[0][0].double(), batches[0][1])], latency_rounds=1, backends=("onnxruntime",)
        )
    with pytest.raises(ValueError, match="backends: expected some of .* got \\['tflite'\\]"):
        mess.calibrate(network, batches, backends=("tflite",))
    with pytest.raises(ValueError, match="latency_rounds above 0, got .* and 0"):
        mess.calibrate(network, batches, latency_rounds=0, backends=("onnxruntime",))


def test_mac_costs_do_not_need_a_mac_profile(network, val_images):
    timed = mess.convert(network.net, val_images[0][:1], num_exits=4, heads="tiny", cost="latency")
    assert mac_costs(timed, (48, 64))["backbone"][-1] == count_macs(network.net, torch.zeros(1, 3, 48, 64))


def test_save_and_load(table, tmp_path):
    table.save(tmp_path / "t.safetensors")
    again = mess.CalibrationTable.load(tmp_path / "t.safetensors")
    for name in ("exits", "images", "class_names", "pixel_thresholds", "policy", "input_size", "model", "facts"):
        assert getattr(again, name) == getattr(table, name)
    np.testing.assert_array_equal(again.intersection, table.intersection)
    np.testing.assert_array_equal(again.costs["latency_ms"]["head"], table.costs["latency_ms"]["head"])
    assert isinstance(again.intersection.base, np.memmap)  # in place, not a copy
    assert not again.intersection.flags.writeable
    table.save(tmp_path / "t.safetensors")  # replaces the file, which the old table still has
    np.testing.assert_array_equal(again.ground_truth, table.ground_truth)


def test_damaged_tables_are_refused(table, tmp_path):
    path = tmp_path / "t.safetensors"
    with pytest.raises(FileNotFoundError, match="table: expected a safetensors file, got .*no such file"):
        mess.CalibrationTable.load(path)
    table.save(path)
    whole = path.read_bytes()
    for cut in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="is truncated or no safetensors file"):
            mess.CalibrationTable.load(path)
    path.write_bytes(whole.replace(b'\\"version\\": 2', b'\\"version\\": 7', 1))
    with pytest.raises(ValueError, match="expected version 2, got 7"):
        mess.CalibrationTable.load(path)
    with pytest.raises(ValueError, match=r"table: intersection: expected shape .*, got"):
        replace(table, intersection=table.intersection[:, :-1])
    with pytest.raises(ValueError, match="expected the last one to be 'final'"):
        replace(table, exits=table.exits[::-1])


def test_a_table_that_does_not_fit_the_network_is_refused(table, network, val_images):
    table.check_fits(network)
    other = mess.convert(network.net, val_images[0][:1], num_exits=3, heads="tiny")
    with pytest.raises(ValueError, match="table: made by a network with exit points"):
        table.check_fits(other)


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        (lambda x, y: [], {}, "batches: expected at least one batch"),
        (lambda x, y: [(x, y[:, 1:])], {}, "batches: expected labels of the images' size"),
        (lambda x, y: [(x, y), (x[:, :, ::2], y[:, ::2])], {}, "batches: expected images of one size"),
        (lambda x, y: [(x, y + 100)], {}, "labels: expected 0..5 or 255"),
        (lambda x, y: [(x, y)], {"pixel_thresholds": (1.5,)}, r"pixel_thresholds: expected numbers in \[0, 1\]"),
        (lambda x, y: [(x * float("nan"), y)], {}, "logits: expected numbers, got NaN"),
        (lambda x, y: [(x, y)], {"latency_rounds": -1}, "rounds: expected at least 1"),
    ],
)
def test_bad_input(network, val_images, batches, options, message):
    images, labels = (t[:1] for t in val_images)
    with pytest.raises(ValueError, match=message):
        mess.calibrate(network, batches(images, labels), **{"latency_rounds": 0, **options})


def test_a_table_of_other_weights_is_refused(run_folder, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    table_before = search_verb.table_of(folder, "val")
    assert table_before.facts["split"] == "val"
    with safe_open(folder / "exits.safetensors", "pt") as file:
        tensors, header = {name: file.get_tensor(name) + 1 for name in file.keys()}, file.metadata()  # noqa: SIM118
    save_file(tensors, folder / "exits.safetensors", metadata=header)
    found = mess.search(table_before, max_cost_ratio=1.0).best
    assert found.promise["weights_sha256"] == table_before.facts["weights_sha256"]
    (folder / "configurations").mkdir()
    for name in ("old", "unknown"):
        promise = dict(found.promise) if name == "old" else {}
        replace(found, promise=promise).save(folder / "configurations" / f"{name}.json")
    with pytest.raises(ValueError, match="table: .* is of other weights than .*; run `mess calibrate .* --split val`"):
        search_verb.table_of(folder, "val")
    assert list(verbs.configurations(folder)) == ["unknown"]
    with pytest.raises(ValueError, match="expected one of .'old', 'unknown'. or a file, got 'drop-1pp'"):
        verbs.load_run(folder)  # not the only one that is left
    assert "left out: old: searched with other weights" in capsys.readouterr().out.replace("\n", " ")
    with pytest.raises(ValueError, match="configuration: .*old.json: searched with other weights than .* has now"):
        verbs.load_run(folder, str(folder / "configurations" / "old.json"))
    (folder / "configurations" / "unknown.json").unlink()
    with pytest.raises(ValueError, match="configuration: old: searched with other weights .*`mess search` again"):
        verbs.load_run(folder)


def test_a_run_that_is_not_trained_yet_says_how_to_go_on(run_folder, tmp_path):
    shutil.copy(run_folder / "run.json", tmp_path / "run.json")
    with pytest.raises(FileNotFoundError, match="run: .*exits.safetensors is not there yet; `mess train` .* goes on"):
        runs.trained_network(tmp_path)


def test_another_policy_leaves_earlier_configurations_out(run_folder, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    (folder / "configurations").mkdir()
    table = search_verb.table_of(folder, "val")
    gated = mess.search(table, max_cost_ratio=1.0, required_exits=[table.exits[0], "final"]).best
    gated.save(folder / "configurations" / "old.json")
    other = PolicySettings(refine=False)
    replace(gated, policy=other).save(folder / "configurations" / "new.json")
    verbs.calibrate_run(folder, split="test", policy=other, latency_rounds=0)
    result = verbs.evaluate_run(folder, split="test", clock_images=1, rounds=1)
    assert set(result["configurations"]) == {"new"}
    assert "left out: old: searched with other confidences" in capsys.readouterr().out.replace("\n", " ")
    (folder / "configurations" / "new.json").unlink()
    with pytest.raises(ValueError, match="configuration: expected one for these confidences, got old"):
        verbs.evaluate_run(folder, split="test", clock_images=1, rounds=1)


def test_images_are_brought_to_the_networks_precision(val_images):
    images, labels = val_images
    model = small_resnet_fcn(num_classes=6)
    tables = []
    for net in (model, copy.deepcopy(model).double()):
        example = images[:1].to(next(net.parameters()).dtype)
        network = mess.convert(net.eval(), example, num_exits=3, heads="tiny")
        network.heads.load_state_dict(tables[0][1]) if tables else None
        tables.append(
            (mess.calibrate(network, [(images[:4], labels[:4])], latency_rounds=0), network.heads.state_dict())
        )
    (single, _), (double, _) = tables
    assert np.abs(single.image_confidence - double.image_confidence).max() < 0.02


def test_the_header_is_readable_json(table, tmp_path):
    table.save(tmp_path / "t.safetensors")
    raw = (tmp_path / "t.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert json.loads(header["__metadata__"]["mess"])["exits"][-1] == "final"


def test_an_interrupted_calibration_goes_on(network, tmp_path, monkeypatch):
    """Ctrl-C in the third batch of five; the continued table is the uninterrupted one, costs measured once."""
    monkeypatch.setattr("mess.calibration.partial.SAVE_SECONDS", 1e9)
    loader = runs.loader(SETTINGS, split="val")
    loader.batch_size = 5
    partial = tmp_path / "partial.safetensors"
    whole = mess.calibrate(network, loader, latency_rounds=0)

    class Interrupted:
        identity, begun = loader.identity, []

        def __len__(self):
            return len(loader)

        def begin(self, epoch, first):
            self.begun.append(first)
            return loader.begin(epoch, first)

        def __iter__(self):
            for number, batch in enumerate(loader):
                if number == 2:
                    raise KeyboardInterrupt
                yield batch

    with pytest.raises(KeyboardInterrupt):
        mess.calibrate(network, Interrupted(), latency_rounds=0, partial=partial)
    assert len(mess.CalibrationTable.load(partial).images) == 10
    with pytest.raises(
        ValueError, match=r"partial: .* belongs to another calibration: latency_rounds 0 there, 1 asked"
    ):
        mess.calibrate(network, Interrupted(), latency_rounds=1, partial=partial)
    with pytest.raises(ValueError, match="pixel_thresholds"):
        mess.calibrate(network, Interrupted(), latency_rounds=0, pixel_thresholds=[0.5], partial=partial)
    monkeypatch.setattr("mess.calibration.collect.mac_costs", None)  # would fail if it was asked again
    for _ in range(2):  # once more, as if it had not been saved
        again = mess.calibrate(network, Interrupted(), latency_rounds=0, partial=partial)
        assert again.images == whole.images
        for name in ("intersection", "predicted", "ground_truth", "disagreement", "image_confidence"):
            np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
        assert again.costs["macs"]["head"].tolist() == whole.costs["macs"]["head"].tolist()
        assert again.facts == whole.facts
    assert Interrupted.begun == [2, 2]


def test_what_is_done_of_other_images_is_not_gone_on_with(network, tmp_path):
    torch.manual_seed(0)
    batches = [(torch.rand(4, 3, 32, 48), torch.randint(0, 6, (4, 32, 48))) for _ in range(3)]
    odd = [*batches[:2], (batches[2][0], torch.full((4, 32, 48), 99))]
    halves = [(images[part], labels[part]) for images, labels in batches for part in (slice(0, 2), slice(2, 4))]
    partial = tmp_path / "partial.safetensors"
    with pytest.raises(ValueError, match="labels: expected"):
        mess.calibrate(network, odd, latency_rounds=0, partial=partial)
    for others in (halves, batches[::-1]):
        with pytest.raises(ValueError, match="partial: .* belongs to another calibration: images"):
            mess.calibrate(network, others, latency_rounds=0, partial=partial)
    # pictures of the same names in two splits
    scenes = [SeededLoader(SceneDataset(split=split, count=4), size=(32, 48)) for split in ("val", "test")]
    for one in scenes:
        one.dataset.identity = lambda index: f"{index:04d}"
    assert scenes[0].identity != scenes[1].identity


def test_names_are_looked_at_before_anything_is_computed(network):
    with pytest.raises(ValueError, match="class_names: expected 6 names, got"):
        mess.calibrate(network, [None], class_names=["a", "b"])
    with pytest.raises(ValueError, match="image_names: expected a name an image, got 'abc'"):
        mess.calibrate(network, [None], image_names="abc")
    loader = runs.loader(SETTINGS, split="val")
    with pytest.raises(ValueError, match=f"image_names: expected {len(loader.dataset)}, one an image, got 2"):
        mess.calibrate(network, loader, image_names=["a", "b"])
    with pytest.raises(ValueError, match="batches: expected a number of them .len. beside spread, got generator"):
        mess.calibrate(network, (None for _ in range(2)), spread=lambda measure, numbers: iter(()))
    with pytest.raises(ValueError, match="batches: expected at least one batch, got none"):
        mess.calibrate(network, [], spread=lambda measure, numbers: iter(()))


def test_a_wrong_number_of_names_loses_nothing(network, tmp_path):
    batches = [(torch.rand(2, 3, 32, 48), torch.randint(0, 6, (2, 32, 48))) for _ in range(2)]
    partial = tmp_path / "partial.safetensors"
    options = {"latency_rounds": 0, "partial": partial}
    with pytest.raises(ValueError, match="image_names: expected 4, one an image, got 3"):
        mess.calibrate(network, batches, image_names=["a", "b", "c"], **options)
    again = mess.calibrate(network, batches, image_names=["a", "b", "c", "d"], facts={"split": "val"}, **options)
    assert again.images == ("a", "b", "c", "d")
    assert again.facts["split"] == "val"  # what is known now counts, not what was when it began


def test_a_partial_table_is_kept_from_time_to_time(network, tmp_path, monkeypatch):
    monkeypatch.setattr("mess.calibration.partial.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("mess.calibration.partial.SAVE_TIMES", 0.0)
    partial = tmp_path / "partial.safetensors"
    whole = mess.calibrate(network, runs.loader(SETTINGS, split="val"), latency_rounds=0, partial=partial)
    kept = mess.CalibrationTable.load(partial)
    assert kept.images == whole.images
    partial.write_bytes(partial.read_bytes()[:-1])
    with pytest.raises(ValueError, match="truncated"):
        mess.calibrate(network, runs.loader(SETTINGS, split="val"), latency_rounds=0, partial=partial)
