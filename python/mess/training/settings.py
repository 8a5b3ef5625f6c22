"""How a stage is trained."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Literal, get_args

from mess.training.losses import LossKind
from mess.training.schedule import SCHEDULES, Schedule

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSettings:
    """How one stage is trained.

    Attributes:
        epochs: passes over the data.
        learning_rate: peak rate of AdamW; decays to 0 as (1 - step / steps)^0.9. Not scaled by the number of processes.
        weight_decay: AdamW's.
        accumulate: batches whose gradients make one step; the step equals that of one batch with all their images, but
            for batch-norm statistics, which see one batch at a time.
        schedule: stage 1 only, see `mess.training.schedule`.
        loss, alpha, temperature: stage 2 only, see `mess.training.losses`.
        loss_stride: logits and labels are compared on a grid this many pixels apart; 1 is every pixel.
        precision: `float32`, or `bfloat16` or `float16` (CUDA only, with loss scaling) by autocast for the backbone and
            the heads of stage 1 (losses, and the heads of stage 2, stay float32). The loss scale of float16 is not in
            checkpoints: a run that goes on begins with torch's first one.
        sync_batch_norm: with several processes, batch-norm layers in training take their statistics over all of them.
        seed: of everything random in the stage.
    """

    epochs: int = 30
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    accumulate: int = 1
    schedule: Schedule = "round_robin"
    loss: LossKind = "pfd"
    alpha: float = 0.5
    temperature: float = 1.0
    loss_stride: int = 1
    precision: Precision = "float32"
    sync_batch_norm: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "loss_stride", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise TypeError(f"{name}: expected an integer, got {type(value).__name__} {value!r}")
            object.__setattr__(self, name, operator.index(value))  # of NumPy, say
        if self.epochs < 0:
            raise ValueError(f"epochs: expected at least 0, got {self.epochs}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: expected > 0, got {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay: expected 0 or more, got {self.weight_decay}")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha: expected a number in [0, 1], got {self.alpha}")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature: expected > 0, got {self.temperature}")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed: expected an integer in 0..2^63, got {self.seed}")
        for name, count in (("accumulate", self.accumulate), ("loss_stride", self.loss_stride)):
            if count < 1:
                raise ValueError(f"{name}: expected at least 1, got {count}")
        for name, value, known in (
            ("schedule", self.schedule, SCHEDULES),
            ("loss", self.loss, get_args(LossKind)),
            ("precision", self.precision, get_args(Precision)),
        ):
            if value not in known:
                raise ValueError(f"{name}: expected one of {known}, got {value!r}")
