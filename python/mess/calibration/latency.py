"""Measured cost of every candidate exit: milliseconds of one image, batch 1.

In torch on the network's device, or in the back ends that run an exported folder (`mess.runtime.backends`): where time
is spent differs between them, so the exits that are cheapest in one may not be in another.

Stages are timed as they will run when deployed, and the policy on each head's own logits with the upsampling in it.
Every number is a median over rounds, and a round times everything once, so that drift of the machine hits all alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import mess_core
from mess.calibration.table import Costs
from mess.clock import milliseconds
from mess.confidence import image_confidence
from mess.model.adapter import evaluating
from mess.model.frozen import frozen_head
from mess.model.graph import GraphStages
from mess.model.network import ExitId, MultiExitNetwork
from mess.model.onnx_file import StageFile, exporting, write_head, write_stages
from mess.policy import PolicySettings
from mess.progress import say
from mess.runtime.backends import BackendName, Session, load

PIXEL_THRESHOLD = 0.9
"""Of the decisions that are timed."""

WARM_UP = 2
"""Rounds before those that count."""


def measure_latency(
    network: MultiExitNetwork, *, input_size: tuple[int, int], policy: PolicySettings, rounds: int = 15
) -> tuple[Costs, float]:
    """Latency columns in ms, (E,) each with the final exit last, and the latency of the plain model in ms; in torch.

    Raises:
        RuntimeError: the model cannot be cut into stages.
        ValueError: rounds is below 1.
    """
    _check_rounds(rounds)
    device = next(network.parameters()).device
    images = _noise(network, input_size)
    stages = network.split(images)
    timer = _Timer(device)
    with torch.inference_mode():
        for _ in range(rounds + WARM_UP):
            for_plain, for_stages = images.clone(), images.clone()  # a model may overwrite what it gets
            timer.start()
            network(for_plain)
            timer.stop("plain")
            state = stages.start(for_stages)
            features = []
            for index in range(len(network.points) + 1):
                timer.start()
                output, state = stages.run_stage(index, state)
                timer.stop(("stage", index))
                features.append(output)
            for exit_id in network.exits:
                timer.start()
                logits = network.head(exit_id)(features[exit_id.point])
                timer.stop(("head", exit_id))
                stride = network.points[exit_id.point].output_stride
                timer.start()
                image_confidence(
                    logits, size=input_size, pixel_threshold=PIXEL_THRESHOLD, output_stride=stride, policy=policy
                )
                timer.stop(("policy", exit_id))
    return timer.costs(network)


def measure_backends(
    network: MultiExitNetwork,
    backends: Sequence[BackendName],
    *,
    input_size: tuple[int, int],
    policy: PolicySettings,
    rounds: int = 15,
    threads: int | None = None,
) -> dict[str, tuple[Costs, float]]:
    """The same in ONNX Runtime or OpenVINO, on the CPU: every stage and head, and the plain model, as `mess.export`
    would write them, in a temporary folder.

    Args:
        threads: of the back end; as many as torch has by default.

    Returns:
        Columns by name, with what the plain model costs: `onnxruntime_ms`, `openvino_ms`, and `size_mb`, the files'
        megabytes (1e6 bytes).

    Raises:
        RuntimeError: the model is no graph or cannot be exported, or what that needs is not installed.
        ValueError: rounds is below 1, no such back end, or a network that is not float32.
    """
    _check_rounds(rounds)
    missing = [name for name in backends if find_spec(name) is None]
    if missing:
        raise RuntimeError(f"backend: expected {missing[0]} to be installed; pip install {missing[0]}")
    parameter = next(network.parameters())
    if parameter.dtype != torch.float32:
        raise ValueError(f"network: expected float32 for {', '.join(backends)}, got {parameter.dtype}")
    threads = torch.get_num_threads() if threads is None else threads
    with tempfile.TemporaryDirectory(prefix="mess-") as folder, evaluating(network), _on_cpu(network):
        images = _noise(network, input_size)
        files = _Files.write(network, images, Path(folder))
        pixels = images.numpy()
        timed = {f"{name}_ms": _time_files(network, files, name, pixels, policy, rounds, threads) for name in backends}
        return {**timed, "size_mb": files.sizes(network)}


@dataclass(frozen=True, slots=True)
class _Files:
    """The plain model, the stages, and the heads with their exits."""

    plain: StageFile
    stages: list[StageFile]
    heads: list[tuple[ExitId, Path]]

    @classmethod
    def write(cls, network: MultiExitNetwork, images: Tensor, folder: Path) -> _Files:
        whole, cut = (network.split(images, points=points, backend="graph") for points in ((), network.points))
        assert isinstance(whole, GraphStages)
        assert isinstance(cut, GraphStages)
        say(f"exporting {len(network.points) + 2 + len(network.exits)} parts, to time them")
        probes = [images.repeat(2, 1, 1, 1)]  # a batch of one would be taken for a size
        with exporting():
            (folder / "plain").mkdir()
            [plain] = write_stages(whole, 1, probes, folder / "plain")
            stages = list(write_stages(cut, len(network.points) + 1, probes, folder))
            heads = []
            for number, exit_id in enumerate(network.exits):
                heads.append((exit_id, folder / f"head-{number}.onnx"))
                features = stages[exit_id.point].features
                write_head(frozen_head(network.head(exit_id), features[0], size_step=None), features, heads[-1][1])
        return cls(plain, stages, heads)

    def sizes(self, network: MultiExitNetwork) -> tuple[Costs, float]:
        """In MB; a decision has none."""

        def megabytes(path: Path) -> float:
            return path.stat().st_size / 1e6

        return _costs(
            network,
            stages=[megabytes(stage.path) for stage in self.stages],
            heads=[megabytes(path) for _, path in self.heads],
            policies=[0.0] * len(self.heads),
        ), megabytes(self.plain.path)


def _time_files(
    network: MultiExitNetwork,
    files: _Files,
    backend: BackendName,
    pixels: npt.NDArray[np.float32],
    policy: PolicySettings,
    rounds: int,
    threads: int,
) -> tuple[Costs, float]:
    def loaded(stage: StageFile) -> Session:
        return load(backend, stage.path, stage.inputs, stage.outputs, threads)

    plain, stages = loaded(files.plain), [(stage, loaded(stage)) for stage in files.stages]
    heads = [(exit_id, load(backend, path, ["feature"], ["logits"], threads)) for exit_id, path in files.heads]
    size = (pixels.shape[2], pixels.shape[3])
    workspace, timer = mess_core.Workspace(), _Timer(torch.device("cpu"))
    for _ in range(rounds + WARM_UP):
        timer.start()
        plain.run({"images": pixels}, batch=1)
        timer.stop("plain")
        state: dict[str, npt.NDArray[Any]] = {"images": pixels}
        features = []
        for index, (stage, session) in enumerate(stages):
            timer.start()
            known = state | session.run({name: state[name] for name in stage.inputs}, batch=1)
            timer.stop(("stage", index))
            features.append(known[stage.feature])
            state = {name: known[name] for name, _ in stage.carried}
        for exit_id, session in heads:
            timer.start()
            logits = session.run({"feature": features[exit_id.point]}, batch=1)["logits"]
            timer.stop(("head", exit_id))
            timer.start()
            mess_core.image_confidence(
                logits,
                pixel_threshold=PIXEL_THRESHOLD,
                output_stride=network.points[exit_id.point].output_stride,
                size=None if logits.shape[-2:] == size else size,
                workspace=workspace,
                threads=threads,
                **asdict(policy),
            )
            timer.stop(("policy", exit_id))
    return timer.costs(network)


@contextmanager
def _on_cpu(network: MultiExitNetwork) -> Iterator[None]:
    """A GPU's numbers may be further off than files are compared by."""
    device = next(network.parameters()).device
    network.cpu()
    try:
        yield
    finally:
        network.to(device)


def _check_rounds(rounds: int) -> None:
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")


def _noise(network: MultiExitNetwork, input_size: tuple[int, int]) -> Tensor:
    """One image on the network's device."""
    images = network.example(input_size)
    return images.normal_(generator=torch.Generator(device=images.device).manual_seed(0))


class _Timer:
    """Milliseconds of named stretches, one value a round."""

    def __init__(self, device: torch.device) -> None:
        self.values: dict[object, list[float]] = {}
        self._device = device
        self._began = 0.0

    def start(self) -> None:
        self._began = milliseconds(self._device)

    def stop(self, key: object) -> None:
        self.values.setdefault(key, []).append(milliseconds(self._device) - self._began)

    def costs(self, network: MultiExitNetwork) -> tuple[Costs, float]:
        """Of `stage`s, `head`s and `policy`, and `plain`: medians."""
        medians = {key: median(values[WARM_UP:]) for key, values in self.values.items()}
        stages = [medians["stage", index] for index in range(len(network.points) + 1)]
        heads, policies = ([medians[part, exit_id] for exit_id in network.exits] for part in ("head", "policy"))
        return _costs(network, stages=stages, heads=heads, policies=policies), medians["plain"]


def _costs(
    network: MultiExitNetwork, *, stages: Sequence[float], heads: Sequence[float], policies: Sequence[float]
) -> Costs:
    """A column, of what each stage, and each exit's head and decision, adds."""
    backbone = np.cumsum(stages)
    return {
        "backbone": np.array([*(backbone[exit_id.point] for exit_id in network.exits), backbone[-1]]),
        "head": np.array([*heads, 0.0]),
        "policy": np.array([*policies, 0.0]),
    }
