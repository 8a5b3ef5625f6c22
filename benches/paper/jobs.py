"""The trainings behind the tables, one seed each. A job leaves files; called again it is skipped or continued.

plain, aware, all   stage 1 with the final exit alone, exit-aware (round robin), end to end
plain-ce, aware-ce, aware-kd, aware-pfd   stage 2 of the plain heads, newly initialised, on a frozen backbone
aware               is a run folder too: its stage 2 trains the whole grid with PFD, what `mess train` does
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

import mess
from mess import runs, verbs
from mess.files import EXITS_FILE, write_json
from mess.model.network import MultiExitNetwork
from mess.training.checkpoint import load_checkpoint
from mess.training.loop import PRETRAIN_FILE, pretrain, train_exits
from mess.training.settings import TrainSettings

GRID = (
    "fcn-r1-b0,fcn-r1-b1,fcn-r2-b0,fcn-r2-b1,fcn-r4-b0,fcn-r4-b1,fcn-r4-b2-d,fcn-r8-b0,fcn-r8-b2-d,"
    "deeplabv3-r4-b0,deeplabv3-r8-b0"
)
PLAIN = "fcn-r1-b0"
"""The head of stage 1: the first of the grid."""

SCHEDULES = {"plain": "final", "aware": "round_robin", "all": "all"}
STAGE_2 = (("plain", "ce"), ("aware", "ce"), ("aware", "kd"), ("aware", "pfd"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is trained, and for how long."""

    data: str
    weights: Path
    size: tuple[int, int]
    epochs: int
    exit_epochs: int
    learning_rate: float
    exit_learning_rate: float
    out: Path

    def folder(self, seed: int, job: str) -> Path:
        """Where a job leaves its files."""
        return self.out / f"seed{seed}" / job

    def run(self, seed: int, heads: str) -> runs.RunSettings:
        """The run that a job is."""
        settings = runs.RunSettings(
            model="mobilenet_v2_fcn:8", data=self.data, size=self.size, heads=heads, batch_size=8, seed=seed
        )
        return settings.described()

    def first(self, seed: int, job: str) -> TrainSettings:
        """Stage 1 of a job."""
        return TrainSettings(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            schedule=SCHEDULES[job],  # type: ignore[arg-type]
            loss_stride=2,
            seed=seed,
        )

    def second(self, seed: int, loss: str) -> TrainSettings:
        """Stage 2 of a job."""
        return replace(
            self.first(seed, "aware"),
            epochs=self.exit_epochs,
            learning_rate=self.exit_learning_rate,
            loss=loss,  # type: ignore[arg-type]
        )


def train_all(plan: Plan, seed: int) -> None:
    """Every training of one seed."""
    first, second = plan.first(seed, "aware"), plan.second(seed, "pfd")
    verbs.train_run(plan.folder(seed, "aware"), plan.run(seed, GRID), first, second, plan.weights)
    for job in ("plain", "all"):
        network, batches = _new(plan, seed)
        checkpoint = plan.folder(seed, job) / PRETRAIN_FILE
        pretrain(network, batches, settings=plan.first(seed, job), checkpoint=checkpoint)
    _keep_accuracies(plan, seed, "all", network)
    for backbone, loss in STAGE_2:
        job = f"{backbone}-{loss}"
        network, batches = _new(plan, seed)
        _load_backbone(plan, seed, backbone, network.net)
        checkpoint = plan.folder(seed, job) / EXITS_FILE
        train_exits(network, batches, settings=plan.second(seed, loss), checkpoint=checkpoint)
        _keep_accuracies(plan, seed, job, network)


def plain_heads(plan: Plan, seed: int, job: str) -> MultiExitNetwork:
    """The trained network of a stage 2 job, in eval mode."""
    network, _ = _new(plan, seed)
    load_checkpoint(plan.folder(seed, job) / EXITS_FILE, network)
    return network.eval()


def accuracies(plan: Plan, seed: int, job: str) -> dict[str, list[float]]:
    """Mean IoU at every exit, the final one last, by split."""
    return dict(json.loads((plan.folder(seed, job) / "accuracies.json").read_text()))


def _keep_accuracies(plan: Plan, seed: int, job: str, network: MultiExitNetwork) -> None:
    path = plan.folder(seed, job) / "accuracies.json"
    if path.is_file():
        return
    found = {}
    for split in ("val", "test"):
        table = mess.calibrate(
            network,
            runs.loader(plan.run(seed, PLAIN), split=split),
            pixel_thresholds=(0.5,),
            policy=mess.PolicySettings(refine=False),
            latency_rounds=0,
        )
        found[split] = [table.mean_iou(e) for e in range(len(table.exits))]  # plain heads: one a point, by depth
    write_json(path, found)


def _new(plan: Plan, seed: int) -> tuple[MultiExitNetwork, mess.data.SeededLoader]:
    settings = plan.run(seed, PLAIN)
    network = runs.new_network(settings, weights=plan.weights)
    return network, runs.loader(settings, split="train", train=True)


def _load_backbone(plan: Plan, seed: int, job: str, net: nn.Module) -> None:
    """The user's model alone: heads stay as they were initialised."""
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = load_file(plan.folder(seed, job) / PRETRAIN_FILE)
    prefix = "network.net."
    net.load_state_dict({name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)})
