"""Baselines of the masked-attention model without attention (docs/reference/masked-attention.md §3.11): a perceptron on
the concatenated tokens of all modalities ("Zeros"), or on their maximum or sum. As published (``fill=mixed``), missing
images are encoded as zeros, and the tokens of missing tables are zeros.

``reference``: see :class:`models.masked_attention.base.TokenFusion`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from datasets.batch import Modality
from models.base import Prediction
from models.masked_attention.base import TokenFusion

COMBINATIONS = ("concat", "max", "sum")


class TokenPerceptron(TokenFusion):
    """Perceptron on the combined tokens.

    Args:
        encoders, width: see :class:`models.masked_attention.base.TokenFusion`.
        combine: how to combine tokens (B, P, D): ``concat`` (B, P * D), or ``max`` or ``sum`` (B, D).
        hidden: units of each hidden layer.
        others: see :class:`models.masked_attention.base.TokenFusion`.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        width: int = 1024,
        combine: str = "concat",
        hidden: Sequence[int] = (300, 300, 300),
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, encoders, width=width, **others)
        if combine not in COMBINATIONS:
            raise ValueError(f"combine={combine}: must be one of {', '.join(COMBINATIONS)}")
        self.combine = combine
        first = width * (sum(self.tokens_per_modality) if combine == "concat" else 1)
        layers = [part for a, b in pairwise([first, *hidden]) for part in (nn.Linear(a, b), nn.ReLU())]
        self.perceptron = nn.Sequential(*layers)
        self.classifier = nn.Linear(hidden[-1] if hidden else first, num_classes)
        self.initialise()

    def classify(self, tokens: Tensor, available: Tensor | None) -> Prediction:
        combined = tokens.flatten(1)
        if self.combine != "concat":
            combined = tokens.amax(1) if self.combine == "max" else tokens.sum(1)
        features = self.perceptron(combined)
        return Prediction(self.classifier(features), features)
