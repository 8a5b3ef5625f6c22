"""Search to deployment: promises kept exactly on the calibration split, and layers behind an exit really not run."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import mess
from mess import runs
from mess.deployment.configuration import ChosenExit, Configuration
from mess.deployment.measure import measure_deployed
from mess.model.graph import split_graph
from mess.model.network import upsampled


class CountConvolutions(TorchDispatchMode):
    """Counts the convolutions that are really computed inside the block."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "convolution" in str(func) or "conv2d" in str(func)
        return func(*args, **(kwargs or {}))


def convolutions(call) -> int:
    with torch.no_grad(), CountConvolutions() as counter:
        call()
    return counter.count


def gated(
    table, image_threshold: float, *, pixel_threshold=0.5, exits=("0:fcn-r1-b0", "2:fcn-r4-b0", "final")
) -> Configuration:
    chosen = [ChosenExit(exit=e, pixel_threshold=pixel_threshold, image_threshold=image_threshold) for e in exits[:-1]]
    return Configuration(
        setting="input-dependent", model=table.model, exits=(*chosen, ChosenExit(exit=exits[-1])), policy=table.policy
    )


def dividing(table, **options) -> Configuration:
    """Gates that let some images leave at the first exit, and some not."""
    values = table.image_confidence[0]
    pixel = max(range(len(values)), key=lambda t: len(np.unique(values[t])))
    distinct = np.unique(values[pixel])
    assert len(distinct) > 1
    threshold = float(distinct[len(distinct) // 2])
    return gated(table, threshold, pixel_threshold=table.pixel_thresholds[pixel], **options)


@pytest.mark.parametrize("target", [{"max_drop": 0.02}, {"max_cost_ratio": 1.0}, {"max_cost_ratio": 0.5}])
def test_the_deployed_network_keeps_the_promise_exactly(network, table, val_images, target):
    images, labels = val_images
    best = mess.search(table, **target).best
    prediction = mess.deploy(network, best)(images)
    report = mess.evaluate(best, table)
    assert best.promise["accuracy"] == report.accuracy
    assert best.promise["cost"] == report.cost
    counts = np.bincount(prediction.exits.numpy(), minlength=len(best.exits))
    np.testing.assert_allclose(counts / len(images), report.shares)
    iou = []
    for c in range(network.num_classes):
        truth, predicted = labels == c, (prediction.labels == c) & (labels != 255)
        if truth.any():
            iou.append(int((truth & predicted).sum()) / int((truth | predicted).sum()))
    assert np.mean(iou) == pytest.approx(report.accuracy, abs=1e-9)


def test_layers_behind_the_exit_are_not_run(network, table, val_images):
    image = val_images[0][:1]
    never, always = mess.deploy(network, gated(table, 1.5)), mess.deploy(network, gated(table, 0.0))
    plain = convolutions(lambda: network(image))
    head = convolutions(lambda: network.head(network.exits[0])(network.features(image)[1][0])) - plain
    first = convolutions(lambda: never.stages.run_stage(0, never.stages.start(image)))
    assert 0 < first < plain
    assert convolutions(lambda: always(image)) == first + head
    assert convolutions(lambda: never(image)) > plain
    assert int(always(image).exits[0]) == 0
    assert int(never(image).exits[0]) == 2
    assert torch.equal(never(image).logits, network(image))


def test_macs_really_spent_are_those_of_the_table(network, table, val_images):
    best = mess.search(table, max_cost_ratio=0.8, max_exits=3).best
    deployed, spent = mess.deploy(network, best), 0
    for image in val_images[0]:
        with FlopCounterMode(display=False) as counter:
            deployed(image[None])
        spent += counter.get_total_flops() // 2
    assert spent / len(val_images[0]) == pytest.approx(best.promise["cost"], rel=1e-12)


def test_a_batch_gives_what_its_images_give_alone(network, table, val_images):
    images = val_images[0]
    deployed = mess.deploy(network, dividing(table))
    together = deployed(images)
    assert len(set(together.exits.tolist())) > 1
    for i, image in enumerate(images):
        alone = deployed(image[None])
        assert alone.exits[0] == together.exits[i]
        torch.testing.assert_close(alone.logits[0], together.logits[i], rtol=1e-4, atol=1e-4)
        assert torch.equal(alone.image_confidence.isnan(), together.image_confidence[i : i + 1].isnan())


def test_survivors_only_are_computed(network, table, val_images):
    images = val_images[0]
    deployed = mess.deploy(network, dividing(table, exits=("0:fcn-r1-b0", "final")))
    with FlopCounterMode(display=False) as counter:
        exits = deployed(images).exits
    survivors = int((exits == 1).sum())
    assert 0 < survivors < len(images)
    costs = table.costs["macs"]
    to_first = costs["backbone"][0] + costs["head"][0]
    expected = len(images) * to_first + survivors * (costs["backbone"][-1] - costs["backbone"][0])
    assert counter.get_total_flops() / 2 == pytest.approx(expected)


def test_anytime_refines_and_stops_when_the_caller_does(network, table, val_images):
    image = val_images[0][:1]
    configuration = mess.search(table, setting="anytime", max_drop=0.05).best
    deployed = mess.deploy(network, configuration)
    steps = list(deployed.anytime(image))
    assert len(steps) == len(configuration.exits)
    assert torch.equal(deployed(image).logits, steps[-1].logits)
    if len(steps) > 1:
        all_of_them = convolutions(lambda: list(deployed.anytime(image)))
        assert convolutions(lambda: next(iter(deployed.anytime(image)))) < all_of_them


def test_budgeted_holds_only_what_it_needs(network, table, val_images):
    images = val_images[0][:2]
    deployed = mess.deploy(network, gated(table, 0.5))
    static = deployed.budgeted(0)
    assert torch.equal(static(images), next(iter(deployed.anytime(images))).logits)
    names = " ".join(name for name, _ in static.named_parameters())
    assert "classifier" not in names
    assert sum(p.numel() for p in static.parameters()) < sum(p.numel() for p in deployed.parameters())
    assert torch.equal(deployed.budgeted(-1)(images), network(images))
    with pytest.raises(ValueError, match=r"position: expected -3..2, got 3"):
        deployed.budgeted(3)
    with pytest.raises(TypeError, match="position: expected an integer, got str"):
        deployed.budgeted("final")
    with pytest.raises(TypeError, match="images: expected a tensor .* got ndarray"):
        deployed(images.numpy())


def test_an_early_last_exit_leaves_the_rest_of_the_network_out(network, table):
    configuration = Configuration(setting="budgeted", model=table.model, exits=(ChosenExit(exit="1:fcn-r1-b0"),))
    deployed = mess.deploy(network, configuration)
    assert "classifier" not in " ".join(name for name, _ in deployed.named_parameters())


def test_run_takes_pictures_of_any_size(network, table):
    deployed = mess.deploy(network, gated(table, 0.0))
    picture = np.random.default_rng(0).integers(0, 256, (101, 77, 3), dtype=np.uint8)
    result = mess.run(deployed, picture)
    assert result.labels.shape == (101, 77)
    assert result.exit == "0:fcn-r1-b0"
    assert len(result.image_confidence) == 1
    with pytest.raises(ValueError, match=r"image: expected \(H, W, 3\) uint8 RGB, got \(101, 77\)"):
        mess.run(deployed, picture[..., 0])


def test_an_empty_picture(network, table):
    deployed = mess.deploy(network, gated(table, 0.5))
    with pytest.raises(ValueError, match=r"image: expected at least one pixel, got \(0, 4, 3\)"):
        mess.run(deployed, np.zeros((0, 4, 3), np.uint8))


def test_pictures_are_for_networks_of_rgb_images(tmp_path):
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3, padding=1),
        torch.nn.Conv2d(8, 4, 1),
    )
    images, labels = torch.rand(2, 1, 16, 24), torch.randint(0, 4, (2, 16, 24))
    network = mess.convert(model.eval(), images, num_exits=2, heads="tiny")
    table = mess.calibrate(network, [(images, labels)], latency_rounds=0)
    deployed = mess.deploy(network, mess.search(table, max_cost_ratio=2.0).best)
    assert deployed(images).labels.shape == (2, 16, 24)
    with pytest.raises(ValueError, match="network: expected one of RGB images, got 1 channels"):
        mess.run(deployed, np.zeros((16, 24, 3), np.uint8))
    with pytest.raises(ValueError, match="deployed: expected a network of RGB images, .* got 1 channels"):
        mess.export(deployed, tmp_path / "net", class_names="abcd")


def test_a_deployed_network_does_not_depend_on_the_modes_of_its_parts(run_folder, table, val_images):
    network = runs.trained_network(run_folder)
    network.train()
    images = val_images[0][:4]
    deployed = mess.deploy(network, gated(table, 0.0))
    assert all(part.training for part in network.modules())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    in_train_mode = deployed(images).logits
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network.eval()
    assert torch.equal(deployed(images).logits, in_train_mode)
    with torch.no_grad():
        _, features = network.features(images)
        expected = upsampled(network.head(network.exits[0])(features[0]), (48, 64))
    assert torch.equal(in_train_mode, expected)


def test_what_is_moved_is_the_deployed_network_alone(run_folder, table, val_images):
    """To another type here, as it would be to another device: parameters are shared, statistics of a norm are not."""
    network, images = runs.trained_network(run_folder), val_images[0][:4]
    before = network.net(images)
    deployed = mess.deploy(network, gated(table, 0.0))
    static = deployed.budgeted(0).double()
    assert static(images.double()).dtype == torch.float64
    expected = deployed(images)
    deployed.double()
    assert {value.dtype for value in network.state_dict().values()} <= {torch.float32, torch.int64}
    assert torch.equal(network.net(images), before)
    moved = deployed(images.double())
    deployed.to(torch.float64)
    assert torch.equal(deployed(images.double()).logits, moved.logits)
    assert torch.equal(moved.exits, expected.exits)
    torch.testing.assert_close(moved.image_confidence, expected.image_confidence, atol=2e-3, rtol=0, equal_nan=True)


def test_calibrate_restores_the_mode(run_folder, val_images):
    network = runs.trained_network(run_folder).train()
    mess.calibrate(network, [(val_images[0][:1], val_images[1][:1])], latency_rounds=0)
    assert all(part.training for part in network.modules())


def test_a_drop_is_a_share(table):
    with pytest.raises(ValueError, match=r"max_drop: expected a share below 1 \(0.01 is 1 percentage point\), got 5"):
        mess.search(table, max_drop=5)


def test_the_final_exit_always_satisfies_no_drop_at_all(table):
    for column in table.costs:
        assert mess.search(table, max_drop=0.0, cost=column).status == "optimal"


def test_the_clock_report(network, table, val_images):
    report = measure_deployed(network.net, mess.deploy(network, gated(table, 0.0)), [val_images[0][:1]], rounds=1)
    assert report.shares == (1.0, 0.0, 0.0)
    assert report.plain_ms > 0
    with pytest.raises(ValueError, match="images, rounds: expected at least one"):
        measure_deployed(network.net, mess.deploy(network, gated(table, 0.0)), [], rounds=1)


def test_search_targets(table):
    final = len(table.exits) - 1
    result = mess.search(table, max_drop=0.0)
    assert result.baseline_accuracy == table.mean_iou(final)
    assert result.best.promise["accuracy"] >= result.baseline_accuracy
    assert result.best.promise["cost"] <= result.baseline_cost
    front = mess.search(table, cost="latency_ms")
    costs = [c.promise["cost"] for c in front.configurations]
    assert costs == sorted(costs)
    assert front.best is front.configurations[0]
    static = mess.search(table, setting="budgeted", max_cost_ratio=1.0).best
    assert len(static.exits) == 1
    nothing = mess.search(table, min_accuracy=1.1)
    assert nothing.status == "infeasible"
    with pytest.raises(LookupError, match="no configuration satisfies the target"):
        _ = nothing.best
    with pytest.raises(ValueError, match="max_drop: expected at most one target, got max_drop and max_cost"):
        mess.search(table, max_drop=0.1, max_cost=3)
    with pytest.raises(ValueError, match="cost: expected one of .*got 'joules'"):
        mess.search(table, cost="joules")


def test_a_configuration_on_a_foreign_table_is_refused(table):
    best = mess.search(table, max_drop=0.05).best
    with pytest.raises(ValueError, match="table: expected exit points"):
        mess.evaluate(best, replace(table, model=("a", "b", "c")))
    with pytest.raises(ValueError, match="table: expected confidences of"):
        mess.evaluate(gated(table, 0.5), replace(table, policy=mess.PolicySettings(refine=False)))
    with pytest.raises(ValueError, match="table: pixel_thresholds: expected 0.5"):
        mess.evaluate(
            gated(table, 0.5), replace(table, pixel_thresholds=tuple(t + 0.001 for t in table.pixel_thresholds))
        )


def test_configuration_file(table, tmp_path):
    best = mess.search(table, max_drop=0.05).best
    best.save(tmp_path / "c.json")
    assert Configuration.load(tmp_path / "c.json") == best
    text = (tmp_path / "c.json").read_text()
    for change, message in (
        (text[: len(text) // 2], "configuration: .* is no complete JSON file"),
        (text.replace('"version": 1', '"version": 2'), "configuration: expected version 1, got 2"),
        (text.replace('"setting"', '"sitting"'), "an entry is missing, unknown or off: setting"),
        (text.replace('"exit":', '"exyt":'), "an entry is missing, unknown or off"),
        (text.replace('"mean-iou"', "0.5"), "metric: expected one of .*, got '0.5'"),
        (text.replace('"accuracy": ', '"accuracy": "high", "low": '), "accuracy: expected a number, got 'high'"),
        (json.dumps([1]), "expected a JSON object, got list"),
    ):
        (tmp_path / "bad.json").write_text(change)
        with pytest.raises(ValueError, match=message):
            Configuration.load(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"setting": "static"}, "setting: expected one of"),
        ({"exits": ()}, "exits: expected at least one"),
        ({"exits": (ChosenExit(exit="final"), ChosenExit(exit="final"))}, "exits: expected increasing exit points"),
        ({"exits": (ChosenExit(exit="0:fcn-r1-b0"), ChosenExit(exit="final"))}, "expected both thresholds at 0:"),
        ({"exits": (ChosenExit(exit="last"),)}, "exits: expected '<point>:<head>' or 'final', got 'last'"),
        (
            {
                "exits": (
                    ChosenExit(exit="0:fcn-r1-b0", pixel_threshold=1.5, image_threshold=0.5),
                    ChosenExit(exit="final"),
                )
            },
            r"pixel_threshold: expected a number in \[0, 1\]",
        ),
    ],
)
def test_configurations_that_contradict_themselves(table, change, message):
    with pytest.raises(ValueError, match=message):
        replace(gated(table, 0.5), **change)


def test_bad_input_to_a_deployed_network(network, table, val_images):
    image = val_images[0][:1]
    deployed = mess.deploy(network, gated(table, 0.5))
    for images, message in (
        (image[:0], r"images: expected a non-empty float batch"),
        (image[0], r"images: expected a non-empty float batch"),
        (image[:, :, 1:], r"images: expected height and width \(48, 64\), got \(47, 64\)"),
    ):
        with pytest.raises(ValueError, match=message):
            deployed(images)
    static = mess.search(table, setting="budgeted", max_cost_ratio=1.0).best
    with pytest.raises(ValueError, match="expected a configuration for 'input-dependent'"):
        mess.deploy(network, static).input_dependent(image)
    with pytest.raises(ValueError, match="configuration: expected exit points"):
        mess.deploy(network, replace(gated(table, 0.5), model=("x", "y", "z")))
    with pytest.raises(ValueError, match="configuration: expected one of the network's exits"):
        mess.deploy(network, gated(table, 0.5, exits=("0:fcn-r8-b3", "final")))
    for options in ({"mean": (0.5,)}, {"std": (0.2, 0.0, 0.2)}, {"mean": (float("nan"), 0.5, 0.5)}):
        with pytest.raises(ValueError, match="(mean|std): expected"):
            mess.deploy(network, gated(table, 0.5), **options)


def test_an_image_of_nan_is_never_confident(network, table, val_images):
    images = torch.cat([val_images[0][:1], val_images[0][:1] * float("nan")])
    deployed = mess.deploy(network, gated(table, 1e-9))
    prediction, alone = deployed(images), deployed(images[:1])
    assert (prediction.image_confidence[1] == 0).all()
    assert prediction.exits.tolist() == [alone.exits.item(), len(deployed.configuration.exits) - 1]
    torch.testing.assert_close(prediction.logits[:1], alone.logits)


def test_a_model_that_cannot_be_exported_is_said(val_images):
    class Forked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

        def forward(self, x):
            x = self.a(x)
            return self.c(self.b(x) if float(x.mean()) > 0 else x)

    with pytest.raises(RuntimeError, match="model: torch.export failed, so it cannot be cut into graphs"):
        split_graph(Forked(), [], val_images[0][:1])
