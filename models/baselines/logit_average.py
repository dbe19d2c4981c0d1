"""LogitAverage, a control of ours: the mean of the logits of unimodal classifiers over the observed modalities.

The classifiers are trained in their own run directories (docs/reference/baselines.md §7.5); stage fit only validates
them and saves their weights together. ``reference`` has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import IncompleteClassifier, Prediction
from models.baselines.decisions import OnExperts
from models.baselines.recoveries import LateRecoveries
from models.imputers.base import Imputer


class LogitAverage(OnExperts):
    """Average of the logits of unimodal classifiers.

    Args:
        encoders: not used; the experts have their own.
        prerequisites: ``unimodal_<modality>`` for every modality.
        others: see :class:`models.baselines.base.Baseline`.
    """

    recovery_comparators = ("discard", "weighted")

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
        observed = ~self.absent(batch)
        # Saved with the predictions, without logits of hidden content.
        unimodal = torch.where(observed[..., None], encoded, 0)
        return Prediction(self.combine(encoded, observed), extras={"unimodal_logits": unimodal})

    def combine(self, logits: Tensor, observed: Tensor) -> Tensor:
        """Logits (B, M, C) of the modalities ``observed`` (B, M) bool -> (B, C)."""
        return torch.where(observed[..., None], logits, 0).sum(1) / observed.sum(1, keepdim=True).clamp(min=1)

    def complete_with(self, imputer: Imputer, comparators: Sequence[str]) -> LateRecoveries | None:
        return LateRecoveries(self, imputer, comparators) if comparators else None

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        return super().training_step(batch, batch_index).detach().requires_grad_()

    def configure_optimizers(self) -> None:
        """Without parameters to train, there is no optimiser."""
