"""Base classes and losses of decision-level fusion (docs/reference/baselines.md §2.12 to §2.14)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import IncompleteClassifier, Prediction, classification_loss
from models.baselines.base import VectorBaseline


class DecisionFusion(VectorBaseline):
    """A weighted sum of the logits of one linear classifier per modality. Only observed modalities vote and enter the
    loss.

    A subclass implements ``fuse``, with extras ``unimodal_logits`` (B, M, C) and ``fusion_weights`` (B, M).
    ``reference=true`` lets missing modalities vote with a vector of 1.0, as in the original, where tables with any
    missing cell are missing.

    Args:
        encoders: see :meth:`models.baselines.base.VectorBaseline.add_encoders`.
        others: see :class:`models.baselines.base.Baseline`.
    """

    reference_hides_partial_tables = True

    def __init__(
        self, modalities: Sequence[Modality], num_classes: int, encoders: Mapping[str, nn.Module], **others: Any
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        self.add_encoders(encoders)
        self.classifiers = nn.ModuleList(nn.Linear(self.vector_width, num_classes) for _ in modalities)

    def voters(self, batch: Batch) -> Tensor:
        """Modalities that vote (B, M) bool."""
        absent = self.absent(batch)
        return torch.ones_like(absent) if self.reference else ~absent

    def vectors(self, encoded: Tensor, batch: Batch) -> Tensor:
        """Inputs (B, M, D) of the classifiers."""
        return self.replace_missing(encoded, batch, float(self.reference))

    def decide(self, vectors: Tensor) -> Tensor:
        """(B, M, D) -> logits (B, M, C)."""
        return torch.stack([head(v) for head, v in zip(self.classifiers, vectors.unbind(1), strict=True)], dim=1)

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the fused logits, plus that of the unimodal logits over the rows with the modality."""
        losses = row_losses(prediction.extras["unimodal_logits"], batch.target, self.task)
        unimodal = mean_where(self.voters(batch), losses).sum()
        fused = classification_loss(prediction.logits, batch.target, self.task)
        return {"loss": fused + unimodal, "fused": fused, "unimodal": unimodal}


class OnExperts(VectorBaseline):
    """A method on trained models (prerequisites), which are frozen and stay in eval mode."""

    def add_experts(self, prerequisites: Mapping[str, IncompleteClassifier]) -> None:
        self.experts = nn.ModuleDict(dict(prerequisites)).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if hasattr(self, "experts"):
            self.experts.eval()
        return self


def row_losses(logits: Tensor, target: Tensor, task: str) -> Tensor:
    """Logits (B, M, C) -> losses (B, M), whose mean is :func:`models.base.classification_loss`."""
    m = logits.shape[1]
    if task != "multilabel":
        return F.cross_entropy(logits.transpose(1, 2), target[:, None].expand(-1, m), reduction="none")
    is_labelled = (target >= 0)[:, None]  # (B, 1, C)
    expected = target.clamp(min=0)[:, None].expand(-1, m, -1)
    losses = F.binary_cross_entropy_with_logits(logits, expected, reduction="none")
    return torch.where(is_labelled, losses, 0).sum(-1) / is_labelled.sum(-1).clamp(min=1)


def mean_where(counts: Tensor, values: Tensor) -> Tensor:
    """Means (M,) of ``values`` (B, M) over the rows that count, 0 without any."""
    return torch.where(counts, values, 0).sum(0) / counts.sum(0).clamp(min=1)
