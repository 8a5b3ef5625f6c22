"""The graph back end: a model exported once and cut at its exit points.

`torch.export` records the model with a marker at every exit point, and the graph is cut at the markers. A stage takes
the values that are still alive as a tuple of tensors and gives the next tuple, so a run can stop, wait, or go on with
only some images of the batch. Numbers of parameters are shared with the user's model until either is moved or
converted.
"""

from __future__ import annotations

import math
import operator
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from mess.model.adapter import LogitsModel, check_example, evaluating, quiet_attempt
from mess.model.capture import marked
from mess.model.layout import Size
from mess.model.points import ExitPoint
from mess.model.stages import Stages, State, check_equal


@torch.library.custom_op("mess::exit_point", mutates_args=())
def _exit_point(feature: Tensor, as_map: Tensor, index: int) -> Tensor:
    """Marker in an exported graph, removed when it is cut. What the model goes on with, and the same as a map."""
    return feature.clone()


Shape = tuple[int, int, int]
"""Of an input: (batch, height, width)."""

_MOST_PIXELS = 2048 * 2048
"""Of an image that graph and model are compared on, unless the example is larger."""

fx.node.has_side_effect(torch.ops.mess.exit_point.default)  # kept where nothing further on reads the feature


@_exit_point.register_fake
def _(feature: Tensor, as_map: Tensor, index: int) -> Tensor:
    return torch.empty_like(feature)


class GraphStages(Stages):
    """A model cut at exit points into graphs that run one after the other.

    Running all of them computes exactly the model's own operations in their order. `batched[i]` says which values of
    the state after stage i have the batch as their first dimension.
    """

    backend = "graph"

    def __init__(
        self,
        stages: Sequence[nn.Module],
        batched: Sequence[tuple[bool, ...]],
        input_size: Size,
        size_step: int | None = None,
    ) -> None:
        super().__init__(len(stages), input_size, size_step)
        self.stages = nn.ModuleList(stages)
        self.batched = tuple(batched)

    def up_to(self, count: int) -> GraphStages:
        """The first `count` stages; what lies behind them is gone, with all that was computed and carried for it."""
        stages, batched = list(self.stages)[:count], list(self.batched)[:count]
        carried: list[int] = []  # which of the values that a stage hands on are read
        graphs = [stage for stage in stages if isinstance(stage, fx.GraphModule)]
        for i in reversed(range(count)) if len(graphs) == count else ():  # not of stages that were compiled
            batched[i] = tuple(batched[i][number] for number in carried)
            stages[i], carried = _handing_on(graphs[i], carried, is_first=i == 0)
        return GraphStages(stages, batched, self.input_size, self.size_step)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Moved or converted they have parameters of their own: the model that they share them with stays as it is."""
        check_conversion(self, fn)
        own: dict[int, nn.Parameter] = {}
        for module in self.stages.modules():
            for name, value in module.named_parameters(recurse=False):
                setattr(module, name, own.setdefault(id(value), nn.Parameter(value.detach(), value.requires_grad)))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for graph_module in self.modules():
            if isinstance(graph_module, fx.GraphModule):
                _move_constants(graph_module, lambda device: fn(torch.empty(0, device=device)).device)
        return self

    def start(self, images: Tensor) -> State:
        """The state before the first stage."""
        self.check_size(images)
        return (images,)

    def run_stage(self, index: int, state: State) -> tuple[Tensor, State]:
        """(feature, next state) of a stage that ends at an exit point; (logits, ()) of the last one."""
        output: State = self.stages[index](*state)
        return output[0], output[1:]

    def keep(self, index: int, state: State, kept: Tensor) -> State:
        """The state after stage `index` of the images that `kept` (B,) bool or indices selects."""
        return tuple(v[kept] if batched else v for v, batched in zip(state, self.batched[index], strict=True))


def split_graph(
    model: nn.Module, points: Sequence[ExitPoint], example_input: Tensor, *, size_step: int | None = None
) -> GraphStages:
    """Cut `model`, in eval mode, at `points`; valid for any batch size.

    Args:
        model: the user's, or a `LogitsModel` of it.
        points: of the user's model, in order of execution.
        example_input: (B, channels, H, W).
        size_step: take every height and width that is a multiple of it; by default those of `example_input` alone.

    Raises:
        RuntimeError: the model cannot be exported, not for all these sizes, an exit point was not met during export, or
            the model goes another way for some shapes of its input; says where and why.
    """
    example = check_example(example_input)
    batch = torch.cat([example[:1], example[:1]])  # a batch of 1 would be baked in as a constant
    adapted = model if isinstance(model, LogitsModel) else LogitsModel(model)

    def mark(index: int, feature: Tensor, size: Size) -> Tensor:
        replaced: Tensor = _exit_point(feature, points[index].layout.to_map(feature, size), index)
        return replaced

    shapes = ({0: torch.export.Dim.DYNAMIC} | _free_sizes(example, size_step),)
    with quiet_attempt(), evaluating(adapted), marked(adapted.net, points, mark):
        try:
            program = torch.export.export(adapted, (batch,), dynamic_shapes=shapes, strict=False)
        except Exception as error:  # torch.export raises many types; the reason is what the user needs
            raise RuntimeError(
                f"model: torch.export failed, so it cannot be cut into graphs: {reason_of(error)}{_users_line(error)}"
            ) from error
        graph_module = program.module()
    doubtful = _doubtful(graph_module, batch, size_step)
    stages = GraphStages(*_cut(graph_module, len(points)), (batch.shape[2], batch.shape[3]), size_step)
    _check_ways(stages, adapted, doubtful, batch)
    return stages


def _doubtful(graph_module: fx.GraphModule, example: Tensor, size_step: int | None) -> list[tuple[str, Shape]]:
    """For each condition on the shape of the input that the model met while it was recorded, shapes where it does not
    hold: of those that are tried and differ from the example in the same dimensions, the nearest.

    `torch.export` records one way through the model, and the conditions under which that is the way. Most are harmless
    (an operator that treats a side of 1 in its own way); but a model may branch on them (`if height > width`). Which of
    the two it is shows when model and graph are compared at these shapes.
    """
    guards = getattr(graph_module, "_guards_fn", None)
    if guards is None:
        return []
    batch, channels, *size = example.shape
    found: dict[tuple[str, tuple[bool, ...]], Shape] = {}
    for shape in _shapes_around((batch, size[0], size[1]), size_step):
        try:
            guards(torch.empty(shape[0], channels, *shape[1:], device="meta"))
        except AssertionError as error:
            changed = tuple(a != b for a, b in zip(shape, (batch, *size), strict=True))
            found.setdefault((str(error).removeprefix("Guard failed: "), changed), shape)
    return [(condition, shape) for (condition, _), shape in found.items()]


def _check_ways(
    stages: GraphStages, model: LogitsModel, doubtful: Sequence[tuple[str, Shape]], example: Tensor
) -> None:
    """RuntimeError when the model gives something else than its graph at one of these shapes."""
    for condition, (batch, *size) in doubtful:
        generator = torch.Generator("cpu").manual_seed(0)
        images = torch.rand(batch, example.shape[1], *size, generator=generator, device="cpu").to(example)
        try:
            with torch.inference_mode(), evaluating(model):
                model(images)
        except Exception:  # it takes no such input, and says so in its own way
            continue
        try:
            check_equal(stages, model, images)
        except Exception as error:
            raise RuntimeError(
                f"model: decides by the shape of its input ({condition}): for {tuple(images.shape)}, {error}"
            ) from error


def _shapes_around(shape: Shape, size_step: int | None) -> list[Shape]:
    """Shapes that a graph is to take, nearest first: other batches, other sizes where it takes those."""
    batch, height, width = shape
    shapes = [(b, height, width) for b in (*range(1, 17), 24, 32) if b != batch]
    if size_step is not None:
        sides = [
            {round(side * 1.25**power / size_step) * size_step for power in range(-16, 13)}
            | {(side // size_step + more) * size_step for more in range(-32, 33)}
            for side in (height, width)
        ]
        shapes += [(batch, h, width) for h in sides[0]] + [(batch, height, w) for w in sides[1]]
        shapes += [(batch, h, h * width // height // size_step * size_step) for h in sides[0]]
        shapes += [(batch, height + more * size_step, width + more * size_step) for more in range(-32, 33)]
        shapes += [(batch, width, height)]
    possible = {s for s in shapes if min(s) > 0 and s[1] * s[2] <= max(_MOST_PIXELS, height * width)}

    def away(other: Shape) -> tuple[float, Shape]:
        return sum(abs(math.log(a / b)) for a, b in zip(other, shape, strict=True)), other

    return sorted(possible, key=away)


def _free_sizes(example: Tensor, step: int | None) -> dict[int, Any]:
    """What `torch.export` is told of height and width, the dimensions 2 and 3."""
    if step is None:
        return {}
    if step == 1:
        return {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    if any(side % step for side in example.shape[2:]):
        raise RuntimeError(f"model: expected a height and width in steps of {step}, got {tuple(example.shape[2:])}")
    return {2: step * torch.export.Dim("rows", min=1), 3: step * torch.export.Dim("columns", min=1)}


def reason_of(error: BaseException) -> str:
    """What torch gave up for, in one line: of an error that it made of others the first one, of dimensions that are not
    free why the first is not."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # colours
    lines = [line.strip().removeprefix("- ") for line in text.splitlines() if line.strip()] or [""]
    if lines[0].startswith("Constraints violated") and len(lines) > 1:
        lines = [lines[1].partition(". If you")[0]]
    return f"{type(error).__name__}: {lines[0]}"


def _users_line(error: BaseException) -> str:
    """Where the user's code was when torch gave up, if anywhere."""
    libraries = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(libraries)]
    return f", at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""


def _cut(graph_module: fx.GraphModule, num_points: int) -> tuple[list[fx.GraphModule], list[tuple[bool, ...]]]:
    """Stages of an exported graph: nodes in order up to each marker; a boundary carries what is used behind it.

    Also, for every boundary, which of the values it carries have the batch first: their first size is symbolic.

    The order of an exported graph is the order of execution, so a prefix never needs a later value.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            graph.erase_node(node)  # `GraphStages.start` checks the shape once, see `_check_ways` for the rest
    graph.eliminate_dead_code()
    nodes = list(graph.nodes)
    markers = {node.args[2]: node for node in nodes if node.target is torch.ops.mess.exit_point.default}
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
    reach = max((i for i in range(1, num_points + 1) if _lacks_a_size(nodes, stage_of, i, carried[i])), default=0)
    for alive in carried[1 : reach + 1]:
        if images not in alive:
            alive.insert(0, images)
    batched = [tuple(_is_batched(node, batch) for node in alive) for alive in carried[1:]]
    own: dict[int, nn.Parameter] = {}
    stages = [
        _stage(graph_module, nodes, stage_of, i, inputs, outputs, markers.get(i), own)
        for i, (inputs, outputs) in enumerate(zip(carried, [*carried[1:], None], strict=True))
    ]
    return stages, [*batched, ()]


def _needed_until(node: fx.Node, stage_of: dict[fx.Node, int]) -> int:
    """The last stage that reads `node`; one that reads a size computed from it does not count (see `_stage`)."""
    return max((stage_of[user] for user in node.users if not _is_size(user)), default=-1)


def _is_size(node: fx.Node) -> bool:
    """A number that follows from the size of the batch or of the images. It is computed anew in every stage that needs
    it and never carried: the batch changes when images leave, and a graph of tensors alone is known by more programs.
    """
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


def _lacks_a_size(
    nodes: Sequence[fx.Node], stage_of: dict[fx.Node, int], index: int, inputs: Sequence[fx.Node]
) -> bool:
    """Whether a stage needs a size that does not follow from those of its inputs."""
    wanted = [size for node in nodes if stage_of[node] == index and not _is_size(node) for size in _sizes_read(node)]
    known = {*inputs, *(node for node in nodes if stage_of[node] == index)}
    return any(size.args[0] not in known and _parts(size, inputs) is None for size in wanted)


def _sizes_read(node: fx.Node) -> Iterator[fx.Node]:
    """The sizes of tensors that a node computes with."""
    for given in node.all_input_nodes:
        if _is_size(given):
            yield from [given] if given.target is torch.ops.aten.sym_size.int else _sizes_read(given)


def _parts(size: fx.Node, inputs: Sequence[fx.Node]) -> tuple[int, list[tuple[fx.Node, int, int]]] | None:
    """A size as a number times the product of dimension // divisor of (input, dimension, divisor); None if it is no
    such product."""
    dimensions = [
        (node, i, side.node.expr)
        for node in inputs
        for i, side in enumerate(node.meta["val"].shape)
        if isinstance(side, torch.SymInt)
    ]
    wanted = size.meta["val"].node.expr
    for node, i, expr in dimensions:
        if expr == wanted:
            return 1, [(node, i, 1)]
    times, symbols = wanted.as_coeff_mul()
    found = []
    for symbol in symbols:
        divisors = [
            (node, i, expr.coeff(symbol)) for node, i, expr in dimensions if expr == expr.coeff(symbol) * symbol
        ]
        first = next(((node, i, int(by)) for node, i, by in divisors if by.is_Integer), None)
        if first is None or not symbol.is_Symbol:
            return None
        found.append(first)
    return int(times), found


def _stage(
    root: fx.GraphModule,
    nodes: Sequence[fx.Node],
    stage_of: dict[fx.Node, int],
    index: int,
    inputs: Sequence[fx.Node],
    outputs: Sequence[fx.Node] | None,
    marker: fx.Node | None,
    own: dict[int, nn.Parameter],
) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)

    def size_of(tensor: fx.Node, dimension: int, divisor: int = 1) -> fx.Node:
        size = graph.call_function(torch.ops.aten.sym_size.int, (copies[tensor], dimension))
        return size if divisor == 1 else graph.call_function(operator.floordiv, (size, divisor))

    def copy_of(node: fx.Node) -> fx.Node:
        """The copy of a node, made now for what earlier stages read first: parameters, and sizes."""
        if node in copies:
            return copies[node]
        if node.op == "get_attr":
            copies[node] = graph.node_copy(node)
        elif node.target is torch.ops.aten.sym_size.int:
            copies[node] = rebuilt(node)
        elif _is_size(node):
            copies[node] = graph.node_copy(node, copy_of)
        else:
            raise RuntimeError(
                f"model: a number that comes from values of {node.name} is needed behind an exit point; exit elsewhere"
            )
        return copies[node]

    def rebuilt(size: fx.Node) -> fx.Node:
        tensor: Any = size.args[0]
        dimension: Any = size.args[1]
        if tensor in copies:
            return size_of(tensor, dimension)
        parts = _parts(size, inputs)
        if parts is None:
            raise RuntimeError(f"model: the size {size.meta['val']} is needed behind an exit point and not known there")
        times, found = parts
        product = reduce(lambda a, b: graph.call_function(operator.mul, (a, b)), [size_of(*part) for part in found])
        return product if times == 1 else graph.call_function(operator.mul, (product, times))

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
    first = copy_of(result if marker is None else marker.all_input_nodes[-1])
    graph.output((first, *(copy_of(node) for node in outputs or ())))
    graph.lint()
    return fx.GraphModule(_own_attributes(root, graph, own), graph)


def _handing_on(stage: fx.GraphModule, outputs: Sequence[int], *, is_first: bool) -> tuple[fx.GraphModule, list[int]]:
    """A stage that gives its feature and hands on these values only, and which of its inputs that takes; the first one
    keeps the images."""
    graph = fx.Graph()
    copied: Any = graph.graph_copy(stage.graph, {})
    graph.output((copied[0], *(copied[1 + number] for number in outputs)))
    live = _live(graph)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    read = [i for i, node in enumerate(inputs) if node in live or is_first]
    kept = live | {inputs[i] for i in read}
    for node in reversed(list(graph.nodes)):
        if node not in kept:
            graph.erase_node(node)
    graph.lint()
    return fx.GraphModule(stage, graph), read


_MAY_SHARE = (
    *("dropout", "meshgrid", "broadcast_tensors", "atleast", "type_as", "einsum", "unsafe", "sum_to_size"),
    *("cartesian_prod", "chain_matmul", "_cast_", "shuffle"),
)
"""In names of operators whose result may lie where their input does, though their schemas do not say so."""


def _live(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that the output follows from: what it reads, and what changes a tensor in its place that it reads.

    `Graph.eliminate_dead_code` keeps whatever changes any tensor (`relu_`) or may be random (`dropout`, also where it
    is not), with all that it reads. What changes a buffer stays here too, as later stages and calls may read it; inputs
    are taken to share their memory.
    """
    same: dict[fx.Node, fx.Node] = {}  # towards one node of all those that may be in one place in memory
    given_first: dict[object, fx.Node] = {}  # of the inputs, and of each buffer or parameter

    def place(node: fx.Node) -> fx.Node:
        while same[node] is not node:
            node = same[node]
        return node

    changes: list[tuple[fx.Node, list[fx.Node]]] = []
    for node in graph.nodes:
        same[node] = node
        if node.op in ("placeholder", "get_attr"):
            same[node] = given_first.setdefault(node.target if node.op == "get_attr" else None, node)
        if node.op in ("placeholder", "get_attr", "output"):
            continue
        schema = getattr(node.target, "_schema", None)
        if schema is None:  # a number, an item of several, or what is not known
            shared = node.all_input_nodes
            is_pure = getattr(node.target, "__module__", "") == operator.add.__module__
            changed = [] if is_pure else shared
        else:
            given = [*zip(schema.arguments, node.args, strict=False)]
            given += [(formal, node.kwargs[formal.name]) for formal in schema.arguments if formal.name in node.kwargs]
            aliased = [(formal, _nodes_of(value)) for formal, value in given if formal.alias_info is not None]
            changed = [other for formal, nodes in aliased if formal.alias_info.is_write for other in nodes]
            shared = [other for _, nodes in aliased for other in nodes]
            if any(word in schema.name for word in _MAY_SHARE):
                shared = node.all_input_nodes
        for other in shared:
            same[place(other)] = place(node)
        if changed:
            changes.append((node, changed))

    live: set[fx.Node] = set()
    stored = {place(node) for node in graph.nodes if node.op == "get_attr"}
    wanted = [node for node, changed in changes if any(place(n) in stored for n in changed)]
    wanted += [node for node in graph.nodes if node.op == "output"]
    while wanted:
        while wanted:
            node = wanted.pop()
            if node not in live:
                live.add(node)
                wanted.extend(node.all_input_nodes)
        places = {place(node) for node in live}
        wanted = [node for node, changed in changes if node not in live and any(place(n) in places for n in changed)]
    return live


def _nodes_of(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return found


def check_conversion(module: nn.Module, fn: Callable[..., Any]) -> None:
    """RuntimeError when `fn` (of `nn.Module.half` and the like) converts types of numbers that the model's operations
    name: the graph would go on to make the type that it was recorded with, next to parameters of the new one."""
    stages = [stages for stages in module.modules() if isinstance(stages, GraphStages)]
    for graph_module in (part for each in stages for part in each.modules() if isinstance(part, fx.GraphModule)):
        for node in graph_module.graph.nodes:
            if node.target is torch.ops.aten._assert_tensor_metadata.default:
                continue
            for dtype in _named(node):
                if dtype.is_floating_point and fn(torch.empty(0, dtype=dtype)).dtype != dtype:
                    raise RuntimeError(
                        f"deployed: an operation of the model ({node.target}) names {dtype}, which a network that is "
                        "recorded keeps; convert the network before, as in mess.deploy(network.half(), ...)"
                    )


def _named(node: fx.Node) -> list[torch.dtype]:
    found: list[torch.dtype] = []
    fx.node.map_aggregate((node.args, node.kwargs), lambda v: found.append(v) if isinstance(v, torch.dtype) else None)
    return found


def _move_constants(graph_module: fx.GraphModule, moved: Callable[[torch.device], torch.device]) -> None:
    """Have the graph make its tensors (`arange`, `zeros`, `to`) where it is moved to: it was recorded with the device
    that it was on as a constant."""

    def replaced(argument: Any) -> Any:
        return moved(argument) if isinstance(argument, torch.device) else argument

    for node in graph_module.graph.nodes:
        node.args = fx.node.map_aggregate(node.args, replaced)
        node.kwargs = fx.node.map_aggregate(node.kwargs, replaced)
    graph_module.recompile()


def _own_attributes(root: fx.GraphModule, graph: fx.Graph, own: dict[int, nn.Parameter]) -> dict[str, Any]:
    """What the graph reads, under short names of its own: going down the user's tree of modules for every parameter in
    every run took 3 % of a MobileNetV3. The numbers are shared, but not the `Parameter` that holds them: the user's is
    what moves with the user's model. `own` has those that were met before, by the user's."""
    found: dict[str, Any] = {}
    names: dict[str, str] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            target = str(node.target)
            if target not in names:
                names[target] = f"value_{len(names)}"
                value: Any = root
                for part in target.split("."):
                    value = getattr(value, part)
                if isinstance(value, nn.Parameter):
                    value = own.setdefault(id(value), nn.Parameter(value.detach(), value.requires_grad))
                found[names[target]] = value
            node.target = names[target]
    return found
