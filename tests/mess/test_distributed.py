"""Many processes and accumulated batches against one process with the batches put together; sharded loading."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import mess
from mess.data import SceneDataset, SeededLoader
from mess.model.zoo import small_resnet_fcn
from mess.training.launch import batch_norm_synchronised, launcher
from mess.training.loop import pretrain, train_exits


class HalfLabelled(SceneDataset):
    """Of every second image only a strip is labelled, so that batches differ in valid pixels."""

    def pair(self, index: int):
        image, labels = super().pair(index)
        if index % 2:
            labels = np.where(np.arange(labels.shape[0])[:, None] < 20, labels, 255).astype(np.uint8)
        return image, labels


class NormAct(nn.BatchNorm2d):
    """Batch norm and activation in one layer, as timm's."""

    def forward(self, x):
        return nn.functional.leaky_relu(super().forward(x), 0.1)


def fresh(batch_size: int, *, heads=("fcn-r1-b0", "fcn-r4-b1", "deeplabv3-r4-b0")):
    """A network without dropout, which differs by process, and batches of it."""
    torch.manual_seed(0)
    net = small_resnet_fcn(num_classes=6)
    norms = [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]
    net.set_submodule(norms[1], NormAct(net.get_submodule(norms[1]).num_features))
    network = mess.convert(net, torch.zeros(1, 3, 32, 48), num_exits=4, heads=heads)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    data = HalfLabelled(split="train", count=16)
    return network, SeededLoader(data, size=(32, 48), batch_size=batch_size, train=True)


def train_both(folder, batch_size: int) -> None:
    """Each stage for two epochs of two steps, in double precision. Called by every process."""
    settings = mess.TrainSettings(epochs=2, loss_stride=2)
    for stage in (pretrain, train_exits):
        network, batches = fresh(batch_size)
        stage(network.double(), batches, settings=settings, checkpoint=Path(folder) / stage.__name__)


@pytest.mark.slow
def test_two_processes_equal_one_with_the_doubled_batch(tmp_path):
    """Weights, batch-norm statistics, moments of the optimizer (gradients, that is) and losses, after four steps."""
    script = "from tests.mess.test_distributed import train_both; train_both(sys.argv[1], 4)"
    (tmp_path / "two.py").write_text(f"import sys; sys.path.insert(0, '.')\n{script}\n")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = subprocess.run([*launcher, tmp_path / "two.py", tmp_path / "two"], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    train_both(tmp_path / "one", 8)
    for stage in ("pretrain", "train_exits"):
        two, one = load_file(tmp_path / "two" / stage), load_file(tmp_path / "one" / stage)
        assert two.keys() == one.keys()
        for name in one:
            # rounding alone would be 1e-13; AdamW lifts it where a gradient is no greater than its epsilon
            scale = float(one[name].abs().max())
            assert float((two[name] - one[name]).abs().max()) <= 1e-4 * scale, f"{stage} {name}"
        for epoch, other in zip(*(losses(tmp_path / which / stage) for which in ("two", "one")), strict=True):
            assert epoch == pytest.approx(other, rel=1e-6)


def losses(path) -> list[dict[str, float]]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["mess"])["losses"]


@pytest.mark.parametrize("stage", [pretrain, train_exits])
def test_accumulated_batches_equal_the_batch_put_together(stage):
    """Without batch norm, whose statistics see one batch at a time."""

    def head(channels, classes):
        return nn.Conv2d(channels, classes, 1)

    networks = []
    for batch_size, accumulate in ((8, 1), (2, 4)):
        network, batches = fresh(batch_size, heads=[head])
        for module in network.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)
                module.train = lambda mode=True, module=module: module  # frozen, as `eval` does it
                module.training = False
        settings = mess.TrainSettings(epochs=1, schedule="all", accumulate=accumulate)
        networks.append((network, stage(network, batches, settings=settings)))
    (whole, expected), (parts, found) = networks
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    for value, other in zip(parts.parameters(), whole.parameters(), strict=True):
        assert (value - other).abs().mean() <= 1e-5


def test_shards_are_the_batch_of_one_process_in_parts():
    whole = SeededLoader(SceneDataset(split="train", count=13), size=(16, 24), batch_size=6, train=True, seed=3)
    whole.set_epoch(1)
    expected = list(whole)
    parts = []
    for rank in range(3):
        part = SeededLoader(SceneDataset(split="train", count=13), size=(16, 24), batch_size=2, train=True, seed=3)
        part.shard(rank, 3)
        assert len(part) == len(whole) == 2
        parts.append(list(part.begin(1, 0)))
    for batch, (images, labels) in enumerate(expected):
        assert torch.equal(torch.cat([part[batch][0] for part in parts]), images)
        assert torch.equal(torch.cat([part[batch][1] for part in parts]), labels)
    with pytest.raises(ValueError, match="batch_size: expected at most 1, as 7 processes share 13 images, got 2"):
        part.shard(0, 7)


def test_synchronised_batch_norm_alone_is_batch_norm(monkeypatch):
    """In one process: same outputs, gradients and statistics as torch's; nothing of it is left afterwards."""
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: None)
    results = []
    for enabled in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.BatchNorm2d(5, affine=False, momentum=None))
        net.extend([NormAct(5), nn.BatchNorm2d(5, track_running_stats=False)])
        if enabled:
            net.append(nn.SyncBatchNorm(5))  # without a group torch's is batch norm too, but refuses the CPU
        else:
            net.append(nn.BatchNorm2d(5))
        net[1].register_parameter("bias", None)
        x = torch.randn(4, 3, 9, 11, requires_grad=True)
        with batch_norm_synchronised(net, enabled=enabled):
            net(2 * x + 1)
            y = net(x)
        assert "forward" not in vars(net[1])
        assert nn.functional.batch_norm.__module__ == "torch.nn.functional"
        (y * torch.randn(y.shape)).square().sum().backward()
        net.eval()
        with batch_norm_synchronised(net, enabled=enabled):
            evaluated = net(x)
        gradients = [net[0].weight.grad, net[3].bias.grad, x.grad]
        assert all(float(gradient.abs().max()) > 1e-2 for gradient in gradients)
        results.append([y, evaluated, *gradients, *net.buffers()])
    for value, other in zip(*results, strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-4)


def test_float16_needs_cuda():
    with pytest.raises(ValueError, match="precision: expected 'float32' or 'bfloat16' on cpu, got 'float16'"):
        launcher(nn.Linear(1, 1), "float16")
