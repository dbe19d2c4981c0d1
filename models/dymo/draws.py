"""Predictions of a backbone on several posterior draws of the missing modalities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.dymo.backbone import Backbone
from models.dymo.selection import groups_by_missing


@dataclass
class Draws:
    """Predictions on S recoveries of every row.

    Attributes:
        logits: (S, B, C), of everything observed and recovered.
        features: (S, B, D_p).
    """

    logits: Tensor
    features: Tensor


def fuse_under(backbone: Backbone, sequences: Any, missing: Tensor) -> tuple[Tensor, Tensor]:
    """Every row under its own mask.

    Args:
        sequences: B samples, from ``backbone.prepare``.
        missing: (B, M) bool, True = missing.

    Returns:
        logits (B, C), features (B, D_p).
    """
    b, m = missing.shape
    logits = torch.empty(b, backbone.num_classes, device=missing.device)
    features = torch.empty(b, backbone.feature_width, device=missing.device)
    for k, rows in groups_by_missing(missing):
        logits[rows], features[rows] = backbone.fuse_rows(sequences, rows, missing[rows], m - k)
    return logits, features
