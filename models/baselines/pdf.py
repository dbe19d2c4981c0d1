"""PDF: Predictive Dynamic Fusion (Cao et al., ICML 2024, arXiv 2406.04802).

A small network predicts the probability of the true class by each modality, its mono-confidence c_m. Its
holo-confidence is h_m = sum_{j != m} log c_j / sum_j log c_j. The softmax of their sum weights the logits of the
modalities. In evaluation, the sum is multiplied by the relative calibration RC_m = min(1, (M - 1) D_m / sum_{j != m}
D_j) with D_m = mean_c |p_m(c) - 1 / C| (docs/reference/baselines.md §2.13; as in the paper for two modalities).

    L = CE(F, y) + sum_m CE(f_m, y) + sum_m |c_m - p_m(y)|

The networks are trained only by the last term, on detached vectors, and their only non-linearity is the final one, as
in the original.

All sums over modalities are restricted to observed ones. With ``reference=true``, missing modalities vote with a vector
of 1.0, as in the original without an imputer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import Prediction
from models.baselines.decisions import DecisionFusion, mean_where, row_losses


class PDF(DecisionFusion):
    """Fusion weighted by predicted confidence.

    Args:
        encoders: see :meth:`models.baselines.base.VectorBaseline.add_encoders`.
        others: see :class:`models.baselines.base.Baseline`.
    """

    def __init__(
        self, modalities: Sequence[Modality], num_classes: int, encoders: Mapping[str, nn.Module], **others: Any
    ) -> None:
        super().__init__(modalities, num_classes, encoders, **others)
        d = self.vector_width
        self.confidences = nn.ModuleList(
            nn.Sequential(nn.Linear(d, 2 * d), nn.Linear(2 * d, d), nn.Linear(d, 1)) for _ in modalities
        )

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        vectors, voters = self.vectors(encoded, batch), self.voters(batch)
        logits = self.decide(vectors)
        parts = zip(self.confidences, vectors.detach().unbind(1), strict=True)
        predicted = torch.cat([network(v) for network, v in parts], dim=1)
        belief = predicted.sigmoid() + holo_confidence(F.logsigmoid(predicted), voters)
        if not self.training:
            belief = belief * relative_calibration(logits.softmax(-1), voters)
        weights = belief.masked_fill(~voters, -torch.inf).softmax(1).detach()
        extras = {"unimodal_logits": logits, "fusion_weights": weights, "mono_confidence": predicted.sigmoid()}
        return Prediction((weights[..., None] * logits).sum(1), extras=extras)

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """Classification losses plus the errors of the predicted probabilities of the true class."""
        losses = super().loss(prediction, batch)
        logits = prediction.extras["unimodal_logits"].detach()
        errors = (prediction.extras["mono_confidence"] - (-row_losses(logits, batch.target, self.task)).exp()).abs()
        confidence = mean_where(self.voters(batch), errors).sum()
        return losses | {"loss": losses["loss"] + confidence, "confidence": confidence}


def holo_confidence(log_confidence: Tensor, voters: Tensor) -> Tensor:
    """Log c_m (B, M) -> h_m (B, M) in [0, 1], whose sum over the voters of a row is their number - 1."""
    logs = torch.where(voters, log_confidence, 0)
    total = logs.sum(1, keepdim=True)
    return (total - logs) / total.clamp(max=-1e-8)


def relative_calibration(probabilities: Tensor, voters: Tensor) -> Tensor:
    """Probabilities (B, M, C) -> RC_m (B, M) in [0, 1]; 0 for a single voter, where it has no effect."""
    distances = (probabilities - 1 / probabilities.shape[-1]).abs().mean(-1)
    distances = torch.where(voters, distances, 0)
    others = distances.sum(1, keepdim=True) - distances
    return ((voters.sum(1, keepdim=True) - 1) * distances / (others + 1e-8)).clamp(max=1)
