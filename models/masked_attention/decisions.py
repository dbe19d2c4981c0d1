"""Baselines of the masked-attention model on trained models (docs/reference/masked-attention.md §3.11): late fusion and
model selection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import IncompleteClassifier, Prediction
from models.baselines.logit_average import LogitAverage
from models.rows import take_rows

RULES = ("mean", "max", "min", "majority")


class LateFusion(LogitAverage):
    """The probabilities of unimodal classifiers, over the modalities that are there. Logits are their logarithms
    (several labels: log-odds), so that the softmax makes the maxima and minima sum to one.

    Args:
        encoders, prerequisites: see :class:`models.baselines.logit_average.LogitAverage`.
        rule: ``mean``, ``max``, ``min``, or ``majority``: of n votes, (votes + mean) / (n + 1), so that the mean
            decides between equals.
        others: see :class:`models.baselines.base.Baseline`; ``reference`` changes nothing.
    """

    encoder_view = "tokens"

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        prerequisites: Mapping[str, IncompleteClassifier],
        rule: str = "mean",
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, encoders, prerequisites=prerequisites, **others)
        if rule not in RULES:
            raise ValueError(f"rule={rule}: must be one of {', '.join(RULES)}")
        self.rule = rule

    def combine(self, logits: Tensor, there: Tensor) -> Tensor:
        several = self.task == "multilabel"
        # In float32 confident probabilities round to 1, and their order is lost.
        each = logits.double().sigmoid() if several else logits.double().softmax(-1)
        joint = pool_probabilities(each, there, self.rule, several)
        tiny = torch.finfo(joint.dtype).tiny
        if several:
            return (joint.clamp(min=tiny).log() - (1 - joint).clamp(min=tiny).log()).float()
        return joint.clamp(min=tiny).log().float()


def pool_probabilities(each: Tensor, there: Tensor, rule: str, several: bool = False) -> Tensor:
    """
    Args:
        each: (B, M, C) probabilities.
        there: (B, M) bool, those that count.
        rule: see :class:`LateFusion`.
        several: labels do not exclude one another: each is voted on.

    Returns:
        (B, C).
    """
    counts, n = there[..., None], there.sum(1, keepdim=True).clamp(min=1)
    if rule == "max":
        return torch.where(counts, each, 0).amax(1)
    if rule == "min":
        return torch.where(counts, each, 1).amin(1)
    mean = torch.where(counts, each, 0).sum(1) / n
    if rule == "mean":
        return mean
    votes = each > 0.5 if several else torch.zeros_like(each).scatter(-1, each.argmax(-1, keepdim=True), 1).bool()
    return ((votes & counts).sum(1) + mean) / (n + 1)


class ModelSelection(LateFusion):
    """A multimodal model, trained on complete rows, for rows that have every modality; else the unimodal classifier of
    the one that is there (ours, of more than two modalities: late fusion of those that are there).

    Args:
        encoders, others: see :class:`LateFusion`.
        prerequisites: ``unimodal_<modality>`` of each, and ``joint``.
    """

    def forward(self, batch: Batch) -> Prediction:
        late = super().forward(batch)
        whole = ~self.absent(batch).any(1)
        if not whole.any():
            return late
        logits = late.logits.clone()
        logits[whole] = self.experts["joint"](take_rows(batch, whole)).logits.to(logits.dtype)
        return Prediction(logits, extras=late.extras)
