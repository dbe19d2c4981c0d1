"""Fusion weights of UDML, and the distances of logits behind the dependency."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPSILON = 1e-8


def fusion_weights(log_cost: Tensor, observed: Tensor) -> Tensor:
    """n_b exp(-c_m) / sum_j exp(-c_j) over the n_b modalities that a row has; 0 for the others.

    Args:
        log_cost: (B, M), log(rho_m alpha_m).
        observed: (B, M) bool.
    """
    cost = torch.where(observed, log_cost, torch.inf)
    # The lowest cost is taken off, so that no exponential overflows.
    excess = torch.where(observed, log_cost - cost.amin(1, keepdim=True).detach(), 0)
    inverse = torch.where(observed, (-excess).exp(), 0)
    number = observed.sum(1, keepdim=True)
    return number * inverse / inverse.sum(1, keepdim=True).clamp(min=EPSILON)


def logit_distances(head: nn.Module, features: Tensor, removal: bool) -> Tensor:
    """(B, M, D) complete features -> (B, M): sum over the classes of |logits - logits without m|, or of |logits of m
    alone| where ``removal`` is false."""
    b, m = features.shape[:2]
    alone = torch.eye(m, dtype=torch.bool, device=features.device)
    if not removal:
        return torch.stack([head(features, only.expand(b, m)).abs().sum(1) for only in alone], dim=1)
    logits = head(features, torch.ones_like(alone[:1]).expand(b, m))
    return torch.stack([(logits - head(features, (~only).expand(b, m))).abs().sum(1) for only in alone], dim=1)
