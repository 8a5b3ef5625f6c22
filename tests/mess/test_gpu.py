"""A deployed network on a GPU: with tensors that have a device, shape and type but no values, for which none is needed,
and on a real one where there is one."""

from __future__ import annotations

import copy
import shutil
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import mess
from mess import PolicySettings, device_confidence, verbs
from mess.data import SceneDataset
from mess.deployment.configuration import ChosenExit, Configuration

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class MakesTensors(nn.Module):
    """A model that makes tensors where its input is, as positions and masks are made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.third, self.classify = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 4, 1)

    def forward(self, images):
        x = self.second(self.first(images).relu()).relu()
        columns = torch.arange(x.shape[-1], device=x.device, dtype=x.dtype) / x.shape[-1]
        x = self.third(x + columns + torch.ones(x.shape[-2:], device=x.device, dtype=x.dtype)).relu()
        x = x * torch.tensor([0.5], device=x.device, dtype=x.dtype)
        return nn.functional.interpolate(self.classify(x), size=images.shape[-2:], mode="bilinear")


@pytest.fixture(scope="module")
def converted():
    torch.manual_seed(0)
    return mess.convert(MakesTensors(), torch.zeros(1, 3, 48, 64), exit_points=["first", "second"], heads="tiny")


def gated(converted, *thresholds: float) -> Configuration:
    """A gate at the first exits, with these image thresholds."""
    early = [
        ChosenExit(exit=f"{point}:fcn-r1-b0", pixel_threshold=0.3, image_threshold=threshold)
        for point, threshold in enumerate(thresholds)
    ]
    return Configuration(
        setting="input-dependent",
        model=tuple(point.name for point in converted.points),
        exits=(*early, ChosenExit(exit="final")),
        policy=PolicySettings(),
    )


def faked(deployed: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """The same as if moved to a GPU."""

    def moved(value: torch.Tensor) -> torch.Tensor:
        fake = value if isinstance(value, FakeTensor) else mode.from_tensor(value)
        with mode:
            return fake.to("cuda")

    return deployed._apply(moved)


class Waits(TorchDispatchMode):
    """Notes what the host waits for the GPU for: copies between the two that are not told otherwise, numbers that are
    read, and results of a size that is not known before."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        places = {value.device.type for value in (*args, result) if isinstance(value, torch.Tensor)}
        if func._schema.name in ("aten::to", "aten::_to_copy", "aten::copy_"):
            given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
            waits = len(places) > 1 and not given.get("non_blocking", False)
        elif func is torch.ops.aten.index.Tensor:  # as many as are true
            waits = any(index is not None and index.dtype == torch.bool for index in args[1])
        else:
            waits = bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & {*func.tags})
        if waits and "cuda" in places:
            self.seen.append(str(func))
        return result


@pytest.mark.parametrize("confidence", ["top1", "margin", "entropy"])
@pytest.mark.parametrize("edges", ["canny", "labels"])
def test_a_decision_waits_for_nothing(confidence, edges):
    policy = PolicySettings(confidence=confidence, edges=edges)
    for size, classes in (((48, 64), 21), ((12, 16), 3)):
        with FakeTensorMode(), Waits() as waits:
            logits = torch.empty(3, classes, 12, 16, device="cuda")
            counts = device_confidence.confident_pixels(
                logits, size=size, pixel_threshold=0.5, output_stride=8, policy=policy
            )
        assert counts.device.type == "cuda"
        assert counts.shape == (3,)
        assert waits.seen == []


def test_the_host_waits_once_an_exit(converted, monkeypatch):
    """For the B numbers of the gate: images that leave and go on are picked without waiting."""
    deployed = mess.deploy(converted, gated(converted, 0.5, 0.9))
    mode, answers, waits = FakeTensorMode(), [np.array([9, 0, 5, 1]), np.array([0, 9])], Waits()
    asked = []

    class Counted:
        """(B,) on the device; the copy to the host is what is waited for."""

        def __init__(self, counts: torch.Tensor) -> None:
            assert counts.device.type == "cuda"
            self.size = len(counts)

        def cpu(self) -> SimpleNamespace:
            asked.append(self.size)
            return SimpleNamespace(numpy=lambda: answers[len(asked) - 1] * (48 * 64) // 9)

    real = device_confidence.confident_pixels
    monkeypatch.setattr(device_confidence, "confident_pixels", lambda *args, **options: Counted(real(*args, **options)))
    faked(deployed, mode)
    with mode:
        images = torch.empty(4, 3, 48, 64, device="cuda")
        with waits:
            prediction = deployed(images)
        assert asked == [4, 2]  # an image left at the first exit with 9 / 9, one with 5 / 9
        assert waits.seen == []
        assert prediction.logits.device.type == "cuda"
        assert prediction.logits.shape == (4, 4, 48, 64)
    assert [images.tolist() for images, _ in prediction.parts] == [[0, 2], [3], [1]]


@pytest.mark.parametrize("any_size", [False, True])
def test_tensors_that_a_graph_makes_are_made_where_it_is_moved_to(converted, any_size):
    """They were made where the model was when it was recorded: next to parameters that had been moved."""
    deployed = mess.deploy(converted, gated(converted, 0.5), any_size=any_size)
    images = torch.rand(2, 3, 48, 64)
    before = [prediction.logits for prediction in deployed.anytime(images)]
    static, mode = deployed.budgeted(-1), FakeTensorMode()
    faked(deployed, mode)
    with mode:
        after = list(deployed.anytime(torch.empty(2, 3, 48, 64, device="cuda")))
        assert [prediction.logits.device.type for prediction in after] == ["cuda", "cuda"]
    assert torch.equal(static(images), before[-1])  # which was not moved


def test_a_type_that_the_model_names_is_not_converted(converted):
    """`dtype=x.dtype` was recorded as float32: next to weights of float16 the first image would fail."""
    deployed, images = mess.deploy(converted, gated(converted, 0.5)), torch.rand(2, 3, 48, 64)
    before = deployed(images).logits
    with pytest.raises(RuntimeError, match=r"names torch\.float32, .* as in mess\.deploy\(network\.half\(\), \.\.\.\)"):
        deployed.half()
    assert torch.equal(deployed(images).logits, before)
    halved = mess.deploy(copy.deepcopy(converted).half(), gated(converted, 0.5))
    assert halved(images.half()).logits.dtype == torch.float16


def test_a_deployed_network_stays_where_the_users_is_moved_from(converted):
    """Its parameters were the user's, and moved along; statistics and what the graph makes stayed."""
    network, images = copy.deepcopy(converted), torch.rand(2, 3, 48, 64)
    deployed = mess.deploy(network, gated(network, 0.5))
    before = deployed(images).logits
    network.double()
    assert torch.equal(deployed(images).logits, before)
    assert next(network.parameters()).dtype == torch.float64


def test_a_split_is_measured_where_the_searched_one_was(run_folder, table, tmp_path, capsys):
    shutil.copy(run_folder / "run.json", tmp_path)
    found = mess.search(table, max_cost_ratio=1.0).best
    assert found.promise["split"] == "val"
    assert verbs._searched_device(tmp_path, found) == "cpu"
    replace(table, facts={**table.facts, "device": "cuda:77"}).save(tmp_path / "table-val.safetensors")
    assert verbs._searched_device(tmp_path, found) == "cpu"
    assert "warning: the val split was measured on cuda:77, which is not here" in capsys.readouterr().out


@on_gpu
def test_the_same_exits_as_on_the_cpu(converted):
    images = torch.stack([SceneDataset(8, split="val", size=(48, 64))[i][0] for i in range(8)])
    values = mess.deploy(converted, gated(converted, 2.0, 2.0))(images).image_confidence
    thresholds = values.median(dim=0).values
    chosen = gated(converted, *thresholds.tolist())
    expected, deployed = mess.deploy(converted, chosen)(images), mess.deploy(converted, chosen).cuda()
    images = images.cuda()
    deployed(images)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.set_warn_always(True)
        torch.cuda.set_sync_debug_mode("warn")
        found = deployed(images)
        torch.cuda.set_sync_debug_mode("default")
        torch.set_warn_always(False)
    assert len([w for w in caught if "synchroniz" in str(w.message)]) <= 2  # one a gate
    near = ((expected.image_confidence - thresholds).abs() < 2e-3).any(dim=1)
    same = expected.exits == found.exits
    assert bool((same | near).all())
    torch.testing.assert_close(
        found.image_confidence[same], expected.image_confidence[same], atol=2e-3, rtol=0, equal_nan=True
    )


@on_gpu
def test_export_of_a_network_on_a_gpu(converted, tmp_path):
    deployed = mess.deploy(converted, gated(converted, 0.5)).cuda()
    mess.export(deployed, tmp_path / "net", class_names=["a", "b", "c", "d"])
    assert next(deployed.parameters()).is_cuda
    picture = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    found, expected = mess.Runtime(tmp_path / "net").predict(picture), mess.run(deployed, picture)
    assert found.exit == expected.exit
