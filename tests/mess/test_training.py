"""Both stages: what moves and what must not, seeds, checkpoints, kill -9, Ctrl-C."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import mess
from mess import runs, verbs
from mess.data import SceneDataset, SeededLoader
from mess.files import read_safetensors
from mess.model.weights import state_sha256
from mess.model.zoo import small_resnet_fcn
from mess.training.board import tensorboard
from mess.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from mess.training.loop import coarse_labels, pretrain, train_exits

SETTINGS = runs.RunSettings(
    model="small_resnet_fcn", data="scenes:8", size=(32, 48), num_exits=4, heads="tiny", batch_size=4
)


def fresh():
    network = runs.new_network(SETTINGS)
    return network, runs.loader(SETTINGS, split="train", train=True)


def state(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before, module) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def test_stage_1_trains_one_early_exit_a_batch_in_rotation():
    network, batches = fresh()
    before = state(network)
    pretrain(network, batches, settings=mess.TrainSettings(epochs=1))  # two batches: exits 0 and 1
    changed = moved(before, network)
    assert any(n.startswith("net.features") for n in changed)
    assert any(n.startswith("net.classifier") for n in changed)
    running = {n for n in changed if n.startswith("heads.") and n.endswith("running_mean")}
    assert {n.split(".")[1] for n in running} == {"0", "1"}
    plain = network.plain_exits[0].head.name
    assert not [n for n in changed if n.startswith("heads.") and plain not in n]
    assert not [n for n in changed if n.startswith("heads.2.")]


def test_stage_1_with_the_printed_schedule():
    network, batches = fresh()
    before = state(network)
    pretrain(network, batches, settings=mess.TrainSettings(epochs=1, schedule="divisor"))
    assert moved(before, network)
    # batch 1 fires exit 1, batch 2 exits 1 and 2
    counts = [int(v) for n, v in network.state_dict().items() if "num_batches_tracked" in n and "heads" in n]
    assert sorted(c for c in counts if c) == [1, 2]


def test_stage_2_moves_heads_only():
    network, batches = fresh()
    before = state(network)
    train_exits(network, batches, settings=mess.TrainSettings(epochs=1))
    changed = moved(before, network)
    assert not [n for n in changed if n.startswith("net.")]
    untouched = [n for n, p in network.heads.named_parameters() if f"heads.{n}" not in changed]
    assert untouched == []


@pytest.mark.parametrize("stage", [pretrain, train_exits])
def test_mixed_precision_trains_what_single_precision_does(stage):
    def trained(precision):
        network, batches = fresh()
        losses = stage(network, batches, settings=mess.TrainSettings(epochs=2, precision=precision))
        assert {value.dtype for value in network.parameters()} == {torch.float32}
        return state(network), losses

    (single, losses), (mixed, mixed_losses) = trained("float32"), trained("bfloat16")
    assert any(not torch.equal(single[name], value) for name, value in mixed.items())
    for epoch, mixed_epoch in zip(losses, mixed_losses, strict=True):
        assert mixed_epoch == pytest.approx(epoch, rel=0.02)


@pytest.mark.parametrize("loss", ["pfd", "kd", "ce"])
def test_every_loss_lowers_itself(loss):
    network, batches = fresh()
    history = train_exits(network, batches, settings=mess.TrainSettings(epochs=4, learning_rate=5e-3, loss=loss))
    assert history[-1].keys() == {exit_id.name for exit_id in network.exits}
    assert sum(history[-1].values()) < sum(history[0].values())


class Auxiliary(nn.Module):
    """In evaluation its logits; in training a list with those of an auxiliary classifier, in front or behind."""

    def __init__(self, order):
        super().__init__()
        self.stem, self.drop = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()), nn.Dropout(0.5)
        self.body, self.order = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()), order
        self.main, self.auxiliary = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)

    def forward(self, images):
        x = self.stem(images)
        deep = self.body(x)
        maps = {"main": self.main(self.drop(deep)), "auxiliary": self.auxiliary(x)}
        return [maps[name] for name in self.order] if self.training else maps["main"]


def test_maps_that_a_model_returns_in_training_alone():
    """The first is trained as the logits: it has to be what the model returns in evaluation."""
    _, batches = fresh()
    settings = mess.TrainSettings(epochs=1)

    def network(order, **options):
        return mess.convert(Auxiliary(order), torch.zeros(1, 3, 32, 48), exit_points=["stem"], heads="tiny", **options)

    off = network(["auxiliary", "main"])
    before = state(off)
    with pytest.raises(TypeError, match="its logits in evaluation are map 1 of the 2 that it returns in"):
        pretrain(off, batches, settings=settings)
    assert moved(before, off) == set()
    pretrain(network(["main", "auxiliary"]), batches, settings=settings)
    last = network(["auxiliary", "main"], pick_logits=lambda output: output[-1] if isinstance(output, list) else output)
    before = state(last)
    pretrain(last, batches, settings=settings)
    assert "net.main.weight" in moved(before, last)


def test_the_callers_random_numbers_go_on():
    """A search of settings that draws between trainings would draw the same each time."""
    network, batches = fresh()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    mess.train(network, batches, pretraining=mess.TrainSettings(epochs=1))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("stage", [pretrain, train_exits])
def test_parameters_of_low_precision_are_not_trained(stage):
    network, batches = fresh()
    before = state(network.half())
    with pytest.raises(ValueError, match=r"network: expected parameters of float32 to train, got torch\.float16"):
        stage(network, batches, settings=mess.TrainSettings(epochs=1))
    assert moved(before, network) == set()


def test_same_seed_same_weights():
    results = []
    for _ in range(2):
        network, batches = fresh()
        mess.train(network, batches, pretraining=mess.TrainSettings(epochs=1))
        results.append(state(network))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


SCRIPT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
import sys, mess
from tests.mess.test_training import fresh
network, batches = fresh()
settings = mess.TrainSettings(epochs=4)
mess.train(network, batches, pretraining=settings, exits=settings, out=sys.argv[1], checkpoint_minutes=0)
"""


def wait_for(path, epoch, step, process):
    """Until the checkpoint says that `step` steps after `epoch` epochs are done, or more."""
    for _ in range(6000):
        if path.is_file():
            _, header = read_safetensors(path, "checkpoint", framework="pt", names=())
            if (header["epoch"], header["step"]) >= (epoch, step):
                return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    raise AssertionError(f"{path} never reached step {step} after epoch {epoch}")


@pytest.mark.slow
def test_a_run_killed_in_both_stages_ends_like_one_that_was_not(tmp_path):
    def start():
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "killed")]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    for file, epoch, step in (
        ("pretrain.safetensors", 0, 1),
        ("pretrain.safetensors", 2, 0),
        ("exits.safetensors", 1, 1),
    ):
        process = start()
        wait_for(tmp_path / "killed" / file, epoch, step, process)
        process.kill()
        process.wait()
    process = start()
    assert process.wait(timeout=300) == 0, process.stderr.read()
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    for file in ("pretrain.safetensors", "exits.safetensors"):
        killed, whole = load_file(tmp_path / "killed" / file), load_file(tmp_path / "whole" / file)
        assert killed.keys() == whole.keys()
        assert all(torch.equal(killed[name], whole[name]) for name in whole), file


@pytest.mark.parametrize("stage", [pretrain, train_exits])
def test_a_stage_stopped_after_any_step_ends_like_one_that_was_not(stage, tmp_path):
    """Weights, optimizer and loss curve; heads have dropout, images are augmented."""
    settings = mess.TrainSettings(epochs=2, accumulate=2)
    data = SceneDataset(split="train", count=10)
    curves = {}

    def go(name: str, stop_at: int | None, minutes: float) -> None:
        def log(step, values):
            if step == stop_at:
                raise KeyboardInterrupt
            curves.setdefault(name, {})[step] = {k: v for k, v in values.items() if "per_second" not in k}

        network = runs.new_network(SETTINGS)
        batches = SeededLoader(data, size=SETTINGS.size, batch_size=2, train=True)
        stage(network, batches, settings=settings, checkpoint=tmp_path / name, checkpoint_minutes=minutes, log=log)

    go("whole", None, 10)
    assert list(curves["whole"]) == [1, 2, 3, 4, 5, 6]  # five batches an epoch, two a step
    for stop_at in range(1, 7):
        with pytest.raises(KeyboardInterrupt):
            go(f"stopped{stop_at}", stop_at, 0)
        go(f"stopped{stop_at}", None, 10)
        assert curves[f"stopped{stop_at}"] == curves["whole"]
        continued, whole = load_file(tmp_path / f"stopped{stop_at}"), load_file(tmp_path / "whole")
        assert all(torch.equal(continued[name], whole[name]) for name in whole)


def test_a_checkpoint_of_other_batches_is_refused(tmp_path):
    network, batches = fresh()
    settings = mess.TrainSettings(epochs=1)
    pretrain(network, batches, settings=settings, checkpoint=tmp_path / "c")
    fewer = runs.loader(dataclasses.replace(SETTINGS, batch_size=8), split="train", train=True)
    with pytest.raises(ValueError, match="another training: steps_per_epoch 2 there, 1 asked"):
        pretrain(network, fewer, settings=settings, checkpoint=tmp_path / "c")


def cached(folder, *, epochs: int, views: int, loss: str = "pfd"):
    network, batches = fresh()
    settings = mess.TrainSettings(epochs=epochs, loss=loss)
    history = train_exits(network, batches, settings=settings, cache=folder, cache_views=views)
    return network, history


def test_cached_features_train_as_the_backbone_does(tmp_path, monkeypatch):
    plain, batches = fresh()
    history = train_exits(plain, batches, settings=mess.TrainSettings(epochs=2))
    network, first = cached(tmp_path, epochs=2, views=2)
    assert first == history
    assert moved(state(plain), network) == set()
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"view{v}-{b:06d}.safetensors" for v in (0, 1) for b in (0, 1)]
    # a second run reads them: it computes one batch, for the size
    calls = []
    features = mess.MultiExitNetwork.features
    monkeypatch.setattr(mess.MultiExitNetwork, "features", lambda *a: calls.append(1) or features(*a))
    _, second = cached(tmp_path, epochs=2, views=2)
    assert second == history
    assert len(calls) == 1
    (tmp_path / files[1]).unlink()  # killed while it was filled
    _, third = cached(tmp_path, epochs=2, views=2)
    assert third == history
    assert len(calls) == 3


def test_fewer_views_than_epochs_repeat(tmp_path):
    _, history = cached(tmp_path, epochs=3, views=1)
    assert len(history) == 3
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_cache_of_another_backbone_or_too_large_is_refused(tmp_path, monkeypatch, capsys):
    network, batches = fresh()
    settings = mess.TrainSettings(epochs=1)
    train_exits(network, batches, settings=settings, cache=tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    found = re.search(r"feature cache: ([\d.]+) MB in", capsys.readouterr().out)
    assert found
    assert 0.95 * size / 1e6 < float(found[1]) <= size / 1e6  # files have headers
    with torch.no_grad():
        next(network.net.parameters()).add_(1)
    with pytest.raises(ValueError, match="cache: .* belongs to another training: backbone"):
        train_exits(network, batches, settings=settings, cache=tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(
        ValueError, match=r"cache: expected [\d.]+ MB free in .* for 5 views, got 0.00 MB; take fewer views"
    ):
        train_exits(network, batches, settings=settings, cache=tmp_path / "other", cache_views=5)
    with pytest.raises(ValueError, match="out: expected a folder for the features of cache_views, got None"):
        mess.train(network, batches, cache_views=1)


def plain_net() -> torch.nn.Sequential:
    """Blocks whose exits have the same names and shapes wherever they are."""
    blocks = [torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)]
    blocks += [torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU()) for _ in range(5)]
    return torch.nn.Sequential(*blocks, torch.nn.Conv2d(8, 3, 1))


def plain(*points: str) -> mess.MultiExitNetwork:
    torch.manual_seed(0)
    return mess.convert(plain_net(), torch.rand(1, 3, 16, 24), exit_points=points, heads=["fcn-r1-b0"])


def own_batches(seed: int = 0, count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    drawn = torch.Generator().manual_seed(seed)
    return [
        (torch.rand(2, 3, 16, 24, generator=drawn), torch.randint(0, 3, (2, 16, 24), generator=drawn))
        for _ in range(count)
    ]


def test_a_checkpoint_of_other_exits_data_or_backbone_is_refused(tmp_path):
    once = mess.TrainSettings(epochs=1)
    for stage in (pretrain, train_exits):
        path = tmp_path / stage.__name__
        stage(plain("1", "3"), own_batches(), settings=once, checkpoint=path)
        with pytest.raises(ValueError, match=r"another training: points \['1', '3'\] there, \['2', '4'\] asked"):
            stage(plain("2", "4"), own_batches(), settings=once, checkpoint=path)
        with pytest.raises(ValueError, match="another training: data .batches of the caller's own, 4 from"):
            stage(plain("1", "3"), own_batches(seed=1), settings=once, checkpoint=path)
    other = plain("1", "3")
    with torch.no_grad():
        next(other.net.parameters()).add_(1)
    with pytest.raises(ValueError, match="another training: backbone"):
        train_exits(other, own_batches(), settings=once, checkpoint=tmp_path / "train_exits")
    # not trained, so not to be overwritten either
    never = mess.TrainSettings(epochs=0)
    pretrain(plain("1", "3"), own_batches(), settings=never, checkpoint=tmp_path / "never")
    with pytest.raises(ValueError, match="another training: backbone"):
        pretrain(other, own_batches(), settings=never, checkpoint=tmp_path / "never")


def test_training_goes_on_with_a_cache_or_without(tmp_path):
    def stop_at(step, values):
        if step == 5:
            raise KeyboardInterrupt

    settings, path = mess.TrainSettings(epochs=2), tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        train_exits(plain("1", "3"), own_batches(), settings=settings, checkpoint=path, log=stop_at)
    continued, whole = plain("1", "3"), plain("1", "3")
    train_exits(continued, own_batches(), settings=settings, checkpoint=path, cache=tmp_path / "f", cache_views=2)
    train_exits(whole, own_batches(), settings=settings)
    assert moved(state(whole), continued) == set()


def test_a_cache_of_other_points_precision_or_data_is_refused(tmp_path):
    once = mess.TrainSettings(epochs=1)
    train_exits(plain("1", "3"), own_batches(), settings=once, cache=tmp_path)
    for network, batches, settings, told in (
        (plain("2", "4"), own_batches(), once, "points"),
        (plain("1", "3"), own_batches(), dataclasses.replace(once, precision="bfloat16"), "precision"),
        (plain("1", "3"), own_batches(seed=1), once, "data"),
    ):
        with pytest.raises(ValueError, match=f"cache: .* belongs to another training: {told}"):
            train_exits(network, batches, settings=settings, cache=tmp_path)


class Numbered(torch.utils.data.Dataset):
    """Eight pictures, whose first pixel is their number."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(index))
        image[0, 0, 0] = index
        return image, torch.randint(0, 3, (16, 24), generator=torch.Generator().manual_seed(index))


@pytest.mark.parametrize("own_generator", [False, True])
@pytest.mark.parametrize("views", [0, 1])
def test_a_dataloader_goes_on_in_the_order_that_it_would_have_had(own_generator, views, tmp_path):
    """Stopped in any step of either epoch, with the generator that PyTorch's notes advise, and with a feature cache."""

    def go(name: str, stop_at: int | None) -> dict[str, torch.Tensor]:
        def log(step, values):
            if step == stop_at:
                raise KeyboardInterrupt

        generator = torch.Generator().manual_seed(3) if own_generator else None
        batches = torch.utils.data.DataLoader(Numbered(), batch_size=2, shuffle=True, generator=generator)
        network, cache = plain("1", "3"), tmp_path / f"{name}-cache" if views else None
        settings = mess.TrainSettings(epochs=2)
        train_exits(network, batches, settings=settings, checkpoint=tmp_path / name, cache=cache, log=log)
        return state(network)

    whole = go("whole", None)
    orders = set()
    for stop_at in (2, 4, 6):
        name = f"stopped{stop_at}"
        with pytest.raises(KeyboardInterrupt):
            go(name, stop_at)
        continued = go(name, None)
        assert all(torch.equal(continued[key], whole[key]) for key in whole)
        if views:
            kept = [load_file(path)["labels"] for path in sorted((tmp_path / f"{name}-cache").glob("*.safetensors"))]
            known = [Numbered()[index][1] for index in range(8)]
            orders.add(tuple(i for labels in kept for one in labels for i in range(8) if torch.equal(one, known[i])))
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len(orders) <= 1


def test_the_loss_of_an_epoch_is_that_of_its_labelled_pixels():
    alike = mess.TrainSettings(epochs=1, learning_rate=1e-12)
    batches = own_batches()
    unlabelled = [(images, torch.full_like(labels, 255)) for images, labels in batches]
    (expected,), (found,) = (
        train_exits(plain("1", "3"), several, settings=alike) for several in (batches, batches + unlabelled)
    )
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([{"image": 1, "mask": 2}], r"batches: expected \(images .*, two tensors, got a dict of \[\]"),
        (
            [(torch.rand(2, 3, 16, 24), torch.zeros(2, 1, 16, 24))],
            r"two tensors, got a tuple of \[\(2, 3, 16, 24\), \(2, 1, ",
        ),
        ([(torch.rand(2, 3, 16, 24), torch.zeros(2, 16, 24), "name")], "two tensors, got a tuple of .*'str'"),
        ([(torch.rand(2, 3, 16, 24), [0])], "two tensors, got a tuple of .*'list'"),
    ],
)
def test_batches_of_another_kind_are_told(batches, message):
    with pytest.raises(ValueError, match=message):
        pretrain(plain("1", "3"), batches, settings=mess.TrainSettings(epochs=1))


def test_batches_that_are_there_once_are_told():
    class Once:
        def __init__(self):
            self.left = iter(own_batches())

        def __len__(self):
            return 4

        def __iter__(self):
            return self.left

    with pytest.raises(ValueError, match=r"batches: expected 4 in every epoch, as their len\(\) says, got 0"):
        pretrain(plain("1", "3"), Once(), settings=mess.TrainSettings(epochs=2))


def test_a_model_that_joins_dimensions_by_view_is_trained_too():
    class Joining(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rest = torch.nn.Conv2d(3, 8, 3, padding=1), plain_net()[1:]

        def forward(self, images):
            feature = self.first(images)
            batch, channels, height, width = feature.shape
            pooled = torch.nn.functional.avg_pool2d(feature.view(batch * channels, 1, height, width), 2)
            return self.rest(pooled.view(batch, channels, height // 2, width // 2))

    network = mess.convert(Joining(), torch.rand(1, 3, 16, 24), exit_points=["rest.1"], heads=["fcn-r1-b0"])
    history = pretrain(network, own_batches(), settings=mess.TrainSettings(epochs=1))
    assert history[0].keys() == {"0:fcn-r1-b0", "final"}


def test_state_that_is_no_tensor_is_told(tmp_path):
    network = plain("1", "3")
    type(network.net).get_extra_state = lambda self: {"version": 1}
    try:
        with pytest.raises(TypeError, match="network: expected tensors alone in its state_dict, .*_extra_state.*dict"):
            pretrain(network, own_batches(), settings=mess.TrainSettings(epochs=1), checkpoint=tmp_path / "c")
        with pytest.raises(TypeError, match="net: expected tensors alone in its state_dict, .*_extra_state.*dict"):
            state_sha256(network.net)
    finally:
        del type(network.net).get_extra_state


def test_tensorboard_shows_every_exit(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    network, batches = fresh()
    with tensorboard(tmp_path) as log:
        pretrain(network, batches, settings=mess.TrainSettings(epochs=2, schedule="all"), log=log)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    names = {"final", *(exit_id.name.replace(":", ".") for exit_id in network.plain_exits)}
    expected = {*(f"pretrain/loss/{name}" for name in names), "pretrain/learning_rate", "pretrain/images_per_second"}
    assert set(events.Tags()["scalars"]) == expected
    assert [event.step for event in events.Scalars("pretrain/loss/final")] == [1, 2, 3, 4]


def test_any_iterable_of_batches_will_do():
    network, _ = fresh()
    data = [(torch.rand(3, 32, 48), torch.zeros(32, 48, dtype=torch.int64)) for _ in range(4)]
    batches = torch.utils.data.DataLoader(data, batch_size=2, shuffle=True)
    history = train_exits(network, batches, settings=mess.TrainSettings(epochs=2))
    assert len(history) == 2


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_at_once(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait_for(tmp_path / "pretrain.safetensors", 0, 0, process)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) != 0
    network, _ = fresh()
    assert load_checkpoint(tmp_path / "pretrain.safetensors", network).stage == "pretrain"


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path):
    network, batches = fresh()
    settings = mess.TrainSettings(epochs=1)
    path = tmp_path / "c.safetensors"
    pretrain(network, batches, settings=settings, checkpoint=path)
    whole = path.read_bytes()
    network, _ = fresh()  # not what the checkpoint holds, so that a load that should be refused would show
    before = state(network)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="checkpoint: .* is truncated"):
        load_checkpoint(path, network)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="truncated or no safetensors"):
        load_checkpoint(path, network)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match="belongs to another training: epochs 1 there, 2 asked"):
        pretrain(network, batches, settings=mess.TrainSettings(epochs=2), checkpoint=path)
    with pytest.raises(ValueError, match="belongs to another training: stage 'pretrain' there, 'exits' asked"):
        train_exits(network, batches, settings=settings, checkpoint=path)
    other = runs.new_network(runs.RunSettings(model="small_resnet_fcn", data="scenes:8", size=(32, 48), heads="tiny"))
    with pytest.raises(ValueError, match="does not fit the network: missing"):
        load_checkpoint(path, other)
    with pytest.raises(FileNotFoundError, match="checkpoint: expected a safetensors file"):
        load_checkpoint(tmp_path / "none", network)
    assert moved(before, network) == set()


def test_a_disk_that_is_full_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    network, batches = fresh()
    path = tmp_path / "c.safetensors"
    pretrain(network, batches, settings=mess.TrainSettings(epochs=1), checkpoint=path)
    whole = path.read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, network, None, Progress(stage="pretrain", epoch=9, settings={}))
    assert path.read_bytes() == whole
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_loss_that_is_not_finite_stops_the_run():
    network, batches = fresh()
    with torch.no_grad():
        next(network.net.parameters()).fill_(float("nan"))
    with pytest.raises(
        RuntimeError, match=r"pretrain: the loss of exit final is nan at batch 1 of epoch 1 \(.*\); lower learning_rate"
    ):
        pretrain(network, batches, settings=mess.TrainSettings(epochs=1))


def test_a_run_folder_belongs_to_one_run(tmp_path):
    SETTINGS.save(tmp_path)
    SETTINGS.save(tmp_path)
    with pytest.raises(ValueError, match="out: .* holds another run: data 'scenes:8' there, 'scenes:9' asked"):
        runs.RunSettings(model="small_resnet_fcn", data="scenes:9", size=(32, 48)).save(tmp_path)
    (tmp_path / "run.json").write_text('{"model": 1')
    with pytest.raises(ValueError, match="run: .*run.json is no complete JSON file"):
        runs.RunSettings.load(tmp_path)


def test_labels_on_a_coarser_grid_stay_where_they_were():
    ramp = torch.arange(12).expand(1, 12, 12)
    for stride in (2, 3, 4):
        size = (12 // stride, 12 // stride)
        centres = torch.nn.functional.interpolate(ramp[None].float(), size=size, mode="bilinear")[0]
        assert (coarse_labels(ramp, stride) - centres).abs().max() <= 0.5


def test_labels_outside_the_classes_stop_the_run():
    network, _ = fresh()
    images, labels = torch.rand(2, 3, 32, 48), torch.full((2, 32, 48), 7)
    with pytest.raises(ValueError, match="labels: expected 0..5 or 255, got 7..7"):
        train_exits(network, [(images, labels)], settings=mess.TrainSettings(epochs=1))


def test_more_classes_than_labels_stop_the_run():
    """255 is ignored, so it cannot be a class."""
    network = mess.convert(small_resnet_fcn(num_classes=256), torch.zeros(1, 3, 32, 48), num_exits=3, heads="tiny")
    batches = [(torch.rand(2, 3, 32, 48), torch.full((2, 32, 48), 255))]
    for use in (
        lambda: train_exits(network, batches, settings=mess.TrainSettings(epochs=1)),
        lambda: mess.calibrate(network.eval(), batches, latency_rounds=0),
    ):
        with pytest.raises(ValueError, match="labels: expected at most 255 classes, since 255 is ignored, got 256"):
            use()


@pytest.mark.parametrize("stage", [pretrain, train_exits])
def test_an_epoch_without_a_label_stops_the_run(stage):
    network, _ = fresh()
    nothing, one = torch.full((2, 32, 48), 255), torch.full((2, 32, 48), 255)
    one[0, 0, 0] = 3
    images, settings = torch.rand(2, 3, 32, 48), mess.TrainSettings(epochs=1)
    stage(network, [(images, nothing), (images, one)], settings=settings)
    with pytest.raises(ValueError, match=r"batches: expected labels of 0\.\.5, got an epoch of 4 images"):
        stage(network, [(images, nothing), (images, nothing)], settings=settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs: expected at least 0"),
        ({"learning_rate": 0.0}, "learning_rate: expected > 0"),
        ({"loss_stride": 0}, "loss_stride: expected at least 1"),
        ({"accumulate": 0}, "accumulate: expected at least 1"),
        ({"schedule": "random"}, "schedule: expected one of"),
        ({"loss": "mse"}, "loss: expected one of"),
        ({"precision": "int8"}, "precision: expected one of"),
        ({"learning_rate": float("inf")}, "learning_rate: expected > 0, got inf"),
        ({"weight_decay": -1.0}, "weight_decay: expected 0 or more, got -1.0"),
        ({"alpha": 2.0}, r"alpha: expected a number in \[0, 1\], got 2.0"),
        ({"alpha": float("nan")}, r"alpha: expected a number in \[0, 1\], got nan"),
        ({"temperature": 0.0}, "temperature: expected > 0, got 0.0"),
        ({"seed": -1}, r"seed: expected an integer in 0\.\.2\^63, got -1"),
        ({"seed": 10**30}, "seed: expected an integer"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        mess.TrainSettings(**options)


def test_what_is_asked_is_looked_at_before_anything_is_trained(tmp_path):
    network, batches = fresh()
    before = state(network)
    with pytest.raises(ValueError, match=r"cache_views: expected 0 \(none\) or more, got -1"):
        mess.train(network, batches, out=tmp_path, cache_views=-1)
    assert not moved(before, network)


def test_a_refused_training_leaves_the_folder_to_the_next(tmp_path):
    one = mess.TrainSettings(epochs=1)
    with pytest.raises(ValueError, match="batch_size: expected at most the 8 images of the split, got 100"):
        verbs.train_run(tmp_path, dataclasses.replace(SETTINGS, batch_size=100), one, one)
    verbs.train_run(tmp_path, SETTINGS, one, one)
    assert (tmp_path / "exits.safetensors").is_file()


def test_a_training_that_was_interrupted_is_told_of(tmp_path):
    one, two = mess.TrainSettings(epochs=1), mess.TrainSettings(epochs=2)
    network, batches = fresh()
    verbs.train_run(tmp_path, SETTINGS, one, one)
    runs.trained_network(tmp_path)  # no warning, which would be an error here
    (tmp_path / "exits.safetensors").unlink()

    def stop(step, values):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_exits(network, batches, settings=two, checkpoint=tmp_path / "exits.safetensors", log=stop)
    with pytest.warns(UserWarning, match="exits.safetensors holds 0 of 2 epochs; `mess train` goes on"):
        runs.trained_network(tmp_path)


def test_no_batches_is_an_error():
    network, _ = fresh()
    with pytest.raises(ValueError, match="batches: expected at least one batch"):
        pretrain(network, [], settings=mess.TrainSettings(epochs=1))


def test_exits_that_are_elsewhere_now(tmp_path):
    """Heads are named by number, and may fit where they were not trained."""
    verbs.train_run(tmp_path, SETTINGS, mess.TrainSettings(epochs=1), mess.TrainSettings(epochs=1))
    points = [point.name for point in runs.trained_network(tmp_path).points]
    text = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**text, "exit_points": ["features.5", *points[1:]]}))
    with pytest.raises(ValueError, match="has heads for .* are at .* now: the model is another, or counted otherwise"):
        runs.trained_network(tmp_path)


def test_a_model_of_other_classes_than_the_data(tmp_path):
    factory = (
        "from mess.model.zoo import small_resnet_fcn\n\ndef make():\n    return small_resnet_fcn(num_classes=21)\n"
    )
    (tmp_path / "mine.py").write_text(factory)
    settings = dataclasses.replace(SETTINGS, model=f"{tmp_path / 'mine.py'}:make")
    with pytest.raises(ValueError, match="model: expected logits of 6 classes, those of the data, got 21 from"):
        verbs.train_run(tmp_path / "run", settings, mess.TrainSettings(epochs=1), mess.TrainSettings(epochs=1))
    assert not (tmp_path / "run").exists()
