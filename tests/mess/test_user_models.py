"""Every model of `tests/user_models.py`: converted without a change, cut by two back ends, bit for bit what it was."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

import mess
from mess.deployment.configuration import ChosenExit, Configuration
from mess.model.adapter import LogitsModel, logits_from_output
from mess.model.graph import reason_of
from mess.model.layout import Layout, layout_from_size, layout_from_sizes
from mess.model.network import MultiExitNetwork
from mess.model.split import another_size
from mess.model.stages import Stages, check_equal
from tests.user_models import CASES, Case, DataDependent, ENetLike, InDataclass, InDict, UNet


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Fewer points than asked are no news here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def converted(net: nn.Module, size: tuple[int, int], **options) -> MultiExitNetwork:
    torch.manual_seed(0)
    return mess.convert(net, torch.rand(1, 3, *size), **{"heads": ["fcn-r4-b0"], **options}).eval()


def assert_stages_equal_the_model(network: MultiExitNetwork, stages: Stages, batch: int) -> None:
    images = torch.rand(batch, 3, *stages.input_size)
    with torch.inference_mode():
        logits, features = network.features(images)
        state = stages.start(images)
        for index, point in enumerate(network.points):
            feature, state = stages.run_stage(index, state)
            assert torch.equal(feature, features[index])
            assert feature.shape[:2] == (batch, point.channels)
        assert torch.equal(stages.run_stage(len(network.points), state)[0], logits)
        assert torch.equal(logits, logits_from_output(network.net(images)))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_staged_runs_equal_the_model_bit_for_bit(case: Case):
    torch.manual_seed(0)
    net = case.build().eval()
    names = list(net.state_dict())
    network = converted(net, case.size)
    assert network.net is net
    assert [n.removeprefix("net.") for n in network.state_dict() if n.startswith("net.")] == names
    assert len(network.points) >= 2
    for size in filter(None, (case.size, case.other_size)):
        stages = network.split(torch.rand(1, 3, *size))
        assert stages.backend == case.expected_backend
        for batch in (1, 3):
            assert_stages_equal_the_model(network, stages, batch)
    assert_stages_equal_the_model(network, network.split(backend="eager"), 2)
    assert {p.data_ptr() for p in stages.parameters()} <= {p.data_ptr() for p in net.parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_gradients_are_those_of_the_model(case: Case):
    torch.manual_seed(0)
    net = case.build().train()
    network = converted(net, case.size).train()
    images = torch.rand(2, 3, *case.size)

    def gradients(logits_of) -> list[Tensor]:
        net.zero_grad()
        state = copy.deepcopy(net.state_dict())  # batch-norm statistics move
        torch.manual_seed(1)  # dropout
        logits_of(images).square().mean().backward()
        net.load_state_dict(state)
        return [p.grad.clone() for p in net.parameters() if p.grad is not None]

    expected = gradients(lambda x: logits_from_output(net(x)))
    found = gradients(lambda x: network.features(x)[0])
    assert len(found) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    first = network.plain_exits[0]
    net.zero_grad()
    network.head(first)(network.features(images)[1][0]).square().mean().backward()  # an exit trains what is before it
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_layouts_are_found_from_two_sizes():
    sizes = ((64, 96), (128, 288))
    assert layout_from_sizes((1, 24, 8, 12), (1, 24, 16, 36), sizes) == Layout("BCHW")
    assert layout_from_sizes((1, 8, 12, 24), (1, 16, 36, 24), sizes) == Layout("BHWC")
    assert layout_from_sizes((1, 24 + 5, 32), (1, 6 * 24 + 5, 32), sizes) == Layout("BNC", prefix=5)
    assert layout_from_sizes((1, 24, 1, 1), (1, 24, 1, 1), sizes) is None  # a pooled vector
    assert layout_from_sizes((1, 24, 12, 8), (1, 24, 36, 16), sizes) is None  # transposed
    assert layout_from_sizes((1, 3, 24, 24), (1, 3, 144, 144), sizes) is None  # attention between places
    assert layout_from_size((1, 24, 8, 12), (64, 96)) == Layout("BCHW")
    assert layout_from_size((1, 8, 12, 24), (64, 96)) == Layout("BHWC")
    assert layout_from_size((1, 29, 32), (64, 96)) == Layout("BNC", prefix=5)


def test_maps_of_every_layout_by_hand():
    places = torch.arange(24.0).reshape(1, 1, 4, 6)
    picture = torch.cat([places, -places], dim=1)
    tokens = torch.cat([torch.full((1, 5, 2), 99.0), picture.flatten(2).transpose(1, 2)], dim=1)
    assert torch.equal(Layout("BHWC").to_map(picture.permute(0, 2, 3, 1), (64, 96)), picture)
    assert torch.equal(Layout("BNC", prefix=5).to_map(tokens, (64, 96)), picture)
    with pytest.raises(
        ValueError, match=r"expected a size whose tokens form a grid, got \(6400, 96\) with 29 tokens, 5"
    ):
        Layout("BNC", prefix=5).to_map(tokens, (6400, 96))


class ChannelsLast(nn.Module):
    """Blocks that give (B, h, w, C), tokens (B, N, C), or a tuple, as transformers of different schools do."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.blocks = nn.ModuleList(Block(kind) for _ in range(4))
        self.out = nn.Conv2d(8, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        height, width = x.shape[2:]
        x = x.permute(0, 2, 3, 1)
        x = x if self.kind == "BHWC" else x.flatten(1, 2)
        for block in self.blocks:
            x = block(x)
            x = x[0] if self.kind == "tuple" else x
        return self.out(x.reshape(-1, height, width, 8).permute(0, 3, 1, 2))


class Block(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> object:
        x = x + self.linear(x).relu()
        return (x, self.kind) if self.kind == "tuple" else x


@pytest.mark.parametrize("kind", ["BHWC", "BNC", "tuple"])
def test_features_of_every_layout_become_maps(kind):
    network = converted(ChannelsLast(kind).eval(), (32, 48))
    assert [p.module for p in network.points if p.module.startswith("blocks")]
    for point in network.points:
        assert (point.channels, point.feature_size, point.output_stride) == (8, (8, 12), 4)
    images = torch.rand(2, 3, 32, 48)
    with torch.no_grad():
        _, features = network.features(images)
        expected = network.net.blocks[0](network.net.stem(images).permute(0, 2, 3, 1)) if kind == "BHWC" else None
    if expected is not None:
        index = [p.module for p in network.points].index("blocks.0")
        assert torch.equal(features[index], expected.permute(0, 3, 1, 2))
    assert_stages_equal_the_model(network, network.split(backend="graph"), 2)
    assert_stages_equal_the_model(network, network.split(backend="eager"), 2)
    with torch.no_grad():  # hooks follow the size of the images
        _, features = network.features(torch.rand(1, 3, 64, 32))
    assert {tuple(f.shape[2:]) for f in features.values()} == {(16, 8)}


ONE_SIZE = {
    "MobileViTV2": "is invalid for input",
    "EoMT": "data-dependent",
    "DPT": "decides by the shape",
    "data-dependent": "data-dependent",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_graphs_of_any_size_equal_the_model_bit_for_bit(case: Case):
    """Features and logits, at a size that the graphs were not made from; what cannot have one says why."""
    torch.manual_seed(0)
    network = converted(case.build().eval(), case.size)
    if case.name in ONE_SIZE:
        with pytest.raises(RuntimeError, match=f"sizes in steps of 1: .*{ONE_SIZE[case.name]}"):
            network.split(any_size=True)
        return
    stages = network.split(any_size=True)
    images = torch.rand(2, 3, *another_size(stages))
    with torch.inference_mode():
        logits, features = network.features(images)
        state = stages.start(images)
        for index in range(len(network.points)):
            feature, state = stages.run_stage(index, state)
            assert torch.equal(feature, features[index])
            state = stages.keep(index, state, torch.tensor([0, 1]))
        assert torch.equal(stages.run_stage(len(network.points), state)[0], logits)
    if stages.size_step == 32:
        with pytest.raises(ValueError, match="multiples of 32"):
            stages.start(torch.rand(1, 3, 33, 64))


class Laterals(nn.Module):
    """A deep encoder, then a lateral layer on its first stage."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.deep = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
        self.lateral = nn.Conv2d(16, 16, 3, padding=1)
        self.out = nn.Conv2d(32, 5, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = first = self.first(images)
        for layer in self.deep:
            x = layer(x)
        return self.out(torch.cat([x, self.lateral(first)], dim=1))


@pytest.mark.parametrize("cost", ["macs", "latency"])
def test_a_feature_that_little_went_into_is_no_exit_point(cost):
    workload = mess.profile(Laterals().eval(), torch.rand(1, 3, 32, 48), cost=cost)
    uses = {layer.name: layer.uses for layer in workload.layers}
    whole = 3 + 5 * 16
    assert uses["deep.3"] == 1.0
    assert uses["lateral"] == pytest.approx((3 + 16) / whole)
    assert "lateral" not in [p.module for p in converted(Laterals(), (32, 48), num_exits=8).points]
    assert [p.module for p in converted(Laterals(), (32, 48), exit_points=["lateral"]).points] == ["lateral"]


def test_exit_points_by_hand():
    net = InDataclass()
    network = converted(net, (32, 48), exit_points=["last.0", "shared#1"])
    assert [(p.name, p.call) for p in network.points] == [("shared#1", 1), ("last.0", 0)]
    with pytest.raises(ValueError, match=r"exit_points: .* got 'last.7'; nearest: \['last"):
        converted(net, (32, 48), exit_points=["last.7"])
    with pytest.raises(ValueError, match="exit_points: 'bare': its output is overwritten in place"):
        converted(net, (32, 48), exit_points=["bare"])
    with pytest.raises(ValueError, match="exit_points: expected at least one name and none twice"):
        converted(net, (32, 48), exit_points=["stem", "stem"])
    with pytest.raises(ValueError, match="whose output is a map of the picture, got 'pool'"):
        converted(Pooled(), (32, 48), exit_points=["pool"])


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool, self.out = nn.Conv2d(3, 8, 3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return self.out(x * self.pool(x))


def test_the_users_own_heads():
    def narrow(channels: int, num_classes: int) -> nn.Module:
        return nn.Conv2d(channels, num_classes, 1)

    network = converted(InDict(), (32, 48), heads=["fcn-r4-b0", narrow])
    exit_id = next(e for e in network.exits if e.head.name == "narrow")
    assert isinstance(network.head(exit_id), nn.Conv2d)
    _, features = network.features(torch.rand(1, 3, 32, 48))
    assert network.exit_logits(features, [exit_id])[exit_id].shape[1] == 21
    labels = torch.randint(0, 21, (2, 32, 48))
    table = mess.calibrate(network, [(torch.rand(2, 3, 32, 48), labels)], latency_rounds=0)
    assert exit_id.name in table.exits
    early = mess.deploy(network, chosen(network, exit_id.name))
    assert early(torch.rand(1, 3, 32, 48)).logits.shape == (1, 21, 32, 48)
    with pytest.raises(TypeError, match="heads: expected no_module to build an nn.Module, got int"):
        converted(InDict(), (32, 48), heads=[no_module])
    with pytest.raises(ValueError, match=r"heads: expected logits \(B, 21, h, w\) of 'too_wide', got \(1, 22, "):
        converted(InDict(), (32, 48), heads=["fcn-r4-b0", too_wide])
    with pytest.raises(TypeError, match="heads: expected HeadSpec, names of heads or functions, got int"):
        converted(InDict(), (32, 48), heads=[3])


def too_wide(channels: int, num_classes: int) -> nn.Module:
    return nn.Conv2d(channels, num_classes + 1, 1)


def no_module(channels: int, num_classes: int) -> int:
    return channels * num_classes


def chosen(network: MultiExitNetwork, *exits: str, image_threshold: float = 0.0) -> Configuration:
    """A configuration of these exits, whose gates let every image leave, or with a threshold of 2 none."""
    gates = [ChosenExit(exit=e, pixel_threshold=0.0, image_threshold=image_threshold) for e in exits[:-1]]
    names = tuple(point.name for point in network.points)
    return Configuration(setting="input-dependent", model=names, exits=(*gates, ChosenExit(exit=exits[-1])))


@pytest.mark.parametrize("backend", ["graph", "eager"])
@pytest.mark.parametrize("build", [UNet, ENetLike, InDict])
def test_an_image_that_leaves_computes_nothing_further(build, backend):
    network = converted(build().eval(), (32, 48))
    first = network.exits[0].name
    images = torch.rand(3, 3, 32, 48)
    leaving = mess.deploy(network, chosen(network, first, "final"), backend=backend)
    staying = mess.deploy(network, chosen(network, first, "final", image_threshold=2.0), backend=backend)
    assert leaving.stages.backend == backend
    calls: list[int] = []
    network.net.get_submodule("out" if build is not ENetLike else "classifier").register_forward_hook(
        lambda *_: calls.append(1)
    )
    assert leaving(images).exits.tolist() == [0, 0, 0]
    assert not calls
    prediction = staying(images)
    assert prediction.exits.tolist() == [1, 1, 1]
    assert bool(calls) == (backend == "eager")  # a graph has no modules
    with torch.no_grad():
        logits = network(images)
    expected = nn.functional.interpolate(logits, size=(32, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(prediction.logits, expected if logits.shape != expected.shape else logits)


def test_eager_runs_do_not_disturb_each_other():
    net = DataDependent().eval()
    network = converted(net, (32, 48))
    stages = network.split()
    assert stages.backend == "eager"
    one, two = torch.rand(1, 3, 32, 48), torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        expected = [network.features(images) for images in (one, two)]
        first, second = stages.start(one), stages.start(two)
        for index in range(len(network.points)):
            a, first = stages.run_stage(index, first)
            b, second = stages.run_stage(index, second)
            assert torch.equal(a, expected[0][1][index])
            assert torch.equal(b, expected[1][1][index])
        assert torch.equal(net(one), expected[0][0])  # another pass in the meantime
        assert torch.equal(stages.run_stage(len(network.points), first)[0], expected[0][0])
    del second  # abandoned half-way
    assert not any(module._forward_hooks for module in net.modules())
    net.train()
    assert mess.deploy(network, chosen(network, network.exits[0].name, "final"))(one).exits.item() == 0
    assert all(module.training for module in net.modules())


def test_an_error_in_the_users_code_comes_out_of_an_eager_run():
    class Failing(InDict):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            if images.max() > 1:
                raise ArithmeticError("too bright")
            return super().forward(images)

    network = converted(Failing().eval(), (32, 48))
    stages = network.split(backend="eager")
    with pytest.raises(ArithmeticError, match="too bright"), torch.no_grad():
        stages.run_stage(0, stages.start(torch.full((1, 3, 32, 48), 2.0)))
    assert not any(module._forward_hooks for module in network.net.modules())


def test_anytime_goes_on_only_when_asked():
    network = converted(DataDependent().eval(), (32, 48))
    exits = tuple(ChosenExit(exit=e.name) for e in network.exits)
    names = tuple(point.name for point in network.points)
    deployed = mess.deploy(network, Configuration(setting="anytime", model=names, exits=exits))
    calls: list[str] = []
    for name, module in network.net.blocks.named_children():
        module[-1].register_forward_hook(lambda *_, name=name: calls.append(name))
    predictions = deployed.anytime(torch.rand(1, 3, 32, 48))
    assert next(predictions).logits.shape == (1, 21, 32, 48)
    assert calls == ["0"]
    next(predictions)
    assert calls == ["0", "1"]


def test_the_fallback_says_the_operation_and_the_line():
    network = converted(DataDependent().eval(), (32, 48))
    with pytest.warns(UserWarning, match=r"back end 'eager', since graph: .*user_models.py:\d+: if float\(x.mean"):
        network.split()
    with pytest.raises(RuntimeError, match="cannot be run in stages: graph: model: torch.export failed"):
        network.split(backend="graph")
    with pytest.raises(ValueError, match="backend: expected 'auto', 'stages', 'graph' or 'eager', got 'onnx'"):
        network.split(backend="onnx")
    with pytest.raises(ValueError, match="backend: expected another than 'stages'"):
        network.split(backend="stages")


class Chain(nn.Module):
    """Stages that pass a tuple on: the map and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.late, self.last = Stem(), Middle(), Middle(), Last()

    def forward(self, images: Tensor) -> Tensor:
        return self.last(*self.late(*self.middle(*self.stem(images))))


class Stem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(images), images.mean((1, 2, 3))


class Middle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x).relu(), level


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.conv(x) + level[:, None, None, None]


def test_stages_that_the_user_declares():
    names = ["stem", "middle", "late", "last"]
    assert {p.name for p in converted(Chain(), (32, 48), stages=names, num_exits=4).points} <= set(names[:-1])
    network = converted(Chain().eval(), (32, 48), stages=names, exit_points=["stem", "late"])
    stages = network.split()
    assert stages.backend == "stages"
    assert_stages_equal_the_model(network, stages, 3)
    first = network.exits[0].name
    deployed = mess.deploy(network, chosen(network, first, "final", image_threshold=2.0))
    images = torch.rand(3, 3, 32, 48)
    with torch.no_grad():  # images leave: the carried skip is thinned out too
        state = stages.start(images)
        _, state = stages.run_stage(0, state)
        kept = torch.tensor([0, 2])
        state = stages.keep(0, state, kept)
        for index in range(1, stages.num_stages):
            output, state = stages.run_stage(index, state)
        torch.testing.assert_close(output, network(images)[kept])
    assert deployed(images).exits.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="stages: expected different modules of the model, in order"):
        converted(Chain(), (32, 48), stages=["stem", "none"])


class Handing(nn.Module):
    """Hands on a skip in a form of its own."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.conv, self.form = nn.Conv2d(3, 8, 3, padding=1), form

    def forward(self, images: Tensor):
        x = self.conv(images)
        if self.form == "dict":
            return {"map": x}
        return x, [x.flatten(0, 1)] if self.form == "folded" else [x.relu(), {"size": x.shape[-1]}]


class Taking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 5, 1)

    def forward(self, x, others=None) -> Tensor:
        if isinstance(x, dict):
            return self.conv(x["map"])
        skip = others[0].view_as(x) if others[0].ndim == 3 else others[0]
        return self.conv(torch.cat([x[:, :4], skip[:, 4:]], dim=1))


class Nested(nn.Sequential):
    def __init__(self, form: str) -> None:
        super().__init__(OrderedDict(encoder=Handing(form), decoder=Taking()))

    def forward(self, images: Tensor) -> Tensor:
        state = self.encoder(images)
        return self.decoder(*state) if isinstance(state, tuple) else self.decoder(state)


@pytest.mark.parametrize("form", ["dict", "list"])
def test_what_stages_hand_on_in_lists_and_dicts_is_thinned_out(form):
    """Else the images that are left would get the maps of those that have left."""
    network = converted(Nested(form).eval(), (32, 48), stages=["encoder", "decoder"], exit_points=["encoder"])
    first = network.exits[0].name
    images = torch.rand(4, 3, 32, 48)
    deployed = mess.deploy(network, chosen(network, first, "final", image_threshold=2.0), backend="stages")
    with torch.no_grad():
        state = deployed.stages.start(images)
        _, state = deployed.stages.run_stage(0, state)
        kept = torch.tensor([1, 3])
        output, _ = deployed.stages.run_stage(1, deployed.stages.keep(0, state, kept))
        torch.testing.assert_close(output, network(images)[kept])


def test_a_batch_that_stages_fold_into_a_size_is_refused():
    network = converted(Nested("folded").eval(), (32, 48), stages=["encoder", "decoder"], exit_points=["encoder"])
    with pytest.raises(RuntimeError, match="stages: 'encoder' hands on a value that depends on the batch otherwise"):
        network.split(backend="stages")


def test_declared_stages_that_are_not_the_model_are_given_up():
    network = converted(Chain().eval(), (32, 48), stages=["stem", "middle", "last"])
    with pytest.warns(UserWarning, match="back end 'graph', since stages: its logits differ from the model's by"):
        assert network.split().backend == "graph"


def test_logits_that_only_the_user_can_find():
    class Odd(InDict):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"prediction": super().forward(images)["out"], "loss": images.mean()}

    with pytest.raises(TypeError, match="a function pick_logits= can pick it out"):
        converted(Odd(), (32, 48))
    network = converted(Odd().eval(), (32, 48), pick_logits=lambda output: output["prediction"])
    assert network.num_classes == 21
    for backend in ("graph", "eager"):
        stages = network.split(backend=backend)
        images = torch.rand(2, 3, 32, 48)
        with torch.no_grad():
            state = stages.start(images)
            for index in range(stages.num_stages):
                output, state = stages.run_stage(index, state)
            assert torch.equal(output, network.net(images)["prediction"])


def test_logits_of_masks_with_a_class_each_by_hand():
    class Output:
        class_queries_logits = torch.tensor([[[0.0, 0.0, -1e9], [-1e9, 0.0, 0.0]]])  # p = (1/2, 1/2), (0, 1/2)
        masks_queries_logits = torch.tensor([[[[0.0]], [[100.0]]]])  # sigmoid = 1/2, 1

    logits = logits_from_output(Output())
    assert logits.shape == (1, 2, 1, 1)
    torch.testing.assert_close(logits.exp().flatten(), torch.tensor([0.25, 0.25 + 0.5]))
    assert logits.isfinite().all()


@pytest.mark.parametrize("compile_it", [torch.compile, lambda net: torch.jit.trace(net, torch.rand(1, 3, 32, 48))])
def test_a_compiled_model_is_refused(compile_it):
    with pytest.raises(TypeError, match="convert it before torch.compile"):
        mess.convert(compile_it(UNet().eval()), torch.rand(1, 3, 32, 48))


def test_stages_compile_and_run_in_mixed_precision():
    network = converted(UNet().eval(), (32, 48))
    stages = network.split()
    images = torch.rand(2, 3, 32, 48)
    compiled = [torch.compile(stage, backend="aot_eager") for stage in stages.stages]

    def run(parts) -> Tensor:
        state: tuple[Tensor, ...] = (images,)
        for part in parts:
            output = part(*state)
            state = output[1:]
        return output[0]

    with torch.no_grad():
        expected = network(images)
        torch.testing.assert_close(run(compiled), expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half, staged = network(images), run(stages.stages)
        assert half.dtype == staged.dtype == torch.bfloat16
        torch.testing.assert_close(staged, half)


def test_weights_travel_without_pickle_and_to_other_devices(tmp_path):
    from safetensors.torch import load_file, save_file

    network = converted(UNet().eval(), (32, 48))
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "w.safetensors")
    other = converted(UNet().eval(), (32, 48), seed=5)
    other.load_state_dict(load_file(tmp_path / "w.safetensors"))
    images = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        assert torch.equal(other(images), network(images))
    stages = network.split()
    assert {p.device.type for p in stages.to("meta").parameters()} == {"meta"}


def test_data_parallel_gradients_are_the_models(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        network = converted(UNet().train(), (32, 48)).train()
        images = torch.rand(2, 3, 32, 48)
        state = copy.deepcopy(network.state_dict())
        network(images).square().mean().backward()
        expected = [p.grad.clone() for p in network.net.parameters()]
        network.zero_grad()
        network.load_state_dict(state)
        parallel = nn.parallel.DistributedDataParallel(network, find_unused_parameters=True)  # the heads are idle
        parallel(images).square().mean().backward()
        assert all(torch.equal(p.grad, e) for p, e in zip(network.net.parameters(), expected, strict=True))
    finally:
        torch.distributed.destroy_process_group()


class Particular(nn.Module):
    """Says in its own way that it takes multiples of 32 alone, behind what an export can see."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        if not torch.compiler.is_exporting() and any(side % 32 for side in x.shape[2:]):
            raise ValueError("sizes must be multiples of 32")
        return self.out(self.body(self.stem(x)))


def test_a_model_that_refuses_a_size_is_tried_in_larger_steps():
    network = converted(Particular().eval(), (64, 96))
    stages = network.split(any_size=True)
    assert stages.size_step == 32
    assert_stages_equal_the_model(network, stages, 2)


class Deciding(nn.Module):
    """Goes another way for some shapes of its input: `decide` says what comes before and behind the rest."""

    def __init__(self, decide) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.out = nn.Conv2d(8, 4, 1)
        self.decide = decide

    def forward(self, x):
        before, behind = self.decide(*x.shape)
        logits = self.out(self.body(self.stem(before(x))))
        return behind(nn.functional.interpolate(logits, scale_factor=2.0))


def unchanged(x):
    return x


def halved_when_large(batch, channels, height, width):
    if height * width > 4096:
        return lambda x: nn.functional.avg_pool2d(x, 2), lambda x: nn.functional.interpolate(x, scale_factor=2.0)
    return unchanged, unchanged


def turned_when_high(batch, channels, height, width):
    if height > width:
        return lambda x: x.transpose(2, 3), lambda x: x.transpose(2, 3)
    return unchanged, unchanged


def padded_to_sixteen(batch, channels, height, width):
    if height % 16 or width % 16:  # adds 16 to a side that needs nothing, but only when the other one does
        pad = (0, 16 - width % 16, 0, 16 - height % 16)
        return lambda x: nn.functional.pad(x, pad), lambda x: x[..., :height, :width]
    return unchanged, unchanged


def doubled_in_large_batches(batch, channels, height, width):
    return (lambda x: 2 * x if batch > 4 else x), unchanged


@pytest.mark.parametrize(
    ("decide", "size"),
    [
        (halved_when_large, (80, 96)),
        (turned_when_high, (48, 64)),
        (padded_to_sixteen, (40, 56)),
        (padded_to_sixteen, (48, 64)),
    ],
)
def test_a_model_that_decides_by_the_size_of_its_input_takes_one_size(decide, size):
    network = converted(Deciding(decide).eval(), size, exit_points=["stem", "body"])
    assert_stages_equal_the_model(network, network.split(backend="graph"), 6)
    with pytest.raises(
        RuntimeError, match=r"steps of 1: model: decides by the shape of its input \(.*size\(\)\[[23]\]"
    ):
        network.split(any_size=True)


def test_a_model_that_decides_by_the_batch_is_not_recorded():
    network = converted(Deciding(doubled_in_large_batches).eval(), (32, 48))
    with pytest.raises(RuntimeError, match=r"graph: model: decides by the shape of its input \(.*size\(\)\[0\] <= 4\)"):
        network.split(backend="graph")
    stages = network.split()
    assert stages.backend == "eager"
    assert_stages_equal_the_model(network, stages, 8)


def test_a_head_that_decides_by_the_batch_is_not_recorded():
    class Head(nn.Module):
        def __init__(self, channels: int, num_classes: int) -> None:
            super().__init__()
            self.out = nn.Conv2d(channels, num_classes, 1)

        def forward(self, feature: Tensor) -> Tensor:
            return self.out(2 * feature if feature.shape[0] > 4 else feature)

    network = converted(UNet().eval(), (32, 48), heads=[Head])
    chosen = Configuration(
        setting="budgeted",
        model=tuple(point.name for point in network.points),
        exits=(ChosenExit(exit=network.exits[0].name),),
    )
    images = torch.rand(6, 3, 32, 48)
    with torch.no_grad():
        _, features = network.features(images)
        expected = network.head(network.exits[0])(features[0])
    assert torch.equal(mess.deploy(network, chosen)(images).parts[0][1], expected)


def test_stages_that_differ_in_what_is_no_number_are_not_equal():
    class Whole(Stages):
        def start(self, images: Tensor) -> tuple[Tensor]:
            return (images,)

        def run_stage(self, index: int, state: tuple[Tensor]) -> tuple[Tensor, tuple]:
            return state[0] / state[0] if self.is_divided else state[0], ()

    model, stages = LogitsModel(nn.Identity()), Whole(1, (2, 2))
    images = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).expand(1, 2, 2, 2)
    unequal = "differ from the model's by up to inf"
    for given, is_divided, told in (
        (images, False, None),
        (images / 0, False, None),  # infinite, and not a number
        (images, True, unequal),
        (torch.ones(1, 2, 2, 2), True, None),
        (torch.full((1, 2, 2, 2), torch.inf), True, unequal),
    ):
        stages.is_divided = is_divided
        with pytest.raises(RuntimeError, match=told) if told else nullcontext():
            check_equal(stages, model, given)


def test_why_torch_gave_up_is_one_line():
    first = ValueError("\x1b[96mnot for me\x1b[0m\nand more")
    wrapped = RuntimeError("Failed to export.\nThis is step 1/3")
    wrapped.__cause__ = first
    assert reason_of(wrapped) == "ValueError: not for me"
    shape = "your code specialized it to be a constant (64)"
    text = (
        f"Constraints violated (L['x'].size()[2])! For more, run with TORCH_LOGS.\n  - {shape}. If you're using it, no."
    )
    assert reason_of(RuntimeError(text)) == f"RuntimeError: {shape}"
    assert reason_of(KeyError()) == "KeyError: "
