"""Concatenation of one vector a modality and a linear head: late fusion, the bound on complete data (baselines 2.2).

It knows complete inputs only: scenarios that hide something need ``model.use_imputer=true``, or a training that hides
(``model.module.masks.kind=bernoulli``, a control of ours); the vector of a missing modality is zero then. The original
carries the M heads of its unimodal parts along, which nothing uses; ``reference`` changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from datasets.base import Batch, Modality
from models.base import Prediction
from models.baselines.base import VectorBaseline


class MultimodalConcat(VectorBaseline):
    """
    Args:
        encoders: see :meth:`models.baselines.base.VectorBaseline.add_encoders`.
        others: see :class:`models.baselines.base.Baseline`.
    """

    needs_imputer = True

    def __init__(
        self, modalities: Sequence[Modality], num_classes: int, encoders: Mapping[str, nn.Module], **others: Any
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        self.add_encoders(encoders)
        self.classifier = nn.Linear(len(modalities) * self.vector_width, num_classes)

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        features = self.replace_missing(encoded, batch).flatten(1)
        return Prediction(self.classifier(features), features)
