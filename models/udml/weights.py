"""Fusion weights of UDML, and the logit distances that measure the dependency."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EPSILON = 1e-8


def fusion_weights(log_cost: Tensor, observed: Tensor) -> Tensor:
    """n_b exp(-c_m) / sum_j exp(-c_j) over the n_b observed modalities of a row; 0 for the others.

    Args:
        log_cost: (B, M), log(rho_m alpha_m).
        observed: (B, M) bool.
    """
    cost = torch.where(observed, log_cost, torch.inf)
    # Subtract the minimum so that no exponential overflows.
    excess = torch.where(observed, log_cost - cost.amin(1, keepdim=True).detach(), 0)
    inverse = torch.where(observed, (-excess).exp(), 0)
    number = observed.sum(1, keepdim=True)
    return number * inverse / inverse.sum(1, keepdim=True).clamp(min=EPSILON)


def logit_distances(head: nn.Module, features: Tensor, removal: bool) -> Tensor:
    """Complete features (B, M, D) -> (B, M): L1 norm of logits - logits without m (``removal``), or of the logits of
    m alone."""
    b, m = features.shape[:2]
    single = torch.eye(m, dtype=torch.bool, device=features.device)
    if not removal:
        return torch.stack([head(features, only.expand(b, m)).abs().sum(1) for only in single], dim=1)
    logits = head(features, torch.ones_like(single[:1]).expand(b, m))
    return torch.stack([(logits - head(features, (~only).expand(b, m))).abs().sum(1) for only in single], dim=1)
