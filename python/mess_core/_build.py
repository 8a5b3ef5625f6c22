"""What was built, and what it uses here."""

from __future__ import annotations

import platform
from typing import TypedDict

import numpy as np

from mess_core import _mess_core as native


class BuildInfo(TypedDict):
    """See `build_info`."""

    version: str
    commit: str | None
    target: str
    profile: str
    instruction_set: str
    instruction_sets: list[str]
    threads: int
    python: str
    numpy: str


def build_info() -> BuildInfo:
    """What to put into a bug report, or beside a measurement.

    Returns
    -------
    dict
        `version`; `commit` it was built from, None where the builder did not say (MESS_COMMIT); `target`, such as
        "x86_64-linux"; `profile`, "release" or "debug" (slow); `instruction_set` in use (MESS_CORE_ISA) and all
        `instruction_sets` of this machine, slowest first; `threads` of a large call that does not say
        (MESS_CORE_THREADS); `python` and `numpy`, their versions.

    Examples
    --------
    >>> sorted(build_info())[:3]
    ['commit', 'instruction_set', 'instruction_sets']
    """
    return {
        "version": native.__version__,
        "commit": native.commit,
        "target": native.target,
        "profile": "debug" if native.is_debug else "release",
        "instruction_set": native.instruction_set(),
        "instruction_sets": native.instruction_sets(),
        "threads": native.default_threads(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
