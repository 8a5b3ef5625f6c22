"""Two ways to look inside a forward pass that nobody wrote with exits in mind.

*eager*: forward hooks capture the feature of every exit point while the user's own code runs. Used to train and to
calibrate; autograd, train mode and data-dependent code are as they were.

*graph*: `torch.export` records the model once with a marker at every exit point, and the graph is cut at the markers.
A stage takes the values that are still alive as a tuple of tensors and gives the next tuple, so a run can stop, wait,
or go on with only some images of the batch. Used to deploy. Parameters are shared with the user's model, never copied.

Both mark the same module calls, so a feature is the same tensor in either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from mess.model.adapter import LogitsModel, check_example, evaluating
from mess.model.points import ExitPoint

State = tuple[Tensor, ...]
"""Values alive at a cut."""


@contextmanager
def captured_features(net: nn.Module, points: Sequence[ExitPoint]) -> Iterator[dict[int, Tensor]]:
    """Inside the block, a forward pass of `net` fills the yielded dict: index in `points` -> feature (B, C, h, w).

    A feature that the model later overwrites in place would silently turn into another one, so its version counter is
    checked when the block ends.

    Raises:
        RuntimeError: a captured feature was modified in place after its exit point.
    """
    features: dict[int, Tensor] = {}
    versions: dict[int, int] = {}

    def keep(index: int, feature: Tensor) -> None:
        if feature.is_inference():  # has no version counter: a copy is safe whatever happens to the original
            feature = feature.clone()
        else:
            versions[index] = feature._version
        features[index] = feature

    with _marked(net, points, keep):
        yield features
    for index, version in versions.items():
        if features[index]._version != version:
            raise RuntimeError(
                f"exit point {points[index].module!r}: its feature is overwritten in place further down the model; "
                "place the exit at another module"
            )


@torch.library.custom_op("mess::exit_point", mutates_args=())
def _exit_point(feature: Tensor, index: int) -> Tensor:
    """Marker in an exported graph; it is removed when the graph is cut."""
    return feature.clone()


@_exit_point.register_fake
def _(feature: Tensor, index: int) -> Tensor:
    return torch.empty_like(feature)


class GraphStages(nn.Module):
    """A model cut at exit points into stages that run one after the other.

    `stages[i]` maps the state before it to (feature of point i, state after it); the last one gives the logits. Running
    all of them computes exactly the model's own operations in their order. `batched[i]` says which values of the state
    after stage i have the batch as their first dimension.
    """

    def __init__(
        self, stages: Sequence[nn.Module], batched: Sequence[tuple[bool, ...]], input_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.batched = tuple(batched)
        self.input_size = input_size

    def up_to(self, count: int) -> GraphStages:
        """The first `count` stages; what lies behind them is gone."""
        return GraphStages(list(self.stages)[:count], self.batched[:count], self.input_size)

    def start(self, images: Tensor) -> State:
        """The state before the first stage."""
        if tuple(images.shape[-2:]) != self.input_size:
            raise ValueError(f"images: expected height and width {self.input_size}, got {tuple(images.shape[-2:])}")
        return (images,)

    def run_stage(self, index: int, state: State) -> tuple[Tensor, State]:
        """(feature, next state) of a stage that ends at an exit point; (logits, ()) of the last one."""
        output: State = self.stages[index](*state)
        return output[0], output[1:]

    def keep(self, index: int, state: State, kept: Tensor) -> State:
        """The state after stage `index` of the images that `kept` (B,) bool or indices selects."""
        return tuple(v[kept] if batched else v for v, batched in zip(state, self.batched[index], strict=True))


def split_graph(net: nn.Module, points: Sequence[ExitPoint], example_input: Tensor) -> GraphStages:
    """Cut `net`, in eval mode, at `points`; valid for the height and width of `example_input` and any batch size.

    Raises:
        RuntimeError: the model cannot be exported, or an exit point was not met during export; says why.
    """
    example = check_example(example_input)
    batch = torch.cat([example[:1], example[:1]])  # a batch of 1 would be baked in as a constant
    model = LogitsModel(net)

    def mark(index: int, feature: Tensor) -> Tensor:
        marked: Tensor = _exit_point(feature, index)
        return marked

    with evaluating(net), _marked(net, points, mark):
        try:
            program = torch.export.export(
                model, (batch,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
            )
        except Exception as error:  # torch.export raises many types; the reason is what the user needs
            reason = str(error).strip().splitlines()
            raise RuntimeError(
                f"model: torch.export failed, so it cannot be cut into stages: {type(error).__name__}: "
                f"{reason[0] if reason else ''}"
            ) from error
        graph_module = program.module()
    stages, batched = _cut(graph_module, len(points))
    return GraphStages(stages, batched, (batch.shape[2], batch.shape[3]))


@contextmanager
def _marked(
    net: nn.Module, points: Sequence[ExitPoint], visit: Callable[[int, Tensor], Tensor | None]
) -> Iterator[None]:
    """Call `visit(index, output)` when the call of `points[index]` completes; its result, if any, replaces it."""
    modules = dict(net.named_modules())
    handles = []
    for name in {point.module for point in points}:
        if name not in modules:
            raise ValueError(f"points: expected names of the model's modules, got {name!r}")
        wanted = {point.call: index for index, point in enumerate(points) if point.module == name}
        handles.append(modules[name].register_forward_hook(_counting_hook(wanted, visit)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _counting_hook(
    wanted: dict[int, int], visit: Callable[[int, Tensor], Tensor | None]
) -> Callable[[nn.Module, Any, Any], Tensor | None]:
    calls: Counter[str] = Counter()

    def hook(_: nn.Module, __: Any, output: Any) -> Tensor | None:
        index = wanted.get(calls["so far"])
        calls["so far"] += 1
        return None if index is None else visit(index, output)

    return hook


def _cut(graph_module: fx.GraphModule, num_points: int) -> tuple[list[fx.GraphModule], list[tuple[bool, ...]]]:
    """Stages of an exported graph: nodes in order up to each marker; a boundary carries what is used behind it.

    Also, for every boundary, which of the values it carries have the batch first: their first size is symbolic.

    The order of an exported graph is the order of execution, so a prefix never needs a later value.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            graph.erase_node(node)  # checks the example's shape; GraphStages.start does it once instead
    graph.eliminate_dead_code()
    nodes = list(graph.nodes)
    markers = {node.args[1]: node for node in nodes if node.target is torch.ops.mess.exit_point.default}
    if sorted(markers) != list(range(num_points)):
        raise RuntimeError(
            f"model: expected to meet exit points 0..{num_points - 1} on the way to the logits, met {sorted(markers)}"
        )
    position = {node: i for i, node in enumerate(nodes)}
    ends = [position[markers[i]] for i in range(num_points)] + [len(nodes) - 1]
    if ends != sorted(ends):
        raise RuntimeError("points: expected the order of execution, got another")
    stage_of = {}
    for node in nodes:
        stage_of[node] = next(i for i, end in enumerate(ends) if position[node] <= end)

    images = next(node for node in nodes if node.op == "placeholder")
    batch = images.meta["val"].shape[0]
    needed = {node: _needed_until(node, stage_of) for node in nodes}
    carried = [[images]]
    for i in range(num_points):
        alive = [node for node in nodes if stage_of[node] <= i < needed[node] and _is_carried(node)]
        carried.append(alive)
    batched = [tuple(_is_batched(node, batch) for node in alive) for alive in carried[1:]]
    stages = [
        _stage(graph_module, nodes, stage_of, i, carried[i], carried[i + 1] if i < num_points else None, markers.get(i))
        for i in range(num_points + 1)
    ]
    return stages, [*batched, ()]


def _needed_until(node: fx.Node, stage_of: dict[fx.Node, int]) -> int:
    """The last stage that reads `node`; one that reads a size computed from it does not count (see `_stage`)."""
    return max((stage_of[user] for user in node.users if not _is_size(user)), default=-1)


def _is_size(node: fx.Node) -> bool:
    """A number that follows from the batch size. It is computed anew in every stage that needs it and never carried,
    because it changes when images leave."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymBool | torch.SymFloat)


def _is_carried(node: fx.Node) -> bool:
    if node.op == "get_attr" or _is_size(node):
        return False
    if not isinstance(node.meta.get("val"), Tensor):
        raise RuntimeError(f"model: a value that is no tensor ({node.name}) is alive at an exit point; exit elsewhere")
    return True


def _is_batched(node: fx.Node, batch: torch.SymInt) -> bool:
    """Whether the first size is the batch; a batch folded into a size, or at another place, cannot be thinned out."""
    symbol = batch.node.expr
    sizes = [size.node.expr if isinstance(size, torch.SymInt) else None for size in node.meta["val"].shape]
    depends = [expr is not None and symbol in expr.free_symbols for expr in sizes]
    if not any(depends):
        return False
    if sizes[0] != symbol or any(depends[1:]):
        raise RuntimeError(
            f"model: {node.name} of shape {tuple(node.meta['val'].shape)} is alive at an exit point, with the batch "
            f"({batch}) folded into a size or not in front, so no image can leave it; exit elsewhere"
        )
    return True


def _is_sized_by_batch(node: fx.Node) -> bool:
    shape = node.meta["val"].shape
    return len(shape) > 0 and isinstance(shape[0], torch.SymInt)


def _stage(
    root: fx.GraphModule,
    nodes: Sequence[fx.Node],
    stage_of: dict[fx.Node, int],
    index: int,
    inputs: Sequence[fx.Node],
    outputs: Sequence[fx.Node] | None,
    marker: fx.Node | None,
) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
    leader = next((node for node in inputs if _is_sized_by_batch(node)), inputs[0])

    def copy_of(node: fx.Node) -> fx.Node:
        """The copy of a node, made now for what earlier stages read first: parameters, and sizes of the batch."""
        if node in copies:
            return copies[node]
        if node.op == "get_attr":
            copies[node] = graph.node_copy(node)
        elif node.target is torch.ops.aten.sym_size.int:
            copies[node] = graph.call_function(torch.ops.aten.sym_size.int, (copies[leader], 0))
        else:
            assert _is_size(node), node
            copies[node] = graph.node_copy(node, copy_of)
        return copies[node]

    result: Any = None
    for node in nodes:
        if stage_of[node] != index or node in copies:
            continue
        if node.op == "output":
            result = node.args[0][0] if isinstance(node.args[0], tuple | list) else node.args[0]
        elif node is marker:
            copies[node] = copy_of(node.all_input_nodes[0])
        elif node.op != "get_attr" and not _is_size(node):
            copies[node] = graph.node_copy(node, copy_of)
    first = copies[marker] if marker is not None else copy_of(result)
    graph.output((first, *(copy_of(node) for node in outputs or ())))
    graph.lint()
    return fx.GraphModule(root, graph)
