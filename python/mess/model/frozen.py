"""Heads as they run when deployed: in eval mode, whatever mode the network's own modules are in."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from mess.model.adapter import evaluating
from mess.model.graph import GraphStages, split_graph


class FrozenHead(nn.Module):
    """A head as a single graph stage: feature -> logits."""

    def __init__(self, graph: GraphStages) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, feature: Tensor) -> Tensor:
        return self.graph.run_stage(0, self.graph.start(feature))[0]


class EagerHead(nn.Module):
    """A head that cannot be exported, in eval mode while it runs."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, feature: Tensor) -> Tensor:
        with evaluating(self.head):
            logits: Tensor = self.head(feature)
            return logits

    def train(self, mode: bool = True) -> Self:
        return self


def frozen_head(head: nn.Module, feature: Tensor, *, size_step: int | None) -> nn.Module:
    """In eval mode whatever mode the network's own modules are put in later; weights are shared."""
    try:
        return FrozenHead(split_graph(head, [], feature, size_step=size_step).up_to(1))
    except RuntimeError:
        return EagerHead(head)
