"""Is the saving real? A deployed network that stops at each exit, against the plain model, by who runs it.

Both are timed from a picture of the network's size to its label map, batch 1, interleaved; numbers are medians over
rounds, as shares of the plain model in the same runtime. `mess.Runtime` runs the exported folder, torch the deployed
network; weights are random. Every exit before the one that stops has run its head and its decision and refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

import mess
import mess_core
from mess.calibration.collect import mac_costs
from mess.confidence import label_map
from mess.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from mess.data.transforms import image_tensor
from mess.deployment.configuration import ChosenExit, Configuration
from mess.exit_names import FINAL_EXIT
from mess.model.adapter import LogitsModel
from mess.model.graph import GraphStages
from mess.model.network import MultiExitNetwork
from mess.model.onnx_file import exporting
from mess.model.zoo import model_from_spec
from mess.runtime.backends import BackendName, load

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from benches.machine import facts  # noqa: E402

MODELS = (
    "mobilenet_v2_fcn:8",
    "torchvision:fcn_resnet50",
    "torchvision:deeplabv3_resnet50",
    "hf:segformer",
    "smp:Unet/mobilenet_v2",
)
HEAD = "fcn-r8-b0"
PIXEL_THRESHOLD = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 320), metavar=("H", "W"))
    ways = ("torch", "torch.compile", "onnxruntime", "openvino")
    parser.add_argument("--backends", nargs="+", default=("torch", "onnxruntime"), choices=ways)
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--record", action="store_true", help="write benches/record/deployment.md")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    out = [
        "# Stopping at each exit, against the plain model",
        "",
        "```text",
        f"python benches/python/deployment.py {' '.join(sys.argv[1:])}",
        "```",
        "",
        *(f"- {key}: {value}" for key, value in facts("torch", "onnxruntime", "openvino").items()),
        f"- {arguments.size[0]} x {arguments.size[1]}, batch 1, head {HEAD} at every exit, {arguments.rounds} rounds",
        "- share of the plain model: all work up to an exit, its own and the earlier heads and decisions included",
        "- predicted: by a sum of the parts (stages, heads, decisions, label map), each timed alone in the same rounds",
        "",
        "| model | run by | threads | plain, ms | MACs at the exits | time at the exits | predicted | "
        "all stages, no head | all heads, none taken | two heads, none taken | decisions, of plain |",
        "|---" * 11 + "|",
    ]
    met: dict[str, list[tuple[str, bool]]] = {}  # (run by, whether it is met) of every row or exit, by goal
    for model in arguments.models:
        network = converted(model, tuple(arguments.size))
        for backend in arguments.backends:
            for threads in arguments.threads:
                line, goals = row(model, network, backend, threads, arguments.rounds)
                out.append(line)
                for goal, values in goals.items():
                    met.setdefault(goal, []).extend((backend, value) for value in values)
                print(line, flush=True)
    out += ["", f"| met by | {' | '.join(arguments.backends)} | all |", "|---" * (len(arguments.backends) + 2) + "|"]
    for goal, found in met.items():
        groups = [[value for by, value in found if by == backend] for backend in arguments.backends]
        counts = [f"{sum(group)} of {len(group)}" for group in (*groups, [value for _, value in found])]
        out.append(f"| {goal} | {' | '.join(counts)} |")
    if arguments.record:
        (ROOT / "benches" / "record" / "deployment.md").write_text("\n".join(out) + "\n")
    print("\n".join(out))


def converted(model: str, size: tuple[int, int]) -> MultiExitNetwork:
    torch.manual_seed(0)
    return mess.convert(model_from_spec(model, num_classes=21), torch.zeros(1, 3, *size), heads=[HEAD]).eval()


def row(
    model: str, network: MultiExitNetwork, backend: str, threads: int, rounds: int
) -> tuple[str, dict[str, list[bool]]]:
    """A line of the table, and which goals are met: of the row, or of each of its exits."""
    torch.set_num_threads(threads)
    size = network.workload.input_size
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    configuration = Configuration(
        setting="input-dependent",
        model=tuple(point.name for point in network.points),
        exits=(
            *(ChosenExit(exit=e.name, pixel_threshold=PIXEL_THRESHOLD, image_threshold=1.0) for e in network.exits),
            ChosenExit(exit=FINAL_EXIT),
        ),
    )
    deployed = mess.deploy(network, configuration)
    two = mess.deploy(network, with_exits(configuration, (0, max(0, len(network.exits) - 2), len(network.exits))))
    with tempfile.TemporaryDirectory() as folder:
        ways = (
            torch_ways(network, deployed, two, picture, compiled=backend == "torch.compile")
            if backend.startswith("torch")
            else runtime_ways(network, deployed, two, picture, Path(folder), backend, threads)  # type: ignore[arg-type]
        )
        times = interleaved(ways, rounds)
    count = len(network.points)
    plain = times["plain"]
    macs = mac_costs(network, size)
    heads = np.cumsum(macs["head"][:-1])
    shares = [(macs["backbone"][i] + heads[i]) / macs["backbone"][-1] for i in range(count)]
    stages = np.cumsum([times[f"stage {i}"] for i in range(count + 1)])
    refused = np.cumsum([times[f"head {i}"] + times[f"decision {i}"] for i in range(count)])
    predicted = [stages[i] + refused[i] + times["around"] for i in range(count)]
    decisions = [times[f"decision {i}"] / plain for i in range(count)]
    saved = [1 - times[f"exit {i}"] / plain for i in range(count)]
    staged = (stages[-1] + times["around"]) / plain
    worth = [(i, 1 - predicted[i] / plain) for i in range(count) if predicted[i] < plain]
    goals = {
        "exits: 95 % of the saving that is predicted, where one is": [saved[i] >= 0.95 * part for i, part in worth],
        "exits: 90 % of the saving in MACs, where there is one": [
            saved[i] >= 0.9 * (1 - shares[i]) for i in range(count) if shares[i] < 1
        ],
        "exits: the decision 1 % of plain or less": [share <= 0.01 for share in decisions],
        "rows: all decisions together 1 % or less": [sum(decisions) <= 0.01],
        "rows: all stages, no head, 1.01 or less": [staged <= 1.01],
        "rows: all heads, none taken, 1.10 or less": [times["none"] / plain <= 1.1],
        "rows: two heads, none taken, 1.10 or less": [times["two"] / plain <= 1.1],
    }
    cells = (
        model,
        backend,
        str(threads),
        f"{plain:.1f}",
        " ".join(f"{share:.2f}" for share in shares),
        " ".join(f"{times[f'exit {i}'] / plain:.2f}" for i in range(count)),
        " ".join(f"{p / plain:.2f}" for p in predicted),
        f"{staged:.3f}",
        f"{times['none'] / plain:.3f}",
        f"{times['two'] / plain:.3f}",
        f"{sum(decisions) / count:.1%} each",
    )
    return f"| {' | '.join(cells)} |", goals


Ways = dict[str, Callable[[], object]]
"""What is timed, by name: `plain`, `exit i`, `none` (no exit taken), `two` (exits only at the first and
the last but one point, none taken), and the parts: `stage i`, `head i`, `decision i`,
`around` (from the picture to the tensor, and from logits to the label map)."""


def torch_ways(
    network: MultiExitNetwork,
    deployed: mess.DeployedNetwork,
    two: mess.DeployedNetwork,
    picture: np.ndarray,
    *,
    compiled: bool,
) -> Ways:
    size = network.workload.input_size
    count = len(network.points)
    plain: torch.nn.Module = network
    if compiled:  # each stage and head on its own; the plain model whole
        torch._dynamo.reset()
        plain = torch.compile(LogitsModel(network.net, network.pick_logits).eval())
        for part in (n for d in (deployed, two) for n in (d.stages, *(head.graph for head in d.heads[:-1]))):
            assert isinstance(part, GraphStages)
            part.stages = torch.nn.ModuleList(torch.compile(stage) for stage in part.stages)

    def stopping(position: int) -> Callable[[], object]:
        other = copy(deployed)
        other.configuration = stops_at(deployed.configuration, position)
        return lambda: other(image_tensor(picture)).labels

    images = image_tensor(picture)
    states, outputs = [deployed.stages.start(images)], []
    for i in range(count + 1):
        output, state = deployed.stages.run_stage(i, states[-1])
        outputs.append(output)
        states.append(state)
    logits = [deployed.heads[i](outputs[i]) for i in range(count + 1)]
    ways: Ways = {
        "plain": lambda: label_map(plain(image_tensor(picture))[0], size=size),
        "none": stopping(count),
        "two": lambda: two(image_tensor(picture)).labels,
        "around": lambda: (image_tensor(picture), label_map(logits[-1][0], size=size)),
    }
    for i in range(count):
        ways[f"exit {i}"] = stopping(i)
        ways[f"head {i}"] = lambda i=i: deployed.heads[i](outputs[i])
        ways[f"decision {i}"] = decision(logits[i].numpy(), size, network.points[i].output_stride)
    for i in range(count + 1):
        ways[f"stage {i}"] = lambda i=i: deployed.stages.run_stage(i, states[i])
    return ways


def runtime_ways(
    network: MultiExitNetwork,
    deployed: mess.DeployedNetwork,
    two: mess.DeployedNetwork,
    picture: np.ndarray,
    folder: Path,
    backend: BackendName,
    threads: int,
) -> Ways:
    size = network.workload.input_size
    count = len(network.points)
    names = [f"class {i}" for i in range(network.num_classes)]
    mess.export(deployed, folder / "net", class_names=names)
    mess.export(two, folder / "two", class_names=names)
    with exporting():
        torch.onnx.export(
            LogitsModel(network.net, network.pick_logits).eval(),
            (torch.rand(1, 3, *size),),
            str(folder / "plain.onnx"),
            dynamo=True,
            external_data=False,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
    whole = load(backend, folder / "plain.onnx", ["images"], ["logits"], threads)

    def pixels() -> np.ndarray:
        return mess_core.network_input(picture, mean=IMAGENET_MEAN, std=IMAGENET_STD, size=size)[None]

    workspace = mess_core.Workspace()

    def labels(logits: np.ndarray) -> np.ndarray:  # as the runtime makes them
        wanted = None if logits.shape[-2:] == size else size
        return mess_core.label_map(logits[0], size=wanted, workspace=workspace, threads=runtime._threads_for(logits))

    def stopping(position: int) -> Callable[[], object]:
        runtime = mess.Runtime(folder / "net", backend=backend, threads=threads)
        exits = [
            replace(e, image_threshold=None if e.image_threshold is None else (0.0 if i == position else 1.0))
            for i, e in enumerate(runtime.manifest.exits)
        ]
        runtime.manifest = replace(runtime.manifest, exits=tuple(exits))
        return lambda: runtime.predict(picture)

    runtime = mess.Runtime(folder / "net", backend=backend, threads=threads)
    with_two = mess.Runtime(folder / "two", backend=backend, threads=threads)
    states, features = [{"images": pixels()}], []
    for i, entry in enumerate(runtime.manifest.exits):
        known = states[-1] | runtime._stages[i].run({n: states[-1][n] for n in entry.inputs}, batch=1)
        features.append(known[entry.feature])
        states.append({name: known[name] for name, _ in entry.carried})
    logits = [
        head.run({"feature": feature}, batch=1)["logits"] if head is not None else feature
        for head, feature in zip(runtime._heads, features, strict=True)
    ]
    ways: Ways = {
        "plain": lambda: labels(whole.run({"images": pixels()}, batch=1)["logits"]),
        "none": stopping(count),
        "two": lambda: with_two.predict(picture),
        "around": lambda: (pixels(), labels(logits[-1])),
    }
    for i in range(count):
        ways[f"exit {i}"] = stopping(i)
        ways[f"head {i}"] = lambda i=i: runtime._heads[i].run({"feature": features[i]}, batch=1)
        ways[f"decision {i}"] = lambda i=i: runtime._confidence(runtime.manifest.exits[i], logits[i])
    for i, entry in enumerate(runtime.manifest.exits):
        ways[f"stage {i}"] = lambda i=i, e=entry: runtime._stages[i].run({n: states[i][n] for n in e.inputs}, batch=1)
    return ways


def decision(logits: np.ndarray, size: tuple[int, int], stride: int) -> Callable[[], object]:
    return lambda: mess_core.image_confidence(
        logits,
        pixel_threshold=PIXEL_THRESHOLD,
        output_stride=stride,
        size=None if logits.shape[-2:] == size else size,
    )


def with_exits(configuration: Configuration, positions: tuple[int, ...]) -> Configuration:
    return replace(configuration, exits=tuple(configuration.exits[i] for i in dict.fromkeys(positions)))


def stops_at(configuration: Configuration, position: int) -> Configuration:
    exits = [
        replace(e, image_threshold=0.0 if i == position else e.image_threshold)
        for i, e in enumerate(configuration.exits[:-1])
    ]
    return replace(configuration, exits=(*exits, configuration.exits[-1]))


@torch.inference_mode()
def interleaved(ways: Ways, rounds: int) -> dict[str, float]:
    """Median milliseconds of each; every round runs all, the first two warm up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 2):
        for name, call in ways.items():
            start = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: median(values[2:]) for name, values in times.items()}


if __name__ == "__main__":
    with torch.inference_mode(False), torch.no_grad():
        main()
