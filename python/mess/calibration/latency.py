"""Measured cost of every candidate exit: milliseconds of one image on the network's device, batch 1.

Stages are timed as they will run when deployed (by the same back end), and the policy on each head's own logits with
the upsampling in it. Every number is a median over rounds, and a round times everything once, so that drift of the
machine hits all alike.
"""

from __future__ import annotations

from statistics import median

import numpy as np
import torch

from mess.calibration.table import Costs
from mess.clock import milliseconds
from mess.confidence import image_confidence
from mess.model.network import MultiExitNetwork
from mess.policy import PolicySettings


def measure_latency(
    network: MultiExitNetwork, *, input_size: tuple[int, int], policy: PolicySettings, rounds: int = 15
) -> tuple[Costs, float]:
    """Latency columns in ms, (E,) each with the final exit last, and the latency of the plain model in ms.

    Raises:
        RuntimeError: the model cannot be cut into stages.
        ValueError: rounds is below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")
    device = next(network.parameters()).device
    images = network.example(input_size)
    images.normal_(generator=torch.Generator(device=device).manual_seed(0))
    stages = network.split(images)
    exits = network.exits
    timer = _Timer(device)
    with torch.inference_mode():
        for _ in range(rounds + 2):  # the first two warm up
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
            for exit_id in exits:
                timer.start()
                logits = network.head(exit_id)(features[exit_id.point])
                timer.stop(("head", exit_id))
                stride = network.points[exit_id.point].output_stride
                timer.start()
                image_confidence(logits, size=input_size, pixel_threshold=0.9, output_stride=stride, policy=policy)
                timer.stop(("policy", exit_id))
    medians = {key: median(values[2:]) for key, values in timer.values.items()}
    cumulative = np.cumsum([medians["stage", i] for i in range(len(network.points) + 1)])
    costs = {
        "backbone": np.array([*(cumulative[e.point] for e in exits), cumulative[-1]]),
        "head": np.array([*(medians["head", e] for e in exits), 0.0]),
        "policy": np.array([*(medians["policy", e] for e in exits), 0.0]),
    }
    return costs, medians["plain"]


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
