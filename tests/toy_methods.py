"""Methods that use what no shipped one does yet, for the tests of the machinery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import IncompleteClassifier, Prediction
from models.baselines.base import VectorBaseline
from models.baselines.memory import RowMemory


class Mixture(RowMemory, VectorBaseline):
    """Frozen experts, weighted; each training row's visits are counted."""

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        prerequisites: Mapping[str, IncompleteClassifier],
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        self.experts = nn.ModuleDict(dict(prerequisites)).requires_grad_(False)
        self.weights = nn.Parameter(torch.zeros(len(prerequisites)))
        self.handed_over = {k: v.clone() for k, v in self.experts.state_dict().items()}

    def forward(self, batch: Batch) -> Prediction:
        logits = torch.stack([expert(batch).logits for expert in self.experts.values()])
        return Prediction((self.weights.softmax(0)[:, None, None] * logits).sum(0))

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        return self(batch)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        assert self.memory is not None
        self.memory[batch.index] += 1
        return self.loss(self(batch), batch)["loss"]
