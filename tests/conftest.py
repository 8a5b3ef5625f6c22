"""Hypothesis profiles, and where the real data is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

for name, examples in (("quick", 25), ("ci", 150), ("slow", 2000)):
    settings.register_profile(
        name,
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=name != "slow",
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The developers' data pack: `MESS_DATA`, or `../shared/data` when it is there."""
    named = os.environ.get("MESS_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "camvid").is_dir():
        pytest.skip(f"needs real images: no camvid/ in {folder} (set MESS_DATA to a folder that has it)")
    return folder
