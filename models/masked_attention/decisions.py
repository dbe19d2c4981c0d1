"""Baselines of the masked-attention model that combine trained models (docs/reference/masked-attention.md §3.11):
late fusion and model selection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from datasets.rows import take_rows
from models.base import IncompleteClassifier, Prediction
from models.baselines.logit_average import LogitAverage

RULES = ("mean", "max", "min", "majority")


class LateFusion(LogitAverage):
    """Combine the probabilities of unimodal classifiers over the observed modalities.

    The logits are logarithms of the combined probabilities (multilabel: log-odds); their softmax normalises maxima and
    minima.

    Args:
        encoders, prerequisites: see :class:`models.baselines.logit_average.LogitAverage`.
        rule: ``mean``, ``max``, ``min``, or ``majority``: (votes + mean) / (n + 1) of n votes, so that the mean breaks
            ties.
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

    def combine(self, logits: Tensor, observed: Tensor) -> Tensor:
        is_multilabel = self.task == "multilabel"
        # In float32, high probabilities would round to 1 and lose their order.
        probabilities = logits.double().sigmoid() if is_multilabel else logits.double().softmax(-1)
        joint = pool_probabilities(probabilities, observed, self.rule, is_multilabel)
        tiny = torch.finfo(joint.dtype).tiny
        if is_multilabel:
            return (joint.clamp(min=tiny).log() - (1 - joint).clamp(min=tiny).log()).float()
        return joint.clamp(min=tiny).log().float()


def pool_probabilities(probabilities: Tensor, observed: Tensor, rule: str, is_multilabel: bool = False) -> Tensor:
    """Combine probabilities over the observed modalities.

    Args:
        probabilities: (B, M, C).
        observed: (B, M) bool.
        rule: see :class:`LateFusion`.
        is_multilabel: vote on every label separately.

    Returns:
        (B, C).
    """
    counts, n = observed[..., None], observed.sum(1, keepdim=True).clamp(min=1)
    if rule == "max":
        return torch.where(counts, probabilities, 0).amax(1)
    if rule == "min":
        return torch.where(counts, probabilities, 1).amin(1)
    mean = torch.where(counts, probabilities, 0).sum(1) / n
    if rule == "mean":
        return mean
    votes = probabilities > 0.5
    if not is_multilabel:
        winners = probabilities.argmax(-1, keepdim=True)
        votes = torch.zeros_like(votes).scatter(-1, winners, True)
    return ((votes & counts).sum(1) + mean) / (n + 1)


class ModelSelection(LateFusion):
    """Classify complete rows by a multimodal model trained on complete rows, and others by the observed modality.

    Ours, for more than two modalities: late fusion of the observed ones.

    Args:
        encoders, others: see :class:`LateFusion`.
        prerequisites: ``unimodal_<modality>`` for every modality, and ``joint``.
    """

    def forward(self, batch: Batch) -> Prediction:
        late = super().forward(batch)
        is_complete = ~self.absent(batch).any(1)
        if not is_complete.any():
            return late
        logits = late.logits.clone()
        logits[is_complete] = self.experts["joint"](take_rows(batch, is_complete)).logits.to(logits.dtype)
        return Prediction(logits, extras=late.extras)

    def forward_fixed(self, batch: Batch) -> Prediction:
        late = super().forward(batch)
        joint: Any = self.experts["joint"]
        is_complete = ~self.absent(batch).any(1, keepdim=True)
        return Prediction(torch.where(is_complete, joint.forward_fixed(batch).logits, late.logits), extras=late.extras)
