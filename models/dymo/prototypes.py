"""Class prototypes during training and the loss that pulls features to them (docs/reference/dymo.md §2)."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import UserError

log = logging.getLogger(__name__)
COSINE, EUCLIDEAN = "cosine_similarity", "squared_euclidean"
DISTANCE_METRICS = (COSINE, EUCLIDEAN)


def prototype_logits(features: Tensor, prototypes: Tensor, metric: str, temperature: float = 0.1) -> Tensor:
    """Scaled similarity of features to class prototypes.

    Args:
        features: (..., D); unit norm for the cosine metric. Prototypes (C, D) are means of those, not re-normalised.

    Returns:
        (..., C): <z, c> / t for cosine, -|z - c|^2 / t for squared Euclidean.
    """
    if metric == COSINE:
        return features @ prototypes.T / temperature
    # Differences first: |z|^2 - 2<z, c> + |c|^2 loses the digits that tell close prototypes apart.
    rows = features.reshape(-1, features.shape[-1])
    distance = torch.cdist(rows, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
    return -distance.square().unflatten(0, features.shape[:-1]) / temperature


def prototype_loss(features: Tensor, target: Tensor, prototypes: Tensor, metric: str, temperature: float) -> Tensor:
    """Mean of -log softmax over prototypes of the target class. ``features`` (K, B, D), ``target`` (B,)."""
    with torch.autocast(features.device.type, enabled=False):
        logits = prototype_logits(features, prototypes, metric, temperature)
    return F.cross_entropy(logits.flatten(0, 1), target.repeat(len(features)))


class RunningPrototypes:
    """Per-class sums of features over an epoch (float64, on the features' device)."""

    def __init__(self, num_classes: int, width: int, device: torch.device) -> None:
        self.sum = torch.zeros(num_classes, width, dtype=torch.float64, device=device)
        self.count = torch.zeros(num_classes, dtype=torch.float64, device=device)

    def update(self, features: Tensor, target: Tensor) -> None:
        """``features`` (K, B, D) of one batch seen under K subsets, ``target`` (B,)."""
        features = features.detach()
        self.sum.index_add_(0, target, features.sum(0, dtype=torch.float64))
        self.count.index_add_(0, target, torch.full_like(target, len(features), dtype=torch.float64))

    def mean(self, reduce: Callable[[Tensor], Tensor], previous: Tensor | None = None) -> Tensor:
        """Class means, (C, D) float32.

        Args:
            reduce: sums a tensor over all processes.
            previous: prototypes (C, D) that classes without samples keep; None = such classes are an error.

        Raises:
            UserError: a class was not seen.
        """
        total, count = reduce(self.sum), reduce(self.count)
        unseen = (count == 0).nonzero()[:, 0].tolist()
        if unseen and previous is not None:
            log.warning("no sample of class %s in a limited epoch: its prototype stays as it was", unseen)
            return torch.where(count[:, None] > 0, total / count[:, None], previous).float()
        if unseen:
            raise UserError(
                f"class {unseen[0]} was not seen in a complete training epoch, so it has no "
                "prototype: check the training split or switch drop_last off"
            )
        return (total / count[:, None]).float()
