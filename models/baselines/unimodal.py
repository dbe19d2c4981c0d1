"""Classifier on one modality: lower bound, and expert of DynMM (docs/reference/baselines.md §2.1).

The logits of a row without the modality are the logarithms of the class frequencies of the training data; the original
uses the hidden content. Such rows are excluded from the loss. ``reference`` has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from models.base import Prediction
from models.baselines.base import VectorBaseline


class Unimodal(VectorBaseline):
    """Linear classifier on one modality.

    Args:
        modality: name or index.
        encoders: see :meth:`models.baselines.base.VectorBaseline.add_encoders`; only that of ``modality`` is used.
        others: see :class:`models.baselines.base.Baseline`.
    """

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        modality: str | int = 0,
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        names = self.modality_names
        self.column = names.index(modality) if modality in names else int(modality)
        self.encoders = nn.ModuleDict({names[self.column]: encoders[names[self.column]]})
        self.classifier = nn.Linear(int(encoders[names[self.column]].width), num_classes)  # type: ignore[arg-type]
        self.register_buffer("prior", torch.zeros(num_classes))
        self.prior: Tensor

    def on_fit_start(self) -> None:
        target = self.trainer.datamodule.split("train").read("target")  # type: ignore[attr-defined]
        self.prior.copy_(prior_logits(target, self.num_classes))

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs -> vector (B, 1, D) of the modality."""
        name = self.modality_names[self.column]
        return self.encode_one(name, inputs, cells)

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        absent = self.absent(batch)[:, self.column, None]
        features = torch.where(absent, 0, encoded[:, 0])
        return Prediction(torch.where(absent, self.prior, self.classifier(features)), features)

    def rows_of_loss(self, batch: Batch) -> int:
        if batch.complete or batch.is_filler:
            return batch.counted
        return int((~self.absent(batch)[:, self.column]).sum())

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """Classification loss of the rows with the modality; zero without any."""
        if batch.complete:  # a GPU would have to count the rows
            return {"loss": self.criterion(prediction.logits, batch.target)}
        is_observed = ~self.absent(batch)[:, self.column]
        logits, target = prediction.logits[is_observed], batch.target[is_observed]
        return {"loss": self.criterion(logits, target) if len(logits) else prediction.logits.sum() * 0}


def prior_logits(target: Tensor, num_classes: int) -> Tensor:
    """Logits (C,) of the class frequencies, with one added count per class, so that all are finite.

    Args:
        target: (N,) int64, or (N, C) float labels, < 0 = not labelled.
    """
    if target.ndim == 1:
        return ((torch.bincount(target, minlength=num_classes) + 1) / (len(target) + num_classes)).log()
    positive, total = (target > 0).sum(0) + 1, (target >= 0).sum(0) + 2
    return torch.logit(positive / total)
