"""What the user's model keeps, and who else runs it: nothing is left in it, and nothing is mixed up."""

from __future__ import annotations

import functools
import gc
import logging
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint

import mess
from mess.deployment.configuration import ChosenExit, Configuration
from mess.deployment.measure import measure_deployed
from mess.model.adapter import quiet_attempt
from mess.model.capture import captured_features
from mess.model.cost import count_macs
from mess.model.fused import unfused

SIZE = (16, 24)


class Net(nn.Module):
    """A stem, a body of three blocks and a classifier of 4 classes; `between` may change what goes into the body."""

    def __init__(self, body: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3)]
        self.body = nn.Sequential(*blocks) if body is None else body
        self.classifier = nn.Conv2d(8, 4, 1)

    def between(self, feature: Tensor) -> Tensor:
        return feature

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.body(self.between(self.stem(images))))


def new(net: nn.Module, **options) -> mess.MultiExitNetwork:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # fewer points than asked
        return mess.convert(net, torch.rand(1, 3, *SIZE), **{"heads": ["fcn-r1-b0"], "num_exits": 3, **options}).eval()


def grid(height: int, width: int) -> Tensor:
    return torch.stack(torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")).sum(
        0
    )


cached_grid = functools.lru_cache(maxsize=None)(grid)
recent_grid = functools.lru_cache(maxsize=4)(grid)
GRIDS: dict[tuple[int, int], tuple[Tensor, str]] = {}


class Everywhere(Net):
    def between(self, feature):
        height, width = feature.shape[-2:]
        if (height, width) not in GRIDS:
            GRIDS[height, width] = (grid(height, width), "its name")
        return feature + cached_grid(height, width) + recent_grid(height, width) + GRIDS[height, width][0]


class BySize(Net):
    def __init__(self):
        super().__init__()
        self.grids = {}

    def between(self, feature):
        size = tuple(feature.shape[-2:])
        if size not in self.grids:
            self.grids[size] = grid(*size)
        return feature + self.grids[size]


class InClass(Net):
    kept = None

    def between(self, feature):
        if InClass.kept is None or InClass.kept.shape != feature.shape[-2:]:
            InClass.kept = grid(*feature.shape[-2:])
        return feature + InClass.kept


class Uncopyable(Net):
    """One grid, replaced when the size changes, and a list of all."""

    def __init__(self):
        super().__init__()
        self.lock, self.latest, self.all = threading.Lock(), grid(8, 12), []

    def between(self, feature):
        if self.latest.shape != feature.shape[-2:]:
            self.latest = grid(*feature.shape[-2:])
            self.all.append(self.latest)
        return feature + self.latest


class Growing(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(0, 0), persistent=False)

    def between(self, feature):
        height, width = feature.shape[-2:]
        if self.table.shape[0] < height or self.table.shape[1] < width:
            self.table = torch.arange(float(height))[:, None] + torch.arange(float(width)) / 100
        return feature + self.table[:height, :width]


class Hooked(Net):
    """What a hook has kept is read further on, from a dict that the hook alone knows."""

    def __init__(self):
        super().__init__()
        self.kept = {}
        self.stem.register_forward_hook(lambda module, inputs, output: self.kept.update(stem=output))

    def between(self, feature):
        return feature + self.kept["stem"]


@pytest.mark.parametrize("kind", [Everywhere, BySize, InClass, Uncopyable, Growing, Hooked])
def test_nothing_of_a_trial_stays_in_the_model(kind):
    """It was run with tensors that have no values, and what it kept of them was found by its next real pass."""
    torch.manual_seed(0)
    net, pure = kind().eval(), kind().eval()
    pure.load_state_dict(net.state_dict())
    images = [torch.rand(1, 3, *size) for size in (SIZE, (32, 72), (32, 48), (64, 40))]
    mess.profile(net, images[0])
    network = new(net)
    for one in images:
        assert type(net(one)) is Tensor
        torch.testing.assert_close(net(one), pure(one), rtol=0, atol=0)
    others = [torch.rand(2, 3, 48, 40), torch.zeros(2, 48, 40, dtype=torch.long)]
    assert mess.calibrate(network, [others], class_names=list("abcd"), latency_rounds=0).iou(0).shape == (4,)
    assert not any(isinstance(value, FakeTensor) for module in net.modules() for value in vars(module).values())


class Tokens(nn.Module):
    """`layers` over the places of a map."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, feature):
        batch, channels, height, width = feature.shape
        tokens = feature.flatten(2).transpose(1, 2)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens.transpose(1, 2).reshape(batch, channels, height, width)


def test_attention_that_torch_fuses_is_counted_and_cut():
    """By hand, of n places with c channels: projections 4 n c^2, products of all pairs 2 n^2 c, two layers 2 n c f."""
    places, channels, inner = 8 * 12, 8, 16
    layer = nn.TransformerEncoderLayer(channels, 2, inner, batch_first=True)
    by_hand = 4 * places * channels**2 + 2 * places**2 * channels + 2 * places * channels * inner
    assert count_macs(layer, torch.zeros(1, places, channels)) == by_hand
    layers = [nn.TransformerEncoderLayer(channels, 2, inner, batch_first=True) for _ in range(2)]
    network = new(Net(nn.Sequential(*(Tokens(layer) for layer in layers))), exit_points=["body.0"])
    convolutions = places * (9 * 3 * channels + channels * 4)
    assert network.workload.total == 2 * by_hand + convolutions
    assert network.split().backend == "graph"


class Exact(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("turns", torch.polar(torch.ones(12), torch.linspace(0, 3, 12)))
        self.register_buffer("scale", torch.full((), 1 / 3, dtype=torch.float64))

    def between(self, feature):
        return ((feature * self.turns).real.double() * self.scale).float()


def test_buffers_of_other_types_stay_what_they_are():
    torch.manual_seed(0)
    net, images = Exact().eval(), torch.rand(2, 3, *SIZE)
    before = net(images)
    network = new(net)
    assert (net.turns.dtype, net.scale.dtype) == (torch.complex64, torch.float64)
    assert torch.equal(network(images), before)


def test_a_head_that_overwrites_its_feature_is_refused():
    def pre(channels: int, num_classes: int) -> nn.Module:
        return nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(channels, num_classes, 1))

    def drops(channels: int, num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Dropout2d(0.5, inplace=True), nn.Conv2d(channels, num_classes, 1), nn.BatchNorm2d(4))

    for head in (pre, drops):  # the second one in training only
        with pytest.raises(ValueError, match=f"heads: expected '{head.__name__}' to leave its feature as it is"):
            new(Net(), heads=[head])


def test_a_head_is_tried_without_a_trace():
    """In train mode, where batch norm counts and dropout draws."""

    def own(channels: int, num_classes: int) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.5), nn.Conv2d(channels, num_classes, 1), nn.BatchNorm2d(num_classes))

    torch.manual_seed(5)
    network = mess.convert(Net(), torch.rand(1, 3, *SIZE), exit_points=["body.0"], heads=[own])
    after = torch.rand(3)
    torch.manual_seed(5)
    Net(), torch.rand(1, 3, *SIZE)
    assert torch.equal(after, torch.rand(3))
    assert {int(m.num_batches_tracked) for m in network.heads.modules() if isinstance(m, nn.BatchNorm2d)} == {0}


def test_heads_that_cannot_be_are_refused():
    net = Net()
    with pytest.raises(ValueError, match="heads: expected 'own' to have parameters of its own, got some of the model"):
        new(net, heads=[named("own", lambda channels, num_classes: net.classifier)])
    with pytest.raises(ValueError, match="heads: expected names that are none of a module's attributes, got 'half'"):
        new(net, heads=[named("half", lambda channels, num_classes: nn.Conv2d(channels, num_classes, 1))])


def named(name: str, build: Callable[[int, int], nn.Module]) -> Callable[[int, int], nn.Module]:
    build.__name__ = name
    return build


class Normalising(Net):
    def forward(self, images):
        return super().forward(images.sub_(0.4).div_(0.2))


def test_a_model_that_overwrites_its_images_is_cut_and_the_example_stays():
    example = torch.rand(1, 3, *SIZE)
    before = example.clone()
    network = mess.convert(Normalising().eval(), example, exit_points=["body.0"], heads=["fcn-r1-b0"])
    assert torch.equal(example, before)
    assert network.split().backend == "graph"
    single = Configuration(setting="budgeted", model=("body.0",), exits=(ChosenExit(exit="final"),))
    deployed = mess.deploy(network, single, example)
    assert torch.equal(example, before)
    measure_deployed(network.net, deployed, [example], rounds=2)
    assert torch.equal(example, before)


class Shared(Net):
    def forward(self, images):
        feature = self.stem(images)
        for _ in range(3):
            feature = self.body(feature)
        return self.classifier(feature)


def eager_anytime() -> tuple[mess.MultiExitNetwork, Callable[[Tensor], list[Tensor]], mess.DeployedNetwork]:
    torch.manual_seed(0)
    network = new(Shared(nn.Conv2d(8, 8, 3, padding=1)), exit_points=["body", "body#1"])
    exits = tuple(ChosenExit(exit=name) for name in ("0:fcn-r1-b0", "1:fcn-r1-b0", "final"))
    chosen = Configuration(setting="anytime", model=tuple(p.name for p in network.points), exits=exits)
    deployed = mess.deploy(network, chosen, backend="eager")
    return network, lambda images: [prediction.labels for prediction in deployed.anytime(images)], deployed


class WithoutGradients(Shared):
    def forward(self, images):
        with torch.no_grad():
            return super().forward(images)


@pytest.mark.parametrize("inference", [False, True])
def test_a_run_that_is_dropped_leaves_the_callers_modes(inference):
    """What the model entered before the exit sets the modes back to those that it found there."""
    torch.manual_seed(0)
    network = new(WithoutGradients(nn.Conv2d(8, 8, 3, padding=1)), exit_points=["body", "body#1"])
    exits = tuple(ChosenExit(exit=name) for name in ("0:fcn-r1-b0", "1:fcn-r1-b0", "final"))
    chosen = Configuration(setting="anytime", model=tuple(p.name for p in network.points), exits=exits)
    deployed = mess.deploy(network, chosen, backend="eager")
    with torch.inference_mode(inference):
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        run = deployed.anytime(torch.rand(1, 3, *SIZE))
        next(run)
        del run
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == modes
    assert torch.is_grad_enabled()


def test_a_run_that_is_dropped_in_another_thread_is_none_of_its_business(monkeypatch):
    _, _, deployed = eager_anytime()
    with ThreadPoolExecutor(1) as pool:
        run = deployed.anytime(torch.rand(1, 3, *SIZE))
        pool.submit(next, run).result()
        said = []
        monkeypatch.setattr(sys, "unraisablehook", said.append)
        del run
        gc.collect()
        assert not said


class Measuring(Net):
    """Takes a number out of the pass, before the exit, and uses it behind it."""

    def forward(self, images):
        scale = images.abs().max().item()
        return self.classifier(self.body(self.stem(images)) / scale)


def test_a_number_from_the_values_runs_suspended():
    net = Measuring().eval()
    network = new(net, exit_points=["body.0"])
    with pytest.warns(UserWarning, match="deployed with back end 'eager', since graph: model"):
        stages = network.split()
    images = torch.rand(1, 3, *SIZE)
    state = stages.start(images)
    for index in range(2):
        output, state = stages.run_stage(index, state)
    assert torch.equal(output, net(images))


def test_suspended_runs_in_turn_are_as_one_after_the_other():
    network, run, deployed = eager_anytime()
    images = torch.rand(4, 1, 3, *SIZE)
    expected = [run(one) for one in images]
    runs, got = [deployed.anytime(one) for one in images], [[] for _ in images]
    for _ in range(3):
        for one, found in zip(runs, got, strict=True):
            found.append(next(one).labels)
            network(images[0])  # the model itself, in between
    assert all(
        torch.equal(a, b) for one, other in zip(expected, got, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_runs_in_threads_are_as_one_after_the_other():
    network, run, _ = eager_anytime()
    images = list(torch.rand(24, 1, 3, *SIZE))

    def features(one: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return list(network.features(one)[1].values())

    for work in (run, features):
        expected = [work(one) for one in images]
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(work, images))
        for one, other in zip(expected, got, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("block", [quiet_attempt, unfused])
def test_what_is_switched_for_the_process_is_switched_back(block):
    """One thread enters, another wants to, the first leaves, the other leaves: not nested, if both could be inside."""

    def state() -> tuple[object, bool, bool]:
        logger = logging.getLogger("torch.export")
        return sys.stderr, torch.backends.mha.get_fastpath_enabled(), logger.disabled

    before = state()
    inside, wanted = threading.Event(), threading.Event()

    def first() -> None:
        with block():
            inside.set()
            wanted.wait(0.2)  # set at once where the other may enter beside this one

    def second() -> None:
        inside.wait()
        with block():
            wanted.set()
            leaving.wait()

    leaving = threading.Event()
    one, other = threading.Thread(target=first), threading.Thread(target=second)
    one.start(), other.start()
    one.join()
    leaving.set()
    other.join()
    assert state() == before


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_feature_without_gradients_is_told(use_reentrant):
    class Checkpointed(Net):
        def forward(self, images):
            feature = self.stem(images)
            return self.classifier(checkpoint(self.body, feature, use_reentrant=use_reentrant))

    network = new(Checkpointed(), exit_points=["body.0"]).train()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _, features = network.features(torch.rand(2, 3, *SIZE))
    assert features[0].requires_grad is not use_reentrant
    assert any("without gradients" in str(one.message) for one in told) is use_reentrant


def test_an_exit_that_a_pass_does_not_come_by_is_named():
    class Skipping(Net):
        def forward(self, images):
            feature = self.stem(images)
            return self.classifier(feature if self.training else self.body(feature))

    network = new(Skipping(), exit_points=["body.0", "body.1"])
    with pytest.raises(RuntimeError, match=r"exit points \['body.0', 'body.1'\]: the model did not come by there"):
        network.train().features(torch.rand(2, 3, *SIZE))
    with captured_features(network.net, network.points) as features:
        pass  # no pass, nothing missed
    assert features == {}


def test_parts_that_no_hook_sees():
    net = Net()
    net.body = torch.jit.script(net.body)
    assert [point.name for point in new(net, exit_points=["stem"]).points] == ["stem"]
    net = Net()
    net.body.compile(backend="eager")
    with pytest.raises(TypeError, match="model: expected the model as Python runs it, got a compiled 'body'"):
        new(net)


def test_a_block_whose_output_has_numbers_for_names():
    class Numbered(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, feature):
            return {0: self.block(feature)}

    class Reading(Net):
        def forward(self, images):
            return self.classifier(self.body(self.stem(images))[0])

    assert new(Reading(Numbered()), exit_points=["body"]).split().backend == "graph"
