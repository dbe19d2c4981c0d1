"""LogitAverage, a control of ours: the mean of the logits of unimodal classifiers, over the modalities that are there.

Nothing is trained but its parts, each in its own run directory (docs/reference/baselines.md §7.5); stage fit measures
them in one pass and keeps their weights together. ``reference`` changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import IncompleteClassifier, Prediction
from models.baselines.decisions import OnExperts


class LogitAverage(OnExperts):
    """
    Args:
        encoders: unused, the experts have their own.
        prerequisites: ``unimodal_<modality>`` of each.
        others: see :class:`models.baselines.base.Baseline`.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        prerequisites: Mapping[str, IncompleteClassifier],
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        self.add_experts(prerequisites)

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs -> logits (B, M, C) of the unimodal classifiers."""
        experts: list[Any] = [self.experts[f"unimodal_{name}"] for name in self.modality_names]
        return torch.stack([e.classifier(e.encode(inputs, cells)[:, 0]) for e in experts], dim=1)

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        there = ~self.absent(batch)
        # Kept with the predictions: of what is hidden, nothing.
        shown = torch.where(there[..., None], encoded, 0)
        return Prediction(self.combine(encoded, there), extras={"unimodal_logits": shown})

    def combine(self, logits: Tensor, there: Tensor) -> Tensor:
        """(B, M, C) of which some count, ``there`` (B, M) bool -> (B, C)."""
        return torch.where(there[..., None], logits, 0).sum(1) / there.sum(1, keepdim=True).clamp(min=1)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        return super().training_step(batch, batch_index).detach().requires_grad_()

    def configure_optimizers(self) -> None:
        """None: there is nothing to optimise."""
