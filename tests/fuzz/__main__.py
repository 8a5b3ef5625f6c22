"""`python -m tests.fuzz TARGET [options of libFuzzer]`; `python -m tests.fuzz --list` names the targets."""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:  # there is none for this platform, and so no target
    if sys.argv[1:] == ["--list"]:
        sys.exit()
    raise

with atheris.instrument_imports(include=["mess", "mess_core", "safetensors", "json"]):
    from tests.fuzz.targets import TARGETS

ODD = (
    None,
    True,
    "",
    "x",
    "../x",
    "/etc/passwd",
    "\0",
    -1,
    0,
    1,
    2**53,
    10**400,
    1e308,
    -0.5,
    [],
    {},
    [[]],
    [0],
    {"a": 1},
)
"""What a value of a JSON file may be replaced by; Python's json writes and reads NaN and Infinity."""


def mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """Bytes as libFuzzer changes them or, every other time, the JSON in `data` with one value changed."""
    rng = random.Random(seed)
    start = data.find(b"{")
    if start in (0, 1) and rng.random() < 0.5:
        try:
            value = json.loads(data[start:])
            _change(value, rng)
        except (ValueError, RecursionError, OverflowError):
            return atheris.Mutate(data, max_size)
        changed = data[:start] + json.dumps(value).encode()
        if len(changed) <= max_size:
            return changed
    return atheris.Mutate(data, max_size)


def _change(value: Any, rng: random.Random) -> None:
    """Change, drop or double one entry somewhere in an object or list; JSON inside of strings too."""
    holder = value
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            return
        key = rng.choice(keys)
        below = holder[key]
        if isinstance(below, str) and below.startswith("{") and rng.random() < 0.9:
            inner = json.loads(below)
            _change(inner, rng)
            holder[key] = json.dumps(inner)
            return
        if not isinstance(below, dict | list) or rng.random() < 0.3:
            break
        holder = below
    how = rng.random()
    if how < 0.2:
        del holder[key]
    elif how < 0.3 and isinstance(holder, list):
        holder.append(below)
    elif how < 0.5 and isinstance(below, int | float):
        holder[key] = below * rng.choice([-1, 2, 0.5])
    else:
        holder[key] = rng.choice(ODD)


def main() -> None:
    if sys.argv[1:] == ["--list"]:
        print(*TARGETS)
        return
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"target: expected one of {' '.join(TARGETS)}, got {name!r}")
    target, seeds = TARGETS[name]
    corpus = Path(tempfile.mkdtemp(prefix=f"mess-fuzz-{name}-"))
    for index, seed in enumerate(seeds):
        (corpus / f"seed-{index}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], target, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
