"""A small trained run, made once: drawn scenes, a small network, a few epochs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mess import runs, verbs
from mess.training.settings import TrainSettings

SETTINGS = runs.RunSettings(
    model="small_resnet_fcn", data="scenes:24", size=(48, 64), num_exits=4, heads="tiny", batch_size=4
)
FIRST = TrainSettings(epochs=8, learning_rate=3e-3, loss_stride=2)
SECOND = TrainSettings(epochs=6, learning_rate=3e-3, loss_stride=2)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    verbs.train_run(folder, SETTINGS, FIRST, SECOND)
    verbs.calibrate_run(folder, split="val", latency_rounds=2)
    return folder


@pytest.fixture(scope="session")
def network(run_folder):
    return runs.trained_network(run_folder)


@pytest.fixture(scope="session")
def table(run_folder):
    from mess import CalibrationTable

    return CalibrationTable.load(run_folder / "table-val.safetensors")


@pytest.fixture(scope="session")
def val_images() -> tuple[torch.Tensor, torch.Tensor]:
    """All validation images and labels of the run, as one batch."""
    batches = list(runs.loader(SETTINGS, split="val"))
    return torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
