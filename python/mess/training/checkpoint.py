"""Checkpoints: one safetensors file, its JSON header included, written whole or not at all. No pickle.

Tensors are named `network.<state dict name>` and `optimizer.<parameter index>.<entry>`; the header's `mess` entry holds
`{"version": 3, "stage": ..., "epoch": epochs done, "step": steps done in the epoch after them, "settings": {...},
"losses": [{exit: mean loss} of each epoch done], "running": {exit: [sum of losses, pixels] in the unfinished epoch}}`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mess.files import check_version, differences, entries, entry, read_safetensors, write_safetensors
from mess.model.weights import check_fits, untied

VERSION = 3
_MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
"""What AdamW keeps of a parameter."""


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
    state = network.state_dict()
    others = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if others:
        raise TypeError(
            f"network: expected tensors alone in its state_dict, since checkpoints have no pickle, got {others[0]!r} "
            f"of type {type(state[others[0]]).__name__} (get_extra_state)"
        )
    tensors = {f"network.{name}": value.detach().cpu().contiguous() for name, value in state.items()}
    if optimizer is not None:
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value).detach().cpu().contiguous().clone()
    header = {"version": VERSION, **asdict(progress)}
    write_safetensors(path, untied(tensors), header)


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
    try:
        running = entry(header, "running", dict, "sums by exit")
        done = Progress(
            stage=entry(header, "stage", str, "a stage"),
            settings=entry(header, "settings", dict, "settings"),
            epoch=entry(header, "epoch", int, "epochs done"),
            step=entry(header, "step", int, "steps done"),
            losses=entries(header, "losses", dict, "losses by exit"),
            running={name: (float(total), int(count)) for name, (total, count) in running.items()},
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"checkpoint: {path}: an entry is missing or off: {error}") from None
    if expected is not None and (done.stage, done.settings) != (expected.stage, expected.settings):
        changed = differences({"stage": done.stage, **done.settings}, {"stage": expected.stage, **expected.settings})
        raise ValueError(f"checkpoint: {path} belongs to another training: {changed}; choose another folder")
    moments = None if optimizer is None else _moments(optimizer, tensors, path)
    network.load_state_dict(given)
    if optimizer is not None:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return done


def _moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], path: Path) -> dict[int, dict[str, Tensor]]:
    """The optimizer's state by parameter; ValueError unless each has all entries (of AdamW) in its shape."""
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            index, _, key = name.removeprefix("optimizer.").partition(".")
            known = index.isdecimal() and int(index) < len(parameters) and key in _MOMENTS
            shape = () if key == "step" else parameters[int(index)].shape if known else None
            if not known or value.shape != shape or not value.is_floating_point():
                raise ValueError(
                    f"checkpoint: {path}: expected {sorted(_MOMENTS)} of {len(parameters)} parameters in their shapes, "
                    f"got {name} {tuple(value.shape)} {value.dtype}"
                )
            state.setdefault(int(index), {})[key] = value
    if any(entries_of.keys() != _MOMENTS for entries_of in state.values()):
        raise ValueError(f"checkpoint: {path}: expected {sorted(_MOMENTS)} of each parameter, got fewer")
    return state
