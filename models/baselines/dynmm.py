"""DynMM: Dynamic Multimodal Fusion (Xue and Marculescu, CVPR workshops 2023, arXiv 2204.00102), its modality level.

A gate routes each row to one of M + 1 trained experts: a classifier on one modality, or the concatenation of all
(docs/reference/baselines.md §2.14). Its input is the experts' vectors of all modalities; its decision is hard, with the
gradient of the softmax (straight-through). L = CE + ``resource`` * (fraction of rows routed to the concatenation). Only
the gate is trained; stage fit first trains the experts in their own run directories.

The experts take complete inputs. Incomplete scenarios need ``model.use_imputer=true`` or training with masks
(``model.module.masks.kind=bernoulli``, ours): the gate then takes zeros for missing modalities and cannot select their
experts. With ``sparse=true``, the encoders of the concatenation process only the rows routed to it in evaluation (the
original always runs everything). ``reference=true`` leaves the frozen experts in training mode while the gate is
trained: batch statistics are updated, and dropout is active.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import Batch, Modality
from datasets.rows import take_rows
from models.base import IncompleteClassifier, Prediction
from models.baselines.concat import MultimodalConcat
from models.baselines.decisions import OnExperts
from models.baselines.unimodal import Unimodal


class DynMM(OnExperts):
    """Gate over unimodal experts and their concatenation.

    Args:
        encoders: not used; the experts have their own.
        prerequisites: ``unimodal_<modality>`` for every modality, and ``concat``.
        temperature: of the gate.
        resource: weight of the fraction of rows routed to the concatenation.
        sparse: in evaluation, run the concatenation only for the rows routed to it.
        others: see :class:`models.baselines.base.Baseline`.
    """

    needs_imputer = True

    def __init__(
        self,
        modalities: Sequence[Modality],
        num_classes: int,
        encoders: Mapping[str, nn.Module],
        *,
        prerequisites: Mapping[str, IncompleteClassifier],
        temperature: float = 1.0,
        resource: float = 0.1,
        sparse: bool = False,
        **others: Any,
    ) -> None:
        super().__init__(modalities, num_classes, **others)
        self.add_experts(prerequisites)
        self.temperature, self.resource, self.sparse = temperature, resource, sparse
        m, width = len(modalities), self.concat.vector_width
        self.gate = nn.Sequential(nn.Linear(m * width, width), nn.ReLU(), nn.Linear(width, m + 1))

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.reference and hasattr(self, "experts"):
            self.experts.train(mode)
        return self

    @property
    def unimodal(self) -> list[Unimodal]:
        return [self.experts[f"unimodal_{name}"] for name in self.modality_names]  # type: ignore[misc]

    @property
    def concat(self) -> MultimodalConcat:
        return self.experts["concat"]  # type: ignore[return-value]

    @property
    def can_split(self) -> bool:
        return not self.sparse

    def encode(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs -> (B, 2M, D), vectors of the unimodal experts, then of the concatenation."""
        return torch.cat([self.encode_unimodal(inputs, cells), self.concat.encode(inputs, cells)], dim=1)

    def encode_unimodal(self, inputs: Mapping[str, Tensor], cells: Mapping[str, Tensor] | None = None) -> Tensor:
        """Inputs -> (B, M, D)."""
        return torch.cat([expert.encode(inputs, cells) for expert in self.unimodal], dim=1)

    def scores(self, vectors: Tensor, batch: Batch) -> Tensor:
        """Unimodal vectors (B, M, D) -> (B, M + 1), -inf for experts whose modality is missing."""
        scores = self.gate(self.replace_missing(vectors, batch).flatten(1)) / self.temperature
        return scores.masked_fill(F.pad(self.absent(batch), (0, 1)), -torch.inf)

    def decisions(self, vectors: Tensor, batch: Batch) -> Tensor:
        """Unimodal vectors (B, M, D) -> logits (B, M, C)."""
        logits = [expert.fuse(vectors[:, i : i + 1], batch).logits for i, expert in enumerate(self.unimodal)]
        return torch.stack(logits, dim=1)

    def fuse(self, encoded: Tensor, batch: Batch) -> Prediction:
        unimodal, joint = encoded.chunk(2, dim=1)
        gates = straight_through(self.scores(unimodal, batch))
        logits = torch.cat([self.decisions(unimodal, batch), self.concat.fuse(joint, batch).logits[:, None]], dim=1)
        return Prediction((gates[..., None] * logits).sum(1), extras={"gates": gates})

    def forward(self, batch: Batch) -> Prediction:
        return self.route(batch) if self.sparse and not self.training else super().forward(batch)

    def forward_fixed(self, batch: Batch) -> Prediction:
        return super().forward(batch)

    def route(self, batch: Batch) -> Prediction:
        """Predict as :meth:`forward`, but run the concatenation only for the rows routed to it."""
        cells = None if batch.complete else self.cells(batch.missing, batch.feature_missing)
        vectors = self.encode_unimodal(batch.inputs if batch.complete else batch.observed(), cells)
        gates = straight_through(self.scores(vectors, batch))
        logits = (gates[:, :-1, None] * self.decisions(vectors, batch)).sum(1)
        rows = gates[:, -1].nonzero()[:, 0]
        if len(rows):
            logits[rows] = self.concat(take_rows(batch, rows)).logits.to(logits.dtype)
        return Prediction(logits, extras={"gates": gates})

    def loss(self, prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
        """Classification loss plus the weighted fraction of rows routed to the concatenation."""
        classification = super().loss(prediction, batch)["loss"]
        share = prediction.extras["gates"][:, -1].mean()
        return {"loss": classification + self.resource * share, "multimodal_share": share}


def straight_through(scores: Tensor) -> Tensor:
    """Scores (B, K) -> one-hot of the maximum, with the gradient of the softmax."""
    soft = scores.softmax(-1)
    hard = F.one_hot(scores.argmax(-1), scores.shape[-1]).to(soft.dtype)
    return hard + (soft - soft.detach())
