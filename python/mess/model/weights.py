"""Weights in safetensors files: read whole or refused, and compared by name and shape before anything is changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mess.files import read_safetensors

PICKLED = (".pth", ".pt", ".ckpt", ".bin", ".tar")
"""What files of torch.save are called; they are never opened here."""


def load_weights(net: nn.Module, path: str | Path, *, prefix: str = "", ignored: str | None = None) -> None:
    """Load a safetensors file into the part of `net` under `prefix`; names must match, but for the `ignored` prefix.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a complete safetensors file; names or shapes that do not fit, listed.
    """
    try:
        given, _ = read_safetensors(Path(path), "weights", framework="pt")
    except ValueError as error:
        if Path(path).suffix not in PICKLED:
            raise
        raise ValueError(
            f"{error}; to convert a state_dict of PyTorch: safetensors.torch.save_file(torch.load({str(path)!r}, "
            "weights_only=True), 'weights.safetensors')"
        ) from None
    given = {name: value for name, value in given.items() if ignored is None or not name.startswith(ignored)}
    own = {name: value for name, value in net.state_dict().items() if name.startswith(prefix)}
    check_fits("weights", path, own, given)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(given[name])


def check_fits(what: str, path: str | Path, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """ValueError listing names and shapes in `given` that differ from `own`; `what` names the argument."""
    wrong = [f"missing {name}" for name in own if name not in given]
    wrong += [f"unexpected {name}" for name in given if name not in own]
    wrong += [
        f"{name}: expected shape {tuple(value.shape)}, got {tuple(given[name].shape)}"
        for name, value in own.items()
        if name in given and given[name].shape != value.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(f"{what}: {path} does not fit the network: {'; '.join(wrong[:5])}{more}")


def state_sha256(net: nn.Module) -> str:
    """SHA-256 of all parameters and buffers by name, as hexadecimal digits."""
    digest = hashlib.sha256()
    state: dict[str, object] = net.state_dict()
    for name, value in sorted(state.items()):
        if not isinstance(value, Tensor):
            raise TypeError(
                f"net: expected tensors alone in its state_dict, got {name!r} of type {type(value).__name__} "
                "(get_extra_state)"
            )
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def untied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses two names for one storage; a model with tied weights gets a copy for each name."""
    seen: set[int] = set()
    untied = {}
    for name, value in tensors.items():
        pointer = value.untyped_storage().data_ptr()
        untied[name] = value.clone() if pointer in seen and value.numel() else value
        seen.add(pointer)
    return untied
