"""Every model of `tests/user_models.py`: does it convert, is it the same, what does running it in stages cost?

    python benches/python/models.py [--only NAME] [--rounds 9] [--size 256 320] [--record]

One thread, random weights. For each model: back end; points found of 5 asked; whether staged runs equal the model bit
for bit at two sizes and two batch sizes, by the chosen back end and by suspension; whether gradients do; our MACs
against fvcore's count of the same operations; the cost of a staged run as a ratio to the plain model, interleaved in
every round; and how far the clock at each exit is from what the latency profile says. Writes benches/record/models.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benches.machine import facts  # noqa: E402
from tests.user_models import CASES, Case  # noqa: E402

import mess  # noqa: E402
from mess.files import write_json  # noqa: E402
from mess.model.adapter import LogitsModel  # noqa: E402
from mess.model.network import MultiExitNetwork  # noqa: E402
from mess.model.stages import Stages  # noqa: E402
from mess.model.zoo import model_from_spec  # noqa: E402

#: operations that `torch.utils.flop_counter` counts, by fvcore's names
COUNTED = ("conv", "linear", "addmm", "matmul", "bmm", "einsum", "baddbmm")
#: for the clock of one model, unless three rounds take longer
SECONDS = 60
CACHE = ROOT / "runs" / "models.json"
PAPER = {"fcn_resnet50": 138.63, "deeplabv3_resnet50": 163.86, "mobilenet_v2_fcn:8": 8.78}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=9, help="at most; at least 3")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 320))
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--resume", action="store_true", help="take what an interrupted run has measured already")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    known = json.loads(CACHE.read_text()) if CACHE.is_file() else {}
    rows = []
    for case in CASES:
        if arguments.only in case.name:
            row = known.get(case.name) if arguments.resume else None
            rows.append(row or measured(case, tuple(arguments.size), arguments.rounds))
            print(rows[-1], flush=True)
            known[case.name] = rows[-1]
            write_json(CACHE, known)
    lines = record(rows, arguments)
    if arguments.record:
        (ROOT / "benches" / "record" / "models.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def measured(case: Case, size: tuple[int, int], rounds: int) -> dict[str, str]:
    """One row of the table; numbers are of `size`, equality is checked at the case's own two sizes."""
    torch.manual_seed(0)
    net = case.build().eval()
    size = size if case.other_size and case.size[0] != case.size[1] else case.size  # some take square or fixed sizes
    images = torch.rand(1, 3, *size)
    began = time.perf_counter()
    network = mess.convert(net, images, heads=["fcn-r4-b0"]).eval()
    convert_seconds = time.perf_counter() - began
    began = time.perf_counter()
    stages = network.split()
    split_seconds = time.perf_counter() - began
    theirs, beside = second_count(network, images)
    ratios = clock(network, stages, images, rounds)
    orders = sorted({point.layout.order for point in network.points})
    return {
        "model": f"{case.family}: {case.name}",
        "back end": stages.backend,
        "points": f"{len(network.points)}: " + ", ".join(f"{p.share:.0%}" for p in network.points),
        "layouts": ", ".join(orders),
        "output strides": ", ".join(str(p.output_stride) for p in network.points),
        "bit for bit": equality(case, net),
        "gradients": "equal" if has_equal_gradients(case, net) else "DIFFER",
        "GMACs": f"{network.workload.total / 1e9:.3f}",
        "fvcore, same operations": f"{theirs / network.workload.total - 1:+.2%}",
        "fvcore counts beside them": beside,
        **ratios,
        "convert, split s": f"{convert_seconds:.1f}, {split_seconds:.1f}",
    }


def equality(case: Case, net: nn.Module) -> str:
    """Staged runs against the model: how many of (size, batch) are equal, by the chosen back end and by suspension."""
    equal: dict[str, list[bool]] = {}
    for size in filter(None, (case.size, case.other_size)):
        network = mess.convert(net, torch.rand(1, 3, *size), heads=["fcn-r4-b0"]).eval()
        for stages in (network.split(), network.split(backend="eager")):
            for batch in (1, 2):
                images = torch.rand(batch, 3, *size)
                with torch.inference_mode():
                    same = torch.equal(run(stages, images), network(images))
                equal.setdefault(stages.backend, []).append(same)
    return ", ".join(f"{backend} {sum(same)}/{len(same)}" for backend, same in equal.items())


def has_equal_gradients(case: Case, net: nn.Module) -> bool:
    """Of the mean square of the final logits, in train mode, with hooks at the exit points and without."""
    network = mess.convert(net, torch.rand(1, 3, *case.size), heads=["fcn-r4-b0"])
    images = torch.rand(2, 3, *case.size)
    net.train()

    def gradients(logits_of: Callable[[Tensor], Tensor]) -> list[Tensor]:
        net.zero_grad()
        state = copy.deepcopy(net.state_dict())
        torch.manual_seed(1)
        logits_of(images).square().mean().backward()
        net.load_state_dict(state)
        return [p.grad.clone() for p in net.parameters() if p.grad is not None]

    pairs = zip(gradients(LogitsModel(net)), gradients(lambda x: network.features(x)[0]), strict=True)
    same = all(torch.equal(a, b) for a, b in pairs)
    net.zero_grad()
    net.eval()
    return same


def second_count(network: MultiExitNetwork, images: Tensor) -> tuple[float, str]:
    """fvcore's MACs of the operations that we count, and what else it counts, in percent of ours."""
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(LogitsModel(network.net), images)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    try:
        by_operator = analysis.by_operator()
    except Exception:  # it traces the model with torch.jit
        return by_modules(network.net, images), "(cannot trace it: convolutions and linear layers by their formula)"
    ours = sum(value for name, value in by_operator.items() if name in COUNTED)
    others = {name: value for name, value in by_operator.items() if name not in COUNTED and value}
    missing = [name for name in analysis.unsupported_ops() if "attention" in name]
    listed = [
        f"{name} {value / network.workload.total:.1%}" for name, value in sorted(others.items(), key=lambda x: -x[1])
    ]
    return ours, ", ".join([*listed[:3], *(f"not {name.removeprefix('aten::')}" for name in missing)])


def by_modules(net: nn.Module, images: Tensor) -> float:
    """MACs of the convolutions and linear layers that are modules: outputs times inputs of each."""
    total = 0.0

    def count(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        weight = module.weight
        total += output.numel() * weight[0].numel()

    handles = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        net(images)
    for handle in handles:
        handle.remove()
    return total


def run(stages: Stages, images: Tensor, until: int | None = None) -> Tensor:
    """All stages, or those up to an exit point."""
    state = stages.start(images)
    for index in range(stages.num_stages if until is None else until + 1):
        output, state = stages.run_stage(index, state)
    return output


@torch.inference_mode()
def clock(network: MultiExitNetwork, stages: Stages, images: Tensor, rounds: int) -> dict[str, str]:
    """Medians of the ratios to the plain model in the same round."""
    eager = network.split(backend="eager") if stages.backend != "eager" else stages
    contenders: list[Callable[[], object]] = [lambda: run(stages, images), lambda: run(eager, images)]
    contenders += [lambda i=i: run(stages, images, i) for i in range(len(network.points))]
    ratios: list[list[float]] = [[] for _ in contenders]
    began = time.perf_counter()
    network.net(images)
    once = time.perf_counter() - began
    rounds = max(3, min(rounds, int(SECONDS / (4 * once * len(contenders)))))
    for number in range(rounds + 1):
        for index, contender in enumerate(contenders):
            times = []
            for work in (lambda: network.net(images), contender, contender, lambda: network.net(images)):
                began = time.perf_counter()
                work()
                times.append(time.perf_counter() - began)
            if number:
                ratios[index].append((times[1] + times[2]) / (times[0] + times[3]))
    full, suspended, *early = [median(values) for values in ratios]
    latency = mess.profile(network.net, images, cost="latency", rounds=rounds)
    at = {(layer.name, layer.call): layer.end / latency.total for layer in latency.layers}
    profiled = [at[point.module, point.call] for point in network.points]
    return {
        "staged / plain": f"{full:.3f}",
        "suspended / plain": f"{suspended:.3f}",
        "clock at exits": ", ".join(f"{value:.0%}" for value in early),
        "latency profile says": ", ".join(f"{value:.0%}" for value in profiled),
        "farthest": f"{max(abs(a - b) for a, b in zip(early, profiled, strict=True)):.1%}",
    }


def convention() -> list[str]:
    """Which input gives the workload that the paper's table prints."""
    lines = ["| model | input | ours, GMACs | paper | difference |", "|---|---|---|---|---|"]
    for name, theirs in PAPER.items():
        for side in (480, 512, 520):
            net = model_from_spec(name, num_classes=21)
            ours = mess.profile(net, torch.zeros(1, 3, side, side)).total / 1e9
            lines.append(f"| {name} | {side} x {side} | {ours:.2f} | {theirs} | {ours / theirs - 1:+.2%} |")
    return lines


def record(rows: list[dict[str, str]], arguments: argparse.Namespace) -> list[str]:
    columns = list(rows[0])
    height, width = arguments.size
    return [
        "# Models that users bring",
        "",
        "```text",
        f"python benches/python/models.py --rounds {arguments.rounds} --size {height} {width} --record",
        "```",
        "",
        *(
            f"- {key}: {value}"
            for key, value in facts(
                "torch", "torchvision", "transformers", "segmentation_models_pytorch", "timm", "fvcore"
            ).items()
        ),
        "- one thread, batch 1, random weights, eval mode; ratios are medians over rounds of (staged, staged) against "
        "(plain, plain) run around them",
        f"- workload and clock at {height} x {width}, for models that take square sizes only at that of the test",
        "- staged: the back end that is chosen; suspended: the eager one, which adds a fraction of a millisecond a run",
        "- asked 5 points before the final exit; the share is of the MACs",
        "- bit for bit: runs equal to the model's own, of two sizes (one where it takes one) times two batch sizes",
        "- fvcore, same operations: its count of convolutions and matrix products, against ours; it traces only what "
        "the logits depend on, so auxiliary heads are missing there (fcn and deeplabv3 + aux, BiSeNet-like, UPerNet of "
        "transformers), and it does not know scaled_dot_product_attention",
        "- clock at exits: a staged run that stops there, without the auxiliary heads that the plain model runs; "
        "latency profile: `mess.profile(cost='latency')`, shares of its total; farthest: their largest difference",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(row.values()) + " |" for row in rows),
        "",
        "## The paper's convention",
        "",
        "21 classes; the paper prints GFLOPs, which are multiply-accumulates:",
        "",
        *convention(),
    ]


if __name__ == "__main__":
    main()
