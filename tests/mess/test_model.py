"""Conversion: workload, points, heads, and outputs equal to the user's model bit for bit."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch import fx, nn
from torchvision.models import get_model

import mess
from mess.model.capture import captured_features
from mess.model.cost import count_macs
from mess.model.exits import ExitHead, block_kind_of
from mess.model.graph import _live, split_graph
from mess.model.points import block_candidates, exit_points
from mess.model.weights import load_weights
from mess.model.zoo import model_from_spec


def plain_net() -> nn.Sequential:
    """Four equal blocks of 3 x 3 convolutions, 4 -> 4 channels: 9 * 4 * 4 = 144 MACs a pixel each."""
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.ReLU()) for _ in range(4)]
    return nn.Sequential(*blocks)


def test_macs_by_hand():
    workload = mess.profile(plain_net(), torch.zeros(2, 4, 8, 8))
    assert workload.total == 4 * 144 * 64
    ends = {layer.name: layer.end for layer in workload.layers}
    assert ends["0"] == ends["0.0"] == ends["0.1"] == 144 * 64
    assert ends["2"] == 3 * 144 * 64
    assert count_macs(nn.Conv2d(3, 8, 1), torch.zeros(1, 3, 5, 7)) == 24 * 35


def test_equal_blocks_give_equidistant_points():
    points = exit_points(mess.profile(plain_net(), torch.zeros(1, 4, 8, 8)), num_exits=4)
    assert [(p.module, p.share) for p in points] == [("0", 0.25), ("1", 0.5), ("2", 0.75)]
    assert [p.output_stride for p in points] == [1, 1, 1]


def test_points_by_time_have_seen_the_activation_too():
    """Ends of a convolution, its norm and its activation are never the same milliseconds (here one after the other)."""
    parts = {}
    for number in range(6):
        parts |= {f"conv{number}": nn.Conv2d(4, 4, 3, padding=1), f"norm{number}": nn.BatchNorm2d(4)}
        parts |= {f"relu{number}": nn.ReLU()}
    net = nn.Sequential(OrderedDict(parts))
    counted = mess.profile(net, torch.zeros(1, 4, 32, 32))
    layers = tuple(replace(layer, start=float(i), end=i + 1.0) for i, layer in enumerate(counted.layers))
    workload = replace(counted, cost="latency", total=float(len(layers)), layers=layers)
    points = exit_points(workload, num_exits=4)
    assert len(points) > 1
    assert all(point.name.startswith("relu") for point in points)


def test_latency_profile_grows_along_the_layers():
    workload = mess.profile(plain_net(), torch.zeros(1, 4, 8, 8), cost="latency", rounds=3)
    ends = [layer.end for layer in workload.layers]
    assert workload.unit == "ms"
    assert all(end > 0 for end in ends)
    assert ends == sorted(ends)


def test_a_shared_module_is_told_apart_by_its_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.head = plain_net()[0], nn.Conv2d(4, 3, 1)

        def forward(self, x):
            return self.head(self.block(self.block(x)))

    net = Twice().eval()
    example = torch.rand(1, 4, 8, 8)
    reached = exit_points(mess.profile(net, example), num_exits=3)[0]
    points = [replace(reached, module="block", call=call) for call in (0, 1)]
    with torch.no_grad(), captured_features(net, points) as features:
        net(example)
        assert torch.equal(features[0], net.block(example))
        assert torch.equal(features[1], net.block(net.block(example)))
    stages = split_graph(net, points, example)
    with torch.no_grad():
        first, state = stages.run_stage(0, stages.start(example))
        assert torch.equal(first, features[0])
        assert torch.equal(stages.run_stage(1, state)[0], features[1])


def test_features_overwritten_in_place_are_no_exit_points():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1))
    names = [layer.name for layer in block_candidates(mess.profile(net, torch.zeros(1, 4, 8, 8)), num_exits=2)]
    assert names == ["1"]


def test_a_captured_feature_that_is_overwritten_is_an_error():
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True))
    points = exit_points(mess.profile(plain_net(), torch.zeros(1, 4, 8, 8)), num_exits=4)
    bad = [replace(points[0], module="0")]
    with (
        pytest.raises(RuntimeError, match="exit point '0': its feature is overwritten"),
        torch.no_grad(),
        captured_features(net, bad),
    ):
        net(torch.rand(1, 4, 8, 8))


def test_a_profile_inside_inference_mode_is_the_same():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1))
    expected = mess.profile(net, torch.zeros(1, 4, 8, 8))
    with torch.inference_mode():
        assert mess.profile(net, torch.zeros(1, 4, 8, 8)) == expected
        assert mess.profile(net, torch.zeros(1, 4, 8, 8), cost="latency").layers[0].is_overwritten


def test_fewer_points_than_asked_are_said():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 64, 3, padding=1), nn.Conv2d(64, 5, 1))
    with pytest.warns(UserWarning, match="asked 6, got"):
        mess.convert(net, torch.zeros(1, 3, 8, 8), num_exits=6, heads="tiny")


FAMILIES = [
    ("fcn_resnet50", {}, (72, 88)),
    ("fcn_resnet50", {"aux_loss": True}, (72, 88)),
    ("deeplabv3_resnet50", {}, (72, 88)),
    ("lraspp_mobilenet_v3_large", {}, (72, 88)),
    ("mobilenet_v2_fcn:8", None, (72, 88)),
    ("mobilenet_v2_fcn:16", None, (72, 88)),
    ("small_resnet_fcn", None, (48, 64)),
]


@pytest.mark.parametrize(("name", "options", "size"), FAMILIES)
def test_the_final_exit_equals_the_model_bit_for_bit(name, options, size):
    torch.manual_seed(0)
    if options is None:
        net = model_from_spec(name, num_classes=5)
    else:
        net = get_model(name, weights=None, weights_backbone=None, num_classes=5, **options)
    net.eval()
    names = list(net.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        network = mess.convert(net, torch.zeros(1, 3, *size), heads="tiny").eval()
    assert len(network.points) >= 4
    assert network.net is net
    assert [n.removeprefix("net.") for n in network.state_dict() if n.startswith("net.")] == names
    for batch in (1, 3):
        images = torch.rand(batch, 3, *size)
        with torch.no_grad():
            output = net(images)
            expected = output["out"] if isinstance(output, dict) else output
            final, features = network.features(images)
            assert torch.equal(final, expected)
            assert torch.equal(network(images), expected)
            stages = split_graph(net, network.points, images)
            state = stages.start(images)
            for index in range(len(network.points)):
                feature, state = stages.run_stage(index, state)
                assert torch.equal(feature, features[index])
            logits, _ = stages.run_stage(len(network.points), state)
            assert torch.equal(logits, expected)


def test_staged_parameters_are_the_users_own():
    net = model_from_spec("small_resnet_fcn", num_classes=3).eval()
    network = mess.convert(net, torch.zeros(1, 3, 48, 64), heads="tiny")
    stages = split_graph(net, network.points, torch.zeros(1, 3, 48, 64))
    for kind in ("parameters", "buffers"):
        own = {t.data_ptr() for t in getattr(net, kind)() if t.ndim}
        assert {t.data_ptr() for t in getattr(stages, kind)() if t.ndim} == own


def test_convert_leaves_modes_and_weights_alone():
    net = model_from_spec("small_resnet_fcn", num_classes=3).train()
    net.features[2].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    mess.convert(net, torch.rand(2, 3, 48, 64), heads="tiny")
    assert net.training
    assert not net.features[2].training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_same_seed_same_heads_and_no_effect_on_the_global_stream():
    net = model_from_spec("small_resnet_fcn", num_classes=3)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first = mess.convert(net, torch.zeros(1, 3, 48, 64), heads="tiny", seed=3)
    assert torch.equal(torch.rand(1), expected)
    second = mess.convert(net, torch.zeros(1, 3, 48, 64), heads="tiny", seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.heads.parameters(), second.heads.parameters(), strict=True))


def test_the_full_grid_has_every_combination_once():
    grid = mess.head_grid("full")
    assert len(grid) == len({spec.name for spec in grid}) == 64 - 8
    assert grid[0] == mess.HeadSpec()
    assert all(mess.HeadSpec.from_name(spec.name) == spec for spec in grid)


@pytest.mark.parametrize("kind", ["residual", "bottleneck", "inverted_residual"])
@pytest.mark.parametrize("spec", mess.head_grid("full")[::5])
def test_heads_keep_the_resolution(spec, kind):
    head = ExitHead(spec, channels=24, num_classes=5, block_kind=kind).eval()
    assert head(torch.rand(2, 24, 9, 11)).shape == (2, 5, 9, 11)


def test_a_deeplab_head_learns_from_one_image():
    """Its pooled branch has one value a channel then, without a variance; of more images nothing is changed."""
    head = ExitHead(mess.HeadSpec(segmentation_head="deeplabv3"), channels=8, num_classes=3, block_kind="plain").train()
    norm = head.segmentation[0].convs[-1][2]
    before = norm.running_mean.clone()
    loss = head(torch.rand(1, 8, 9, 11)).square().mean()
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
    assert torch.equal(norm.running_mean, before)
    pooled = torch.rand(4, norm.num_features, 1, 1)
    usual = nn.BatchNorm2d(norm.num_features)
    assert torch.equal(norm(pooled), usual(pooled))
    assert torch.equal(norm.running_var, usual.running_var)


def test_rapid_dilation_doubles_at_every_block():
    spec = mess.HeadSpec(num_blocks=3, rapid_dilation=True)
    head = ExitHead(spec, channels=16, num_classes=3, block_kind="residual")
    dilations = [{m.dilation for m in block.modules() if isinstance(m, nn.Conv2d)} for block in head.blocks]
    assert dilations == [{(2, 2)}, {(4, 4)}, {(8, 8)}]


def test_block_kind_follows_the_backbone():
    assert block_kind_of(model_from_spec("mobilenet_v2_fcn", num_classes=2)) == "inverted_residual"
    assert block_kind_of(model_from_spec("small_resnet_fcn", num_classes=2)) == "residual"
    assert block_kind_of(get_model("fcn_resnet50", weights=None, weights_backbone=None)) == "bottleneck"
    # convolutions of 1 x 1 down to a quarter, 3 x 3, 1 x 1 up again
    head = ExitHead(mess.HeadSpec(num_blocks=1), channels=64, num_classes=2, block_kind="bottleneck")
    assert count_macs(head.blocks, torch.zeros(1, 64, 5, 7)) == 35 * (64 * 16 + 9 * 16 * 16 + 16 * 64)


@pytest.mark.parametrize(("channels", "reduced"), [(40, [20, 10, 5]), (16, [8, 4, 4]), (3, [4, 4, 4])])
def test_channels_are_divided_by_what_the_head_says(channels, reduced):
    specs = [mess.HeadSpec(channel_reduction=r) for r in (2, 4, 8)]
    heads = [ExitHead(spec, channels=channels, num_classes=2, block_kind="plain") for spec in specs]
    assert [head.reduction[0].out_channels for head in heads] == reduced
    feature = torch.rand(2, channels, 5, 7)
    assert all(head.eval()(feature).shape == (2, 2, 5, 7) for head in heads)


class Wrong(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.conv, self.output = nn.Conv2d(3, 4, 1), output

    def forward(self, x):
        return self.output(self.conv(x))


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda y: y.mean((2, 3)), r"model: expected an output of logits .*tensor of shape \(1, 4\)"),
        (lambda y: {"masks": y}, r"got dict with keys \['masks'\]"),
        (lambda y: "no", r"got str"),
    ],
)
def test_a_model_without_dense_logits_is_refused(output, message):
    with pytest.raises(TypeError, match=message):
        mess.convert(Wrong(output), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda n, x: mess.convert(n, x[0]), ValueError, r"example_input: expected a non-empty float tensor"),
        (lambda n, x: mess.convert(n, x.int()), ValueError, r"example_input: .*torch.int32"),
        (lambda n, x: mess.convert(n, x.numpy()), TypeError, r"example_input: expected a tensor .*ndarray"),
        (lambda n, x: mess.convert("net", x), TypeError, r"model: expected an nn.Module, got str"),
        (lambda n, x: mess.convert(nn.Conv2d(4, 1, 1), x), ValueError, r"model: expected logits of at least 2 classes"),
        (lambda n, x: mess.convert(n, x, num_exits=1), ValueError, r"num_exits: expected at least 2"),
        (lambda n, x: mess.convert(n, x, heads=()), ValueError, r"heads: expected at least one"),
        (lambda n, x: mess.convert(n, x, heads="huge"), ValueError, r"heads: expected 'full'"),
        (lambda n, x: mess.profile(n, x, cost="flops"), ValueError, r"cost: expected 'macs' or 'latency', got 'flops'"),
        (lambda n, x: mess.HeadSpec(rapid_dilation=True), ValueError, r"rapid_dilation: expected False"),
        (lambda n, x: mess.HeadSpec.from_name("fcn"), ValueError, r"heads: expected a name like"),
        (lambda n, x: model_from_spec("unet", num_classes=2), ValueError, r"model: expected one of .*got 'unet'"),
        (lambda n, x: model_from_spec("no.such:thing", num_classes=2), ValueError, r"model: cannot import"),
        (lambda n, x: model_from_spec("mobilenet_v2_fcn:5", num_classes=2), ValueError, r"output_stride: expected 8"),
    ],
)
def test_bad_arguments(call, kind, message):
    with pytest.raises(kind, match=message):
        call(plain_net(), torch.zeros(1, 4, 8, 8))


def test_weights_that_do_not_fit_are_listed(tmp_path):
    net = model_from_spec("small_resnet_fcn", num_classes=3)
    with pytest.raises(FileNotFoundError, match="weights: expected a safetensors file"):
        load_weights(net, tmp_path / "none.safetensors")
    save_file({"features.0.0.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"does not fit the network: missing features.0.1.weight"):
        load_weights(net, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:40])
    with pytest.raises(ValueError, match="is truncated or no safetensors file"):
        load_weights(net, tmp_path / "w.safetensors")
    torch.save(net.state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"no safetensors file: .*; to convert a state_dict of PyTorch: safetensors"):
        load_weights(net, tmp_path / "w.pth")


def test_a_users_own_factory():
    net = model_from_spec("tests.mess.test_model:small_factory", num_classes=3)
    assert mess.convert(net, torch.zeros(1, 3, 48, 64), heads="tiny").num_classes == 3
    with pytest.raises(ValueError, match="to return an nn.Module, got int"):
        model_from_spec("tests.mess.test_model:wrong_factory", num_classes=3)


def test_models_of_the_libraries_by_name(tmp_path):
    assert type(model_from_spec("torchvision:lraspp_mobilenet_v3_large", num_classes=3)).__name__ == "LRASPP"
    assert type(model_from_spec("smp:Unet/resnet18", num_classes=3)).__name__ == "Unet"
    assert model_from_spec("hf:segformer", num_classes=3).config.num_labels == 3
    for spec, message in [
        ("smp:Nothing/resnet18", "smp has no such model"),
        ("smp:Unet/nothing", "smp has no such model"),
        ("hf:bert", "cannot make a segmentation model of 'bert'"),
        ("torchvision:nothing", "model: expected one of mobilenet_v2_fcn"),
        (f"{tmp_path}/none.py:net", "cannot import .*none.py:net: no such file"),
    ]:
        with pytest.raises(ValueError, match=message):
            model_from_spec(spec, num_classes=3)
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n"
        "@dataclass\nclass Answer:\n    logits: object\n"
        "def net():\n    return nn.Conv2d(3, 7, 1)\n"
        "def told(num_classes):\n    return nn.Conv2d(3, num_classes, 1)\n"
    )
    assert model_from_spec(f"{tmp_path}/mine.py:net", num_classes=3).out_channels == 7
    assert model_from_spec(f"{tmp_path}/mine.py:told", num_classes=3).out_channels == 3


def test_a_local_folder_of_transformers_brings_its_weights(tmp_path):
    net = model_from_spec("hf:segformer", num_classes=3)
    net.save_pretrained(tmp_path)
    again = model_from_spec(f"hf:{tmp_path}", num_classes=3)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))
    net.half().save_pretrained(tmp_path / "half")
    again = model_from_spec(f"hf:{tmp_path / 'half'}", num_classes=3)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}


def small_factory(*, num_classes: int) -> nn.Module:
    return model_from_spec("small_resnet_fcn", num_classes=num_classes)


def wrong_factory(*, num_classes: int) -> int:
    return num_classes


class Awkward(nn.Module):
    """Two convolutions with something unusual alive between them."""

    def __init__(self, between):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.c, self.between = nn.Conv2d(8, 4, 1), between

    def forward(self, x):
        a = self.a(x)
        return self.between(x, a, self.c, self.b(a))


def point_at(module: str) -> list:
    reached = exit_points(mess.profile(plain_net(), torch.zeros(1, 4, 8, 8)), num_exits=4)[0]
    return [replace(reached, module=module, call=0)]


SIZES = [
    lambda x, a, c, b: c(b.reshape(x.shape[0], 8, 8, 8)),
    lambda x, a, c, b: c(b.reshape(x.shape[0] * 2, 4, 8, 8).reshape(x.shape[0], 8, 8, 8)) + x.shape[0],
    lambda x, a, c, b: c(b + a) * a.new_ones(a.shape[0], 1, 1, 1),
]


@pytest.mark.parametrize("between", SIZES)
def test_sizes_of_the_batch_follow_the_images_that_are_left(between):
    net = Awkward(between).eval()
    images = torch.rand(5, 3, 8, 8)
    stages = split_graph(net, point_at("b"), images)
    kept = torch.tensor([0, 3])
    with torch.no_grad():
        _, state = stages.run_stage(0, stages.start(images))
        logits, _ = stages.run_stage(1, stages.keep(0, state, kept))
        assert torch.equal(logits, net(images[kept]))


class Folded(Awkward):
    def forward(self, x):
        a = self.a(x)
        odd = a.reshape(-1, 4, 8, 8).relu()
        return self.c(self.b(a) + odd.reshape(-1, 8, 8, 8))


class Transposed(Awkward):
    def forward(self, x):
        a = self.a(x)
        odd = a.transpose(0, 1).relu()
        return self.c(self.b(a) + odd.transpose(0, 1))


@pytest.mark.parametrize("kind", [Folded, Transposed])
def test_a_batch_that_is_not_in_front_is_refused(kind):
    with pytest.raises(RuntimeError, match="is alive at an exit point, with the batch"):
        split_graph(kind(None).eval(), point_at("b"), torch.rand(2, 3, 8, 8))


def test_a_float64_model():
    net = model_from_spec("small_resnet_fcn", num_classes=3).double().eval()
    images = torch.rand(2, 3, 48, 64, dtype=torch.float64)
    network = mess.convert(net, images, num_exits=3, heads="tiny").eval()
    labels = torch.randint(0, 3, (2, 48, 64))
    mess.train(network, [(images, labels)], pretraining=mess.TrainSettings(epochs=1))
    assert {p.dtype for p in network.parameters()} == {torch.float64}
    table = mess.calibrate(network, [(images, labels)], latency_rounds=1)
    prediction = mess.deploy(network, mess.search(table, max_cost_ratio=1.0).best)(images)
    assert prediction.logits.dtype == torch.float64


def test_what_a_graph_keeps_when_it_hands_on_less():
    """What its output reads, what changes that in its place under another name, and what changes a buffer."""
    aten, made = torch.ops.aten, fx.Graph()
    x, other = made.placeholder("x"), made.placeholder("other")
    buffer = made.get_attr("prev")
    kept = made.call_function(aten.clone.default, (x,))
    view = made.call_function(aten.view.default, (kept, (-1,)))
    changed = made.call_function(aten.add_.Tensor, (view, 1))
    stored = made.call_function(aten.copy_.default, (buffer, x))
    dead = made.call_function(aten.relu_.default, (made.call_function(aten.clone.default, (other,)),))
    random = made.call_function(aten.dropout.default, (dead, 0.5, False))
    end = made.output((kept,))
    assert _live(made) == {x, buffer, kept, view, changed, stored, end}
    assert not {dead, random, other} & _live(made)
