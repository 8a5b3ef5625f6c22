"""Checkpoints: one safetensors file, its JSON header included, written whole or not at all. No pickle.

Tensors are named `network.<state dict name>` and `optimizer.<parameter index>.<entry>`; the header's `mess` entry holds
`{"version": 2, "stage": ..., "epoch": epochs done, "step": steps done in the epoch after them, "settings": {...},
"losses": [{exit: mean loss} of each epoch done], "running": {exit: [sum of losses, steps] in the unfinished epoch}}`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mess.files import check_version, differences, read_safetensors, write_whole
from mess.model.weights import check_fits

VERSION = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a stage has come; the fields are the header's."""

    stage: str
    settings: dict[str, Any]
    epoch: int = 0
    step: int = 0
    losses: tuple[dict[str, float], ...] = ()
    running: dict[str, tuple[float, int]] = field(default_factory=dict)


def save_checkpoint(
    path: Path, network: nn.Module, optimizer: torch.optim.Optimizer | None, progress: Progress
) -> None:
    """Write the state of `network` (and `optimizer`) to `path`: a kill leaves the old file or the new one, whole."""
    tensors = {f"network.{name}": value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    if optimizer is not None:
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value).detach().cpu().contiguous().clone()
    header = {"version": VERSION, **asdict(progress)}
    write_whole(path, lambda temporary: save_file(_untied(tensors), temporary, metadata={"mess": json.dumps(header)}))


def load_checkpoint(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    expected: Progress | None = None,
) -> Progress:
    """Load `path` into `network` (and `optimizer`); everything is checked before anything is changed.

    With `expected`, the checkpoint must be of its stage and settings.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated or foreign file, another version, names or shapes that do not fit the network.
    """
    tensors, found = read_safetensors(path, "checkpoint", framework="pt")
    header = check_version(found, VERSION, "checkpoint", path)
    given = {name.removeprefix("network."): v for name, v in tensors.items() if name.startswith("network.")}
    check_fits("checkpoint", path, network.state_dict(), given)
    done = Progress(
        stage=header["stage"],
        settings=header["settings"],
        epoch=header["epoch"],
        step=header["step"],
        losses=tuple(header["losses"]),
        running={name: (float(total), int(count)) for name, (total, count) in header["running"].items()},
    )
    if expected is not None and (done.stage, done.settings) != (expected.stage, expected.settings):
        changed = differences({"stage": done.stage, **done.settings}, {"stage": expected.stage, **expected.settings})
        raise ValueError(f"checkpoint: {path} belongs to another training: {changed}; choose another folder")
    network.load_state_dict(given)
    if optimizer is not None:
        _load_optimizer(optimizer, tensors)
    return done


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    whole = optimizer.state_dict()
    whole["state"] = state
    optimizer.load_state_dict(whole)


def _untied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses two names for one storage; a model with tied weights gets a copy for each name."""
    seen: set[int] = set()
    untied = {}
    for name, value in tensors.items():
        pointer = value.untyped_storage().data_ptr()
        untied[name] = value.clone() if pointer in seen and value.numel() else value
        seen.add(pointer)
    return untied
